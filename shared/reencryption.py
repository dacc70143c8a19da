"""Encrypts stored secrets again with the first key, so that the other keys can be removed.

Each secret is replaced only if it is unchanged, so the work can be stopped at any time, run again, and run beside the
service. What is encrypted with the first key already is left alone.
"""

from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass, field

from shared.sealing import UnreadableSecretError

MOST_NAMED = 10
BATCH = 200
"""The records that are read at once."""


@dataclass(slots=True)
class Reencryption:
    """What has been done so far: numbers of secrets, and the first records with a secret that no key opens."""

    checked: int = 0
    changed: int = 0
    unreadable: int = 0
    unreadable_ids: list[str] = field(default_factory=list)

    def add_unreadable(self, record_id: str) -> None:
        """Count a secret that no key opens."""
        self.unreadable += 1
        if len(self.unreadable_ids) < MOST_NAMED and record_id not in self.unreadable_ids:
            self.unreadable_ids.append(record_id)


Progress = Callable[[Reencryption], None]
Replace = Callable[[str, bytes, bytes], Awaitable[bool]]
"""Stores a secret of a record in the place of a former one; returns False if that has changed meanwhile."""


async def reencrypt_all(
    stored: AsyncIterable[tuple[str, bytes]],
    reseal: Callable[[str, bytes], bytes | None],
    replace: Replace,
    on_progress: Progress,
) -> Reencryption:
    """Encrypt secrets, each given with the id of its record. `reseal` is like `Sealer.reseal`; errors pass through."""
    done = Reencryption()
    async for record_id, sealed in stored:
        done.checked += 1
        try:
            resealed = reseal(record_id, sealed)
        except UnreadableSecretError:
            done.add_unreadable(record_id)
        else:
            if resealed is not None and await replace(record_id, sealed, resealed):
                done.changed += 1
        on_progress(done)
    return done


def no_progress(_done: Reencryption) -> None:
    """Report nothing."""

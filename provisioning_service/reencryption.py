"""Encrypts the stored credentials again with the first key, so that the others can be removed.

Each record is replaced by itself and only if it is unchanged, so the work can be stopped at any time, run again, and
run beside the service. What is encrypted with the first key already is left alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from provisioning_service.credentials import UnreadableCredentialsError, Vault
from shared.database import Collection

MOST_NAMED = 10
BATCH = 200


@dataclass(slots=True)
class Reencryption:
    """What has been done so far: numbers of records, and the first orders whose credentials no key opens."""

    checked: int = 0
    changed: int = 0
    unreadable: int = 0
    unreadable_orders: list[str] = field(default_factory=list)


async def reencrypt(
    jobs: Collection, vault: Vault, on_progress: Callable[[Reencryption], None] = lambda _: None
) -> Reencryption:
    """Encrypt all stored credentials with the first key of the vault; driver errors pass through."""
    done = Reencryption()
    found = jobs.find({"credentials": {"$exists": True}}, {"credentials": True}).sort("_id", 1).batch_size(BATCH)
    async for job in found:
        if job["credentials"] is not None:
            await _reencrypt_one(jobs, vault, job["_id"], job["credentials"], done)
            on_progress(done)
    return done


async def _reencrypt_one(jobs: Collection, vault: Vault, order_id: str, sealed: bytes, done: Reencryption) -> None:
    done.checked += 1
    try:
        resealed = vault.reseal(order_id, sealed)
    except UnreadableCredentialsError:
        done.unreadable += 1
        if len(done.unreadable_orders) < MOST_NAMED:
            done.unreadable_orders.append(order_id)
        return
    if resealed is not None:
        query = {"_id": order_id, "credentials": sealed}
        done.changed += (await jobs.update_one(query, {"$set": {"credentials": resealed}})).modified_count

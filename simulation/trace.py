"""The trace of a run: one line per step, and the hash of all of them."""

import hashlib
import pdb
from collections.abc import Callable

from simulation.loop import LIFE


class Trace:
    """What has happened in one world, in order."""

    def __init__(self, now: Callable[[], float], until: int | None = None) -> None:
        self._now = now
        self._until = until
        self.lines: list[str] = []

    def note(self, what: str, process: str | None = None) -> None:
        """Add a step of a process, by default of the one that runs."""
        if process is None:
            life = LIFE.get()
            process = "world" if life is None else life.process
        self.lines.append(f"{self._now():10.4f}  {process:<15} {what}")
        if self._until is not None and len(self.lines) == self._until:
            pdb.set_trace()

    @property
    def sha256(self) -> str:
        """The hash of all lines."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

"""The trace of a run: one line per step, and the hash of all of them."""

import hashlib
import pdb
from bdb import BdbQuit
from collections.abc import Callable
from typing import Any

from simulation.loop import LIFE

HEADER = (
    "Stopped at this step, before anything else happens. `world` is everything that there is: "
    "world.documents('order', 'orders') lists a collection, `up` leads to the code that takes the step, `c` goes on, "
    "`q` ends the run."
)


def _stop(step: str, world: Any) -> None:
    """Stop in the debugger. Whoever quits there ends the run: a service must not take that for an error of its own."""
    try:
        pdb.set_trace(header=f"{step}\n{HEADER}")
        del step, world  # until here they can be looked at
    except BdbQuit:
        raise SystemExit("The run was ended in the debugger, without a verdict.") from None


class Trace:
    """What has happened in one world, in order."""

    def __init__(self, now: Callable[[], float], until: int | None = None) -> None:
        self._now = now
        self._until = until
        self.lines: list[str] = []
        self.world: Any = None
        """What the debugger shows."""

    def note(self, what: str, process: str | None = None) -> None:
        """Add a step of a process, by default of the one that runs."""
        if process is None:
            life = LIFE.get()
            process = "world" if life is None else life.process
        self.lines.append(f"{self._now():10.4f}  {process:<15} {what}")
        if self._until is not None and len(self.lines) == self._until:
            _stop(self.lines[-1], self.world)

    @property
    def sha256(self) -> str:
        """The hash of all lines."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

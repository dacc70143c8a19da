"""A kind of faults, and a fault of that kind that has been injected."""

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from chaos.stack import ChaosStack

Act = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """Do nothing: the fault ends by itself."""


@dataclass(slots=True)
class Injected:
    """A fault that has been injected: what was hit, when (in Unix seconds), and how long it is to last.

    It lasts until `repair`; one of 0 seconds, such as a kill, is over when it has happened. `duty` is what an operator
    has to do once clients see nothing of it any more, as `told` says in words; None if there is nothing to do.
    """

    what: str
    seconds: float = 0.0
    undo: Act = nothing
    duty: Act | None = None
    told: str = ""
    at: float = field(default_factory=time.time)
    is_repaired: bool = False

    async def repair(self) -> None:
        """End the fault. It may be called again, and when the run is interrupted."""
        if not self.is_repaired:
            await self.undo()
            self.is_repaired = True


class Fault(Protocol):
    """A kind of faults."""

    @property
    def name(self) -> str:
        """Its name for `--only` and for programs: primary-killed."""

    @property
    def title(self) -> str:
        """Its line in the table, in words: kill -9 of the primary."""

    @property
    def weight(self) -> int:
        """How often it comes in each round."""

    def missing(self) -> str | None:
        """Return why it cannot be had on this machine, such as "needs root"; None if it can."""

    async def strike(self, stack: ChaosStack, chance: random.Random) -> Injected:
        """Inject a fault. Raises LookupError if its victim is not there just now, or the others could not spare it.

        Victim and duration come from `chance` alone, so that a seed repeats them.
        """

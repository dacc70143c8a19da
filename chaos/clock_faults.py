"""Faults of clocks: the clock of one process jumps forward or back, and some seconds later it is right again."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from chaos import clocks, namespaces
from chaos.fault import Fault, Injected
from chaos.stack import ChaosStack

SHORTEST_JUMP, LONGEST_JUMP = 0.2, 2.0
"""Seconds. More than that, machines that keep time over the network do not differ."""
SHORTEST, LONGEST = 3.0, 10.0


@dataclass(frozen=True, slots=True)
class ClockJump:
    """The clock of a further process jumps: those have one of their own."""

    name: str = "clock-jumped"
    title: str = "a service's clock wrong by 0.2 to 2 s"
    weight: int = 2

    def missing(self) -> str | None:
        """Return why no clock can jump."""
        return clocks.missing() or namespaces.missing()

    async def strike(self, stack: ChaosStack, chance: random.Random) -> Injected:
        """Let the clock of a process jump. Raises LookupError if it does not run."""
        name = chance.choice(sorted(stack.clocks))
        clock = stack.clocks[name]
        stack.require([name])
        ahead = chance.choice([-1, 1]) * chance.uniform(SHORTEST_JUMP, LONGEST_JUMP)
        seconds = chance.uniform(SHORTEST, LONGEST)

        async def set_right() -> None:
            clock.set_ahead(0.0)

        clock.set_ahead(ahead)
        direction = "ahead" if ahead > 0 else "behind"
        return Injected(f"{name}, {abs(ahead):.1f} s {direction} for {seconds:.0f} s", seconds, set_right)


def has_clock_faults(faults: Sequence[Fault]) -> bool:
    """Return whether further processes need clocks of their own for these faults."""
    return any(isinstance(fault, ClockJump) for fault in faults)


def clock_faults() -> Sequence[ClockJump]:
    """Return the kinds of faults of clocks."""
    return [ClockJump()]

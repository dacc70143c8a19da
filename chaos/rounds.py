"""Which fault comes when: drawn from the seed, in rounds that have every kind as often as it weighs."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos.fault import Fault


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault that is to come, and its number. Its chance is its own: whatever came before does not change it."""

    seed: int
    number: int
    fault: Fault

    def chance(self) -> random.Random:
        """Return what its victim and its duration are drawn from; the same each time."""
        return random.Random(f"{self.seed}/fault {self.number}")


def rounds(faults: Sequence[Fault], seed: int) -> Iterator[list[Planned]]:
    """Yield the faults of each round, in order, without end."""
    chance = random.Random(f"{seed}/faults")
    number = 0
    while True:
        drawn = [fault for fault in faults for _ in range(fault.weight)]
        chance.shuffle(drawn)
        yield [Planned(seed, number + place, fault) for place, fault in enumerate(drawn, 1)]
        number += len(drawn)

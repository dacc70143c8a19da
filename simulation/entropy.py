"""Clocks and chance while a world runs: both come from the seed. The one place that replaces them.

`utc_now` is passed to the parts of a service by its composition root, but other modules of the standard library take
the time and random numbers where they need them. So their sources are replaced here, and put back at the end. Each
process has its own wall clock, which may be ahead or behind; the monotonic clock is the same for all.
"""

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any

import shared.bus.consumer
import shared.clock
from simulation.loop import LIFE, SimulatedLoop

BEGINNING = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
"""The time at which every world begins."""


class _Clocks:
    """The clocks of one world."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._last = 0.0, BEGINNING
        """The last time that was asked for: a step asks for it several times."""

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        return 1000.0 + self._loop.time()

    def now(self, zone: tzinfo | None = UTC) -> datetime:
        """Return the time as the process that runs knows it."""
        life, seconds = LIFE.get(), self._loop.time()
        if life is not None:
            seconds += life.clock_offset
        if seconds != self._last[0]:
            self._last = seconds, BEGINNING + timedelta(seconds=seconds)
        moment = self._last[1]
        return moment if zone is UTC else moment.astimezone(zone)

    def time(self) -> float:
        """Return the same in seconds since 1970."""
        return self.now().timestamp()


@contextmanager
def seeded(seed: int, loop: SimulatedLoop) -> Iterator[None]:
    """Take all time from the loop, and all chance from the seed, until the context ends."""
    chance, clocks = random.Random(f"{seed}/entropy"), _Clocks(loop)
    before = random.getstate()
    random.seed(f"{seed}/random")
    with ExitStack() as replaced:
        replaced.callback(random.setstate, before)
        for module, name, replacement in (
            (os, "urandom", chance.randbytes),  # uuid.uuid4
            (random, "_urandom", chance.randbytes),  # secrets, SystemRandom
            (time, "monotonic", clocks.monotonic),
            (time, "time", clocks.time),
            (shared.clock, "datetime", SimpleNamespace(now=clocks.now)),
            (shared.bus.consumer, "datetime", SimpleNamespace(now=clocks.now)),
        ):
            replace_until_exit(replaced, module, name, replacement)
        yield


def replace_until_exit(replaced: ExitStack, module: Any, name: str, replacement: Any) -> None:
    """Replace an attribute of a module until the stack of contexts ends."""
    replaced.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, replacement)

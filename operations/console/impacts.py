"""Keeps the impact of groups for a while, for all pages together: the longer it takes to read, the longer."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from operations.impact.impact import Impact
from operations.impact.ranking import Impacts

KEPT_SECONDS = 2.0
"""The least time for which all operators see the same figures."""

PAUSE_FACTOR = 20
"""The pause between two readings, as a multiple of the time that one takes."""


class _Kept(NamedTuple):
    impact: Impact
    until: float


class ImpactCache:
    """Reads the impact of groups that is not known, or was read too long ago.

    A group whose number of open letters has changed is read at once.
    """

    def __init__(self, impacts: Impacts, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._impacts = impacts
        self._monotonic = monotonic
        self._kept: dict[tuple[str, int], _Kept] = {}
        self._reading = asyncio.Lock()

    async def of_groups(self, numbers: Mapping[str, int]) -> dict[str, Impact]:
        """Return the impact of each group, by the numbers of their open letters."""
        async with self._reading:
            began = self._monotonic()
            self._kept = {key: kept for key, kept in self._kept.items() if kept.until > began}
            if missing := {name: number for name, number in numbers.items() if (name, number) not in self._kept}:
                found = await self._impacts.of_groups(missing)
                until = began + max(KEPT_SECONDS, PAUSE_FACTOR * (self._monotonic() - began))
                self._kept |= {(name, number): _Kept(found[name], until) for name, number in missing.items()}
            return {name: self._kept[name, number].impact for name, number in numbers.items()}

"""Keeps the impact of groups and replays for a while, for all pages together: the longer it takes, the longer."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from operations.console.upstream import PAUSE_FACTOR
from operations.impact.impact import Impact
from operations.impact.reading import shares_of

KEPT_SECONDS = 2.0
"""The least time for which all operators see the same figures."""


SAME_EFFORT = 0.1
"""The part by which the numbers of letters that were looked at may differ for groups that are compared."""


class Reads(Protocol):
    """Reads the impact of groups, of a number of letters of each; `ImpactReader` does."""

    async def of_groups(self, numbers: Mapping[str, int], shares: Mapping[str, int]) -> dict[str, Impact]:
        """Return the impact of each group."""


class ReadsReplays(Protocol):
    """Reads the impact of replays; `ImpactReader` does."""

    async def of_replay(self, replay_id: str) -> Impact:
        """Return what the orders of a replay's letters amount to now."""


class _Kept(NamedTuple):
    impact: Impact
    share: int
    until: float


class ImpactCache:
    """Reads the impact of groups that is not known, or was read too long ago.

    A group whose number of open letters has changed is read at once. Groups that are compared are read with the same
    effort: what was read for another list, with much more or less of it, is read again.
    """

    def __init__(self, impacts: Reads, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._impacts = impacts
        self._monotonic = monotonic
        self._kept: dict[tuple[str, int], _Kept] = {}
        self._reading = asyncio.Lock()

    async def of_groups(self, numbers: Mapping[str, int]) -> dict[str, Impact]:
        """Return the impact of each group, by the numbers of their open letters."""
        async with self._reading:
            began = self._monotonic()
            self._kept = {key: kept for key, kept in self._kept.items() if kept.until > began}
            shares = shares_of(numbers)
            if missing := {
                each: shares[each] for each in numbers if not self._knows(each, numbers[each], shares[each])
            }:
                found = await self._impacts.of_groups({name: numbers[name] for name in missing}, missing)
                until = began + max(KEPT_SECONDS, PAUSE_FACTOR * (self._monotonic() - began))
                self._kept |= {(name, numbers[name]): _Kept(found[name], missing[name], until) for name in missing}
            return {name: self._kept[name, number].impact for name, number in numbers.items()}

    def _knows(self, name: str, number: int, share: int) -> bool:
        kept = self._kept.get((name, number))
        return kept is not None and abs(kept.share - share) <= SAME_EFFORT * share


class ReplayImpactCache:
    """Reads what the orders of a replay amount to, once for all who look at its page."""

    def __init__(self, impacts: ReadsReplays, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._impacts = impacts
        self._monotonic = monotonic
        self._kept: dict[str, tuple[Impact, float]] = {}
        self._reading = asyncio.Lock()

    async def of_replay(self, replay_id: str) -> Impact:
        """Return the impact of a replay, from the cache or the database."""
        async with self._reading:
            began = self._monotonic()
            self._kept = {name: kept for name, kept in self._kept.items() if kept[1] > began}
            if replay_id not in self._kept:
                impact = await self._impacts.of_replay(replay_id)
                until = began + max(KEPT_SECONDS, PAUSE_FACTOR * (self._monotonic() - began))
                self._kept[replay_id] = impact, until
            return self._kept[replay_id][0]

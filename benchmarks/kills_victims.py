"""Chooses what `benchmarks.kills` kills next: only what leaves the rest of its kind with a majority."""

import asyncio
import contextlib
import random
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks.failover_faults import BROKER_NODES, MEMBERS, SERVICES, Cluster
from operations.stack.layout import numbered
from shared import topology
from shared.services import CONSOLE

KILLED_SERVICES = (*SERVICES, CONSOLE.name)
CHECK_SECONDS = 0.1
PAUSED = "any of these, paused"
PAUSED_SHARE = 1 / 8
"""The share of victims that are stopped for some seconds (SIGSTOP) rather than killed."""
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 6.0

Choose = Callable[[Cluster, random.Random], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of victims: how often it comes in each round, and the processes of which all have to run for that."""

    title: str
    times: int
    group: Sequence[str]
    choose: Choose


@dataclass(frozen=True, slots=True)
class Victim:
    """A process to kill, or to stop for `pause` seconds."""

    kind: str
    process: str
    pause: float | None

    @property
    def title(self) -> str:
        """The line of the report that it belongs to."""
        return self.kind if self.pause is None else PAUSED


async def _leader(cluster: Cluster, chance: random.Random) -> str:
    return await cluster.leader(chance.choice(list(topology.INBOXES)))


async def _primary(cluster: Cluster, _chance: random.Random) -> str:
    return await cluster.primary()


def _one_of(names: Sequence[str]) -> Choose:
    async def choose(_cluster: Cluster, chance: random.Random) -> str:
        return chance.choice(names)

    return choose


def kinds(processes: int, titles: str = "") -> Sequence[Kind]:
    """Return the kinds of victims in a stack with that many processes of each service, or those with these titles."""
    of_services = [
        Kind(service, 1, names, _one_of(names))
        for service in KILLED_SERVICES
        for names in [[numbered(service, number) for number in range(1, processes + 1)]]
    ]
    known = [
        Kind("leader of an inbox", 4, BROKER_NODES, _leader),
        Kind("broker node", 2, BROKER_NODES, _one_of(BROKER_NODES)),
        Kind("primary", 4, MEMBERS, _primary),
        Kind("member", 2, MEMBERS, _one_of(MEMBERS)),
        *of_services,
    ]
    wanted = [title.strip() for title in titles.split(",") if title.strip()]
    if unknown := set(wanted) - {kind.title for kind in known}:
        raise SystemExit(f"no victims: {', '.join(unknown)}; choose from {', '.join(kind.title for kind in known)}")
    return [kind for kind in known if kind.title in wanted or not wanted]


class Victims:
    """The sequence of victims of a seed, in rounds that contain every kind. A kind waits until all of it is there."""

    def __init__(self, cluster: Cluster, kinds: Sequence[Kind], seed: int) -> None:
        self._cluster = cluster
        self._kinds = kinds
        self._chance = random.Random(seed)
        self._round: list[Kind] = []

    @property
    def processes(self) -> set[str]:
        """The names of all that may be killed."""
        return {name for kind in self._kinds for name in kind.group}

    async def next(self, within: float) -> Victim:
        """Return the next victim. Raises TimeoutError if nothing may be killed for that many seconds."""
        deadline = time.monotonic() + within
        while (victim := await self._choose()) is None:
            if time.monotonic() > deadline:
                kinds = sorted({kind.title for kind in self._round})
                raise TimeoutError(f"none of these may be killed for {within:g} s: {', '.join(kinds)}")
            await asyncio.sleep(CHECK_SECONDS)
        return victim

    async def _choose(self) -> Victim | None:
        if not self._round:
            self._round = [kind for kind in self._kinds for _ in range(kind.times)]
            self._chance.shuffle(self._round)
        kind = next((kind for kind in self._round if all(map(self._cluster.runs, kind.group))), None)
        if kind is None:
            return None
        if kind.group is BROKER_NODES:
            await self._cluster.whole()  # a node may run, but be parted from the others
        # None leads a queue, or is primary, for a moment.
        with contextlib.suppress(OSError, subprocess.SubprocessError, LookupError):
            name = await kind.choose(self._cluster, self._chance)
            self._round.remove(kind)
            pause = self._chance.uniform(SHORTEST_PAUSE, LONGEST_PAUSE)
            return Victim(kind.title, name, pause if self._chance.random() < PAUSED_SHARE else None)
        return None

"""Runs many seeds over all cores, and adds up what was met."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from order_service.saga import SAGA
from shared import failpoints
from simulation import plan, world
from simulation.world import Outcome

_ELSEWHERE = ("notification.", "operations.")
"""The prefixes of failpoints in services that the simulation leaves out."""

FAILPOINTS = frozenset(point for point in failpoints.ALL_POINTS if not point.startswith(_ELSEWHERE))
ROWS = frozenset((str(status), event.__name__) for status, cells in SAGA.table.items() for event in cells)


@dataclass(frozen=True)
class SeedResult:
    """What is kept of the run of a seed."""

    seed: int
    sha256: str
    violations: tuple[str, ...]
    faults: Counter[str]
    statuses: Counter[str]
    crashes: int
    steps: int
    virtual_seconds: float
    failpoints: frozenset[str]
    rows: frozenset[tuple[str, str]]
    outcomes: frozenset[tuple[str, str]]


@dataclass
class Summary:
    """What many seeds have shown."""

    seeds: int = 0
    seconds: float = 0.0
    steps: int = 0
    crashes: int = 0
    virtual_seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    failpoints: set[str] = field(default_factory=set)
    rows: set[tuple[str, str]] = field(default_factory=set)
    outcomes: set[tuple[str, str]] = field(default_factory=set)
    failed: list[SeedResult] = field(default_factory=list)

    @property
    def missing_failpoints(self) -> list[str]:
        """The failpoints that no seed has met."""
        return sorted(FAILPOINTS - self.failpoints)

    @property
    def missing_rows(self) -> list[tuple[str, str]]:
        """The rows of the saga's table that no seed has met: status and event."""
        return sorted(ROWS - self.rows)

    @property
    def per_second(self) -> float:
        """Seeds per second of the clock on the wall."""
        return self.seeds / self.seconds if self.seconds else 0.0

    def add(self, result: SeedResult) -> None:
        """Count a seed."""
        self.seeds += 1
        self.steps += result.steps
        self.crashes += result.crashes
        self.virtual_seconds += result.virtual_seconds
        self.faults += result.faults
        self.statuses += result.statuses
        self.failpoints |= result.failpoints
        self.rows |= result.rows
        self.outcomes |= result.outcomes
        if result.violations:
            self.failed.append(result)


def run_seed(seed: int) -> SeedResult:
    """Run one seed."""
    return _kept(world.run(plan.draw(seed)))


def _kept(outcome: Outcome) -> SeedResult:
    return SeedResult(
        outcome.plan.seed,
        outcome.sha256,
        outcome.violations,
        Counter(fault.kind for fault in outcome.happened),
        Counter(outcome.statuses),
        outcome.crashes,
        len(outcome.trace),
        outcome.virtual_seconds,
        outcome.failpoints,
        outcome.rows,
        outcome.outcomes,
    )


def run_seeds(
    seeds: Iterable[int],
    *,
    processes: int | None = None,
    most_failed: int = 5,
    on_seed: Callable[[SeedResult], None] = lambda _: None,
) -> Summary:
    """Run the seeds, in as many processes as there are cores; stop early when enough of them have failed."""
    summary, began = Summary(), time.monotonic()
    for result in _results(list(seeds), processes or os.cpu_count() or 1):
        summary.add(result)
        on_seed(result)
        if len(summary.failed) >= most_failed:
            break
    summary.failed.sort(key=lambda failed: failed.seed)
    summary.seconds = time.monotonic() - began
    return summary


def _results(seeds: list[int], processes: int) -> Iterator[SeedResult]:
    if processes == 1 or len(seeds) < 2 * processes:
        yield from map(run_seed, seeds)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(run_seed, seeds, chunksize=max(1, min(20, len(seeds) // (4 * processes))))
        finally:
            pool.shutdown(cancel_futures=True)

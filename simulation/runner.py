"""Runs many seeds over all cores, and adds up what was met."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from simulation import plan, world
from simulation.coverage import Met
from simulation.world import Outcome


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
    met: Met


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
    met: Met = field(default_factory=Met)
    failed: list[SeedResult] = field(default_factory=list)

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
        self.met.add(result.met)
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
        outcome.met,
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

"""Samples of a range of time as the points of a chart. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from operations.samples.sample import GOODS, SERVERS, Sample, add_up, percentile

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Range(NamedTuple):
    """A time up to now, and how much of it each point stands for."""

    name: str
    title: str
    span: timedelta
    step: timedelta


RANGES: Mapping[str, Range] = {
    each.name: each
    for each in (
        Range("1h", "1 hour", timedelta(hours=1), timedelta(minutes=1)),
        Range("6h", "6 hours", timedelta(hours=6), timedelta(minutes=5)),
        Range("24h", "24 hours", timedelta(hours=24), timedelta(minutes=15)),
        Range("7d", "7 days", timedelta(days=7), timedelta(hours=2)),
    )
}
"""The ranges to choose from."""


class Times(NamedTuple):
    """The latencies of half of the orders and of 99 of 100, in seconds; None without orders."""

    p50: float | None = None
    p99: float | None = None


_NO_TIMES = Times()


@dataclass(frozen=True, slots=True)
class Point:
    """What the samples of a step say. Rates are per minute with a sample; None where there is no sample.

    Levels are the highest of the step; `queue` is the inbox of the highest age.
    """

    at: datetime
    accepted: float | None = None
    settled: float | None = None
    cancelled: int | None = None
    failed: int | None = None
    goods: Times = _NO_TIMES
    servers: Times = _NO_TIMES
    dead_letters: int | None = None
    queue_age: float | None = None
    queue: str | None = None
    complete: bool = True


def points_of(samples: Sequence[Sample], wanted: Range, now: datetime) -> list[Point]:
    """Return the points of a range up to now, the last one of a step that may not be over."""
    first = _step_of(now - wanted.span, wanted.step) + wanted.step
    by_step: dict[datetime, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_step[_step_of(sample.at, wanted.step)].append(sample)
    steps = [first + number * wanted.step for number in range(int(wanted.span / wanted.step))]
    # The minute that goes on has no sample: a chart of minutes ends with the last one that is over.
    if wanted.step == timedelta(minutes=1) and not by_step[steps[-1]]:
        steps = [at - wanted.step for at in steps]
        if not by_step[steps[-1]]:  # it is counted some seconds after its end
            steps = [at - wanted.step for at in steps]
    return [_point(at, by_step[at]) for at in steps]


def _step_of(at: datetime, step: timedelta) -> datetime:
    return at - (at - _EPOCH) % step


def _point(at: datetime, samples: Sequence[Sample]) -> Point:
    if not samples:
        return Point(at)
    letters = [sample.levels.dead_letters for sample in samples if sample.levels.dead_letters is not None]
    ages = [(sample.levels.queue_age, sample.levels.queue) for sample in samples if sample.levels.queue_age is not None]
    age, queue = max(ages, key=lambda found: found[0], default=(None, None))
    return Point(
        at,
        accepted=sum(sample.accepted for sample in samples) / len(samples),
        settled=sum(sample.settled for sample in samples) / len(samples),
        cancelled=sum(sample.cancelled for sample in samples),
        failed=sum(sample.failed for sample in samples),
        goods=_times(samples, GOODS),
        servers=_times(samples, SERVERS),
        dead_letters=max(letters, default=None),
        queue_age=age,
        queue=queue if age else None,
        complete=all(sample.complete for sample in samples),
    )


def _times(samples: Sequence[Sample], fulfilment: str) -> Times:
    buckets = add_up(sample.latency.get(fulfilment, {}) for sample in samples)
    return Times(percentile(buckets, 0.5), percentile(buckets, 0.99))

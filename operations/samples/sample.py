"""A sample: what happened in one minute, and how it is counted. Pure.

Latencies are counted in buckets that each reach 10 % further than the one before. So those of several minutes can be
added up, and a percentile of them is at most 5 % off.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

MINUTE = timedelta(minutes=1)

MARGIN = timedelta(seconds=10)
"""How long after its end a minute is counted: until then, all that happened in it is stored."""

LOOKED_BACK = timedelta(hours=1)
"""The longest time without samples that is made up for; before it there is no data."""

LONGEST_WINDOW = timedelta(minutes=10)
"""The minutes that are counted at once, which limits what one query reads."""

GROWTH = 1.1
"""Each bucket of latencies reaches this much further than the one before."""

SHORTEST_SECONDS = 0.001
"""Shorter latencies count as this."""

GOODS, SERVERS = "goods", "vps"
FAILED, CANCELLED, SETTLED = "failed", "cancelled", "settled"

Histogram = Mapping[int, int]
"""The numbers of latencies by bucket; bucket n is for up to GROWTH ** n seconds."""


class Window(NamedTuple):
    """Whole minutes to count; the end is exclusive."""

    since: datetime
    until: datetime

    @property
    def minutes(self) -> list[datetime]:
        """The beginnings of the minutes."""
        return [self.since + number * MINUTE for number in range(int((self.until - self.since) / MINUTE))]


class Ended(NamedTuple):
    """Orders that ended in the same minute and in the same way, in about the same time."""

    at: datetime
    how: str
    fulfilment: str
    bucket: int
    orders: int


class Levels(NamedTuple):
    """What is now: open dead letters, and the inbox whose oldest message may have waited longest; None if not known."""

    dead_letters: int | None = None
    queue: str | None = None
    queue_age: float | None = None


class QueueAge(NamedTuple):
    """For how long a queue has had messages; `since_start` if it was never seen empty by the process that asks."""

    seconds: float
    since_start: bool = False


_NOTHING = Levels()


@dataclass(frozen=True, slots=True)
class Sample:
    """One minute. `settled` orders include the cancelled ones, and not the failed ones, which wait for a decision."""

    at: datetime
    accepted: int = 0
    settled: int = 0
    cancelled: int = 0
    failed: int = 0
    latency: Mapping[str, Histogram] = field(default_factory=dict)
    levels: Levels = _NOTHING
    complete: bool = True
    """False if not all open orders were followed: there were too many, or minutes before were not counted."""

    def as_document(self) -> dict[str, Any]:
        """Return the record of the sample."""
        return {
            "_id": self.at,
            "at": self.at,
            "accepted": self.accepted,
            "settled": self.settled,
            "cancelled": self.cancelled,
            "failed": self.failed,
            "latency": {
                name: {str(bucket): count for bucket, count in buckets.items()}
                for name, buckets in self.latency.items()
            },
            "deadLetters": self.levels.dead_letters,
            "queue": self.levels.queue,
            "queueAge": self.levels.queue_age,
            "complete": self.complete,
        }


def sample_of(document: Mapping[str, Any]) -> Sample:
    """Return the sample of a record."""
    return Sample(
        at=document["at"],
        accepted=document["accepted"],
        settled=document["settled"],
        cancelled=document["cancelled"],
        failed=document["failed"],
        latency={
            name: {int(bucket): count for bucket, count in buckets.items()}
            for name, buckets in document["latency"].items()
        },
        levels=Levels(document["deadLetters"], document["queue"], document["queueAge"]),
        complete=document["complete"],
    )


def whole_minute(at: datetime) -> datetime:
    """Return the beginning of the minute."""
    return at.replace(second=0, microsecond=0)


def next_window(until: datetime | None, now: datetime) -> Window | None:
    """Return the next minutes to count after those until a time (None if there are none), None if none is over."""
    end = whole_minute(now - MARGIN)
    start = max(until or end - LOOKED_BACK, end - LOOKED_BACK)
    return Window(start, min(end, start + LONGEST_WINDOW)) if start < end else None


def bucket_of(seconds: float) -> int:
    """Return the bucket of a latency."""
    return math.ceil(math.log(max(seconds, SHORTEST_SECONDS)) / math.log(GROWTH))


def percentile(buckets: Histogram, share: float) -> float | None:
    """Return a percentile in seconds (nearest rank, the middle of its bucket), None without latencies."""
    rank, passed = max(1, math.ceil(share * sum(buckets.values()))), 0
    for bucket in sorted(buckets):
        passed += buckets[bucket]
        if passed >= rank:
            return float(GROWTH ** (bucket - 0.5))
    return None


def add_up(histograms: Iterable[Histogram]) -> Histogram:
    """Return the sum of histograms."""
    total = Counter[int]()
    for histogram in histograms:
        total.update(histogram)
    return total


def samples_of(
    window: Window,
    accepted: Mapping[datetime, int],
    ended: Sequence[Ended],
    levels: Levels,
    *,
    complete: bool,
    incomplete_until: datetime | None = None,
) -> list[Sample]:
    """Return the samples of a window; the levels are those of its last minute.

    Minutes that begin before `incomplete_until` are not complete.

    What ended before the window, by a clock that is late, counts for its first minute.
    """
    found = []
    for minute in window.minutes:
        here = [each for each in ended if each.at == minute or (minute == window.since and each.at < minute)]
        found.append(
            Sample(
                at=minute,
                accepted=accepted.get(minute, 0),
                settled=_count(here, (SETTLED, CANCELLED)),
                cancelled=_count(here, (CANCELLED,)),
                failed=_count(here, (FAILED,)),
                latency=_latency(here),
                levels=levels if minute + MINUTE == window.until else Levels(),
                complete=complete and (incomplete_until is None or minute >= incomplete_until),
            )
        )
    return found


def _count(ended: Sequence[Ended], ways: Collection[str]) -> int:
    return sum(each.orders for each in ended if each.how in ways)


def _latency(ended: Sequence[Ended]) -> Mapping[str, Histogram]:
    """Return the latencies of settled orders by fulfilment; a failed one is not settled, and waits for somebody."""
    settled = [each for each in ended if each.how != FAILED]
    return {
        fulfilment: add_up({each.bucket: each.orders} for each in settled if each.fulfilment == fulfilment)
        for fulfilment in sorted({each.fulfilment for each in settled})
    }


def oldest_queue(ages: Mapping[str, QueueAge], before: Sample | None, at: datetime) -> Levels:
    """Return the queue that has had messages for longest, also if the process that asks has just been started.

    What it cannot know is taken from the sample before, if that is about the same queue.
    """
    known = {name: age.seconds for name, age in ages.items()}
    if before is not None and before.levels.queue in known and before.levels.queue_age:
        name = before.levels.queue
        if ages[name].since_start:
            since_then = (at - before.at - MINUTE).total_seconds()
            known[name] = max(known[name], before.levels.queue_age + since_then)
    oldest = max(known, key=lambda name: known[name], default=None)
    return Levels(queue=oldest, queue_age=known[oldest] if oldest is not None else None)

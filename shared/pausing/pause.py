"""When the consumption of an inbox is paused: the decisions. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

NEWS_WITHIN = timedelta(minutes=5)
"""How long the news of a running pause may stay away: they come every minute, once the broker takes messages."""
MOST_KEPT = 20
"""The most pauses of an inbox that its record keeps: deadlines of orders may depend on those that are over."""


@dataclass(frozen=True, slots=True)
class Pause:
    """One pause of an inbox: since when, until when at the latest, and when it was ended before that.

    `by` and `reason` are those of the operator who paused it; the order service does not know them of other services.
    """

    since: datetime
    until: datetime | None = None
    ended_at: datetime | None = None
    by: str | None = None
    reason: str | None = None

    @property
    def end(self) -> datetime | None:
        """When it is over, as far as is known; None if it lasts until somebody ends it."""
        ends = [end for end in (self.until, self.ended_at) if end is not None]
        return min(ends, default=None)

    def is_running(self, now: datetime) -> bool:
        """Return whether it is not over; it has begun, also by a clock that runs behind."""
        return self.end is None or now < self.end


class PauseShown(NamedTuple):
    """What anybody may know about a running pause."""

    since: datetime
    until: datetime | None


Pauses = Sequence[Pause]
"""The pauses of one inbox, in the order in which they began; no two of them overlap."""


def running(pauses: Pauses, now: datetime) -> Pause | None:
    """Return the pause that is running, None if there is none."""
    return pauses[-1] if pauses and pauses[-1].is_running(now) else None


def as_last_heard(pauses: Pauses, heard_at: datetime, now: datetime) -> Pauses:
    """Return the pauses of another service as far as its news reach: without any, the running one ended with the last.

    Its process may be of an older release by now, which consumes, or its record may be lost.
    """
    current = running(pauses, now)
    if current is None or now - heard_at <= NEWS_WITHIN:
        return pauses
    return (*pauses[:-1], replace(current, ended_at=max(heard_at, current.since)))


def begun(pauses: Pauses, now: datetime, *, by: str, reason: str, until: datetime | None) -> tuple[Pause, ...]:
    """Return the pauses after one has begun. If one is running, it gets this operator, reason and end instead."""
    if current := running(pauses, now):
        return (*pauses[:-1], replace(current, by=by, reason=reason, until=until))
    since = max([now, *(end for pause in pauses[-1:] if (end := pause.end) is not None)])
    return (*pauses[-(MOST_KEPT - 1) :], Pause(since, until, by=by, reason=reason))


def ended(pauses: Pauses, now: datetime) -> tuple[Pause, ...] | None:
    """Return the pauses after the running one was ended; None if there is none."""
    if (current := running(pauses, now)) is None:
        return None
    return (*pauses[:-1], replace(current, ended_at=now))

"""When there are delivery slots: the rules that an operator sets, and the times that follow from them. Pure, in UTC.

A day's slots begin at the opening time and follow each other until the closing time, which may lie after midnight; a
rest that is shorter than a slot is none. There is no local time in it: in UTC every day has 24 hours.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count, islice
from typing import NamedTuple

from shared.contracts.orders import SLOT_ID_PATTERN, SLOT_PREFIX

DAY_MINUTES = 24 * 60

_ID = re.compile(SLOT_ID_PATTERN)


class Opening(NamedTuple):
    """The times of one slot."""

    start: datetime
    end: datetime

    @property
    def slot_id(self) -> str:
        """The slot's id."""
        return slot_id(self.start)


@dataclass(frozen=True, slots=True)
class Rules:
    """How slots are made and given out; `capacity` in minor units, times of day in minutes after midnight, UTC."""

    duration: int = 15
    capacity: int = 100_000_00
    opens: int = 0
    closes: int = DAY_MINUTES
    cutoff: int = 8
    lead: int = 30
    horizon: int = 100

    def __post_init__(self) -> None:
        """Raise ValueError for rules by which there would be no slot at all."""
        if self.duration > self.minutes_open:
            raise ValueError(f"a slot of {self.duration} minutes does not fit into {self.minutes_open} minutes a day")

    @property
    def minutes_open(self) -> int:
        """How long a day's slots may take in all; who closes no later than he opens closes on the next day."""
        return self.closes - self.opens + (DAY_MINUTES if self.closes <= self.opens else 0)


def is_slot_id(identifier: str) -> bool:
    """Whether this is the id of a slot, which no product may have."""
    return _ID.fullmatch(identifier) is not None


def slot_id(start: datetime) -> str:
    """The id of the slot that starts then."""
    return f"{SLOT_PREFIX}{int(start.timestamp())}"


def start_of(identifier: str) -> datetime | None:
    """When the slot of this id starts; None if it is no slot's id, or of a time that no calendar has."""
    found = _ID.fullmatch(identifier)
    try:
        return datetime.fromtimestamp(int(found[1]), UTC) if found else None
    except (ValueError, OverflowError, OSError):
        return None


def openings(rules: Rules, since: datetime) -> Iterator[Opening]:
    """All slots that start at this moment or later, until the end of all calendars."""
    a_day = rules.minutes_open // rules.duration
    midnight = since.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        # The slots of the day before may go on after midnight.
        for day in count(-1 if midnight.timestamp() > 0 else 0):
            opening = midnight + timedelta(days=day, minutes=rules.opens)
            yield from _of_a_day(opening, timedelta(minutes=rules.duration), a_day, since)
    except OverflowError:
        return


def _of_a_day(opening: datetime, duration: timedelta, number: int, since: datetime) -> Iterator[Opening]:
    first = max(0, -((opening - since) // duration))
    for nth in range(first, number):
        yield Opening(opening + nth * duration, opening + (nth + 1) * duration)


def on_offer(rules: Rules, now: datetime) -> tuple[Opening, ...]:
    """The slots within the horizon: not begun, and not over in less than the cutoff."""
    ahead = (opening for opening in openings(rules, now) if opening.start > now and not too_near(rules, opening, now))
    first = next(ahead, None)
    return _horizon(rules, first.start) if first is not None else ()


@lru_cache(maxsize=4)
def _horizon(rules: Rules, start: datetime) -> tuple[Opening, ...]:
    # For every batch of orders until the next slot begins.
    return tuple(islice(openings(rules, start), rules.horizon))


def too_near(rules: Rules, opening: Opening, now: datetime) -> bool:
    """Whether the slot is over in less than the cutoff."""
    return opening.end - now < timedelta(minutes=rules.cutoff)


def opening_at(rules: Rules, start: datetime) -> Opening | None:
    """The slot that starts right then, if there is one by the rules."""
    opening = next(openings(rules, start), None)
    return opening if opening is not None and opening.start == start else None


def visible_at(rules: Rules, start: datetime, now: datetime) -> datetime:
    """When the work for the slot begins to show: the lead before its start, or at its start when that is nearer."""
    shown = start - timedelta(minutes=rules.lead)
    return shown if shown > now else start

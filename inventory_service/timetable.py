"""The timetable of delivery slots: the rules that an operator sets, and the times that follow from them. Pure.

A day's slots begin at the opening time and follow each other until the closing time, which may be after midnight; a
remainder shorter than a slot is left out. All times are UTC, where every day has 24 hours.
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
    """The rules of slots; `capacity` in minor units, times of day in minutes after midnight UTC."""

    duration: int = 15
    capacity: int = 100_000_00
    opens: int = 0
    closes: int = DAY_MINUTES
    cutoff: int = 8
    lead: int = 30
    horizon: int = 100

    def __post_init__(self) -> None:
        """Raise ValueError for rules that allow no slot at all."""
        if self.duration > self.minutes_open:
            raise ValueError(f"a slot of {self.duration} minutes does not fit into {self.minutes_open} minutes a day")

    @property
    def minutes_open(self) -> int:
        """The length of a day's opening hours; a closing time not after the opening time is on the next day."""
        return self.closes - self.opens + (DAY_MINUTES if self.closes <= self.opens else 0)


def is_slot_id(identifier: str) -> bool:
    """Return whether this is the id of a slot, which no product may have."""
    return _ID.fullmatch(identifier) is not None


def slot_id(start: datetime) -> str:
    """Return the id of the slot that starts at this moment."""
    return f"{SLOT_PREFIX}{int(start.timestamp())}"


def start_of(identifier: str) -> datetime | None:
    """Return the start of the slot with this id; None if it is not a slot's id or beyond the calendar."""
    found = _ID.fullmatch(identifier)
    try:
        return datetime.fromtimestamp(int(found[1]), UTC) if found else None
    except (ValueError, OverflowError, OSError):
        return None


def openings(rules: Rules, since: datetime) -> Iterator[Opening]:
    """Iterate over the slots that start at this moment or later, to the end of the calendar."""
    per_day = rules.minutes_open // rules.duration
    midnight = since.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        # Slots of the previous day may continue after midnight.
        for day in count(-1 if midnight.timestamp() > 0 else 0):
            opening = midnight + timedelta(days=day, minutes=rules.opens)
            yield from _of_a_day(opening, timedelta(minutes=rules.duration), per_day, since)
    except OverflowError:
        return


def _of_a_day(opening: datetime, duration: timedelta, number: int, since: datetime) -> Iterator[Opening]:
    first = max(0, -((opening - since) // duration))
    for nth in range(first, number):
        yield Opening(opening + nth * duration, opening + (nth + 1) * duration)


def on_offer(rules: Rules, now: datetime) -> tuple[Opening, ...]:
    """Return the slots that can be booked: within the horizon, not begun, not ending within the cutoff."""
    ahead = (opening for opening in openings(rules, now) if opening.start > now and not too_near(rules, opening, now))
    first = next(ahead, None)
    return _horizon(rules, first.start) if first is not None else ()


@lru_cache(maxsize=4)
def _horizon(rules: Rules, start: datetime) -> tuple[Opening, ...]:
    # Cached: the same for every batch of orders until the next slot begins.
    return tuple(islice(openings(rules, start), rules.horizon))


def too_near(rules: Rules, opening: Opening, now: datetime) -> bool:
    """Return whether the slot ends in less than the cutoff."""
    return opening.end - now < timedelta(minutes=rules.cutoff)


def opening_at(rules: Rules, start: datetime) -> Opening | None:
    """Return the slot that starts exactly then, or None if the rules have none."""
    opening = next(openings(rules, start), None)
    return opening if opening is not None and opening.start == start else None


def visible_at(rules: Rules, start: datetime, now: datetime) -> datetime:
    """Return when the work for the slot becomes visible: the lead before its start, or its start if that has passed."""
    shown = start - timedelta(minutes=rules.lead)
    return shown if shown > now else start

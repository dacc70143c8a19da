"""The calendar of delivery slots: the slots of a week by day and time of day, and what each is. Pure."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from inventory_service.timetable import Rules, on_offer

PAST = "past"
CLOSED = "closed"
FULL = "full"
TOO_LATE = "too late to book"
NOT_YET = "not yet on offer"
FREE = "free"

DAYS = 7
FIRST_DAY, LAST_DAY = date(1970, 1, 5), date(9999, 12, 20)
"""The Mondays between which there are slots that have an id, and weeks beside them."""


class CalendarSlot(NamedTuple):
    """A delivery slot; capacity and booked are amounts of money. `state` is one of the words above.

    If it follows the rules, it has their capacity, now and when they change; an earlier release does not say whether.
    """

    slot_id: str
    start: datetime
    end: datetime
    capacity: float
    booked: float
    state: str
    follows_rules: bool = False

    @property
    def free(self) -> float:
        """What can still be booked, if it can be booked at all."""
        return max(0.0, round(self.capacity - self.booked, 2))

    @property
    def share(self) -> float:
        """The booked share of the capacity, 0 to 1."""
        return min(1.0, self.booked / self.capacity) if self.capacity else 1.0


class Day(NamedTuple):
    """A column of the calendar: how many slots a day has, and what of them is booked."""

    day: date
    slots: int
    capacity: float
    booked: float

    @property
    def share(self) -> float:
        """The booked share, 0 to 1."""
        return min(1.0, self.booked / self.capacity) if self.capacity else 0.0


class Calendar(NamedTuple):
    """A week: its days, and for each time of day a slot or None for each day."""

    days: Sequence[Day]
    rows: Sequence[tuple[str, Sequence[CalendarSlot | None]]]


def monday_of(day: date) -> date:
    """Return the first day of a week, within the time in which there are slots."""
    return max(FIRST_DAY, min(LAST_DAY, day - timedelta(days=day.weekday())))


def days_of(monday: date) -> list[datetime]:
    """Return when each day of a week begins, and at last when the week ends."""
    begin = datetime(monday.year, monday.month, monday.day, tzinfo=UTC)
    return [begin + timedelta(days=number) for number in range(DAYS + 1)]


def offered_from_to(rules: Rules | None, now: datetime) -> tuple[datetime, datetime] | None:
    """Return the starts of the first and the last slot that can be booked by the rules; None if they are not known."""
    offered = on_offer(rules, now) if rules is not None else ()
    return (offered[0].start, offered[-1].start) if offered else None


def slot_of(item: Mapping[str, Any], now: datetime, offered: tuple[datetime, datetime] | None) -> CalendarSlot:
    """Return a slot that the inventory service lists."""
    start, end = datetime.fromisoformat(item["start"]), datetime.fromisoformat(item["end"])
    capacity, booked = float(item.get("capacity") or 0), float(item.get("load") or 0)
    state = _state(start, now, offered, is_full=booked >= capacity, is_closed=bool(item.get("disabled")))
    follows_rules = item.get("followsRules") is True
    return CalendarSlot(str(item["slotId"]), start, end, capacity, booked, state, follows_rules)


def _state(
    start: datetime, now: datetime, offered: tuple[datetime, datetime] | None, *, is_full: bool, is_closed: bool
) -> str:
    if start <= now:
        return PAST
    if is_closed:
        return CLOSED
    if is_full:
        return FULL
    if offered is not None and start < offered[0]:
        return TOO_LATE
    return NOT_YET if offered is not None and start > offered[1] else FREE


def calendar_of(monday: date, slots: Sequence[CalendarSlot]) -> Calendar:
    """Arrange the slots of a week; each belongs to the day on which it starts."""
    dates = [monday + timedelta(days=number) for number in range(DAYS)]
    by_place = {(slot.start.date(), _time(slot)): slot for slot in slots}
    times = sorted({time for _, time in by_place})
    rows = [(time, [by_place.get((day, time)) for day in dates]) for time in times]
    return Calendar([_day(day, [slot for slot in slots if slot.start.date() == day]) for day in dates], rows)


def _time(slot: CalendarSlot) -> str:
    return f"{slot.start:%H:%M}" if slot.start.second == 0 else f"{slot.start:%H:%M:%S}"


def _day(day: date, slots: Sequence[CalendarSlot]) -> Day:
    counted = [slot for slot in slots if slot.state != CLOSED]
    capacity, booked = sum(slot.capacity for slot in counted), sum(slot.booked for slot in counted)
    return Day(day, len(slots), capacity, booked)


def rules_of(body: Mapping[str, Any]) -> Rules | None:
    """Return the rules that the inventory service shows; None for what are none, as of another release."""
    try:
        return Rules(
            duration=int(body["durationMinutes"]),
            capacity=round(float(body["capacity"]) * 100),
            opens=_minutes(body["openTime"]),
            closes=_minutes(body["closeTime"]),
            cutoff=int(body["cutoffMinutes"]),
            lead=int(body["leadMinutes"]),
            horizon=int(body["horizonSlots"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _minutes(time: str) -> int:
    hours, minutes = time.split(":")
    return int(hours) * 60 + int(minutes)


class Change(NamedTuple):
    """A change of a slot, as the page shows it."""

    path: str
    before: str
    after: str


class Wanted(NamedTuple):
    """What a slot is to be: the capacity (None to follow the rules), and whether it is closed."""

    capacity: float | None
    closed: bool


def changes_of(slot: CalendarSlot, is_closed: bool, wanted: Wanted, rules: Rules | None) -> list[Change]:
    """Return what differs from what is wanted; nothing if the slot is so already."""
    changes = []
    if wanted.capacity is None and not slot.follows_rules:
        by_rules = f"as the rules say ({money(rules.capacity / 100)})" if rules else "as the rules say"
        changes.append(Change("capacity", money(slot.capacity), by_rules))
    elif wanted.capacity is not None and (slot.follows_rules or wanted.capacity != slot.capacity):
        of_rules = " (of the rules)" if slot.follows_rules else ""
        changes.append(Change("capacity", f"{money(slot.capacity)}{of_rules}", money(wanted.capacity)))
    if wanted.closed != is_closed:
        words = {True: CLOSED, False: "open"}
        changes.append(Change("bookings", words[is_closed], words[wanted.closed]))
    return changes


def body_of(changes: Sequence[Change], wanted: Wanted) -> dict[str, Any]:
    """Return the request to the inventory service."""
    fields = {"capacity": ("capacity", _number(wanted.capacity)), "bookings": ("disabled", wanted.closed)}
    return dict(fields[change.path] for change in changes)


def _number(amount: float | None) -> int | float | None:
    return int(amount) if amount is not None and float(amount).is_integer() else amount


def money(amount: float) -> str:
    """Format an amount that a slot counts: 500, 95,000.25; a capacity has no currency."""
    return f"{amount:,.0f}" if float(amount).is_integer() else f"{amount:,.2f}"

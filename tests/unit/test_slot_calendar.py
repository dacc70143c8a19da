"""The calendar of delivery slots: what each slot is, and where it stands."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from inventory_service.timetable import Rules
from inventory_service.views import show_rules
from operations.console.slot_calendar import (
    Change,
    Wanted,
    body_of,
    calendar_of,
    changes_of,
    days_of,
    monday_of,
    offered_from_to,
    rules_of,
    slot_of,
)

NOW = datetime(2026, 3, 14, 9, 55, tzinfo=UTC)
RULES = Rules(duration=30, capacity=500_00, opens=9 * 60, closes=24 * 60, horizon=4)


def an_item(hours: float, load: float = 0, *, disabled: bool = False, **more: Any) -> dict[str, Any]:
    start = NOW.replace(hour=0, minute=0) + timedelta(hours=hours)
    times = {"start": start.isoformat(), "end": (start + timedelta(minutes=30)).isoformat()}
    return {
        "slotId": f"slot:{start.timestamp():.0f}",
        "capacity": 500,
        "load": load,
        "disabled": disabled,
        **times,
        **more,
    }


@pytest.mark.parametrize(
    ("item", "state"),
    [
        (an_item(9, load=20), "past"),
        (an_item(9, disabled=True), "past"),
        (an_item(10, load=499.99), "free"),
        (an_item(10, load=500), "full"),
        (an_item(10, load=500, disabled=True), "closed"),
        (an_item(11.5), "free"),
        (an_item(12), "not yet on offer"),
    ],
)
def test_a_slot_is_past_closed_full_or_free(item: dict[str, Any], state: str) -> None:
    assert slot_of(item, NOW, offered_from_to(RULES, NOW)).state == state


def test_a_slot_that_ends_within_the_cutoff_is_too_late() -> None:
    rules = Rules(duration=30, opens=9 * 60, cutoff=40, horizon=4)
    assert slot_of(an_item(10), NOW, offered_from_to(rules, NOW)).state == "too late to book"
    # Without the rules nothing is said about it.
    assert slot_of(an_item(10), NOW, offered_from_to(None, NOW)).state == "free"


def test_slots_stand_at_their_day_and_time() -> None:
    monday = monday_of(NOW.date())
    assert (monday, days_of(monday)[-1]) == (date(2026, 3, 9), datetime(2026, 3, 16, tzinfo=UTC))
    items = [an_item(9, load=100), an_item(34, load=50), an_item(10), an_item(10.5, disabled=True)]
    calendar = calendar_of(monday, [slot_of(item, NOW, None) for item in items])
    assert [(time, [slot and slot.booked for slot in slots]) for time, slots in calendar.rows] == [
        ("09:00", [None] * 5 + [100, None]),
        ("10:00", [None] * 5 + [0, 50]),
        ("10:30", [None] * 5 + [0, None]),
    ]
    saturday = calendar.days[5]
    # What is closed is no capacity.
    assert (saturday.slots, saturday.booked, saturday.capacity, saturday.share) == (3, 100, 1000, 0.1)
    assert calendar.days[0].share == 0
    assert calendar_of(monday, []).rows == []


def test_weeks_at_the_ends_of_time_have_days() -> None:
    for day in (date.min, date.max):
        assert len(days_of(monday_of(day))) == 8
        assert monday_of(monday_of(day)) == monday_of(day)


@pytest.mark.parametrize("rules", [RULES, Rules(), Rules(opens=17 * 60, closes=60, capacity=95_000_25)])
def test_rules_are_read_as_the_service_shows_them(rules: Rules) -> None:
    assert rules_of(show_rules(rules)) == rules


@pytest.mark.parametrize("body", [{}, {"durationMinutes": None}, show_rules(RULES) | {"openTime": "later"}])
def test_other_rules_are_not_known(body: dict[str, Any]) -> None:
    assert rules_of(body) is None


@pytest.mark.parametrize(
    ("wanted", "body"),
    [
        (Wanted(500, closed=False), {}),
        (Wanted(250, closed=False), {"capacity": 250}),
        (Wanted(99.5, closed=True), {"capacity": 99.5, "disabled": True}),
        (Wanted(None, closed=False), {"capacity": None}),
    ],
)
def test_only_what_changes_is_sent(wanted: Wanted, body: dict[str, Any]) -> None:
    slot = slot_of(an_item(10), NOW, None)
    changes = changes_of(slot, False, wanted, RULES)
    assert body_of(changes, wanted) == body


def test_a_slot_that_follows_the_rules_need_not_be_told_so() -> None:
    slot = slot_of(an_item(10, followsRules=True), NOW, None)
    assert changes_of(slot, False, Wanted(None, closed=False), RULES) == []
    assert changes_of(slot, False, Wanted(None, closed=True), RULES) == [Change("bookings", "open", "closed")]
    assert changes_of(slot, False, Wanted(250, closed=False), RULES) == [
        Change("capacity", "500 (of the rules)", "250")
    ]
    assert changes_of(slot, False, Wanted(500, closed=False), RULES) == [
        Change("capacity", "500 (of the rules)", "500"),
    ], "it keeps this capacity when the rules change"


def test_changes_are_shown_in_words() -> None:
    slot = slot_of(an_item(10, disabled=True), NOW, None)
    assert changes_of(slot, True, Wanted(None, closed=False), RULES) == [
        Change("capacity", "500", "as the rules say (500)"),
        Change("bookings", "closed", "open"),
    ]

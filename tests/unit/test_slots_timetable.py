"""The timetable of slots: opening hours past midnight, UTC days, cutoff, horizon and lead."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory_service.timetable import (
    DAY_MINUTES,
    Rules,
    is_slot_id,
    on_offer,
    opening_at,
    openings,
    slot_id,
    start_of,
    visible_at,
)

NOON = datetime(2026, 3, 28, 12, tzinfo=UTC)
EVENING = Rules(duration=30, opens=22 * 60, closes=2 * 60)


def clock_times(rules: Rules, since: datetime, number: int) -> list[str]:
    return [f"{opening.start:%d %H:%M}" for opening in islice(openings(rules, since), number)]


def test_a_day_is_divided_into_slots_from_its_opening_time() -> None:
    rules = Rules(duration=60, opens=9 * 60 + 10, closes=12 * 60)

    assert clock_times(rules, NOON - timedelta(days=1), 5) == [
        "28 09:10",
        "28 10:10",
        "29 09:10",
        "29 10:10",
        "30 09:10",
    ]


def test_opening_hours_may_continue_after_midnight() -> None:
    assert clock_times(EVENING, NOON, 9)[3:] == ["28 23:30", "29 00:00", "29 00:30", "29 01:00", "29 01:30", "29 22:00"]
    after_midnight = NOON.replace(day=29, hour=0, minute=50)
    assert clock_times(EVENING, after_midnight, 3) == ["29 01:00", "29 01:30", "29 22:00"]


def test_equal_opening_and_closing_times_mean_a_whole_day() -> None:
    assert Rules(opens=8 * 60, closes=8 * 60).minutes_open == DAY_MINUTES


def test_a_slot_longer_than_the_opening_hours_is_refused() -> None:
    with pytest.raises(ValueError, match="a slot of 61 minutes does not fit into 60 minutes a day"):
        Rules(duration=61, opens=0, closes=60)


@pytest.fixture
def in_berlin() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("in_berlin")
@pytest.mark.parametrize("day", [datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)])
def test_a_day_of_a_clock_change_has_as_many_slots_as_any_other(day: datetime) -> None:
    starts = [opening.start for opening in islice(openings(Rules(), day), 97)]

    assert starts[-1] == day + timedelta(days=1)
    assert {after - before for before, after in pairwise(starts)} == {timedelta(minutes=15)}


def test_a_slot_that_has_begun_or_begins_now_is_not_on_offer() -> None:
    offered = on_offer(Rules(horizon=2), NOON)

    assert [opening.start for opening in offered] == [NOON + timedelta(minutes=15), NOON + timedelta(minutes=30)]
    assert on_offer(Rules(horizon=1), NOON - timedelta(milliseconds=1))[0].start == NOON


@pytest.mark.parametrize(("minutes_before", "first"), [(3, 0), (4, 0), (2, 5)])
def test_a_slot_that_ends_within_the_cutoff_is_skipped(minutes_before: int, first: int) -> None:
    rules = Rules(duration=5, cutoff=8, horizon=1)

    offered = on_offer(rules, NOON - timedelta(minutes=minutes_before))

    assert offered[0].start == NOON + timedelta(minutes=first)


def test_the_horizon_is_a_number_of_slots_over_any_number_of_days() -> None:
    rules = Rules(duration=30, opens=600, closes=660, horizon=5)

    assert [f"{o.start:%d %H:%M}" for o in on_offer(rules, NOON)] == [
        "29 10:00",
        "29 10:30",
        "30 10:00",
        "30 10:30",
        "31 10:00",
    ]


@pytest.mark.parametrize(("minutes", "lead"), [(90, 30), (31, 30), (30, 0), (20, 0)])
def test_work_becomes_visible_the_lead_before_the_start_or_at_the_start(minutes: int, lead: int) -> None:
    start = NOON + timedelta(minutes=minutes)

    assert visible_at(Rules(), start, NOON) == start - timedelta(minutes=lead)


@pytest.mark.parametrize(
    "identifier", ["", "auto", "slot:", "slot:-1", "slot:01", "slot:1.5", "slot:1700000000 ", "slot:١٢", "slot:9" * 9]
)
def test_ids_that_are_not_slot_ids(identifier: str) -> None:
    assert not is_slot_id(identifier)
    assert start_of(identifier) is None


def test_an_id_beyond_the_calendar_has_no_start() -> None:
    assert is_slot_id("slot:999999999999")
    assert start_of("slot:999999999999") is None


def test_slots_end_with_the_calendar() -> None:
    last_day = datetime(9999, 12, 31, 23, 40, tzinfo=UTC)

    assert [opening.start.minute for opening in openings(Rules(), last_day)] == []
    assert on_offer(Rules(), last_day) == ()


rules_of_any_kind = (
    st.builds(
        lambda duration, opens, closes: (duration, opens, closes),
        st.integers(1, 240),
        st.integers(0, DAY_MINUTES - 1),
        st.integers(0, DAY_MINUTES),
    )
    .filter(lambda r: r[0] <= r[2] - r[1] + (DAY_MINUTES if r[2] <= r[1] else 0))
    .map(lambda r: Rules(duration=r[0], opens=r[1], closes=r[2]))
)
moments = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@given(rules_of_any_kind, moments)
def test_slots_follow_each_other_without_overlap_from_the_next_start(rules: Rules, now: datetime) -> None:
    found = list(islice(openings(rules, now), 50))

    assert found[0].start >= now
    assert all(before.end <= after.start for before, after in pairwise(found))
    assert all(opening.end - opening.start == timedelta(minutes=rules.duration) for opening in found)
    # No slot is missing before the first one.
    earlier = list(islice(openings(rules, now - timedelta(days=2)), 3000))
    assert found[0] == next(opening for opening in earlier if opening.start >= now)


@given(rules_of_any_kind, moments)
def test_every_slot_is_found_by_its_id(rules: Rules, now: datetime) -> None:
    for opening in islice(openings(rules, now), 5):
        start = start_of(slot_id(opening.start))
        assert start == opening.start
        assert opening_at(rules, opening.start) == opening
        assert opening_at(rules, opening.start + timedelta(seconds=1)) is None

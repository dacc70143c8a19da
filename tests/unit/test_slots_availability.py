"""Slots on offer, booked slots when the rules change, and the text of every refusal."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory_service.availability import (
    AUTO,
    SlotAvailability,
    SlotRequest,
    apply_rules,
    build_availability,
    list_slots,
)
from inventory_service.stock import Slot, return_units, take
from inventory_service.timetable import Opening, Rules, on_offer, slot_id

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
RULES = Rules(capacity=1000, horizon=4)


def at(minutes: int) -> datetime:
    return NOW + timedelta(minutes=minutes)


def identifier(minutes: int) -> str:
    return slot_id(at(minutes))


def recorded(minutes: int, load: int = 0, *, length: int = 15, capacity: int = 1000, **changes: Any) -> Slot:
    slot = Slot(
        id=identifier(minutes),
        version=1,
        created_at=NOW,
        updated_at=NOW,
        quantity=capacity - load,
        supplied=capacity,
        start=at(minutes),
        end=at(minutes + length),
    )
    return replace(slot, **changes)


def availability(*slots: Slot, rules: Rules = RULES, now: datetime = NOW) -> SlotAvailability:
    return build_availability(rules, now, on_offer(rules, now), slots)


def choose(among: SlotAvailability, asked: str, price: int) -> Slot | str:
    return among.choose(SlotRequest(asked, price), lambda slot: slot.free, lambda slot: slot.free)


def test_unbooked_slots_of_the_timetable_are_on_offer() -> None:
    laid = availability(recorded(30, 400))

    assert laid.offered == tuple(identifier(minutes) for minutes in (15, 30, 45, 60))
    assert [laid.slots[each].free for each in laid.offered] == [1000, 600, 1000, 1000]
    assert laid.until == at(75)


def test_the_earliest_slot_with_room_for_the_whole_price_is_chosen() -> None:
    laid = availability(recorded(15, 900), recorded(30, 700))

    assert [getattr(choose(laid, AUTO, price), "id", None) for price in (100, 101, 301)] == [
        identifier(15),
        identifier(30),
        identifier(45),
    ]


def test_a_disabled_slot_is_not_on_offer() -> None:
    laid = availability(recorded(15, disabled=True))

    assert laid.offered[0] == identifier(30)
    assert choose(laid, identifier(15), 1) == f"Delivery {identifier(15)} is disabled"


FULL = [recorded(minutes, 1000) for minutes in (15, 30, 45, 60)]


@pytest.mark.parametrize(
    ("slots", "asked", "price", "reason"),
    [
        (
            FULL,
            AUTO,
            1050,
            "No delivery slot with room for 10.5 until 2026-01-01T13:15:00.000Z: none takes more than 10",
        ),
        (FULL, AUTO, 1, "No delivery slot with room for 0.01 until 2026-01-01T13:15:00.000Z"),
        ([recorded(30, 900)], identifier(30), 150, f"Delivery {identifier(30)} has no room for 1.5: 1 of 10 is free"),
        ([], identifier(20), 1, f"There is no delivery {identifier(20)}: by the opening hours none starts then"),
        ([], "tomorrow", 1, "There is no delivery tomorrow: by the opening hours none starts then"),
        ([], identifier(0), 1, f"Delivery {identifier(0)} began at 2026-01-01T12:00:00.000Z"),
        ([], identifier(-15), 1, f"Delivery {identifier(-15)} began at 2026-01-01T11:45:00.000Z"),
        (
            [],
            identifier(75),
            1,
            f"Delivery {identifier(75)} is too far ahead: slots until 2026-01-01T13:15:00.000Z can be booked",
        ),
        (
            [recorded(20, 10)],
            identifier(30),
            1,
            f"Delivery {identifier(30)} is not on offer: another slot that is booked takes some of its time",
        ),
    ],
    ids=[
        "too much for any",
        "all full",
        "named full",
        "none then",
        "no slot's id",
        "begins",
        "begun",
        "far",
        "in the way",
    ],
)
def test_every_refusal_has_its_reason(slots: list[Slot], asked: str, price: int, reason: str) -> None:
    assert choose(availability(*slots), asked, price) == reason


def test_a_slot_too_near_its_end_is_refused() -> None:
    laid = availability(rules=Rules(duration=5, horizon=4), now=at(3))

    assert choose(laid, identifier(5), 1) == f"Delivery {identifier(5)} is too near: it ends in less than 8 minutes"


def test_a_booking_says_when_the_work_becomes_visible() -> None:
    laid = availability()

    near, far = laid.slots[identifier(15)], laid.slots[identifier(60)]

    assert laid.booking(near, 5).visible_at == at(15)
    assert laid.booking(far, 5).visible_at == at(30)
    assert laid.booking(far, 5).price == 5


def test_a_negative_or_zero_move_holds_a_slot_and_a_positive_one_does_not() -> None:
    laid = availability(recorded(15, pending_moves={"taking": -5, "free of charge": 0, "giving back": 5}))

    assert set(laid.held()) == {"taking", "free of charge"}


# --- Changes of the rules. ---


def test_a_lowered_capacity_keeps_bookings_and_admits_no_more() -> None:
    laid = availability(recorded(15, 800), rules=replace(RULES, capacity=500))

    slot = laid.slots[identifier(15)]
    assert (slot.capacity, slot.reserved, slot.free, slot.ceiling) == (500, 800, -300, 800)
    assert getattr(choose(laid, AUTO, 0), "id", None) == identifier(30)


def test_a_capacity_set_by_an_operator_stays() -> None:
    laid = availability(recorded(15, capacity=70, adjusted=True), rules=replace(RULES, capacity=500))

    assert laid.slots[identifier(15)].capacity == 70


def test_an_empty_slot_takes_the_new_times_and_a_booked_one_keeps_its_own() -> None:
    longer = Rules(duration=30, horizon=3)

    assert apply_rules(recorded(30), longer).end == at(60)
    assert apply_rules(recorded(30, 1), longer).end == at(45)
    assert apply_rules(recorded(30, pending_moves={"o": 0}), longer).end == at(45)


def test_a_new_slot_that_a_booked_one_overlaps_is_not_on_offer() -> None:
    longer = Rules(duration=30, horizon=3)

    assert availability(recorded(45, 1), rules=longer).offered == (identifier(60), identifier(90))
    assert availability(recorded(45), rules=longer).offered == (identifier(30), identifier(60), identifier(90))
    # A booked slot that starts together with a slot of the new rules stays on offer.
    assert availability(recorded(30, 1), rules=longer).offered == (identifier(30), identifier(60), identifier(90))


def test_a_booked_longer_slot_hides_the_shorter_ones_within_it() -> None:
    laid = availability(recorded(30, 1, length=30), rules=RULES)

    assert laid.offered == (identifier(15), identifier(30), identifier(60))


# --- Loads above the capacity. ---


@given(st.lists(st.tuples(st.sampled_from(["take", "give back", "limit"]), st.integers(0, 300)), max_size=30))
def test_a_load_exceeds_the_capacity_only_after_the_capacity_was_lowered(
    steps: list[tuple[str, int]],
) -> None:
    slot = recorded(15)
    for number, (step, amount) in enumerate(steps):
        if step == "limit":
            slot = slot.with_capacity(amount)
        elif step == "take" and amount <= slot.free:
            slot = take(slot, {f"o{number}": amount})
        elif step == "give back" and amount <= slot.reserved:
            slot = return_units(slot, {f"o{number}": amount})
        assert slot.reserved <= max(slot.capacity, slot.ceiling or 0)
        assert slot.ceiling is None or slot.ceiling == slot.reserved > slot.capacity
        assert slot.reserved == slot.capacity - slot.free >= 0


def test_overbooking_sets_no_ceiling() -> None:
    assert take(recorded(15, 900), {"o": 200}).ceiling is None


# --- The list. ---


def test_recorded_and_empty_slots_are_listed_by_start() -> None:
    times = [Opening(at(minutes), at(minutes + 15)) for minutes in (15, 30)]

    found = list_slots(RULES, [recorded(-15, 7), recorded(35, 8), recorded(90, 1)], times)

    # The slot at 30 is left out, because the booked one from 35 to 50 overlaps it.
    assert [(slot.id, slot.reserved) for slot in found] == [
        (identifier(-15), 7),
        (identifier(15), 0),
        (identifier(35), 8),
        (identifier(90), 1),
    ]

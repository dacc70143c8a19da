"""Allocation of slots: first come, first served, no overbooking, and no refusal of an order that fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from inventory_service.allocation import Outcome, Refuse, Reserve, Wait, allocate
from inventory_service.availability import AUTO, SlotAvailability, build_availability
from inventory_service.stock import AnyStockItem, Kind, Product, StockItem, may_return, take
from inventory_service.timetable import Rules, on_offer, slot_id
from shared.contracts import OrderCreated
from tests.support.inventory_worker import order

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
SLOTS = 3
CAPACITY = 20_00


def identifier(nth: int) -> str:
    return slot_id(NOW + timedelta(minutes=15 * (nth + 1)))


@dataclass(frozen=True)
class Asked:
    """An order for units of one product at 1 each, with the slot that it asks for: auto, the n-th, or none."""

    units: int
    slot: str | None


def stock(free: int) -> dict[str, StockItem]:
    product = Product(id="p", kind=Kind.GOODS, version=1, created_at=NOW, updated_at=NOW, quantity=free, supplied=free)
    return {"p": product}


def availability_with(loads: Sequence[int] = (0,) * SLOTS) -> SlotAvailability:
    rules = Rules(capacity=CAPACITY, horizon=SLOTS)
    availability = build_availability(rules, NOW, on_offer(rules, NOW), [])
    slots = {
        each: take(availability.slots[each], {f"before{each}": load})
        for each, load in zip(availability.offered, loads, strict=True)
    }
    return replace(availability, slots={each: replace(slot, pending_moves={}) for each, slot in slots.items()})


def orders(batch: Sequence[Asked]) -> list[OrderCreated]:
    return [order(f"o{number}", {"p": asked.units}, slot=asked.slot) for number, asked in enumerate(batch)]


def slot_of(outcome: Outcome) -> str | None:
    return outcome.booking.slot_id if isinstance(outcome, Reserve) and outcome.booking is not None else None


def one_by_one(batch: Sequence[Asked], free: int, loads: Sequence[int]) -> list[tuple[bool, str | None]]:
    """Apply the rule naively: return for each order whether it is served at its turn, and its slot."""
    room = {identifier(nth): CAPACITY - load for nth, load in enumerate(loads)}
    served = []
    for asked in batch:
        wanted = list(room) if asked.slot == AUTO else [asked.slot]
        fitting = [each for each in wanted if each is None or asked.units * 100 <= room[each]]
        fits = asked.units <= free and bool(fitting)
        served.append((fits, fitting[0] if fits else None))
        if fits:
            free -= asked.units
            if fitting[0] is not None:
                room[fitting[0]] -= asked.units * 100
        assert min(room.values()) >= 0
    return served


asked_for = st.builds(
    Asked, st.integers(1, 12), st.sampled_from([None, AUTO, AUTO, *(identifier(nth) for nth in range(SLOTS))])
)
batches = st.lists(asked_for, max_size=15)
loads_of_slots = st.lists(st.integers(0, CAPACITY), min_size=SLOTS, max_size=SLOTS)


@given(batches, st.integers(0, 60), loads_of_slots)
def test_a_batch_has_the_result_of_its_orders_one_by_one(batch: list[Asked], free: int, loads: list[int]) -> None:
    outcomes = list(allocate(orders(batch), stock(free), {}, availability_with(loads)).values())

    assert [(isinstance(each, Reserve), slot_of(each)) for each in outcomes] == one_by_one(batch, free, loads)


@given(batches, st.integers(0, 60), loads_of_slots, st.lists(st.integers(0, 15), max_size=4))
def test_the_division_into_batches_changes_nothing(
    batch: list[Asked], free: int, loads: list[int], cuts: list[int]
) -> None:
    requested, items, availability = orders(batch), stock(free), availability_with(loads)
    outcomes: dict[str, Outcome] = {}
    for start, end in pairwise(sorted({0, *(min(cut, len(batch)) for cut in cuts), len(batch)})):
        decided = allocate(requested[start:end], items, {}, availability)
        outcomes |= decided
        items = _after(decided, items)
        availability = replace(availability, slots=_after(decided, availability.slots))

    assert outcomes == allocate(requested, stock(free), {}, availability_with(loads))
    assert all(slot.reserved <= slot.capacity for slot in availability.slots.values())


undecided = st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 12)), max_size=4)


@given(batches, loads_of_slots, undecided)
def test_no_order_is_refused_that_may_fit_once_others_are_decided(
    batch: list[Asked], loads: list[int], elsewhere: list[tuple[int, int]]
) -> None:
    availability = availability_with(loads)
    for number, (nth, units) in enumerate(elsewhere):
        slot = availability.slots[identifier(nth)]
        busy = take(slot, {f"elsewhere{number}": min(units * 100, slot.free)})
        availability = replace(availability, slots={**availability.slots, slot.id: busy})
    returning = {slot.id: may_return(slot, {}) for slot in availability.slots.values()}

    outcomes = allocate(orders(batch), stock(1000), returning, availability)

    booked = dict.fromkeys(availability.slots, 0)
    for asked, outcome in zip(batch, outcomes.values(), strict=True):
        wanted = {AUTO: list(availability.slots), None: []}.get(asked.slot, [asked.slot])
        best = max(
            (availability.slots[each].free + returning[each] - booked[each] for each in wanted if each), default=None
        )
        if isinstance(outcome, Refuse):
            assert best is not None
            assert asked.units * 100 > best - _waiting(batch, outcomes, asked)
        elif isinstance(outcome, Reserve) and (got := slot_of(outcome)) is not None:
            booked[got] += asked.units * 100
    for slot in availability.slots.values():
        assert booked[slot.id] <= slot.free  # room that may come back is not given away before


def _waiting(batch: Sequence[Asked], outcomes: Mapping[str, Outcome], before: Asked) -> int:
    """Return the room claimed by waiting orders ahead."""
    ahead = batch[: next(n for n, asked in enumerate(batch) if asked is before)]
    waits = [isinstance(outcome, Wait) for outcome in outcomes.values()]
    return sum(asked.units * 100 for asked, waiting in zip(ahead, waits, strict=False) if waiting)


def _after(decided: Mapping[str, Outcome], items: Mapping[str, AnyStockItem]) -> dict[str, AnyStockItem]:
    after = dict(items)
    for order_id, outcome in decided.items():
        if isinstance(outcome, Reserve):
            for each, count in outcome.take.items():
                if each in after:
                    after[each] = take(after[each], {order_id: count})
    return after


# --- One at a time ---


def test_an_order_takes_its_units_and_its_price_of_the_slot_together() -> None:
    outcome = allocate([order("o", {"p": 3}, slot=AUTO)], stock(5), {}, availability_with())["o"]

    assert isinstance(outcome, Reserve)
    assert outcome.take == {"p": 3, identifier(0): 300}
    assert slot_of(outcome) == identifier(0)


def test_an_order_takes_units_and_room_or_neither() -> None:
    no_units, no_room, served = (
        order("no-units", {"p": 9}, slot=AUTO),
        order("no-room", {"p": 3}, slot=identifier(1)),
        order("served", {"p": 5}, slot=identifier(0)),
    )

    outcomes = allocate([no_units, no_room, served], stock(5), {}, availability_with([1500, 1900, 0]))

    assert isinstance(outcomes["no-units"], Refuse)
    assert isinstance(outcomes["no-room"], Refuse)
    assert slot_of(outcomes["served"]) == identifier(0)


def test_an_order_at_price_0_is_guarded_by_its_slot_too() -> None:
    outcome = allocate([order("o", {"p": 1}, price=0, slot=AUTO)], stock(5), {}, availability_with())["o"]

    assert isinstance(outcome, Reserve)
    assert outcome.take == {"p": 1, identifier(0): 0}


def _holding(nth: int, order_id: str, amount: int) -> SlotAvailability:
    availability = availability_with()
    slot = availability.slots[identifier(nth)]
    return replace(availability, slots={**availability.slots, slot.id: take(slot, {order_id: amount})})


def test_an_order_keeps_the_slot_in_which_it_holds_room() -> None:
    outcome = allocate([order("o", {"p": 3}, slot=AUTO)], stock(5), {}, _holding(1, "o", 300))["o"]

    assert isinstance(outcome, Reserve)
    assert (outcome.take, slot_of(outcome)) == ({"p": 3}, identifier(1))


def test_a_repeated_order_at_another_price_keeps_the_room_that_it_holds() -> None:
    """Another worker may be about to record it at the first price, so the pending move must not change."""
    for units in (1, 4):
        outcome = allocate([order("o", {"p": units}, slot=AUTO)], stock(5), {}, _holding(1, "o", 300))["o"]

        assert isinstance(outcome, Reserve)
        assert outcome.booking is not None
        assert (outcome.take, outcome.booking.price, slot_of(outcome)) == ({"p": units}, 300, identifier(1))


def test_room_that_may_come_back_is_waited_for_only_where_there_is_none_elsewhere() -> None:
    availability = availability_with([1500, 2000, 2000])
    waits, goes_elsewhere = order("waits", {"p": 9}, slot=AUTO), order("small", {"p": 5}, slot=AUTO)

    outcomes = allocate([waits, goes_elsewhere], stock(50), {identifier(0): 500, identifier(2): 400}, availability)

    assert outcomes["waits"] == Wait()
    # The order before it has claimed what is free in the first slot, and no other slot certainly has room.
    assert outcomes["small"] == Wait()


def test_a_slot_is_not_a_product() -> None:
    availability = availability_with()

    outcome = allocate([order("o", {identifier(0): 1})], {**stock(5), **availability.slots}, {}, availability)["o"]

    assert outcome == Refuse(f"Unknown product {identifier(0)}")


def test_slots_and_products_are_taken_in_the_order_of_their_ids() -> None:
    """An order that holds its first item comes after one that also holds a later item, slot or product."""
    product = stock(0)["p"]
    items = {"p": replace(product, quantity=1, pending_moves={"first": -1, "further": -1}), **_z()}
    availability = _holding(0, "further", 200)

    outcomes = allocate(
        [order("first", {"p": 1, "z": 1}, slot=AUTO), order("further", {"p": 1, "z": 1}, slot=AUTO)],
        items,
        {},
        availability,
    )

    assert list(outcomes) == ["further", "first"]
    assert isinstance(outcomes["further"], Reserve)
    assert isinstance(outcomes["first"], Refuse)


def _z() -> dict[str, StockItem]:
    return {"z": replace(stock(1)["p"], id="z")}


def test_an_order_does_not_keep_a_slot_that_is_no_longer_on_offer() -> None:
    availability = _holding(0, "o", 300)
    later = replace(availability, offered=availability.offered[1:])  # it has begun, or was disabled

    auto = allocate([order("o", {"p": 3}, slot=AUTO)], stock(5), {}, later)["o"]
    named = allocate([order("o", {"p": 3}, slot=identifier(0))], stock(5), {}, later)["o"]

    assert slot_of(auto) == identifier(1)
    assert isinstance(named, Refuse)

"""Delivery slots, their rules and assignments as they are stored, over both drivers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from pymongo.errors import WriteError

from inventory_service.availability import new_slot
from inventory_service.stock import Assignment, Booking, Reservation, Slot, Status, assignment_id, take
from inventory_service.timetable import Opening, Rules, slot_id
from shared.database import Database
from tests.support.inventory_worker import HandClock, Worker, empty, order, settle_everything, shared_database
from tests.support.servers import Servers

MAX_WAIT = 120.0
"""The longest wait for units that others may return: so long that it never ends on a slow machine."""
NOW = datetime(2026, 6, 1, 10, tzinfo=UTC)
STARTS = [NOW + timedelta(minutes=15 * n) for n in range(1, 5)]
FIRST, SECOND, THIRD, FOURTH = map(slot_id, STARTS)


@pytest.fixture
def clock() -> HandClock:
    return HandClock(NOW)


@pytest.fixture(scope="module", params=["pymongo", "motor", "memory"])
async def database(servers: Servers, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    async with shared_database(servers.mongodb_url, driver=request.param) as (db,):
        yield db


@pytest.fixture
async def worker(database: Database, clock: HandClock) -> Worker:
    await empty(database)
    return Worker(database, max_wait=MAX_WAIT, clock=clock)


async def document(worker: Worker, slot: str) -> Any:
    return await worker.database["products"].find_one({"_id": slot})


async def adjust(
    worker: Worker,
    slot: str,
    *,
    capacity: int | None = None,
    follow_rules: bool = False,
    disabled: bool | None = None,
) -> Slot:
    found = await worker.slots.adjust(slot, capacity=capacity, follow_rules=follow_rules, disabled=disabled)
    assert found is not None
    return found


async def book(worker: Worker, order_id: str, price: int, slot: str = FIRST) -> None:
    """Book a slot for an order of one unit at a price in whole major units."""
    await worker.stock({"p": 100})
    await worker.reserve(order(order_id, {"p": 1}, price=price, slot=slot))
    assert await worker.slot_of(order_id) == slot


async def test_rules_have_defaults_until_others_are_set(worker: Worker) -> None:
    assert await worker.rules.read() == Rules()

    rules = Rules(duration=30, capacity=1, opens=22 * 60, closes=60, cutoff=0, lead=5, horizon=7)
    await worker.rules.write(rules)
    assert await worker.rules.read() == rules
    await worker.rules.write(Rules())
    assert await worker.rules.read() == Rules()


async def test_a_slot_is_recorded_when_it_is_first_booked(worker: Worker) -> None:
    await book(worker, "o", 60)

    stored = await document(worker, FIRST)
    assert {
        name: stored[name] for name in ("kind", "supplied", "quantity", "start", "end", "disabled", "adjusted")
    } == {
        "kind": "slot",
        "supplied": 100_000_00,
        "quantity": 99_940_00,
        "start": STARTS[0],
        "end": STARTS[1],
        "disabled": False,
        "adjusted": False,
    }
    assert await worker.database["products"].count_documents({"kind": "slot"}) == 1


async def test_of_two_first_bookings_of_a_slot_one_is_stored(worker: Worker) -> None:
    empty = new_slot(Rules(), Opening(STARTS[0], STARTS[1]))

    assert await worker.stock_items.write([take(empty, {"a": 5})]) == {FIRST}
    assert await worker.stock_items.write([take(empty, {"b": 7})]) == set()

    stored = (await worker.stock_items.read([FIRST]))[FIRST]
    assert (stored.version, stored.reserved, stored.pending_moves) == (1, 5, {"a": -5})


async def test_slots_are_read_if_they_overlap_a_period(worker: Worker) -> None:
    for slot in (THIRD, FIRST, SECOND):
        await adjust(worker, slot, capacity=100)
    await worker.stock({"p": 1})

    found = await worker.stock_items.read_slots(STARTS[0] + timedelta(minutes=14), STARTS[2])

    assert [slot.id for slot in found] == [FIRST, SECOND]
    assert await worker.stock_items.read_slots(STARTS[3], STARTS[3] + timedelta(days=1)) == []


async def test_a_slot_without_bookings_is_adjusted_and_disabled(worker: Worker) -> None:
    slot = await adjust(worker, FIRST, capacity=50_00)
    assert (slot.capacity, slot.reserved, slot.disabled, slot.adjusted) == (50_00, 0, False, True)

    slot = await adjust(worker, SECOND, disabled=True)
    assert (slot.capacity, slot.reserved, slot.disabled, slot.adjusted) == (100_000_00, 0, True, False)
    assert (slot.start, slot.end) == (STARTS[1], STARTS[2])
    assert not (await adjust(worker, SECOND, disabled=False)).disabled


async def test_there_is_no_slot_where_none_starts(worker: Worker) -> None:
    for slot in ("slot:0900", "slot:1", "slot:999999999999", slot_id(NOW + timedelta(minutes=7))):
        assert await worker.slots.adjust(slot, capacity=1, follow_rules=False, disabled=None) is None
    assert await worker.database["products"].count_documents({}) == 0


async def test_lowering_a_capacity_keeps_the_bookings_and_remembers_the_load(worker: Worker) -> None:
    await book(worker, "a", 60)
    await book(worker, "b", 30)

    slot = await adjust(worker, FIRST, capacity=50_00)

    assert (slot.capacity, slot.reserved, slot.free, slot.ceiling) == (50_00, 90_00, -40_00, 90_00)
    await worker.release("b")
    assert ((await document(worker, FIRST))["quantity"], (await document(worker, FIRST))["ceiling"]) == (-10_00, 60_00)
    await worker.release("a")
    assert "ceiling" not in await document(worker, FIRST)
    assert (await adjust(worker, FIRST, capacity=10_00)).ceiling is None


async def test_a_slot_follows_the_rules_unless_an_operator_has_set_its_capacity(
    worker: Worker, clock: HandClock
) -> None:
    await book(worker, "o", 60)
    await worker.slot_rules(capacity=70_00)
    assert (await adjust(worker, FIRST, disabled=False)).capacity == 70_00

    await adjust(worker, FIRST, capacity=80_00)
    await worker.slot_rules(capacity=50_00)
    assert (await adjust(worker, FIRST, disabled=False)).capacity == 80_00

    slot = await adjust(worker, FIRST, follow_rules=True)
    assert (slot.capacity, slot.adjusted, slot.reserved, slot.ceiling) == (50_00, False, 60_00, 60_00)
    await worker.slot_rules(capacity=90_00)
    (listed,) = [s for s in (await worker.slots.page(None, None, after=None, limit=5))[0] if s.id == FIRST]
    assert (listed.capacity, listed.reserved, listed.ceiling) == (90_00, 60_00, None)


async def test_adjusting_fails_writes_based_on_an_earlier_read(worker: Worker) -> None:
    await book(worker, "o", 60)
    before = (await worker.stock_items.read([FIRST]))[FIRST]

    await adjust(worker, FIRST, disabled=True)

    assert await worker.stock_items.write([take(before, {"late": 1})]) == set()


async def test_a_page_has_recorded_and_unrecorded_slots_by_start(worker: Worker, clock: HandClock) -> None:
    await book(worker, "o", 60, SECOND)
    await adjust(worker, FOURTH, disabled=True)

    pages: list[list[Slot]] = []
    after: datetime | None = None
    for _ in range(3):
        page, after = await worker.slots.page(NOW, STARTS[3] + timedelta(minutes=1), after=after, limit=2)
        pages.append(page)
        after = pages[-1][-1].start if pages[-1] else after

    assert [[(slot.id, slot.reserved, slot.disabled) for slot in page] for page in pages] == [
        [(slot_id(NOW), 0, False), (FIRST, 0, False)],
        [(SECOND, 60_00, False), (THIRD, 0, False)],
        [(FOURTH, 0, True)],
    ]
    clock.forward(hours=3)
    past, _ = await worker.slots.page(NOW, STARTS[3] + timedelta(minutes=1), after=None, limit=9)
    assert [slot.id for slot in past] == [SECOND, FOURTH]


@pytest.mark.parametrize("release", [False, True])
async def test_a_reservation_keeps_its_slot_and_its_assignment(worker: Worker, release: bool) -> None:
    booking = Booking(FIRST, STARTS[0], NOW, 60_00)
    own = Reservation("o", Status.RESERVED, NOW, NOW, booking=booking)
    first, second = (
        replace(own, order_id=assignment_id("x", number), assignment=Assignment("x", number, items_count=3))
        for number in (9, 10)
    )

    await worker.reservations.insert([own, second, first])
    if release:
        await worker.reservations.mark([first.order_id], Status.RELEASED)

    assert (await worker.reservations.read(["o"])) == {"o": own}
    assert (await worker.reservations.assignments(["x", "o"])) == {"x": second}
    assert (await worker.reservations.decisions(["o", second.order_id])) == {
        "o": own.decision,
        second.order_id: own.decision,
    }


async def test_mongodb_refuses_an_invalid_slot(worker: Worker) -> None:
    await book(worker, "o", 60)
    before = await document(worker, FIRST)
    wrong: list[dict[str, Any]] = [
        {"quantity": 1.5},
        {"supplied": -1},
        {"end": "later"},
        {"disabled": None},
        {"kind": "goods", "quantity": -1},
        {"kind": "boat"},
    ]

    for change in wrong:
        with pytest.raises(WriteError):
            await worker.database["products"].update_one({"_id": FIRST}, {"$set": change})
    assert await document(worker, FIRST) == before


async def test_pending_moves_of_slots_are_cleared_like_those_of_products(worker: Worker, clock: HandClock) -> None:
    await book(worker, "o", 60)
    await worker.assign("x", 10_00)

    await settle_everything([worker], clock)

    stored = await document(worker, FIRST)
    assert stored["moving"] == {}
    assert "markedSince" not in stored
    assert stored["supplied"] - stored["quantity"] == 70_00


async def test_concurrent_changes_of_the_rules_are_all_kept(worker: Worker) -> None:
    names = ("capacity", "horizon", "cutoff", "lead")

    await asyncio.gather(*(worker.rules.change(partial(_with, name, n)) for n, name in enumerate(names, start=1)))

    rules = await worker.rules.read()
    assert [getattr(rules, name) for name in names] == [1, 2, 3, 4]


def _with(name: str, value: int, rules: Rules) -> Rules:
    return replace(rules, **{name: value})

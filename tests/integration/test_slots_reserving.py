"""Delivery slots under several workers: first come, first served, never overbooked, returned to the last cent."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from inventory_service.slot_assigner import NoRoom, OrderClosed
from inventory_service.stock import Booking, Reservation, Status
from inventory_service.timetable import slot_id
from shared.contracts import Message, OrderCreated, StockReserved
from shared.database import Database
from shared.failpoints import RESERVATION_RECORDED, SimulatedCrashError
from tests.support.eventually import eventually
from tests.support.inventory_worker import (
    Gate,
    HandClock,
    Worker,
    crash_at,
    empty,
    order,
    outcomes,
    refused,
    settle_everything,
    shared_database,
    unsettled_records,
    watched,
)
from tests.support.memory_databases import MEMORY, MONGODB
from tests.support.servers import Servers

MAX_WAIT = 120.0
"""The longest wait for units that others may return: so long that it never ends on a slow machine."""
WORKERS = 4
CAPACITY = 100_000_00


def at(hour: int, minute: int = 0, day: int = 1) -> datetime:
    return datetime(2026, 6, day, hour, minute, tzinfo=UTC)


def slot(hour: int, minute: int = 0, day: int = 1) -> str:
    return slot_id(at(hour, minute, day))


FIRST, SECOND, THIRD = slot(10, 15), slot(10, 30), slot(10, 45)
"""The first slots at ten o'clock, when the slot that starts at ten has begun."""


@pytest.fixture
def clock() -> HandClock:
    return HandClock(at(10))


@pytest.fixture(scope="module", params=[MONGODB, MEMORY])
async def databases(servers: Servers, request: pytest.FixtureRequest) -> AsyncIterator[list[Database]]:
    async with shared_database(MEMORY if request.param == MEMORY else servers.mongodb_url, clients=WORKERS) as found:
        yield found


@pytest.fixture
async def workers(databases: list[Database], clock: HandClock) -> list[Worker]:
    await empty(databases[0])
    found = [Worker(db, max_wait=MAX_WAIT, clock=clock) for db in databases]
    await found[0].stock({"p": 10_000})
    return found


@pytest.fixture
def worker(workers: list[Worker]) -> Worker:
    return workers[0]


def wanting(order_id: str, price: float, slot: str = "auto") -> OrderCreated:
    """An order for one unit of p at this price, in major units."""
    return order(order_id, {"p": 1}, price=price, slot=slot)


def random_orders(number: int, seed: int, highest: int = 2_000_00) -> list[OrderCreated]:
    rng = random.Random(seed)
    return [wanting(f"o{n}", rng.randint(1, highest) / 100) for n in range(number)]


async def reserve_in_batches(
    workers: Sequence[Worker], orders: Sequence[OrderCreated], size: int = 50
) -> list[Message]:
    batches = [orders[start : start + size] for start in range(0, len(orders), size)]
    answers = await asyncio.gather(*(workers[n % len(workers)].reserve(*batch) for n, batch in enumerate(batches)))
    return [message for answer in answers for message in answer]


def slots_of(messages: Sequence[Message]) -> dict[str, str | None]:
    return {message.order_id: message.slot for message in messages if isinstance(message, StockReserved)}


def loads_by(orders: Sequence[OrderCreated], slot_by_order: dict[str, str | None]) -> Counter[str]:
    """Return the loads of the slots if these orders have these slots."""
    loads: Counter[str] = Counter()
    for each in orders:
        if (found := slot_by_order.get(each.order_id)) is not None:
            loads[found] += each.total_amount
    return loads


async def set_capacity(worker: Worker, slot: str, capacity: int) -> int:
    """Change one slot's capacity; return its load at that moment."""
    found = await worker.slots.adjust(slot, capacity=capacity, follow_rules=False, disabled=None)
    assert found is not None
    return found.reserved


async def disable(worker: Worker, slot: str) -> None:
    assert await worker.slots.adjust(slot, capacity=None, follow_rules=False, disabled=True)


@pytest.mark.parametrize("databases", [MONGODB], indirect=True)  # contention takes long over either
async def test_a_thousand_orders_at_once_for_one_slot_fill_it_and_the_rest_go_on_or_away(
    workers: list[Worker], worker: Worker, clock: HandClock
) -> None:
    await worker.slot_rules(capacity=CAPACITY, horizon=6)
    orders = random_orders(1000, seed=5)
    assert sum(each.total_amount for each in orders) > 7 * CAPACITY

    async with watched(worker.database):
        answers = await reserve_in_batches(workers, orders)

        booked = slots_of(answers)
        loads = await worker.loads()
        assert loads == loads_by(orders, booked)
        assert max(loads.values()) <= CAPACITY
        assert len(loads) == 6
        assert outcomes(answers).total() == len(orders)
        # Only orders that fit nowhere were refused, and no order keeps stock without a slot.
        prices = {each.order_id: each.total_amount for each in orders}
        assert all(prices[order_id] > CAPACITY - max(loads.values()) for order_id in refused(answers))
        assert min(prices[order_id] for order_id in refused(answers)) > CAPACITY - min(loads.values())
        reasons = {re.sub(r"for [\d.]+ ", "for … ", reason) for reason in refused(answers).values()}
        assert reasons == {"No delivery slot with room for … until 2026-06-01T11:45:00.000Z"}
        assert await worker.free("p") == 10_000 - len(booked)

        ids = [each.order_id for each in orders]
        await asyncio.gather(*(workers[n % WORKERS].release(*ids[n::20]) for n in range(20)))

    assert set((await worker.loads()).values()) == {0}
    assert await worker.free("p") == 10_000
    await settle_everything(workers, clock)
    assert await unsettled_records(worker.database) == []


@pytest.mark.parametrize("size", [1, 7, 60])
async def test_one_worker_serves_orders_in_their_sequence_with_any_batch_size(worker: Worker, size: int) -> None:
    await worker.slot_rules(capacity=5_000_00, horizon=3)
    orders = random_orders(60, seed=2, highest=1_000_00)
    free = dict.fromkeys((FIRST, SECOND, THIRD), 5_000_00)
    expected: dict[str, str] = {}
    for each in orders:
        found = next((slot for slot, room in free.items() if each.total_amount <= room), None)
        if found is not None:
            free[found] -= each.total_amount
            expected[each.order_id] = found

    answers: list[Message] = []
    for start in range(0, len(orders), size):
        answers += await worker.reserve(*orders[start : start + size])

    assert slots_of(answers) == expected
    assert 0 < len(expected) < len(orders)


async def test_an_order_is_not_refused_for_room_that_one_before_it_loses_to_another_worker(
    workers: list[Worker], worker: Worker
) -> None:
    await worker.slot_rules(capacity=100_00, horizon=1)
    before_write = Gate(worker.stock_items, "write")
    batch = asyncio.create_task(worker.reserve(wanting("large", 90), wanting("small", 20)))
    await before_write.reached()
    assert slots_of(await workers[1].reserve(wanting("other", 30))) == {"other": FIRST}
    before_write.open()

    assert slots_of(await batch) == {"small": FIRST}
    assert refused(await batch).keys() == {"large"}


async def test_a_repeated_order_keeps_its_slot(workers: list[Worker], worker: Worker) -> None:
    await worker.slot_rules(capacity=100_00)
    await worker.reserve(wanting("first", 80))

    assert slots_of(await worker.reserve(wanting("o", 50))) == {"o": SECOND}
    await worker.release("first")
    assert slots_of(await workers[1].reserve(wanting("o", 50), wanting("o", 50))) == {"o": SECOND}

    assert await worker.loads() == {FIRST: 0, SECOND: 50_00}
    assert slots_of(await worker.reserve(wanting("new", 100))) == {"new": FIRST}


async def test_an_order_gets_its_stock_and_its_slot_or_neither(worker: Worker, clock: HandClock) -> None:
    await worker.slot_rules(capacity=100_00, horizon=1)
    await worker.stock({"p": 2})

    too_many = order("too-many", {"p": 3}, price=10, slot="auto")
    answers = await worker.reserve(too_many, wanting("too-dear", 101), wanting("fits", 100), wanting("late", 1))

    assert slots_of(answers) == {"fits": FIRST}
    assert refused(answers) == {
        "too-many": "Insufficient stock for p: asked 3, free 2",
        "too-dear": "No delivery slot with room for 101 until 2026-06-01T10:30:00.000Z: none takes more than 100",
        "late": "No delivery slot with room for 1 until 2026-06-01T10:30:00.000Z",
    }
    assert await worker.free("p") == 1
    assert await worker.loads() == {FIRST: 100_00}
    await settle_everything([worker], clock)
    assert await unsettled_records(worker.database) == []


async def test_an_order_without_delivery_takes_no_slot_and_one_for_nothing_takes_one(worker: Worker) -> None:
    await worker.slot_rules(capacity=10_00)

    answers = await worker.reserve(order("none", {"p": 1}, price=9), wanting("full", 10), wanting("free", 0))

    assert slots_of(answers) == {"none": None, "full": FIRST, "free": FIRST}
    assert await worker.loads() == {FIRST: 10_00}


REFUSALS = {
    slot(10): f"Delivery {slot(10)} began at 2026-06-01T10:00:00.000Z",
    slot(9, 45): f"Delivery {slot(9, 45)} began at 2026-06-01T09:45:00.000Z",
    FIRST: f"Delivery {FIRST} is too near: it ends in less than 31 minutes",
    slot(11, 30): f"Delivery {slot(11, 30)} is too far ahead: slots until 2026-06-01T11:30:00.000Z can be booked",
    SECOND: f"Delivery {SECOND} is disabled",
    THIRD: f"Delivery {THIRD} has no room for 50: 49.99 of 100 is free",
    slot(10, 50): f"There is no delivery {slot(10, 50)}: by the opening hours none starts then",
    "tomorrow": "There is no delivery tomorrow: by the opening hours none starts then",
    "slot:999999999999": "There is no delivery slot:999999999999: by the opening hours none starts then",
    "p": "There is no delivery p: by the opening hours none starts then",
}
"""The reasons why an order for 50 cannot have a slot, by the slot."""


async def test_a_named_slot_is_refused_with_the_reason(worker: Worker, clock: HandClock) -> None:
    await worker.slot_rules(capacity=100_00, cutoff=31, horizon=4)
    await disable(worker, SECOND)
    assert slots_of(await worker.reserve(wanting("here", 50.01, THIRD))) == {"here": THIRD}

    answers = await worker.reserve(*(wanting(f"o{n}", 50, asked) for n, asked in enumerate(REFUSALS)))

    assert refused(answers) == {f"o{n}": reason for n, reason in enumerate(REFUSALS.values())}
    assert await worker.loads() == {SECOND: 0, THIRD: 50_01}
    assert await worker.free("p") == 9_999
    await settle_everything([worker], clock)
    assert await unsettled_records(worker.database) == []


async def test_a_named_slot_is_booked_even_if_an_earlier_one_has_room(worker: Worker) -> None:
    assert slots_of(await worker.reserve(wanting("o", 50, THIRD))) == {"o": THIRD}
    reservation = (await worker.reservations.read(["o"]))["o"]
    assert reservation.booking == Booking(THIRD, at(10, 45), at(10, 15), 50_00)


NIGHTS = {"opens": 22 * 60, "closes": 2 * 60}
MORNINGS = {"opens": 8 * 60, "closes": 8 * 60 + 40}


async def test_the_earliest_slot_is_the_next_that_has_not_begun(worker: Worker, clock: HandClock) -> None:
    moments: list[tuple[dict[str, int], datetime, str]] = [
        ({}, at(23, 45), slot(0, day=2)),
        ({}, at(23, 59), slot(0, day=2)),
        ({}, at(0, day=2), slot(0, 15, day=2)),
        (NIGHTS, at(23, 50), slot(0, day=2)),
        (NIGHTS, at(1, 44), slot(1, 45)),
        (NIGHTS, at(1, 45), slot(22)),
        (MORNINGS, at(8, 14), slot(8, 15)),
        (MORNINGS, at(8, 15), slot(8, day=2)),
        ({"cutoff": 20}, at(10, 10), FIRST),
        ({"cutoff": 21}, at(10, 10), SECOND),
    ]
    found = []
    for number, (rules, now, _) in enumerate(moments):
        await worker.slot_rules(**rules)
        clock.now = now
        await worker.reserve(wanting(f"o{number}", 50))
        found.append((rules, now, await worker.slot_of(f"o{number}")))

    assert found == moments


async def test_the_work_becomes_visible_the_lead_before_the_start_or_at_the_start(worker: Worker) -> None:
    shown = {}
    for lead in (30, 44, 45, 90):
        await worker.slot_rules(lead=lead)
        await worker.reserve(wanting(f"o{lead}", 50, THIRD))
        booking = (await worker.reservations.read([f"o{lead}"]))[f"o{lead}"].booking
        shown[lead] = booking and booking.visible_at

    assert shown == {30: at(10, 15), 44: at(10, 1), 45: at(10, 45), 90: at(10, 45)}


@pytest.mark.parametrize("lowered", [0, 60_000_00])
async def test_a_capacity_lowered_while_orders_pour_in_stops_new_bookings_only(
    workers: list[Worker], worker: Worker, clock: HandClock, lowered: int
) -> None:
    await worker.slot_rules(capacity=CAPACITY, horizon=2)
    orders = [wanting(each.order_id, each.total_amount / 100, FIRST) for each in random_orders(150, seed=9)]

    async with watched(worker.database):
        pouring = asyncio.create_task(reserve_in_batches(workers, orders, size=5))
        await eventually(worker.loads, 60, "the first orders to be booked")
        booked_then = await set_capacity(worker, FIRST, lowered)
        answers = await pouring

    assert (await worker.loads())[FIRST] == loads_by(orders, slots_of(answers))[FIRST] <= max(lowered, booked_then)
    assert 0 < booked_then < CAPACITY
    await settle_everything(workers, clock)
    assert await unsettled_records(worker.database) == []


async def test_a_slot_with_a_lowered_capacity_is_booked_again_once_it_has_room(
    worker: Worker, clock: HandClock
) -> None:
    await worker.reserve(wanting("a", 60), wanting("b", 30))

    assert await set_capacity(worker, FIRST, 50_00) == 90_00

    assert slots_of(await worker.reserve(wanting("next", 1))) == {"next": SECOND}
    assert await worker.status("a") == Status.RESERVED
    await worker.release("b")
    assert slots_of(await worker.reserve(wanting("still-next", 1))) == {"still-next": SECOND}
    await worker.release("a")
    assert slots_of(await worker.reserve(wanting("c", 50.01), wanting("d", 50))) == {"c": SECOND, "d": FIRST}
    await settle_everything([worker], clock)
    assert await unsettled_records(worker.database) == []


async def test_the_capacity_of_the_rules_applies_to_every_slot_without_its_own(worker: Worker) -> None:
    await worker.slot_rules(capacity=100_00)
    await worker.reserve(wanting("a", 60), wanting("b", 60))
    await set_capacity(worker, SECOND, 80_00)

    await worker.slot_rules(capacity=50_00)
    assert slots_of(await worker.reserve(wanting("c", 20))) == {"c": SECOND}
    assert slots_of(await worker.reserve(wanting("d", 20))) == {"d": THIRD}
    await worker.slot_rules(capacity=200_00)
    assert slots_of(await worker.reserve(wanting("e", 140))) == {"e": FIRST}

    assert await worker.loads() == {FIRST: 200_00, SECOND: 80_00, THIRD: 20_00}


@pytest.mark.parametrize("change", ["disabled", "lowered"])
@pytest.mark.parametrize(("asked", "then"), [("auto", SECOND), (FIRST, None)], ids=["auto", "named"])
@pytest.mark.parametrize("booked", [False, True], ids=["new-slot", "booked-slot"])
async def test_a_slot_that_changes_between_choosing_and_taking_is_not_taken(
    workers: list[Worker], worker: Worker, clock: HandClock, change: str, asked: str, then: str | None, booked: bool
) -> None:
    if booked:
        await worker.reserve(wanting("before", 10))
    before_write = Gate(worker.stock_items, "write")
    choosing = asyncio.create_task(worker.reserve(wanting("o", 50, asked)))
    await before_write.reached()
    if change == "disabled":
        await disable(workers[1], FIRST)
    else:
        await set_capacity(workers[1], FIRST, 40_00)

    before_write.open()

    answers = await choosing
    assert slots_of(answers).get("o") == then
    if then is None:
        left = "30 of 40 is free" if booked else "40 of 40 is free"
        why = "is disabled" if change == "disabled" else f"has no room for 50: {left}"
        assert refused(answers) == {"o": f"Delivery {FIRST} {why}"}
    assert (await worker.loads())[FIRST] == (10_00 if booked else 0)
    await settle_everything(workers, clock)
    assert await worker.free("p") == 10_000 - int(booked) - int(then is not None)
    assert await unsettled_records(worker.database) == []


async def test_a_disabled_slot_keeps_what_is_booked_and_gives_it_back(worker: Worker, clock: HandClock) -> None:
    await worker.reserve(wanting("a", 60))
    await disable(worker, FIRST)

    assert slots_of(await worker.reserve(wanting("a", 60), wanting("b", 10))) == {"a": FIRST, "b": SECOND}
    await worker.release("a")

    assert await worker.loads() == {FIRST: 0, SECOND: 10_00}
    await settle_everything([worker], clock)
    assert await unsettled_records(worker.database) == []


async def test_two_workers_that_take_the_last_room_at_once_book_it_once(workers: list[Worker], worker: Worker) -> None:
    await worker.slot_rules(capacity=100_00)
    for attempt in range(8):
        pair = [wanting(f"{name}{attempt}", 60) for name in "ab"]

        answers = await asyncio.gather(*(workers[n].reserve(one) for n, one in enumerate(pair)))

        assert len(set(slots_of([*answers[0], *answers[1]]).values())) == 2


@pytest.mark.parametrize(
    "after",
    [{"duration": 30}, {"duration": 20, "opens": 5}, {"opens": 10 * 60 + 20, "closes": 12 * 60}],
    ids=["longer", "shifted", "other-hours"],
)
async def test_what_is_booked_when_the_rules_change_stays_and_nothing_is_booked_across_it(
    workers: list[Worker], worker: Worker, clock: HandClock, after: dict[str, int]
) -> None:
    await worker.slot_rules(capacity=100_00)
    before = [wanting("b1", 70, SECOND), wanting("b2", 70, slot(11, 15))]
    assert slots_of(await worker.reserve(*before)) == {"b1": SECOND, "b2": slot(11, 15)}

    await worker.slot_rules(capacity=100_00, horizon=8, **after)
    orders = [wanting(f"o{n}", 60) for n in range(12)]
    answers = await reserve_in_batches(workers, orders, size=3)

    assert slots_of(await worker.reserve(*before)) == {"b1": SECOND, "b2": slot(11, 15)}
    assert await worker.loads() == loads_by([*before, *orders], slots_of([*answers, *await worker.reserve(*before)]))
    times = [(s["start"], s["end"]) async for s in worker.database["products"].find({"kind": "slot"}).sort("start")]
    assert all(end <= start for (_, end), (start, _) in pairwise(times)), times
    assert len(slots_of(answers)) >= 4
    await worker.release("b1", "b2", *(each.order_id for each in orders))
    await settle_everything(workers, clock)
    assert set((await worker.loads()).values()) == {0}
    assert await unsettled_records(worker.database) == []


async def test_a_slot_that_is_empty_again_takes_the_times_of_the_rules(worker: Worker, clock: HandClock) -> None:
    await worker.reserve(wanting("a", 60, SECOND))
    await worker.release("a")
    await settle_everything([worker], clock)
    await worker.slot_rules(duration=30)

    assert slots_of(await worker.reserve(wanting("b", 60))) == {"b": SECOND}
    stored: Any = await worker.database["products"].find_one({"_id": SECOND})
    assert (stored["start"], stored["end"]) == (at(10, 30), at(11))


async def test_orders_of_this_shop_and_of_other_systems_share_a_slot(
    workers: list[Worker], worker: Worker, clock: HandClock
) -> None:
    await worker.slot_rules(capacity=10_000_00, horizon=2)
    orders = random_orders(40, seed=3, highest=1_000_00)
    others = {f"x{n}": each.total_amount for n, each in enumerate(random_orders(40, seed=4, highest=1_000_00))}

    async with watched(worker.database):
        answers, assigned = await asyncio.gather(
            reserve_in_batches(workers[:2], orders, size=5),
            asyncio.gather(
                *(workers[2 + n % 2].assign(order_id, price) for n, (order_id, price) in enumerate(others.items()))
            ),
        )

    loads = loads_by(orders, slots_of(answers))
    for answer in assigned:
        if isinstance(answer, Booking):
            loads[answer.slot_id] += answer.price
        else:
            assert isinstance(answer, NoRoom)
    assert await worker.loads() == loads
    assert max(loads.values()) <= 10_000_00
    again = await asyncio.gather(*(worker.assign(order_id, price) for order_id, price in others.items()))
    assert [a for a in again if isinstance(a, Booking)] == [a for a in assigned if isinstance(a, Booking)]
    await worker.release(*(each.order_id for each in orders))
    await asyncio.gather(*(workers[n % 4].assigner.release(order_id) for n, order_id in enumerate(others)))
    assert set((await worker.loads()).values()) == {0}
    await settle_everything(workers, clock)
    assert await unsettled_records(worker.database) == []


async def test_a_refused_order_of_this_shop_returns_its_earlier_assignment(worker: Worker, clock: HandClock) -> None:
    await worker.slot_rules()
    assert isinstance(await worker.assign("o", 10_00), Booking)

    assert refused(await worker.reserve(order("o", {"unknown": 1}))) == {"o": "Unknown product unknown"}

    assert set((await worker.loads()).values()) == {0}
    assert await worker.assign("o", 10_00) == OrderClosed(Status.FAILED)
    await settle_everything([worker], clock)
    assert await unsettled_records(worker.database) == []


async def test_a_leftover_assignment_of_a_closed_order_is_released_by_the_next_request(
    workers: list[Worker], worker: Worker, clock: HandClock
) -> None:
    await worker.slot_rules()
    # This worker dies before it learns that the order has been refused.
    doomed = Worker(worker.database, failpoint=crash_at(RESERVATION_RECORDED), clock=clock)
    with pytest.raises(SimulatedCrashError):
        await doomed.assign("o", 10_00)
    await worker.reservations.insert([Reservation("o", Status.FAILED, clock(), clock(), failure_reason="no stock")])
    assert sum((await worker.loads()).values()) == 10_00

    assert await worker.assign("o", 10_00) == OrderClosed(Status.FAILED)

    assert set((await worker.loads()).values()) == {0}
    await settle_everything(workers, clock)
    assert await unsettled_records(worker.database) == []

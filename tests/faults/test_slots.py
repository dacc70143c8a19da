"""Workers and processes that die or stall while they book delivery slots: no slot is overbooked, lost or kept."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from inventory_service.stock import Booking, Description, Kind, Status, assignment_id
from inventory_service.timetable import slot_id
from shared.clock import utc_now
from shared.contracts import Message, OrderCreated, ReleaseStock, StockReleased, StockReserved
from shared.database import Database
from shared.failpoints import RESERVATION_RECORDED, STOCK_MOVED, SimulatedCrashError
from tests.faults.test_inventory_crashes import POINTS, Inbox, Perils, crash
from tests.support.access import ADMIN
from tests.support.builders import connected
from tests.support.eventually import eventually
from tests.support.inventory_worker import (
    Gate,
    HandClock,
    Worker,
    crash_at,
    discrepancies,
    empty,
    order,
    release,
    reserved,
    settle_everything,
    shared_database,
    unsettled_records,
)
from tests.support.processes import KEEP_SECONDS, Process, Stack, run_stack
from tests.support.seeds import IS_LONG_FORM, seeded
from tests.support.servers import Servers

NOW = datetime(2026, 6, 1, 10, tzinfo=UTC)
FIRST, SECOND = slot_id(NOW + timedelta(minutes=15)), slot_id(NOW + timedelta(minutes=30))


def slot_named_by(answer: Message) -> str | None:
    assert isinstance(answer, StockReserved)
    return answer.slot


@pytest.fixture
def clock() -> HandClock:
    return HandClock(NOW)


@pytest.fixture(scope="module")
async def databases(servers: Servers) -> AsyncIterator[list[Database]]:
    async with shared_database(servers.mongodb_url, clients=2) as found:
        yield found


@pytest.fixture
async def workers(databases: list[Database], clock: HandClock) -> list[Worker]:
    await empty(databases[0])
    found = [Worker(db, clock=clock) for db in databases]
    await found[0].stock({"p": 10})
    await found[0].slot_rules(capacity=100_00)
    return found


@pytest.fixture
def other(workers: list[Worker]) -> Worker:
    """A worker that survives."""
    return workers[1]


def doomed(workers: Sequence[Worker], clock: HandClock, point: str, nth: int = 1) -> Worker:
    """Return a worker that dies when it reaches the point for the n-th time."""
    return Worker(workers[0].database, failpoint=crash_at(point, nth), clock=clock)


def wanting(order_id: str, price: float = 60) -> OrderCreated:
    return order(order_id, {"p": 1}, price=price, slot="auto")


async def booked(worker: Worker) -> dict[str, int]:
    """Return the loads of slots, without empty ones."""
    return {slot: load for slot, load in (await worker.loads()).items() if load}


async def assert_settled(workers: Sequence[Worker], clock: HandClock) -> None:
    await settle_everything(workers, clock)
    assert await unsettled_records(workers[0].database) == []


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("same_worker", [True, False], ids=["restarted", "another"])
async def test_an_order_whose_worker_died_has_one_slot(
    workers: list[Worker], other: Worker, clock: HandClock, point: str, same_worker: bool
) -> None:
    await crash(doomed(workers, clock, point).reserve(wanting("o")))
    assert await discrepancies(other.database) == []
    redelivered_to = Worker(workers[0].database, clock=clock) if same_worker else other

    answers = await redelivered_to.reserve(wanting("new"), wanting("o"))

    assert {(answer.correlation_id, slot_named_by(answer)) for answer in answers} == {("o", FIRST), ("new", SECOND)}
    assert await booked(other) == {FIRST: 60_00, SECOND: 60_00}
    await assert_settled([redelivered_to, other], clock)


@pytest.mark.parametrize("point", POINTS)
async def test_a_release_whose_worker_died_gives_the_slot_back_once(
    workers: list[Worker], other: Worker, clock: HandClock, point: str
) -> None:
    await other.reserve(wanting("o"), wanting("stays", 30))

    await crash(doomed(workers, clock, point).release("o"))
    assert await discrepancies(other.database) == []
    assert await other.release("o") == [StockReleased(order_id="o")]

    assert await booked(other) == {FIRST: 30_00}
    await assert_settled(workers, clock)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("same_worker", [True, False], ids=["restarted", "another"])
async def test_an_assignment_whose_worker_died_is_made_once(
    workers: list[Worker], other: Worker, clock: HandClock, point: str, same_worker: bool
) -> None:
    await crash(doomed(workers, clock, point).assign("x", 60_00))
    assert await discrepancies(other.database) == []
    asked = Worker(workers[0].database, clock=clock) if same_worker else other

    answer = await asked.assign("x", 60_00)

    assert isinstance(answer, Booking)
    assert answer.slot_id == FIRST
    assert await booked(other) == {FIRST: 60_00}
    await assert_settled([asked, other], clock)


async def test_room_taken_for_a_request_that_is_never_repeated_is_freed(
    workers: list[Worker], other: Worker, clock: HandClock
) -> None:
    await crash(doomed(workers, clock, STOCK_MOVED).assign("gone", 60_00))
    await crash(doomed(workers, clock, STOCK_MOVED).reserve(wanting("unacknowledged", 30)))
    assert await booked(other) == {FIRST: 90_00}

    await settle_everything([other], clock)

    # A message is redelivered, a request may not be repeated: only the order still holds its room.
    assert await booked(other) == {FIRST: 30_00}
    assert (await other.reservations.assignments(["gone"]))["gone"].status is Status.RELEASED
    assert isinstance(await other.assign("gone", 70_00), Booking)
    assert await booked(other) == {FIRST: 100_00}


async def test_one_sweep_does_not_take_the_room_of_a_request_in_progress(
    workers: list[Worker], other: Worker, clock: HandClock
) -> None:
    before_record = Gate(workers[0].reservations, "insert")
    asking = asyncio.create_task(workers[0].assign("x", 60_00))
    await before_record.reached()
    clock.forward(milliseconds=1)
    await other.pending_moves.sweep_once()

    before_record.open()

    assert isinstance(await asking, Booking)
    assert (await other.reservations.assignments(["x"]))["x"].order_id == assignment_id("x", 1)
    await assert_settled(workers, clock)
    assert await booked(other) == {FIRST: 60_00}


async def test_a_stalled_request_whose_room_was_freed_still_gets_a_slot(
    workers: list[Worker], other: Worker, clock: HandClock
) -> None:
    before_record = Gate(workers[0].reservations, "insert")
    asking = asyncio.create_task(workers[0].assign("x", 60_00))
    await before_record.reached()
    await settle_everything([other], clock)
    assert await booked(other) == {}

    before_record.open()

    assert isinstance(await asking, Booking)
    assert await booked(other) == {FIRST: 60_00}
    await assert_settled(workers, clock)
    assert (await other.assigner.release("x")) is not None
    assert await booked(other) == {}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("same_worker", [True, False], ids=["restarted", "another"])
async def test_an_assignment_is_released_once_after_a_worker_died(
    workers: list[Worker], other: Worker, clock: HandClock, point: str, same_worker: bool
) -> None:
    await other.assign("x", 60_00)
    await other.assign("y", 30_00)

    await crash(doomed(workers, clock, point).assigner.release("x"))
    assert await discrepancies(other.database) == []
    asked = Worker(workers[0].database, clock=clock) if same_worker else other
    await asked.assigner.release("x")

    assert await booked(other) == {FIRST: 30_00}
    await assert_settled([asked, other], clock)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("nth", [1, 2], ids=["over-the-order", "over-its-assignment"])
async def test_a_cancelled_order_releases_its_assignment_after_a_worker_died(
    workers: list[Worker], other: Worker, clock: HandClock, point: str, nth: int
) -> None:
    await other.reserve(order("o", {"p": 2}))
    await other.assign("o", 60_00)

    await crash(doomed(workers, clock, point, nth).release("o"))
    await other.release("o")

    assert await booked(other) == {}
    assert await other.free("p") == 10
    await assert_settled(workers, clock)


@pytest.mark.parametrize(("point", "nth"), [(RESERVATION_RECORDED, 1), (STOCK_MOVED, 1), (RESERVATION_RECORDED, 2)])
async def test_a_refused_order_releases_its_assignment_after_a_worker_died(
    workers: list[Worker], other: Worker, clock: HandClock, point: str, nth: int
) -> None:
    await other.assign("o", 60_00)

    await crash(doomed(workers, clock, point, nth).reserve(order("o", {"p": 11})))
    await other.reserve(order("o", {"p": 11}))

    assert await booked(other) == {}
    await assert_settled(workers, clock)


async def test_units_of_a_refused_order_are_reused_only_once_its_refusal_is_recorded(
    workers: list[Worker], other: Worker, clock: HandClock
) -> None:
    """Otherwise a worker that dies between the two writes leaves more taken than there is."""
    await other.stock_items.put_product("v", Description(Kind.VPS, package="basic"))
    await other.slot_rules(capacity=100_00, horizon=1)
    await crash(doomed(workers, clock, STOCK_MOVED).reserve(wanting("refused", 100)))
    await other.stock_items.put_product("p", Description(Kind.GOODS, price=1_00))
    behind = order("behind", {"v": 1}, price=100, slot="auto")

    # It dies after it has recorded the refusal, then after it has taken units for the other order.
    for point in (RESERVATION_RECORDED, STOCK_MOVED):
        await crash(doomed(workers, clock, point).reserve(wanting("refused", 100), behind))
        assert await discrepancies(other.database) == []

    assert reserved(await other.reserve(wanting("refused", 100), behind)) == {"behind"}
    assert await booked(other) == {FIRST: 100_00}
    await assert_settled(workers, clock)


@pytest.mark.parametrize(("first", "second"), [(50_00, 20_00), (20_00, 80_00)], ids=["less", "more"])
async def test_two_requests_of_an_order_at_different_prices_book_one_of_them(
    workers: list[Worker], other: Worker, clock: HandClock, first: int, second: int
) -> None:
    """A client that gave up waiting asks another process at another price, while the first one continues."""
    gates = [Gate(worker.reservations, "insert") for worker in workers]
    asking = []
    for worker, gate, price in zip(workers, gates, (first, second), strict=True):
        asking.append(asyncio.create_task(worker.assign("x", price)))
        await gate.reached()
    for gate, asked in zip(gates, asking, strict=True):
        gate.open()
        await asked

    answers = [asked.result() for asked in asking]
    assert answers[0] == answers[1]
    assert await booked(other) == {FIRST: first}
    assert await discrepancies(other.database) == []
    await other.assigner.release("x")
    assert await booked(other) == {}
    await assert_settled(workers, clock)


@pytest.mark.parametrize("crash_at_point", [None, *POINTS])
async def test_an_order_has_one_slot_though_another_system_assigned_it_one_before(
    workers: list[Worker], other: Worker, clock: HandClock, crash_at_point: str | None
) -> None:
    assert isinstance(await other.assign("o", 60_00), Booking)
    if crash_at_point is not None:
        await crash(doomed(workers, clock, crash_at_point).reserve(wanting("o")))

    await other.reserve(wanting("o"))

    own = await other.slot_of("o")
    assert own is not None
    assert await booked(other) == {own: 60_00}
    again = await other.assign("o", 60_00)
    assert isinstance(again, Booking)
    assert again.slot_id == own
    await other.release("o")
    assert await booked(other) == {}
    await assert_settled([other], clock)


async def test_an_order_that_was_recorded_while_it_was_assigned_a_slot_keeps_its_own(
    workers: list[Worker], other: Worker, clock: HandClock
) -> None:
    gate = Gate(workers[0].reservations, "insert")
    assigning = asyncio.create_task(workers[0].assign("o", 60_00))
    await gate.reached()
    await other.reserve(wanting("o"))
    gate.open()

    answer = await assigning

    assert isinstance(answer, Booking)
    assert answer.slot_id == await other.slot_of("o")
    assert await booked(other) == {answer.slot_id: 60_00}
    await assert_settled(workers, clock)


@pytest.mark.parametrize("why", ["begun", "disabled"])
async def test_an_order_whose_worker_died_is_not_booked_in_a_slot_that_is_no_longer_on_offer(
    workers: list[Worker], other: Worker, clock: HandClock, why: str
) -> None:
    await crash(doomed(workers, clock, STOCK_MOVED).reserve(wanting("o")))
    if why == "begun":
        clock.forward(minutes=16)
    else:
        await other.slots.adjust(FIRST, capacity=None, follow_rules=False, disabled=True)

    assert [slot_named_by(answer) for answer in await other.reserve(wanting("o"))] == [SECOND]

    assert await booked(other) == {SECOND: 60_00}
    await assert_settled([other], clock)


async def test_room_that_was_taken_is_kept_even_if_an_earlier_slot_is_free_by_now(
    workers: list[Worker], other: Worker, clock: HandClock
) -> None:
    await other.assign("in-the-way", 60_00)
    await crash(doomed(workers, clock, STOCK_MOVED).reserve(wanting("o")))
    await other.assigner.release("in-the-way")

    assert [slot_named_by(answer) for answer in await other.reserve(wanting("o"))] == [SECOND]

    await assert_settled(workers, clock)
    assert await booked(other) == {SECOND: 60_00}


async def test_a_release_finds_the_room_that_a_killed_worker_took_for_an_order_never_recorded(
    workers: list[Worker], other: Worker, clock: HandClock
) -> None:
    await crash(doomed(workers, clock, STOCK_MOVED).reserve(wanting("o")))
    assert await booked(other) == {FIRST: 60_00}

    await other.release("o")

    assert await booked(other) == {}
    await assert_settled([other], clock)


@pytest.mark.parametrize("wanted_by", ["order", "assignment"])
@pytest.mark.parametrize("slow_first", [True, False], ids=["first-slot-recorded", "second-slot-recorded"])
@pytest.mark.parametrize("released", [False, True], ids=["kept", "released"])
async def test_two_workers_that_choose_different_slots_for_an_order_book_one(
    workers: list[Worker], other: Worker, clock: HandClock, wanted_by: str, slow_first: bool, released: bool
) -> None:
    """One finds the first slot full and takes the second, the other finds room in the first: both hold room."""
    await other.stock_items.put_product(
        "v", Description(Kind.VPS, package="basic")
    )  # its stock is not counted, so workers collide on slots only

    async def want(worker: Worker) -> str | None:
        if wanted_by == "assignment":
            answer = await worker.assign("o", 60_00)
            return answer.slot_id if isinstance(answer, Booking) else None
        (answered,) = await worker.reserve(order("o", {"v": 1}, price=60, slot="auto"))
        return answered.slot if isinstance(answered, StockReserved) else None

    in_the_way = Worker(other.database, clock=clock)
    await in_the_way.assign("in-the-way", 60_00)
    before_write, before_record = Gate(other.stock_items, "write"), Gate(other.reservations, "insert")
    second = asyncio.create_task(want(other))
    await before_write.reached()
    await in_the_way.assigner.release("in-the-way")
    before_other_record = Gate(workers[0].reservations, "insert")
    first = asyncio.create_task(want(workers[0]))
    await before_other_record.reached()
    before_write.open()
    await before_record.reached()
    assert await booked(other) == {FIRST: 60_00, SECOND: 60_00}

    gates = [before_other_record, before_record] if slow_first else [before_record, before_other_record]
    for gate, answering in zip(gates, [first, second] if slow_first else [second, first], strict=True):
        gate.open()
        await answering

    has = FIRST if slow_first else SECOND
    assert (await first, await second) == (has, has)
    assert await discrepancies(other.database) == []
    if released:
        await in_the_way.release("o")
        await in_the_way.assigner.release("o")
    await assert_settled([*workers, in_the_way], clock)
    assert await booked(other) == ({} if released else {has: 60_00})


class Callers:
    """Another system that requests and releases slots, and repeats a request when a worker dies."""

    def __init__(self, orders: dict[str, int], given_back: set[str]) -> None:
        self.orders = orders
        self.given_back = given_back
        self.answers: list[tuple[str, object]] = []

    async def call(self, worker: Worker, perils: Perils) -> None:
        alive = perils.worker(worker)
        for order_id, price in self.orders.items():
            while True:
                try:
                    self.answers.append((order_id, await alive.assign(order_id, price)))
                    if order_id in self.given_back:
                        await alive.assigner.release(order_id)
                    break
                except SimulatedCrashError:
                    alive = perils.worker(worker)


class SlotPerils(Perils):
    """Perils that also surround the reads and writes of slots."""

    METHODS = (*Perils.METHODS, ("stock_items", "read_slots"), ("rules", "read"), ("reservations", "assignments"))


@seeded(cost=10)
async def test_no_slot_is_overbooked_or_kept_after_any_crashes_and_stalls(
    workers: list[Worker], other: Worker, seed: int
) -> None:
    perils = SlotPerils(seed)
    await other.slot_rules(capacity=100_00, horizon=4, duration=60)
    orders = {f"o{n}": perils.random.choice((10, 20, 60)) for n in range(18)}
    released = set(perils.random.sample(sorted(orders), 6))
    messages: list[OrderCreated | ReleaseStock] = [wanting(order_id, price) for order_id, price in orders.items()]
    messages += [release(order_id) for order_id in sorted(released)]
    inbox = Inbox(messages, perils.random)
    callers = Callers({f"x{n}": perils.random.choice((10_00, 30_00)) for n in range(8)}, {"x1", "x4", "x6"})

    async with asyncio.TaskGroup() as together:  # ends all tasks if one fails
        for worker in workers:
            together.create_task(inbox.serve(worker, perils))
            together.create_task(callers.call(worker, perils))

    assert perils.deaths > 0
    await settle_everything([Worker(other.database)])
    assert await unsettled_records(other.database) == []
    assert_one_slot_each(inbox.answers)
    # Two callers request and release: an order may have had several slots in turn, but never two at once.
    assert await booked(other) == await held(other.database)
    kept = [*(orders.keys() - released), *(callers.orders.keys() - callers.given_back)]
    await other.release(*kept, *callers.given_back)
    assert await booked(other) == {}


def assert_one_slot_each(answers: Sequence[Message]) -> None:
    slots: dict[str, set[str | None]] = {}
    for answer in answers:
        if isinstance(answer, StockReserved):
            slots.setdefault(answer.order_id, set()).add(answer.slot)
    assert slots
    assert all(len(found) == 1 for found in slots.values()), slots


async def held(db: Database) -> dict[str, int]:
    """Return what the reservations hold, by slot; check that no order holds two."""
    found: Counter[str] = Counter()
    orders: Counter[str] = Counter()
    async for reservation in db["reservations"].find({"status": "RESERVED", "slot": {"$exists": True}}):
        found[reservation["slot"]["slotId"]] += reservation["slot"]["price"]
        orders[reservation.get("assignment", {}).get("orderId", reservation["_id"])] += 1
    assert set(orders.values()) <= {1}
    return dict(found)


# --- The same over HTTP, with real processes. ---

ORDERS = 1000 if IS_LONG_FORM else 300
CAPACITY = 60 * ORDERS
"""The capacity of each of seven slots: in total much less than what is asked of the two surviving processes."""


@dataclass
class Asked:
    """The answers to all requests; a process that died left some unanswered."""

    slots: dict[str, dict[str, Any]]
    full: set[str]
    unanswered: set[str]


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    async with run_stack(mongodb_url, clean_broker, database_prefix, mark_sweep_seconds=0.3) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that costs less per request than the service."""
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=150, keepalive_timeout=KEEP_SECONDS), timeout=timeout, headers=ADMIN
    ) as client:
        yield client


@pytest.fixture
async def stored(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_inventory") as db:
        yield db


@pytest.mark.long_form
async def test_requests_over_three_processes_of_which_one_is_killed(
    stack: Stack, stored: Database, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(11)
    prices = {f"x{n}": chance.randint(1, 2_000_00) / 100 for n in range(ORDERS)}
    first = await stack.launch("inventory")
    monkeypatch.setenv("TZ", "Asia/Kathmandu")  # slots do not depend on the time zone of a process
    others = [await stack.launch("inventory", crash_at=f"{STOCK_MOVED}#2"), await stack.launch("inventory")]
    await asyncio.gather(*map(stack.ready, (first, *others)))
    # Slots last a day and the first begins half a day from now, so none begins during the test.
    opening = (utc_now() + timedelta(hours=12)).strftime("%H:%M")
    times = {"durationMinutes": 1440, "openTime": opening, "closeTime": opening}
    rules = {**times, "capacity": CAPACITY, "horizonSlots": 7}
    assert (await stack.client.put(f"{first.url}/slots/config", json=rules)).status_code == 200

    asked = await ask(http, prices, [first, *others])
    await eventually(lambda: not others[0].alive, 60, "the process to kill itself")
    (again,) = await stack.start("inventory")
    assert asked.unanswered
    assert asked.full

    # Room taken for unanswered requests comes back, answered requests keep theirs.
    await eventually(lambda: nothing_unsettled(stored), 60, "the pending moves of the killed process to be cleared")
    assert await stored["reservations"].count_documents({"status": "RELEASED"}) > 0
    await assert_booked_as_answered(stack, stored, prices, asked)
    await stack.assert_books_balance()

    some = dict(chance.sample(sorted(asked.slots.items()), ORDERS // 10))
    repeated = await ask(http, {order_id: prices[order_id] for order_id in some}, [again, others[1], first])
    assert repeated.slots == some
    late = await ask(http, {order_id: prices[order_id] for order_id in asked.unanswered}, [again])
    assert late.slots.keys() | late.full == asked.unanswered
    await assert_booked_as_answered(stack, stored, prices, Asked(asked.slots | late.slots, asked.full, set()))

    await return_units(http, [*asked.slots, *late.slots], [first, others[1], again])
    assert set((await loads(stack)).values()) == {0}
    await eventually(lambda: nothing_unsettled(stored), 60, "the last pending moves to be cleared")


async def ask(http: aiohttp.ClientSession, prices: dict[str, float], processes: Sequence[Process]) -> Asked:
    """Request all slots at once, from the living processes in turn."""
    asked = Asked({}, set(), set())

    async def one(number: int, order_id: str, price: float) -> None:
        body = {"orderId": order_id, "orderPrice": price, "itemsCount": 1}
        living = [process for process in processes if process.alive]
        try:
            async with http.post(f"{living[number % len(living)].url}/slots/assign", json=body) as answer:
                said = await answer.json(content_type=None)
        except aiohttp.ClientConnectionError:
            asked.unanswered.add(order_id)
            return
        assert answer.status in (200, 429), said
        if answer.status == 200:
            asked.slots[order_id] = said
        else:
            assert said["detail"].startswith("No delivery slot with room for ")
            asked.full.add(order_id)

    await asyncio.gather(*(one(number, *priced) for number, priced in enumerate(prices.items())))
    return asked


async def return_units(http: aiohttp.ClientSession, order_ids: Sequence[str], processes: Sequence[Process]) -> None:
    async def one(number: int, order_id: str) -> None:
        url = processes[number % len(processes)].url
        async with http.delete(f"{url}/slots/assignments/{order_id}") as answer:
            assert answer.status == 204, await answer.text()

    await asyncio.gather(*(one(number, order_id) for number, order_id in enumerate(order_ids)))


async def loads(stack: Stack) -> dict[str, float]:
    slots = (await stack.client.get(f"{stack.url('inventory')}/slots")).json()["items"]
    return {slot["slotId"]: slot["load"] for slot in slots}


async def nothing_unsettled(db: Database) -> bool:
    return await unsettled_records(db) == []


async def assert_booked_as_answered(stack: Stack, db: Database, prices: dict[str, float], asked: Asked) -> None:
    """Check that every answer is true, and that only these orders and unanswered ones load the slots."""
    reserved = {
        reservation["assignment"]["orderId"]: reservation["slot"]
        async for reservation in db["reservations"].find({"status": "RESERVED"})
    }
    assert {o: slot["slotId"] for o, slot in asked.slots.items()} == {o: reserved[o]["slotId"] for o in asked.slots}
    assert reserved.keys() - asked.slots.keys() <= asked.unanswered
    expected: Counter[str] = Counter()
    for order_id, slot in reserved.items():
        assert slot["price"] == round(100 * prices[order_id])
        expected[slot["slotId"]] += slot["price"]
    found = {slot: round(100 * load) for slot, load in (await loads(stack)).items() if load}
    assert found == expected
    assert max(found.values()) <= 100 * CAPACITY

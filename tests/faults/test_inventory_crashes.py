"""Inventory workers that die or stall between any two steps: stock moves once, and nothing is left behind."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Any

import pytest

from inventory_service.stock import Status
from shared.contracts import (
    Message,
    OrderCreated,
    ReleaseStock,
    ReturnStock,
    ShipStock,
    StockReleased,
    StockReservationFailed,
    StockReserved,
    StockReturned,
    StockShipped,
)
from shared.database import Database
from shared.errors import PoisonError
from shared.failpoints import RESERVATION_RECORDED, STOCK_MOVED, SimulatedCrashError, nothing_fails
from tests.support.inventory_worker import (
    Gate,
    Lines,
    Worker,
    crash_at,
    discrepancies,
    empty,
    order,
    outcomes,
    put_back,
    refused,
    release,
    reserved,
    settle_everything,
    shared_database,
    unsettled_records,
)
from tests.support.seeds import seeded
from tests.support.servers import Servers

POINTS = (STOCK_MOVED, RESERVATION_RECORDED)
BOTH: Lines = {"a": 2, "b": 3}
FULL: Lines = {"a": 10, "b": 10}


@pytest.fixture(scope="module")
async def databases(servers: Servers) -> AsyncIterator[list[Database]]:
    async with shared_database(servers.mongodb_url, clients=2) as found:
        yield found


@pytest.fixture
async def workers(databases: list[Database]) -> list[Worker]:
    await empty(databases[0])
    return [Worker(db) for db in databases]


@pytest.fixture
async def other(workers: list[Worker]) -> Worker:
    """A worker that survives."""
    await workers[1].stock(FULL)
    return workers[1]


def doomed(workers: Sequence[Worker], point: str) -> Worker:
    """A worker that dies at the point."""
    return Worker(workers[0].database, failpoint=crash_at(point))


async def crash(work: Awaitable[Any]) -> None:
    with pytest.raises(SimulatedCrashError):
        await work


async def free(worker: Worker) -> Lines:
    return {product_id: await worker.free(product_id) for product_id in FULL}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("same_worker", [True, False], ids=["restarted", "another"])
async def test_an_order_whose_worker_died_is_reserved_once(
    workers: list[Worker], other: Worker, point: str, same_worker: bool
) -> None:
    await crash(doomed(workers, point).reserve(order("o", BOTH)))
    assert await discrepancies(other.database) == []
    redelivered_to = Worker(workers[0].database) if same_worker else other

    assert await redelivered_to.reserve(order("o", BOTH)) == [StockReserved(order_id="o")]

    assert await free(other) == {"a": 8, "b": 7}
    await settle_everything([redelivered_to, other])
    assert await unsettled_records(other.database) == []


@pytest.mark.parametrize("point", POINTS)
async def test_a_batch_whose_worker_died_is_decided_once_together_with_new_orders(
    workers: list[Worker], other: Worker, point: str
) -> None:
    batch = [order(f"o{n}", {"a": 3}) for n in range(5)]
    await crash(doomed(workers, point).reserve(*batch))

    answer = await other.reserve(order("new", {"a": 2}), *batch, order("newer", {"a": 1}))

    # Units that the dead worker had taken stay with its orders. One unit is left, enough for the last order only.
    assert reserved(answer) == {"o0", "o1", "o2", "newer"}
    assert await other.free("a") == 0
    await settle_everything([other])
    assert await unsettled_records(other.database) == []


@pytest.mark.parametrize("point", POINTS)
async def test_a_release_between_the_crash_and_the_redelivery_wins(
    workers: list[Worker], other: Worker, point: str
) -> None:
    await crash(doomed(workers, point).reserve(order("o", BOTH)))

    assert await other.release("o") == [StockReleased(order_id="o")]
    assert await discrepancies(other.database) == []
    assert await other.reserve(order("o", BOTH)) == [StockReleased(order_id="o")]

    assert await free(other) == FULL
    await settle_everything([other])
    assert await unsettled_records(other.database) == []


@pytest.mark.parametrize("point", POINTS)
async def test_a_release_whose_worker_died_returns_units_once(workers: list[Worker], other: Worker, point: str) -> None:
    await other.reserve(order("o", BOTH))

    await crash(doomed(workers, point).release("o"))
    assert await discrepancies(other.database) == []
    assert await other.release("o") == [StockReleased(order_id="o")]

    assert await free(other) == FULL
    assert await other.status("o") == Status.RELEASED
    await settle_everything([other])
    assert await unsettled_records(other.database) == []


@pytest.mark.parametrize("point", POINTS)
async def test_a_release_after_an_interrupted_release_returns_units_once(
    workers: list[Worker], other: Worker, point: str
) -> None:
    """The move of the reservation may still be pending too: each step starts from what the one before has left."""
    await crash(doomed(workers, point).reserve(order("o", BOTH)))
    await other.reserve(order("o", BOTH))
    await crash(doomed(workers, point).release("o"))

    await other.release("o", lines=BOTH)

    assert await free(other) == FULL
    await settle_everything([other])
    assert await unsettled_records(other.database) == []


async def test_units_of_a_refused_order_come_back_after_its_worker_died(workers: list[Worker], other: Worker) -> None:
    dying = doomed(workers, RESERVATION_RECORDED)
    before_write = Gate(dying.stock_items, "write")
    loser = asyncio.create_task(crash(dying.reserve(order("loser", BOTH))))
    await before_write.reached()
    await other.reserve(order("winner", {"b": 8}))  # the loser takes a, then finds b changed
    before_write.open()
    await loser
    assert await free(other) == {"a": 8, "b": 2}
    assert await discrepancies(other.database) == []

    answer = await other.reserve(order("loser", BOTH))

    assert refused(answer) == {"loser": "Insufficient stock for b: asked 3, free 2"}
    assert await free(other) == {"a": 10, "b": 2}
    await settle_everything([other])
    assert await unsettled_records(other.database) == []


@pytest.mark.parametrize(
    ("record", "method"),
    [("stock_items", "read"), ("reservations", "read"), ("stock_items", "write"), ("reservations", "insert")],
    ids=["before-products", "before-reservations", "between-reading-and-writing", "between-stock-and-reservation"],
)
@pytest.mark.parametrize("released", [False, True], ids=["kept", "released"])
async def test_a_worker_that_stalls_while_another_does_the_whole_order_changes_nothing(
    workers: list[Worker], other: Worker, record: str, method: str, released: bool
) -> None:
    slow = workers[0]
    gate = Gate(getattr(slow, record), method)
    stalled = asyncio.create_task(slow.reserve(order("o", BOTH)))
    await gate.reached()
    assert await other.reserve(order("o", BOTH)) == [StockReserved(order_id="o")]
    await settle_everything([other])  # no pending move is left that could warn the slow worker
    if released:
        await other.release("o")
        await settle_everything([other])
    before = await free(other)

    gate.open()

    assert await stalled == [StockReleased(order_id="o") if released else StockReserved(order_id="o")]
    assert await free(other) == before == (FULL if released else {"a": 8, "b": 7})
    await settle_everything(workers)
    assert await unsettled_records(other.database) == []


@pytest.mark.parametrize(
    ("record", "method"),
    [("stock_items", "write"), ("reservations", "insert")],
    ids=["between-reading-and-writing", "between-stock-and-reservation"],
)
async def test_a_worker_that_stalls_while_a_release_overtakes_it_returns_what_it_took(
    workers: list[Worker], other: Worker, record: str, method: str
) -> None:
    gate = Gate(getattr(workers[0], record), method)
    stalled = asyncio.create_task(workers[0].reserve(order("o", BOTH)))
    await gate.reached()
    assert await other.release("o", lines=BOTH) == [StockReleased(order_id="o")]

    gate.open()

    assert await stalled == [StockReleased(order_id="o")]
    assert await free(other) == FULL
    await settle_everything(workers)
    assert await unsettled_records(other.database) == []


@pytest.mark.parametrize(
    ("record", "method"),
    [("stock_items", "read"), ("reservations", "read"), ("stock_items", "write"), ("reservations", "mark")],
    ids=["before-products", "before-reservations", "between-reading-and-writing", "between-stock-and-reservation"],
)
async def test_a_release_that_stalls_while_another_worker_completes_it_returns_units_once(
    workers: list[Worker], other: Worker, record: str, method: str
) -> None:
    await other.reserve(order("o", BOTH))
    await settle_everything([other])
    gate = Gate(getattr(workers[0], record), method)
    stalled = asyncio.create_task(workers[0].release("o", lines=BOTH))
    await gate.reached()
    await other.release("o", lines=BOTH)
    await settle_everything([other])

    gate.open()
    await stalled

    assert await free(other) == FULL
    await settle_everything(workers)
    assert await unsettled_records(other.database) == []


async def test_clearing_a_move_keeps_the_move_of_a_release_that_came_between(
    workers: list[Worker], other: Worker
) -> None:
    """If it were cleared while the reservation is still RESERVED, the redelivered release would give back twice."""
    slow = workers[0]
    await slow.reserve(order("o", {"a": 2}))
    gate = Gate(slow.stock_items, "write")
    removing = asyncio.create_task(slow.pending_moves.drain())
    await gate.reached()
    await crash(doomed(workers, STOCK_MOVED).release("o"))

    gate.open()
    await removing
    await other.release("o")

    assert await other.free("a") == 10
    await settle_everything(workers)
    assert await unsettled_records(other.database) == []


async def shipped_and_reserved(worker: Worker) -> dict[str, tuple[int, int]]:
    found = {product_id: await worker.stock_items.find_product(product_id) for product_id in FULL}
    return {product_id: (product.shipped, product.reserved) for product_id, product in found.items() if product}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("cleared", [False, True], ids=["move-pending", "move-cleared"])
async def test_a_shipping_whose_worker_died_counts_units_once(
    workers: list[Worker], other: Worker, point: str, cleared: bool
) -> None:
    await other.reserve(order("o", BOTH), order("stays", {"a": 1}))
    if cleared:
        await settle_everything([other])

    await crash(doomed(workers, point).ship("o"))
    assert await discrepancies(other.database) == []
    assert await other.ship("o") == [StockShipped(order_id="o")]
    assert await other.ship("o") == [StockShipped(order_id="o")]

    assert await shipped_and_reserved(other) == {"a": (2, 1), "b": (3, 0)}
    assert await free(other) == {"a": 7, "b": 7}
    assert await other.status("o") == Status.SHIPPED
    await settle_everything([other])
    assert await unsettled_records(other.database) == []
    await other.reserve(order("o", BOTH))
    assert await shipped_and_reserved(other) == {"a": (2, 1), "b": (3, 0)}


@pytest.mark.parametrize(
    ("record", "method"),
    [("stock_items", "read"), ("reservations", "read_existing"), ("stock_items", "write"), ("reservations", "mark")],
    ids=["before-products", "before-reservations", "between-reading-and-writing", "between-stock-and-reservation"],
)
async def test_a_shipping_that_stalls_while_another_worker_completes_it_counts_units_once(
    workers: list[Worker], other: Worker, record: str, method: str
) -> None:
    await other.reserve(order("o", BOTH))
    gate = Gate(getattr(workers[0], record), method)
    stalled = asyncio.create_task(workers[0].ship("o"))
    await gate.reached()
    await other.ship("o")
    await settle_everything([other])

    gate.open()
    await stalled

    assert await shipped_and_reserved(other) == {"a": (2, 0), "b": (3, 0)}
    await settle_everything(workers)
    assert await unsettled_records(other.database) == []


@pytest.mark.parametrize("first", ["shipped", "put back", "both at once"])
async def test_units_that_come_back_are_no_longer_shipped(workers: list[Worker], other: Worker, first: str) -> None:
    await other.reserve(order("o", BOTH))
    if first == "both at once":
        await asyncio.gather(workers[0].ship("o"), other.put_back("o", "r1", {"b": 2}))
    elif first == "shipped":
        await workers[0].ship("o")
        await other.put_back("o", "r1", {"b": 2})
    else:
        await other.put_back("o", "r1", {"b": 2})
        await workers[0].ship("o")
    assert await discrepancies(other.database) == []
    assert await other.put_back("o", "r1", {"b": 2}) == [StockReturned(order_id="o", refund_id="r1")]
    assert await shipped_and_reserved(other) == {"a": (2, 0), "b": (1, 0)}
    assert await free(other) == {"a": 8, "b": 9}
    await other.put_back("o", "r2", {"b": 1})
    assert await shipped_and_reserved(other) == {"a": (2, 0), "b": (0, 0)}
    await settle_everything(workers)
    assert await unsettled_records(other.database) == []


async def test_clearing_a_move_keeps_the_move_of_a_shipping_that_came_between(
    workers: list[Worker], other: Worker
) -> None:
    slow = workers[0]
    await slow.reserve(order("o", {"a": 2}))
    gate = Gate(slow.stock_items, "write")
    removing = asyncio.create_task(slow.pending_moves.drain())
    await gate.reached()
    await crash(doomed(workers, STOCK_MOVED).ship("o"))

    gate.open()
    await removing
    await other.ship("o")

    assert await shipped_and_reserved(other) == {"a": (2, 0), "b": (0, 0)}
    await settle_everything(workers)
    assert await unsettled_records(other.database) == []


async def test_what_is_not_reserved_cannot_be_shipped(other: Worker) -> None:
    await other.reserve(order("refused", {"a": 99}), order("gone", BOTH))
    await other.release("gone")
    for order_id, state in (("refused", "FAILED"), ("gone", "RELEASED"), ("unknown", "no reservation")):
        with pytest.raises(PoisonError, match=state):
            await other.ship(order_id)
    assert await shipped_and_reserved(other) == {"a": (0, 0), "b": (0, 0)}


Work = Callable[[Worker], Awaitable[Sequence[Message]]]


class Perils:
    """Stalls and kills workers at random, before and after any of their reads and writes."""

    METHODS: tuple[tuple[str, str], ...] = (
        ("stock_items", "read"),
        ("stock_items", "write"),
        ("reservations", "read"),
        ("reservations", "decisions"),
        ("reservations", "insert"),
        ("reservations", "mark"),
    )

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.deaths = 0

    def worker(self, worker: Worker) -> Worker:
        """A new process over the same client."""
        exposed = Worker(worker.database, failpoint=nothing_fails, max_wait=0.02)
        for record, method in self.METHODS:
            self._expose(getattr(exposed, record), method)
        return exposed

    def _expose(self, record: object, method: str) -> None:
        original = getattr(record, method)

        async def perilous(*args: Any) -> Any:
            await self._meet()
            result = await original(*args)
            await self._meet()
            return result

        setattr(record, method, perilous)

    async def _meet(self) -> None:
        chance = self.random.random()
        if chance < 0.04:
            self.deaths += 1
            raise SimulatedCrashError
        if chance < 0.4:
            await asyncio.sleep(self.random.uniform(0, 0.01))


class Inbox:
    """A queue that delivers in any order, some messages twice, and redelivers what a dead worker was handling.

    The orders in `delivered` are shipped as soon as their stock is known to be reserved, and a refund puts one unit of
    each back at the same time.
    """

    def __init__(self, messages: Sequence[Message], chance: random.Random, delivered: Collection[str] = ()) -> None:
        self._random = chance
        self._delivered = set(delivered)
        self._one_of = {
            message.order_id: message.items[0].product_id for message in messages if isinstance(message, OrderCreated)
        }
        self.waiting = [*messages, *chance.sample(messages, len(messages) // 4)]
        self._random.shuffle(self.waiting)
        self.answers: list[Message] = []

    async def serve(self, worker: Worker, perils: Perils) -> None:
        alive = perils.worker(worker)
        while self.waiting:
            kind = type(self._random.choice(self.waiting))
            batch = [m for m in self.waiting if type(m) is kind][: self._random.randint(1, 6)]
            self.waiting = [m for m in self.waiting if all(m is not taken for taken in batch)]
            try:
                answers = await self._handle(alive, batch)
                self.answers += answers
                shipping = reserved(answers) & self._delivered
                self._delivered -= shipping
                for order_id in sorted(shipping) * 2:
                    self.waiting += [
                        ShipStock(order_id=order_id),
                        put_back(order_id, "r1", {self._one_of[order_id]: 1}),
                    ]
                await alive.pending_moves.drain()
            except SimulatedCrashError:
                self.waiting += batch
                alive = perils.worker(worker)

    async def _handle(self, worker: Worker, batch: list[Message]) -> Sequence[Message]:
        if isinstance(batch[0], OrderCreated):
            return await worker.handlers.reserve(batch)  # type: ignore[arg-type]
        if isinstance(batch[0], ShipStock):
            return await worker.handlers.ship(batch)  # type: ignore[arg-type]
        if isinstance(batch[0], ReturnStock):
            return await worker.handlers.put_back(batch)  # type: ignore[arg-type]
        return await worker.handlers.release(batch)  # type: ignore[arg-type]


@seeded(cost=5)
async def test_the_books_balance_after_any_crashes_and_stalls(workers: list[Worker], other: Worker, seed: int) -> None:
    perils = Perils(seed)
    stock = {"a": 12, "b": 8, "c": 15}
    await other.stock(stock)
    shapes: list[Lines] = [{"a": 1}, {"a": 1, "b": 2}, {"c": 3, "b": 1}, {"a": 2, "b": 1, "c": 1}]
    orders = {f"o{n}": perils.random.choice(shapes) for n in range(24)}
    released = set(perils.random.sample(sorted(orders), 8))
    messages: list[OrderCreated | ReleaseStock] = [order(order_id, lines) for order_id, lines in orders.items()]
    messages += [release(order_id, perils.random.choice([{}, orders[order_id]])) for order_id in sorted(released)]
    delivered = set(perils.random.sample(sorted(orders.keys() - released), 8))
    inbox = Inbox(messages, perils.random, delivered)

    await asyncio.gather(*(inbox.serve(worker, perils) for worker in (*workers, *workers)))

    assert perils.deaths > 0
    await settle_everything([Worker(other.database)])
    assert await unsettled_records(other.database) == []
    assert_each_order_has_one_end(inbox.answers, orders, released)
    await assert_records_agree(other, inbox.answers, orders, released, delivered, stock)


def assert_each_order_has_one_end(answers: Sequence[Message], orders: dict[str, Lines], released: set[str]) -> None:
    kinds: dict[str, set[type[Message]]] = {order_id: set() for order_id in orders}
    for answer in answers:
        kinds[answer.correlation_id].add(type(answer))
    for order_id, seen in kinds.items():
        assert not {StockReserved, StockReservationFailed} <= seen, order_id
        assert (StockReleased in seen) == (order_id in released)


async def assert_records_agree(
    worker: Worker,
    answers: Sequence[Message],
    orders: dict[str, Lines],
    released: set[str],
    delivered: set[str],
    stock: Lines,
) -> None:
    held: Counter[str] = Counter()
    shipped: Counter[str] = Counter()
    for order_id, lines in orders.items():
        status = await worker.status(order_id)
        kept = Status.SHIPPED if order_id in delivered else Status.RESERVED
        assert status in ((Status.RELEASED, Status.FAILED) if order_id in released else (kept, Status.FAILED))
        if status == Status.RESERVED:
            held.update(lines)
        if status == Status.SHIPPED:
            shipped.update(lines)
            shipped[next(iter(lines))] -= 1  # which came back
    assert outcomes(answers)["StockReserved"] > 0
    assert {p: await worker.free(p) + held[p] + shipped[p] for p in stock} == stock
    products = {p: await worker.stock_items.find_product(p) for p in stock}
    assert {p: product and product.shipped for p, product in products.items()} == {p: shipped[p] for p in stock}
    assert {p: product and product.reserved for p, product in products.items()} == {p: held[p] for p in stock}


async def test_the_sweep_clears_moves_of_a_dead_worker_except_those_of_undecided_orders(
    workers: list[Worker], other: Worker
) -> None:
    await other.reserve(order("gone", {"a": 1}))  # what the worker knew is lost with it
    await crash(doomed(workers, STOCK_MOVED).reserve(order("unacknowledged", {"a": 1})))
    fresh = Worker(other.database)

    await settle_everything([fresh])

    assert (await other.stock_items.read(["a"]))["a"].pending_moves == {"unacknowledged": -1}
    assert await other.free("a") == 8
    assert await discrepancies(other.database) == []

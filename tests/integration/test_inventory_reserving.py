"""Stock under several workers: all or nothing, exactly once, conserved at every moment."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from inventory_service.stock import Description, Kind, Status
from shared.contracts import StockReleased, StockReservationFailed, StockReserved
from shared.contracts.inventory import ServerSpecification
from tests.support.failure_codes import code_of
from tests.support.inventory_worker import (
    Gate,
    Worker,
    discrepancies,
    inventory_database,
    order,
    outcomes,
    refused,
    reserved,
    settle_everything,
    unsettled_records,
    watched,
)
from tests.support.memory_databases import MONGODB
from tests.support.monitoring import counted

pytestmark = pytest.mark.both_databases

WORKERS = 4
RESERVE = "stock.reserve"


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def workers(mongodb_url: str, database_prefix: str) -> AsyncIterator[list[Worker]]:
    async with AsyncExitStack() as stack:
        databases = [
            await stack.enter_async_context(inventory_database(mongodb_url, database_prefix)) for _ in range(WORKERS)
        ]
        yield [Worker(db) for db in databases]


@pytest.fixture
def worker(workers: list[Worker]) -> Worker:
    return workers[0]


async def test_an_order_takes_its_stock_and_reports_it(worker: Worker) -> None:
    await worker.stock({"p": 5})

    answer = await worker.reserve(order("o", {"p": 2}))

    assert answer == [StockReserved(order_id="o")]
    assert await worker.free("p") == 3
    assert await worker.status("o") == Status.RESERVED
    await settle_everything([worker])
    assert await unsettled_records(worker.database) == []


async def test_an_order_that_was_decided_before_is_answered_from_its_reservation(worker: Worker) -> None:
    await worker.stock({"p": 5})
    first, before = await worker.reserve(order("o", {"p": 2})), counted("repeats_answered_total", operation=RESERVE)
    assert await worker.reserve(order("o", {"p": 2})) == first
    assert counted("repeats_answered_total", operation=RESERVE) == before + 1
    assert await worker.free("p") == 3


async def test_an_order_that_one_process_handles_twice_at_once_takes_its_stock_once(worker: Worker) -> None:
    """The second handling has read that there is no reservation when the first makes it, and knows of it by then."""
    await worker.stock({"p": 10})
    recording = Gate(worker.reservations, "insert")
    first = asyncio.create_task(worker.reserve(order("o", {"p": 2})))
    await recording.reached()
    reading = Gate(worker.reservations, "read", after=True)
    second = asyncio.create_task(worker.reserve(order("o", {"p": 2})))
    await reading.reached()
    recording.open()
    await first
    reading.open()
    await second

    assert await worker.free("p") == 8
    await settle_everything([worker])
    assert await unsettled_records(worker.database) == []


@pytest.mark.parametrize("mongodb_url", [MONGODB], indirect=True)  # contention takes long over either
async def test_twenty_batches_from_several_workers_reserve_exactly_the_stock_of_a_hot_product(
    workers: list[Worker],
) -> None:
    await workers[0].stock({"p": 700})
    batches = [[order(f"o{batch}-{n}", {"p": 1}) for n in range(50)] for batch in range(20)]

    async with watched(workers[0].database):
        answers = await asyncio.gather(
            *(workers[number % WORKERS].reserve(*batch) for number, batch in enumerate(batches))
        )

    assert sum((outcomes(answer) for answer in answers), start=outcomes([])) == {
        "StockReserved": 700,
        "StockReservationFailed": 300,
    }
    assert await workers[0].free("p") == 0
    await settle_everything(workers)
    assert await unsettled_records(workers[0].database) == []


async def test_orders_over_several_products_get_all_or_nothing_under_contention(workers: list[Worker]) -> None:
    stock = {"a": 60, "b": 40, "c": 50}
    await workers[0].stock(stock)
    shapes = [{"a": 1, "b": 1}, {"b": 2, "c": 1}, {"c": 1, "a": 2}, {"a": 1, "b": 1, "c": 1}]
    batches = [[order(f"o{batch}-{n}", shapes[(batch + n) % 4]) for n in range(8)] for batch in range(20)]

    async with watched(workers[0].database):
        answers = await asyncio.gather(
            *(workers[number % WORKERS].reserve(*batch) for number, batch in enumerate(batches))
        )

    kept = set().union(*(reserved(answer) for answer in answers))
    free = dict(stock)
    for requested in (requested for batch in batches for requested in batch):
        if requested.order_id in kept:
            for item in requested.items:
                free[item.product_id] -= item.quantity
    assert {product_id: await workers[0].free(product_id) for product_id in stock} == free
    # No order was refused because of units held for orders that were refused later.
    assert not any(all(free[p] >= count for p, count in shape.items()) for shape in shapes)
    await settle_everything(workers)
    assert await unsettled_records(workers[0].database) == []


async def test_two_orders_that_name_two_products_in_opposite_order_never_both_lose(workers: list[Worker]) -> None:
    for attempt in range(20):
        a, b = f"a{attempt}", f"b{attempt}"
        await workers[0].stock({a: 1, b: 1})

        answers = await asyncio.gather(
            workers[0].reserve(order(f"x{attempt}", {a: 1, b: 1})),
            workers[1].reserve(order(f"y{attempt}", {b: 1, a: 1})),
        )

        assert outcomes(answers[0] + answers[1]) == {"StockReserved": 1, "StockReservationFailed": 1}
    await settle_everything(workers)
    assert await unsettled_records(workers[0].database) == []


async def test_an_order_is_not_refused_for_units_that_another_order_is_about_to_return(
    workers: list[Worker],
) -> None:
    first, second, third = workers[:3]
    await first.stock({"a": 1, "b": 1})
    # `both` reads a and b as free and loses b before it writes, so it holds a until it is refused.
    before_write = Gate(first.stock_items, "write")
    both = asyncio.create_task(first.reserve(order("both", {"a": 1, "b": 1})))
    await before_write.reached()
    assert reserved(await second.reserve(order("b-only", {"b": 1}))) == {"b-only"}
    before_refusal = Gate(first.reservations, "insert")
    before_write.open()
    await before_refusal.reached()
    assert await second.free("a") == 0

    a_only = asyncio.create_task(third.reserve(order("a-only", {"a": 1})))
    before_refusal.open()

    assert refused(await both) == {"both": "Insufficient stock for b: asked 1, free 0"}
    assert reserved(await a_only) == {"a-only"}
    await settle_everything(workers)
    assert await unsettled_records(first.database) == []


async def test_an_order_is_not_refused_for_units_that_one_before_it_loses_to_another_worker(
    workers: list[Worker],
) -> None:
    first, second = workers[:2]
    await first.stock({"a": 3})
    # `first` has read that `large` gets everything and nothing is left for `small`.
    before_write = Gate(first.stock_items, "write")
    batch = asyncio.create_task(first.reserve(order("large", {"a": 3}), order("small", {"a": 1})))
    await before_write.reached()
    assert reserved(await second.reserve(order("other", {"a": 1}))) == {"other"}
    before_write.open()

    assert reserved(await batch) == {"small"}
    assert refused(await batch) == {"large": "Insufficient stock for a: asked 3, free 2"}
    await settle_everything(workers)
    assert await unsettled_records(first.database) == []


async def test_an_order_does_not_wait_for_ever_for_units_held_by_a_stalled_worker(
    workers: list[Worker],
) -> None:
    await workers[0].stock({"a": 1})
    hasty = Worker(workers[1].database, max_wait=0.2)
    stalled = Gate(workers[0].reservations, "insert")
    holder = asyncio.create_task(workers[0].reserve(order("holder", {"a": 1})))
    await stalled.reached()

    async with asyncio.timeout(8):  # less than the other workers wait
        answer = await hasty.reserve(order("other", {"a": 1}))

    assert refused(answer) == {"other": "Insufficient stock for a: asked 1, free 0"}
    stalled.open()
    assert reserved(await holder) == {"holder"}
    await settle_everything(workers)
    assert await unsettled_records(workers[0].database) == []


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ({"p": 4}, "Insufficient stock for p: asked 4, free 3"),
        ({"p": 1, "p9": 1}, "Unknown product p9"),
        ({"p": 1, "priced": 1}, "Price of priced is 10, the order says 1"),
        ({"p": 1, "v": 2}, "An order can hold one server at most"),
    ],
)
async def test_a_refused_order_says_why_and_takes_nothing(worker: Worker, lines: dict[str, int], reason: str) -> None:
    await worker.stock({"p": 3, "priced": 3})
    await worker.stock_items.put_product("priced", Description(Kind.GOODS, price=1000))
    await worker.stock_items.put_product("v", Description(Kind.VPS, package="basic"))

    answer = await worker.reserve(order("o", lines))

    assert answer == [StockReservationFailed(order_id="o", reason=reason, code=code_of(reason))]
    assert await worker.status("o") == Status.FAILED
    assert (await worker.free("p"), await worker.free("priced")) == (3, 3)
    assert await unsettled_records(worker.database) == []


async def test_a_server_is_reserved_with_what_to_provision(worker: Worker) -> None:
    await worker.stock_items.put_product("v", Description(Kind.VPS, package="103.181.9", package_id="17", ram=4))
    expected = StockReserved(
        order_id="o",
        fulfilment="vps",
        provisioning=ServerSpecification(package="103.181.9", package_id="17", ram=4),
    )

    assert await worker.reserve(order("o", {"v": 1})) == [expected]
    assert await worker.reserve(order("o", {"v": 1})) == [expected]
    assert await worker.release("o") == [StockReleased(order_id="o")]
    assert await worker.status("o") == Status.RELEASED


async def test_a_redelivered_order_is_answered_as_before_and_moves_nothing(workers: list[Worker]) -> None:
    first, second = workers[:2]
    await first.stock({"p": 3})
    orders = [order("kept", {"p": 2}), order("refused", {"p": 2})]
    before = await first.reserve(*orders)
    await first.stock({"p": 5})  # the refused order would fit now, but its answer stays the same

    for worker in (first, second):
        assert await worker.reserve(*orders) == before
        assert await worker.free("p") == 5
    await settle_everything(workers)
    assert await unsettled_records(first.database) == []


async def test_the_same_order_twice_in_a_batch_counts_once(worker: Worker) -> None:
    await worker.stock({"p": 3})
    twice = order("o", {"p": 2})

    assert await worker.reserve(twice, twice) == [StockReserved(order_id="o")]
    assert await worker.free("p") == 1


async def test_the_same_orders_on_all_workers_at_once_count_once(workers: list[Worker]) -> None:
    await workers[0].stock({"a": 30, "b": 15})
    orders = [order(f"o{n}", {"a": 1, "b": 1} if n % 2 else {"a": 1}) for n in range(40)]

    async with watched(workers[0].database):
        answers = await asyncio.gather(*(worker.reserve(*orders) for worker in workers))

    assert all(sorted(map(str, answer)) == sorted(map(str, answers[0])) for answer in answers)
    assert outcomes(answers[0]) == {"StockReserved": 30, "StockReservationFailed": 10}
    assert await workers[0].free("a") == 0
    await settle_everything(workers)
    assert await unsettled_records(workers[0].database) == []


async def test_setting_and_restocking_during_orders_is_counted(workers: list[Worker]) -> None:
    await workers[0].stock({"p": 100})
    batches = [[order(f"o{batch}-{n}", {"p": 1}) for n in range(10)] for batch in range(20)]

    async def stock_up() -> None:
        for n in range(20):
            await workers[3].stock_items.restock("p", 3)
            await workers[3].stock_items.set_free("p", 40 + n)

    async with watched(workers[0].database):
        answers, _ = await asyncio.gather(
            asyncio.gather(*(workers[number % 3].reserve(*batch) for number, batch in enumerate(batches))), stock_up()
        )

    kept = sum(len(reserved(answer)) for answer in answers)
    product = (await workers[0].stock_items.read(["p"]))["p"]
    assert product.reserved == kept
    await settle_everything(workers)
    assert await unsettled_records(workers[0].database) == []


async def test_a_release_gives_everything_back_once(workers: list[Worker]) -> None:
    first, second = workers[:2]
    await first.stock({"a": 5, "b": 5})
    await first.reserve(order("o", {"a": 2, "b": 3}))

    answers = [
        await first.release("o"),
        await second.release("o", lines={"a": 2, "b": 3}),
        *await asyncio.gather(first.release("o"), second.release("o")),
    ]

    assert answers == [[StockReleased(order_id="o")]] * 4
    assert (await first.free("a"), await first.free("b")) == (5, 5)
    assert await first.status("o") == Status.RELEASED
    await settle_everything(workers)
    assert await unsettled_records(first.database) == []


async def test_releases_of_the_same_orders_on_all_workers_return_units_once(workers: list[Worker]) -> None:
    await workers[0].stock({"a": 40, "b": 40})
    ids = [f"o{n}" for n in range(30)]
    await workers[0].reserve(*(order(order_id, {"a": 1, "b": 1}) for order_id in ids))

    async with watched(workers[0].database):
        await asyncio.gather(*(worker.release(*ids) for worker in workers))

    assert (await workers[0].free("a"), await workers[0].free("b")) == (40, 40)
    await settle_everything(workers)
    assert await unsettled_records(workers[0].database) == []


async def test_a_release_that_overtakes_its_order_leaves_a_tombstone_that_the_order_runs_into(worker: Worker) -> None:
    await worker.stock({"p": 5})

    assert await worker.release("o", lines={"p": 2}) == [StockReleased(order_id="o")]
    assert await worker.status("o") == Status.RELEASED
    assert await worker.reserve(order("o", {"p": 2})) == [StockReleased(order_id="o")]
    assert await worker.free("p") == 5
    assert await unsettled_records(worker.database) == []


async def test_releasing_a_refused_order_changes_nothing(worker: Worker) -> None:
    await worker.stock({"p": 1})
    await worker.reserve(order("o", {"p": 2}))

    assert await worker.release("o", lines={"p": 2}) == [StockReleased(order_id="o")]
    assert await worker.status("o") == Status.FAILED
    assert await worker.free("p") == 1


async def test_releases_racing_their_orders_leave_nothing_held(workers: list[Worker]) -> None:
    await workers[0].stock({"a": 100, "b": 100})
    lines = {"a": 1, "b": 2}
    ids = [f"o{n}" for n in range(40)]

    async with watched(workers[0].database):
        await asyncio.gather(
            *(workers[n % 2].reserve(order(order_id, lines)) for n, order_id in enumerate(ids)),
            *(workers[2 + n % 2].release(order_id, lines=lines) for n, order_id in enumerate(ids)),
        )

    assert {await workers[0].status(order_id) for order_id in ids} == {Status.RELEASED}
    await settle_everything(workers)
    assert (await workers[0].free("a"), await workers[0].free("b")) == (100, 100)
    assert await unsettled_records(workers[0].database) == []


async def test_the_books_balance_after_every_order_and_release(worker: Worker) -> None:
    await worker.stock({"a": 3, "b": 2})
    steps = [
        worker.reserve(order("1", {"a": 1, "b": 1})),
        worker.reserve(order("2", {"a": 1, "b": 2})),
        worker.release("1"),
        worker.reserve(order("3", {"a": 1, "b": 2}), order("4", {"a": 2})),
        worker.release("3", "4", "2"),
    ]
    for step in steps:
        await step
        assert await discrepancies(worker.database) == []
    assert (await worker.free("a"), await worker.free("b")) == (3, 2)

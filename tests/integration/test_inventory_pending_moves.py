"""Clearing of pending moves: with the next write, when idle, by the sweep, and at the end of the process."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY
from pymongo.errors import AutoReconnect

from inventory_service import pending_moves as pending_moves_module
from inventory_service.pending_moves import PendingMoves
from inventory_service.stock import Status, take
from shared.clock import utc_now
from tests.support.eventually import eventually
from tests.support.inventory_worker import Gate, Worker, inventory_database, order, unsettled_records
from tests.support.tasks import end_tasks

pytestmark = pytest.mark.both_databases


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def worker(mongodb_url: str, database_prefix: str) -> AsyncIterator[Worker]:
    async with inventory_database(mongodb_url, database_prefix) as db:
        worker = Worker(db)
        await worker.stock({"p": 10, "q": 10})
        yield worker


async def pending(worker: Worker, product_id: str = "p") -> set[str]:
    return set((await worker.stock_items.read([product_id]))[product_id].pending_moves)


@asynccontextmanager
async def flushing(worker: Worker) -> AsyncIterator[None]:
    task = asyncio.create_task(worker.pending_moves.flush())
    try:
        yield
    finally:
        await end_tasks(task)


async def test_the_next_write_of_a_product_clears_the_moves_of_decided_orders(worker: Worker) -> None:
    await worker.reserve(order("1", {"p": 1}))
    assert await pending(worker) == {"1"}

    await worker.reserve(order("2", {"p": 1}))

    assert await pending(worker) == {"2"}
    assert await worker.free("p") == 8


async def test_an_idle_moment_clears_all_moves(worker: Worker) -> None:
    async with flushing(worker):
        await worker.reserve(order("1", {"p": 1}), order("2", {"p": 1, "q": 2}))
        await worker.release("2")

        await eventually(lambda: leftovers_gone(worker), within=60)
    assert (await worker.free("p"), await worker.free("q")) == (9, 10)


async def test_moves_that_no_other_write_clears_do_not_linger_under_load(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_moves_module, "LINGER_SECONDS", 0.5)
    worker = Worker(worker.database, idle=0.4)
    await worker.stock({"p": 10_000})
    async with flushing(worker):
        await worker.reserve(order("lonely", {"q": 1}))
        deadline = time.monotonic() + 60
        number = 0
        while await pending(worker, "q"):  # never idle for 0.4 s
            assert time.monotonic() < deadline
            number += 1
            await worker.reserve(order(f"o{number}", {"p": 1}))


async def test_an_outage_only_delays_the_clearing(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    await worker.reserve(order("1", {"p": 1}))
    failures = [AutoReconnect("away"), ValueError("a fault")]
    read = worker.stock_items.read

    async def failing_read(ids: object) -> object:
        if failures:
            raise failures.pop()
        return await read(ids)  # type: ignore[arg-type]

    monkeypatch.setattr(worker.stock_items, "read", failing_read)
    async with flushing(worker):
        await eventually(lambda: not failures and leftovers_gone(worker), within=60)


async def test_the_end_of_the_process_clears_all_moves(worker: Worker) -> None:
    await worker.reserve(order("1", {"p": 1}), order("2", {"q": 1}))

    await worker.pending_moves.drain()

    assert await unsettled_records(worker.database) == []


async def test_the_flush_clears_what_the_sweep_finds(worker: Worker) -> None:
    await worker.reserve(order("1", {"p": 1}))
    restarted = Worker(worker.database)
    restarted.pending_moves = PendingMoves(
        restarted.stock_items, restarted.reservations, utc_now, idle=0.01, sweep_interval=0.01
    )
    sweeping = asyncio.create_task(restarted.pending_moves.sweep())
    async with flushing(restarted):
        await eventually(lambda: leftovers_gone(worker), within=60)
    await end_tasks(sweeping)


async def test_the_sweep_ignores_recent_moves(worker: Worker) -> None:
    await worker.reserve(order("1", {"p": 1}))
    restarted = PendingMoves(worker.stock_items, worker.reservations, utc_now, idle=1, sweep_interval=60)

    await restarted.sweep_once()

    assert restarted.known_statuses("p") == {}


async def test_a_move_of_an_order_that_stays_undecided_is_reported(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_moves_module, "OVERDUE_SECONDS", -1.0)
    await worker.database["products"].update_one(
        {"_id": "p"}, {"$set": {"moving": {"lost": -1}, "quantity": 9, "markedSince": utc_now() - timedelta(hours=1)}}
    )

    await worker.pending_moves.sweep_once()

    assert REGISTRY.get_sample_value("inventory_overdue_marks") == 1
    assert await pending(worker) == {"lost"}


async def leftovers_gone(worker: Worker) -> bool:
    return await unsettled_records(worker.database) == []


async def test_units_of_a_refused_order_come_back_even_if_the_product_changes_meanwhile(worker: Worker) -> None:
    before = (await worker.stock_items.read(["p"]))["p"]
    await worker.stock_items.write([take(before, {"refused": 4})])
    worker.pending_moves.remember("p", "refused", Status.FAILED)
    gate = Gate(worker.stock_items, "write")
    clearing = asyncio.create_task(worker.pending_moves.clear(["p"]))
    await gate.reached()
    await worker.stock_items.restock("p", 5)

    gate.open()
    await clearing

    assert await worker.free("p") == 15
    assert await unsettled_records(worker.database) == []


async def test_a_release_during_the_clearing_of_a_reservation_is_cleared_as_well(worker: Worker) -> None:
    await worker.reserve(order("o", {"p": 4}))
    before_read = Gate(worker.stock_items, "read")
    clearing = asyncio.create_task(worker.pending_moves.clear(["p"]))
    await before_read.reached()
    await worker.release("o")

    before_read.open()
    await clearing
    await worker.pending_moves.drain()

    assert await worker.free("p") == 10
    assert await unsettled_records(worker.database) == []

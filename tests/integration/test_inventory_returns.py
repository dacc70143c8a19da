"""Units of refunds come back into free stock once, whatever crashes, comes again or happens at the same time."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from inventory_service.stock import Status
from shared.contracts import Message, StockReturned
from shared.database import Database
from shared.errors import PoisonError
from shared.failpoints import RESERVATION_RECORDED, STOCK_MOVED, SimulatedCrashError
from tests.support.inventory_worker import (
    Worker,
    crash_at,
    discrepancies,
    inventory_database,
    order,
    put_back,
    settle_everything,
    unsettled_records,
    watched,
)

pytestmark = pytest.mark.both_databases

LINES = {"p": 3, "q": 2}


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def db(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with inventory_database(mongodb_url, database_prefix) as db:
        yield db


@pytest.fixture
async def worker(db: Database) -> Worker:
    """A worker with an order that has three of ten units of p and two of ten of q."""
    worker = Worker(db)
    await worker.stock({"p": 10, "q": 10})
    await worker.reserve(order("o", LINES))
    return worker


async def free(worker: Worker) -> tuple[int, int]:
    return await worker.free("p"), await worker.free("q")


def returned(refund_id: str) -> list[Message]:
    return [StockReturned(order_id="o", refund_id=refund_id)]


async def test_units_come_back_once_and_the_order_keeps_the_others(worker: Worker, db: Database) -> None:
    for _ in range(2):
        assert await worker.put_back("o", "r1", {"p": 1, "q": 2}) == returned("r1")
        assert await free(worker) == (8, 10)
    assert await worker.put_back("o", "r2", {"p": 2}) == returned("r2")
    assert await free(worker) == (10, 10)
    assert await worker.status("o") == Status.RESERVED
    await settle_everything([worker])
    assert await unsettled_records(db) == []


@pytest.mark.parametrize("lines", [{"p": 4}, {"p": 1, "x": 1}], ids=["too many", "not ordered"])
async def test_more_than_the_order_has_is_never_returned(worker: Worker, lines: dict[str, int]) -> None:
    await worker.put_back("o", "r1", {"q": 1})
    with pytest.raises(PoisonError, match="cannot come back"):
        await worker.put_back("o", "r2", lines)
    assert await free(worker) == (7, 9)


async def test_a_return_for_an_order_without_stock_is_poison(worker: Worker) -> None:
    with pytest.raises(PoisonError, match="has no stock"):
        await worker.put_back("unknown", "r1", {"p": 1})


async def test_a_return_of_a_released_order_changes_nothing(worker: Worker) -> None:
    await worker.release("o", lines=LINES)
    assert await worker.put_back("o", "r1", {"p": 1}) == returned("r1")
    assert await free(worker) == (10, 10)


async def test_a_release_returns_what_the_refunds_have_left(worker: Worker, db: Database) -> None:
    await worker.put_back("o", "r1", {"p": 3, "q": 1})
    await worker.release("o", lines=LINES)
    assert await free(worker) == (10, 10)
    await settle_everything([worker])
    assert await unsettled_records(db) == []


@pytest.mark.parametrize("point", [STOCK_MOVED, RESERVATION_RECORDED])
@pytest.mark.parametrize("then", ["the same again", "a release", "another refund"])
async def test_a_crash_between_two_steps(worker: Worker, db: Database, point: str, then: str) -> None:
    crashing = Worker(db, crash_at(point))
    with pytest.raises(SimulatedCrashError):
        await crashing.put_back("o", "r1", {"p": 1, "q": 1})
    assert await discrepancies(db) == []
    if then == "a release":
        await worker.release("o", lines=LINES)
    if then == "another refund":
        await worker.put_back("o", "r2", {"p": 1})
    assert await worker.put_back("o", "r1", {"p": 1, "q": 1}) == returned("r1")
    assert await free(worker) == {"a release": (10, 10), "another refund": (9, 9)}.get(then, (8, 9))
    await settle_everything([worker, crashing])
    assert await unsettled_records(db) == []


async def test_a_sweep_clears_the_moves_of_a_killed_worker(worker: Worker, db: Database) -> None:
    with pytest.raises(SimulatedCrashError):
        await Worker(db, crash_at(RESERVATION_RECORDED)).put_back("o", "r1", {"p": 1})
    await settle_everything([Worker(db)])
    assert await unsettled_records(db) == []
    assert await free(worker) == (8, 8)


async def test_returns_and_releases_at_once_balance_at_every_moment(worker: Worker, db: Database) -> None:
    others = [Worker(db), Worker(db)]
    orders = [f"o{number}" for number in range(8)]
    await worker.stock({"p": 100, "q": 100})
    await worker.reserve(*(order(order_id, LINES) for order_id in orders))
    async with watched(db):
        await asyncio.gather(
            *(each.put_back(order_id, f"{order_id}-1", {"p": 1, "q": 1}) for order_id in orders for each in others),
            *(others[0].put_back(order_id, f"{order_id}-2", {"p": 2}) for order_id in orders),
            *(worker.release(order_id, lines=LINES) for order_id in orders[:4]),
        )
        await settle_everything([worker, *others])
    assert await unsettled_records(db) == []
    # Four are released as a whole, and the others have one unit of q left each.
    assert await free(worker) == (100, 96)


async def test_one_batch_may_hold_several_refunds_of_an_order(worker: Worker) -> None:
    commands = [put_back("o", "r1", {"p": 1}), put_back("o", "r2", {"p": 2}), put_back("o", "r1", {"p": 1})]
    answers = await worker.handlers.put_back(commands)
    assert list(answers) == returned("r1") + returned("r2")
    assert await free(worker) == (10, 8)

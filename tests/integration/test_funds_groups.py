"""Groups of operations on funds: what shares a transaction, and that no operation decides another's outcome."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar

import pytest
from prometheus_client import REGISTRY

from payment_service.ledger.refusals import LedgerRefusalError
from payment_service.ledger.transaction_errors import ContentionError
from payment_service.ledger.transactions import Transactions
from payment_service.ledger.unit_of_work import Reference, UnitOfWork
from shared.database import Database
from tests.support.builders import connected, new_id
from tests.support.turns import turn_taken

pytestmark = pytest.mark.both_databases

COLLECTION = "counters"
_number: ContextVar[int] = ContextVar("_number")
A, B = Reference(COLLECTION, "a"), Reference(COLLECTION, "b")


@pytest.fixture
async def database(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_payments") as database:
        await database[COLLECTION].insert_many([{"_id": name, "count": 0} for name in "ab"])
        yield database


@pytest.fixture
def transactions(database: Database) -> Transactions:
    return Transactions(database, limit_seconds=120)


async def increment(unit: UnitOfWork, name: str = "a") -> int:
    """Increment a counter and return its new value."""
    counter = await unit.get(COLLECTION, name)
    assert counter is not None
    unit.update(COLLECTION, counter | {"count": counter["count"] + 1})
    return int(counter["count"] + 1)


async def refused(unit: UnitOfWork) -> int:
    await increment(unit)
    raise LedgerRefusalError("no")


async def faulty(unit: UnitOfWork) -> int:
    await increment(unit)
    raise ZeroDivisionError


async def unstorable(unit: UnitOfWork) -> int:
    """Insert what the driver cannot encode: the error comes only when the group is written."""
    unit.insert(COLLECTION, {"_id": new_id(), "value": object()})
    return await increment(unit)


async def count(database: Database, name: str = "a") -> int:
    counter = await database[COLLECTION].find_one({"_id": name})
    assert counter is not None
    return int(counter["count"])


def groups() -> tuple[float, float]:
    """Return the number of transactions so far, and of the operations in them."""
    return tuple(REGISTRY.get_sample_value(f"transaction_group_size_{part}") or 0.0 for part in ("count", "sum"))  # type: ignore[return-value]


async def in_one_group(
    transactions: Transactions, *works: Callable[[UnitOfWork], Awaitable[int]], touches: tuple[Reference, ...] = (A,)
) -> list[int | BaseException]:
    """Let the operations wait for the same turn, and return their outcomes."""
    async with turn_taken(transactions, *touches):
        running = [asyncio.create_task(transactions.run("counted", work, touches)) for work in works]
        await asyncio.sleep(0)
    return await asyncio.gather(*running, return_exceptions=True)


async def test_operations_that_wait_for_one_account_share_a_transaction(
    database: Database, transactions: Transactions
) -> None:
    before = groups()
    assert await in_one_group(transactions, *[increment] * 20) == list(range(1, 21))
    transactions_since, operations_since = (now - then for now, then in zip(groups(), before, strict=True))
    # One is the operation that the others waited for.
    assert (transactions_since, operations_since) == (2, 21)
    assert await count(database) == 20


async def test_a_group_has_a_largest_size(database: Database) -> None:
    before = groups()
    await in_one_group(Transactions(database, limit_seconds=120, largest_group=8), *[increment] * 20)
    assert groups()[0] - before[0] == 1 + 3
    assert await count(database) == 20


async def test_a_refusal_and_a_fault_do_not_touch_their_neighbours(
    database: Database, transactions: Transactions
) -> None:
    first, no, fault, last = await in_one_group(transactions, increment, refused, faulty, increment)
    assert (first, last) == (1, 2)
    assert isinstance(no, LedgerRefusalError)
    assert isinstance(fault, ZeroDivisionError)
    assert await count(database) == 2


async def test_an_operation_that_cannot_be_written_fails_alone(database: Database, transactions: Transactions) -> None:
    outcomes = await in_one_group(transactions, *[increment] * 3, unstorable, *[increment] * 3)
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == list(range(1, 7))
    assert isinstance(outcomes[3], Exception)
    assert await count(database) == 6


async def test_an_account_that_is_kept_busy_elsewhere_holds_up_only_its_own_operations(
    database: Database, transactions: Transactions
) -> None:
    """As when a process is killed in the middle of a transaction: its documents stay locked for a while."""

    async def increment_b(unit: UnitOfWork) -> int:
        return await increment(unit, "b")

    async def both(unit: UnitOfWork) -> int:
        return await increment(unit) + await increment_b(unit)

    async with database.client.start_session() as other:
        await other.start_transaction()
        await database[COLLECTION].update_one({"_id": "a"}, {"$inc": {"count": 1}}, session=other)
        async with turn_taken(transactions, A, B):
            free, crossing, busy = (
                asyncio.create_task(transactions.run("counted", work, touches))
                for work, touches in ((increment_b, [B]), (both, [A, B]), (increment, [A]))
            )
            await asyncio.sleep(0)
        assert await free == 1
        assert not crossing.done()
        await other.abort_transaction()
    assert (await crossing, await busy) == (3, 2)


@pytest.mark.parametrize("leaves", ["late", "cancelled"])
async def test_an_operation_that_waits_no_longer_holds_up_nobody(
    database: Database, transactions: Transactions, leaves: str
) -> None:
    async def increment_b(unit: UnitOfWork) -> int:
        return await increment(unit, "b")

    async with turn_taken(transactions, A):
        within = 0.05 if leaves == "late" else None
        crossing = asyncio.create_task(transactions.run("counted", increment, [A, B], within=within))
        await asyncio.sleep(0)
        behind = asyncio.create_task(transactions.run("counted", increment_b, [B]))
        await asyncio.sleep(0)
        assert not behind.done()
        if leaves == "cancelled":
            crossing.cancel()
        assert await asyncio.wait_for(behind, 60) == 1  # while A is still busy
    (outcome,) = await asyncio.gather(crossing, return_exceptions=True)
    assert isinstance(outcome, ContentionError if leaves == "late" else asyncio.CancelledError)
    assert await count(database) == 0


async def test_operations_of_two_processes_on_one_account_all_succeed_once(
    mongodb_url: str, database: Database
) -> None:
    async with connected(mongodb_url, database.name) as another:
        processes = [Transactions(own, limit_seconds=120) for own in (database, another)]
        counted = await asyncio.gather(*(each.run("counted", increment, [A]) for each in processes for _ in range(50)))
    assert sorted(counted) == list(range(1, 101))
    assert await count(database) == 100


async def test_what_a_refusal_leaves_is_committed_with_its_group(
    database: Database, transactions: Transactions
) -> None:
    def note(unit: UnitOfWork, refusal: LedgerRefusalError) -> None:
        unit.insert("notes", {"_id": "refused", "detail": refusal.detail})

    with pytest.raises(LedgerRefusalError):
        await transactions.run("counted", refused, [A], on_refusal=note)
    assert await database["notes"].find_one() == {"_id": "refused", "detail": "no"}
    assert await count(database) == 0


async def test_a_group_runs_in_the_context_of_its_first_operation(transactions: Transactions) -> None:
    """Its log lines and spans belong to a request that it carries out, not to one that has ended."""

    async def seen(_unit: UnitOfWork) -> int:
        return _number.get()

    async def run_as(number: int) -> int:
        _number.set(number)
        return await transactions.run("counted", seen, [A])

    async with turn_taken(transactions, A):
        running = [asyncio.create_task(run_as(number)) for number in (1, 2)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*running) == [1, 1]

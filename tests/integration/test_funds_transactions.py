"""Transactions: what is retried, what is raised, and that no transaction stays open."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from structlog.testing import capture_logs

from payment_service.ledger.orphaned_sessions import COLLECTION, OrphanedSessions
from payment_service.ledger.refusals import LedgerRefusalError
from payment_service.ledger.stored_documents import Session
from payment_service.ledger.transaction_errors import ContentionError, UnknownCommitError
from payment_service.ledger.transactions import Transactions
from payment_service.ledger.unit_of_work import Reference, UnitOfWork
from shared import slow_waits
from shared.database import Database
from shared.errors import DatabaseUnavailableError
from tests.support.builders import connected, new_id
from tests.support.eventually import eventually
from tests.support.turns import turn_taken

pytestmark = pytest.mark.both_databases

DRIVERS = ["pymongo", "motor"]
Work = Callable[[UnitOfWork], Awaitable[int]]
COUNTERS = [Reference("counters", name) for name in "ab"]
ONE_COUNTER = COUNTERS[:1]


@pytest.fixture
async def database(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_payments") as database:
        await database["counters"].insert_many([{"_id": name, "count": 0} for name in "ab"])
        yield database


def incrementing(*names: str) -> Work:
    """Return work that increments the counters, in that order."""

    async def work(unit: UnitOfWork) -> int:
        for name in names:
            counter = await unit.get("counters", name)
            assert counter is not None
            unit.update("counters", counter | {"count": counter["count"] + 1})
        return len(names)

    return work


async def increment(database: Database, session: Session | None = None) -> None:
    """Increment a counter as another process does."""
    await database["counters"].update_one({"_id": "a"}, {"$inc": {"count": 1}}, session=session)


async def count(database: Database, name: str = "a") -> int:
    counter = await database["counters"].find_one({"_id": name})
    assert counter is not None
    return int(counter["count"])


def metric(name: str, operation: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"operation": operation, **labels}) or 0.0


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_conflict_with_another_process_is_retried(mongodb_url: str, database: Database, driver: str) -> None:
    if driver == "motor":
        pytest.importorskip("motor")
    operation, attempts = new_id(), 0
    async with connected(mongodb_url, database.name, driver) as own, database.client.start_session() as other:
        await other.start_transaction()
        await increment(database, other)

        async def work(unit: UnitOfWork) -> int:
            nonlocal attempts
            attempts += 1
            if attempts == 3:
                await other.commit_transaction()
            return await incrementing("a")(unit)

        assert await Transactions(own).run(operation, work) == 1
    # The third attempt's snapshot may be older than the other commit; the fourth attempt succeeds in any case.
    assert attempts in (3, 4)
    assert await count(database) == 2
    assert metric("transaction_attempts_total", operation) == attempts
    assert metric("transaction_retries_total", operation, reason="conflict") == attempts - 1
    assert metric("transaction_duration_seconds_count", operation) == 1
    assert metric("concurrent_operations", operation) == 0


async def test_a_conflict_that_does_not_end_is_given_up_with_nothing_changed(database: Database) -> None:
    operation = new_id()
    async with database.client.start_session() as other:
        await other.start_transaction()
        await increment(database, other)
        with pytest.raises(ContentionError, match="nothing was changed"):
            await Transactions(database, limit_attempts=3).run(operation, incrementing("b", "a"))
    assert metric("transaction_attempts_total", operation) == 3
    assert metric("transaction_failures_total", operation, reason="contention") == 1
    assert (await count(database, "a"), await count(database, "b")) == (0, 0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LedgerRefusalError("no"), "refused"),
        (ZeroDivisionError(), "error"),
    ],
)
async def test_any_other_error_is_raised_at_once_with_everything_undone(
    database: Database, error: Exception, reason: str
) -> None:
    operation, attempts = new_id(), 0

    async def work(unit: UnitOfWork) -> int:
        nonlocal attempts
        attempts += 1
        await incrementing("a")(unit)
        raise error

    with pytest.raises(type(error)):
        await Transactions(database).run(operation, work)
    assert attempts == 1
    assert metric("transaction_failures_total", operation, reason=reason) == 1
    # The transaction has ended: its document is not locked.
    await increment(database)
    assert await count(database) == 1


async def test_a_cancelled_operation_does_not_begin_while_it_waits(database: Database) -> None:
    operation, transactions = new_id(), Transactions(database, limit_seconds=120)
    async with turn_taken(transactions, *ONE_COUNTER):
        task = asyncio.create_task(transactions.run(operation, incrementing("a"), ONE_COUNTER))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert metric("transaction_failures_total", operation, reason="cancelled") == 1
    assert await transactions.run(new_id(), incrementing("a"), ONE_COUNTER) == 1
    assert await count(database) == 1


async def test_a_cancelled_operation_that_runs_leaves_nothing_open(database: Database) -> None:
    transactions = Transactions(database)
    reached, free = asyncio.Event(), asyncio.Event()

    async def work(unit: UnitOfWork) -> int:
        reached.set()
        await free.wait()
        return await incrementing("a")(unit)

    task = asyncio.create_task(transactions.run(new_id(), work, ONE_COUNTER))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    free.set()
    await transactions.drain()
    assert await Transactions(database, limit_attempts=1).run(new_id(), incrementing("a")) == 1
    assert await count(database) == 2


async def test_a_transaction_reads_one_snapshot(database: Database) -> None:
    async def work(unit: UnitOfWork) -> int:
        await unit.get("counters", "b")
        await increment(database)
        counter = await unit.get("counters", "a")
        assert counter is not None
        return int(counter["count"])

    assert await Transactions(database).run(new_id(), work) == 0
    assert await count(database) == 1


async def test_operations_of_one_process_on_one_account_do_not_conflict(database: Database) -> None:
    operation, transactions = new_id(), Transactions(database, limit_seconds=120)
    crossing = [incrementing("a", "b"), incrementing("b", "a")] * 20
    await asyncio.gather(*(transactions.run(operation, work, COUNTERS) for work in crossing))
    assert (await count(database, "a"), await count(database, "b")) == (40, 40)
    assert metric("transaction_attempts_total", operation) == 40


async def test_operations_that_cross_between_processes_make_progress(mongodb_url: str, database: Database) -> None:
    async with connected(mongodb_url, database.name) as another:
        processes = [Transactions(own, limit_seconds=120) for own in (database, another)]
        await asyncio.gather(
            *(
                transactions.run("crossing", incrementing(*names), COUNTERS)
                for transactions in processes
                for names in [("a", "b"), ("b", "a")] * 10
            )
        )
    assert (await count(database, "a"), await count(database, "b")) == (40, 40)


async def test_a_database_that_is_away_is_a_transient_error() -> None:
    mongo: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient("mongodb://127.0.0.1:1", serverSelectionTimeoutMS=50)
    async with mongo:
        database = mongo["nowhere"]
        with pytest.raises(DatabaseUnavailableError):
            await Transactions(database, limit_attempts=2).run(new_id(), incrementing("a"))


# --- Lost answers to commits, from a fake session: no server loses them on request. ---


class LosingSession:
    """A session that loses the answers to its first commits."""

    def __init__(self, *lost: str) -> None:
        self._lost = list(lost)
        self.commits = self.aborts = self.begun = 0
        self.ended = False

    async def start_transaction(self, **_options: Any) -> None:
        self.begun += 1

    async def commit_transaction(self) -> None:
        self.commits += 1
        if self._lost:
            error = AutoReconnect("connection closed")
            error._add_error_label(self._lost.pop(0))
            raise error

    async def abort_transaction(self) -> None:
        self.aborts += 1

    async def end_session(self) -> None:
        self.ended = True


class LosingClient:
    """A client whose every session is the given one."""

    def __init__(self, session: LosingSession) -> None:
        self.client = self
        self._session = session

    def start_session(self) -> LosingSession:
        return self._session


async def run_over(session: LosingSession, **limits: Any) -> int:
    async def work(_unit: UnitOfWork) -> int:
        return 7

    transactions = Transactions(LosingClient(session), **limits)  # type: ignore[arg-type]
    try:
        return await transactions.run(new_id(), work)
    finally:
        await transactions.drain()


async def test_a_commit_without_an_answer_is_retried_alone() -> None:
    session = LosingSession(*["UnknownTransactionCommitResult"] * 2)
    assert await run_over(session) == 7
    assert (session.begun, session.commits, session.aborts, session.ended) == (1, 3, 0, True)


async def test_a_commit_that_failed_is_retried_with_the_work() -> None:
    session = LosingSession("UnknownTransactionCommitResult", "TransientTransactionError")
    assert await run_over(session) == 7
    assert (session.begun, session.commits, session.ended) == (2, 3, True)


async def test_a_commit_that_is_never_answered_is_reported_as_unknown() -> None:
    session = LosingSession(*["UnknownTransactionCommitResult"] * 100)
    with pytest.raises(UnknownCommitError):
        await run_over(session, limit_seconds=0.05)
    assert session.ended


# --- Waiting. ---


async def test_a_wait_for_a_turn_is_measured_and_logged_while_it_lasts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_waits, "LOGGED_AT_SECONDS", (0.01, 0.02))
    operation, transactions = new_id(), Transactions(database)

    with capture_logs() as logs:

        async def both_lines() -> bool:
            return len(logs) == 2

        async with turn_taken(transactions, *ONE_COUNTER):
            waiting = asyncio.create_task(transactions.run(operation, incrementing("a"), ONE_COUNTER, within=60))
            await eventually(both_lines, 60, "both lines")
        assert await waiting == 1
    assert [(line["operation"], line["waited_seconds"]) for line in logs] == [(operation, 0.01), (operation, 0.02)]
    assert metric("transaction_lock_wait_seconds_count", operation) == 1
    assert metric("transaction_lock_wait_seconds_sum", operation) >= 0.02


# --- Transactions of killed processes. ---


async def test_the_transaction_of_a_killed_process_is_ended_by_the_next_one(
    mongodb_url: str, database: Database
) -> None:
    async with connected(mongodb_url, database.name) as killed:
        sessions = OrphanedSessions(killed)
        session = killed.client.start_session()
        await sessions.register(session)
        await session.start_transaction(read_concern=ReadConcern("snapshot"), read_preference=ReadPreference.PRIMARY)
        await increment(killed, session)

        patient = OrphanedSessions(database, silence_seconds=3600)
        assert await patient.end_orphaned() == 0
        with pytest.raises(ContentionError):
            await Transactions(database, limit_attempts=1).run(new_id(), incrementing("a"))

        strict = OrphanedSessions(database, silence_seconds=0.01)
        assert await eventually(strict.end_orphaned, 60) == 1
        transactions = Transactions(database, limit_attempts=1, on_session=strict.register)
        assert await transactions.run(new_id(), incrementing("a")) == 1
        with pytest.raises(PyMongoError) as raised:
            await session.commit_transaction()
        assert raised.value.has_error_label("TransientTransactionError")
        await session.end_session()
    assert await count(database) == 1


async def test_a_process_lists_each_of_its_sessions_and_removes_itself(database: Database) -> None:
    sessions = OrphanedSessions(database)
    transactions = Transactions(database, on_session=sessions.register)
    await asyncio.gather(
        *(transactions.run("listed", incrementing("a"), [Reference("others", str(n))]) for n in range(5))
    )
    (process,) = await database[COLLECTION].find().to_list()
    assert 1 <= len(process["sessions"]) <= 5
    await sessions.heartbeat()
    assert (await database[COLLECTION].find_one({}))["sessions"] == process["sessions"]  # type: ignore[index]
    await sessions.deregister()
    assert await database[COLLECTION].count_documents({}) == 0


async def test_a_listed_session_is_not_written_again(database: Database) -> None:
    sessions = OrphanedSessions(database)
    async with database.client.start_session() as session:
        await asyncio.gather(*(sessions.register(session) for _ in range(20)))
        before = await database[COLLECTION].find_one()
        await sessions.register(session)
        assert await database[COLLECTION].find_one() == before


async def test_a_session_whose_abort_could_not_be_sent_is_ended_by_its_own_process(database: Database) -> None:
    sessions = OrphanedSessions(database)
    session = database.client.start_session()
    await session.start_transaction(read_concern=ReadConcern("snapshot"), read_preference=ReadPreference.PRIMARY)
    await increment(database, session)
    lsid = session.session_id["id"]
    await sessions.end_doubtful()
    with pytest.raises(ContentionError):
        await Transactions(database, limit_attempts=1).run(new_id(), incrementing("a"))

    sessions.mark_doubtful(lsid)
    await sessions.end_doubtful()
    await Transactions(database, limit_attempts=1).run(new_id(), incrementing("a"))
    with pytest.raises(PyMongoError):
        await session.commit_transaction()
    await session.end_session()
    assert await count(database) == 1


async def test_an_interrupted_operation_is_retried(database: Database) -> None:
    """Another process may take this one for dead and end its sessions in the middle of a statement."""
    attempts = 0

    async def work(unit: UnitOfWork) -> int:
        nonlocal attempts
        attempts += 1
        await incrementing("a")(unit)
        if attempts == 1:
            raise OperationFailure("interrupted", code=11601)
        return attempts

    assert await Transactions(database).run(new_id(), work) == 2
    assert await count(database) == 1


async def test_an_operation_of_unknown_outcome_reports_its_session(database: Database) -> None:
    doubtful: list[object] = []
    transactions = Transactions(database, on_unknown_outcome=doubtful.append)

    async def away(unit: UnitOfWork) -> None:
        await incrementing("a")(unit)
        raise DatabaseUnavailableError("no answer")

    async def refused(_unit: UnitOfWork) -> None:
        raise ValueError("no")

    with pytest.raises(DatabaseUnavailableError):
        await transactions.run(new_id(), away)
    assert len(doubtful) == 1
    with pytest.raises(ValueError, match="no"):
        await transactions.run(new_id(), refused)
    assert len(doubtful) == 1


async def test_a_registration_without_an_answer_respects_the_limit(database: Database) -> None:
    async def never(_session: Session) -> None:
        await asyncio.Event().wait()

    with pytest.raises(DatabaseUnavailableError):
        await Transactions(database, limit_seconds=0.05, on_session=never).run(new_id(), incrementing("a"))
    assert await count(database) == 0

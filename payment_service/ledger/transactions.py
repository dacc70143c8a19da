"""Runs operations in MongoDB transactions, in this one place: group commit, majority writes, retries with a limit.

Operations that touch the same documents take turns within a process, and all that wait for the same turn share one
transaction (`operation_queue`): the group reads all its documents at once, decides each operation in memory, one after
the other (`unit_of_work`), and writes everything together. A refused operation is rolled back in memory, so it neither
changes anything nor fails its neighbours. Groups grow with the load; without load each has one operation, at once.

    TransientTransactionError          the whole transaction is retried, after a pause with full jitter
    a duplicate key                    likewise: another process has inserted the document since the snapshot
    UnknownTransactionCommitResult     only the commit is retried: it is idempotent
    anything else                      aborts

A group that is aborted for another reason, or that loses against other processes repeatedly, is divided: its operations
take turns again in groups of half the size, down to one, which then has the error to itself. An operation that reaches
its limit gets ContentionError, DatabaseUnavailableError or UnknownCommitError. All of them are TransientErrors: HTTP
answers 503 with Retry-After, and a consumer waits.
"""

import asyncio
import inspect
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import structlog
from pymongo import WriteConcern
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from payment_service.ledger import stored_documents
from payment_service.ledger import transaction_metrics as metrics
from payment_service.ledger.operation_queue import Group, OperationQueue
from payment_service.ledger.refusals import LedgerRefusalError
from payment_service.ledger.stored_documents import Session
from payment_service.ledger.transaction_errors import (
    commit_may_be_retried,
    contention,
    failure_reason,
    given_up,
    is_about_the_database,
    is_conflict,
    may_leave_transaction_open,
    transaction_may_be_retried,
    unknown_commit,
)
from payment_service.ledger.unit_of_work import Reference, UnitOfWork
from shared.database import Database
from shared.errors import DatabaseUnavailableError
from shared.slow_waits import slow_waits_logged

Result = TypeVar("Result")
Work = Callable[[UnitOfWork], Awaitable[Result]]
OnRefusal = Callable[[UnitOfWork, LedgerRefusalError], None]
"""Called after a refused operation is rolled back; what it puts into the unit is committed."""
SessionHook = Callable[[Session], Awaitable[None]]
"""Called with a session before its first statement."""
UnknownOutcomeHook = Callable[[Any], None]
"""Called with the id of a session whose transaction may have been left open."""

LIMIT_SECONDS = 10.0
"""An operation is not retried after this time, which includes waiting for its turn."""
LIMIT_ATTEMPTS = 100
LARGEST_GROUP = 200
FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.5

_CONFLICTS_OF_A_GROUP = 3
"""After so many conflicts in succession a group is divided: perhaps only one of its accounts is kept busy."""

_STILL_WAITING = "still waiting for accounts that other operations use"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Failed:
    """The outcome of an operation that is not granted."""

    error: Exception


@dataclass(eq=False, slots=True)
class _Operation(Generic[Result]):
    """An operation from its arrival to its outcome."""

    name: str
    work: "Work[Result]"
    touches: tuple[Reference, ...]
    largest_group: int
    deadline: float
    on_refusal: OnRefusal | None
    done: "asyncio.Future[Result]"
    context: Context = field(default_factory=copy_context)
    arrived: float = field(default_factory=time.monotonic)
    waits: bool = True
    end_of_wait: Callable[[], None] | None = None
    attempts: int = 0

    def stop_waiting(self) -> None:
        """Note the end of the wait for the first turn."""
        if self.waits:
            self.waits = False
            metrics.waited(self.name, time.monotonic() - self.arrived)
            if self.end_of_wait is not None:
                self.end_of_wait()

    def settle(self, outcome: Any) -> None:
        """Give the caller its outcome, unless it has one or has left."""
        if self.done.done():
            return
        if isinstance(outcome, _Failed):
            self.done.set_exception(outcome.error)
        else:
            self.done.set_result(outcome)


class _Divided(Exception):  # noqa: N818 - no error, and never seen outside of this module
    """The operations of a group must be tried in smaller groups."""


_Group = Group[_Operation[Any]]


class Transactions:
    """Runs operations in transactions of one database."""

    def __init__(
        self,
        of: Database,
        *,
        limit_seconds: float = LIMIT_SECONDS,
        limit_attempts: int = LIMIT_ATTEMPTS,
        largest_group: int = LARGEST_GROUP,
        on_session: SessionHook | None = None,
        on_unknown_outcome: UnknownOutcomeHook | None = None,
    ) -> None:
        self._database = of
        self._limit_seconds = limit_seconds
        self._limit_attempts = limit_attempts
        self._largest_group = largest_group
        self._on_session = on_session
        self._on_unknown_outcome = on_unknown_outcome
        self._queue: OperationQueue[_Operation[Any]] = OperationQueue()
        self._running: set[asyncio.Task[None]] = set()

    async def run(
        self,
        name: str,
        work: "Work[Result]",
        touches: Collection[Reference] = (),
        *,
        within: float | None = None,
        on_refusal: OnRefusal | None = None,
    ) -> Result:
        """Run `work` in a transaction and return its result after a majority has committed it.

        `work` runs again in every attempt, so it may only have effects on its unit of work, and it must not wait for
        anything but reads of that. It may run in the context of another operation, so it must not read context
        variables. `name` labels the metrics. Operations that touch the same documents run one after the other; the
        documents are read before `work` runs, and any other when it asks for it. `within` replaces the usual limit in
        seconds.

        Raises what `work` raises, with its changes undone; ContentionError or DatabaseUnavailableError if the limit is
        reached and nothing was changed; UnknownCommitError if that is unknown. An operation whose caller is cancelled
        does not begin; if it has begun, it may be committed.
        """
        limit = self._limit_seconds if within is None else within
        loop = asyncio.get_running_loop()
        operation: _Operation[Result] = _Operation(
            name,
            work,
            tuple(dict.fromkeys(touches)),
            self._largest_group,
            time.monotonic() + limit,
            on_refusal,
            loop.create_future(),
        )
        with metrics.observed(name):
            timer = loop.call_later(limit, self._expire, operation)
            try:
                return await self._outcome(operation)
            except asyncio.CancelledError:
                self._withdraw(operation)
                raise
            finally:
                timer.cancel()

    async def drain(self) -> None:
        """Wait until all transactions have ended."""
        while self._running:
            await asyncio.wait(self._running)

    async def _outcome(self, operation: "_Operation[Result]") -> Result:
        self._queue.add(operation)
        if not self._queue.must_wait(operation):
            self._start_groups()
        if operation.waits:
            with slow_waits_logged(_STILL_WAITING, operation=operation.name) as operation.end_of_wait:
                return await operation.done
        return await operation.done

    def _expire(self, operation: _Operation[Any]) -> None:
        """Give up an operation that still waits; one that runs reaches its limit between two attempts."""
        if self._withdraw(operation):
            operation.stop_waiting()
            operation.settle(_Failed(contention()))

    def _withdraw(self, operation: _Operation[Any]) -> bool:
        """Let an operation wait no longer; those that only waited behind it begin. Return False if it has begun."""
        withdrawn = self._queue.withdraw(operation)
        if withdrawn:
            self._start_groups()
        return withdrawn

    def _start_groups(self) -> None:
        for group in self._queue.start():
            for operation in group.operations:
                operation.stop_waiting()
            # In the context of the first: this may be called in that of the group before.
            task = asyncio.create_task(self._run_group(group), context=group.operations[0].context)
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run_group(self, group: _Group) -> None:
        outcomes: list[tuple[_Operation[Any], Any]] = []
        try:
            outcomes = await self._outcomes(group)
        except _Divided:
            self._divide(group.operations)
        finally:
            self._queue.finish(group)
            self._start_groups()
            for operation, outcome in outcomes:
                operation.settle(outcome)

    async def _outcomes(self, group: _Group) -> list[tuple[_Operation[Any], Any]]:
        """Return each operation's outcome. Raises _Divided if smaller groups must find it."""
        try:
            async with self._session(group) as session:
                return await self._until_committed(session, group)
        except Exception as error:
            if isinstance(error, _Divided):
                raise
            if len(group.operations) > 1 and not is_about_the_database(error):
                _log.warning("transaction divided", operations=len(group.operations), reason=failure_reason(error))
                raise _Divided from error
            return [(operation, _Failed(error)) for operation in group.operations]
        except BaseException:
            for operation in group.operations:
                operation.done.cancel()
            raise

    def _divide(self, operations: Sequence[_Operation[Any]]) -> None:
        """Let the operations wait again for smaller groups, but those that have reached their limit meanwhile."""
        for operation in operations:
            if time.monotonic() >= operation.deadline:
                operation.settle(_Failed(contention()))
        left = [operation for operation in operations if not operation.done.done()]
        for operation in left:
            operation.largest_group = max(1, len(operations) // 2)
        self._queue.put_back(left)

    @asynccontextmanager
    async def _session(self, group: _Group) -> AsyncIterator[Session]:
        session = await _awaited(self._database.client.start_session())
        doubtful = False
        try:
            await self._announce(session, max(operation.deadline for operation in group.operations))
            yield session
        except BaseException as error:
            doubtful = may_leave_transaction_open(error)
            raise
        finally:
            # The id must be read first: an ended session has none.
            lsid = session.session_id["id"] if doubtful and self._on_unknown_outcome is not None else None
            await _uninterrupted(session.end_session())
            if lsid is not None and self._on_unknown_outcome is not None:
                self._on_unknown_outcome(lsid)

    async def _announce(self, session: Session, deadline: float) -> None:
        if self._on_session is None:
            return
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._on_session(session)
        except TimeoutError:
            raise DatabaseUnavailableError("MongoDB has not answered in time; nothing was changed") from None

    async def _until_committed(self, session: Session, group: _Group) -> list[tuple[_Operation[Any], Any]]:
        conflicts = 0
        while True:
            try:
                return await self._attempt(session, group)
            except PyMongoError as error:
                if not transaction_may_be_retried(error):
                    raise
                conflicts = conflicts + 1 if is_conflict(error) else 0
                pause = _pause(max(operation.attempts for operation in group.operations))
                self._give_up_late(group, pause, error)
                if not group.operations:
                    raise
                if conflicts >= _CONFLICTS_OF_A_GROUP and len(group.operations) > 1:
                    raise _Divided from error
                metrics.retried(_names(group), failure_reason(error))
            await asyncio.sleep(pause)

    async def _attempt(self, session: Session, group: _Group) -> list[tuple[_Operation[Any], Any]]:
        for operation in group.operations:
            operation.attempts += 1
        metrics.attempted(_names(group))
        await _awaited(
            session.start_transaction(read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority"))
        )
        try:
            unit = UnitOfWork(partial(stored_documents.read, self._database, session))
            await unit.load(reference for operation in group.operations for reference in operation.touches)
            outcomes = [(operation, await _decided(operation, unit)) for operation in group.operations]
            await stored_documents.write(self._database, session, unit.changes())
        except BaseException:
            # An open transaction would block its documents for a minute.
            metrics.aborted(_names(group))
            await _uninterrupted(session.abort_transaction())
            raise
        await _uninterrupted(_commit(session, group))
        granted = (operation.name for operation, outcome in outcomes if not isinstance(outcome, _Failed))
        metrics.committed(granted, group_size=len(outcomes))
        return outcomes

    def _give_up_late(self, group: _Group, pause: float, error: PyMongoError) -> None:
        """Fail the operations that have reached their limit; those whose callers have left need no other attempt."""
        for operation in group.operations:
            if operation.attempts >= self._limit_attempts or time.monotonic() + pause > operation.deadline:
                late = given_up(error)
                late.__cause__ = error
                operation.settle(_Failed(late))
        group.operations = [operation for operation in group.operations if not operation.done.done()]


async def _decided(operation: _Operation[Any], unit: UnitOfWork) -> Any:
    """Return the operation's result, or its error, whose changes are undone. Raises errors of the database."""
    savepoint = unit.savepoint()
    try:
        return await operation.work(unit)
    except Exception as error:
        if isinstance(error, PyMongoError) or is_about_the_database(error):
            raise
        unit.roll_back(savepoint)
        if operation.on_refusal is not None and isinstance(error, LedgerRefusalError):
            operation.on_refusal(unit, error)
        return _Failed(error)


async def _commit(session: Session, group: _Group) -> None:
    attempt = 1
    while True:
        try:
            await session.commit_transaction()
        except PyMongoError as error:
            if not commit_may_be_retried(error):
                raise
            pause = _pause(attempt)
            waiting = [operation for operation in group.operations if not operation.done.done()]
            for operation in waiting:
                if time.monotonic() + pause > operation.deadline:
                    unknown = unknown_commit()
                    unknown.__cause__ = error
                    operation.settle(_Failed(unknown))
            if all(operation.done.done() for operation in waiting):
                raise unknown_commit() from error
            metrics.retried(_names(group), "unknown-commit")
        else:
            return
        await asyncio.sleep(pause)
        attempt += 1


def _names(group: _Group) -> list[str]:
    return [operation.name for operation in group.operations]


def _pause(attempt: int) -> float:
    """Return an exponential backoff with full jitter, so that rivals do not collide again."""
    return random.random() * min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 16))  # noqa: S311


async def _awaited(call: Any) -> Any:
    """Return the result of a call that is a coroutine in one driver, PyMongo or Motor, and not in the other."""
    return await call if inspect.isawaitable(call) else call


_ending: set["asyncio.Task[Any]"] = set()


async def _uninterrupted(call: Coroutine[Any, Any, Any]) -> None:
    """Await a call that a cancellation must not interrupt: half a commit or abort leaves the transaction open."""
    task = asyncio.ensure_future(call)
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it; the caller sees the cancellation
        raise

"""Runs MongoDB transactions, in this one place: majority writes, snapshot reads, and retries with a limit.

    TransientTransactionError          the whole transaction is retried, after a pause with full jitter
    UnknownTransactionCommitResult     only the commit is retried: it is idempotent
    anything else                      aborts and is raised at once (a refusal, a duplicate key, a fault)

At the limit, ContentionError, DatabaseUnavailableError or UnknownCommitError is raised. All of them are
TransientErrors: HTTP answers 503 with Retry-After, and a consumer waits.

MongoDB rejects a write to a document that another open transaction has written. Operations of one process on the same
accounts therefore queue for locks here before their transactions start, and only conflicts between processes need
retries.
"""

import asyncio
import inspect
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prometheus_client import Counter, Gauge, Histogram
from pymongo import WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from payment_service.ledger.refusals import LedgerRefusalError, Reason
from shared import database
from shared.database import Database
from shared.errors import DatabaseUnavailableError, TransientError
from shared.slow_waits import slow_waits_logged

Session = AsyncClientSession
Work = Callable[[Session], Awaitable["Result"]]
Result = TypeVar("Result")
SessionHook = Callable[[Session], Awaitable[None]]
"""Called with a session before its first statement."""
UnknownOutcomeHook = Callable[[Any], None]
"""Called with the id of a session whose transaction may have been left open."""

LIMIT_SECONDS = 10.0
"""An operation is not retried after this time, which includes waiting for its locks."""
LIMIT_ATTEMPTS = 100
FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.5

_TRANSIENT = "TransientTransactionError"
_UNKNOWN_COMMIT = "UnknownTransactionCommitResult"
_WRITE_CONFLICT = 112
_INTERRUPTED = 11601
"""The code of a statement whose session was killed; the driver gives it no label."""

_attempts = Counter("transaction_attempts_total", "Transactions started, including retries", ["operation"])
_commits = Counter("transaction_commits_total", "Transactions committed", ["operation"])
_aborts = Counter("transaction_aborts_total", "Transactions aborted, including those retried", ["operation"])
_retries = Counter("transaction_retries_total", "Retries of transactions and commits", ["operation", "reason"])
_failures = Counter("transaction_failures_total", "Operations that were not committed", ["operation", "reason"])
_refusals = Counter(
    "transaction_refusals_total", "Operations on funds that the books refused, by reason", ["operation", "reason"]
)
_waits = Histogram(
    "transaction_lock_wait_seconds",
    "Time that an operation waited for its turn on the accounts, within its process",
    ["operation"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30),
)
_durations = Histogram(
    "transaction_duration_seconds",
    "Duration of operations, including waiting and retries",
    ["operation"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20),
)
_concurrent = Gauge("concurrent_operations", "Operations in progress, including waiting ones", ["operation"])


class ContentionError(TransientError):
    """Other operations kept the accounts busy until the limit; nothing was changed."""


class UnknownCommitError(TransientError):
    """The database did not confirm the commit; the operation may or may not have taken effect."""


class Transactions:
    """Runs operations in transactions of one database."""

    def __init__(
        self,
        of: Database,
        *,
        limit_seconds: float = LIMIT_SECONDS,
        limit_attempts: int = LIMIT_ATTEMPTS,
        on_session: SessionHook | None = None,
        on_unknown_outcome: UnknownOutcomeHook | None = None,
    ) -> None:
        self._client = of.client
        self._limit_seconds = limit_seconds
        self._limit_attempts = limit_attempts
        self._on_session = on_session
        self._on_unknown_outcome = on_unknown_outcome
        self._locks = KeyedLocks()

    async def run(
        self, operation: str, work: "Work[Result]", keys: Collection[str] = (), *, within: float | None = None
    ) -> Result:
        """Run `work` in a transaction and return its result after a majority has committed it.

        `work` runs again in every attempt, so it may only have effects on the database, through its session.
        `operation` labels the metrics. Operations that share one of the `keys` run one after the other. `within`
        replaces the usual limit in seconds.

        Raises what `work` raises, after aborting the transaction; ContentionError or DatabaseUnavailableError if the
        limit is reached and nothing was changed; UnknownCommitError if that is unknown.
        """
        limit = self._limit_seconds if within is None else within
        deadline = time.monotonic() + limit
        with _observed(operation):
            async with self._turn(operation, keys, limit), self._session(deadline) as session:
                return await self._until_committed(session, operation, work, deadline)

    @asynccontextmanager
    async def _turn(self, operation: str, keys: Collection[str], within: float) -> AsyncIterator[None]:
        """Hold the locks of the keys, with the wait for them measured, and logged while it is long."""
        async with AsyncExitStack() as held:
            started = time.perf_counter()
            try:
                with slow_waits_logged("still waiting for accounts that other operations use", operation=operation):
                    await held.enter_async_context(self._locks.held(keys, within=within))
            finally:
                _waits.labels(operation).observe(time.perf_counter() - started)
            yield

    @asynccontextmanager
    async def _session(self, deadline: float) -> AsyncIterator[Session]:
        session = await _awaited(self._client.start_session())
        doubtful = False
        try:
            await self._announce(session, deadline)
            yield session
        except BaseException as error:
            doubtful = _may_be_left_open(error)
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

    async def _until_committed(self, session: Session, operation: str, work: "Work[Result]", deadline: float) -> Result:
        attempt = 1
        while True:
            _attempts.labels(operation).inc()
            try:
                return await _attempt(session, operation, work, deadline)
            except PyMongoError as error:
                if not (error.has_error_label(_TRANSIENT) or _is_interrupted(error)):
                    raise
                pause = _pause(attempt)
                if attempt >= self._limit_attempts or time.monotonic() + pause > deadline:
                    raise _limit_reached(error) from error
                _retries.labels(operation, failure_reason(error)).inc()
            await asyncio.sleep(pause)
            attempt += 1


async def _attempt(session: Session, operation: str, work: "Work[Result]", deadline: float) -> Result:
    await _awaited(
        session.start_transaction(read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority"))
    )
    try:
        result = await work(session)
    except BaseException:
        # An open transaction would block its documents for a minute.
        _aborts.labels(operation).inc()
        await _uninterrupted(session.abort_transaction())
        raise
    await _uninterrupted(_commit(session, operation, deadline))
    _commits.labels(operation).inc()
    return result


async def _commit(session: Session, operation: str, deadline: float) -> None:
    attempt = 1
    while True:
        try:
            await session.commit_transaction()
        except PyMongoError as error:
            if not (error.has_error_label(_UNKNOWN_COMMIT) or _is_interrupted(error)):
                raise
            pause = _pause(attempt)
            if time.monotonic() + pause > deadline:
                raise UnknownCommitError(
                    "the database did not confirm whether the operation was committed; retry with the same key"
                ) from error
            _retries.labels(operation, "unknown-commit").inc()
        else:
            return
        await asyncio.sleep(pause)
        attempt += 1


class KeyedLocks:
    """Locks by key for the tasks of one process; a lock exists only while a task holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, _CountedLock] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def held(self, keys: Collection[str], *, within: float) -> AsyncIterator[None]:
        """Hold the locks of all keys. Raises ContentionError if they cannot be acquired in that many seconds."""
        async with AsyncExitStack() as acquired:
            try:
                async with asyncio.timeout(within):
                    # All tasks acquire locks in the same order, so no two of them deadlock.
                    for key in sorted(set(keys)):
                        await acquired.enter_async_context(self._held_one(key))
            except TimeoutError:
                raise _contention() from None
            yield

    @asynccontextmanager
    async def _held_one(self, key: str) -> AsyncIterator[None]:
        counted = self._locks.setdefault(key, _CountedLock())
        counted.users += 1
        try:
            async with counted.lock:
                yield
        finally:
            counted.users -= 1
            if not counted.users:
                del self._locks[key]


@dataclass(slots=True)
class _CountedLock:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


@contextmanager
def _observed(operation: str) -> Iterator[None]:
    _prepare(operation)
    started = time.perf_counter()
    try:
        with _concurrent.labels(operation).track_inprogress():
            yield
    except BaseException as error:
        _failures.labels(operation, failure_reason(error)).inc()
        if isinstance(error, LedgerRefusalError):
            _refusals.labels(operation, error.reason).inc()
        raise
    finally:
        _durations.labels(operation).observe(time.perf_counter() - started)


_prepared: set[str] = set()


def _prepare(operation: str) -> None:
    """Start the failure counts at zero: Prometheus sees no increase in a series that starts at one."""
    if operation not in _prepared:
        _prepared.add(operation)
        for reason in REASONS:
            _failures.labels(operation, reason)
        for refusal in Reason:
            _refusals.labels(operation, refusal)


def _pause(attempt: int) -> float:
    """Return an exponential backoff with full jitter, so that rivals do not collide again."""
    return random.random() * min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 16))  # noqa: S311


def _is_conflict(error: BaseException) -> bool:
    return isinstance(error, OperationFailure) and error.code == _WRITE_CONFLICT


def _is_interrupted(error: PyMongoError) -> bool:
    return isinstance(error, OperationFailure) and error.code == _INTERRUPTED


def _may_be_left_open(error: BaseException) -> bool:
    """Return whether an operation that failed with this error may have left its transaction open."""
    if isinstance(error, DatabaseUnavailableError | UnknownCommitError | asyncio.CancelledError):
        return True
    return isinstance(error, PyMongoError) and database.is_transient(error)


def _contention() -> ContentionError:
    return ContentionError("other operations kept the accounts busy for too long; nothing was changed")


def _limit_reached(error: PyMongoError) -> TransientError:
    if _is_conflict(error):
        return _contention()
    translated = database.translate_error(error)
    return translated if isinstance(translated, TransientError) else DatabaseUnavailableError(str(error)[:300])


_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (LedgerRefusalError, "refused"),
    (ContentionError, "contention"),
    (UnknownCommitError, "unknown-commit"),
    (DatabaseUnavailableError, "unavailable"),
    (DuplicateKeyError, "duplicate-key"),
    (asyncio.CancelledError, "cancelled"),
)


REASONS = (*(reason for _, reason in _REASONS), "conflict", "error")
"""All values of the metrics' label `reason`."""


def failure_reason(error: BaseException) -> str:
    """Return the class of an error that ended an operation: one of REASONS."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    if _is_conflict(error):
        return "conflict"
    if isinstance(error, PyMongoError) and (database.is_transient(error) or error.has_error_label(_TRANSIENT)):
        return "unavailable"
    return "error"


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

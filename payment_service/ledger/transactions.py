"""The one place that runs MongoDB transactions: majority writes, snapshot reads, retries with a limit.

    TransientTransactionError          the whole transaction is run again, after a pause with full jitter
    UnknownTransactionCommitResult     the commit alone is repeated: it is idempotent
    anything else                      aborts and leaves at once (a refusal, a duplicate key, a fault)

Where the limit is reached, ContentionError, DatabaseUnavailableError or UnknownCommitError leaves: all of them are
TransientErrors, so HTTP answers 503 with Retry-After and a consumer waits.

In MongoDB a write to a document that another transaction has written fails at once. So the operations of one process
on the same accounts wait for each other here, in front of the transaction, instead of failing there; the retries are
for conflicts between processes.
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

from payment_service.ledger.refusals import RefusedError
from shared import database
from shared.database import Database
from shared.errors import DatabaseUnavailableError, TransientError

Session = AsyncClientSession
Work = Callable[[Session], Awaitable["Result"]]
Result = TypeVar("Result")
SessionHook = Callable[[Session], Awaitable[None]]
"""Called with a session before its first statement."""
UnknownOutcomeHook = Callable[[Any], None]
"""Called with the id of a session whose transaction may have been left open."""

LIMIT_SECONDS = 10.0
"""After so long, waiting for its turn included, an operation is not attempted again."""
LIMIT_ATTEMPTS = 100
FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.5

_TRANSIENT = "TransientTransactionError"
_UNKNOWN_COMMIT = "UnknownTransactionCommitResult"
_WRITE_CONFLICT = 112
_INTERRUPTED = 11601
"""What a statement gets whose session was ended meanwhile; the driver does not label it."""

_attempts = Counter("transaction_attempts_total", "Transactions begun, retries among them", ["operation"])
_commits = Counter("transaction_commits_total", "Transactions committed", ["operation"])
_aborts = Counter(
    "transaction_aborts_total", "Transactions aborted, those of attempts that were repeated among them", ["operation"]
)
_retries = Counter("transaction_retries_total", "Attempts and commits that were repeated", ["operation", "reason"])
_failures = Counter("transaction_failures_total", "Operations that did not commit", ["operation", "reason"])
_durations = Histogram(
    "transaction_duration_seconds",
    "Time of an operation, waiting and retries included",
    ["operation"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20),
)
_concurrent = Gauge("concurrent_operations", "Operations in hand, waiting ones among them", ["operation"])


class ContentionError(TransientError):
    """Other operations kept the accounts busy up to the limit; nothing was changed."""


class UnknownCommitError(TransientError):
    """The database did not say whether the transaction was committed; the operation may have taken place."""


class Transactions:
    """Runs work in transactions of one database."""

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
        """Run `work` in a transaction and return its result once that is committed by a majority.

        `work` is run again for every attempt, so it must have no effects but those on the database, through the
        session that it gets. `operation` labels the metrics. Operations that share one of the `keys` take turns.
        `within` is the limit in seconds where it is not to be the usual one.

        Raises what `work` raises, after the transaction is aborted; ContentionError or DatabaseUnavailableError when
        the limit was reached and nothing was changed; UnknownCommitError when that is not known.
        """
        limit = self._limit_seconds if within is None else within
        deadline = time.monotonic() + limit
        with _observed(operation):
            async with self._locks.held(keys, within=limit), self._session(deadline) as session:
                return await self._until_committed(session, operation, work, deadline)

    @asynccontextmanager
    async def _session(self, deadline: float) -> AsyncIterator[Session]:
        session = await _awaited(self._client.start_session())
        in_doubt = False
        try:
            await self._announce(session, deadline)
            yield session
        except BaseException as error:
            in_doubt = _may_be_left_open(error)
            raise
        finally:
            doubted = session.session_id["id"] if in_doubt and self._on_unknown_outcome is not None else None
            await _uninterrupted(session.end_session())
            if doubted is not None and self._on_unknown_outcome is not None:
                self._on_unknown_outcome(doubted)

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
                _retries.labels(operation, _reason(error)).inc()
            await asyncio.sleep(pause)
            attempt += 1


async def _attempt(session: Session, operation: str, work: "Work[Result]", deadline: float) -> Result:
    await _awaited(
        session.start_transaction(read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority"))
    )
    try:
        result = await work(session)
    except BaseException:
        # An open transaction would keep its documents from everybody for a minute.
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
                    "the database did not say whether the operation was committed; ask again with the same key"
                ) from error
            _retries.labels(operation, "unknown-commit").inc()
        else:
            return
        await asyncio.sleep(pause)
        attempt += 1


class KeyedLocks:
    """Locks by key for the tasks of one process, each there only as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, _CountedLock] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def held(self, keys: Collection[str], *, within: float) -> AsyncIterator[None]:
        """Hold all the keys; raises ContentionError if they are not free within so many seconds."""
        async with AsyncExitStack() as acquired:
            try:
                async with asyncio.timeout(within):
                    # In one order for everybody: two operations never wait for each other.
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
        _failures.labels(operation, _reason(error)).inc()
        raise
    finally:
        _durations.labels(operation).observe(time.perf_counter() - started)


_prepared: set[str] = set()


def _prepare(operation: str) -> None:
    """Have the failures start at zero: Prometheus sees no increase in a series that begins with its first count."""
    if operation not in _prepared:
        _prepared.add(operation)
        for reason in REASONS:
            _failures.labels(operation, reason)


def _pause(attempt: int) -> float:
    """Exponential backoff with full jitter: whoever met in a conflict does not meet again."""
    return random.random() * min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 16))  # noqa: S311


def _is_conflict(error: BaseException) -> bool:
    return isinstance(error, OperationFailure) and error.code == _WRITE_CONFLICT


def _is_interrupted(error: PyMongoError) -> bool:
    return isinstance(error, OperationFailure) and error.code == _INTERRUPTED


def _may_be_left_open(error: BaseException) -> bool:
    """Whether the abort may not have reached the database, given what an operation ended with."""
    if isinstance(error, DatabaseUnavailableError | UnknownCommitError | asyncio.CancelledError):
        return True
    return isinstance(error, PyMongoError) and database.is_passing(error)


def _contention() -> ContentionError:
    return ContentionError("the accounts were busy with other operations for too long; nothing was changed")


def _limit_reached(error: PyMongoError) -> TransientError:
    if _is_conflict(error):
        return _contention()
    ours = database.as_ours(error)
    return ours if isinstance(ours, TransientError) else DatabaseUnavailableError(str(error)[:300])


_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (RefusedError, "refused"),
    (ContentionError, "contention"),
    (UnknownCommitError, "unknown-commit"),
    (DatabaseUnavailableError, "unavailable"),
    (DuplicateKeyError, "duplicate-key"),
    (asyncio.CancelledError, "cancelled"),
)


REASONS = (*(reason for _, reason in _REASONS), "conflict", "error")
"""Every reason that the metrics know."""


def _reason(error: BaseException) -> str:
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    if _is_conflict(error):
        return "conflict"
    if isinstance(error, PyMongoError) and (database.is_passing(error) or error.has_error_label(_TRANSIENT)):
        return "unavailable"
    return "error"


async def _awaited(call: Any) -> Any:
    """The result of a call that PyMongo and Motor make differently: one awaits it, the other does not."""
    return await call if inspect.isawaitable(call) else call


_ending: set["asyncio.Task[Any]"] = set()


async def _uninterrupted(call: Coroutine[Any, Any, Any]) -> None:
    """Await a call that a cancellation must not cut short: half a commit or abort leaves the transaction open."""
    task = asyncio.ensure_future(call)
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen: what the caller learns is that it was cancelled
        raise

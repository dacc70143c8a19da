"""The server: its collections, its log of changes, what a majority has confirmed, and its open transactions.

The log has one record for each change, with what undoes it. A position is a place between two records. Readers that do
not see the latest state, because they read a snapshot or only what a majority has confirmed, see the stored documents
with the later changes undone.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

from bson import Binary, ObjectId
from bson.binary import UUID_SUBTYPE
from pymongo.errors import NotPrimaryError

from shared.clock import Clock
from shared.memory_database.errors import (
    MAX_TIME_EXPIRED,
    NO_SUCH_TRANSACTION,
    NOT_WRITABLE_PRIMARY,
    RETRYABLE_WRITE,
    TRANSIENT_TRANSACTION,
    WRITE_CONFLICT,
    ServerError,
)
from shared.memory_database.expressions import Variables
from shared.memory_database.storage import Overlay, StoredCollection, Transaction, TransactionState, View
from shared.memory_database.values import Document

T = TypeVar("T")
ReplicationLag = Callable[[], float]
"""The seconds, on the event loop's clock, until a majority confirms a change."""

TRANSACTION_LIFETIME = timedelta(seconds=60)
"""MongoDB aborts a transaction that is older, as soon as it is in the way."""
KEPT_RECORDS = 100
"""The records of the log that are kept although no reader needs them: a new primary may not know that they are old."""


class BlockedError(Exception):
    """A write outside of transactions has to wait for a transaction that has written the same document."""

    def __init__(self, transaction: Transaction) -> None:
        super().__init__("another transaction has written this document")
        self.transaction = transaction


@dataclass(frozen=True, slots=True)
class _Record:
    """A change in the log."""

    collection: StoredCollection
    key: Any
    before: Document | None
    transaction: Transaction | None


@dataclass(eq=False)
class Snapshot:
    """What a session reads that always reads the same."""

    snapshot: int


class Server:
    """One replica set, as a client sees it."""

    def __init__(self, clock: Clock, replication_lag: ReplicationLag | None, timeout_seconds: float) -> None:
        self.clock = clock
        self._lag = replication_lag
        self._timeout_seconds = timeout_seconds
        self._collections: dict[str, StoredCollection] = {}
        self._log: list[_Record] = []
        self._log_start = 0
        self._confirmed = 0
        self._shown = 0
        self.term = 0
        """The number of elections so far."""
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._readers: dict[Snapshot | Transaction, None] = {}
        self._open: dict[bytes, Transaction] = {}
        self._numbers = count(1)
        self._context = copy_context()
        """What replication runs in: not the writer's, which may crash meanwhile."""

    # --- Collections. ---

    def collection(self, namespace: str) -> StoredCollection:
        """Return a collection, which need not exist."""
        found = self._collections.get(namespace)
        if found is None:
            found = self._collections[namespace] = StoredCollection(namespace)
        return found

    def collections(self, database: str) -> list[StoredCollection]:
        """Return the collections of a database that exist, by name."""
        prefix = f"{database}."
        found = [each for each in self._collections.values() if each.exists and each.namespace.startswith(prefix)]
        return sorted(found, key=lambda each: each.namespace)

    def drop(self, namespaces: Iterable[str]) -> None:
        """Remove collections with all that was ever in them."""
        for namespace in namespaces:
            if (dropped := self._collections.pop(namespace, None)) is not None:
                dropped.documents.clear()

    def variables(self) -> Variables:
        """Return what expressions may refer to."""
        return Variables(self.clock)

    def new_object_id(self) -> ObjectId:
        """Return an id for a document without one."""
        return ObjectId(next(self._numbers).to_bytes(12))

    def new_session_id(self) -> Binary:
        """Return an id for a session."""
        return Binary(next(self._numbers).to_bytes(16), UUID_SUBTYPE)

    # --- Reading. ---

    @property
    def position(self) -> int:
        """The end of the log."""
        return self._log_start + len(self._log)

    def has_unconfirmed(self, collection: StoredCollection) -> bool:
        """Return whether there are changes of a collection that no majority has confirmed."""
        return any(record.collection is collection for record in self._log[self._confirmed - self._log_start :])

    def view(self, collection: StoredCollection, reader: Snapshot | Transaction | None, *, confirmed: bool) -> View:
        """Return what a reader sees; without a snapshot or a transaction, the latest state or what is confirmed."""
        if reader is None and not confirmed:
            return collection.documents
        start = reader.snapshot if reader is not None else self._shown
        changed: dict[Any, Document | None] = {}
        if start < self.position:
            for record in reversed(self._log[start - self._log_start :]):
                if record.collection is collection:
                    changed[record.key] = record.before
        if isinstance(reader, Transaction):
            changed |= reader.writes.get(collection, {})
        return Overlay(collection.documents, changed) if changed else collection.documents

    def open_snapshot(self) -> Snapshot:
        """Begin to keep what a majority has confirmed by now."""
        snapshot = Snapshot(self._shown)
        self._readers[snapshot] = None
        return snapshot

    def close_snapshot(self, snapshot: Snapshot) -> None:
        """Keep it no longer."""
        self._readers.pop(snapshot, None)

    # --- Writing. ---

    def check_free(self, collection: StoredCollection, key: Any, transaction: Transaction | None) -> None:
        """Raise an error if a document cannot be written at the moment.

        Within a transaction that is a conflict, with another transaction or with a change that it does not see. Outside
        it is BlockedError, for a caller that waits.
        """
        writer = self._writer(collection, key)
        if transaction is None:
            if writer is not None:
                raise BlockedError(writer)
        elif writer not in (None, transaction) or collection.changed_at.get(key, -1) >= transaction.snapshot:
            raise ServerError(
                WRITE_CONFLICT,
                "Caused by :: Write conflict during plan execution and yielding is disabled. :: Please retry your "
                "operation or multi-document transaction.",
                labels=(TRANSIENT_TRANSACTION,),
            )

    def put(
        self, collection: StoredCollection, key: Any, after: Document | None, transaction: Transaction | None
    ) -> None:
        """Change, insert or delete a document that is free, at once or when the transaction commits."""
        if transaction is None:
            self._apply(collection, key, after, None)
            self._replicate()
            return
        if collection.has_unique_index():
            raise NotImplementedError("a transaction that writes a collection with a unique index")
        transaction.writes.setdefault(collection, {})[key] = after
        collection.writers[key] = transaction

    async def until_free(self, work: Callable[[], T]) -> T:
        """Do work that writes; as long as it is blocked by a transaction, wait and try again."""
        try:
            return work()
        except BlockedError as blocked:
            await self._ended(blocked.transaction)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                while True:
                    try:
                        return work()
                    except BlockedError as blocked:
                        await self._ended(blocked.transaction)
        except TimeoutError:
            raise _timed_out() from None

    def _writer(self, collection: StoredCollection, key: Any) -> Transaction | None:
        writer = collection.writers.get(key)
        if writer is None or writer.state is not TransactionState.OPEN:
            return None
        if writer.expires_at <= self.clock():
            self.abort(writer)
            return None
        return writer

    async def _ended(self, transaction: Transaction) -> None:
        """Wait for the end of a transaction, or of its time."""
        remaining = min((transaction.expires_at - self.clock()).total_seconds(), self._timeout_seconds)
        try:
            async with asyncio.timeout(max(0.0, remaining)):
                await transaction.ended.wait()
        except TimeoutError:
            return

    def _apply(
        self, collection: StoredCollection, key: Any, after: Document | None, transaction: Transaction | None
    ) -> None:
        collection.changed_at[key] = self.position
        self._log.append(_Record(collection, key, collection.put(key, after), transaction))

    # --- Transactions. ---

    def begin(self, session: bytes) -> Transaction:
        """Begin a transaction of a session, which sees the state of this moment."""
        transaction = Transaction(self.position, self.clock() + TRANSACTION_LIFETIME)
        self._readers[transaction] = None
        self._open[session] = transaction
        return transaction

    def require_open(self, transaction: Transaction) -> None:
        """Raise the error for a transaction that was aborted."""
        if transaction.state is TransactionState.ABORTED:
            raise ServerError(NO_SUCH_TRANSACTION, "Transaction has been aborted.", labels=(TRANSIENT_TRANSACTION,))

    def commit(self, transaction: Transaction) -> None:
        """Make all changes of a transaction at once. Repeating it changes nothing."""
        self.require_open(transaction)
        if transaction.state is TransactionState.COMMITTED:
            return
        for collection, writes in transaction.writes.items():
            for key, after in writes.items():
                self._apply(collection, key, after, transaction)
        self._end(transaction, TransactionState.COMMITTED)
        transaction.committed_to = self.position
        self._replicate()

    def abort(self, transaction: Transaction) -> None:
        """Forget what an open transaction has written."""
        if transaction.state is TransactionState.OPEN:
            self._end(transaction, TransactionState.ABORTED)

    def kill_session(self, session: bytes) -> None:
        """Abort the transaction of a session, if it has one."""
        if (transaction := self._open.get(session)) is not None:
            self.abort(transaction)

    def _end(self, transaction: Transaction, state: TransactionState) -> None:
        transaction.state = state
        for collection, writes in transaction.writes.items():
            for key in writes:
                collection.writers.pop(key, None)
        self._readers.pop(transaction, None)
        for session in [session for session, each in self._open.items() if each is transaction]:
            del self._open[session]
        transaction.ended.set()

    # --- The majority. ---

    async def confirmed(self, position: int | None = None) -> None:
        """Wait until a majority has confirmed all changes before a position, or all so far.

        Raises NotPrimaryError if an election takes them back, ServerError if it takes too long.
        """
        position = self.position if position is None else position
        if position <= self._confirmed and self._shown == self._confirmed:
            return
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        self._waiting.append((position, waiting))
        timer = loop.call_later(self._timeout_seconds, _give_up, waiting)
        try:
            await waiting
        finally:
            timer.cancel()

    def require_same_primary(self, term: int, reader: Snapshot | Transaction | None) -> None:
        """Raise NotPrimaryError if there was an election since a call began, which may have taken back its writes.

        A transaction knows by itself: the election has aborted it.
        """
        if term != self.term and not isinstance(reader, Transaction):
            raise _not_primary()

    def elect(self, unknown: int) -> int:
        """Take back what no majority has confirmed, as a new primary does; return the number of changes.

        Of the confirmed changes, it does not know yet that the last ones, `unknown` many, are confirmed.
        """
        lost = self.position - self._confirmed
        for transaction in list(self._open.values()):
            self.abort(transaction)
        while self.position > self._confirmed:
            record = self._log.pop()
            record.collection.put(record.key, record.before)
            record.collection.changed_at[record.key] = self.position
            if record.transaction is not None:
                record.transaction.state = TransactionState.ABORTED
        self.term += 1
        self._shown = max(self._log_start, self._confirmed - unknown)
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                future.set_exception(_not_primary())
        self._replicate()  # the first entry of the new primary's term
        return lost

    def _replicate(self) -> None:
        lag = self._lag() if self._lag is not None else 0.0
        if lag > 0:
            loop = asyncio.get_running_loop()
            loop.call_later(lag, self._confirm, self.position, self.term, context=self._context)
        else:
            self._confirm(self.position, self.term)

    def _confirm(self, position: int, term: int) -> None:
        if term != self.term:
            return
        self._shown = self._confirmed = max(position, self._confirmed)
        if self._waiting:
            for until, future in self._waiting:
                if until <= self._confirmed and not future.done():
                    future.set_result(None)
            self._waiting = [(until, future) for until, future in self._waiting if not future.done()]
        if len(self._log) > 10 * KEPT_RECORDS:
            self._trim()

    def _trim(self) -> None:
        """Forget the records that nobody needs any more."""
        needed = min([self._shown - KEPT_RECORDS, *(reader.snapshot for reader in self._readers)])
        del self._log[: max(0, needed - self._log_start)]
        self._log_start = max(needed, self._log_start)


def _give_up(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_exception(_timed_out())


def _timed_out() -> ServerError:
    return ServerError(MAX_TIME_EXPIRED, "operation exceeded time limit")


def _not_primary() -> NotPrimaryError:
    answer = {"code": NOT_WRITABLE_PRIMARY, "errmsg": "not primary", "errorLabels": [RETRYABLE_WRITE]}
    return NotPrimaryError("not primary", answer)

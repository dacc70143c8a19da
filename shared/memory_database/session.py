"""Sessions and their transactions, with the driver's rules about what may be called when."""

from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from bson import Binary
from pymongo.errors import ConnectionFailure, ExecutionTimeout, InvalidOperation, OperationFailure, PyMongoError

from shared.memory_database.errors import (
    TRANSIENT_TRANSACTION,
    UNKNOWN_COMMIT,
    ServerError,
    add_label,
    refuse_options,
    unknown,
)
from shared.memory_database.server import Snapshot
from shared.memory_database.storage import Transaction

if TYPE_CHECKING:
    from pymongo import WriteConcern
    from pymongo.read_concern import ReadConcern

    from shared.memory_database.client import MemoryClient
    from shared.memory_database.connection import Connection


class _State(Enum):
    NONE = auto()
    STARTING = auto()
    IN_PROGRESS = auto()
    COMMITTED = auto()
    COMMITTED_EMPTY = auto()
    ABORTED = auto()


_OPEN = (_State.STARTING, _State.IN_PROGRESS)
_DONE = (_State.COMMITTED, _State.COMMITTED_EMPTY)


class MemorySession:
    """A session of a client, as PyMongo's AsyncClientSession."""

    def __init__(self, client: "MemoryClient", connection: "Connection", session_id: Binary, *, snapshot: bool) -> None:
        self.client = client
        self.session_id: dict[str, Any] = {"id": session_id}
        self.has_ended = False
        self._connection = connection
        self._server = connection.server
        self._reads_snapshot = snapshot
        self._snapshot: Snapshot | None = None
        self._state = _State.NONE
        self._transaction: Transaction | None = None

    @property
    def in_transaction(self) -> bool:
        return self._state in _OPEN

    def reader(self) -> Snapshot | Transaction | None:
        """Return the transaction or the snapshot that the next statement belongs to, which may begin with it.

        Raises ServerError if the transaction was aborted meanwhile.
        """
        self._check_not_ended()
        if self._reads_snapshot:
            self._snapshot = self._snapshot or self._server.open_snapshot()
            return self._snapshot
        if not self.in_transaction:
            return None
        if self._state is _State.STARTING:
            self._state = _State.IN_PROGRESS
            self._transaction = self._server.begin(bytes(self.session_id["id"]))
        assert self._transaction is not None  # noqa: S101 - for the type checker
        self._server.require_open(self._transaction)
        return self._transaction

    async def start_transaction(
        self,
        read_concern: "ReadConcern | None" = None,
        write_concern: "WriteConcern | None" = None,
        read_preference: Any = None,
        **options: Any,
    ) -> "_TransactionContext":
        """Start a transaction; whatever the read concern, it reads one state: that of its first statement."""
        refuse_options("start_transaction", options)
        if write_concern is not None and write_concern.document.get("w", "majority") != "majority":
            raise NotImplementedError(f"a transaction with {write_concern!r}")
        if read_concern is not None and read_concern.level not in (None, "local", "majority", "snapshot"):
            raise NotImplementedError(f"a transaction with {read_concern!r}")
        if read_preference is not None and read_preference.mode:
            raise NotImplementedError(f"a transaction with {read_preference!r}")
        self._check_not_ended()
        if self._reads_snapshot:
            raise InvalidOperation("Transactions are not supported in snapshot sessions")
        if self.in_transaction:
            raise InvalidOperation("Transaction already in progress")
        self._state, self._transaction = _State.STARTING, None
        return _TransactionContext(self)

    async def commit_transaction(self) -> None:
        self._check_not_ended()
        if self._state is _State.NONE:
            raise InvalidOperation("No transaction started")
        if self._state is _State.ABORTED:
            raise InvalidOperation("Cannot call commitTransaction after calling abortTransaction")
        if self._transaction is None:
            self._state = _State.COMMITTED_EMPTY
            return
        self._state = _State.IN_PROGRESS
        try:
            await self._commit(self._transaction)
        except (ConnectionFailure, ExecutionTimeout) as error:
            raise _with_unknown_outcome(error) from None
        finally:
            self._state = _State.COMMITTED

    async def _commit(self, transaction: Transaction) -> None:
        await self._connection.before("commit_transaction", "")
        try:
            self._server.commit(transaction)
            await self._server.confirmed(transaction.committed_to)
        except ServerError as error:
            raise error.of_command() from None
        finally:
            await self._connection.after("commit_transaction", "")

    async def abort_transaction(self) -> None:
        self._check_not_ended()
        if self._state is _State.NONE:
            raise InvalidOperation("No transaction started")
        if self._state is _State.ABORTED:
            raise InvalidOperation("Cannot call abortTransaction twice")
        if self._state in _DONE:
            raise InvalidOperation("Cannot call abortTransaction after calling commitTransaction")
        self._state = _State.ABORTED
        if self._transaction is None:
            return
        try:
            await self._connection.before("abort_transaction", "")
            self._server.abort(self._transaction)
            await self._connection.after("abort_transaction", "")
        except (OperationFailure, ConnectionFailure):
            return  # as the driver does: the transaction may stay open

    async def end_session(self) -> None:
        if self.has_ended:
            return
        try:
            if self.in_transaction:
                await self.abort_transaction()
        finally:
            self.has_ended = True
            if self._snapshot is not None:
                self._server.close_snapshot(self._snapshot)
            self.client.return_session_id(self.session_id["id"])

    async def __aenter__(self) -> "MemorySession":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end_session()

    def __getattr__(self, name: str) -> Any:
        raise unknown("session", name)

    def _check_not_ended(self) -> None:
        if self.has_ended:
            raise InvalidOperation("Cannot use ended session")


class _TransactionContext:
    """Commits a transaction, or aborts it after an error, unless the caller has."""

    def __init__(self, session: MemorySession) -> None:
        self._session = session

    async def __aenter__(self) -> "_TransactionContext":
        return self

    async def __aexit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self._session.in_transaction:
            await (self._session.commit_transaction() if error_type is None else self._session.abort_transaction())


def _with_unknown_outcome(error: PyMongoError) -> PyMongoError:
    error._remove_error_label(TRANSIENT_TRANSACTION)  # noqa: SLF001 - the driver has no other way
    add_label(error, UNKNOWN_COMMIT)
    return error

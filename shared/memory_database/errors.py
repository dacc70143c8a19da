"""The errors that MongoDB answers with, by their codes, and the driver's exceptions for them."""

from collections.abc import Mapping
from typing import Any

from pymongo.errors import DuplicateKeyError, ExecutionTimeout, OperationFailure, PyMongoError, WriteError

from shared.memory_database.values import Document

BAD_VALUE = 2
TYPE_MISMATCH = 14
NAMESPACE_NOT_FOUND = 26
PATH_NOT_VIABLE = 28
CONFLICTING_UPDATES = 40
NAMESPACE_EXISTS = 48
MAX_TIME_EXPIRED = 50
IMMUTABLE_FIELD = 66
WRITE_CONFLICT = 112
DOCUMENT_INVALID = 121
NO_SUCH_TRANSACTION = 251
DUPLICATE_KEY = 11000
NOT_WRITABLE_PRIMARY = 10107

TRANSIENT_TRANSACTION = "TransientTransactionError"
UNKNOWN_COMMIT = "UnknownTransactionCommitResult"
RETRYABLE_WRITE = "RetryableWriteError"


class ServerError(Exception):
    """An error as MongoDB answers it; `details` are further fields of the answer."""

    def __init__(self, code: int, message: str, *, labels: tuple[str, ...] = (), **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.labels = labels
        self.details = details

    def entry(self, index: int) -> Document:
        """Return the error as an entry of `writeErrors`."""
        return {"index": index, "code": self.code, "errmsg": self.message, **self.details}

    def of_write(self) -> OperationFailure:
        """Return the driver's exception for a single write."""
        if self.labels or self.code == MAX_TIME_EXPIRED:
            return self.of_command()
        entry = self.entry(0)
        if self.code == DUPLICATE_KEY:
            return DuplicateKeyError(self.message, self.code, entry)
        return WriteError(self.message, self.code, entry)

    def of_command(self) -> OperationFailure:
        """Return the driver's exception for any other call."""
        answer: Mapping[str, Any] = {"ok": 0.0, "code": self.code, "errmsg": self.message, **self.details}
        if self.labels:
            answer = {**answer, "errorLabels": list(self.labels)}
        kinds: dict[int, type[OperationFailure]] = {
            DUPLICATE_KEY: DuplicateKeyError,
            MAX_TIME_EXPIRED: ExecutionTimeout,
        }
        return kinds.get(self.code, OperationFailure)(self.message, self.code, answer)


def refuse_options(what: str, options: Mapping[str, Any]) -> None:
    """Raise NotImplementedError for any option that is given."""
    if options and (given := sorted(name for name, value in options.items() if value is not None)):
        raise NotImplementedError(f"{what} with {', '.join(given)}")


def add_label(error: PyMongoError, label: str) -> None:
    """Label an error, as the driver does for one of a connection within a transaction."""
    error._add_error_label(label)  # noqa: SLF001 - the driver has no other way


def unknown(what: str, name: str) -> Exception:
    """Return the error for an attribute that is not modelled; a private one, of a protocol, is just not there."""
    return AttributeError(name) if name.startswith("_") else NotImplementedError(f"{what}.{name}")

"""Why operations are not committed: the errors of transactions, and the reasons by which metrics name all errors."""

import asyncio

from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError

from payment_service.ledger.refusals import LedgerRefusalError
from shared import database
from shared.errors import DatabaseUnavailableError, TransientError

_TRANSIENT = "TransientTransactionError"
_UNKNOWN_COMMIT = "UnknownTransactionCommitResult"
_WRITE_CONFLICT = 112
_INTERRUPTED = 11601
"""The code of a statement whose session was killed; the driver gives it no label."""


class ContentionError(TransientError):
    """Other operations kept the accounts busy until the limit; nothing was changed."""


class UnknownCommitError(TransientError):
    """The database did not confirm the commit; the operation may or may not have taken effect."""


def is_conflict(error: BaseException) -> bool:
    """Return whether another transaction has changed a document since this one began, or has inserted it."""
    return isinstance(error, DuplicateKeyError) or _is_write_conflict(error)


def transaction_may_be_retried(error: PyMongoError) -> bool:
    """Return whether the whole transaction may succeed in another attempt."""
    return error.has_error_label(_TRANSIENT) or _is_interrupted(error) or isinstance(error, DuplicateKeyError)


def commit_may_be_retried(error: PyMongoError) -> bool:
    """Return whether the commit may have taken effect, and may be sent again."""
    return error.has_error_label(_UNKNOWN_COMMIT) or _is_interrupted(error)


def is_about_the_database(error: BaseException) -> bool:
    """Return whether any other operation would have failed as well."""
    if isinstance(error, TransientError):
        return True
    return isinstance(error, PyMongoError) and (database.is_transient(error) or error.has_error_label(_TRANSIENT))


def may_leave_transaction_open(error: BaseException) -> bool:
    """Return whether the abort after this error may not have arrived."""
    if isinstance(error, DatabaseUnavailableError | UnknownCommitError | asyncio.CancelledError):
        return True
    return isinstance(error, PyMongoError) and database.is_transient(error)


def contention() -> ContentionError:
    """Return the error of an operation that had no turn in time, or lost too often."""
    return ContentionError("other operations kept the accounts busy for too long; nothing was changed")


def given_up(error: PyMongoError) -> TransientError:
    """Return the error of an operation that is not retried again after this error."""
    if is_conflict(error):
        return contention()
    translated = database.translate_error(error)
    return translated if isinstance(translated, TransientError) else DatabaseUnavailableError(str(error)[:300])


def unknown_commit() -> UnknownCommitError:
    """Return the error of an operation whose commit is not confirmed in time."""
    return UnknownCommitError(
        "the database did not confirm whether the operation was committed; retry with the same key"
    )


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
    if _is_write_conflict(error):
        return "conflict"
    return "unavailable" if is_about_the_database(error) else "error"


def _is_write_conflict(error: BaseException) -> bool:
    return isinstance(error, OperationFailure) and error.code == _WRITE_CONFLICT


def _is_interrupted(error: PyMongoError) -> bool:
    return isinstance(error, OperationFailure) and error.code == _INTERRUPTED

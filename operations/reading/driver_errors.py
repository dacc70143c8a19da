"""Translates errors, those of MongoDB's driver above all, for commands."""

import asyncio
import contextlib
from collections.abc import Iterator

from pymongo.errors import ConnectionFailure, PyMongoError

from operations.errors import UnreachableError
from shared.errors import OrdersagaError
from shared.outage_words import with_detail
from shared.urls import hide_credentials


@contextlib.contextmanager
def unreachable_unless_done(purpose: str) -> Iterator[None]:
    """Turn the driver's errors into UnreachableError; `purpose` is the work that they prevent."""
    try:
        yield
    except ConnectionFailure as error:
        raise UnreachableError(f"MongoDB does not answer: {with_detail(error)}") from error
    except PyMongoError as error:
        raise UnreachableError(f"MongoDB refused {purpose}: {first_line(error)}") from error


def first_line(error: PyMongoError) -> str:
    """Return the message of an error, without the driver's description of every server."""
    text = str(error).partition(", Timeout:")[0].partition(" (configured timeouts")[0]
    return hide_credentials(text.partition("\n")[0])[:300]


def reason_of(error: BaseException) -> str:
    """Return any error in one line, an interruption too."""
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return "it was interrupted"
    if isinstance(error, PyMongoError):
        return first_line(error)
    if isinstance(error, OrdersagaError):
        return str(error)
    if isinstance(error, OSError):
        return with_detail(error)
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]  # a fault of ours: its name says most

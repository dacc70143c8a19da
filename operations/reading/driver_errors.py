"""What MongoDB's driver raises, in the words of the commands: a server that could not be reached."""

import contextlib
from collections.abc import Iterator

from pymongo.errors import ConnectionFailure, PyMongoError

from operations.errors import UnreachableError
from shared.urls import hide_credentials


@contextlib.contextmanager
def unreachable_unless_done(who: str) -> Iterator[None]:
    """Turn the driver's errors into UnreachableError; `who` is what MongoDB does not let work."""
    try:
        yield
    except ConnectionFailure as error:
        raise UnreachableError(f"MongoDB does not answer: {first_line(error)}") from error
    except PyMongoError as error:
        raise UnreachableError(f"MongoDB does not let {who} work: {first_line(error)}") from error


def first_line(error: PyMongoError) -> str:
    """Return what an error says, without the description of every server behind it."""
    text = str(error).partition(", Timeout:")[0].partition(" (configured timeouts")[0]
    return hide_credentials(text.partition("\n")[0])[:300]

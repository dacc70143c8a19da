"""Reads related records from one snapshot, and turns the driver's errors into UnreachableError.

A snapshot session (MongoDB 5.0 or later) reads all databases as of one point in time, while work continues.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from bson import Timestamp
from pymongo import ASCENDING, AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import ConfigurationError, ConnectionFailure, OperationFailure

from operations.errors import UnreachableError
from operations.reading.driver_errors import first_line
from shared.outage_words import with_detail

Document = dict[str, Any]

BATCH = 2000
"""Documents that a cursor fetches at once."""

SNAPSHOT_ATTEMPTS = 5
SNAPSHOT_TOO_OLD = 239
"""The code of the error for a snapshot that is older than the history that MongoDB keeps."""
# SnapshotUnavailable comes if a collection or an index was created meanwhile.
_SNAPSHOT_GONE = frozenset({SNAPSHOT_TOO_OLD, 246})

Source = tuple[AsyncCollection[Document], Sequence[str]]
"""A collection, and the fields to read."""

T = TypeVar("T")


class Snapshots:
    """Snapshots of one deployment; every method raises UnreachableError when MongoDB does not answer."""

    def __init__(self, client: AsyncMongoClient[Document]) -> None:
        self._client = client

    async def read(self, read: Callable[[AsyncClientSession], Awaitable[T]]) -> T:
        """Call the function with a snapshot session and return its result; call it again if the snapshot is gone."""
        for _ in range(SNAPSHOT_ATTEMPTS - 1):
            with contextlib.suppress(_SnapshotGoneError):
                return await self._try_to_read(read)
        try:
            return await self._try_to_read(read)
        except _SnapshotGoneError as error:
            raise UnreachableError(str(error)) from error

    async def stream(self, stream: Callable[[AsyncClientSession], AsyncIterator[T]]) -> AsyncIterator[T]:
        """Yield what the function reads from one snapshot; a new snapshot is taken only before the first item."""
        for attempt in range(1, SNAPSHOT_ATTEMPTS + 1):
            started = False
            try:
                with drivers_errors():
                    async with self._client.start_session(snapshot=True) as session:
                        async for item in stream(session):
                            started = True
                            yield item
            except _SnapshotGoneError as error:
                if started or attempt == SNAPSHOT_ATTEMPTS:
                    raise UnreachableError(str(error)) from error
            else:
                return

    async def _try_to_read(self, read: Callable[[AsyncClientSession], Awaitable[T]]) -> T:
        with drivers_errors():
            async with self._client.start_session(snapshot=True) as session:
                return await read(session)


def cluster_time(session: AsyncClientSession) -> Timestamp:
    """Return the point in time that a snapshot session reads as of, once it has read something."""
    time = session._snapshot_time  # noqa: SLF001 - the driver keeps it to itself
    if time is None:
        raise ValueError("the session has read nothing yet, or is none of a snapshot")
    return time


async def find(source: Source, query: Mapping[str, Any], session: AsyncClientSession, limit: int = 0) -> list[Document]:
    """Return the documents by id; all of them without a limit."""
    collection, fields = source
    cursor = collection.find(query, dict.fromkeys(fields, True), session=session, batch_size=BATCH)
    return await cursor.sort("_id", ASCENDING).limit(limit).to_list()


async def by_ids(source: Source, ids: Sequence[str], session: AsyncClientSession) -> dict[str, Document]:
    """Return those documents that exist, by id."""
    if not ids:
        return {}
    return {document["_id"]: document for document in await find(source, {"_id": {"$in": ids}}, session)}


async def side_by_side(
    left: AsyncIterator[Document], right: AsyncIterator[Document]
) -> AsyncIterator[tuple[str, Document | None, Document | None]]:
    """Merge two streams that are sorted by id: (id, the left document or None, the right one or None)."""
    first, second = await anext(left, None), await anext(right, None)
    while first is not None or second is not None:
        if second is None or (first is not None and first["_id"] < second["_id"]):
            assert first is not None  # noqa: S101 - the loop's condition
            yield first["_id"], first, None
            first = await anext(left, None)
        elif first is None or second["_id"] < first["_id"]:
            yield second["_id"], None, second
            second = await anext(right, None)
        else:
            yield first["_id"], first, second
            first, second = await anext(left, None), await anext(right, None)


class _SnapshotGoneError(Exception):
    """The snapshot can no longer be read, or not yet."""


@contextlib.contextmanager
def drivers_errors() -> Iterator[None]:
    """Turn the driver's errors into UnreachableError, or into _SnapshotGoneError if a new snapshot may help."""
    try:
        yield
    except ConnectionFailure as error:
        raise UnreachableError(f"MongoDB does not answer: {with_detail(error)}") from error
    except OperationFailure as error:
        if error.code in _SNAPSHOT_GONE:
            raise _SnapshotGoneError(f"MongoDB could not read from one snapshot: {first_line(error)}") from error
        raise UnreachableError(f"MongoDB does not allow its data to be read: {first_line(error)}") from error
    except ConfigurationError as error:
        raise UnreachableError(f"this MongoDB does not support snapshot reads: {first_line(error)}") from error

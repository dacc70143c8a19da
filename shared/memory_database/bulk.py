"""Bulk writes: several writes of one call, whose errors come together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from pymongo.common import validate_ok_for_replace, validate_ok_for_update
from pymongo.errors import BulkWriteError

from shared.memory_database.connection import Connection, Reader
from shared.memory_database.errors import ServerError, refuse_options
from shared.memory_database.session import MemorySession
from shared.memory_database.storage import Transaction
from shared.memory_database.values import Document
from shared.memory_database.writes import Updated, Writes

if TYPE_CHECKING:
    from shared.memory_database.collection import MemoryCollection

_INSERT, _UPDATE, _DELETE = range(3)


@dataclass(frozen=True, slots=True)
class _Write:
    """One of the writes: its kind, what it was asked for, as errors quote it, and what carries it out."""

    kind: int
    asked: Any
    work: Callable[[Writes], Any]


class Bulk:
    """The writes of one call, which PyMongo's InsertOne, UpdateOne and their like add by the methods here."""

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self.writes: list[_Write] = []

    def add_insert(self, document: Any) -> None:
        self.writes.append(_Write(_INSERT, document, lambda writes: writes.insert(document)))

    def add_update(
        self, selector: Mapping[str, Any], update: Any, multi: bool, upsert: bool | None, **options: Any
    ) -> None:
        refuse_options("an update in a bulk", options)
        validate_ok_for_update(update)
        asked = {"q": selector, "u": update, "multi": multi} | ({} if upsert is None else {"upsert": upsert})
        self.writes.append(
            _Write(
                _UPDATE,
                asked,
                lambda writes: writes.update(selector, update, multi=multi, upsert=bool(upsert)),
            )
        )

    def add_replace(
        self, selector: Mapping[str, Any], replacement: Mapping[str, Any], upsert: bool | None, **options: Any
    ) -> None:
        refuse_options("a replacement in a bulk", options)
        validate_ok_for_replace(replacement)
        asked = {"q": selector, "u": replacement} | ({} if upsert is None else {"upsert": upsert})
        self.writes.append(
            _Write(_UPDATE, asked, lambda writes: writes.replace(selector, replacement, upsert=bool(upsert)))
        )

    def add_delete(self, selector: Mapping[str, Any], limit: int, **options: Any) -> None:
        refuse_options("a deletion in a bulk", options)
        asked = {"q": selector, "limit": limit}
        self.writes.append(_Write(_DELETE, asked, lambda writes: writes.delete(selector, multi=limit == 0)))

    async def execute(
        self,
        connection: Connection,
        collection: "MemoryCollection",
        *,
        ordered: bool,
        session: MemorySession | None,
    ) -> Document:
        """Carry out the writes, ordered ones up to the first that fails. Raises BulkWriteError if any has failed."""

        async def perform(reader: Reader) -> Document:
            return await self._perform(connection, collection, reader, ordered=ordered)

        result = await connection.write_several(self._operation, collection.name, session, perform)
        if result["writeErrors"]:
            raise BulkWriteError(result)
        return result

    async def _perform(
        self, connection: Connection, collection: "MemoryCollection", reader: Reader, *, ordered: bool
    ) -> Document:
        result, server, term = _nothing_done(), connection.server, connection.server.term
        places = list(enumerate(self.writes))
        if not ordered:  # the driver sends the writes of each kind together
            places.sort(key=lambda each: each[1].kind)
        for number, (index, write) in enumerate(places):
            if number:
                await connection.before(f"{self._operation}:next", collection.name)
                server.require_same_primary(term, reader)
            try:
                done = await connection.perform(reader, partial(_carried_out, write, collection))
            except ServerError as error:
                if error.labels:
                    raise
                result["writeErrors"].append({**error.entry(index), "op": write.asked})
                if isinstance(reader, Transaction):
                    server.abort(reader)
                    break
                if ordered:
                    break
            else:
                _count(result, write.kind, index, done)
        server.require_same_primary(term, reader)  # the last write may have waited
        result["writeErrors"].sort(key=itemgetter("index"))
        return result


def _carried_out(write: _Write, collection: "MemoryCollection", transaction: Transaction | None) -> Any:
    return write.work(collection.writes(transaction))


def _nothing_done() -> Document:
    counts = dict.fromkeys(("nInserted", "nUpserted", "nMatched", "nModified", "nRemoved"), 0)
    return {"writeErrors": [], "writeConcernErrors": [], **counts, "upserted": []}


def _count(result: Document, kind: int, index: int, done: Any) -> None:
    match done:
        case Updated():
            result["nMatched"] += done.matched
            result["nModified"] += done.modified
            if done.upserted:
                result["nUpserted"] += 1
                result["upserted"].append({"index": index, "_id": done.upserted_id})
        case int():
            result["nRemoved"] += done
        case _ if kind == _INSERT:
            result["nInserted"] += 1

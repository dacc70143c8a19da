"""A collection as the record classes use it, with the calls of PyMongo's AsyncCollection."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pymongo import ReturnDocument
from pymongo.common import validate_ok_for_replace, validate_ok_for_update
from pymongo.errors import InvalidOperation
from pymongo.read_concern import ReadConcern
from pymongo.results import BulkWriteResult, DeleteResult, InsertManyResult, InsertOneResult, UpdateResult

from shared.memory_database.bulk import Bulk
from shared.memory_database.connection import Connection, Reader, Translate
from shared.memory_database.cursor import MemoryCursor, Options, index_name, order
from shared.memory_database.errors import ServerError, refuse_options, unknown
from shared.memory_database.projections import projection as projection_of
from shared.memory_database.queries import aggregated, find, in_order
from shared.memory_database.session import MemorySession
from shared.memory_database.storage import StoredCollection, Transaction, View
from shared.memory_database.values import Document, copied
from shared.memory_database.writes import Updated, Writes

if TYPE_CHECKING:
    from shared.memory_database.database import MemoryDatabase

T = TypeVar("T")
Query = Mapping[str, Any]
Update = Mapping[str, Any] | Sequence[Mapping[str, Any]]

_LEVELS = (None, "local", "majority", "linearizable")


class MemoryCollection:
    """A collection of one process's connection; every call may raise the driver's errors."""

    def __init__(
        self, database: "MemoryDatabase", connection: Connection, name: str, read_concern: ReadConcern
    ) -> None:
        if read_concern.level not in _LEVELS:
            raise NotImplementedError(f"reading with {read_concern!r}")
        self.database = database
        self.name = name
        self.full_name = f"{database.name}.{name}"
        self.read_concern = read_concern
        self._connection = connection
        self._server = connection.server

    def with_options(self, read_concern: ReadConcern | None = None, **options: Any) -> "MemoryCollection":
        refuse_options("with_options", options)
        return MemoryCollection(self.database, self._connection, self.name, read_concern or self.read_concern)

    # --- Reads. ---

    def find(
        self,
        filter: Query | None = None,
        projection: Mapping[str, Any] | None = None,
        *,
        session: MemorySession | None = None,
        sort: str | Sequence[tuple[str, int]] | None = None,
        limit: int = 0,
        hint: str | None = None,
        **options: Any,
    ) -> MemoryCursor:
        refuse_options("find", options)
        query, only = filter or {}, projection_of(projection)

        async def load(wanted: Options) -> list[Document]:
            def work(view: View) -> list[Document]:
                self._stored.require_index(wanted.hint)
                found = in_order(find(view, query, self._server.variables()), wanted.order)
                return [only(document) for document in found[: wanted.limit or None]]

            return await self._read("find", session, work)

        return MemoryCursor(load, Options(order(sort) if sort else (), limit, index_name(hint)))

    async def find_one(
        self,
        filter: Query | None = None,
        projection: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Document | None:
        found = await self.find(filter, projection, limit=1, **options).to_list()
        return found[0] if found else None

    async def count_documents(
        self,
        filter: Query,
        session: MemorySession | None = None,
        *,
        limit: int | None = None,
        hint: str | None = None,
        **options: Any,
    ) -> int:
        refuse_options("count_documents", options)

        def work(view: View) -> int:
            self._stored.require_index(index_name(hint))
            found = len(find(view, filter, self._server.variables()))
            return found if limit is None else min(found, limit)

        return await self._read("count_documents", session, work)

    async def aggregate(
        self,
        pipeline: Sequence[Mapping[str, Any]],
        session: MemorySession | None = None,
        *,
        hint: str | None = None,
        **options: Any,
    ) -> MemoryCursor:
        refuse_options("aggregate", options)

        def work(view: View) -> list[Document]:
            self._stored.require_index(index_name(hint))
            return [copied(document) for document in aggregated(view, pipeline, self._server.variables())]

        found = await self._read("aggregate", session, work)

        async def load(_: Options) -> list[Document]:
            return found

        return MemoryCursor(load)

    async def index_information(self) -> dict[str, Document]:
        return await self._read(
            "index_information",
            None,
            lambda _: {name: index.information() for name, index in self._stored.indexes.items()},
        )

    # --- Writes of one kind. ---

    async def insert_one(
        self, document: MutableMapping[str, Any], *, session: MemorySession | None = None, **options: Any
    ) -> InsertOneResult:
        refuse_options("insert_one", options)
        self._name_document(document)
        await self._write("insert_one", session, lambda writes: writes.insert(dict(document)))
        return InsertOneResult(document["_id"], acknowledged=True)

    async def insert_many(
        self,
        documents: Sequence[MutableMapping[str, Any]],
        ordered: bool = True,
        session: MemorySession | None = None,
        **options: Any,
    ) -> InsertManyResult:
        refuse_options("insert_many", options)
        if not documents:
            raise TypeError("documents must be a non-empty list")
        bulk = Bulk("insert_many")
        for document in documents:
            self._name_document(document)
            bulk.add_insert(document)
        await bulk.execute(self._connection, self, ordered=ordered, session=session)
        return InsertManyResult([document["_id"] for document in documents], acknowledged=True)

    async def update_one(
        self,
        filter: Query,
        update: Update,
        upsert: bool = False,
        *,
        session: MemorySession | None = None,
        **options: Any,
    ) -> UpdateResult:
        refuse_options("update_one", options)
        validate_ok_for_update(update)
        return _update_result(
            await self._write("update_one", session, lambda writes: writes.update(filter, update, upsert=upsert))
        )

    async def update_many(
        self,
        filter: Query,
        update: Update,
        upsert: bool = False,
        *,
        session: MemorySession | None = None,
        **options: Any,
    ) -> UpdateResult:
        refuse_options("update_many", options)
        validate_ok_for_update(update)
        return _update_result(
            await self._write(
                "update_many", session, lambda writes: writes.update(filter, update, multi=True, upsert=upsert)
            )
        )

    async def replace_one(
        self,
        filter: Query,
        replacement: Mapping[str, Any],
        upsert: bool = False,
        *,
        session: MemorySession | None = None,
        **options: Any,
    ) -> UpdateResult:
        refuse_options("replace_one", options)
        validate_ok_for_replace(replacement)
        return _update_result(
            await self._write("replace_one", session, lambda writes: writes.replace(filter, replacement, upsert=upsert))
        )

    async def delete_one(
        self,
        filter: Query,
        *,
        session: MemorySession | None = None,
        **options: Any,
    ) -> DeleteResult:
        refuse_options("delete_one", options)
        deleted = await self._write("delete_one", session, lambda writes: writes.delete(filter, multi=False))
        return DeleteResult({"n": deleted, "ok": 1.0}, acknowledged=True)

    async def delete_many(
        self,
        filter: Query,
        *,
        session: MemorySession | None = None,
        **options: Any,
    ) -> DeleteResult:
        refuse_options("delete_many", options)
        deleted = await self._write("delete_many", session, lambda writes: writes.delete(filter, multi=True))
        return DeleteResult({"n": deleted, "ok": 1.0}, acknowledged=True)

    async def find_one_and_update(
        self,
        filter: Query,
        update: Update,
        projection: Mapping[str, Any] | None = None,
        sort: str | Sequence[tuple[str, int]] | None = None,
        upsert: bool = False,
        return_document: bool = ReturnDocument.BEFORE,
        *,
        session: MemorySession | None = None,
        **options: Any,
    ) -> Document | None:
        refuse_options("find_one_and_update", options)
        validate_ok_for_update(update)
        only = projection_of(projection)
        done = await self._write(
            "find_one_and_update",
            session,
            lambda writes: writes.update(filter, update, upsert=upsert, order=order(sort) if sort else ()),
            ServerError.of_command,
        )
        found = done.after if return_document is ReturnDocument.AFTER else done.before
        return None if found is None else only(found)

    # --- Bulk writes. ---

    async def bulk_write(
        self,
        requests: Sequence[Any],
        ordered: bool = True,
        *,
        session: MemorySession | None = None,
        **options: Any,
    ) -> BulkWriteResult:
        refuse_options("bulk_write", options)
        bulk = Bulk("bulk_write")
        for request in requests:
            request._add_to_bulk(bulk)  # noqa: SLF001 - as the driver's own collection does
        if not bulk.writes:
            raise InvalidOperation("No operations to execute")
        result = await bulk.execute(self._connection, self, ordered=ordered, session=session)
        return BulkWriteResult(result, acknowledged=True)

    def writes(self, reader: Reader) -> Writes:
        """Return the writes of the collection, within a transaction or at once."""
        return Writes(self._server, self._stored, reader if isinstance(reader, Transaction) else None)

    def __getattr__(self, name: str) -> Any:
        raise unknown("collection", name)

    @property
    def _stored(self) -> StoredCollection:
        return self._server.collection(self.full_name)

    async def _read(self, operation: str, session: MemorySession | None, work: Callable[[View], T]) -> T:
        level = self.read_concern.level

        def read(reader: Reader) -> T:
            return work(self._server.view(self._stored, reader, confirmed=level == "majority"))

        if level == "linearizable":
            return await self._connection.read_confirmed(operation, self.name, session, read)
        return await self._connection.read(operation, self.name, session, read)

    async def _write(
        self,
        operation: str,
        session: MemorySession | None,
        work: Callable[[Writes], T],
        translate: Translate = ServerError.of_write,
    ) -> T:
        return await self._connection.write(
            operation, self.name, session, lambda transaction: work(self.writes(transaction)), translate
        )

    def _name_document(self, document: MutableMapping[str, Any]) -> None:
        if "_id" not in document:
            document["_id"] = self._server.new_object_id()


def _update_result(done: Updated) -> UpdateResult:
    raw: Document = {"n": done.matched, "nModified": done.modified, "ok": 1.0, "updatedExisting": done.matched > 0}
    if done.upserted:
        raw |= {"n": 1, "upserted": done.upserted_id}
    return UpdateResult(raw, acknowledged=True)

"""A database of the server, as one process is connected to it, and what a simulation does to the server."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from pymongo.read_concern import ReadConcern

from shared.clock import Clock
from shared.database import Database
from shared.memory_database.client import MemoryClient
from shared.memory_database.collection import MemoryCollection
from shared.memory_database.connection import Connection, Reader, Step
from shared.memory_database.errors import NAMESPACE_EXISTS, NAMESPACE_NOT_FOUND, ServerError, refuse_options, unknown
from shared.memory_database.server import ReplicationLag, Server
from shared.memory_database.storage import StoredCollection
from shared.memory_database.validation import validator
from shared.memory_database.values import Document, copied, encoded
from shared.memory_database.writes import Writes

TIMEOUT_SECONDS = 10.0
"""The time for which a call waits for a majority or for a transaction, on the event loop's clock."""


class MemoryDatabase:
    """A database in memory that stands in the place of PyMongo's AsyncDatabase; see the package for what is modelled.

    `step` is awaited before and after every operation. `replication_lag` returns the seconds until a majority confirms
    a change: without it, that is at once. With `client`, it is one more database of that client's server.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Clock,
        step: Step | None = None,
        replication_lag: ReplicationLag | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        client: MemoryClient | None = None,
        read_concern: ReadConcern | None = None,
    ) -> None:
        self.client = client or MemoryClient(Connection(Server(clock, replication_lag, timeout_seconds), step))
        self.name = name
        self.read_concern = read_concern or ReadConcern()
        self._connection = self.client.connection
        self._server = self._connection.server

    # --- For a simulation. ---

    def connected(self, step: Step | None = None) -> "MemoryDatabase":
        """Return the same database as another process is connected to it, with its own steps."""
        return MemoryClient(Connection(self._server, step))[self.name]

    def as_database(self) -> Database:
        """Return the same object under the type that the record classes expect."""
        return cast("Database", self)

    def elect(self, *, unknown: int = 0) -> int:
        """Elect a new primary, which takes back what no majority has confirmed; return the number of changes.

        Transactions that are open are aborted, and those who wait for a majority get NotPrimaryError. Until a majority
        confirms something new, reads of what is confirmed do not show the last `unknown` changes that were confirmed
        before, except for linearizable ones.
        """
        return self._server.elect(unknown)

    def has_unconfirmed(self, collection: str) -> bool:
        """Return whether an election would take back changes of a collection now."""
        return self._server.has_unconfirmed(self._stored(collection))

    def delete_expired(self) -> int:
        """Delete the documents whose time is over by an index, as MongoDB does every minute; return their number."""
        now, deleted = encoded(self._server.clock()), 0
        for collection in self._server.collections(self.name):
            for index in collection.indexes.values():
                expired = [each["_id"] for each in collection.documents.values() if index.has_expired(each, now)]
                writes = Writes(self._server, collection, None)
                deleted += writes.delete({"_id": {"$in": expired}}, multi=True)
        return deleted

    def documents(self, collection: str) -> list[Document]:
        """Return all documents of a collection in their latest state, without any step."""
        return [copied(document) for document in self._stored(collection).documents.values()]

    # --- As PyMongo's. ---

    def __getitem__(self, name: str) -> MemoryCollection:
        return self.get_collection(name)

    def get_collection(self, name: str, *, read_concern: ReadConcern | None = None, **options: Any) -> MemoryCollection:
        refuse_options("get_collection", options)
        return MemoryCollection(self, self._connection, name, read_concern or self.read_concern)

    def with_options(self, *, read_concern: ReadConcern | None = None, **options: Any) -> "MemoryDatabase":
        refuse_options("with_options", options)
        return MemoryDatabase(
            self.name, clock=self._server.clock, client=self.client, read_concern=read_concern or self.read_concern
        )

    async def list_collection_names(self) -> list[str]:
        return [each.name for each in self._server.collections(self.name)]

    async def command(self, command: str | Mapping[str, Any], value: Any = 1, **arguments: Any) -> Document:
        given = {command: value, **arguments} if isinstance(command, str) else dict(command)
        name = next(iter(given))
        target = given.pop(name)
        if name not in self._commands:
            raise NotImplementedError(f"the command {name}")
        given.pop("writeConcern", None)  # every write waits for a majority

        def work(_: Reader) -> Document:
            return {**self._commands[name](self, target, given), "ok": 1.0}

        return await self._connection.read(name, target if isinstance(target, str) else "", None, work)

    def __getattr__(self, name: str) -> Any:
        raise unknown("database", name)

    # --- Commands. ---

    def _ping(self, _target: Any, given: Mapping[str, Any]) -> Document:
        refuse_options("ping", given)
        return {}

    def _hello(self, _target: Any, given: Mapping[str, Any]) -> Document:
        refuse_options("hello", given)
        return {"isWritablePrimary": True, "setName": "memory"}

    def _list_collections(self, _target: Any, given: Mapping[str, Any]) -> Document:
        """List the collections; the filter may name some."""
        wanted = dict(given)
        wanted.pop("nameOnly", None)
        condition = wanted.pop("filter", {})
        refuse_options("listCollections", wanted)
        named = condition.get("name")
        if condition.keys() - {"name"} or (isinstance(named, Mapping) and named.keys() != {"$in"}):
            raise NotImplementedError("listCollections with another filter than names")
        names = named["$in"] if isinstance(named, Mapping) else [named]
        found = [each for each in self._server.collections(self.name) if not condition or each.name in names]
        batch = [{"name": each.name, "type": "collection", "options": copied(each.options)} for each in found]
        return {"cursor": {"id": 0, "ns": f"{self.name}.$cmd.listCollections", "firstBatch": batch}}

    def _create(self, target: str, given: Mapping[str, Any]) -> Document:
        collection = self._stored(target)
        if collection.exists:
            raise ServerError(NAMESPACE_EXISTS, f"Collection {collection.namespace} already exists.")
        collection.create()
        return self._validate_by(collection, given)

    def _coll_mod(self, target: str, given: Mapping[str, Any]) -> Document:
        collection = self._stored(target)
        if not collection.exists:
            raise ServerError(NAMESPACE_NOT_FOUND, "ns does not exist")
        return self._validate_by(collection, given)

    def _validate_by(self, collection: StoredCollection, given: Mapping[str, Any]) -> Document:
        strict = {"validationLevel": "strict", "validationAction": "error"}
        options = encoded(given)
        if unknown := {name for name, value in options.items() if name != "validator" and strict.get(name) != value}:
            raise NotImplementedError(f"a collection with {', '.join(sorted(unknown))}")
        collection.options |= options
        if "validator" in options:
            collection.is_valid = validator(options["validator"])
        return {}

    def _create_indexes(self, target: str, given: Mapping[str, Any]) -> Document:
        refuse_options("createIndexes", {**given, "indexes": None, "commitQuorum": None})
        collection = self._stored(target)
        collection.create()
        for index in given["indexes"]:
            collection.add_index(index)
        return {}

    def _kill_sessions(self, target: list[Mapping[str, Any]], given: Mapping[str, Any]) -> Document:
        refuse_options("killSessions", given)
        for each in target:
            self._server.kill_session(bytes(each["id"]))
        return {}

    def _stored(self, name: str) -> StoredCollection:
        return self._server.collection(f"{self.name}.{name}")

    _commands: Mapping[str, Callable[["MemoryDatabase", Any, Mapping[str, Any]], Document]] = {
        "ping": _ping,
        "hello": _hello,
        "listCollections": _list_collections,
        "create": _create,
        "collMod": _coll_mod,
        "createIndexes": _create_indexes,
        "killSessions": _kill_sessions,
    }

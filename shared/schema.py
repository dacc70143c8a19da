"""The schema of a service's collections: declared beside the records, created and checked at every start.

The start creates what is missing and updates validators; if the user has no right to do the latter, it logs a warning
and continues. It never drops anything, neither an index nor a collection with its documents, and it does not unhide an
index: it stops with one line that names the problem and the command that fixes it. `ordersaga doctor` compares in the
same way and changes nothing.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import bson
import pymongo
import structlog
from pymongo import IndexModel
from pymongo.errors import OperationFailure, PyMongoError

from shared.database import Database, Document, first_line, is_transient
from shared.errors import StartError
from shared.unfinished_restore import unfinished_restore

ATTEMPTS = 20
"""The most repetitions because another process is changing the same collection."""
BUILD_SECONDS = 24 * 3600.0
"""The time limit for building an index. A large collection needs longer than any other call may take."""

UNAUTHORIZED = 13
"""The error code for a missing right."""
VALIDATOR = "validator"
"""The subject of a difference that may remain: a service also works with an older validator or none."""

# NamespaceNotFound, NamespaceExists, IndexOptionsConflict, IndexKeySpecsConflict, ConflictingOperationInProgress,
# IndexBuildAborted: another process changes the same collection, and a new comparison shows what is left to do.
_OVERTAKEN = frozenset({26, 48, 85, 86, 117, 276})

_STRICT = {"validationLevel": "strict", "validationAction": "error"}
_NOT_COMPARED = frozenset({"name", "key", "v", "ns", "background", "hidden"})
# Indexes with the same key may coexist if they differ in one of these.
_TELLING_APART = ("unique", "sparse", "partialFilterExpression", "collation")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CollectionSchema:
    """The wanted state of a collection; without a validator, an operator may set any.

    Indexes are compared as declared. So no collation, text or geographical index: MongoDB adds options to these.
    """

    indexes: Sequence[IndexModel] = ()
    validator: Mapping[str, Any] | None = None


Collections = Mapping[str, CollectionSchema]
"""The schemas of a database, by the collection's name."""


@dataclass(frozen=True, slots=True)
class Found:
    """The actual state of a collection; `kind` is None if it does not exist."""

    database: str
    name: str
    kind: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    indexes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """The collection's full name."""
        return f"{self.database}.{self.name}"


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference from the schema. The start fixes it by `command`, an operator according to `fix`."""

    what: str
    found: str
    wanted: str = ""
    command: Mapping[str, Any] = field(default_factory=dict)
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.found}" + (f", needed: {self.wanted}" if self.wanted else "")


def differences(schema: CollectionSchema, found: Found) -> list[Difference]:
    """Compare a collection with its schema; return the differences in the order in which to fix them."""
    if found.kind is None:
        create = {"create": found.name, **_rules(schema)}
        return [Difference("collection", "missing", command=create), *_indexes(schema, found)]
    if found.kind != "collection":
        fix = _in_mongosh(_call(found, "drop")) if found.kind == "view" else _copied(found)
        return [Difference("collection", f"a {found.kind}", "a collection", fix=fix)]
    return [*_options(found), *_validator(schema, found), *_indexes(schema, found)]


async def examine(database: Database, collections: Collections) -> dict[str, list[Difference]]:
    """Compare each of these collections with its schema."""
    listed = await database.command("listCollections", filter={"name": {"$in": list(collections)}})
    entries = {entry["name"]: entry for entry in listed["cursor"]["firstBatch"]}
    return {
        name: differences(schema, await _inspect(database, name, entries.get(name)))
        for name, schema in collections.items()
    }


async def prepare(
    database: Database, collections: Collections, *, pause: float = 1.0, refuse_partial: bool = False
) -> None:
    """Bring the collections to the state of their schemas; any number of processes may do so at once.

    Waits while MongoDB is away, with one log line per second. Raises StartError if an operator must act; with
    `refuse_partial` also if a restore into the database is not finished.
    """
    overtaken = 0
    while True:
        try:
            if refuse_partial and (reason := await unfinished_restore(database)):
                raise StartError(reason)
            await _prepare(database, collections)
        except PyMongoError as error:
            if is_transient(error):
                _log.warning("waiting for MongoDB", error=first_line(error))
                await asyncio.sleep(pause)
            elif _code(error) in _OVERTAKEN and overtaken < ATTEMPTS:
                overtaken += 1
                await asyncio.sleep(pause * overtaken / 100)
            else:
                raise StartError(await _explained(database, error)) from error
        else:
            return


async def _prepare(database: Database, collections: Collections) -> None:
    examined = await examine(database, collections)
    _raise_if_blocked(database.name, examined)
    refused: dict[str, OperationFailure] = {}
    for name, found in examined.items():
        for one in found:
            try:
                await _apply(database, name, one)
            except OperationFailure as error:
                if one.what != VALIDATOR or _code(error) != UNAUTHORIZED:
                    raise
                refused[name] = error
    for name, refusal in refused.items():
        _log.warning(
            "the validator could not be updated",
            collection=f"{database.name}.{name}",
            error=first_line(refusal),
            fix=await how_to_permit(database),
        )


def _raise_if_blocked(database: str, examined: Mapping[str, Sequence[Difference]]) -> None:
    blocking = [(name, one) for name, found in examined.items() for one in found if one.fix]
    if not blocking:
        return
    name, first = blocking[0]
    more = f" ({len(blocking) - 1} more: `ordersaga doctor` names them all)" if len(blocking) > 1 else ""
    raise StartError(f"{database}.{name}: {first}; {first.fix}{more}")


async def _apply(database: Database, name: str, difference: Difference) -> None:
    _log.info("updating the schema", collection=name, what=difference.what, found=difference.found)
    with pymongo.timeout(BUILD_SECONDS):
        await database.command({**difference.command, "writeConcern": {"w": "majority"}})


async def _inspect(database: Database, name: str, entry: Document | None) -> Found:
    if entry is None:
        return Found(database.name, name)
    indexes = await database[name].index_information() if entry["type"] == "collection" else {}
    return Found(database.name, name, entry["type"], entry["options"], indexes)


def _options(found: Found) -> Iterator[Difference]:
    """Yield the permanent options of a collection that lose documents or treat different ids as equal."""
    for option, is_, wanted in (
        ("capped", "capped, so it overwrites its oldest documents", "one without a limit"),
        ("expireAfterSeconds", "one that deletes its documents by their age", "one that keeps them"),
        ("collation", "one that compares texts by a collation", "one that compares them byte by byte"),
    ):
        if option in _given(found.options):
            yield Difference("collection", is_, wanted, fix=_copied(found))


def _rules(schema: CollectionSchema) -> Document:
    return {} if schema.validator is None else {"validator": _as_stored(schema.validator), **_STRICT}


def _validator(schema: CollectionSchema, found: Found) -> Iterator[Difference]:
    if schema.validator is None:
        return
    wanted, there = _rules(schema), found.options
    if wanted["validator"] == there.get("validator") and all(
        there.get(key, strict) == strict for key, strict in _STRICT.items()
    ):
        return
    # The replaced validator is logged completely, in case an operator needs it back.
    is_ = json.dumps({key: there[key] for key in wanted if key in there}, default=str)
    command = {"collMod": found.name, **wanted}
    yield Difference(VALIDATOR, is_ if there.get("validator") else "missing", "the service's", command)


def _indexes(schema: CollectionSchema, found: Found) -> Iterator[Difference]:
    declared = {index.document["name"]: _as_stored(index.document) for index in schema.indexes}
    for name, there in found.indexes.items():
        if name in declared:
            yield from _index(found, declared[name], there)
        elif name != "_id_":
            yield from _foreign_index(found, declared, name, there)
    missing = {name: index for name, index in declared.items() if name not in found.indexes}
    if missing:
        # Built by a majority of the members, not by all: a member that is away must not block a start.
        command = {"createIndexes": found.name, "indexes": list(missing.values()), "commitQuorum": "majority"}
        yield Difference(f"index {', '.join(missing)}", "missing", command=command)


def _index(found: Found, wanted: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[Difference]:
    name = wanted["name"]
    if _key(wanted) != _key(there) or _index_options(wanted) != _index_options(there):
        drop = _in_mongosh(_call(found, "dropIndex", name))
        yield Difference(f"index {name}", _described(there), _described(wanted), fix=drop)
    elif there.get("hidden"):
        show = _in_mongosh(_call(found, "unhideIndex", name))
        yield Difference(f"index {name}", "hidden", "one that queries can use", fix=show)


def _foreign_index(
    found: Found, declared: Mapping[str, Mapping[str, Any]], name: str, there: Mapping[str, Any]
) -> Iterator[Difference]:
    """Yield an undeclared index if it takes a declared one's place, rejects writes or deletes documents."""
    drop = _in_mongosh(_call(found, "dropIndex", name))
    for wanted in declared.values():
        if _identity(wanted) == _identity(there) and wanted["name"] not in found.indexes:
            yield Difference(f"index {name}", _described(there), f"called {wanted['name']}", fix=drop)
            return
    if there.get("unique") or "expireAfterSeconds" in there:
        yield Difference(f"index {name}", _described(there), "none that refuses or deletes documents", fix=drop)


def _key(index: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the fields of a declared or existing index, in order."""
    key = index["key"]
    return list(key.items() if isinstance(key, Mapping) else map(tuple, key))


def _index_options(index: Mapping[str, Any]) -> Document:
    return {name: value for name, value in _given(index).items() if name not in _NOT_COMPARED}


def _given(options: Mapping[str, Any]) -> Document:
    """Return the options that have an effect: 0 seconds has one, False has none."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def _identity(index: Mapping[str, Any]) -> tuple[Any, ...]:
    options = _index_options(index)
    return _key(index), *(options.get(name) for name in _TELLING_APART)


def _described(index: Mapping[str, Any]) -> str:
    return json.dumps({"key": dict(_key(index)), **_index_options(index)}, default=str)


def _as_stored(document: Mapping[str, Any]) -> Document:
    """Return the document as MongoDB returns it: lists for tuples, strings for enumerations."""
    return bson.decode(bson.encode(document))


def _call(found: Found, method: str, *arguments: object, name: str | None = None) -> str:
    collection = f'db.getSiblingDB("{found.database}").getCollection("{name or found.name}")'
    return f"{collection}.{method}({', '.join(map(json.dumps, arguments))})"


def _in_mongosh(*calls: str) -> str:
    return f"run in mongosh: {'; '.join(calls)}"


def _copied(found: Found) -> str:
    """Return how to replace a collection by a copy without its options."""
    copy = f"{found.name}_copy"
    calls = (
        _call(found, "aggregate", [{"$out": copy}]),
        _call(found, "drop"),
        _call(found, "renameCollection", found.name, name=copy),
    )
    return f"stop every process of the service and {_in_mongosh(*calls)}"


def _code(error: PyMongoError) -> int | None:
    return error.code if isinstance(error, OperationFailure) else None


async def _explained(database: Database, error: PyMongoError) -> str:
    if _code(error) != UNAUTHORIZED:
        return f"MongoDB refuses the schema of {database.name}: {first_line(error)}"
    return f"MongoDB refuses the schema of {database.name}: {first_line(error)}; {await how_to_permit(database)}"


async def how_to_permit(database: Database) -> str:
    """Return the command that gives the user of this connection the rights that it needs on the database."""
    status = (await database.command("connectionStatus"))["authInfo"]
    users = status["authenticatedUsers"]
    if not users:
        return "name a user in ORDERSAGA_MONGODB_URL: mongodb://user:password@host/"
    # More than the role of its own would let a service change its audit log.
    own_role = f"_{users[0]['user']}"
    if any(role["db"] == "admin" and role["role"].endswith(own_role) for role in status["authenticatedUserRoles"]):
        return "run `ordersaga database prepare` as an administrator, which sets the rights of this release"
    roles = json.dumps([{"role": role, "db": database.name} for role in ("readWrite", "dbAdmin")])
    name, home = json.dumps(users[0]["user"]), json.dumps(users[0]["db"])
    return f"as an administrator run in mongosh: db.getSiblingDB({home}).grantRolesToUser({name}, {roles})"

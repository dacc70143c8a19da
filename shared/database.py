"""The one module that connects to MongoDB: PyMongo's asyncio API, or Motor, its predecessor with the same calls."""

import asyncio
import inspect
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, TypeVar, cast

import pymongo.lock
import pymongo.network_layer
import pymongo.pool_shared
import structlog
from pymongo import AsyncMongoClient, MongoClient, UpdateMany, UpdateOne
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConnectionFailure,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern

from shared import tls, tracing
from shared.errors import DatabaseUnavailableError, StartError
from shared.settings import ServiceSettings
from shared.urls import hide_credentials, names_several_members

Document = dict[str, Any]
Collection = AsyncCollection[Document]
Database = AsyncDatabase[Document]

T = TypeVar("T")
AnyClient = TypeVar("AnyClient", AsyncMongoClient[Document], MongoClient[Document])

_log = structlog.get_logger(__name__)


async def _wait_for(awaited: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109 - replaces asyncio.wait_for
    """Wait in the current task, as `asyncio.wait_for` does since Python 3.12."""
    async with asyncio.timeout(timeout):
        return await awaited


if sys.version_info < (3, 12):
    # Python 3.11 waits in a separate task, which may outlive its cancelled caller. The driver waits for a server this
    # way, and the task takes the client's lock again: a call that is cancelled while MongoDB is away fails with "Lock
    # is not acquired", or the lock is never released and every later call of the client hangs.
    pymongo.lock.wait_for = _wait_for  # type: ignore[attr-defined, assignment]
    # It also forgets a cancellation that comes when the separate task has just ended (python/cpython#86296). The driver
    # connects and sends every message this way, so that many a cancelled loop over the database went on for ever.
    _asyncio = SimpleNamespace(**(vars(asyncio) | {"wait_for": _wait_for}))
    pymongo.network_layer.asyncio = pymongo.pool_shared.asyncio = _asyncio  # type: ignore[attr-defined, assignment]


# Codes of a server that steps down, starts up, shuts down or has lost its majority
# (https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml).
_TRANSIENT_CODES = frozenset(
    {6, 7, 24, 50, 64, 89, 91, 112, 133, 134, 189, 262, 9001, 10058, 10107, 11600, 11601, 11602, 13435, 13436}
)
# Unauthorized, AuthenticationFailed, MechanismUnavailable, and AtlasError, which Atlas gives for the second.
_REFUSAL_CODES = frozenset({13, 18, 334, 8000})
DUPLICATE_KEY = 11000
_OF_SEVERAL_MEMBERS = {"connectTimeoutMS": 2000, "heartbeatFrequencyMS": 2000}
"""Options where another member can take over: a silent primary is noticed within 4 s, after which calls that wait for
its answer are sent to the new one. The driver's own values would take 30 s."""
_OWN_TLS = re.compile(r"[?&;](tls(CAFile|CertificateKeyFile|CRLFile|Insecure|AllowInvalid\w*))=", re.IGNORECASE)
_DETAILS = re.compile(", Timeout:|, full error:|\n")
_COMMAND = re.compile(r"(execute command \{ \w+: [^,]+,).*")


def client(settings: ServiceSettings) -> AsyncMongoClient[Document]:
    """Open a client with majority writes and a time limit on every call; it connects on first use.

    If the URL names several members, the loss of one is noticed early, unless the URL has options for that.

    Raises StartError for a URL with contradictory or unknown options.
    """
    options: dict[str, Any] = {
        "tz_aware": True,
        "w": "majority",
        "timeoutMS": int(settings.database_timeout_seconds * 1000),
        "appname": "ordersaga",
        **_failover_options(settings.mongodb_url),
    }
    if listeners := tracing.database_listeners():
        options["event_listeners"] = listeners
    try:
        if settings.mongo_driver == "motor":
            made = cast("AsyncMongoClient[Document]", _motor_client(settings.mongodb_url, options))
        else:
            made = AsyncMongoClient(settings.mongodb_url, **options)
        return with_our_tls(made, settings.mongodb_url)
    except (PyMongoError, ValueError, TypeError) as error:
        raise StartError(f"ORDERSAGA_MONGODB_URL is not valid: {first_line(error)}") from None


def _failover_options(url: str) -> dict[str, int]:
    """Return the options for a URL with several members, those that it has itself excepted."""
    if not names_several_members(url):
        return {}
    given = {name.lower() for name in re.findall(r"[?&;](\w+)=", url)}
    return {name: value for name, value in _OF_SEVERAL_MEMBERS.items() if name.lower() not in given}


def _motor_client(url: str, options: dict[str, Any]) -> Any:
    try:
        from motor.motor_asyncio import AsyncIOMotorClient
    except ImportError:
        raise StartError(
            "ORDERSAGA_MONGO_DRIVER=motor needs the optional extra: pip install 'ordersaga[motor]'"
        ) from None
    return AsyncIOMotorClient(url, **options)


def with_our_tls(mongo: AnyClient, url: str) -> AnyClient:
    """Let a client that uses TLS use our certificates, also after they have changed; return the client.

    A client whose URL has options for certificates of its own is left alone. Must be called before the first
    connection. Raises StartError if a file of a certificate cannot be used.
    """
    # Motor wraps a client of PyMongo; PyMongo takes every other name for that of a database.
    options: Any = vars(mongo).get("delegate", mongo).options.pool_options
    # The driver takes files, which it reads once; the attribute that it makes of them is private.
    if options._ssl_context is not None and not _OWN_TLS.search(url):  # noqa: SLF001
        options._PoolOptions__ssl_context = tls.client_context()  # noqa: SLF001
    return mongo


async def close(mongo: AsyncMongoClient[Document]) -> None:
    """Close a client of either driver."""
    closing: Any = mongo.close()
    if inspect.isawaitable(closing):
        await closing


async def aggregate(
    collection: Collection, pipeline: Sequence[Mapping[str, Any]], *, hint: str | None = None
) -> AsyncIterator[Document]:
    """Stream the results of an aggregation, with either driver; `hint` is the index to use."""
    options: dict[str, Any] = {} if hint is None else {"hint": hint}
    cursor: Any = collection.aggregate(pipeline, **options)
    if inspect.isawaitable(cursor):
        cursor = await cursor
    async for document in cursor:
        yield document


async def wait_until_ready(database: Database, *, pause: float = 1.0) -> None:
    """Wait until MongoDB answers and has a primary; log one line per second meanwhile.

    Raises StartError where waiting does not help: MongoDB refuses the user, or is not a replica set, which majority
    writes and failover need.
    """
    while True:
        try:
            hello = await database.command("hello")
        except PyMongoError as error:
            if is_refusal(error):
                raise StartError(
                    f"MongoDB refuses the user in ORDERSAGA_MONGODB_URL ({first_line(error)}): check user, password "
                    "and authSource there, and the user's roles"
                ) from None
            _log.warning("waiting for MongoDB", error=first_line(error))
        else:
            if "setName" not in hello and hello.get("msg") != "isdbgrid":
                raise StartError(
                    "MongoDB is not a replica set: start mongod with --replSet rs0 and run rs.initiate() once"
                )
            if hello.get("isWritablePrimary", hello.get("ismaster")):
                return
            _log.warning("waiting for MongoDB to elect a primary")
        await asyncio.sleep(pause)


def latest(collection: Collection) -> Collection:
    """Return the collection for reads that see every acknowledged write, of documents by their `_id`s.

    A new primary may not know yet how much of its data a majority has: until then, other reads do not show all of it.
    And a former primary that has not noticed the election shows old data. Each of these reads waits until a majority
    confirms the primary, so they are for what another read has not found, before anything is decided on that.
    """
    return collection.with_options(read_concern=ReadConcern("linearizable"))


async def find_existing(
    collection: Collection,
    ids: Iterable[Any],
    query: Mapping[str, Any] = MappingProxyType({}),
    projection: Mapping[str, Any] | None = None,
) -> list[Document]:
    """Return the documents that have these `_id`s and match the query, also those that only `latest` finds."""
    wanted = set(ids)
    found: list[Document] = await collection.find({"_id": {"$in": list(wanted)}, **query}, projection).to_list(None)
    if missing := wanted - {document["_id"] for document in found}:
        again: Document = {"_id": {"$in": list(missing)}, **query}
        found += await latest(collection).find(again, projection).to_list(None)
    return found


def guarded_updates(
    updates: Sequence[tuple[Mapping[str, Any], Any]], *, upsert: bool = False
) -> list[UpdateOne] | list[UpdateMany]:
    """Return updates of one document each, as pairs of a query with its `_id` and a guard, and the change.

    A caller that writes several must decide them again if it is not known which were stored: an election meanwhile is a
    transient error. The driver repeats a single one by itself. So that it can be repeated, the server keeps the fate of
    each such update in `config.transactions`, which is an eighth of its work in a batch; only updates of "many"
    documents are free of that, though these find one at most.
    """
    if len(updates) == 1:
        return [UpdateOne(*updates[0], upsert=upsert)]
    return [UpdateMany(query, change, upsert=upsert) for query, change in updates]


def is_refusal(error: Exception) -> bool:
    """Return True if the server refuses the user: unknown, a wrong password, or a missing role."""
    return isinstance(error, OperationFailure) and error.code in _REFUSAL_CODES


def translate_error(error: Exception) -> Exception:
    """Return DatabaseUnavailableError for a driver's error that passes by itself, any other error unchanged."""
    if is_transient(error):
        return DatabaseUnavailableError(first_line(error))
    return error


def is_transient(error: Exception) -> bool:
    """Return True if the error is about the server (away, slow, electing a primary) and not about the call itself."""
    if is_refusal(error):
        return False
    if isinstance(error, BulkWriteError):
        return _bulk_is_transient(error)
    if isinstance(error, AutoReconnect | ConnectionFailure | NetworkTimeout | ExecutionTimeout | WTimeoutError):
        return True
    if isinstance(error, OperationFailure) and error.code in _TRANSIENT_CODES:
        return True
    return isinstance(error, PyMongoError) and error.timeout


def _bulk_is_transient(error: BulkWriteError) -> bool:
    details = error.details or {}
    if details.get("writeConcernErrors"):
        return True
    failures = details.get("writeErrors", [])
    return bool(failures) and all(failure.get("code") in _TRANSIENT_CODES for failure in failures)


def duplicates(error: BulkWriteError) -> set[Any]:
    """Return the `_id`s of an unordered bulk insert that already exist; reraise the error if anything else failed."""
    return {failure["op"]["_id"] for failure in _duplicate_keys(error)}


def lost_updates(error: BulkWriteError) -> set[Any]:
    """Return the `_id`s that an unordered bulk of guarded upserts has not changed; reraise if anything else failed."""
    return {failure["op"]["q"]["_id"] for failure in _duplicate_keys(error)}


def _duplicate_keys(error: BulkWriteError) -> list[Any]:
    details = error.details or {}
    failures: list[Any] = details.get("writeErrors", [])
    if details.get("writeConcernErrors") or any(failure.get("code") != DUPLICATE_KEY for failure in failures):
        raise error
    return failures


def first_line(error: BaseException) -> str:
    """Return a driver's error as one line for the log, the same line each time for the same cause."""
    text = _DETAILS.split(str(error), maxsplit=1)[0]
    # The error of a missing permission quotes the whole command, with the time and number of the call in it.
    return hide_credentials(tls.plain_reason(_COMMAND.sub(r"\1 ... }", text)))[:300]

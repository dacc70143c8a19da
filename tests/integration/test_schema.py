"""The schema is created at the start; each conflict is named with a command that fixes it."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pymongo import ASCENDING, DESCENDING, AsyncMongoClient, IndexModel
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import AutoReconnect, WriteError
from pymongo.monitoring import CommandListener, CommandStartedEvent
from structlog.testing import capture_logs

from operations.stack.ports import PortClaims
from shared import schema
from shared.database import Database
from shared.errors import StartError
from shared.schema import CollectionSchema, Found, differences, examine, prepare
from tests.support.access import keys_file
from tests.support.builders import connected
from tests.support.guarded_mongodb import guarded_mongodb, user_with

AT_LEAST_ONE = {"$jsonSchema": {"required": ("amount",), "properties": {"amount": {"bsonType": "int", "minimum": 1}}}}
INDEXES = (
    IndexModel([("userId", ASCENDING), ("at", DESCENDING)], name="by_user"),
    IndexModel([("due", ASCENDING)], name="due", partialFilterExpression={"due": {"$exists": True}}),
    IndexModel([("since", ASCENDING)], name="since", sparse=True),
    IndexModel([("number", ASCENDING)], name="number", unique=True),
)
BOOKS = {"books": CollectionSchema(INDEXES, AT_LEAST_ONE), "notes": CollectionSchema()}
WELL: dict[str, list[Any]] = {"books": [], "notes": []}
BOOK = {"_id": "b", "amount": 1, "number": 1}


@pytest.fixture(params=["pymongo", "motor"])
async def db(request: pytest.FixtureRequest, mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_schema", request.param) as database:
        yield database


@pytest.fixture
async def database(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_schema") as database:
        yield database


CHANGES: dict[str, Callable[..., Awaitable[Any]]] = {
    "drop": AsyncCollection.drop,
    "dropIndex": AsyncCollection.drop_index,
    "renameCollection": AsyncCollection.rename,
}


async def in_mongosh(database: Database, line: str) -> None:
    """Run the command of the line in mongosh."""
    calls = re.findall(r'db\.getSiblingDB\("([^"]+)"\)(?:\.getCollection\("([^"]+)"\))?\.(\w+)\(([^()]*)\)', line)
    assert calls, line
    for name, collection, method, written in calls:
        arguments = json.loads(f"[{written}]")
        if method == "grantRolesToUser":
            await database.client[name].command(method, arguments[0], roles=arguments[1])
            continue
        of = database.client[name][collection]
        if method == "aggregate":
            await (await of.aggregate(*arguments)).to_list()
        elif method == "unhideIndex":
            await database.client[name].command("collMod", collection, index={"name": arguments[0], "hidden": False})
        else:
            await CHANGES[method](of, *arguments)


async def refusal(database: Database) -> str:
    with pytest.raises(StartError) as stopped:
        await prepare(database, BOOKS, pause=0.01)
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


async def options(database: Database, name: str) -> Any:
    listed = await database.command("listCollections", filter={"name": name})
    return listed["cursor"]["firstBatch"][0]["options"]


async def test_missing_collections_and_indexes_are_created_once(db: Database) -> None:
    assert [str(one) for one in (await examine(db, BOOKS))["books"]] == [
        "collection: missing",
        "index by_user, due, since, number: missing",
    ]
    await prepare(db, BOOKS)
    assert await examine(db, BOOKS) == WELL
    assert (await options(db, "books"))["validationAction"] == "error"
    assert set(await db["books"].index_information()) == {"_id_", "by_user", "due", "since", "number"}
    with pytest.raises(WriteError, match="failed validation"):
        await db["books"].insert_one({**BOOK, "amount": 0})


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"validator": {"amount": {"$gt": 5}}},
        {"validator": AT_LEAST_ONE, "validationAction": "warn"},
        {"validator": AT_LEAST_ONE, "validationLevel": "moderate"},
    ],
    ids=["none", "another", "that-only-warns", "that-passes-over-old-documents"],
)
async def test_a_validator_that_differs_is_brought_up_to_date(db: Database, other: dict[str, Any]) -> None:
    await db.command({"create": "books", **other})
    await prepare(db, BOOKS)
    assert await examine(db, BOOKS) == WELL
    made = {"validationLevel": "strict", "validationAction": "error"}
    assert await options(db, "books") == {"validator": json.loads(json.dumps(AT_LEAST_ONE)), **made}


async def test_the_log_has_the_validator_that_was_replaced() -> None:
    there = Found("d", "books", "collection", {"validator": {"nobody": "declared"}, "validationLevel": "off"})
    (difference,) = differences(CollectionSchema(validator=AT_LEAST_ONE), there)
    assert json.loads(difference.found) == there.options


async def test_additions_by_others_are_kept(db: Database) -> None:
    theirs = {"validator": {"nobody": "declared"}, "validationLevel": "moderate", "validationAction": "warn"}
    await db.command({"create": "notes", **theirs})
    await prepare(db, BOOKS)
    await db["books"].create_index("title", name="operators")
    await db["books"].drop_index("due")
    await prepare(db, BOOKS)
    assert await examine(db, BOOKS) == WELL
    assert {"operators", "due"} < set(await db["books"].index_information())
    assert await options(db, "notes") == theirs


async def hidden(database: Database) -> None:
    await database["books"].create_index("since", name="since", sparse=True)
    await database.command({"collMod": "books", "index": {"name": "since", "hidden": True}})


def index(name: str, key: str, **others: Any) -> Callable[[Database], Awaitable[Any]]:
    return lambda database: database["books"].create_index(key, name=name, **others)


def collection(**others: Any) -> Callable[[Database], Awaitable[Any]]:
    return lambda database: database.create_collection("books", **others)


IN_THE_WAY: dict[str, tuple[Callable[[Database], Awaitable[Any]], str]] = {
    "another key": (index("since", "until", sparse=True), '"until"'),
    "unique": (index("since", "since", sparse=True, unique=True), '"unique": true'),
    "not unique": (index("number", "number"), 'needed: {"key": {"number": 1}, "unique": true}'),
    "not sparse": (index("since", "since"), '"sparse": true'),
    "another filter": (index("due", "due", partialFilterExpression={"due": {"$gt": 1}}), '{"due": {"$gt": 1}}'),
    "no filter": (index("due", "due"), '"partialFilterExpression"'),
    "expiring at once": (index("since", "since", sparse=True, expireAfterSeconds=0), '"expireAfterSeconds": 0'),
    "hidden": (hidden, "index since: hidden"),
    "another name": (index("elsewhere", "since", sparse=True), "called since"),
    "undeclared, unique": (index("theirs", "title", unique=True), "none that refuses"),
    "undeclared, expiring": (index("theirs", "title", expireAfterSeconds=60), "none that refuses"),
    "capped": (collection(capped=True, size=4096), "capped"),
    "collated": (collection(collation={"locale": "en", "strength": 2}), "compares texts by a collation"),
    "expiring": (
        collection(clusteredIndex={"key": {"_id": 1}, "unique": True}, expireAfterSeconds=0),
        "deletes its documents",
    ),
}
NO_COLLECTION: dict[str, tuple[Callable[[Database], Awaitable[Any]], str]] = {
    "a view": (collection(viewOn="others", pipeline=[]), "collection: a view"),
    "a time series": (collection(timeseries={"timeField": "at"}), "collection: a timeseries"),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
async def test_a_conflict_stops_the_start_and_the_command_in_its_line_removes_it(database: Database, case: str) -> None:
    make, words = IN_THE_WAY[case]
    await make(database)
    await database["books"].insert_one(BOOK)

    line = await refusal(database)

    assert line.startswith(f"{database.name}.books: ")
    assert words in line
    assert await database.list_collection_names() == ["books"]  # nothing else that is missing was created
    await in_mongosh(database, line)
    await prepare(database, BOOKS)
    assert await examine(database, BOOKS) == WELL
    assert await database["books"].find().to_list() == [BOOK]


@pytest.mark.parametrize("case", NO_COLLECTION)
async def test_a_view_stops_the_start_and_the_command_in_its_line_removes_it(database: Database, case: str) -> None:
    make, words = NO_COLLECTION[case]
    await make(database)
    await database["others"].insert_one({})
    line = await refusal(database)
    assert words in line
    await in_mongosh(database, line)
    await prepare(database, BOOKS)
    assert await examine(database, BOOKS) == WELL
    assert await database["books"].count_documents({}) == 0  # the documents of a view belong to another collection


async def test_of_several_conflicts_one_is_described_and_the_others_are_counted(database: Database) -> None:
    await database["books"].create_index("userId", name="by_user")
    await database["books"].create_index("until", name="due")
    await database["notes"].create_index("title", name="theirs", unique=True)
    assert (await refusal(database)).endswith("(2 more: `ordersaga doctor` names them all)")


async def test_many_processes_that_start_at_once_all_start(mongodb_url: str, database_prefix: str) -> None:
    async with AsyncExitStack() as stack:
        names = [f"{database_prefix}_schema"] * 8
        processes = [await stack.enter_async_context(connected(mongodb_url, name)) for name in names]
        await asyncio.gather(*(prepare(process, BOOKS, pause=0.1) for process in processes))
        assert await examine(processes[0], BOOKS) == WELL

        await processes[0].command({"collMod": "books", "validator": {"other": 1}})
        await processes[0]["books"].drop_index("by_user")
        await asyncio.gather(*(prepare(process, BOOKS, pause=0.1) for process in processes))
        assert await examine(processes[0], BOOKS) == WELL


def first_look(monkeypatch: pytest.MonkeyPatch, first: dict[str, list[Any]] | Exception) -> None:
    """Let the first check of the database return this, and the others read its real state."""
    looks = [first]

    async def look(*arguments: Any) -> dict[str, list[Any]]:
        if not looks:
            return await examine(*arguments)
        if isinstance(seen := looks.pop(), Exception):
            raise seen
        return seen

    monkeypatch.setattr(schema, "examine", look)


async def test_a_process_that_was_overtaken_checks_again(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    outdated = await examine(db, BOOKS)
    await db.command({"create": "books"})
    first_look(monkeypatch, outdated)
    await prepare(db, BOOKS, pause=0)
    assert await examine(db, BOOKS) == WELL


async def test_a_process_reports_a_conflict_that_another_process_created(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.create_collection("books")
    outdated = await examine(database, BOOKS)
    await database["books"].create_index("until", name="since")
    first_look(monkeypatch, outdated)
    assert 'dropIndex("since")' in await refusal(database)


async def test_a_process_that_is_always_overtaken_ends_with_the_error_of_the_server(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    outdated = await examine(database, BOOKS)
    await database.create_collection("books")

    async def look(*_: Any) -> dict[str, list[Any]]:
        return outdated

    monkeypatch.setattr(schema, "examine", look)
    assert "already exists" in await refusal(database)


async def test_a_database_that_goes_away_is_waited_for(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    first_look(monkeypatch, AutoReconnect("connection closed"))
    await prepare(database, BOOKS, pause=0)
    assert await examine(database, BOOKS) == WELL


class Longest(CommandListener):
    """Records the server's time limit for each command."""

    def __init__(self) -> None:
        self.allowed: dict[str, int] = {}

    def started(self, event: CommandStartedEvent) -> None:
        self.allowed[event.command_name] = event.command.get("maxTimeMS", 0)

    def succeeded(self, event: Any) -> None: ...

    def failed(self, event: Any) -> None: ...


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_an_index_may_take_longer_than_any_other_call(
    mongodb_url: str, database_prefix: str, driver: str
) -> None:
    from motor.motor_asyncio import AsyncIOMotorClient

    longest = Longest()
    opened: Any = AsyncMongoClient if driver == "pymongo" else AsyncIOMotorClient
    client = opened(mongodb_url, timeoutMS=10_000, event_listeners=[longest])
    await prepare(client[f"{database_prefix}_schema"], BOOKS)
    closing = client.close()
    if closing is not None:
        await closing
    assert 0 < longest.allowed["listCollections"] <= 10_000
    assert longest.allowed["createIndexes"] > 3600 * 1000


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Callable[[str], str]]:
    async with guarded_mongodb(tmp_path_factory.mktemp("guarded")) as url_for:
        yield url_for


@pytest.fixture
async def ours(guarded: Callable[[str], str], unique_id: str) -> AsyncIterator[Database]:
    """A database of the MongoDB that asks for a password, as its administrator sees it."""
    name = f"t{unique_id}"
    async with connected(guarded("root"), name) as database:
        yield database
        await database.client.drop_database(name)


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_missing_rights_are_named_with_the_command_that_grants_them(
    guarded: Callable[[str], str], ours: Database, driver: str
) -> None:
    user = await user_with("read", ours)
    await ours.create_collection("books", validator=AT_LEAST_ONE)
    async with connected(guarded(user), ours.name, driver) as theirs:
        line = await refusal(theirs)
        assert "createIndexes" in line
        assert f'grantRolesToUser("{user}"' in line
        await in_mongosh(ours, line)
        await prepare(theirs, BOOKS)
        assert await examine(theirs, BOOKS) == WELL


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_without_the_right_to_change_a_validator_a_service_warns_and_starts(
    guarded: Callable[[str], str], ours: Database, driver: str
) -> None:
    user = await user_with("readWrite", ours)
    await ours.create_collection("books")
    async with connected(guarded(user), ours.name, driver) as theirs:
        with capture_logs() as logs:
            await prepare(theirs, BOOKS)

        (warning,) = [log for log in logs if log["log_level"] == "warning"]
        assert warning["collection"] == f"{ours.name}.books"
        assert "collMod" in warning["error"]
        assert f'grantRolesToUser("{user}"' in warning["fix"]
        assert [one.what for one in (await examine(theirs, BOOKS))["books"]] == ["validator"]
        assert (await examine(theirs, BOOKS))["notes"] == []

        await in_mongosh(ours, warning["fix"])
        await prepare(theirs, BOOKS)
        assert await examine(theirs, BOOKS) == WELL


async def test_a_connection_without_a_user_must_name_one(guarded: Callable[[str], str], unique_id: str) -> None:
    async with connected(guarded(""), f"t{unique_id}") as database:
        assert "name a user in ORDERSAGA_MONGODB_URL" in await refusal(database)


async def test_a_service_ends_with_one_line(mongodb_url: str, database_prefix: str) -> None:
    async with connected(mongodb_url, f"{database_prefix}_orders") as database:
        await database.create_collection("orders", capped=True, size=4096)
    environment = {
        **os.environ,
        "ORDERSAGA_MONGODB_URL": mongodb_url,
        "ORDERSAGA_DATABASE_PREFIX": database_prefix,
        "ORDERSAGA_HTTP_PORT": "0",
        "ORDERSAGA_KEYS_FILE": str(keys_file()),
    }
    with PortClaims() as claims:
        environment["ORDERSAGA_HTTP_PORT"] = str(claims.claim_free())
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "order_service",
            cwd=Path(__file__).parents[2],
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(120):
                _, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 1
    (line,) = said.decode().splitlines()
    assert line.startswith(f"{database_prefix}_orders.orders: collection: capped")
    assert "renameCollection" in line

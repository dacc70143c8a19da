"""The database in memory as a simulation uses it: steps, majorities, elections and time; without any server."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pytest
from bson import Int64, ObjectId
from pymongo import UpdateOne
from pymongo.errors import AutoReconnect, ExecutionTimeout, NotPrimaryError, OperationFailure
from pymongo.read_concern import ReadConcern

from shared.database import is_transient, latest
from shared.memory_database import MemoryDatabase
from tests.support.virtual_time import run_in_virtual_time

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LAG = 2.0


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


class Colour(StrEnum):
    RED = "red"


class Steps:
    """Records the steps of an operation, and fails at one of them."""

    def __init__(self, failing: str = "") -> None:
        self.seen: list[tuple[str, str]] = []
        self.failing = failing

    async def __call__(self, operation: str, collection: str) -> None:
        self.seen.append((operation, collection))
        if operation == self.failing:
            raise AutoReconnect("connection closed")


def in_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an asynchronous test on a loop whose time passes at once."""

    def run() -> None:
        run_in_virtual_time(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def slow_majority() -> MemoryDatabase:
    """Return a database whose majority needs LAG seconds for each change."""
    return MemoryDatabase("db", clock=Clock(), replication_lag=lambda: LAG)


def confirmed(database: MemoryDatabase) -> Any:
    return database.get_collection("things", read_concern=ReadConcern("majority"))


async def ids(collection: Any) -> list[Any]:
    return [each["_id"] for each in await collection.find().sort("_id").to_list()]


async def begun(call: Awaitable[Any]) -> asyncio.Future[Any]:
    """Return a call that has had time to take effect, and perhaps waits for a majority."""
    task = asyncio.ensure_future(call)
    await asyncio.sleep(LAG / 10)
    return task


# --- Values. ---


@in_virtual_time
async def test_a_value_comes_back_as_the_driver_would_return_it() -> None:
    things = MemoryDatabase("db", clock=Clock())["things"]
    given = {
        "_id": 1,
        "at": datetime(2026, 6, 1, 2, 0, 0, 1999, tzinfo=UTC),
        "local": datetime(2026, 6, 1),  # the driver takes it for UTC
        "colour": Colour.RED,
        "pair": (1, 2),
        "long": 2**40,
        "bytes": b"b",
    }
    await things.insert_one(given)
    found = await things.find_one({"colour": Colour.RED})
    assert found == {
        "_id": 1,
        "at": datetime(2026, 6, 1, 2, 0, 0, 1000, tzinfo=UTC),
        "local": NOW,
        "colour": "red",
        "pair": [1, 2],
        "long": 2**40,
        "bytes": b"b",
    }
    assert (type(found["colour"]), type(found["long"])) == (str, Int64)


@in_virtual_time
async def test_callers_share_nothing_with_the_database() -> None:
    things = MemoryDatabase("db", clock=Clock())["things"]
    given = {"_id": 1, "list": [{"k": 1}]}
    await things.insert_one(given)
    given["list"][0]["k"] = 2  # type: ignore[index]
    found = await things.find_one({"_id": 1})
    assert found == {"_id": 1, "list": [{"k": 1}]}
    found["list"].append(3)
    assert await things.find_one({"_id": 1}) == {"_id": 1, "list": [{"k": 1}]}


@in_virtual_time
async def test_ids_are_the_same_in_every_run() -> None:
    document: dict[str, Any] = {}
    await MemoryDatabase("db", clock=Clock())["things"].insert_one(document)
    assert document == {"_id": ObjectId("000000000000000000000001")}


# --- What is not modelled. ---


@pytest.mark.parametrize(
    ("named", "call"),
    [
        ("$regex", lambda things: things.find_one({"a": {"$regex": "x"}})),
        ("$where", lambda things: things.find_one({"$where": "true"})),
        ("$rename", lambda things: things.update_one({"_id": 1}, {"$rename": {"a": "b"}})),
        ("$unset", lambda things: things.update_one({"_id": 1}, [{"$unset": "a"}])),
        ("$lookup", lambda things: things.aggregate([{"$lookup": {}}])),
        ("$avg", lambda things: things.aggregate([{"$group": {"_id": None, "a": {"$avg": "$a"}}}])),
        ("$concat", lambda things: things.find_one({"$expr": {"$concat": ["a"]}})),
        ("collation", lambda things: things.find_one({}, collation={"locale": "en"})),
        ("array_filters", lambda things: things.update_one({}, {"$set": {"a": 1}}, array_filters=[{"a": 1}])),
        (
            "collation",
            lambda things: things.bulk_write([UpdateOne({}, {"$set": {"a": 1}}, collation={"locale": "en"})]),
        ),
        ("collection.distinct", lambda things: things.distinct("a")),
        ("dbStats", lambda things: things.database.command("dbStats")),
        ("session.with_transaction", lambda things: things.database.client.start_session().with_transaction),
        ("text", lambda things: things.database.command(_index({"key": {"a": "text"}}))),
        ("hidden", lambda things: things.database.command(_index({"key": {"a": 1}, "hidden": True}))),
        ("pattern", lambda things: things.database.command({"create": "x", "validator": _validator(pattern="x")})),
    ],
)
def test_what_is_not_modelled_is_refused_by_its_name(named: str, call: Callable[[Any], Awaitable[Any]]) -> None:
    async def refused() -> None:
        things = MemoryDatabase("db", clock=Clock())["things"]
        await things.insert_one({"_id": 1})
        with pytest.raises(NotImplementedError) as raised:
            await call(things)
        assert named in str(raised.value)

    run_in_virtual_time(refused())


def _index(given: dict[str, Any]) -> dict[str, Any]:
    return {"createIndexes": "things", "indexes": [{"name": "x", **given}]}


def _validator(**keywords: Any) -> dict[str, Any]:
    return {"$jsonSchema": {"properties": {"a": keywords}}}


# --- Steps. ---


@in_virtual_time
async def test_a_step_comes_before_the_effect_between_the_writes_of_a_bulk_and_before_the_answer() -> None:
    steps = Steps()
    things = MemoryDatabase("db", clock=Clock()).connected(steps)["things"]
    await things.insert_many([{"_id": 1}, {"_id": 2}])
    await things.find_one({"_id": 1})
    assert steps.seen == [
        (operation, "things")
        for operation in ("insert_many", "insert_many:next", "insert_many:answer", "find", "find:answer")
    ]


@pytest.mark.parametrize(("failing", "stored"), [("insert_one", []), ("insert_one:answer", [1])])
def test_a_lost_connection_loses_the_call_or_only_its_answer(failing: str, stored: list[int]) -> None:
    async def lost() -> None:
        database = MemoryDatabase("db", clock=Clock())
        with pytest.raises(AutoReconnect):
            await database.connected(Steps(failing))["things"].insert_one({"_id": 1})
        assert await ids(database["things"]) == stored

    run_in_virtual_time(lost())


@in_virtual_time
async def test_a_commit_without_an_answer_is_of_unknown_outcome_and_can_be_repeated() -> None:
    database = MemoryDatabase("db", clock=Clock())
    steps = Steps("commit_transaction:answer")
    own = database.connected(steps)
    async with own.client.start_session() as session:
        await session.start_transaction()
        await own["things"].insert_one({"_id": 1}, session=session)
        with pytest.raises(AutoReconnect) as raised:
            await session.commit_transaction()
        assert raised.value.has_error_label("UnknownTransactionCommitResult")
        steps.failing = ""
        await session.commit_transaction()
    assert await ids(database["things"]) == [1]


@in_virtual_time
async def test_a_lost_connection_within_a_transaction_lets_all_of_it_be_repeated() -> None:
    database = MemoryDatabase("db", clock=Clock())
    own = database.connected(Steps("insert_one:answer"))
    async with own.client.start_session() as session:
        await session.start_transaction()
        with pytest.raises(AutoReconnect) as raised:
            await own["things"].insert_one({"_id": 1}, session=session)
        assert raised.value.has_error_label("TransientTransactionError")
    assert await ids(database["things"]) == []


# --- The majority and elections. ---


@in_virtual_time
async def test_a_write_waits_for_the_majority_and_majority_reads_do_not_see_it_before() -> None:
    database = slow_majority()
    write = await begun(database["things"].insert_one({"_id": 1}))
    assert not write.done()
    assert (await ids(database["things"]), await ids(confirmed(database))) == ([1], [])
    started = asyncio.get_running_loop().time()
    assert await ids(latest(database["things"])) == [1]  # type: ignore[arg-type]
    assert asyncio.get_running_loop().time() - started > LAG / 2
    assert await ids(confirmed(database)) == [1]
    assert write.done()


@in_virtual_time
async def test_an_election_takes_back_what_no_majority_has_confirmed() -> None:
    database = slow_majority()
    things = database["things"]
    await things.insert_many([{"_id": 1, "n": 0}, {"_id": 2}])
    calls = [
        await begun(call)
        for call in (
            things.update_one({"_id": 1}, {"$set": {"n": 1}}),
            things.delete_one({"_id": 2}),
            things.insert_one({"_id": 3}),
        )
    ]
    assert database.elect() == 3
    for call in calls:
        with pytest.raises(NotPrimaryError) as raised:
            await call
        assert raised.value.has_error_label("RetryableWriteError")
        assert is_transient(raised.value)
    assert await things.find().sort("_id").to_list() == [{"_id": 1, "n": 0}, {"_id": 2}]
    await asyncio.sleep(2 * LAG)
    assert await ids(confirmed(database)) == [1, 2]
    await things.insert_one({"_id": 3})
    assert await ids(confirmed(database)) == [1, 2, 3]


@in_virtual_time
async def test_a_refused_write_is_answered_only_when_what_refused_it_is_certain() -> None:
    database = slow_majority()
    first = await begun(database["things"].insert_one({"_id": 1}))
    second = await begun(database["things"].insert_one({"_id": 1}))
    assert not second.done()
    database.elect()
    for call in (first, second):
        with pytest.raises(NotPrimaryError):
            await call
    assert await ids(database["things"]) == []


@in_virtual_time
async def test_an_election_aborts_transactions_and_takes_back_commits() -> None:
    database = slow_majority()
    things = database["things"]
    async with database.client.start_session() as open_one, database.client.start_session() as committed:
        for session, number in ((open_one, 1), (committed, 2)):
            await session.start_transaction()
            await things.insert_one({"_id": number}, session=session)
        commit = await begun(committed.commit_transaction())
        database.elect()
        with pytest.raises(NotPrimaryError) as lost:
            await commit
        assert lost.value.has_error_label("UnknownTransactionCommitResult")
        for session in (open_one, committed):
            with pytest.raises(OperationFailure) as raised:
                await session.commit_transaction()
            assert raised.value.has_error_label("TransientTransactionError")
    assert await ids(things) == []


class ElectionWithin:
    """A step that lets an election happen between the writes of a bulk."""

    def __init__(self, database: MemoryDatabase, moment: str) -> None:
        self._database = database
        self._moment = moment

    async def __call__(self, operation: str, _collection: str) -> None:
        if operation == self._moment:
            self._database.elect()


@in_virtual_time
async def test_an_election_between_the_writes_of_a_bulk_fails_all_of_it() -> None:
    database = slow_majority()
    things = database.connected(ElectionWithin(database, "insert_many:next"))["things"]
    with pytest.raises(NotPrimaryError):
        await things.insert_many([{"_id": 1}, {"_id": 2}])
    assert await ids(database["things"]) == []


@in_virtual_time
async def test_an_election_while_the_last_write_of_a_bulk_waits_fails_all_of_it() -> None:
    database = slow_majority()
    things = database["things"]
    await things.insert_many([{"_id": 1}, {"_id": 2}])
    session = database.client.start_session()
    await session.start_transaction()
    await things.update_one({"_id": 2}, {"$set": {"n": 1}}, session=session)
    changes = [UpdateOne({"_id": number}, {"$set": {"n": 2}}) for number in (1, 2)]
    bulk = await begun(things.bulk_write(changes))
    database.elect()
    with pytest.raises(NotPrimaryError):
        await bulk
    assert (await things.find_one({"_id": 1})) == {"_id": 1}


@in_virtual_time
async def test_a_transaction_that_an_election_aborts_within_a_bulk_writes_no_further() -> None:
    database = slow_majority()
    await database["things"].insert_many([{"_id": 1}, {"_id": 2}])
    own = database.connected(ElectionWithin(database, "bulk_write:next"))
    changes = [UpdateOne({"_id": number}, {"$set": {"n": 1}}) for number in (1, 2)]
    async with own.client.start_session() as session:
        await session.start_transaction()
        with pytest.raises(OperationFailure) as raised:
            await own["things"].bulk_write(changes, session=session)
        assert raised.value.has_error_label("TransientTransactionError")
    await database["things"].update_many({}, {"$set": {"n": 2}})
    assert [each["n"] for each in await database["things"].find().to_list()] == [2, 2]


@in_virtual_time
async def test_a_new_primary_may_not_know_yet_what_is_confirmed() -> None:
    database = slow_majority()
    for number in (1, 2):
        await database["things"].insert_one({"_id": number})
    database.elect(unknown=1)
    assert (await ids(database["things"]), await ids(confirmed(database))) == ([1, 2], [1])
    assert await ids(latest(confirmed(database))) == [1, 2]
    assert await ids(confirmed(database)) == [1, 2]


@in_virtual_time
async def test_a_write_that_no_majority_confirms_fails_in_time() -> None:
    database = MemoryDatabase("db", clock=Clock(), replication_lag=lambda: 3600, timeout_seconds=5)
    with pytest.raises(ExecutionTimeout) as raised:
        await database["things"].insert_one({"_id": 1})
    assert is_transient(raised.value)


# --- Time. ---


@in_virtual_time
async def test_a_transaction_that_is_left_open_is_in_the_way_for_a_minute() -> None:
    clock = Clock()
    database = MemoryDatabase("db", clock=clock)
    things = database["things"]
    await things.insert_one({"_id": 1, "n": 0})
    session = database.client.start_session()
    await session.start_transaction()
    await things.update_one({"_id": 1}, {"$inc": {"n": 1}}, session=session)
    with pytest.raises(ExecutionTimeout):
        await things.update_one({"_id": 1}, {"$inc": {"n": 10}})
    clock.now += timedelta(minutes=1)
    await things.update_one({"_id": 1}, {"$inc": {"n": 100}})
    assert (await things.find_one({"_id": 1}))["n"] == 100  # type: ignore[index]


@in_virtual_time
async def test_documents_expire_by_the_clock() -> None:
    clock = Clock()
    database = MemoryDatabase("db", clock=clock)
    await database.command(_index({"key": {"at": 1}, "expireAfterSeconds": 60}))
    await database["things"].insert_many([{"_id": 1, "at": NOW}, {"_id": 2}])
    assert database.delete_expired() == 0
    clock.now += timedelta(seconds=60)
    assert database.delete_expired() == 1
    assert await ids(database["things"]) == [2]


@in_virtual_time
async def test_the_log_keeps_what_a_snapshot_needs() -> None:
    database = MemoryDatabase("db", clock=Clock())
    things = database["things"]
    await things.insert_one({"_id": 1, "n": 0})
    async with database.client.start_session(snapshot=True) as session:
        await things.find_one({"_id": 1}, session=session)
        for _ in range(3000):
            await things.update_one({"_id": 1}, {"$inc": {"n": 1}})
        assert (await things.find_one({"_id": 1}, session=session))["n"] == 0  # type: ignore[index]
    assert (await things.find_one({"_id": 1}))["n"] == 3000  # type: ignore[index]

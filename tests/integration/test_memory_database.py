"""The database in memory beside a real MongoDB: random operations have the same results, errors and effects."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import DeleteMany, DeleteOne, InsertOne, ReplaceOne, UpdateMany, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from shared.clock import utc_now
from shared.database import Collection, Database, Document
from shared.memory_database import MemoryDatabase
from tests.support.builders import connected
from tests.support.memory_databases import MEMORY, MONGODB
from tests.support.seeds import seed_count
from tests.support.servers import Servers

EXAMPLES = seed_count() * 2
CREATED = datetime(2026, 6, 1, tzinfo=UTC)
UNIQUE = {"key": {"u": 1}, "name": "unique", "unique": True, "partialFilterExpression": {"u": {"$exists": True}}}
VALIDATOR = {
    "$jsonSchema": {
        "properties": {"n": {"bsonType": ["int", "long"], "minimum": -50}, "s": {"enum": ["A", "B", None]}},
        "anyOf": [{"not": {"required": ["s"]}}, {"required": ["n"]}],
    }
}


@pytest.fixture(scope="module")
async def pair(servers: Servers) -> AsyncIterator[tuple[Database, Database]]:
    """A database of MongoDB and one in memory, each with the same collection."""
    name = f"t{secrets.token_hex(8)}"
    memory = MemoryDatabase(name, clock=utc_now).as_database()
    async with connected(servers.mongodb_url, name) as real:
        for database in (real, memory):
            await database.command({"create": "things", "validator": VALIDATOR})
            await database.command({"createIndexes": "things", "indexes": [UNIQUE]})
        yield real, memory
        await real.client.drop_database(name)


# --- Random operations. ---

IDS = st.sampled_from(["x", "y", "z"])
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.0, 1.0, 1.5, -2.5, 2**31, 2**40]),
    st.sampled_from(["", "A", "B", "a.b"]),
    st.booleans(),
    st.none(),
    st.sampled_from([CREATED, CREATED + timedelta(seconds=1, microseconds=1700), b"\x00\x01"]),
)
ELEMENTS: st.SearchStrategy[Any] = st.dictionaries(st.sampled_from(["k", "m"]), SCALARS, max_size=2)
VALUES: st.SearchStrategy[Any] = st.one_of(
    SCALARS, st.lists(st.one_of(SCALARS, ELEMENTS), max_size=3), st.lists(ELEMENTS, max_size=3), ELEMENTS
)
FIELDS = st.sampled_from(["a", "b", "u"])
PATHS = st.sampled_from(["a", "b", "n", "s", "l", "a.k", "b.k", "l.m", "l.k", "b.0", "a.1.k"])
CHECKED = st.fixed_dictionaries(
    {}, optional={"n": st.integers(-51, 51), "s": st.sampled_from(["A", "B", "C"]), "l": st.lists(ELEMENTS, max_size=3)}
)
"""The fields about which the collection's validator has something to say, and one that is always an array."""
DOCUMENTS = st.builds(
    lambda key, fields, more: {"_id": key, **more, **fields},
    IDS,
    st.dictionaries(FIELDS, VALUES, max_size=3),
    CHECKED,
)


def _operators(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.fixed_dictionaries({}, optional={"$gte": values, "$lt": values}).filter(bool),
        st.builds(lambda name, value: {name: value}, st.sampled_from(["$eq", "$ne", "$lte", "$gt"]), values),
        st.builds(
            lambda name, some: {name: some}, st.sampled_from(["$in", "$nin"]), st.lists(values, min_size=1, max_size=3)
        ),
        st.builds(lambda there: {"$exists": there}, st.booleans()),
    )


CONDITIONS = st.one_of(
    VALUES,
    _operators(SCALARS),
    st.builds(lambda condition: {"$not": condition}, _operators(SCALARS)),
    st.builds(
        lambda fields: {"$elemMatch": fields},
        st.dictionaries(st.sampled_from(["k", "m"]), st.one_of(SCALARS, _operators(SCALARS)), min_size=1, max_size=2),
    ),
)
SIMPLE_QUERIES = st.dictionaries(PATHS, CONDITIONS, max_size=2)
NUMBERS = st.one_of(
    st.sampled_from(["$missing", {"$ifNull": ["$n", 0]}, {"$size": {"$ifNull": ["$l", []]}}]),
    st.integers(-3, 3),
    st.sampled_from([1.5, 2**31, 2**62]),
)
"""Expressions that cannot fail: of one that does, MongoDB may find out before there is a document, or never."""
EXPRESSIONS: st.SearchStrategy[Any] = st.deferred(
    lambda: st.one_of(
        st.sampled_from(["$a", "$b", "$n", "$s", "$a.k", "$missing"]),
        SCALARS,
        st.builds(lambda value: {"$literal": value}, VALUES),
        st.builds(
            lambda name, *pair: {name: [*pair]}, st.sampled_from(["$eq", "$gt", "$lt", "$lte"]), OPERAND, OPERAND
        ),
        st.builds(lambda name, *pair: {name: [*pair]}, st.sampled_from(["$add", "$subtract"]), NUMBERS, NUMBERS),
        st.builds(lambda *pair: {"$subtract": [*pair]}, st.just(CREATED), st.sampled_from([1000, CREATED, None])),
        st.builds(lambda *pair: {"$ifNull": [*pair]}, OPERAND, OPERAND),
        st.builds(lambda *three: {"$cond": [*three]}, OPERAND, OPERAND, st.one_of(OPERAND, st.just("$$REMOVE"))),
        st.builds(lambda *pair: {"$and": [*pair]}, OPERAND, OPERAND),
        st.builds(lambda one: {"$not": [one]}, OPERAND),
        st.builds(
            lambda name, value: {"$filter": {"input": "$l", "cond": {name: ["$$this.k", value]}}},
            st.sampled_from(["$eq", "$gt"]),
            SCALARS,
        ),
        st.builds(
            lambda case, then, default: {"$switch": {"branches": [{"case": case, "then": then}], "default": default}},
            OPERAND,
            OPERAND,
            OPERAND,
        ),
    )
)
OPERAND: st.SearchStrategy[Any] = st.one_of(st.sampled_from(["$a", "$b", "$n", "$missing"]), SCALARS, EXPRESSIONS)
QUERIES = st.one_of(
    SIMPLE_QUERIES,
    st.builds(lambda key: {"_id": key}, IDS),
    st.builds(lambda keys: {"_id": {"$in": keys}}, st.lists(IDS, min_size=1, max_size=2)),
    st.builds(
        lambda name, some: {name: some},
        st.sampled_from(["$or", "$and", "$nor"]),
        st.lists(SIMPLE_QUERIES, min_size=1, max_size=2),
    ),
    st.builds(lambda value: {"$expr": value}, EXPRESSIONS),
)
OF_ONE = st.builds(lambda key, rest: {"_id": key, **rest}, IDS, SIMPLE_QUERIES)
"""Queries of one document: which of several MongoDB takes first is its own business."""
PUSHES = st.one_of(
    SCALARS,
    ELEMENTS,
    st.builds(
        lambda some, length: {"$each": some, "$slice": length}, st.lists(SCALARS, max_size=3), st.sampled_from([-2, 2])
    ),
)
OPERATORS = st.fixed_dictionaries(
    {},
    optional={
        "$set": st.dictionaries(PATHS, VALUES, min_size=1, max_size=2),
        "$setOnInsert": st.dictionaries(PATHS, VALUES, min_size=1, max_size=1),
        "$unset": st.dictionaries(PATHS, st.just(""), min_size=1, max_size=2),
        "$inc": st.dictionaries(PATHS, st.one_of(st.integers(-60, 60), st.just(0.5)), min_size=1, max_size=1),
        "$max": st.dictionaries(PATHS, SCALARS, min_size=1, max_size=1),
        "$push": st.dictionaries(PATHS, PUSHES, min_size=1, max_size=1),
        "$pull": st.dictionaries(
            PATHS, st.dictionaries(st.sampled_from(["k", "m"]), SCALARS, min_size=1, max_size=1), min_size=1, max_size=1
        ),
    },
).filter(bool)
STAGES = st.lists(
    st.builds(
        lambda fields: {"$set": fields},
        st.dictionaries(st.sampled_from(["a", "b", "n", "s", "c"]), EXPRESSIONS, min_size=1, max_size=2),
    ),
    min_size=1,
    max_size=2,
)
UPDATES = st.one_of(OPERATORS, STAGES, st.just({"$inc": {"n": "1"}}))
PROJECTIONS = st.sampled_from(
    [
        None,
        {},
        {"_id": True},
        {"a": True, "b.k": True},
        {"a": False},
        {"a.k": False, "b": {"$slice": -1}},
        {"_id": False},
    ]
)
ORDERS = st.lists(st.tuples(PATHS, st.sampled_from([1, -1])), min_size=1, max_size=2, unique_by=lambda each: each[0])

Operation = Callable[[Collection], Awaitable[Any]]


def _call(name: str, *arguments: st.SearchStrategy[Any], **named: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), st.tuples(*arguments), st.fixed_dictionaries(named))


WRITES = st.one_of(
    st.builds(InsertOne, DOCUMENTS),
    st.builds(UpdateOne, OF_ONE, UPDATES, upsert=st.booleans()),
    st.builds(UpdateMany, QUERIES, OPERATORS),
    st.builds(ReplaceOne, OF_ONE, st.dictionaries(FIELDS, VALUES, max_size=3), upsert=st.booleans()),
    st.builds(DeleteOne, OF_ONE),
    st.builds(DeleteMany, QUERIES),
)
CALLS = st.one_of(
    _call("insert_one", DOCUMENTS),
    _call("insert_many", st.lists(DOCUMENTS, min_size=1, max_size=3), ordered=st.booleans()),
    _call("update_one", OF_ONE, UPDATES, upsert=st.booleans()),
    _call("update_many", QUERIES, UPDATES),
    _call("replace_one", OF_ONE, st.dictionaries(FIELDS, VALUES, max_size=3), upsert=st.booleans()),
    _call("delete_one", OF_ONE),
    _call("delete_many", QUERIES),
    _call("find_one_and_update", OF_ONE, UPDATES, upsert=st.booleans(), return_document=st.booleans()),
    _call("bulk_write", st.lists(WRITES, min_size=1, max_size=4), ordered=st.booleans()),
    _call("count_documents", QUERIES),
    _call("find", QUERIES, PROJECTIONS),
    _call("sorted", QUERIES, ORDERS),
    _call("aggregate", QUERIES, PATHS, EXPRESSIONS),
)


async def _made(collection: Collection, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Make a call and return its result in a form that can be compared."""
    match name:
        case "find":
            found = await collection.find(*arguments).to_list()
            return sorted(found, key=repr)
        case "sorted":
            query, order = arguments
            return await collection.find(query).sort([*order, ("_id", 1)]).to_list()
        case "aggregate":
            query, path, value = arguments
            stages = [
                {"$match": query},
                {"$sort": {path: 1, "_id": 1}},
                {"$group": {"_id": value, "first": {"$first": "$_id"}, "total": {"$sum": f"${path}"}}},
                {"$sort": {"first": 1}},
            ]
            return await (await collection.aggregate(stages)).to_list()
    result = await getattr(collection, name)(*arguments, **named)
    if hasattr(result, "bulk_api_result"):
        return result.bulk_api_result
    kept = ("inserted_id", "inserted_ids", "matched_count", "modified_count", "deleted_count", "upserted_id")
    return {attribute: getattr(result, attribute) for attribute in kept if hasattr(result, attribute)} or result


async def _outcome(collection: Collection, call: Any) -> Any:
    """Return the result of a call, or the kind of its error, with what the callers read of it."""
    try:
        return await _made(collection, *call)
    except BulkWriteError as error:
        details = dict(error.details)
        failures = [(each["index"], each["code"], each["op"]) for each in details.pop("writeErrors")]
        return BulkWriteError, failures, details
    except OperationFailure as error:
        return type(error), error.code
    except (PyMongoError, ValueError) as error:
        return (type(error),)


async def _assert_alike(pair: tuple[Database, Database], calls: list[Any]) -> None:
    real, memory = (database["things"] for database in pair)
    for collection in (real, memory):
        await collection.delete_many({})
    for call in calls:
        try:
            ours = await _outcome(memory, call)
        except NotImplementedError:
            return  # after a part of a bulk, perhaps
        assert await _outcome(real, call) == ours, call
        assert await contents(real) == await contents(memory), call


async def contents(collection: Collection) -> list[Document]:
    return await collection.find().sort("_id").to_list()


@settings(max_examples=EXAMPLES)
@given(calls=st.lists(CALLS, min_size=1, max_size=8))
async def test_random_operations_have_the_same_results_and_effects(
    pair: tuple[Database, Database], calls: list[Any]
) -> None:
    await _assert_alike(pair, calls)


# --- What random operations do not meet. ---


@pytest.fixture(params=[MONGODB, MEMORY])
async def things(
    pair: tuple[Database, Database], request: pytest.FixtureRequest, unique_id: str
) -> AsyncIterator[Collection]:
    """A collection of one of the two, with two documents."""
    database = pair[request.param == MEMORY]
    collection = database[f"c{unique_id}"]
    await collection.insert_many([{"_id": name, "n": 0, "parts": [{"k": 1}, {"k": 2}]} for name in "ab"])
    yield collection
    await collection.delete_many({})


async def number(collection: Collection, name: str = "a") -> int:
    found = await collection.find_one({"_id": name})
    assert found is not None
    return int(found["n"])


async def test_the_place_of_an_array_that_a_query_finds_is_changed(things: Collection) -> None:
    by_match = {"_id": "a", "parts": {"$elemMatch": {"k": 2, "m": {"$exists": False}}}}
    assert (await things.update_one(by_match, {"$set": {"parts.$": {"k": 2, "m": 3}}})).modified_count == 1
    assert (await things.update_one(by_match, {"$set": {"parts.$": {}}})).matched_count == 0
    await things.update_one({"_id": "a", "parts.k": 1}, {"$set": {"parts.$.m": 4}})
    assert await things.find_one({"_id": "a"}, {"parts": True}) == {
        "_id": "a",
        "parts": [{"k": 1, "m": 4}, {"k": 2, "m": 3}],
    }


async def test_the_time_of_an_update_and_of_a_query_is_that_of_the_database(things: Collection) -> None:
    await things.update_one({"_id": "a"}, {"$currentDate": {"at": True}})
    later: Any = {"$expr": {"$lt": ["$at", {"$subtract": ["$$NOW", 3_600_000]}]}}
    earlier: Any = {"$expr": {"$lt": ["$at", {"$add": ["$$NOW", 3_600_000]}]}, "_id": "a"}
    assert await things.count_documents(later | {"_id": "a"}) == 0
    assert await things.count_documents(earlier) == 1


async def test_a_second_document_with_the_same_key_is_refused_with_its_key(things: Collection) -> None:
    with pytest.raises(DuplicateKeyError) as raised:
        await things.insert_one({"_id": "a"})
    assert raised.value.details is not None
    kept = {name: raised.value.details[name] for name in ("index", "code", "keyPattern", "keyValue", "errmsg")}
    assert kept == {
        "index": 0,
        "code": 11000,
        "keyPattern": {"_id": 1},
        "keyValue": {"_id": "a"},
        "errmsg": f'E11000 duplicate key error collection: {things.full_name} index: _id_ dup key: {{ _id: "a" }}',
    }


async def test_a_transaction_sees_one_state_and_its_own_writes_until_it_commits(things: Collection) -> None:
    async with things.database.client.start_session() as session, await session.start_transaction():
        await things.update_one({"_id": "a"}, {"$inc": {"n": 1}}, session=session)
        await things.update_one({"_id": "b"}, {"$inc": {"n": 5}})
        await things.insert_one({"_id": "c", "n": 1}, session=session)
        within = [each["n"] async for each in things.find(session=session).sort("_id")]
        assert within == [1, 0, 1]
        assert [each["n"] for each in await contents(things)] == [0, 5]
    assert [each["n"] for each in await contents(things)] == [1, 5, 1]


@pytest.mark.parametrize("statement", ["update_one", "find_one_and_update", "bulk_write", "insert_one"])
async def test_a_write_over_a_newer_change_is_a_conflict_that_ends_the_transaction(
    things: Collection, statement: str
) -> None:
    inserts = statement == "insert_one"
    query, change = {"_id": "new" if inserts else "a"}, {"$inc": {"n": 1}}
    arguments: dict[str, tuple[Any, ...]] = {
        "bulk_write": ([UpdateOne(query, change)],),
        "insert_one": ({"_id": "new", "n": 7},),
    }
    async with things.database.client.start_session() as session:
        await session.start_transaction(read_concern=ReadConcern("snapshot"))
        await things.find_one({"_id": "b"}, session=session)
        await things.update_one(query, change, upsert=True)
        with pytest.raises(OperationFailure) as raised:
            await getattr(things, statement)(*arguments.get(statement, (query, change)), session=session)
        assert raised.value.code == 112
        assert raised.value.has_error_label("TransientTransactionError")
        with pytest.raises(OperationFailure) as raised:
            await things.find_one({"_id": "b"}, session=session)
        assert (raised.value.code, raised.value.has_error_label("TransientTransactionError")) == (251, True)
        await session.abort_transaction()
    assert await number(things, query["_id"]) == 1


async def test_a_duplicate_within_a_transaction_ends_it(things: Collection) -> None:
    async with things.database.client.start_session() as session:
        await session.start_transaction()
        await things.update_one({"_id": "b"}, {"$inc": {"n": 1}}, session=session)
        with pytest.raises(BulkWriteError):
            await things.insert_many([{"_id": "a"}], session=session)
        with pytest.raises(OperationFailure) as raised:
            await session.commit_transaction()
        assert (raised.value.code, raised.value.has_error_label("TransientTransactionError")) == (251, True)
    assert await number(things, "b") == 0


async def test_a_write_outside_waits_for_the_transaction(things: Collection) -> None:
    async with things.database.client.start_session() as session:
        await session.start_transaction()
        await things.update_one({"_id": "a"}, {"$inc": {"n": 1}}, session=session)
        outside = asyncio.create_task(things.update_one({"_id": "a"}, {"$inc": {"n": 10}}))
        await things.update_one({"_id": "b"}, {"$inc": {"n": 1}})  # another document does not wait
        assert not outside.done()
        await session.commit_transaction()
    assert (await outside).modified_count == 1
    assert await number(things) == 11


async def test_a_snapshot_session_always_reads_the_same(things: Collection) -> None:
    async with things.database.client.start_session(snapshot=True) as session:
        before = await things.find(session=session).to_list()
        await things.update_one({"_id": "a"}, {"$inc": {"n": 1}})
        await things.delete_one({"_id": "b"})
        assert await things.find(session=session).sort("_id").to_list() == before
    assert len(await contents(things)) == 1

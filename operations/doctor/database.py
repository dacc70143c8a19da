"""The MongoDB of a running stack: reachable, a replica set with transactions, its clock and its collections right."""

import importlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
import pymongo.errors
from pymongo.asynchronous.database import AsyncDatabase

from operations.doctor.finding import Finding, note, ok, wrong
from operations.reading.reachability import brief
from operations.stack.services import SERVICES
from shared import schema
from shared.database import is_passing

TIMEOUT_MS = 3000
SEARCH_MS = 3000
"""How long a collection is searched for a document that its validator refuses: it is read from end to end."""
LARGEST_CLOCK_DIFFERENCE = timedelta(seconds=2)

DATABASES = {
    "order": "orders",
    "inventory": "inventory",
    "payment": "payments",
    "provisioning": "provisioning",
    "console": "operations",
}
"""What each service's database is called after the prefix."""

Database = AsyncDatabase[dict[str, Any]]


async def check_database(url: str, prefix: str, services: Iterable[str]) -> AsyncIterator[Finding]:
    """Check everything about MongoDB that these services rely on."""
    client: pymongo.AsyncMongoClient[dict[str, Any]] = pymongo.AsyncMongoClient(
        url, serverSelectionTimeoutMS=TIMEOUT_MS
    )
    async with client:
        try:
            version = (await client.server_info())["version"]
        except pymongo.errors.PyMongoError as error:
            yield wrong("MongoDB", f"does not answer: {brief(error)}", "start it, or correct ORDERSAGA_MONGODB_URL")
            return
        yield ok("MongoDB", f"{version} answers")
        yield await check_replica_set(client)
        yield await check_transactions(client)
        yield await check_clock(client.admin)
        for service in services:
            for finding in await check_schema(client[f"{prefix}_{DATABASES[service]}"], service):
                yield finding


async def check_replica_set(client: "pymongo.AsyncMongoClient[dict[str, Any]]") -> Finding:
    """Check that the server is a member of a replica set that has a primary."""
    hello = await client.admin.command("hello")
    if hello.get("msg") == "isdbgrid":
        return ok("replica set", "a sharded cluster")
    if not hello.get("setName"):
        mend = "start mongod with --replSet rs0, then run rs.initiate() in mongosh; `ordersaga up` does both"
        return wrong("replica set", "MongoDB runs alone: it has no transactions", mend)
    if not hello.get("primary"):
        return wrong("replica set", f"{hello['setName']} has no primary", "bring a majority of its members up")
    return ok("replica set", f"{hello['setName']}, primary {hello['primary']}")


async def check_transactions(client: "pymongo.AsyncMongoClient[dict[str, Any]]") -> Finding:
    """Check, by a transaction that only reads, that transactions are possible."""
    try:
        async with client.start_session() as session, await session.start_transaction():
            await client["ordersaga_doctor"]["nothing"].find_one({}, session=session)
    except pymongo.errors.PyMongoError as error:
        return wrong("transactions", f"not possible: {brief(error)}", "run MongoDB as a replica set")
    return ok("transactions", "possible")


async def check_clock(admin: Database) -> Finding:
    """Compare this machine's clock with MongoDB's: deadlines are compared over both."""
    before = datetime.now(UTC)
    server = (await admin.command("hello"))["localTime"].replace(tzinfo=UTC)
    here = before + (datetime.now(UTC) - before) / 2
    difference = abs(server - here)
    detail = f"{difference.total_seconds() * 1000:.0f} ms between this machine and MongoDB"
    if difference > LARGEST_CLOCK_DIFFERENCE:
        return wrong("clock", detail, "keep both clocks right with NTP (systemd-timesyncd or chrony)")
    return ok("clock", detail)


async def check_schema(database: Database, service: str) -> list[Finding]:
    """Compare the service's collections with what it declares, as the service does when it starts; nothing changes."""
    collections = schema_of(service)
    try:
        examined = await schema.examine(database, collections)
    except pymongo.errors.PyMongoError as error:
        mend = await _remedy(database, error)
        return [wrong(f"collections of {database.name}", f"cannot be read: {brief(error)}", mend)]
    findings = []
    for name, found in examined.items():
        findings.append(_collection(f"{database.name}.{name}", found, service))
        findings += await _check_documents(database, name, collections[name].validator)
    return findings


async def _check_documents(database: Database, name: str, validator: Mapping[str, Any] | None) -> list[Finding]:
    """Look for a document from before the validator; there may be more than the one that is named."""
    if validator is None:
        return []
    what = f"documents of {database.name}.{name}"
    try:
        refused = await database[name].find_one({"$nor": [validator]}, {"_id": 1}, max_time_ms=SEARCH_MS)
    except pymongo.errors.ExecutionTimeout:
        detail = f"none that the validator refuses was found in {SEARCH_MS / 1000:g} s, and not all were looked at"
        return [note(what, detail)]
    except pymongo.errors.PyMongoError as error:
        return [wrong(what, f"cannot be read: {brief(error)}", await _remedy(database, error))]
    if refused is None:
        return []
    detail = f"the service's validator refuses {json.dumps(refused['_id'], default=str)}: writes to it fail"
    mend = "correct it in mongosh: the error of an update that does not, in its errInfo, says what is wrong with it"
    return [wrong(what, detail, mend)]


def schema_of(service: str) -> schema.Collections:
    """Return what a service declares of its collections."""
    declared: schema.Collections = importlib.import_module(f"{SERVICES[service].package}.schema").SCHEMA
    return declared


def _collection(name: str, found: Sequence[schema.Difference], service: str) -> Finding:
    if not found:
        return ok(f"collection {name}", "as it has to be")
    by_hand = [difference.mend for difference in found if difference.mend]
    start = f"start python -m {SERVICES[service].package}: it makes them"
    return wrong(f"collection {name}", "; ".join(map(str, found)), "; then ".join([*by_hand, start]))


async def _remedy(database: Database, error: pymongo.errors.PyMongoError) -> str:
    """What helps against an error of reading."""
    if isinstance(error, pymongo.errors.OperationFailure) and error.code == schema.UNAUTHORIZED:
        try:
            return await schema.how_to_permit(database)
        except pymongo.errors.PyMongoError:
            return "check the user in ORDERSAGA_MONGODB_URL"
    if error.timeout:
        return "MongoDB is slow or cannot be reached: look at its log and its load, then try again"
    if is_passing(error):
        return "MongoDB went away: see that it runs and has a primary, then try again"
    return "look into MongoDB's log"

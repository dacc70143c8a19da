"""The MongoDB of a running stack: reachable, a replica set with transactions, its clock and its collections right."""

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
import pymongo.errors
from pymongo.asynchronous.database import AsyncDatabase

from operations.doctor.connection import connect
from operations.doctor.database_server import check_server
from operations.doctor.finding import Finding, note, ok, wrong
from operations.doctor.replica_set import check_members
from operations.stack.database_schemas import schema_of
from shared import schema
from shared.database import is_transient
from shared.outage_words import with_detail
from shared.services import SERVICES
from shared.unfinished_restore import REMEDY, unfinished_restore

SEARCH_MS = 3000
"""Time limit of the search for an invalid document in a collection, which reads the whole collection."""
SHARDED = "a sharded cluster"
LARGEST_CLOCK_DIFFERENCE = timedelta(seconds=2)

Database = AsyncDatabase[dict[str, Any]]


async def check_database(
    url: str, prefix: str, services: Iterable[str], *, is_own: bool = False
) -> AsyncIterator[Finding]:
    """Check everything that these services require of MongoDB; `ordersaga up` runs it if it `is_own`."""
    async with connect(url) as client:
        try:
            of_server = await check_server(client)
        except pymongo.errors.PyMongoError as error:
            yield wrong(
                "MongoDB", f"does not answer: {with_detail(error)}", "start it, or correct ORDERSAGA_MONGODB_URL"
            )
            return
        for finding in of_server:
            yield finding
        replica_set = await check_replica_set(client)
        yield replica_set
        if replica_set.outcome == "ok" and replica_set.detail != SHARDED:
            for finding in await check_members(client, is_own=is_own):
                yield finding
        yield await check_transactions(client)
        yield await check_clock(client.admin)
        for service in services:
            for finding in await check_schema(client[SERVICES[service].database_in(prefix)], service):
                yield finding


async def check_replica_set(client: "pymongo.AsyncMongoClient[dict[str, Any]]") -> Finding:
    """Check that the server belongs to a replica set with a primary."""
    hello = await client.admin.command("hello")
    if hello.get("msg") == "isdbgrid":
        return ok("replica set", SHARDED)
    if not hello.get("setName"):
        fix = "start mongod with --replSet rs0, then run rs.initiate() in mongosh; `ordersaga up` does both"
        return wrong("replica set", "MongoDB runs standalone, without transactions", fix)
    if not hello.get("primary"):
        return wrong("replica set", f"{hello['setName']} has no primary", "start a majority of its members")
    return ok("replica set", f"{hello['setName']}, primary {hello['primary']}")


async def check_transactions(client: "pymongo.AsyncMongoClient[dict[str, Any]]") -> Finding:
    """Check with a read-only transaction that transactions are possible."""
    try:
        async with client.start_session() as session, await session.start_transaction():
            await client["ordersaga_doctor"]["nothing"].find_one({}, session=session)
    except pymongo.errors.PyMongoError as error:
        return wrong("transactions", f"not possible: {with_detail(error)}", "run MongoDB as a replica set")
    return ok("transactions", "possible")


async def check_clock(admin: Database) -> Finding:
    """Compare the clocks of this machine and of MongoDB, as deadlines are compared across both."""
    before = datetime.now(UTC)
    server = (await admin.command("hello"))["localTime"].replace(tzinfo=UTC)
    here = before + (datetime.now(UTC) - before) / 2
    difference = abs(server - here)
    detail = f"{difference.total_seconds() * 1000:.0f} ms between this machine and MongoDB"
    if difference > LARGEST_CLOCK_DIFFERENCE:
        return wrong("clock", detail, "synchronise both clocks with NTP (systemd-timesyncd or chrony)")
    return ok("clock", detail)


async def check_schema(database: Database, service: str) -> list[Finding]:
    """Compare the service's collections with its schema, as the service does at its start, without changes."""
    collections = schema_of(service)
    try:
        examined = await schema.examine(database, collections)
    except pymongo.errors.PyMongoError as error:
        fix = await _remedy(database, error)
        return [wrong(f"collections of {database.name}", f"cannot be read: {with_detail(error)}", fix)]
    findings = []
    if await unfinished_restore(database):
        findings.append(wrong(f"records of {database.name}", "a part of a backup: a restore is not finished", REMEDY))
    for name, found in examined.items():
        findings.append(_collection(f"{database.name}.{name}", found, service))
        findings += await _check_documents(database, name, collections[name].validator)
    return findings


async def _check_documents(database: Database, name: str, validator: Mapping[str, Any] | None) -> list[Finding]:
    """Search for a document older than the validator that violates it; only the first is reported."""
    if validator is None:
        return []
    subject = f"documents of {database.name}.{name}"
    try:
        refused = await database[name].find_one({"$nor": [validator]}, {"_id": 1}, max_time_ms=SEARCH_MS)
    except pymongo.errors.ExecutionTimeout:
        detail = f"no invalid document was found in {SEARCH_MS / 1000:g} s, but not all were checked"
        return [note(subject, detail)]
    except pymongo.errors.PyMongoError as error:
        return [wrong(subject, f"cannot be read: {with_detail(error)}", await _remedy(database, error))]
    if refused is None:
        return []
    detail = f"the validator refuses {json.dumps(refused['_id'], default=str)}: writes to it fail"
    fix = "correct it in mongosh; the errInfo of a failed update shows the invalid fields"
    return [wrong(subject, detail, fix)]


def _collection(name: str, found: Sequence[schema.Difference], service: str) -> Finding:
    if not found:
        return ok(f"collection {name}", "matches the schema")
    by_hand = [difference.fix for difference in found if difference.fix]
    start = f"start python -m {SERVICES[service].package}, which creates them"
    return wrong(f"collection {name}", "; ".join(map(str, found)), "; then ".join([*by_hand, start]))


async def _remedy(database: Database, error: pymongo.errors.PyMongoError) -> str:
    """Return a remedy for an error during reading."""
    if isinstance(error, pymongo.errors.OperationFailure) and error.code == schema.UNAUTHORIZED:
        try:
            return await schema.how_to_permit(database)
        except pymongo.errors.PyMongoError:
            return "check the user in ORDERSAGA_MONGODB_URL"
    if error.timeout:
        return "MongoDB is slow or cannot be reached: check its log and its load, then try again"
    if is_transient(error):
        return "MongoDB closed the connection: check that it runs and has a primary, then try again"
    return "check MongoDB's log"

"""The MongoDB of a running stack: reachable, a replica set with transactions, its clock and its collections right."""

import importlib
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
import pymongo.errors
from pymongo.asynchronous.database import AsyncDatabase

from operations.doctor.finding import Finding, ok, wrong
from operations.native.reachability import brief
from shared import schema

TIMEOUT_MS = 3000
LARGEST_CLOCK_DIFFERENCE = timedelta(seconds=2)

DATABASES = {"order": "orders", "inventory": "inventory", "payment": "payments", "provisioning": "provisioning"}
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
        mend = await _way_in(database)
        return [wrong(f"collections of {database.name}", f"cannot be read: {brief(error)}", mend)]
    return [_collection(f"{database.name}.{name}", found, service) for name, found in examined.items()]


def schema_of(service: str) -> schema.Collections:
    """Return what a service declares of its collections."""
    declared: schema.Collections = importlib.import_module(f"{service}_service.schema").SCHEMA
    return declared


def _collection(name: str, found: Sequence[schema.Difference], service: str) -> Finding:
    if not found:
        return ok(f"collection {name}", "as it has to be")
    by_hand = [difference.mend for difference in found if difference.mend]
    start = f"start python -m {service}_service: it makes them"
    return wrong(f"collection {name}", "; ".join(map(str, found)), "; then ".join([*by_hand, start]))


async def _way_in(database: Database) -> str:
    try:
        return await schema.how_to_permit(database)
    except pymongo.errors.PyMongoError:
        return "check the user in ORDERSAGA_MONGODB_URL"

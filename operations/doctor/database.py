"""The MongoDB of a running stack: reachable, a replica set, able to do transactions, indexed, its clock right."""

import importlib
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
import pymongo.errors
from pymongo import IndexModel
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase

from operations.doctor.finding import Finding, ok, wrong
from operations.native.reachability import brief

TIMEOUT_MS = 3000
LARGEST_CLOCK_DIFFERENCE = timedelta(seconds=2)

# By service: its database's name after the prefix, and the modules with the names and the indexes of its collections.
INDEXED = {
    "order": ("orders", ("order_service.orders",)),
    "inventory": ("inventory", ("inventory_service.products",)),
    "payment": (
        "payments",
        tuple(f"payment_service.{module}" for module in ("bank", "fund_payments", "idempotency", "ledger", "payments")),
    ),
    "provisioning": (
        "provisioning",
        ("provisioning_service.jobs", "provisioning_service.ownership", "provisioning_service.packages"),
    ),
}

Admin = AsyncDatabase[dict[str, Any]]


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
            name, modules = INDEXED[service]
            for module in modules:
                for collection, indexes in indexes_of(module).items():
                    yield await check_indexes(client[f"{prefix}_{name}"][collection], indexes, service)


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


async def check_clock(admin: Admin) -> Finding:
    """Compare this machine's clock with MongoDB's: deadlines are compared over both."""
    before = datetime.now(UTC)
    server = (await admin.command("hello"))["localTime"].replace(tzinfo=UTC)
    here = before + (datetime.now(UTC) - before) / 2
    difference = abs(server - here)
    detail = f"{difference.total_seconds() * 1000:.0f} ms between this machine and MongoDB"
    if difference > LARGEST_CLOCK_DIFFERENCE:
        return wrong("clock", detail, "keep both clocks right with NTP (systemd-timesyncd or chrony)")
    return ok("clock", detail)


def indexes_of(module_name: str) -> dict[str, Sequence[IndexModel]]:
    """Return the indexes that a module of records declares, by collection: it may have one collection or several."""
    module = importlib.import_module(module_name)
    return dict(module.INDEXES) if isinstance(module.INDEXES, dict) else {module.COLLECTION: module.INDEXES}


async def check_indexes(
    collection: AsyncCollection[dict[str, Any]], indexes: Sequence[IndexModel], service: str
) -> Finding:
    """Check that a collection's indexes exist; the service makes them at its start."""
    wanted = {index.document["name"]: dict(index.document["key"]) for index in indexes}
    what = f"indexes of {collection.full_name}"
    try:
        existing = await collection.index_information()
    except pymongo.errors.PyMongoError as error:
        return wrong(what, f"cannot be read: {brief(error)}", "check the user's rights in ORDERSAGA_MONGODB_URL")
    missing = [name for name, key in wanted.items() if dict(existing.get(name, {}).get("key", ())) != key]
    if missing:
        return wrong(what, f"missing: {', '.join(missing)}", f"start python -m {service}_service: it makes them")
    return ok(what, ", ".join(wanted))

"""The MongoDB of a running stack: reachable, a replica set, able to do transactions, indexed, its clock right."""

import importlib
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
import pymongo.errors
from pymongo.asynchronous.database import AsyncDatabase

from operations.doctor.finding import Finding, ok, wrong
from operations.native.reachability import brief

TIMEOUT_MS = 3000
LARGEST_CLOCK_DIFFERENCE = timedelta(seconds=2)

# By service: its database's name after the prefix, and the modules with the names and the indexes of its collections.
INDEXED = {
    "order": ("orders", ("order_service.orders",)),
    "inventory": ("inventory", ("inventory_service.products",)),
    "payment": ("payments", ("payment_service.payments",)),
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
                yield await check_indexes(client[f"{prefix}_{name}"], module)


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


async def check_indexes(database: Admin, module_name: str) -> Finding:
    """Check that a service's indexes exist; the service makes them at its start."""
    module = importlib.import_module(module_name)
    wanted = {index.document["name"]: dict(index.document["key"]) for index in module.INDEXES}
    what = f"indexes of {database.name}.{module.COLLECTION}"
    try:
        existing = await database[module.COLLECTION].index_information()
    except pymongo.errors.PyMongoError as error:
        return wrong(what, f"cannot be read: {brief(error)}", "check the user's rights in ORDERSAGA_MONGODB_URL")
    missing = [name for name, key in wanted.items() if dict(existing.get(name, {}).get("key", ())) != key]
    if missing:
        package = module.__name__.partition(".")[0]
        return wrong(what, f"missing: {', '.join(missing)}", f"start python -m {package}: it makes them")
    return ok(what, ", ".join(wanted))

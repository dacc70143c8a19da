"""Judges the version and the settings of a MongoDB server: storage, transactions, connections, cache."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pymongo
import pymongo.errors

from operations.doctor.finding import Finding, note, ok, wrong
from operations.doctor.machine import OLDEST_MONGOD
from shared import schema

SERVER, SUPPORT, STORAGE, LIFETIME, CONNECTIONS, CACHE = (
    "MongoDB",
    "support of MongoDB",
    "storage engine",
    "transaction lifetime",
    "connections",
    "cache",
)
OLDEST_TRIED = (6, 0, 5)
"""The oldest version that the tests run on."""
UNSUPPORTED_SINCE = {"5.0": "October 2024", "6.0": "July 2025"}
"""When MongoDB stopped publishing updates of a version, security updates included."""
SHORTEST_LIFETIME_SECONDS = 15
"""An operation on funds may take 10 s; a transaction must live longer."""
LONGEST_LIFETIME_SECONDS = 120
"""The transaction of a process that died keeps its accounts locked for this time, unless another process ends it."""
MOST_CONNECTIONS = 0.8
"""The part of the possible connections from which new processes may soon get none."""
MOST_DIRTY = 0.2
"""The part of the cache from which MongoDB lets clients write it to disk, which holds up all operations."""


async def check_server(client: "pymongo.AsyncMongoClient[dict[str, Any]]") -> list[Finding]:
    """Check version and settings of the server that answers, which is the primary of a replica set."""
    version = str((await client.server_info())["version"])
    findings = [check_version(version), check_support(version)]
    try:
        status = await client.admin.command("serverStatus")
        parameters = await _parameters(client)
    except pymongo.errors.OperationFailure as error:
        if error.code != schema.UNAUTHORIZED:
            raise
        fix = "run `ordersaga database prepare`, which lets maintenance read them (docs/database.md)"
        return [*findings, note("settings of MongoDB", "not checked: this user may not read them", fix)]
    return [*findings, *check_settings(status, parameters)]


async def _parameters(client: "pymongo.AsyncMongoClient[dict[str, Any]]") -> Mapping[str, Any]:
    """Read the parameters that are judged; a router of a sharded cluster does not know them, and answers an error."""
    try:
        return await client.admin.command(
            "getParameter", 1, featureCompatibilityVersion=1, transactionLifetimeLimitSeconds=1
        )
    except pymongo.errors.OperationFailure as error:
        if error.code == schema.UNAUTHORIZED:
            raise
        return {}


def check_version(version: str) -> Finding:
    """Check that a version is neither too old nor untried."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST_MONGOD:
        return wrong(SERVER, f"{version} is too old", "run MongoDB 5.0 or later: docs/containers.md#versions")
    if numbers < OLDEST_TRIED:
        oldest = ".".join(map(str, OLDEST_TRIED))
        return note(SERVER, f"{version} answers, older than what is tested", f"upgrade to {oldest} or later")
    return ok(SERVER, f"{version} answers")


def check_support(version: str) -> Finding:
    """Check that a version still gets security updates."""
    if since := UNSUPPORTED_SINCE.get(".".join(version.split(".")[:2])):
        return note(SUPPORT, f"{version}: no updates since {since}", "upgrade to 7.0, then to 8.0, when it suits you")
    return ok(SUPPORT, f"{version} gets updates, as far as this release knows")


def check_settings(status: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the answers to `serverStatus` and `getParameter`; a router of a sharded cluster has fewer settings."""
    compatible = parameters.get("featureCompatibilityVersion", {}).get("version")
    if compatible is not None and not str(status["version"]).startswith(f"{compatible}."):
        fix = "once no downgrade is planned: setFeatureCompatibilityVersion in mongosh"
        yield note("feature compatibility", f"that of {compatible}: the upgrade is not finished", fix)
    if engine := status.get("storageEngine", {}).get("name"):
        yield _engine(engine)
    if (lifetime := parameters.get("transactionLifetimeLimitSeconds")) is not None:
        yield _lifetime(int(lifetime))
    yield _connections(status["connections"])
    if cache := status.get("wiredTiger", {}).get("cache"):
        yield _cache(cache)


def _engine(name: str) -> Finding:
    if name not in ("wiredTiger", "inMemory"):
        return wrong(STORAGE, f"{name} has no transactions", "run mongod with --storageEngine wiredTiger")
    if name == "inMemory":
        return wrong(STORAGE, "inMemory: records are lost when it stops", "run mongod with --storageEngine wiredTiger")
    return ok(STORAGE, name)


def _lifetime(seconds: int) -> Finding:
    fix = "db.adminCommand({setParameter: 1, transactionLifetimeLimitSeconds: 60}) in mongosh, and in the configuration"
    if seconds < SHORTEST_LIFETIME_SECONDS:
        detail = f"{seconds} s: operations on funds may take 10 s, and would be ended"
        return wrong(LIFETIME, detail, fix)
    if seconds > LONGEST_LIFETIME_SECONDS:
        return note(LIFETIME, f"{seconds} s: one that is abandoned keeps its accounts locked for so long", fix)
    return ok(LIFETIME, f"{seconds} s")


def _connections(connections: Mapping[str, int]) -> Finding:
    current, possible = connections["current"], connections["current"] + connections["available"]
    detail = f"{current:,} of {possible:,} are open"
    if current > MOST_CONNECTIONS * possible:
        fix = "raise net.maxIncomingConnections and the limit of open files, or set maxPoolSize in the URLs of services"
        return wrong(CONNECTIONS, detail, fix)
    return ok(CONNECTIONS, detail)


def _cache(cache: Mapping[str, int]) -> Finding:
    largest, dirty = cache["maximum bytes configured"], cache["tracked dirty bytes in the cache"]
    detail = f"{largest / 1024**3:.2f} GiB, {100 * dirty / largest:.0f} % of it not yet on disk"
    if dirty > MOST_DIRTY * largest:
        return note(CACHE, f"{detail}: writes wait", "give MongoDB a faster disk, or more storage.wiredTiger cache")
    return ok(CACHE, detail)

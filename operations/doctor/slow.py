"""`ordersaga doctor --slow`: which indexes are used, which operations were slow, which run and which wait for locks.

It only reads: statistics of indexes, the last lines of MongoDB's log, and the operations of this moment. What a query
looked for is never shown, as it may be about a person.
"""

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pymongo
import pymongo.errors
from pymongo.asynchronous.database import AsyncDatabase

from operations.doctor.finding import Finding, note, ok, wrong
from shared import schema
from shared.database import with_our_tls
from shared.outage_words import with_detail
from shared.services import SERVICES

TIMEOUT_MS = 10_000
INDEXES, SLOW, RUNNING, LOCKS = "index use", "slow operations", "current operations", "locks"
LONG_SECONDS = 1
"""The age from which an operation that runs is named."""
OPEN_SECONDS = 10
"""The age from which an open transaction is named: no operation on funds takes longer."""
OUR_PROGRAMS = "ordersaga"
"""How the names of our programs begin in MongoDB: `ordersaga` for services, such as `ordersaga-audit` for commands."""
_NO_COLLECTION = ("", "admin.$cmd")
"""The namespaces of a transaction between two of its operations, and while it commits."""
_MOST_NAMED = 10
_ID_INDEX = "_id_"

Client = pymongo.AsyncMongoClient[dict[str, Any]]
Record = Mapping[str, Any]


@dataclass(slots=True)
class SlowGroup:
    """Slow operations of one kind: the same collection, command and plan."""

    name: str
    plan: str
    number: int = 0
    longest_ms: int = 0
    examined: int = 0

    def add(self, attributes: Record) -> None:
        """Add an operation, by the attributes of its line in the log."""
        self.number += 1
        self.longest_ms = max(self.longest_ms, int(attributes.get("durationMillis", 0)))
        self.examined = max(self.examined, int(attributes.get("docsExamined", 0)))

    @property
    def reads_all(self) -> bool:
        """True if no index served it."""
        return "COLLSCAN" in self.plan


async def check_slow(url: str, prefix: str) -> AsyncIterator[Finding]:
    """Look at the indexes, the slow operations and the current ones of the stack with this prefix."""
    client: Client = pymongo.AsyncMongoClient(url, serverSelectionTimeoutMS=TIMEOUT_MS, timeoutMS=TIMEOUT_MS)
    with_our_tls(client, url)
    async with client:
        for subject, look in ((INDEXES, _indexes), (SLOW, _slow_operations), (RUNNING, _current)):
            try:
                for finding in await look(client, prefix):
                    yield finding
            except pymongo.errors.OperationFailure as error:
                if error.code != schema.UNAUTHORIZED:
                    yield note(subject, f"not checked: {with_detail(error)}")
                    continue
                fix = "run `ordersaga database prepare`, which lets maintenance read it (docs/database.md)"
                yield note(subject, "not checked: this user may not read it", fix)
            except pymongo.errors.PyMongoError as error:
                yield wrong(subject, f"cannot be read: {with_detail(error)}", "check MongoDB's log")


# --- Indexes. ---


async def _indexes(client: Client, prefix: str) -> list[Finding]:
    findings = []
    for service in SERVICES.values():
        database = client[service.database_in(prefix)]
        uses = {
            f"{name}.{index['name']}": int(index["accesses"]["ops"])
            for name in sorted(await database.list_collection_names(filter={"type": "collection"}))
            if not name.startswith("system.")
            for index in await _index_stats(database, name)
        }
        findings.append(judge_indexes(database.name, uses))
    return findings


async def _index_stats(database: AsyncDatabase[dict[str, Any]], collection: str) -> Sequence[Record]:
    return await (await database[collection].aggregate([{"$indexStats": {}}])).to_list()


def judge_indexes(database: str, uses: Mapping[str, int]) -> Finding:
    """Say how often the indexes of a database were used since the server started; the one of `_id` is not named."""
    named = {index: number for index, number in uses.items() if not index.endswith(f".{_ID_INDEX}")}
    used = sorted((index for index in named if named[index]), key=lambda index: -named[index])
    counted = ", ".join(f"{index} {named[index]:,}" for index in used) or "none"
    unused = sorted(named.keys() - set(used))
    detail = f"uses since the server started: {counted}"
    return ok(f"{INDEXES} of {database}", f"{detail}; never used: {', '.join(unused)}" if unused else detail)


# --- Slow operations. ---


async def _slow_operations(client: Client, prefix: str) -> list[Finding]:
    logged = await client.admin.command("getLog", "global")
    return judge_slow(slow_groups(logged["log"], prefix), len(logged["log"]))


def slow_groups(lines: Iterable[str], prefix: str) -> list[SlowGroup]:
    """Group the slow operations in lines of the log, the longest first."""
    groups: dict[tuple[str, str], SlowGroup] = {}
    for line in lines:
        attributes = _slow_query(line)
        name = str(attributes.get("ns", ""))
        if not name.startswith(f"{prefix}_"):
            continue
        key = f"{_command(attributes)} on {name}", str(attributes.get("planSummary", "no plan")).partition(" ")[0]
        groups.setdefault(key, SlowGroup(*key)).add(attributes)
    return sorted(groups.values(), key=lambda group: -group.longest_ms)


def judge_slow(groups: Sequence[SlowGroup], lines: int) -> list[Finding]:
    """Name the groups of slow operations; one that reads a whole collection lacks an index."""
    if not groups:
        return [ok(SLOW, f"none in the last {lines:,} lines of MongoDB's log")]
    findings = []
    for group in groups[:_MOST_NAMED]:
        times = "once" if group.number == 1 else f"{group.number:,} times"
        detail = (
            f"{group.name}: {times}, up to {group.longest_ms:,} ms, {group.plan}, {group.examined:,} documents read"
        )
        fix = "it uses no index: report it if it is ours, else read another member" if group.reads_all else ""
        findings.append(note(SLOW, detail, fix))
    return findings


def _slow_query(line: str) -> Record:
    """Return the attributes of a line about a slow operation, nothing for any other line."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    attributes: Record = entry.get("attr", {}) if entry.get("msg") == "Slow query" else {}
    return attributes


def _command(attributes: Record) -> str:
    command = attributes.get("command")
    return next(iter(command), "operation") if isinstance(command, dict) else str(attributes.get("type", "operation"))


# --- Current operations and locks. ---


async def _current(client: Client, prefix: str) -> list[Finding]:
    cursor = await client.admin.aggregate([{"$currentOp": {"allUsers": True, "idleSessions": True}}])
    return judge_current([operation async for operation in cursor], prefix)


def judge_current(operations: Iterable[Record], prefix: str) -> list[Finding]:
    """Name operations that run long or wait for a lock, and transactions that are open for long."""
    ours = [one for one in operations if _is_ours(one, prefix)]
    running = [one for one in ours if one.get("active") and one.get("secs_running", 0) >= LONG_SECONDS]
    waiting = [one for one in ours if one.get("waitingForLock")]
    idle = [one for one in ours if _open_seconds(one) >= OPEN_SECONDS]
    long = [note(RUNNING, f"{_named(one)} has run for {one['secs_running']:,} s") for one in running[:_MOST_NAMED]]
    locked = [
        *(note(LOCKS, f"{_named(one)} waits for a lock") for one in waiting[:_MOST_NAMED]),
        *(_open_transaction(one) for one in idle[:_MOST_NAMED]),
    ]
    return [
        *(long or [ok(RUNNING, f"none has run for {LONG_SECONDS} s")]),
        *(locked or [ok(LOCKS, f"nothing waits for one, no transaction is older than {OPEN_SECONDS} s")]),
    ]


def _is_ours(operation: Record, prefix: str) -> bool:
    """Tell whether an operation is on our databases; a transaction without a collection is known by its program."""
    namespace = str(operation.get("ns", ""))
    if "transaction" in operation and namespace in _NO_COLLECTION:
        return str(operation.get("appName", "")).startswith(OUR_PROGRAMS)
    return namespace.startswith(f"{prefix}_")


def _open_seconds(operation: Record) -> float:
    return float(operation.get("transaction", {}).get("timeOpenMicros", 0)) / 1_000_000


def _open_transaction(operation: Record) -> Finding:
    detail = f"a transaction of {operation.get('appName') or 'an unknown program'} is open"
    fix = "its documents are locked until it ends; payment processes end those of processes that died"
    return wrong(LOCKS, f"{detail} for {_open_seconds(operation):,.0f} s", fix)


def _named(operation: Record) -> str:
    command = operation.get("command")
    name = next(iter(command), None) if isinstance(command, dict) else None
    return f"{name or operation.get('op', 'an operation')} on {operation.get('ns', 'a database')}"

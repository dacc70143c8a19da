"""Audit logs in MongoDB: several processes write at once, and what is done to entries is named by the audit."""

import asyncio
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pymongo
import pytest

from operations.actions import list_actions, record_action
from operations.audit import Report, audit
from shared.audit_log import COLLECTION, SCHEMA, new_entry
from shared.clock import utc_now
from shared.database import Collection, Database
from shared.schema import prepare
from tests.support.servers import Servers

Log = Collection
Tamper = Callable[[Log], Awaitable[Any]]


@pytest.fixture(params=["operations", "orders", "payments"])
async def database(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[Database]:
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url, tz_aware=True) as client:
        created = client[f"t{secrets.token_hex(8)}_{request.param}"]
        await prepare(created, {COLLECTION: SCHEMA})
        yield created
        await client.drop_database(created)


async def fill(database: Database, number: int = 5) -> None:
    for index in range(1, number + 1):
        await record_action(
            database, by="ann", why="because", action="order.cancel", subject=f"o{index}", outcome="done"
        )


async def report_of(database: Database, servers: Servers) -> Report:
    prefix = database.name.partition("_")[0]
    return await audit(servers.mongodb_url, servers.amqp_url, prefix, confirm_after=0)


async def id_of(log: Log, seq: int) -> str:
    entry = await log.find_one({"seq": seq})
    assert entry is not None
    return str(entry["_id"])


async def change(log: Log) -> None:
    await log.update_one({"seq": 3}, {"$set": {"by": "bob"}})


async def add_field(log: Log) -> None:
    await log.update_one({"seq": 3}, {"$set": {"extra": 1}})


async def remove_before(log: Log) -> None:
    await log.delete_one({"seq": 2})


async def insert_between(log: Log) -> None:
    third = await log.find_one({"seq": 3})
    assert third is not None
    await log.insert_one({**third, "_id": "inserted", "seq": 2.5})


async def insert_without_number(log: Log) -> None:
    entry = new_entry(by="eve", why="", action="order.cancel", subject="o9", outcome="done")
    await log.insert_one({**entry, "_id": "inserted"})


@pytest.mark.parametrize(
    ("tamper", "kinds", "named"),
    [
        (change, {"entry changed"}, None),
        (add_field, {"entry changed"}, None),
        (remove_before, {"entry removed"}, None),
        (insert_between, {"entry inserted"}, "inserted"),
        (insert_without_number, {"entry inserted"}, "inserted"),
    ],
)
async def test_what_is_done_to_an_entry_is_named(
    database: Database, servers: Servers, tamper: Tamper, kinds: set[str], named: str | None
) -> None:
    await fill(database)
    assert (await report_of(database, servers)).violations == []
    log = database[COLLECTION]
    third = await id_of(log, 3)
    await tamper(log)
    report = await report_of(database, servers)
    service = database.name.partition("_")[2]
    assert {(v.invariant, v.kind) for v in report.violations} == {(8, kind) for kind in kinds}
    assert [v.as_json()["action"] for v in report.violations] == [f"{service}/{named or third}"]


async def test_entries_of_an_earlier_release_stay_readable(database: Database, servers: Servers) -> None:
    old = {"_id": "old", "at": utc_now(), "by": "ann", "why": "", "action": "a", "subject": "s", "outcome": "done"}
    await database[COLLECTION].insert_one(old)
    await fill(database)
    report = await report_of(database, servers)
    assert (report.violations, report.checked["actions"]) == ([], 6)
    assert len((await list_actions(database)).items) == 6


_WRITER = """
import asyncio, sys, pymongo
from shared.audit_log import append, new_entry
async def main(url, name, process):
    async with pymongo.AsyncMongoClient(url, tz_aware=True, w="majority") as client:
        for number in range(20):
            entry = new_entry(by=process, why=None, action="a", subject=str(number), outcome="done")
            await append(client[name], entry)
asyncio.run(main(*sys.argv[1:]))
"""


async def test_processes_that_write_at_once_neither_fork_nor_lose(database: Database, servers: Servers) -> None:
    writers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", _WRITER, servers.mongodb_url, database.name, f"p{number}"
        )
        for number in range(4)
    ]
    await fill(database, 20)
    assert [await writer.wait() for writer in writers] == [0] * 4
    report = await report_of(database, servers)
    assert (report.violations, report.checked["actions"]) == ([], 100)
    numbers = [entry["seq"] async for entry in database[COLLECTION].find(sort=[("seq", 1)])]
    assert numbers == list(range(1, 101))


_DYING = f"""
import os, signal, sys
from shared import audit_log
audit_log.linked = lambda entry, previous: os.kill(os.getpid(), signal.SIGKILL)
{_WRITER}"""


async def test_a_process_that_dies_between_reading_and_writing_leaves_no_gap(
    database: Database, servers: Servers
) -> None:
    await fill(database, 2)
    dying = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _DYING, servers.mongodb_url, database.name, "dying"
    )
    assert await dying.wait() == -signal.SIGKILL
    await fill(database, 2)
    numbers = [found["seq"] async for found in database[COLLECTION].find(sort=[("seq", 1)])]
    assert numbers == [1, 2, 3, 4]

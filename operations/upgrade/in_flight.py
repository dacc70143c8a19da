"""Reads what is in flight: unsettled orders, open dead letters, waiting messages, and the versions of processes."""

import asyncio
import subprocess
from collections.abc import Mapping

from pymongo import AsyncMongoClient
from yarl import URL

from operations.dead_letters.schema import LETTERS
from operations.dead_letters.status import OPEN
from operations.reading.broker import count_messages
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from operations.stack.database_schemas import schema_of
from operations.stack.queue_members import Control
from operations.stack.services import read_version
from operations.upgrade.decision import (
    FilledQueue,
    InFlight,
    OpenLetters,
    OpenOrders,
    RunningProcess,
    SchemaDifference,
)
from shared import schema
from shared.clock import utc_now
from shared.database import Document
from shared.services import CONSOLE, ORDER, SERVICES
from shared.topology import inbox_of
from shared.urls import split_amqp_url

NAME = "ordersaga upgrade check"
"""Its name in the logs of the servers."""

_OURS = (".inbox", ".dead-letters")
_RETRY = ".retry."

Client = AsyncMongoClient[Document]


async def read_in_flight(stack: Stack, control: Control | None) -> InFlight:
    """Read what is in flight in a stack; queues that this release does not declare only with rabbitmqctl (`control`).

    Which types the waiting messages have cannot be read without taking them. Raises UnreachableError if a server does
    not answer.
    """
    async with open_mongodb(stack.mongodb_url, purpose="the check", name=NAME) as client:
        orders = await _open_orders(client, stack.database_prefix)
        letters = await _open_letters(client, stack.database_prefix)
    async with open_mongodb(stack.url_for_changes, purpose="the check", name=NAME) as client:
        differences = await _schema_differences(client, stack.database_prefix)
    levels = {name: messages or 0 for name, messages in (await count_messages(stack.amqp_url)).items()}
    levels |= await asyncio.to_thread(_listed, control, stack.amqp_url)
    queues = [FilledQueue(name, messages) for name, messages in sorted(levels.items()) if messages]
    return InFlight(orders, letters, queues, await _processes(stack.urls), differences)


async def _open_orders(client: Client, prefix: str) -> list[OpenOrders]:
    orders = client[ORDER.database_in(prefix)]["orders"]
    # The index of unsettled orders is used with a condition on its field.
    unsettled = {"settled": False, "createdAt": {"$lte": utc_now()}}
    group = {"version": {"$ifNull": ["$sagaVersion", 1]}, "status": "$status"}
    found = await orders.aggregate([{"$match": unsettled}, {"$group": {"_id": group, "count": {"$sum": 1}}}])
    rows = [OpenOrders(row["_id"]["version"], row["_id"]["status"], row["count"]) async for row in found]
    return sorted(rows)


async def _open_letters(client: Client, prefix: str) -> list[OpenLetters]:
    letters = client[CONSOLE.database_in(prefix)][LETTERS]
    group = {"$ifNull": ["$routingKey", "$type"]}
    found = await letters.aggregate(
        [{"$match": {"status": {"$in": list(OPEN)}}}, {"$group": {"_id": group, "count": {"$sum": 1}}}]
    )
    return sorted([OpenLetters(row["_id"] or "", row["count"]) async for row in found])


async def _schema_differences(client: Client, prefix: str) -> list[SchemaDifference]:
    return [
        SchemaDifference(f"{service.database_in(prefix)}.{name}", str(difference), difference.fix)
        for service in SERVICES.values()
        for name, found in (await schema.examine(client[service.database_in(prefix)], schema_of(service.name))).items()
        for difference in found
    ]


def _listed(control: Control | None, amqp_url: str) -> dict[str, int]:
    """Return the messages of all queues that are named like those of the product; nothing without rabbitmqctl."""
    if control is None:
        return {}
    virtual_host = URL(split_amqp_url(amqp_url)[0]).path.removeprefix("/") or "/"
    try:
        listed = control("-q", "list_queues", "-p", virtual_host, "name", "messages", "--no-table-headers")
    except (OSError, subprocess.SubprocessError):
        return {}
    return read_listing(listed)


def read_listing(listed: str) -> dict[str, int]:
    """Return the messages of the product's queues in a listing of rabbitmqctl: a name and a number in each line."""
    rows = (line.rpartition("\t") for line in listed.splitlines())
    return {
        name: int(messages)
        for name, _, messages in rows
        if messages.isdigit() and (inbox_of(name).endswith(_OURS) or _RETRY in name)
    }


async def _processes(urls: Mapping[str, str]) -> list[RunningProcess]:
    names = [name for name in SERVICES if name in urls]
    versions = await asyncio.gather(*(asyncio.to_thread(read_version, urls[name]) for name in names))
    return [RunningProcess(name, version) for name, version in zip(names, versions, strict=True)]

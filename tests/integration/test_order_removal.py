"""Reading old orders in groups, for the cleanup and the archive: each order once, and no more is read than it takes."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent, CommandSucceededEvent

from operations.removal.orders import OrderRemoval
from order_service import orders
from shared.services import ORDER

GROUP = 50
STATUSES = ("CONFIRMED", "COMPLETED", "CANCELLED")
NOW = datetime(2026, 1, 31, tzinfo=UTC)


class Finds(CommandListener):
    """The queries for orders."""

    def __init__(self) -> None:
        self.commands: list[dict[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name == "find":
            sent = ("find", "filter", "sort", "limit", "projection")
            self.commands.append({name: event.command[name] for name in sent})

    def succeeded(self, _event: CommandSucceededEvent) -> None:
        """Only what is asked matters."""

    failed = succeeded  # type: ignore[assignment]


@pytest.fixture
async def finds() -> Finds:
    return Finds()


@pytest.fixture
async def client(mongodb_url: str, finds: Finds) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
    async with AsyncMongoClient[dict[str, Any]](mongodb_url, tz_aware=True, event_listeners=[finds]) as opened:
        yield opened


async def test_every_group_reads_little_more_than_its_orders(
    client: AsyncMongoClient[dict[str, Any]], finds: Finds, database_prefix: str
) -> None:
    database, dice = client[ORDER.database_in(database_prefix)], random.Random(1)
    await database["orders"].create_indexes(list(orders.SCHEMA.indexes))
    # Some orders are created at the same moment, also at the end of a group.
    times = [NOW - timedelta(seconds=dice.randrange(400)) for _ in range(1000)]
    documents: list[dict[str, Any]] = [
        {
            "_id": f"{number:04}",
            "status": dice.choice((*STATUSES, *STATUSES, "FAILED")),
            "settled": True,
            "createdAt": at,
            "updatedAt": at,
        }
        for number, at in enumerate(times)
    ]
    await database["orders"].insert_many(documents)
    groups = [each async for each in OrderRemoval(client, database_prefix).over(STATUSES, NOW, GROUP)]
    found = [order_id for each in groups for order_id in each]
    assert sorted(found) == [
        each["_id"] for each in documents if each["status"] != "FAILED" and each["createdAt"] < NOW
    ]
    for command in finds.commands[:-1]:
        explained = await database.command("explain", command, verbosity="executionStats")
        assert explained["executionStats"]["totalDocsExamined"] <= GROUP + 10

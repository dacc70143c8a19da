"""The connection to MongoDB: what ends a start, and what is waited for."""

import asyncio
import random
import time
import urllib.parse
from typing import Literal

import pymongo
import pytest
from pymongo import AsyncMongoClient, monitoring
from pymongo.errors import BulkWriteError, OperationFailure, ServerSelectionTimeoutError

from shared import database
from shared.database import Document
from shared.errors import StartError
from shared.settings import ServiceSettings
from tests.support.eventually import eventually
from tests.support.tasks import end_tasks


async def start(url: str) -> None:
    """Wait for the database as a service does; at most 30 s."""
    client = database.client(ServiceSettings(mongodb_url=url))
    try:
        async with asyncio.timeout(30):
            await database.wait_until_ready(client["orders"], pause=0.1)
    finally:
        await database.close(client)


def with_user(url: str, user_and_password: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user_and_password}@{rest.rpartition('@')[2]}"


async def test_a_server_that_lets_in_is_ready(mongodb_url: str) -> None:
    await start(mongodb_url)


async def test_a_wrong_password_ends_the_start_and_is_not_shown(mongodb_url: str) -> None:
    with pytest.raises(StartError, match=r"MongoDB refuses the user .*Authentication failed.*authSource") as raised:
        await start(with_user(mongodb_url, f"nobody:{urllib.parse.quote('S3CR3T')}"))
    assert "S3CR3T" not in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_a_server_that_is_away_is_waited_for() -> None:
    settings = ServiceSettings(mongodb_url="mongodb://127.0.0.1:1/", database_timeout_seconds=0.1)
    client = database.client(settings)
    waiting = asyncio.create_task(database.wait_until_ready(client["orders"], pause=0.01))
    done, _ = await asyncio.wait({waiting}, timeout=1)
    assert not done
    waiting.cancel()
    await asyncio.wait({waiting})
    await database.close(client)


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
@pytest.mark.parametrize("options", ["directConnection=true", "loadBalanced=true"])
def test_options_that_the_driver_does_not_take_are_one_line_at_the_start(
    options: str, driver: Literal["pymongo", "motor"]
) -> None:
    url = f"mongodb://user:S3CR3T@127.0.0.1:1,127.0.0.1:2/?{options}"
    with pytest.raises(StartError, match="ORDERSAGA_MONGODB_URL is not valid") as raised:
        database.client(ServiceSettings(mongodb_url=url, mongo_driver=driver))
    assert "S3CR3T" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("hosts", "options", "connect", "heartbeat"),
    [
        ("127.0.0.1:1", "", 20, 10),
        ("127.0.0.1:1,127.0.0.1:2", "", 2, 2),
        ("127.0.0.1:1,127.0.0.1:2", "&connecttimeoutms=7000", 7, 2),
    ],
)
async def test_the_loss_of_one_of_several_members_is_noticed_early_unless_the_url_says_otherwise(
    hosts: str, options: str, connect: float, heartbeat: float
) -> None:
    client = database.client(ServiceSettings(mongodb_url=f"mongodb://{hosts}/?replicaSet=rs0{options}"))
    assert client.options.pool_options.connect_timeout == connect
    assert client._topology_settings.heartbeat_frequency == heartbeat
    await database.close(client)


@pytest.mark.parametrize("code", [13, 18])
def test_a_refusal_is_not_a_passing_error(code: int) -> None:
    error = OperationFailure("not authorized on orders to execute command", code)
    assert database.is_refusal(error)
    assert not database.is_transient(error)
    assert database.translate_error(error) is error


async def test_a_cancelled_loop_over_the_database_ends(mongodb_url: str, database_prefix: str) -> None:
    client = database.client(ServiceSettings(mongodb_url=mongodb_url))
    records = client[f"{database_prefix}_any"]["any"]

    async def work() -> None:
        while True:
            await records.find_one()

    loops = [asyncio.create_task(work()) for _ in range(100)]
    await eventually(lambda: bool(client.nodes), 30, "the client to be connected")
    for loop in loops:
        await asyncio.sleep(random.uniform(0, 0.005))
        loop.cancel()
    _, left = await asyncio.wait(loops, timeout=60)
    await end_tasks(*loops)
    await database.close(client)
    assert not left


async def test_calls_cancelled_while_mongodb_is_away_leave_the_client_usable() -> None:
    away = "mongodb://127.0.0.1:9/?directConnection=true&serverSelectionTimeoutMS=5000"
    client = pymongo.AsyncMongoClient[Document](away)
    records = client["any"]["any"]
    calls = [asyncio.create_task(records.find_one()) for _ in range(20)]
    await asyncio.sleep(0.1)
    time.sleep(0.6)  # now every call checks the server again without a pause
    for _ in range(3):  # they are about to take the client's lock again, one after the other
        await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in ended} <= {asyncio.CancelledError, ServerSelectionTimeoutError}
    with pymongo.timeout(1):
        after = asyncio.create_task(records.find_one())
    assert await asyncio.wait({after}, timeout=30) == ({after}, set())
    assert isinstance(after.exception(), ServerSelectionTimeoutError)
    await client.close()  # not in a finally: it would wait for ever for the lock under test


class Updates(monitoring.CommandListener):
    """The update commands that a client sends."""

    def __init__(self) -> None:
        self.sent: list[Document] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name == "update":
            self.sent.append(dict(event.command))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


@pytest.mark.parametrize(("count", "is_repeated"), [(1, True), (2, False)])
async def test_the_server_keeps_no_record_of_each_guarded_update_in_a_batch(
    mongodb_url: str, count: int, is_repeated: bool
) -> None:
    listener = Updates()
    client: AsyncMongoClient[Document] = AsyncMongoClient(mongodb_url, event_listeners=[listener])
    collection = client[f"test_{random.randbytes(4).hex()}"]["things"]
    try:
        await collection.insert_many([{"_id": number, "version": 1} for number in range(count)])
        updates = database.guarded_updates(
            [({"_id": number, "version": 1}, {"$set": {"version": 2}}) for number in range(count)]
        )
        assert (await collection.bulk_write(updates, ordered=False)).matched_count == count
        assert (await collection.bulk_write(updates, ordered=False)).matched_count == 0, "the guard does not hold"
        assert [("txnNumber" in command) for command in listener.sent] == [is_repeated] * 2
    finally:
        await client.drop_database(collection.database.name)
        await database.close(client)


async def test_a_guarded_upsert_in_a_batch_fails_where_another_has_changed_the_document(mongodb_url: str) -> None:
    client: AsyncMongoClient[Document] = AsyncMongoClient(mongodb_url)
    collection = client[f"test_{random.randbytes(4).hex()}"]["things"]
    try:
        await collection.insert_many([{"_id": 1, "version": 1}, {"_id": 2, "version": 7}])
        guarded = [({"_id": number, "version": 1}, {"$set": {"version": 2}}) for number in (1, 2, 3)]
        with pytest.raises(BulkWriteError) as raised:
            await collection.bulk_write(database.guarded_updates(guarded, upsert=True), ordered=False)
        assert database.lost_updates(raised.value) == {2}
        stored = {document["_id"]: document["version"] async for document in collection.find()}
        assert stored == {1: 2, 2: 7, 3: 2}
    finally:
        await client.drop_database(collection.database.name)
        await database.close(client)

"""The servers that tests start: they keep data across a restart and end completely."""

import asyncio
from pathlib import Path
from typing import Any

import aio_pika
import pymongo
import pytest

from operations.stack.layout import Layout
from operations.stack.processes import find_marked
from operations.stack.status import as_json, check_stack
from shared import topology
from shared.bus.declaring import declare_topology
from tests.support.eventually import eventually
from tests.support.servers import NativeServers, Servers, delete_topology, native_servers


async def test_the_shared_servers_answer(servers: Servers, database_prefix: str) -> None:
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        await client[database_prefix].things.insert_one({"_id": 1})
    async with await aio_pika.connect(servers.amqp_url) as connection:
        assert not connection.is_closed


async def test_status_shows_the_stack_that_the_environment_names(servers: Servers, tmp_path: Path) -> None:
    unused = "http://127.0.0.1:9"
    environment = {"ORDERSAGA_MONGODB_URL": servers.mongodb_url, "ORDERSAGA_AMQP_URL": servers.amqp_url}
    layout = Layout(tmp_path)
    state, processes = await check_stack(layout, {**environment, "ORDERSAGA_ORDER_URL": unused})
    document = as_json(layout, state, processes)
    assert {process["name"]: process["ready"] for process in document["processes"]} == {
        "mongodb": True,
        "rabbitmq": True,
        "order": False,
    }
    assert unused in document["processes"][2]["detail"]
    assert not document["ready"]
    assert (document["dataDirectory"], document["processes"][2]["log"]) == (None, None)
    # Servers without services are not a stack.
    state, processes = await check_stack(layout, environment)
    assert as_json(layout, state, processes)["phase"] == "stopped"


async def test_transactions_are_possible(servers: Servers, database_prefix: str) -> None:
    async with (
        pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client,
        client.start_session() as session,
    ):
        things = client[database_prefix].things
        async with await session.start_transaction():
            await things.insert_one({"_id": 1}, session=session)
        assert await things.count_documents({}) == 1


async def test_servers_keep_data_and_ports_over_a_stop_and_a_start(own_servers: NativeServers) -> None:
    await _publish(own_servers.amqp_url, b"kept")
    async with pymongo.AsyncMongoClient[dict[str, Any]](own_servers.mongodb_url) as client:
        await client.kept.things.insert_one({"_id": 1})

    await own_servers.stop_broker()
    await own_servers.stop_database(kill=True)
    await own_servers.start_database()
    await own_servers.start_broker()

    assert await _take(own_servers.amqp_url) == b"kept"
    async with pymongo.AsyncMongoClient[dict[str, Any]](own_servers.mongodb_url) as client:
        assert await client.kept.things.count_documents({}) == 1


async def test_a_cookie_that_erlang_made_is_replaced_and_the_data_stays(own_servers: NativeServers) -> None:
    cookie = own_servers._directory / "rabbitmq" / ".erlang.cookie"
    made = cookie.read_bytes()
    assert (len(made), cookie.stat().st_mode & 0o777) == (64, 0o400)
    await _publish(own_servers.amqp_url, b"kept")

    await own_servers.stop_broker()
    cookie.unlink()
    cookie.write_bytes(b"ABCDEFGHIJKLMNOPQRST")
    cookie.chmod(0o400)
    await own_servers.start_broker()

    assert len(cookie.read_bytes()) == 64
    assert cookie.read_bytes() != made
    assert await _take(own_servers.amqp_url) == b"kept"
    assert "Ping succeeded" in await asyncio.to_thread(own_servers.rabbitmqctl, "ping")


async def test_no_process_is_left_when_the_servers_end() -> None:
    async with native_servers() as servers:
        directory: Path = servers._directory
        assert len(find_marked(directory)) >= 3  # mongod, the node with its helpers, the name server
    assert find_marked(directory) == []


async def _publish(url: str, body: bytes) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, "kept")


async def _take(url: str) -> bytes:
    async with await aio_pika.connect(url) as connection:
        queue = await (await connection.channel()).get_queue("kept")
        # Just after a start, a queue may still be electing its leader.
        message = await eventually(lambda: queue.get(fail=False), 60, "the message")
        assert message is not None
        await message.ack()
        return message.body


async def test_a_clean_broker_has_none_of_the_declared_queues(clean_broker: str) -> None:
    async with await aio_pika.connect(clean_broker) as connection:
        await declare_topology(connection, topology.RETRY_LADDER)
    await delete_topology(clean_broker)
    async with await aio_pika.connect(clean_broker) as connection:
        for queue in topology.queues():
            channel = await connection.channel()  # a failed passive declaration closes it
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await channel.declare_queue(queue.name, passive=True)

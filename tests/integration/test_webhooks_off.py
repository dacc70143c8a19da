"""With ORDERSAGA_WEBHOOKS=off nothing piles up for the service that sends them, and everybody is told."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import aio_pika
import pymongo
import pytest

from operations.doctor.broker import check_bindings
from operations.doctor.webhooks import check_silent_webhooks
from operations.recovery import recover
from operations.settings import Stack
from operations.stack.broker_topology import apply_topology
from order_service.orders import NewRecord, Orders
from shared import topology
from shared.access.permissions import Role
from shared.bus.amqp.connecting import connect
from shared.bus.declaring import repair_topology
from shared.clock import utc_now
from shared.database import Database
from shared.topology import EXCHANGE, NOTIFICATION_INBOX, TopologyOptions
from tests.support.access import KEYS, bearer
from tests.support.builders import an_order, connected
from tests.support.events import publish
from tests.support.partitions import declare_partitions, undivided
from tests.support.processes import run_stack
from tests.support.servers import Servers, drop_databases

CLIENT = bearer(KEYS[Role.CLIENT])
OFF = TopologyOptions(webhooks=False)


async def purged(url: str, *queues: str) -> int:
    """Empty queues, and return the number of messages that waited in them."""
    number = 0
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        for name in queues:
            number += (await (await channel.get_queue(name, ensure=False)).purge()).message_count or 0
    return number


async def test_nothing_comes_any_more_once_they_are_off_and_again_once_they_are_on(clean_broker: str) -> None:
    await apply_topology(clean_broker)
    await publish(clean_broker, "order.created", "order.confirmed")
    assert await purged(clean_broker, NOTIFICATION_INBOX) == 2
    assert await apply_topology(clean_broker, OFF) == []
    await publish(clean_broker, "order.created", "order.confirmed", "package.low_ips")
    assert await purged(clean_broker, NOTIFICATION_INBOX) == 0
    assert await purged(clean_broker, topology.INVENTORY_INBOX) == 2
    await apply_topology(clean_broker)
    await publish(clean_broker, "order.confirmed")
    assert await purged(clean_broker, NOTIFICATION_INBOX) == 1


async def test_a_process_that_declares_removes_the_bindings_too(clean_broker: str) -> None:
    await apply_topology(clean_broker)
    async with await connect(clean_broker, 5) as connection:
        assert await repair_topology(connection, topology.RETRY_LADDER, OFF) == []
    await publish(clean_broker, "order.confirmed")
    assert await purged(clean_broker, NOTIFICATION_INBOX) == 0


async def test_partitions_get_nothing_either(clean_broker: str) -> None:
    places = (NOTIFICATION_INBOX, *topology.partitions_of(NOTIFICATION_INBOX, 2))
    async with undivided(clean_broker):
        await declare_partitions(clean_broker, 2)
        await publish(clean_broker, "order.confirmed")
        assert await purged(clean_broker, *places) == 1
        await apply_topology(clean_broker, TopologyOptions(partitions=2, webhooks=False))
        await publish(clean_broker, "order.confirmed", "order.created")
        assert await purged(clean_broker, *places) == 0
        await apply_topology(clean_broker, TopologyOptions(partitions=2))
        await publish(clean_broker, "order.confirmed")
        assert await purged(clean_broker, *places) == 1


def listing(options: TopologyOptions, further: Sequence[tuple[str, str, str]] = ()) -> str:
    declared = topology.all_bindings(topology.all_queues(options), topology.exchanges(options=options))
    rows = [(source, name, key) for name, pairs in declared.items() for source, key in pairs]
    return "\n".join("\t".join(row) for row in (*rows, *further))


@pytest.mark.parametrize("partitions", [1, 2])
def test_doctor_names_bindings_that_are_left(partitions: int) -> None:
    options = TopologyOptions(partitions=partitions, webhooks=False)
    assert check_bindings(lambda *_, **__: listing(options), "/", options).outcome == "ok"
    name = NOTIFICATION_INBOX if partitions == 1 else topology.partitions_exchange(NOTIFICATION_INBOX)
    left = (EXCHANGE, name, "order.confirmed")
    found = check_bindings(lambda *_, **__: listing(options, [left]), "/", options)
    assert found.outcome == "wrong"
    assert found.detail.startswith("webhooks are off")
    assert f"{EXCHANGE} -> {name} (order.confirmed)" in found.detail


async def test_doctor_counts_the_webhooks_that_wait_in_vain(mongodb_url: str, database_prefix: str) -> None:
    found = await check_silent_webhooks(mongodb_url, database_prefix)
    assert (found and found.outcome) == "ok"
    async with pymongo.AsyncMongoClient[dict[str, object]](mongodb_url) as client:
        database: Database = client[f"{database_prefix}_notifications"]
        await database["endpoints"].insert_many(
            [
                {"enabled": True},
                {"enabled": False},
                {"enabled": False, "deletedAt": 1},
                {"enabled": True, "deletedAt": 1},
            ]
        )
    found = await check_silent_webhooks(mongodb_url, database_prefix)
    assert found is not None
    assert (found.outcome, "enabled ones wait for events: 1" in found.detail) == ("wrong", True)
    assert await check_silent_webhooks("mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=10", database_prefix) is None


async def test_a_recovery_sends_nothing_to_the_service(
    mongodb_url: str, clean_broker: str, database_prefix: str
) -> None:
    async with connected(mongodb_url, f"{database_prefix}_orders") as database:
        await Orders(database["orders"]).insert([NewRecord(an_order(order_id=f"o{n}")) for n in range(3)])
    since = utc_now() - timedelta(hours=1)
    stack = Stack(mongodb_url, clean_broker, {}, None, database_prefix, topology_options=OFF)
    report = await recover(stack, by="tests", why="to see", since=since)
    assert (report.commands["order.created"], report.events.total()) == (3, 0)
    assert await purged(clean_broker, NOTIFICATION_INBOX) == 0
    stack = replace(stack, topology_options=TopologyOptions())
    report = await recover(stack, by="tests", why="to see", since=since)
    assert report.events["order.created"] == 3
    assert await purged(clean_broker, NOTIFICATION_INBOX) == report.commands["order.created"] + report.events.total()


async def test_none_can_be_registered(servers: Servers) -> None:
    prefix = f"t{secrets.token_hex(8)}"
    async with run_stack(servers.mongodb_url, servers.amqp_url, prefix, webhooks="off") as stack:
        await stack.start("notification", "notification")
        body = {"url": "https://example.com/hook", "events": ["order.*"]}
        url = f"{stack.url('notification')}/webhooks"
        answer = await stack.client.post(url, json=body, headers=CLIENT)
        assert (answer.status_code, "Webhooks are off here" in answer.json()["detail"]) == (409, True)
        answer = await stack.client.patch(f"{url}/wh_1", json={"enabled": True}, headers=CLIENT)
        assert (answer.status_code, "Webhooks are off here" in answer.json()["detail"]) == (409, True)
        assert (await stack.client.get(url, headers=CLIENT)).json()["items"] == []
    await drop_databases(servers.mongodb_url, prefix)

"""A node of a RabbitMQ cluster is lost, with all connections and some leaders on it, and stays away."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from shared import topology
from shared.bus import Envelope
from shared.bus.amqp.connecting import connect
from shared.bus.declaring import declare_topology
from shared.bus.rabbitmq import RabbitBus
from shared.errors import BusUnavailableError
from tests.support.broker_clusters import BrokerCluster, broker_cluster
from tests.support.buses import SHORT_LADDER, raw
from tests.support.eventually import eventually
from tests.support.tasks import end_tasks

pytestmark = pytest.mark.extended
"""Nodes that are killed or silent are in the suite as `tests/integration/test_bus_nodes.py`, over proxies."""

WITHIN = 180
"""Seconds. A machine that is busy may be slow; what is tested does not happen at all while the node is away."""


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[BrokerCluster]:
    async with broker_cluster() as started:
        async with await connect(started.urls[0]) as connection:
            await declare_topology(connection, SHORT_LADDER)
        yield started


class Service:
    """Consumes its inbox, and publishes to all inboxes."""

    def __init__(self, url: str, inbox: str) -> None:
        self.bus = RabbitBus(url, ladder=SHORT_LADDER)
        self.inbox = inbox
        self.received: set[bytes] = set()

    @asynccontextmanager
    async def run(self) -> AsyncIterator["Service"]:
        await self.bus.start(self.inbox)
        receiving = asyncio.create_task(self._receive())
        try:
            yield self
        finally:
            await end_tasks(receiving)
            await self.bus.close()

    async def _receive(self) -> None:
        while True:
            deliveries = await self.bus.receive(100)
            self.received.update(delivery.body for delivery in deliveries)
            await self.bus.acknowledge(deliveries)

    async def publish(self, inbox: str, text: str) -> None:
        """Publish a message, again until it is confirmed."""
        while True:
            with suppress(BusUnavailableError):
                return await self.bus.publish([raw(f"{self.inbox}: {text}".encode(), inbox)])
            await asyncio.sleep(0.05)


async def exchange(services: list[Service], text: str) -> None:
    """Have every service send a message to every other, and wait until all have arrived."""
    async with asyncio.timeout(WITHIN):
        await asyncio.gather(*(each.publish(other.inbox, text) for each in services for other in services))
    expected = {f"{each.inbox}: {text}".encode() for each in services}
    await eventually(lambda: all(expected <= each.received for each in services), within=WITHIN)


@asynccontextmanager
async def services_on(
    cluster: BrokerCluster, number: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[Service]]:
    """Run a service for each inbox, all connected to one node."""
    monkeypatch.setattr(random, "shuffle", lambda _addresses: None)
    urls = cluster.urls
    url = ",".join([urls[number], *urls[:number], *urls[number + 1 :]])
    async with AsyncExitStack() as running:
        services = [Service(url, inbox) for inbox in topology.INBOXES]
        for each in services:
            await running.enter_async_context(each.run())
        yield services


async def test_all_go_on_while_the_node_that_they_were_on_stays_dead(
    cluster: BrokerCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with services_on(cluster, 0, monkeypatch) as services:
        await exchange(services, "before")
        await cluster.kill(0)
        await exchange(services, "during")


async def test_all_go_on_while_the_node_that_they_were_on_says_nothing(
    cluster: BrokerCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.start()  # what the test before has killed: two of three are needed
    async with services_on(cluster, 1, monkeypatch) as services:
        await exchange(services, "before")
        async with cluster.silent(1):
            await exchange(services, "during")


async def test_a_publisher_goes_on_whose_channel_asked_a_leader_that_says_nothing(cluster: BrokerCluster) -> None:
    await cluster.start()
    leader = await cluster.leader_of(topology.ORDER_INBOX)
    others = [url for number, url in enumerate(cluster.urls) if number != leader]
    received = Service(",".join(others), topology.ORDER_INBOX)
    # More than the broker takes for a channel that hangs before it reads nothing more from the connection.
    expected = {f"{number}".encode() for number in range(1000)}
    async with cluster.silent(leader):
        publisher = RabbitBus(",".join(others), ladder=SHORT_LADDER, topology_mode="trust")
        await publisher.start(None)
        try:
            async with asyncio.timeout(WITHIN):
                await publish_all(publisher, [raw(body, topology.ORDER_INBOX) for body in sorted(expected)])
        finally:
            await publisher.close()
        async with received.run():
            await eventually(lambda: expected <= received.received, within=WITHIN)


async def publish_all(bus: RabbitBus, envelopes: list[Envelope]) -> None:
    """Publish everything at once, again until all of it is confirmed."""
    while True:
        with suppress(BusUnavailableError):
            return await bus.publish(envelopes)
        await asyncio.sleep(0.05)

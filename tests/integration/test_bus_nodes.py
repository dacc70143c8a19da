"""A cluster of several nodes: which one a connection goes to, and how it leaves one that is killed or silent.

The nodes are proxies before one broker, so what one node has is what the others have, as in a cluster.
"""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import pytest
from yarl import URL

from operations.doctor.broker import check_nodes
from operations.reading.broker import count_messages
from shared import topology
from shared.bus.amqp import nodes as nodes_module
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.contracts import RefundPayment
from tests.support.buses import SHORT_LADDER, RabbitHarness
from tests.support.eventually import eventually
from tests.support.proxy import Proxy

INBOX = topology.PAYMENT_INBOX


@pytest.fixture
async def harness(amqp_url: str) -> AsyncIterator[RabbitHarness]:
    async with RabbitHarness.open(amqp_url) as opened:
        yield opened


@pytest.fixture
async def nodes(harness: RabbitHarness) -> AsyncIterator[list[Proxy]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Proxy(URL(harness.url)).open()) for _ in range(2)]


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses are tried in the order of the URL."""
    monkeypatch.setattr(random, "shuffle", lambda _addresses: None)


def url_of(nodes: Sequence[Proxy]) -> str:
    return ",".join(str(node.url) for node in nodes)


async def started(url: str, queue: str | None = None) -> RabbitBus:
    bus = RabbitBus(url, ladder=SHORT_LADDER)
    await bus.start(queue)
    return bus


async def works(bus: RabbitBus, order_id: str) -> bool:
    """Publish a command, and return whether the bus receives it."""
    await Publisher(bus).send([RefundPayment(order_id=order_id)])
    received = await bus.receive(1)
    await bus.acknowledge(received)
    return [each.correlation_id for each in received] == [order_id]


@pytest.mark.usefixtures("in_order")
async def test_a_bus_leaves_a_node_that_is_killed(nodes: list[Proxy]) -> None:
    bus = await started(url_of(nodes), INBOX)
    assert [node.connections for node in nodes] == [1, 0]

    await nodes[0].die()

    await eventually(lambda: nodes[1].connections == 1 and bus.unhealthy_reason is None, within=60)
    assert await works(bus, "o")
    await bus.close()


@pytest.mark.usefixtures("in_order")
async def test_a_bus_leaves_a_node_that_falls_silent(nodes: list[Proxy]) -> None:
    bus = await started(url_of(nodes), INBOX)

    nodes[0].carrying.clear()

    await eventually(lambda: nodes[1].connections == 1 and bus.unhealthy_reason is None, within=60)
    assert await works(bus, "o")
    await bus.close()


@pytest.mark.usefixtures("in_order")
async def test_a_silent_node_does_not_keep_a_bus_or_a_command_from_starting(
    harness: RabbitHarness, nodes: list[Proxy]
) -> None:
    nodes[0].carrying.clear()

    bus = await started(url_of(nodes), INBOX)
    assert await works(bus, "o")
    await bus.close()
    assert await count_messages(url_of(nodes), [INBOX]) == {INBOX: 0}

    assert [node.connections for node in nodes] == [2, 2]


@pytest.mark.usefixtures("in_order")
async def test_every_address_of_a_name_is_tried(harness: RabbitHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str) -> list[str]:
        assert host == "rabbit.test"
        return ["127.0.0.2", "127.0.0.1"]

    monkeypatch.setattr(nodes_module, "resolve", resolve)
    async with Proxy(URL(harness.url)).open() as real:
        assert real.url.port
        async with Proxy(URL(harness.url)).open("127.0.0.2", real.url.port) as silent:
            silent.carrying.clear()
            bus = await started(str(real.url.with_host("rabbit.test")), INBOX)
            assert await works(bus, "o")
            await bus.close()
            assert (silent.connections, real.connections) == (1, 1)


async def test_without_any_node_the_reason_names_each(nodes: list[Proxy]) -> None:
    bus = await started(url_of(nodes))
    for node in nodes:
        await node.die()

    ports = {str(node.url.port) for node in nodes}
    await eventually(lambda: all(port in (bus.unhealthy_reason or "") for port in ports), within=60)
    await bus.close()


async def test_doctor_names_the_node_that_is_away(nodes: list[Proxy]) -> None:
    await nodes[1].die()
    here, away = [f"RabbitMQ node 127.0.0.1:{node.url.port}" for node in nodes]

    findings = [finding async for finding in check_nodes(url_of(nodes))]

    assert [(finding.subject, finding.outcome) for finding in findings] == [(here, "ok"), (away, "wrong")]

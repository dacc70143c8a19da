"""A part of the topology is deleted or redeclared on a running broker: it is repaired, or reported."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection
from structlog.testing import capture_logs
from yarl import URL

from shared import topology
from shared.bus import Envelope
from shared.bus.declaring import PAUSE_BEFORE_DECLARING_AGAIN
from shared.bus.rabbitmq import RabbitBus
from tests.support.buses import SHORT_LADDER, RabbitHarness, raw
from tests.support.eventually import eventually
from tests.support.proxy import Proxy

OFTEN = 0.2
"""Seconds between two checks of the topology."""
RETRY = SHORT_LADDER[0].queue_of(topology.PAYMENT_INBOX)
QUEUES = {queue.name: queue for queue in topology.queues(SHORT_LADDER)}


@pytest.fixture
async def harness(amqp_url: str) -> AsyncIterator[RabbitHarness]:
    async with RabbitHarness.open(amqp_url, "declare") as opened:
        yield opened


@pytest.fixture
async def operator(amqp_url: str) -> AsyncIterator[AbstractConnection]:
    """A connection of an operator who changes the services' declarations."""
    async with await aio_pika.connect(amqp_url) as connection:
        yield connection


async def ask(operator: AbstractConnection, what: str, *arguments: Any, **options: Any) -> bool:
    """Call a method of a new channel, because the broker closes a channel on an error."""
    async with operator.channel() as channel:
        answer: Awaitable[object] = getattr(channel, what)(*arguments, **options)
        await answer
    return True


async def test_a_removed_binding_is_restored(harness: RabbitHarness) -> None:
    # Inventory still takes order.created, so no publisher learns that payment does not.
    bus = await harness.bus(repair_every=OFTEN)
    queue = await harness._channel.get_queue(topology.PAYMENT_INBOX)
    await queue.unbind(topology.EXCHANGE, "order.created")
    numbers = iter(range(10_000))

    async def arrives() -> bool:
        sent = Envelope(b"{}", topology.EXCHANGE, "order.created", "order.created", "o1", f"m{next(numbers)}")
        await bus.publish([sent])
        return bool(await harness._take_now(topology.PAYMENT_INBOX))

    await eventually(arrives, within=60)


@pytest.mark.parametrize("queue", [topology.DEAD_LETTERS, RETRY])
async def test_a_deleted_exchange_is_restored_with_its_bindings(
    harness: RabbitHarness, operator: AbstractConnection, queue: str
) -> None:
    bus = await harness.bus(repair_every=OFTEN)
    exchange, routing_key = QUEUES[queue].bindings[0]

    await ask(operator, "exchange_delete", exchange)

    await eventually(lambda: ask(operator, "get_exchange", exchange), within=60)
    await eventually(lambda: publish(bus, Envelope(b"{}", exchange, routing_key, "t", "o1", "m1")), within=60)


async def publish(bus: Any, envelope: Envelope) -> bool:
    """Publish; raises if the message is not routed to a queue."""
    await bus.publish([envelope])
    return True


@pytest.mark.parametrize("queue", [topology.INVENTORY_INBOX, topology.DEAD_LETTERS, RETRY])
async def test_a_deleted_queue_is_restored_with_its_bindings(
    harness: RabbitHarness, operator: AbstractConnection, queue: str
) -> None:
    bus = await harness.bus(repair_every=OFTEN)
    exchange, routing_key = QUEUES[queue].bindings[0]
    with capture_logs() as logs:
        await ask(operator, "queue_delete", queue)

        await eventually(lambda: ask(operator, "get_queue", queue), within=60)
        await eventually(lambda: publish(bus, Envelope(b"{}", exchange, routing_key, "t", "o1", "m1")), within=60)
        await eventually(lambda: any(f"queue {queue}" in line.get("declared", ()) for line in logs), within=60)


async def test_a_deleted_queue_is_declared_again_after_the_broker_has_notified_all_its_consumers(
    harness: RabbitHarness, operator: AbstractConnection
) -> None:
    # A consumer that was not notified would be counted as one of the new queue, and get nothing.
    buses = [await harness.bus(topology.PAYMENT_INBOX, repair_every=60) for _ in range(3)]
    links = [bus._link for bus in buses]  # type: ignore[attr-defined]
    since = time.monotonic()

    await ask(operator, "queue_delete", topology.PAYMENT_INBOX)

    await asyncio.wait([link.lost for link in links], return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert time.monotonic() - since >= PAUSE_BEFORE_DECLARING_AGAIN

    def all_have_new_links() -> bool:
        return all(bus._link not in (*links, None) for bus in buses)  # type: ignore[attr-defined]

    await eventually(all_have_new_links, within=60)


async def test_a_queue_with_other_arguments_is_reported_until_it_is_as_declared(
    harness: RabbitHarness, operator: AbstractConnection
) -> None:
    bus = await harness.bus(repair_every=OFTEN)
    arguments = {"x-queue-type": "quorum", "x-message-ttl": 5}

    async def declare_otherwise() -> bool:
        await ask(operator, "queue_delete", RETRY)
        return await ask(operator, "declare_queue", RETRY, durable=True, arguments=arguments)

    try:
        await eventually(declare_otherwise, within=60)
        await eventually(lambda: f"'{RETRY}'" in str(bus.unhealthy_reason), within=60)
        assert "a different declaration" in str(bus.unhealthy_reason)
        await bus.publish([raw(b"{}", topology.PAYMENT_INBOX)])  # the rest is still used
    finally:
        await ask(operator, "queue_delete", RETRY)
    await eventually(lambda: bus.unhealthy_reason is None, within=60)


async def test_a_broker_that_does_not_answer_for_a_while_is_reported_and_its_connection_kept(
    harness: RabbitHarness,
) -> None:
    async with Proxy(URL(harness.url)).open() as proxy:
        url = str(proxy.url.update_query(heartbeat=60))
        bus = RabbitBus(url, ladder=SHORT_LADDER, publish_timeout=60, repair_every=OFTEN)
        await bus.start(None)
        link = bus._link
        assert link is not None
        patient, link._options = link._options, replace(link._options, timeout=0.3)
        proxy.carrying.clear()
        await eventually(
            lambda: "did not answer in 0.9 s whether the topology is whole" in str(bus.unhealthy_reason), within=60
        )
        link._options = patient
        proxy.carrying.set()
        await eventually(lambda: bus.unhealthy_reason is None, within=60)
        assert bus._link is link
        await bus.close()


async def test_a_complete_topology_is_not_changed(harness: RabbitHarness) -> None:
    bus = await harness.bus(topology.PAYMENT_INBOX, repair_every=0.05)
    link = bus._link  # type: ignore[attr-defined]
    with capture_logs() as logs:
        await asyncio.sleep(1)
    assert logs == []
    assert (bus.unhealthy_reason, bus._link) == (None, link)  # type: ignore[attr-defined]

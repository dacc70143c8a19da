"""Publishes events, and reads the stream that keeps them."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

import aio_pika
import orjson

from operations.events.event import Event
from shared import topology
from tests.support.eventually import eventually


async def publish(amqp_url: str, *types: str, body: bytes = b"{}") -> None:
    """Publish a message of each type and wait for the confirms."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(topology.EXCHANGE, ensure=False)
        for name in types:
            message = aio_pika.Message(body, type=name, timestamp=datetime.now(UTC), message_id=name)
            await exchange.publish(message, name, mandatory=False)


async def kept(amqp_url: str) -> list[str]:
    """Return the routing keys of what the stream has; its last one must be `order.created` or about a package."""
    found: list[str] = []

    async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        found.append(message.routing_key or "")
        await message.ack()

    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.set_qos(prefetch_count=100)
        stream = await channel.get_queue(topology.EVENTS)
        await stream.consume(take, arguments={"x-stream-offset": "first"})
        await eventually(lambda: bool(found), within=60)
        # The broker answers in order: what it had is here, and has been acknowledged, before the second answer.
        for _ in range(2):
            await channel.declare_queue(topology.EVENTS, passive=True)
            await asyncio.sleep(0)
    return found


STEPS = ("order.created", "order.provisioning", "order.completed")
"""The events that `publish_orders` sends of each order."""


async def publish_orders(amqp_url: str, orders: range) -> None:
    """Publish the events of orders, those of each in order and all orders mixed, and wait for the confirms."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(topology.EXCHANGE, ensure=False)
        for step in STEPS:
            sent = (_event(f"o{number}") for number in orders)
            await asyncio.gather(*(exchange.publish(message, step, mandatory=False) for message in sent))


def _event(order_id: str) -> aio_pika.Message:
    body = {"orderId": order_id, "userId": "u1", "totalAmount": 19.99, "payment": {"token": "tok_secret"}}
    return aio_pika.Message(orjson.dumps(body), timestamp=datetime.now(UTC), message_id="m")


def assert_complete_and_in_order(events: Sequence[Event], orders: range, start: int = 0) -> None:
    """Assert that these are all events of the orders from the offset `start` on, each once, in order per order."""
    assert [event.offset for event in events] == list(range(start, len(STEPS) * len(orders)))
    found = defaultdict[str | None, list[str]](list)
    for event in events:
        found[event.order_id].append(event.type)
    if start == 0:
        assert found == {f"o{number}": list(STEPS) for number in orders}
    else:
        assert all(tuple(types) == STEPS[-len(types) :] for types in found.values())

"""Queues and messages of the plain services, as aio-pika's documentation shows them."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import aio_pika
import orjson
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractRobustConnection

EXCHANGE = "plain"
QUEUES = {
    "plain.order": ("stock.reserved", "stock.rejected", "stock.released", "payment.completed", "payment.failed"),
    "plain.inventory": ("order.created", "stock.release"),
    "plain.payment": ("order.created", "payment.refund"),
}
PREFETCH = 50
"""Messages that a service works on at once, each by itself."""

Handle = Callable[[str, dict[str, Any]], Awaitable[None]]


class Bus:
    """A connection, and the exchange that all messages go to."""

    def __init__(self, connection: AbstractRobustConnection, channel: AbstractChannel) -> None:
        self._connection = connection
        self._channel = channel

    @classmethod
    async def connect(cls) -> "Bus":
        """Connect to the broker that the environment names, and declare exchange and queues."""
        connection = await aio_pika.connect_robust(os.environ["PLAIN_AMQP_URL"])
        channel = await connection.channel(publisher_confirms=True)
        await channel.set_qos(prefetch_count=PREFETCH)
        exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
        for name, keys in QUEUES.items():
            queue = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
            for key in keys:
                await queue.bind(exchange, key)
        return cls(connection, channel)

    async def publish(self, key: str, body: dict[str, Any]) -> None:
        """Publish a message, and wait until it is confirmed."""
        exchange = await self._channel.get_exchange(EXCHANGE, ensure=False)
        message = aio_pika.Message(orjson.dumps(body), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await exchange.publish(message, key)

    async def consume(self, queue: str, handle: Handle) -> None:
        """Handle the messages of a queue; one whose handling fails comes again."""

        async def on_message(message: AbstractIncomingMessage) -> None:
            async with message.process(requeue=True):
                await handle(str(message.routing_key), orjson.loads(message.body))

        await (await self._channel.get_queue(queue)).consume(on_message)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

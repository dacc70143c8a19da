"""Moves messages from one queue to another: each is acknowledged only once the broker has confirmed its copy.

A message keeps its body, type, ids, headers and routing key. Its sender becomes the user who moves it, as RabbitMQ lets
nobody publish in another's name. In an inbox that changes no decision: whoever has put a message there had the right to
(shared.broker_rights). A dead letter is judged by its sender, so it is recorded and never moved.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from operations.reading.connection import open_bus
from operations.reading.publishing import until_accepted
from shared import topology
from shared.broker_rights import may_send_by_name
from shared.bus import Delivery, Envelope
from shared.bus.failures import COPIES, COUNTED_BY_BROKER, fitting, fitting_text
from shared.topology import INBOX_EXCHANGE, Queue

NAME = "ordersaga-migrate"
"""The name of its connections."""

BATCH = 200
QUIET_SECONDS = 1.0
"""A waiting message that is not delivered within this time went to another consumer."""

Readdress = Callable[[Delivery, Queue], Envelope]


def away(delivery: Delivery, queue: Queue) -> Envelope:
    """Return the copy of a message for its queue's migration queue."""
    may_stay = delivery.exchange != "" or may_send_by_name(delivery.user_id)
    # Consumers reject what its sender may not send to an inbox by its name; without its key they still do.
    return _copy(delivery, topology.migration_exchange(queue).name, delivery.routing_key if may_stay else "")


def back(delivery: Delivery, queue: Queue) -> Envelope:
    """Return the copy of a message from a migration queue for its own queue.

    What came by the name of an inbox, a retry or a replay, has its type in a property, and consumers believe that only
    from an exchange that routes by names.
    """
    if delivery.routing_key == queue.name and queue.name in topology.INBOXES:
        return _copy(delivery, INBOX_EXCHANGE, queue.name)
    return _copy(delivery, topology.migration_exchange(queue).name, delivery.routing_key)


def _copy(delivery: Delivery, exchange: str, routing_key: str) -> Envelope:
    left_out = COPIES | COUNTED_BY_BROKER
    return Envelope(
        body=delivery.body,
        exchange=exchange,
        routing_key=fitting_text(routing_key),
        type=fitting_text(delivery.type or ""),
        correlation_id=fitting_text(delivery.correlation_id or ""),
        message_id=fitting_text(delivery.message_id or ""),
        headers=fitting({name: value for name, value in delivery.headers.items() if name not in left_out}),
    )


async def move(amqp_url: str, source: str, queue: Queue, readdress: Readdress, number: int) -> int:
    """Move `number` messages of the source, or fewer if another consumer takes some; return how many.

    `queue` is the one that they belong to. Raises UnreachableError if the broker does not answer or takes no messages.
    """
    moved = 0
    async with open_bus(amqp_url, source, name=NAME, prefetch=BATCH) as bus:
        while moved < number:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    deliveries = await bus.receive(BATCH)
            except TimeoutError:
                break
            copies = [readdress(delivery, queue) for delivery in deliveries]
            await until_accepted(partial(bus.publish, copies))
            if bus.still_owns(deliveries):  # else the broker has given them back
                await bus.acknowledge(deliveries)
                moved += len(deliveries)
    return moved

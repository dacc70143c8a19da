"""Declaring the topology (shared.topology) on a broker: idempotent, so everyone does it at every connection."""

from collections.abc import Sequence

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelPreconditionFailed

from shared import topology
from shared.errors import StartError


async def declare_topology(connection: AbstractConnection, ladder: Sequence[topology.RetryDelay]) -> None:
    """Declare all exchanges, queues and bindings.

    Raises StartError, naming it, if one exists with other arguments; an error of aio-pika if the connection is lost.
    """
    # A channel of its own: the broker closes the one on which a declaration fails.
    async with connection.channel() as channel:
        try:
            for exchange in _exchanges(ladder):
                await channel.declare_exchange(exchange.name, exchange.kind, durable=True, arguments=exchange.arguments)
            for queue in topology.queues(tuple(ladder)):
                declared = await channel.declare_queue(queue.name, durable=True, arguments=queue.arguments)
                for exchange_name, routing_key in queue.bindings:
                    await declared.bind(exchange_name, routing_key)
        except ChannelPreconditionFailed as error:
            raise StartError(f"RabbitMQ has another declaration than ours ({error}): delete it, or migrate") from error


def _exchanges(ladder: Sequence[topology.RetryDelay]) -> list[topology.Exchange]:
    declared = {exchange.name: exchange for exchange in topology.exchanges()}
    declared |= {delay.name: topology.Exchange(delay.name, "fanout") for delay in ladder}
    return list(declared.values())

"""Declares the topology (shared.topology) on a broker, or checks without changing anything that it is there.

`ordersaga topology apply` declares it, as the user who may; so does every connection with ORDERSAGA_TOPOLOGY=declare.
All others check. Either is repeated during a connection, because parts may be deleted meanwhile (see Link).
"""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

from shared import topology
from shared.errors import StartError

PAUSE_BEFORE_DECLARING_AGAIN = 1.0
"""Seconds.

If a queue is declared right after its deletion, RabbitMQ 3.10 does not cancel the consumers of the deleted queue: it
counts them as consumers of the new one and sends them nothing. After a pause they are cancelled, and consume again.
"""

_MOST_NAMED = 5


async def declare_topology(connection: AbstractConnection, ladder: Sequence[topology.RetryDelay]) -> None:
    """Declare all exchanges, queues and bindings.

    Raises StartError with the name of one that exists with other arguments, and an error of aio-pika if the connection
    is lost.
    """
    # On a separate channel: the broker closes a channel on which a declaration fails.
    async with connection.channel() as channel:
        try:
            for exchange in topology.exchanges(tuple(ladder)):
                await _declare_exchange(channel, exchange)
            for queue in topology.queues(tuple(ladder)):
                await _declare_queue(channel, queue)
        except ChannelPreconditionFailed as error:
            raise _contradiction(error) from error
        except ChannelAccessRefused as error:
            raise _not_permitted(error) from error


async def find_missing(connection: AbstractConnection, ladder: Sequence[topology.RetryDelay]) -> list[str]:
    """Return the missing exchanges and queues, such as `queue order.inbox`; nothing is changed.

    Bindings are not checked, since AMQP cannot query them. Raises an error of aio-pika if the connection is lost.
    """
    declarer = _Declarer(connection, await connection.channel())
    missing = [
        f"exchange {exchange.name}"
        for exchange in topology.exchanges(tuple(ladder))
        if not await declarer.exchange_exists(exchange)
    ]
    missing += [
        f"queue {queue.name}" for queue in topology.queues(tuple(ladder)) if not await declarer.queue_exists(queue)
    ]
    await declarer.channel.close()
    return missing


def describe_missing(missing: Sequence[str]) -> str:
    """Return one line that names what is missing, at most _MOST_NAMED parts, and says how to create it."""
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    return f"missing {', '.join(missing[:_MOST_NAMED])}{more}: {topology.HOW_TO_APPLY}"


async def repair_topology(connection: AbstractConnection, ladder: Sequence[topology.RetryDelay]) -> list[str]:
    """Declare what is missing; return the missing exchanges and queues, such as `queue order.inbox`.

    Missing bindings are restored but not reported: AMQP cannot query bindings, so all are declared again. Raises the
    same errors as `declare_topology`.
    """
    declarer = _Declarer(connection, await connection.channel())
    try:
        missing = [
            f"exchange {exchange.name}"
            for exchange in topology.exchanges(tuple(ladder))
            if not await declarer.redeclare_exchange(exchange)
        ]
        deleted = [queue for queue in topology.queues(tuple(ladder)) if not await declarer.redeclare_queue(queue)]
        if deleted:
            await asyncio.sleep(PAUSE_BEFORE_DECLARING_AGAIN)
        for queue in deleted:
            await _declare_queue(declarer.channel, queue)
    except ChannelPreconditionFailed as error:
        raise _contradiction(error) from error
    except ChannelAccessRefused as error:
        raise _not_permitted(error) from error
    await declarer.channel.close()
    return missing + [f"queue {queue.name}" for queue in deleted]


@dataclass(slots=True)
class _Declarer:
    """Checks each part before declaring it again; the broker closes the channel if the part does not exist."""

    connection: AbstractConnection
    channel: AbstractChannel

    async def redeclare_exchange(self, exchange: topology.Exchange) -> bool:
        """Declare the exchange; return whether it existed."""
        existed = await self.exchange_exists(exchange)
        await _declare_exchange(self.channel, exchange)
        return existed

    async def redeclare_queue(self, queue: topology.Queue) -> bool:
        """Declare the queue and its bindings if the queue exists; return whether it does."""
        if not await self.queue_exists(queue):
            return False
        await _declare_queue(self.channel, queue)
        return True

    async def exchange_exists(self, exchange: topology.Exchange) -> bool:
        """Return whether the exchange exists."""
        return await self._exists(self.channel.get_exchange(exchange.name))

    async def queue_exists(self, queue: topology.Queue) -> bool:
        """Return whether the queue exists."""
        return await self._exists(self.channel.get_queue(queue.name))

    async def _exists(self, question: Awaitable[object]) -> bool:
        try:
            await question
        except ChannelNotFoundEntity:
            self.channel = await self.connection.channel()
            return False
        except ChannelAccessRefused:  # a broker that does not let everybody ask: it knows the name
            self.channel = await self.connection.channel()
        return True


async def _declare_exchange(channel: AbstractChannel, exchange: topology.Exchange) -> None:
    await channel.declare_exchange(exchange.name, exchange.kind, durable=True, arguments=exchange.arguments)


async def _declare_queue(channel: AbstractChannel, queue: topology.Queue) -> None:
    declared = await channel.declare_queue(queue.name, durable=True, arguments=queue.arguments)
    for exchange_name, routing_key in queue.bindings:
        await declared.bind(exchange_name, routing_key)


def _contradiction(error: ChannelPreconditionFailed) -> StartError:
    return StartError(f"RabbitMQ has a different declaration ({error}): delete it, or migrate")


def _not_permitted(error: ChannelAccessRefused) -> StartError:
    return StartError(f"this user may not declare the topology, which deployer may ({error})")

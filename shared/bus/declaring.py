"""Declares the topology (shared.topology) on a broker, or checks without changing anything that it is there.

`ordersaga topology apply` declares it, as the user who may; so does every connection with ORDERSAGA_TOPOLOGY=declare.
All others check. Either is repeated during a connection, because parts may be deleted meanwhile (see Link).
A queue that exists with other arguments is replaced by `ordersaga migrate` only (operations.migration).
"""

import asyncio
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused, ConnectionCommandInvalid

from shared import topology
from shared.broker_rights import may_ask_for
from shared.bus.amqp.connecting import broker_version, user_of
from shared.errors import StartError

PAUSE_BEFORE_DECLARING_AGAIN = 1.0
"""Seconds.

If a queue is declared right after its deletion, RabbitMQ 3.10 does not cancel the consumers of the deleted queue: it
counts them as consumers of the new one and sends them nothing. After a pause they are cancelled, and consume again.
"""

_MOST_NAMED = 5

_REFUSES_ANSWERS_FROM = (4, 2, 6)
"""The first version of RabbitMQ that does."""

_IS_STARTING = "is down or inaccessible"
"""The broker says so, for some tenths of a second after its start, of a stream that exists."""


class EventStreamDiffersError(StartError):
    """The broker's stream of events was declared with other arguments, and stays as it is."""


async def declare_topology(
    connection: AbstractConnection,
    ladder: Sequence[topology.RetryDelay],
    options: topology.TopologyOptions = topology.PLAIN,
) -> None:
    """Declare all exchanges, queues and bindings but the stream of events.

    Raises StartError with the name of one that exists with other arguments, or with the plugin that is missing, and an
    error of aio-pika if the connection is lost.
    """
    # On a separate channel: the broker closes a channel on which a declaration fails.
    async with connection.channel() as channel:
        try:
            exchanges = topology.exchanges(tuple(ladder), options)
            for exchange in exchanges:
                await _declare_exchange(channel, exchange)
            for queue in topology.queues(tuple(ladder), options):
                await _declare_queue(channel, queue)
            await _divert(channel, exchanges, options)
        except ChannelPreconditionFailed as error:
            raise _contradiction(error) from error
        except ChannelAccessRefused as error:
            raise not_permitted(error) from error


async def declare_event_stream(connection: AbstractConnection, retention: str) -> None:
    """Declare the stream of events and its bindings; without a retention, remove the bindings and keep the stream.

    Raises EventStreamDiffersError if the broker's stream has other arguments: it is bound all the same. Also raises
    StartError if this user may not declare it, and an error of aio-pika if the connection is lost.
    """
    stream = topology.event_stream(retention)
    declarer = Declarer(connection, await connection.channel())
    differs = None
    try:
        if not retention:
            if await declarer.queue_exists(stream.name):
                await _unbind(declarer.channel, stream)
        elif not await declarer.queue_exists(stream.name) or (differs := await declarer.difference(stream)) is None:
            await _declare_queue(declarer.channel, stream)
        else:
            await _bind(declarer.channel, stream)
    except ChannelAccessRefused as error:
        raise not_permitted(error) from error
    await declarer.channel.close()
    if differs is not None:
        raise EventStreamDiffersError(describe_stream_difference(differs, retention))


async def queue_exists(connection: AbstractConnection, name: str) -> bool:
    """Return whether a queue exists. Raises an error of aio-pika if the connection is lost."""
    declarer = Declarer(connection, await connection.channel())
    exists = await declarer.queue_exists(name)
    await declarer.channel.close()
    return exists


async def find_missing(
    connection: AbstractConnection,
    ladder: Sequence[topology.RetryDelay],
    options: topology.TopologyOptions = topology.PLAIN,
) -> list[str]:
    """Return the missing exchanges and queues, such as `queue order.inbox`; nothing is changed.

    Unless it is off, the stream of events is one of them. Bindings are not checked, since AMQP cannot query
    them. Raises an error of aio-pika if the connection is lost.

    A broker that would refuse an answer is not asked: it closes the channel each time, and under load the connection.
    """
    user = user_of(connection) if _refuses_answers(connection) else None
    declarer = Declarer(connection, await connection.channel())
    missing = [
        f"exchange {exchange.name}"
        for exchange in topology.exchanges(tuple(ladder), options)
        if may_ask_for(user, exchange.name) and not await declarer.exchange_exists(exchange)
    ]
    missing += [
        f"queue {queue.name}"
        for queue in topology.all_queues(options, tuple(ladder))
        if may_ask_for(user, queue.name) and not await declarer.queue_exists(queue.name)
    ]
    await declarer.channel.close()
    return missing


def describe_missing(missing: Sequence[str]) -> str:
    """Return one line that names what is missing, at most _MOST_NAMED parts, and says how to create it."""
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    return f"missing {', '.join(missing[:_MOST_NAMED])}{more}: {topology.HOW_TO_APPLY}"


async def repair_topology(
    connection: AbstractConnection,
    ladder: Sequence[topology.RetryDelay],
    options: topology.TopologyOptions = topology.PLAIN,
) -> list[str]:
    """Declare what is missing; return the missing exchanges and queues, such as `queue order.inbox`.

    Missing bindings are restored but not reported: AMQP cannot query bindings, so all are declared again. Raises the
    same errors as `declare_topology`.
    """
    declarer = Declarer(connection, await connection.channel())
    try:
        exchanges = topology.exchanges(tuple(ladder), options)
        missing = [
            f"exchange {exchange.name}" for exchange in exchanges if not await declarer.redeclare_exchange(exchange)
        ]
        queues = topology.all_queues(options, tuple(ladder))
        deleted = [queue for queue in queues if not await declarer.redeclare_queue(queue)]
        if deleted:
            await asyncio.sleep(PAUSE_BEFORE_DECLARING_AGAIN)
        for queue in deleted:
            await _declare_queue(declarer.channel, queue)
        await _divert(declarer.channel, exchanges, options)
    except ChannelPreconditionFailed as error:
        raise _contradiction(error) from error
    except ChannelAccessRefused as error:
        raise not_permitted(error) from error
    await declarer.channel.close()
    return missing + [f"queue {queue.name}" for queue in deleted]


@dataclass(slots=True)
class Declarer:
    """Checks each part before declaring it again; the broker closes the channel if the part does not exist."""

    connection: AbstractConnection
    channel: AbstractChannel

    async def redeclare_exchange(self, exchange: topology.Exchange) -> bool:
        """Declare the exchange; return whether it existed."""
        existed = await self.exchange_exists(exchange)
        await _declare_exchange(self.channel, exchange)
        return existed

    async def redeclare_queue(self, queue: topology.Queue) -> bool:
        """Declare the queue and its bindings if the queue exists; return whether it does.

        Of the stream of events only the bindings: it may have been declared with another retention.
        """
        if not await self.queue_exists(queue.name):
            return False
        if queue.name == topology.EVENTS:
            await _bind(self.channel, queue)
        else:
            await _declare_queue(self.channel, queue)
        return True

    async def difference(self, part: topology.Queue | topology.Exchange) -> str | None:
        """Return in the broker's words how an existing part differs from the declared one; None if it does not."""
        try:
            if isinstance(part, topology.Exchange):
                await _declare_exchange(self.channel, part)
            else:
                await self.channel.declare_queue(part.name, durable=True, arguments=part.arguments)
        except ChannelPreconditionFailed as error:
            self.channel = await self.connection.channel()
            return str(error)
        return None

    async def declare_exchange(self, exchange: topology.Exchange) -> None:
        """Declare the exchange."""
        await _declare_exchange(self.channel, exchange)

    async def declare_queue(self, queue: topology.Queue) -> str | None:
        """Declare the queue and its bindings; return its difference if it exists with other arguments, then bound."""
        differs = await self.difference(queue)
        await _bind(self.channel, queue)
        return differs

    async def unbind(self, queue: topology.Queue) -> None:
        """Remove the bindings of the queue."""
        await _unbind(self.channel, queue)

    async def exchange_exists(self, exchange: topology.Exchange) -> bool:
        """Return whether the exchange exists."""
        return await self._exists(self.channel.get_exchange(exchange.name))

    async def queue_exists(self, name: str) -> bool:
        """Return whether the queue exists."""
        return await self._exists(self.channel.get_queue(name))

    async def _exists(self, question: Awaitable[object]) -> bool:
        try:
            await question
        except ChannelNotFoundEntity as error:
            self.channel = await self.connection.channel()
            return _IS_STARTING in str(error)
        except ChannelAccessRefused:  # a broker that does not let everybody ask: it knows the name
            self.channel = await self.connection.channel()
        return True


def _refuses_answers(connection: AbstractConnection) -> bool:
    """Return whether the broker tells users only of exchanges and queues on which they have a right."""
    version = tuple(int(part) for part in re.findall(r"\d+", broker_version(connection))[:3])
    return version >= _REFUSES_ANSWERS_FROM


async def _declare_exchange(channel: AbstractChannel, exchange: topology.Exchange) -> None:
    try:
        await channel.declare_exchange(exchange.name, exchange.kind, durable=True, arguments=exchange.arguments)
    except (ConnectionCommandInvalid, ChannelPreconditionFailed) as error:
        if not is_about_unknown_type(error):
            raise
        raise StartError(f"{topology.PLUGIN_IS_MISSING}: {topology.HOW_TO_ENABLE}") from error


def is_about_unknown_type(error: ConnectionCommandInvalid | ChannelPreconditionFailed) -> bool:
    """Return whether the broker does not know an exchange's type, because no plugin for it is enabled.

    RabbitMQ 3.10 closes the connection for it, later releases the channel
    (https://github.com/rabbitmq/rabbitmq-server/blob/main/deps/rabbit/src/rabbit_exchange.erl).
    """
    return "exchange type" in str(error)


async def _divert(
    channel: AbstractChannel, exchanges: Sequence[topology.Exchange], options: topology.TopologyOptions
) -> None:
    """Bind the exchanges that divide inboxes, whose partitions exist by now, and remove the bindings of other options.

    In this order: one may arrive twice in between, and none is lost.
    """
    for exchange in exchanges:
        divided = await channel.get_exchange(exchange.name, ensure=False)
        for source, routing_key in exchange.bindings:
            await divided.bind(source, routing_key)
    of_inboxes, of_exchanges = topology.unwanted_bindings(options)
    for name, bindings in of_inboxes.items():
        inbox = await channel.get_queue(name, ensure=False)
        for source, routing_key in bindings:
            await inbox.unbind(source, routing_key)
    for name, bindings in of_exchanges.items():
        silent = await channel.get_exchange(name, ensure=False)
        for source, routing_key in bindings:
            await silent.unbind(source, routing_key)


async def _declare_queue(channel: AbstractChannel, queue: topology.Queue) -> None:
    await channel.declare_queue(queue.name, durable=True, arguments=queue.arguments)
    await _bind(channel, queue)


async def _bind(channel: AbstractChannel, queue: topology.Queue) -> None:
    existing = await channel.get_queue(queue.name, ensure=False)
    for exchange_name, routing_key in queue.bindings:
        await existing.bind(exchange_name, routing_key)


async def _unbind(channel: AbstractChannel, queue: topology.Queue) -> None:
    existing = await channel.get_queue(queue.name, ensure=False)
    for exchange_name, routing_key in queue.bindings:
        await existing.unbind(exchange_name, routing_key)


def describe_stream_difference(difference: str, retention: str) -> str:
    """Say how the stream of events differs, from the broker's words, and where to read what to do."""
    current = re.search(r"'x-max-age'.*current is '([^']*)'", difference)
    if current is None:
        return f"{topology.EVENTS} is declared differently ({difference}): docs/event-stream.md says what to do"
    return (
        f"{topology.EVENTS} keeps events for {current[1]}, not for {retention} as ORDERSAGA_EVENTS_RETENTION says, "
        "because RabbitMQ does not change an existing stream: docs/event-stream.md says how to"
    )


def _contradiction(error: ChannelPreconditionFailed) -> StartError:
    named = re.search(r"for queue '([^']*)'", str(error))
    is_partition = named is not None and topology.is_partition(named[1])
    fix = topology.HOW_TO_RENEW_PARTITIONS if is_partition else topology.HOW_TO_MIGRATE
    return StartError(f"RabbitMQ has a different declaration ({error}): {fix}")


def not_permitted(error: ChannelAccessRefused) -> StartError:
    """Return the error for a user who may not declare."""
    return StartError(f"this user may not declare the topology, which deployer may ({error})")

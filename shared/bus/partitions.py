"""Takes partitions out of service on a broker that has more of them than ORDERSAGA_PARTITIONS says.

They get no more messages at once. Each is deleted when it is empty and nobody consumes it; until then, the processes
that were started with the larger number take what waits there. shared.bus.declaring declares more of them.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.abc import AbstractChannel as UnderlyingChannel
from aiormq.exceptions import ChannelAccessRefused

from shared import topology
from shared.bus.declaring import not_permitted

ROUTED_SECONDS = 1.0
"""The time in which a message that was routed to a queue before its binding went arrives there."""

DELIVERED_SECONDS = 0.1
"""The time in which a message that waits in a queue comes to its only consumer. One that comes later is counted."""


LEADER_SECONDS = 0.2
"""An answer within this time is that of the queue's leader: the broker gives up waiting for it after 0.25 s."""


class Leftover(NamedTuple):
    """A partition that is not in use any more, and why it is still there.

    RabbitMQ counts one consumer, the active one, however many there are.
    """

    queue: str
    messages: int
    consumers: int

    def __str__(self) -> str:
        """Return it in words, such as `order.inbox.3 (12 waiting, still consumed)`."""
        return f"{self.queue} ({self.messages} waiting, {'still' if self.consumers else 'not'} consumed)"


class Trial(NamedTuple):
    """What another consumer of a partition found: whether it got a message, and what is left without it.

    `is_certain` is whether the partition's leader said so: a broker that waits for it in vain answers with zeros.
    """

    got_message: bool
    level: Leftover
    is_certain: bool

    @property
    def has_no_other(self) -> bool:
        """Whether it is certain that nobody else consumes the partition."""
        return self.got_message or (self.is_certain and self.level.consumers == 0)

    @property
    def is_unused(self) -> bool:
        """Whether it is certain that the partition is empty as well."""
        return self.is_certain and not (self.got_message or self.level.messages or self.level.consumers)


async def find_partitions(connection: AbstractConnection) -> dict[str, int]:
    """Return the number of partitions that each inbox has on the broker, 0 if it has none."""
    channel = await connection.channel()
    found = {}
    for inbox in topology.PARTITIONED:
        found[inbox] = 0
        while (await _level(channel, topology.partition_of(inbox, found[inbox] + 1))) is not None:
            found[inbox] += 1
        channel = await connection.channel()  # the broker has closed the other
    await channel.close()
    return found


async def unbind_surplus(connection: AbstractConnection, partitions: int) -> list[str]:
    """Let no more messages go to partitions beyond this number; return their names.

    The inboxes must be bound already if none is to be divided. Raises StartError if this user may not unbind, and an
    error of aio-pika if the connection is lost.
    """
    found = await find_partitions(connection)
    channel = await connection.channel()
    try:
        for inbox in found:
            if partitions == topology.WHOLE and found[inbox]:
                await _unbind_exchange(channel, inbox)
        surplus = list(_beyond(partitions, found))
        for queue in surplus if partitions > topology.WHOLE else ():
            bound = await channel.get_queue(queue, ensure=False)
            await bound.unbind(topology.partitions_exchange(topology.inbox_of(queue)), topology.EQUAL_SHARE)
    except ChannelAccessRefused as error:
        raise not_permitted(error) from error
    await channel.close()
    return surplus


async def retire_partitions(connection: AbstractConnection, partitions: int) -> list[Leftover]:
    """Unbind the partitions beyond this number, delete those that are empty and not consumed, and return the others.

    The last is deleted first, as all are found by counting upwards. Raises the same errors as `unbind_surplus`.
    """
    surplus = await unbind_surplus(connection, partitions)
    if not surplus:
        return []
    await asyncio.sleep(ROUTED_SECONDS)
    channel = await connection.channel()
    held: dict[str, list[Leftover]] = {inbox: [] for inbox in topology.PARTITIONED}
    for queue in reversed(surplus):
        in_the_way = held[topology.inbox_of(queue)]
        level = await _level(channel, queue)
        if level is None:  # deleted by another, and the broker has closed the channel
            channel = await connection.channel()
        elif level.messages or level.consumers or not await _is_unused(connection, queue):
            in_the_way.append(level)
        elif not in_the_way:
            await channel.queue_delete(queue)
    for inbox, in_the_way in held.items():
        if partitions == topology.WHOLE and not in_the_way:
            await channel.exchange_delete(topology.partitions_exchange(inbox))
    await channel.close()
    return sorted(each for in_the_way in held.values() for each in in_the_way)


def describe_leftovers(left: Sequence[Leftover]) -> str:
    """Return one line that says what still waits in partitions that are not in use any more, and what to do."""
    named = ", ".join(map(str, left))
    return (
        f"no longer in use, but not deleted yet: {named}. Let the services run with the former ORDERSAGA_PARTITIONS "
        "until nothing waits there, restart them with the new one, and run `ordersaga topology apply` again"
    )


def _beyond(partitions: int, found: dict[str, int]) -> Iterator[str]:
    for inbox, number in found.items():
        used = len(topology.partitions_of(inbox, partitions))
        yield from (topology.partition_of(inbox, each) for each in range(used + 1, number + 1))


async def _level(channel: AbstractChannel, queue: str) -> Leftover | None:
    """Return what is in a queue; None if it does not exist, or is none that this user may ask for."""
    with suppress(ChannelNotFoundEntity, ChannelAccessRefused):
        declared = (await channel.declare_queue(queue, passive=True)).declaration_result
        return Leftover(queue, declared.message_count or 0, declared.consumer_count or 0)
    return None


async def _is_unused(connection: AbstractConnection, queue: str) -> bool:
    async with connection.channel() as channel:
        return (await try_partition(await channel.get_underlay_channel(), queue)).is_unused


async def try_partition(channel: UnderlyingChannel, queue: str) -> Trial:
    """Consume a partition for a moment, on a channel that is closed then: what it delivers goes back.

    RabbitMQ also says that a queue is empty and has no consumer if its leader does not answer for a quarter of a
    second. A consumer waits for the leader.
    """
    arrived = asyncio.Event()

    async def on_message(_message: object) -> None:
        arrived.set()

    await channel.basic_qos(prefetch_count=1)
    consumer = await channel.basic_consume(queue, on_message)
    with suppress(TimeoutError):
        async with asyncio.timeout(DELIVERED_SECONDS):
            await arrived.wait()
    await channel.basic_cancel(str(consumer.consumer_tag))
    asked = time.monotonic()
    answer = await channel.queue_declare(queue, passive=True)
    is_certain = time.monotonic() - asked < LEADER_SECONDS
    return Trial(arrived.is_set(), Leftover(queue, answer.message_count or 0, answer.consumer_count or 0), is_certain)


async def _unbind_exchange(channel: AbstractChannel, inbox: str) -> None:
    divided = await channel.get_exchange(topology.partitions_exchange(inbox), ensure=False)
    for source, routing_key in topology.routes_to(inbox):
        await divided.unbind(source, routing_key)

"""Counts the messages and consumers on the broker."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import aiormq.exceptions
from aio_pika.abc import AbstractConnection

from operations.errors import UnreachableError
from shared.bus.amqp.connecting import connect
from shared.outage_words import with_detail
from shared.topology import (
    DEAD_LETTERS,
    FORMER_RETRY_QUEUES,
    INBOXES,
    MOST_PARTITIONS,
    is_partition,
    partitions_of,
    retry_queues,
)

CONNECT_SECONDS = 5.0

RETRY_QUEUES = (*(name for inbox in INBOXES for name in retry_queues(inbox)), *FORMER_RETRY_QUEUES)
EVERY_QUEUE = (*INBOXES, *RETRY_QUEUES, DEAD_LETTERS)


class QueueLevel(NamedTuple):
    """The ready messages of a queue, and its consumers."""

    messages: int
    consumers: int


async def count_messages(amqp_url: str, names: Sequence[str] = EVERY_QUEUE) -> dict[str, int | None]:
    """Count the ready messages of these queues, by default of all; None for a queue that does not exist.

    An inbox has those of its partitions, however many the broker has. Retry queues of older releases are left out if
    they do not exist. Messages that a consumer is processing are not counted. Raises UnreachableError when RabbitMQ
    does not answer.
    """
    levels = await queue_levels(amqp_url, names)
    return {
        name: None if level is None else level.messages
        for name, level in levels.items()
        if level is not None or name not in FORMER_RETRY_QUEUES
    }


async def queue_levels(amqp_url: str, names: Sequence[str] = EVERY_QUEUE) -> dict[str, QueueLevel | None]:
    """Return the level of each of these queues, None if it does not exist; raise UnreachableError without an answer.

    An inbox has the messages of its partitions too; every process that consumes them consumes the inbox.
    """
    try:
        connection = await connect(amqp_url, CONNECT_SECONDS)
        async with connection:
            return {name: await level_with_partitions(connection, name, MOST_PARTITIONS) for name in names}
    except (aiormq.exceptions.AMQPError, OSError, TimeoutError) as error:
        raise UnreachableError(f"RabbitMQ does not answer: {with_detail(error)}") from error


async def level_with_partitions(connection: AbstractConnection, queue: str, most: int) -> QueueLevel | None:
    """Return the level of a queue with the messages of its partitions, at most so many of them.

    Errors of aio-pika pass through.
    """
    level = await queue_level(connection, queue)
    for partition in partitions_of(queue, most) if level else ():
        part = await queue_level(connection, partition)
        if part is None:
            break
        level = level and level._replace(messages=level.messages + part.messages)
    return level


async def queue_level(connection: AbstractConnection, queue: str) -> QueueLevel | None:
    """Return the level of a queue, None if it does not exist; errors of aio-pika pass through."""
    channel = await connection.channel()
    try:
        declared = (await channel.declare_queue(queue, passive=True)).declaration_result
    except aiormq.exceptions.ChannelNotFoundEntity:  # the broker has closed the channel
        return None
    except aiormq.exceptions.ChannelAccessRefused:
        if is_partition(queue):  # a user without rights on them is refused, whether they exist or not
            return None
        raise
    with contextlib.suppress(aiormq.exceptions.ChannelInvalidStateError):
        await channel.close()
    return QueueLevel(declared.message_count or 0, declared.consumer_count or 0)

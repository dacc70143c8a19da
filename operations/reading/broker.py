"""Counts the messages on the broker."""

import contextlib
from collections.abc import Sequence

import aiormq.exceptions
from aio_pika.abc import AbstractConnection

from operations.errors import UnreachableError
from shared.bus.amqp.connecting import connect
from shared.tls import plain_reason
from shared.topology import DEAD_LETTERS, FORMER_RETRY_QUEUES, INBOXES, retry_queues

CONNECT_SECONDS = 5.0

RETRY_QUEUES = (*(name for inbox in INBOXES for name in retry_queues(inbox)), *FORMER_RETRY_QUEUES)
EVERY_QUEUE = (*INBOXES, *RETRY_QUEUES, DEAD_LETTERS)


async def count_messages(amqp_url: str, names: Sequence[str] = EVERY_QUEUE) -> dict[str, int | None]:
    """Count the ready messages of these queues, by default of all; None for a queue that does not exist.

    Retry queues of older releases are left out if they do not exist. Messages that a consumer is processing are not
    counted. Raises UnreachableError when RabbitMQ does not answer.
    """
    try:
        connection = await connect(amqp_url, CONNECT_SECONDS)
        async with connection:
            counts = {name: await _count(connection, name) for name in names}
    except (aiormq.exceptions.AMQPError, OSError, TimeoutError) as error:
        raise UnreachableError(
            f"RabbitMQ does not answer: {type(error).__name__}: {plain_reason(str(error))}"
        ) from error
    return {name: count for name, count in counts.items() if count is not None or name not in FORMER_RETRY_QUEUES}


async def _count(connection: AbstractConnection, queue: str) -> int | None:
    channel = await connection.channel()
    try:
        declared = await channel.declare_queue(queue, passive=True)
    except aiormq.exceptions.ChannelNotFoundEntity:  # the broker has closed the channel
        return None
    count = declared.declaration_result.message_count
    with contextlib.suppress(aiormq.exceptions.ChannelInvalidStateError):
        await channel.close()
    return count

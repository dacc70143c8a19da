"""Declares the topology on a broker, as `ordersaga topology apply` and `ordersaga up` do."""

import asyncio

from aio_pika.exceptions import AMQPError

from operations.errors import UnreachableError
from shared import topology
from shared.bus.amqp.connecting import connect
from shared.bus.declaring import PAUSE_BEFORE_DECLARING_AGAIN, declare_event_stream, declare_topology, find_missing
from shared.bus.partitions import Leftover, retire_partitions
from shared.outage_words import with_detail

CONNECT_SECONDS = 5.0
APPLY_SECONDS = 60.0


async def apply_topology(url: str, options: topology.TopologyOptions = topology.PLAIN) -> list[str]:
    """Declare all exchanges, queues and bindings; return those that were missing, such as `queue order.inbox`.

    Partitions beyond the given number are left to `retire_surplus`. If the stream of events is off, it is not declared,
    and gets no more events if it exists. Bindings are all made again, since AMQP cannot tell which are
    missing. Raises StartError if this user may not declare, or if something exists with other arguments, and
    UnreachableError if the broker does not answer. EventStreamDiffersError, which is a StartError, is raised after
    everything else was declared.
    """
    try:
        connection = await connect(url, CONNECT_SECONDS)
        async with connection, asyncio.timeout(APPLY_SECONDS):
            missing = await find_missing(connection, topology.RETRY_LADDER, options)
            if any(part.startswith("queue ") for part in missing) and len(missing) < _number_of_parts(options):
                await asyncio.sleep(PAUSE_BEFORE_DECLARING_AGAIN)  # one may have been deleted just now
            await declare_topology(connection, topology.RETRY_LADDER, options)
            await declare_event_stream(connection, options.events_retention)
    except (AMQPError, OSError, TimeoutError) as error:
        raise UnreachableError(f"RabbitMQ does not answer: {with_detail(error)}") from error
    return missing


async def retire_surplus(url: str, partitions: int) -> list[Leftover]:
    """Take the partitions beyond this number out of use; return those that are not deleted yet.

    `apply_topology` comes first. Raises the same errors.
    """
    try:
        connection = await connect(url, CONNECT_SECONDS)
        async with connection, asyncio.timeout(APPLY_SECONDS):
            return await retire_partitions(connection, partitions)
    except (AMQPError, OSError, TimeoutError) as error:
        raise UnreachableError(f"RabbitMQ does not answer: {with_detail(error)}") from error


def _number_of_parts(options: topology.TopologyOptions) -> int:
    return len(topology.exchanges(options=options)) + len(topology.queues(options=options))

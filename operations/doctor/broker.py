"""The RabbitMQ of a running stack: reachable, recent enough, without alarm, queues and bindings as declared."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import aio_pika
import aio_pika.abc
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, ChannelPreconditionFailed
from yarl import URL

from operations.doctor.finding import Finding, note, ok, wrong
from operations.doctor.machine import OLDEST_RABBITMQ
from operations.reading.reachability import brief
from shared import topology
from shared.bus.amqp.link import PROBE_QUEUE
from shared.bus.amqp.wire import Wire

TIMEOUT_SECONDS = 5.0

Control = Callable[..., str]
"""Runs rabbitmqctl on the broker and returns what it printed."""


async def check_broker(url: str, control: Control | None) -> AsyncIterator[Finding]:
    """Check everything about RabbitMQ that services rely on; bindings only where rabbitmqctl can be run."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            connection = await aio_pika.connect(url)
    except (OSError, TimeoutError, AMQPError) as error:
        yield wrong("RabbitMQ node", f"does not answer: {brief(error)}", "start it, or correct ORDERSAGA_AMQP_URL")
        return
    async with connection:
        yield check_version(connection)
        yield await check_queues(connection)
        yield await check_former_queues(connection)
    yield await check_alarms(url)
    yield await asyncio.to_thread(check_bindings, control)
    yield await asyncio.to_thread(check_message_size, control)


def check_version(connection: aio_pika.abc.AbstractConnection) -> Finding:
    """Check the version that the broker tells."""
    transport: Any = connection.transport
    version = str(transport.connection.server_properties.get("version", "unknown"))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST_RABBITMQ:
        return wrong("RabbitMQ node", f"{version} is too old", "run RabbitMQ 3.10 or later")
    return ok("RabbitMQ node", f"{version} answers")


async def check_alarms(url: str) -> Finding:
    """Check that the broker takes publications, by one that goes to no queue: an alarm only shows to a publisher."""
    alarm: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    connection = aio_pika.Connection(URL(url))
    connection.kwargs["transport_factory"] = Wire(lambda reason: None if alarm.done() else alarm.set_result(reason))
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await connection.connect()
            exchange = (await connection.channel()).default_exchange
            publishing = asyncio.create_task(exchange.publish(aio_pika.Message(b""), PROBE_QUEUE, mandatory=False))
            either: set[asyncio.Future[Any]] = {publishing, alarm}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if alarm.done():
            publishing.cancel()
            mend = "free memory or disk space on its machine, or raise its limits: docs/runbooks/consumer-down.md"
            return wrong("RabbitMQ alarms", f"publishing is blocked: {alarm.result()}", mend)
        await publishing
    except (OSError, TimeoutError, AMQPError) as error:
        return wrong("RabbitMQ alarms", f"a publication is not confirmed: {brief(error)}", "see the broker's log")
    finally:
        await connection.close()
    return ok("RabbitMQ alarms", "none: it takes publications")


async def check_queues(connection: aio_pika.abc.AbstractConnection) -> Finding:
    """Check that every declared queue exists, with the arguments that the services declare it with."""
    problems = [problem for queue in topology.queues() if (problem := await _queue_problem(connection, queue))]
    if problems:
        mend = "start a service: it declares what is missing; delete a queue that differs once it is empty"
        return wrong("queues", "; ".join(problems), mend)
    return ok("queues", ", ".join(queue.name for queue in topology.queues()))


async def check_former_queues(connection: aio_pika.abc.AbstractConnection) -> Finding:
    """Check that no retry queue of an earlier release is left."""
    left = [name for name in topology.FORMER_RETRY_QUEUES if await _exists(connection, name)]
    if not left:
        return ok("former retry queues", "none is left")
    # Messages that wait to be forwarded are counted by rabbitmqctl alone: over AMQP the queue looks empty.
    fix = "once no process of an earlier release runs and `rabbitmqctl list_queues name messages` shows 0, delete them"
    return note("former retry queues", f"{', '.join(left)} of an earlier release", fix)


async def _exists(connection: aio_pika.abc.AbstractConnection, queue: str) -> bool:
    channel = await connection.channel()  # the broker closes it if there is no such queue
    try:
        await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        return False
    await channel.close()
    return True


async def _queue_problem(connection: aio_pika.abc.AbstractConnection, queue: topology.Queue) -> str | None:
    channel = await connection.channel()  # the broker closes one on which a declaration fails
    try:
        await channel.declare_queue(queue.name, passive=True)
        # It exists, so this creates nothing; the broker compares the arguments.
        await channel.declare_queue(queue.name, durable=True, arguments=queue.arguments)
    except ChannelNotFoundEntity:
        return f"{queue.name} does not exist"
    except ChannelPreconditionFailed as error:
        return f"{queue.name} differs ({error})"
    await channel.close()
    return None


def check_bindings(control: Control | None) -> Finding:
    """Check that every queue is bound as declared; AMQP has no question for it, rabbitmqctl has."""
    if control is None:
        return note("bindings", "not checked: only those of a node that `ordersaga up` runs can be listed")
    try:
        listed = control("-q", "list_bindings", "source_name", "destination_name", "routing_key", "--no-table-headers")
    except (OSError, subprocess.SubprocessError) as error:
        return note("bindings", f"not checked: rabbitmqctl failed: {error}")
    existing = {tuple(line.split("\t")) for line in listed.splitlines()}
    wanted = [
        (exchange, queue.name, routing_key) for queue in topology.queues() for exchange, routing_key in queue.bindings
    ]
    missing = [f"{source} -> {queue} ({key})" for source, queue, key in wanted if (source, queue, key) not in existing]
    if missing:
        return wrong("bindings", f"missing: {', '.join(missing)}", "start a service: it declares them")
    return ok("bindings", f"all {len(wanted)} exist")


def check_message_size(control: Control | None) -> Finding:
    """Check that the broker refuses messages that are larger than any that the services can handle."""
    if control is None:
        return note("message size", "not checked: only that of a node that `ordersaga up` runs can be read")
    try:
        answer = control("-q", "eval", "application:get_env(rabbit, max_message_size).")
    except (OSError, subprocess.SubprocessError) as error:
        return note("message size", f"not checked: rabbitmqctl failed: {error}")
    limit = int("".join(re.findall(r"\d+", answer)) or 0)
    if not 0 < limit <= topology.MAX_MESSAGE_BYTES:
        fix = f"set max_message_size = {topology.MAX_MESSAGE_BYTES} in rabbitmq.conf and restart the node"
        return wrong("message size", f"the broker accepts up to {limit} bytes", fix)
    return ok("message size", f"at most {limit} bytes")

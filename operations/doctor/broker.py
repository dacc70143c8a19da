"""Checks the RabbitMQ of a running stack: reachability, version, alarms, queues and bindings."""

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
from shared.bus.amqp.connecting import connect
from shared.bus.amqp.link import PROBE_QUEUE
from shared.bus.amqp.wire import TappedTransport
from shared.tls import amqp_context

TIMEOUT_SECONDS = 5.0

Control = Callable[..., str]
"""Runs rabbitmqctl on the broker and returns its output."""


async def check_broker(url: str, control: Control | None) -> AsyncIterator[Finding]:
    """Check everything that services require of RabbitMQ; bindings only if rabbitmqctl can be run."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            connection = await connect(url)
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
    """Check the version of the broker."""
    transport: Any = connection.transport
    version = str(transport.connection.server_properties.get("version", "unknown"))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST_RABBITMQ:
        return wrong("RabbitMQ node", f"{version} is too old", "run RabbitMQ 3.10 or later")
    return ok("RabbitMQ node", f"{version} answers")


async def check_alarms(url: str) -> Finding:
    """Publish a message that reaches no queue: only a publisher can detect an alarm."""
    alarm: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    connection = aio_pika.Connection(URL(url), ssl_context=amqp_context(url))
    connection.kwargs["transport_factory"] = TappedTransport(
        lambda reason: None if alarm.done() else alarm.set_result(reason)
    )
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await connection.connect()
            exchange = (await connection.channel()).default_exchange
            publishing = asyncio.create_task(exchange.publish(aio_pika.Message(b""), PROBE_QUEUE, mandatory=False))
            either: set[asyncio.Future[Any]] = {publishing, alarm}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if alarm.done():
            publishing.cancel()
            fix = "free memory or disk space on its machine, or raise its limits: docs/runbooks/consumer-down.md"
            return wrong("RabbitMQ alarms", f"publishing is blocked: {alarm.result()}", fix)
        await publishing
    except (OSError, TimeoutError, AMQPError) as error:
        return wrong("RabbitMQ alarms", f"a published message is not confirmed: {brief(error)}", "see the broker's log")
    finally:
        await connection.close()
    return ok("RabbitMQ alarms", "none")


async def check_queues(connection: aio_pika.abc.AbstractConnection) -> Finding:
    """Check that every declared queue exists and has the declared arguments."""
    problems = [problem for queue in topology.queues() if (problem := await _queue_problem(connection, queue))]
    if problems:
        fix = "start a service, which declares missing queues; delete a queue that differs once it is empty"
        return wrong("queues", "; ".join(problems), fix)
    return ok("queues", ", ".join(queue.name for queue in topology.queues()))


async def check_former_queues(connection: aio_pika.abc.AbstractConnection) -> Finding:
    """Check that no retry queue of an earlier release exists."""
    left = [name for name in topology.FORMER_RETRY_QUEUES if await _exists(connection, name)]
    if not left:
        return ok("former retry queues", "none")
    # Over AMQP the queue looks empty: only rabbitmqctl counts messages that wait to be forwarded.
    fix = "delete them when no process of an earlier release runs and `rabbitmqctl list_queues name messages` shows 0"
    return note("former retry queues", f"{', '.join(left)} of an earlier release", fix)


async def _exists(connection: aio_pika.abc.AbstractConnection, queue: str) -> bool:
    channel = await connection.channel()  # the broker closes the channel if there is no such queue
    try:
        await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        return False
    await channel.close()
    return True


async def _queue_problem(connection: aio_pika.abc.AbstractConnection, queue: topology.Queue) -> str | None:
    channel = await connection.channel()  # the broker closes the channel if a declaration fails
    try:
        await channel.declare_queue(queue.name, passive=True)
        # The queue exists, so this only compares its arguments.
        await channel.declare_queue(queue.name, durable=True, arguments=queue.arguments)
    except ChannelNotFoundEntity:
        return f"{queue.name} does not exist"
    except ChannelPreconditionFailed as error:
        return f"{queue.name} differs ({error})"
    await channel.close()
    return None


def check_bindings(control: Control | None) -> Finding:
    """Check that every queue is bound as declared; AMQP cannot list bindings, rabbitmqctl can."""
    if control is None:
        return note("bindings", "not checked: bindings can only be listed for a node that `ordersaga up` runs")
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
        return wrong("bindings", f"missing: {', '.join(missing)}", "start a service, which declares them")
    return ok("bindings", f"all {len(wanted)} exist")


def check_message_size(control: Control | None) -> Finding:
    """Check that the broker refuses messages that are too large for the services."""
    if control is None:
        return note("message size", "not checked: the limit can only be read for a node that `ordersaga up` runs")
    try:
        answer = control("-q", "eval", "application:get_env(rabbit, max_message_size).")
    except (OSError, subprocess.SubprocessError) as error:
        return note("message size", f"not checked: rabbitmqctl failed: {error}")
    limit = int("".join(re.findall(r"\d+", answer)) or 0)
    if not 0 < limit <= topology.MAX_MESSAGE_BYTES:
        fix = f"set max_message_size = {topology.MAX_MESSAGE_BYTES} in rabbitmq.conf and restart the node"
        return wrong("message size", f"the broker accepts up to {limit} bytes", fix)
    return ok("message size", f"at most {limit} bytes")

"""Checks the RabbitMQ of a running stack: reachability, version, alarms, exchanges, queues, bindings, users, rights.

An inbox is filled whether or not its service runs, so each must have a consumer.
"""

import asyncio
import re
import secrets
import subprocess
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Any

import aio_pika
import aio_pika.abc
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused, ConnectionCommandInvalid
from yarl import URL

from operations.doctor.broker_cluster import check_cluster
from operations.doctor.finding import Finding, note, ok, wrong
from operations.doctor.machine import OLDEST_RABBITMQ
from operations.reading.broker import QueueLevel, queue_level
from operations.reading.reachability import amqp_missing
from operations.stack.queue_members import Control
from shared import topology
from shared.broker_rights import EVENT_READER, RIGHTS, Rights
from shared.bus.amqp.connecting import broker_version, connect
from shared.bus.amqp.nodes import host_and_port
from shared.bus.declaring import is_about_unknown_type
from shared.bus.partitions import find_partitions
from shared.outage_words import with_detail
from shared.services import CONSOLE, SERVICES, Service
from shared.urls import split_amqp_url

TIMEOUT_SECONDS = 5.0

APPLY = "`ordersaga topology apply` creates what is missing"
USERS = "docs/broker.md says how to make the users"

DEFAULT_USERS = ("guest", "ordersaga")
"""RabbitMQ's own user, and the one of the Compose file of earlier releases; their passwords were their names."""

ASK_FOR_ALL_RIGHTS = ("4.2.6", "4.3.0")
"""Versions of RabbitMQ that tell the length of a queue to users who may declare it, and to nobody else."""

OLDEST_SUPPORTED_MAJOR = 4
LIMITS = "limits of the broker"
_LIMITS = ("consumer_timeout", "vm_memory_high_watermark", "disk_free_limit")
_LIST = re.compile(r",(?![^{]*\})")
"""The commas between values, not those within a tuple such as {absolute,1024}."""
SHORTEST_CONSUMER_TIMEOUT_MS = 60_000
HIGHEST_WATERMARK = 0.7
LEAST_FREE_DISK_BYTES = 50_000_000
"""RabbitMQ's own default; with less, its queues may be damaged by a full disk."""

CONSUMERS: Mapping[str, Service] = {service.inbox: service for service in SERVICES.values()} | {
    topology.DEAD_LETTERS: CONSOLE
}
"""The service that consumes each queue."""


async def check_broker(
    url: str,
    control: Control | None,
    options: topology.TopologyOptions = topology.PLAIN,
    services: Collection[str] = SERVICES.keys(),
    paused: Collection[str] = (),
    broken: Collection[str] = (),
) -> AsyncIterator[Finding]:
    """Check everything that services require of RabbitMQ; bindings and rights only if rabbitmqctl can be run.

    `services` names those that are meant to run, `paused` those whose consumption is paused, `broken` those whose
    breaker is open.
    """
    nodes = [finding async for finding in check_nodes(url)]
    for finding in nodes:
        yield finding
    try:
        connection = await connect(url, TIMEOUT_SECONDS)
    except (OSError, TimeoutError, AMQPError) as error:
        if any(finding.outcome != "wrong" for finding in nodes):
            yield wrong("RabbitMQ", f"has stopped answering: {with_detail(error)}", "run ordersaga doctor again")
        return
    async with connection:
        yield check_support(broker_version(connection) or "unknown")
        yield await check_exchanges(connection, options)
        yield await check_queues(connection, options)
        yield check_consumers(await _levels(connection, options.partitions), services, paused, broken)
        if surplus := await check_surplus(connection, options.partitions):
            yield surplus
        yield await check_event_stream(connection, options.events_retention)
        yield await check_former_queues(connection)
    yield await check_alarms(url)
    async for finding in check_default_users(url):
        yield finding
    virtual_host = _virtual_host(URL(split_amqp_url(url)[0]))
    if options.partitions > topology.WHOLE:
        yield await check_plugin(url)
    yield await asyncio.to_thread(check_bindings, control, virtual_host, options)
    yield await asyncio.to_thread(check_rights, control, virtual_host)
    yield await asyncio.to_thread(check_message_size, control)
    yield await asyncio.to_thread(check_limits, control)
    for finding in await asyncio.to_thread(check_cluster, control, virtual_host):
        yield finding


def _virtual_host(url: URL) -> str:
    return url.path.removeprefix("/") or "/"


async def check_nodes(url: str) -> AsyncIterator[Finding]:
    """Check that each node of the URL answers, and its version."""
    nodes = split_amqp_url(url)
    for node in nodes:
        subject = "RabbitMQ node" if len(nodes) == 1 else f"RabbitMQ node {host_and_port(node)}"
        try:
            connection = await connect(node, TIMEOUT_SECONDS)
        except (OSError, TimeoutError, AMQPError) as error:
            yield wrong(subject, f"does not answer: {with_detail(error)}", "start it, or correct ORDERSAGA_AMQP_URL")
            continue
        async with connection:
            yield check_version(subject, broker_version(connection) or "unknown")


def check_version(subject: str, version: str) -> Finding:
    """Check the version of a node."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST_RABBITMQ:
        return wrong(subject, f"{version} is too old", "run RabbitMQ 3.10 or later")
    if version in ASK_FOR_ALL_RIGHTS:
        return wrong(
            subject,
            f"{version} lets no user with the least rights look at its own queue",
            "run RabbitMQ 4.2.7, 4.3.1 or later",
        )
    return ok(subject, f"{version} answers")


def check_support(version: str) -> Finding:
    """Check that a version still gets security updates."""
    subject, major = "support of RabbitMQ", re.match(r"\d+", version)
    if major is None:
        return note(subject, f"not checked: the version is {version}")
    if int(major[0]) < OLDEST_SUPPORTED_MAJOR:
        return note(subject, f"{version}: its project publishes no updates of it", "upgrade to 4.x when it suits you")
    return ok(subject, f"{version} gets updates, as far as this release knows")


async def check_alarms(url: str) -> Finding:
    """Publish a message that reaches no queue: only a publisher can detect an alarm, on whatever node."""
    alarm: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    connection = None
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            connection = await connect(
                url, on_blocked=lambda reason: None if alarm.done() else alarm.set_result(reason)
            )
            exchange = await (await connection.channel()).get_exchange(topology.PROBE_EXCHANGE, ensure=False)
            publishing = asyncio.create_task(exchange.publish(aio_pika.Message(b""), "", mandatory=False))
            either: set[asyncio.Future[Any]] = {publishing, alarm}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if alarm.done():
            publishing.cancel()
            fix = "free memory or disk space on its machine, or raise its limits: docs/runbooks/consumer-down.md"
            return wrong("RabbitMQ alarms", f"publishing is blocked: {alarm.result()}", fix)
        await publishing
    except (OSError, TimeoutError, AMQPError) as error:
        return wrong(
            "RabbitMQ alarms", f"a published message is not confirmed: {with_detail(error)}", "see the broker's log"
        )
    finally:
        if connection is not None:
            await connection.close()
    return ok("RabbitMQ alarms", "none")


async def check_default_users(url: str) -> AsyncIterator[Finding]:
    """Check that users whose passwords everybody knows cannot log in; all nodes have the same users."""
    given = URL(split_amqp_url(url)[0])
    for name in DEFAULT_USERS:
        subject = f"user {name}"
        if (given.user or "guest", given.password or "guest") == (name, name):
            detail = "this connection uses it, with its well-known password: every process has all rights on the broker"
            yield note(subject, detail, f"give each service its own user: {USERS}")
        elif await _can_log_in(given.with_user(name).with_password(name)):
            yield wrong(subject, "can log in with its well-known password", f"rabbitmqctl delete_user {name}")
        else:
            yield ok(subject, "cannot log in")


async def _can_log_in(url: URL) -> bool:
    return any([await amqp_missing(str(url.with_path(host))) is None for host in {url.path, "/"}])


async def check_exchanges(
    connection: aio_pika.abc.AbstractConnection, options: topology.TopologyOptions = topology.PLAIN
) -> Finding:
    """Check that every declared exchange exists."""
    names = [exchange.name for exchange in topology.exchanges(options=options)]
    missing = [name for name in names if not await _exchange_exists(connection, name)]
    if missing:
        return wrong("exchanges", "; ".join(f"{name} does not exist" for name in missing), APPLY)
    return ok("exchanges", f"all {len(names)} exist")


async def _exchange_exists(connection: aio_pika.abc.AbstractConnection, name: str) -> bool:
    channel = await connection.channel()  # the broker closes the channel if there is no such exchange
    try:
        await channel.get_exchange(name)
    except ChannelNotFoundEntity:
        return False
    await channel.close()
    return True


async def check_queues(
    connection: aio_pika.abc.AbstractConnection, options: topology.TopologyOptions = topology.PLAIN
) -> Finding:
    """Check that every declared queue exists and has the declared arguments, and that no migration is unfinished."""
    queues = topology.queues(options=options)
    problems = [problem for queue in queues if (problem := await _queue_problem(connection, queue))]
    fix = f"{APPLY}; {topology.HOW_TO_MIGRATE}"
    if await _exchange_exists(connection, topology.MIGRATION.name):
        problems.append("a migration was interrupted, or is under way")
        fix = "run `ordersaga migrate` again, unless it is running"
    if problems:
        return wrong("queues", "; ".join(problems), fix)
    return ok("queues", f"all {len(queues)} exist as declared")


async def check_surplus(connection: aio_pika.abc.AbstractConnection, partitions: int) -> Finding | None:
    """Check that no inbox has more partitions than the setting says; None if that is so."""
    found = await find_partitions(connection)
    surplus = [
        f"{inbox} has {number}"
        for inbox, number in found.items()
        if number > len(topology.partitions_of(inbox, partitions))
    ]
    if not surplus:
        return None
    fix = "set it as for the services; `ordersaga topology apply` deletes surplus partitions that are empty"
    return wrong("partitions", f"ORDERSAGA_PARTITIONS is {partitions}, and {', '.join(surplus)}", fix)


async def check_plugin(url: str) -> Finding:
    """Check that the broker can divide inboxes, by declaring an exchange that is deleted at once."""
    name = f"ordersaga.doctor.{secrets.token_hex(8)}"
    try:
        async with await connect(url, TIMEOUT_SECONDS) as connection, asyncio.timeout(TIMEOUT_SECONDS):
            channel = await connection.channel()
            await channel.declare_exchange(name, topology.HASH_EXCHANGE, auto_delete=True)
            await channel.exchange_delete(name)
    except (ConnectionCommandInvalid, ChannelPreconditionFailed) as error:
        if not is_about_unknown_type(error):
            return wrong("plugins", str(error), "run ordersaga doctor again")
        return wrong("plugins", topology.PLUGIN_IS_MISSING, topology.HOW_TO_ENABLE)
    except ChannelAccessRefused:
        return note("plugins", "not checked: this user may not declare")
    except (OSError, TimeoutError, AMQPError) as error:
        return wrong("plugins", f"RabbitMQ has stopped answering: {with_detail(error)}", "run ordersaga doctor again")
    return ok("plugins", f"{topology.PARTITIONS_PLUGIN} divides inboxes")


def check_consumers(
    levels: Mapping[str, QueueLevel],
    services: Collection[str],
    paused: Collection[str] = (),
    broken: Collection[str] = (),
) -> Finding:
    """Check that every queue has a consumer: the exchange fills it whether or not its service runs.

    It is in order if no service runs at all, if those that do not run are not meant to and nothing waits for them, or
    if an operator has paused the consumption. A service whose breaker is open runs; its process is degraded.
    """
    subject = "consumers"
    waiting_on_purpose = dict.fromkeys(paused, "paused") | dict.fromkeys(broken, "stopped by a breaker")
    without = [
        queue
        for queue, level in levels.items()
        if not level.consumers and _consumer_of(queue).name not in waiting_on_purpose
    ]
    if not without:
        return ok(subject, _with_consumers(len(levels), waiting_on_purpose) if levels else "there is no queue")
    waiting = {queue: levels[queue].messages for queue in without}
    detail = f"none for {', '.join(f'{queue} ({number} waiting)' for queue, number in waiting.items())}"
    missing = [_consumer_of(queue) for queue in without]
    fix = (
        f"start {' and '.join(dict.fromkeys(f'python -m {service.package}' for service in missing))}: every service "
        "must run, or its messages pile up; docs/runbooks/consumer-down.md"
    )
    if len(without) == len(levels):
        return note(subject, f"no service runs: {detail}", fix)
    expected = any(service.name in services for service in missing)
    return wrong(subject, detail, fix) if expected or any(waiting.values()) else note(subject, detail, fix)


def _consumer_of(queue: str) -> Service:
    return CONSUMERS[topology.inbox_of(queue)]


def _with_consumers(number: int, others: Mapping[str, str]) -> str:
    """Say how many queues have a consumer; `others` are the services that do not consume, with what they are."""
    if not others:
        return f"all {number} queues have one"
    named = " and ".join(f"{name} ({state})" for name, state in sorted(others.items()))
    return f"all {number} queues have one, except those of {named}"


async def _levels(connection: aio_pika.abc.AbstractConnection, partitions: int) -> dict[str, QueueLevel]:
    """Read the levels of the queues that exist."""
    queues = [part for queue in CONSUMERS for part in (queue, *topology.partitions_of(queue, partitions))]
    found = {queue: await queue_level(connection, queue) for queue in queues}
    return {queue: level for queue, level in found.items() if level is not None}


async def check_event_stream(connection: aio_pika.abc.AbstractConnection, retention: str) -> Finding:
    """Check that the stream of events exists and keeps them for as long as the setting says."""
    subject = "event stream"
    if not retention:
        left = await queue_level(connection, topology.EVENTS) is not None
        return note(subject, "off: what it has expires no more, docs/event-stream.md" if left else "off")
    match await _queue_problem(connection, topology.event_stream(retention)):
        case None:
            return ok(subject, f"keeps events for {retention}")
        case missing if "does not exist" in missing:
            return wrong(subject, missing, f"{APPLY}; ORDERSAGA_EVENTS_RETENTION=off does without it")
        case problem:
            return note(subject, problem, "docs/event-stream.md says how to change it")


async def check_former_queues(connection: aio_pika.abc.AbstractConnection) -> Finding:
    """Check that no retry queue of an earlier release exists."""
    left = [name for name in topology.FORMER_RETRY_QUEUES if await queue_level(connection, name) is not None]
    if not left:
        return ok("former retry queues", "none")
    # Over AMQP the queue looks empty: only rabbitmqctl counts messages that wait to be forwarded.
    fix = "delete them when no process of an earlier release runs and `rabbitmqctl list_queues name messages` shows 0"
    return note("former retry queues", f"{', '.join(left)} of an earlier release", fix)


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
    except ChannelAccessRefused:  # this user may not declare, so its arguments cannot be compared
        return None
    await channel.close()
    return None


def check_bindings(
    control: Control | None,
    virtual_host: str,
    options: topology.TopologyOptions = topology.PLAIN,
) -> Finding:
    """Check that every queue is bound as declared; AMQP cannot list bindings, rabbitmqctl can.

    A divided inbox must not be bound beside its partitions, or its messages arrive twice, nor that of webhooks if they
    are off.
    """
    if control is None:
        return note("bindings", "not checked: bindings can only be listed for a node that `ordersaga up` runs")
    try:
        names = ("source_name", "destination_name", "routing_key")
        listed = control("-q", "list_bindings", "-p", virtual_host, *names, "--no-table-headers")
    except (OSError, subprocess.SubprocessError) as error:
        return note("bindings", f"not checked: rabbitmqctl failed: {error}")
    existing = {tuple(line.split("\t")) for line in listed.splitlines()}
    queues = topology.all_queues(options)
    declared = topology.all_bindings(queues, topology.exchanges(options=options))
    wanted = [(source, name, routing_key) for name, pairs in declared.items() for source, routing_key in pairs]
    if missing := [binding for binding in wanted if binding not in existing]:
        return wrong("bindings", f"missing: {_bindings_in_words(missing)}", APPLY)
    of_inboxes, of_exchanges = topology.unwanted_bindings(options)
    unwanted = [(source, name, key) for name, pairs in {**of_inboxes, **of_exchanges}.items() for source, key in pairs]
    if surplus := [binding for binding in unwanted if binding in existing]:
        silent = [each for each in surplus if not options.webhooks and topology.NOTIFICATION_INBOX in each[1]]
        why = "webhooks are off" if silent else "messages arrive twice"
        fix = "`ordersaga topology apply` removes them"
        return wrong("bindings", f"{why}: {_bindings_in_words(silent or surplus)}", fix)
    return ok("bindings", f"all {len(wanted)} exist")


def _bindings_in_words(bindings: Iterable[tuple[str, str, str]]) -> str:
    return ", ".join(f"{source} -> {destination} ({key})" for source, destination, key in bindings)


def check_rights(control: Control | None, virtual_host: str) -> Finding:
    """Check that each user has the rights in shared.broker_rights and no others, and that nobody else has any.

    Others may read events, if they may do nothing else.
    """
    subject = "rights on the broker"
    if control is None:
        return note(subject, "not checked: rights can only be listed for a node that `ordersaga up` runs")
    try:
        listed = control("-q", "list_permissions", "-p", virtual_host, "--no-table-headers")
        topics = control("-q", "list_topic_permissions", "-p", virtual_host, "--no-table-headers")
    except (OSError, subprocess.SubprocessError) as error:
        return note(subject, f"not checked: rabbitmqctl failed: {error}")
    problems = compare_rights(listed, topics)
    if problems:
        return wrong(subject, "; ".join(problems), f"start the stack again, which sets them; {USERS}")
    return ok(subject, f"{', '.join(RIGHTS)}: each has its own and no others")


def compare_rights(permissions: str, topic_permissions: str) -> list[str]:
    """Return what is wrong with the rights that rabbitmqctl lists, one user per line, columns separated by tabs."""
    granted = {user: tuple(patterns) for user, *patterns in _rows(permissions)}
    on_topics = {(user, exchange): write for user, exchange, write, *_ in _rows(topic_permissions)}
    problems = [
        f"{user} has rights, and should not exist"
        for user, patterns in granted.items()
        if user not in RIGHTS and patterns != EVENT_READER
    ]
    for user, rights in RIGHTS.items():
        if user not in granted:
            problems.append(f"{user} has no rights")
        elif granted[user] != _patterns(rights) or on_topics.get((user, topology.EXCHANGE)) != rights.topic_pattern:
            problems.append(f"{user} has other rights than it should")
    return problems


def _rows(listed: str) -> list[list[str]]:
    return [line.split("\t") for line in listed.splitlines() if line]


def _patterns(rights: Rights) -> tuple[str, str, str]:
    return rights.configure_pattern, rights.write_pattern, rights.read_pattern


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


def check_limits(control: Control | None) -> Finding:
    """Check when the broker closes the channel of a slow consumer, and when it stops publishers to save itself."""
    if control is None:
        return note(LIMITS, "not checked: they can only be read for a node that `ordersaga up` runs")
    names = ", ".join(f"application:get_env(rabbit, {name}, none)" for name in _LIMITS)
    try:
        answer = control("-q", "eval", f"[{names}].")
    except (OSError, subprocess.SubprocessError) as error:
        return note(LIMITS, f"not checked: rabbitmqctl failed: {error}")
    return judge_limits(answer)


def judge_limits(answer: str) -> Finding:
    """Judge the limits in the order of `_LIMITS`, as Erlang writes them: `[1800000,0.4,50000000]`."""
    values = [part.strip() for part in _LIST.split(answer.strip().strip("[]"))]
    if len(values) != len(_LIMITS):
        return note(LIMITS, f"not checked: rabbitmqctl answered {answer.strip()[:200]!r}")
    timeout, watermark, disk = values
    problems = []
    if timeout.isdigit() and int(timeout) < SHORTEST_CONSUMER_TIMEOUT_MS:
        problems.append(f"consumer_timeout is {int(timeout) / 1000:g} s, in which a slow batch may not be handled")
    if _is_number(watermark) and float(watermark) > HIGHEST_WATERMARK:
        problems.append(f"vm_memory_high_watermark is {watermark}: the machine may run out of memory first")
    if disk.isdigit() and int(disk) < LEAST_FREE_DISK_BYTES:
        problems.append(f"disk_free_limit is {int(disk):,} bytes: the disk may fill before publishers are stopped")
    if problems:
        return wrong(LIMITS, "; ".join(problems), "set them in rabbitmq.conf, and restart the node")
    return ok(LIMITS, f"consumer_timeout {timeout} ms, vm_memory_high_watermark {watermark}, disk_free_limit {disk}")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None

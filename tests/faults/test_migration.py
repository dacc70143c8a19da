"""Queues of another form are replaced under a running stack, over a kill of the command, and nothing is lost.

The order service repeats nothing here: its repetitions begin after an hour.
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import aio_pika
import pymongo
import pytest
from aio_pika.abc import AbstractIncomingMessage

import operations.settings
from operations.audit import audit
from operations.dead_letters.schema import LETTERS
from operations.doctor.broker import check_queues
from operations.errors import UnfinishedRestoreError
from operations.migration import migrate, migrating, preview, under_way
from operations.migration.migrating import BEFORE, ExchangeDiffersError, StepRefusedError
from operations.migration.under_way import MigrationRunsError
from operations.reading.broker import count_messages
from operations.stack.broker_topology import apply_topology
from shared import failpoints, topology, unfinished_restore
from shared.bus.failures import ATTEMPTS, COUNTED_BY_BROKER, QUEUE, RETRY_LEVEL
from shared.clock import utc_now
from shared.errors import StartError
from shared.failpoints import MIGRATION_DECLARED, MIGRATION_DELETED, MIGRATION_EMPTIED, SimulatedCrashError
from shared.services import CONSOLE
from shared.topology import DEAD_LETTERS, EXCHANGE, INBOX_EXCHANGE, NOTIFICATION_INBOX, ORDER_INBOX, PAYMENT_INBOX
from tests.support import warm_processes
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack

Document = dict[str, Any]

QUEUES = {queue.name: queue for queue in topology.queues()}
RETRY = topology.retry_queues(PAYMENT_INBOX)[-1]
OLD: Document = {"x-queue-type": "quorum", "x-delivery-limit": 20}
"""Another delivery limit, and no dead-lettering."""
DIFFERENCES = (
    f"x-dead-letter-exchange is not set, this release declares {DEAD_LETTERS}",
    "x-delivery-limit is 20, this release declares 50",
)
OLD_RETRY = QUEUES[RETRY].arguments | {"x-message-ttl": 600_000}

SETTINGS: dict[str, object] = {
    "topology": "check",
    "resend_after_seconds": 3600,
    "saga_timeout_seconds": 3600,
    "sweep_interval_seconds": 0.2,
    "rate_limit": "",
}
EARLY, LATE = 20, 60


async def declare_old(url: str, names: Sequence[str]) -> None:
    """Replace queues by those that an earlier release might have declared."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        for name in names:
            await channel.queue_delete(name)
            arguments = OLD_RETRY if name == RETRY else OLD
            declared = await channel.declare_queue(name, durable=True, arguments=arguments)
            for exchange, routing_key in QUEUES[name].bindings:
                await declared.bind(exchange, routing_key)


async def send(url: str, exchange: str, routing_key: str, message_id: str, **properties: Any) -> None:
    message = aio_pika.Message(b'{"orderId": "o1"}', message_id=message_id, correlation_id="o1", **properties)
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        await target.publish(message, routing_key)


async def take_all(url: str, queue: str) -> list[AbstractIncomingMessage]:
    found = []
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        source = await channel.get_queue(queue, ensure=False)
        while (message := await source.get(no_ack=True, fail=False)) is not None:
            found.append(message)
    return found


async def level(url: str, name: str) -> int | None:
    return (await count_messages(url, [name]))[name]


async def assert_declared(url: str) -> None:
    """Assert that the broker has the queues of this release, and none that is left of a migration."""
    async with await aio_pika.connect(url) as connection:
        assert (await check_queues(connection)).outcome == "ok"
    names = [topology.migration_queue(queue).name for queue in topology.queues()]
    assert set((await count_messages(url, names)).values()) == {None}


@pytest.fixture(autouse=True)
async def nothing_is_left(amqp_url: str) -> AsyncIterator[None]:
    """What a migration has made and not deleted goes with its test: `clean_broker` deletes what services declare."""
    yield
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        for queue in topology.all_queues(topology.DEFAULT_OPTIONS):
            await channel.queue_delete(topology.migration_queue(queue).name)
            await channel.exchange_delete(topology.migration_exchange(queue).name)
        await channel.exchange_delete(topology.MIGRATION.name)


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    """A stack over queues of an earlier form."""
    await apply_topology(clean_broker, topology.DEFAULT_OPTIONS)
    await declare_old(clean_broker, [*topology.INBOXES, RETRY, DEAD_LETTERS])
    async with run_stack(mongodb_url, clean_broker, database_prefix, **SETTINGS) as running:
        await running.start()
        await running.stock("p1", 2 * (EARLY + LATE))
        yield running


async def test_queues_are_replaced_under_load_and_over_a_kill(stack: Stack) -> None:
    url = stack.amqp_url
    (payment,) = stack.processes("payment")
    payment.process.send_signal(signal.SIGSTOP)
    orders = await stack.place_many(EARLY, lambda _: {})
    await send(url, DEAD_LETTERS, "payment.refund", "letter", type="payment.refund", headers=LETTER)
    await send(url, RETRY, "payment.refund", "retry", type="payment.refund", headers={ATTEMPTS: 4, "x-mine": [1]})

    planned = await stack.command("migrate", "--dry-run")
    assert {queue["name"] for queue in planned["queues"]} == {*topology.INBOXES, RETRY, DEAD_LETTERS}
    assert set(planned["queues"][0]["differences"]) >= {*DIFFERENCES}
    with pytest.raises(StartError, match="`ordersaga migrate` replaces"):
        await apply_topology(url)

    placing = asyncio.create_task(stack.place_many(LATE, lambda _: {}))
    killed = await warm_processes.run(
        "operations.cli", "migrate", environment=stack.command_environment | {"ORDERSAGA_CRASH_AT": MIGRATION_DELETED}
    )
    assert killed[0] == -signal.SIGKILL
    assert await level(url, ORDER_INBOX) is None
    report = await stack.command("migrate")
    orders += await placing
    # What the process holds is nowhere else on the broker.
    await stack.kill(payment)
    await stack.start("payment")

    assert [queue["stillDiffers"] for queue in report["queues"]] == [None] * len(planned["queues"])
    await assert_declared(url)
    assert len(orders) == EARLY + LATE
    assert {order["status"] for order in await stack.all_settled(orders, 120)} == {"CONFIRMED"}
    books = await eventually(lambda: audit(stack.mongodb_url, url, stack.database_prefix), 60)
    assert books.ok, books.violations
    await assert_letter_and_retry_are_kept(stack)
    events = {message.correlation_id for message in await take_all(url, NOTIFICATION_INBOX)}
    assert events >= {*orders}


LETTER = {QUEUE: PAYMENT_INBOX, ATTEMPTS: 3, "x-mine": "kept"}


async def assert_letter_and_retry_are_kept(stack: Stack) -> None:
    async with pymongo.AsyncMongoClient[Document](stack.mongodb_url) as client:
        letters = client[CONSOLE.database_in(stack.database_prefix)][LETTERS]
        (letter,) = await letters.find({}).to_list(None)
    assert (letter["messageId"], letter["queue"], letter["attempts"]) == ("letter", PAYMENT_INBOX, 3)
    assert letter["headers"] == {"x-mine": "kept"}
    (retry,) = await take_all(stack.amqp_url, RETRY)
    headers = {ATTEMPTS: 4, "x-mine": [1]}
    assert (retry.message_id, retry.type, retry.body) == ("retry", "payment.refund", b'{"orderId": "o1"}')
    assert {name: value for name, value in retry.headers.items() if name not in COUNTED_BY_BROKER} == headers


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No service runs that would need time for anything."""
    monkeypatch.setattr(migrating, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(migrating, "ROUTED_SECONDS", 0.0)
    monkeypatch.setattr(migrating, "PAUSE_BEFORE_DECLARING_AGAIN", 0.0)
    monkeypatch.setattr(under_way, "LOCK_SECONDS", 0.0)


@pytest.fixture
async def target(mongodb_url: str, clean_broker: str, database_prefix: str, at_once: None) -> operations.settings.Stack:
    """A broker without services, with an inbox of an earlier form that has messages."""
    await apply_topology(clean_broker)
    await prepare(clean_broker)
    return operations.settings.Stack(
        mongodb_url, clean_broker, {}, None, database_prefix, topology_options=topology.PLAIN
    )


async def prepare(url: str) -> None:
    """Give the order service an inbox of an earlier form, with a message of each way into it."""
    await declare_old(url, [ORDER_INBOX])
    await take_all(url, PAYMENT_INBOX)
    for kind, (exchange, routing_key) in WAYS.items():
        headers = {RETRY_LEVEL: topology.retry_queues(ORDER_INBOX)[0], "x-mine": kind, "CC": [PAYMENT_INBOX]}
        await send(url, exchange, routing_key, kind, type="stock.reserved", headers=headers)


WAYS = {
    "event": (EXCHANGE, "stock.reserved"),
    "retry": (INBOX_EXCHANGE, ORDER_INBOX),
    "replay": ("", ORDER_INBOX),
}
WAITING = topology.migration_queue(QUEUES[ORDER_INBOX]).name
COPIES = 2
"""Messages that went to another inbox as well: a topic is not the name of one."""


async def assert_each_is_kept(url: str) -> None:
    """Assert that each message is there, at least once, with the name of an exchange that says how to read it."""
    found = {str(message.message_id): message for message in await take_all(url, ORDER_INBOX)}
    assert found.keys() == WAYS.keys()
    for kind, message in found.items():
        assert (message.type, message.correlation_id, message.body) == ("stock.reserved", "o1", b'{"orderId": "o1"}')
        assert message.headers.get("x-mine") == kind
        assert message.routing_key == WAYS[kind][1]
        assert (message.exchange in topology.BY_QUEUE_NAME) == (kind != "event")


async def test_a_migration_that_ends_at_any_step_is_finished_by_the_next(target: operations.settings.Stack) -> None:
    url = target.amqp_url
    for point in (MIGRATION_EMPTIED, MIGRATION_DELETED, MIGRATION_DECLARED):
        with pytest.raises(SimulatedCrashError):
            await migrate(target, by="tests", failpoint=partial(crash_at, point))
        crashed_at = utc_now()
        assert await level(url, WAITING) == len(WAYS)
        async with await aio_pika.connect(url) as connection:
            assert (await check_queues(connection)).fix == "run `ordersaga migrate` again, unless it is running"

        report = await migrate(target, by="tests")

        (state,) = report.found.queues
        assert report.recovery is not None
        assert report.recovery.since < crashed_at - BEFORE, "the beginning of the first run counts"
        assert (report.ok, state.unfinished, report.moved) == (True, True, {ORDER_INBOX: len(WAYS)})
        await assert_declared(url)
        assert await level(url, PAYMENT_INBOX) == COPIES, "the copies that the first sender asked for, and no more"
        await assert_each_is_kept(url)
        await prepare(url)


def crash_at(point: str, reached: str) -> None:
    if reached == point:
        raise SimulatedCrashError


def beside(work: Coroutine[Any, Any, Any]) -> None:
    """Do something while a migration is at a point."""
    other = threading.Thread(target=asyncio.run, args=(work,))
    other.start()
    other.join()


async def test_a_queue_that_an_older_release_declares_again_is_named_and_keeps_its_messages(
    target: operations.settings.Stack,
) -> None:
    def declare_again(reached: str) -> None:
        if reached == MIGRATION_DELETED:
            beside(declare_old(target.amqp_url, [ORDER_INBOX]))

    report = await migrate(target, by="tests", failpoint=declare_again)

    assert not report.ok
    assert report.recovery is not None, "what services held of the deleted queue"
    assert report.recovery.ok
    assert report.still_differing == {ORDER_INBOX: DIFFERENCES[0]}
    assert await level(target.amqp_url, WAITING) is None
    await assert_each_is_kept(target.amqp_url)
    assert (await migrate(target, by="tests")).ok
    await assert_declared(target.amqp_url)


async def test_what_happens_beside_a_migration_loses_nothing(target: operations.settings.Stack) -> None:
    """Replays that are not diverted, a second migration, and a consumer that holds a message until it ends."""
    url = target.amqp_url
    await declare_old(url, [PAYMENT_INBOX, DEAD_LETTERS])
    for letter in ("l1", "l2", "l3"):
        await send(url, DEAD_LETTERS, "payment.refund", letter, type="payment.refund", headers=LETTER)
    deleted: list[str] = []
    refused: list[str] = []

    def reached(point: str) -> None:
        match point:
            case failpoints.MIGRATION_EMPTIED if not deleted:
                deleted.append(ORDER_INBOX)
                beside(send(url, "", PAYMENT_INBOX, "late", type="payment.refund"))
            case failpoints.MIGRATION_DELETED:
                beside(migrate_too())
            case failpoints.MIGRATION_DECLARED:
                holding.start()
                assert held.wait(30)

    async def migrate_too() -> None:
        try:
            await migrate(target, by="tests")
        except MigrationRunsError as error:
            refused.append(str(error))

    held = threading.Event()
    holding = threading.Thread(target=asyncio.run, args=(hold_one(url, held),))

    report = await migrate(target, by="tests", failpoint=reached)
    holding.join()

    assert refused == ["another migration runs: wait until it has ended"]
    assert (report.ok, report.moved[DEAD_LETTERS]) == (True, 3)
    assert [message.message_id for message in await take_all(url, PAYMENT_INBOX)] == ["late"]
    await assert_each_is_kept(url)
    await assert_declared(url)


async def hold_one(url: str, held: threading.Event) -> None:
    """Hold a message of the migration queue until no other waits in it, then lose the connection."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.set_qos(prefetch_count=1)
        source = await channel.get_queue(WAITING, ensure=False)
        taken = asyncio.Event()

        async def take(_: AbstractIncomingMessage) -> None:
            taken.set()

        await source.consume(take)
        await taken.wait()
        held.set()

        async def is_alone() -> bool:
            return await level(url, WAITING) == 0

        await eventually(is_alone, 30)


async def test_an_exchange_that_differs_and_a_stream_are_named_and_nothing_is_changed(
    target: operations.settings.Stack,
) -> None:
    stream = topology.event_stream("1D")
    async with await aio_pika.connect(target.amqp_url) as connection, connection.channel() as channel:
        await channel.exchange_delete(INBOX_EXCHANGE)
        await channel.declare_exchange(INBOX_EXCHANGE, "direct", durable=True)
        await channel.declare_queue(stream.name, durable=True, arguments=stream.arguments)
    words = f"alternate-exchange is not set, this release declares {DEAD_LETTERS}"

    with pytest.raises(ExchangeDiffersError, match=f"exchange {INBOX_EXCHANGE}: {words}. Nothing was changed"):
        await migrate(target, by="tests")

    report = await preview(replace(target, topology_options=topology.TopologyOptions("7D")))
    assert (report.ok, report.found.exchanges) == (False, {INBOX_EXCHANGE: words})
    assert [state.queue.name for state in report.found.queues] == [ORDER_INBOX]
    assert "keeps events for 1D, not for 7D" in str(report.found.event_stream)
    assert await level(target.amqp_url, ORDER_INBOX) == len(WAYS)


async def test_a_part_of_a_backup_and_a_foreign_exchange_are_refused_before_anything_is_replaced(
    target: operations.settings.Stack,
) -> None:
    url, waiting = target.amqp_url, topology.migration_exchange(QUEUES[ORDER_INBOX]).name
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.declare_exchange(waiting, "direct", durable=True)
    with pytest.raises(StepRefusedError, match=f"inequivalent arg 'type' for exchange '{waiting}'"):
        await migrate(target, by="tests")

    async with pymongo.AsyncMongoClient[Document](target.mongodb_url) as client:
        await client[CONSOLE.database_in(target.database_prefix)].create_collection(unfinished_restore.COLLECTION)
    with pytest.raises(UnfinishedRestoreError, match="Nothing was changed"):
        await migrate(target, by="tests")
    assert await level(url, ORDER_INBOX) == len(WAYS)

"""Recovers from the loss of the broker: declares what it lacks, and publishes again what the records say is pending.

    1. topology   exchanges, queues and bindings, so that every message has a queue
    2. commands   of all orders that are not settled; each participant answers from its own record
    3. events     of the orders that have changed since a time, for webhooks and the event stream

It writes nothing but the log of actions. Messages that arrive twice change nothing, so it may be interrupted, repeated,
and run beside the services, whose own repetitions it only brings forward.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from aio_pika.exceptions import AMQPError

from operations.actions import record_action
from operations.errors import UnfinishedRestoreError, UnreachableError
from operations.reading.connection import open_bus, open_mongodb
from operations.reading.driver_errors import reason_of
from operations.reading.publishing import until_accepted
from operations.recovery.records import PendingRecords
from operations.recovery.report import RecoveryReport
from operations.settings import Stack
from operations.stack.broker_topology import CONNECT_SECONDS, apply_topology
from order_service import recovery as pending
from order_service.order import Order, Status
from order_service.saga import SAGA
from shared import topology, tracing
from shared.bus import Envelope
from shared.bus.amqp.connecting import connect
from shared.bus.declaring import PAUSE_BEFORE_DECLARING_AGAIN, EventStreamDiffersError, find_missing
from shared.bus.publisher import Publisher, envelope
from shared.clock import utc_now
from shared.contracts import Message
from shared.database import Database
from shared.outage_words import with_detail
from shared.services import CONSOLE
from shared.topology import NOTIFICATION_INBOX
from shared.unfinished_restore import unfinished_restore

DEFAULT_RATE = 500.0
"""Orders per second: about what the services handle, so that neither memory nor queues fill up."""

MOST_AT_ONCE = 200

ACTION = "broker.recover"
NAME = "ordersaga-recover"

Progress = Callable[[int], None]
"""Receives the number of orders read since the last call."""

MessagesOf = Callable[[Order], Iterable[Message]]


async def preview(stack: Stack, *, since: datetime, on_progress: Progress = lambda _: None) -> RecoveryReport:
    """Return what `recover` would do, without changing anything. Raises UnreachableError."""
    report = RecoveryReport(since, missing=await _find_missing(stack))
    async with open_mongodb(stack.mongodb_url, purpose="the recovery", name=NAME) as client:
        records, pace = PendingRecords(client, stack, report.note_unsendable), _Pace(float("inf"), on_progress)
        await _Recovery(records, None, report, pace, webhooks=stack.topology_options.webhooks).run()
    return report


async def recover(
    stack: Stack,
    *,
    by: str,
    why: str,
    since: datetime,
    rate: float = DEFAULT_RATE,
    on_progress: Progress = lambda _: None,
    declare: bool = True,
) -> RecoveryReport:
    """Declare what the broker lacks, and publish pending commands and the events since a time again.

    At most `rate` orders per second are published. Without `declare`, the topology is used as it is. The broker's user
    must be one that may declare and publish everything, the deployer. The log of actions says who did it and why.
    Raises UnreachableError when a server does not answer, UnfinishedRestoreError if there is only a part of a backup,
    and StartError if the topology may not be declared or exists with other arguments; a repetition is safe.
    """
    report = RecoveryReport(since)
    async with open_mongodb(stack.mongodb_url, purpose="the recovery", name=NAME) as client:
        database: Database = client[CONSOLE.database_in(stack.database_prefix)]
        if reason := await unfinished_restore(database):
            raise UnfinishedRestoreError(reason)
        async with _logged(database, by, why, report):
            report.missing = await _declare(stack) if declare else []
            webhooks = stack.topology_options.webhooks
            async with open_bus(stack.amqp_url, None, name=NAME) as bus:
                records, pace = PendingRecords(client, stack, report.note_unsendable), _Pace(rate, on_progress)
                await _Recovery(records, Publisher(bus), report, pace, webhooks=webhooks).run()
    return report


class _Pace:
    """Keeps the rate (orders per second), and reports progress."""

    def __init__(self, rate: float, on_progress: Progress) -> None:
        self._rate = rate
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._orders = 0

    @property
    def page(self) -> int:
        """The orders that are published at once."""
        return int(max(1, min(MOST_AT_ONCE, self._rate / 2)))

    async def keep(self, orders: int) -> None:
        """Note that orders are done, and pause until no more than the rate are since the start."""
        self._orders += orders
        self._on_progress(orders)
        await asyncio.sleep(max(0.0, self._started + self._orders / self._rate - time.monotonic()))


class _Recovery:
    """One recovery; without a publisher, it only counts."""

    def __init__(
        self,
        records: PendingRecords,
        publisher: Publisher | None,
        report: RecoveryReport,
        pace: _Pace,
        *,
        webhooks: bool,
    ) -> None:
        self._records = records
        self._publisher = publisher
        self._report = report
        self._pace = pace
        self._webhooks = webhooks

    async def run(self) -> None:
        """Publish commands, then events, and complete the report."""
        now = utc_now()
        await self._commands(now)
        await self._events_of_orders(self._report.since)
        await self._events_of_packages(self._report.since)
        self._report.newer = await self._records.count_newer(now)
        self._report.continuing = await self._records.count_continuing()
        self._report.letters_without_outcome = await self._records.count_letters_without_outcome()

    async def _commands(self, now: datetime) -> None:
        report = self._report
        async for orders in self._records.unsettled(now, self._pace.page):
            sent = await self._publish_of(orders, lambda order: pending.commands(order, now))
            report.commands.update(sent)
            report.orders += sum(SAGA.awaits_answer(order) and not pending.is_overdue(order, now) for order in orders)
            report.overdue += sum(pending.is_overdue(order, now) for order in orders)
            report.held += sum(order.status is Status.FAILED and not order.compensating for order in orders)
            await self._pace.keep(len(orders))

    async def _events_of_orders(self, since: datetime) -> None:
        async for orders in self._records.changed_since(since, self._pace.page):
            # To that inbox alone: `order.created` also asks the participants to act.
            to_webhooks = ((pending.creation, NOTIFICATION_INBOX),) if self._webhooks else ()
            for messages_of, inbox in (*to_webhooks, (pending.events, None)):
                sent = await self._publish_of(orders, partial(messages_of, since=since), inbox)
                self._report.events.update(sent)
            await self._pace.keep(len(orders))

    async def _events_of_packages(self, since: datetime) -> None:
        low = await self._records.low_packages(since)
        await self._publish([envelope(event) for event in low])
        self._report.events.update(event.routing_key for event in low)

    async def _publish_of(
        self, orders: Sequence[Order], messages_of: MessagesOf, inbox: str | None = None
    ) -> list[str]:
        """Publish the messages of orders, to one inbox only if it is named; return their types."""
        envelopes: list[Envelope] = []
        for order in orders:
            try:
                envelopes += _envelopes(order, messages_of(order), inbox)
            except ValueError:  # as in the order service's sweep, it holds up no other order
                self._report.note_unsendable(order.order_id)
        await self._publish(envelopes)
        return [each.type for each in envelopes]

    async def _publish(self, envelopes: Sequence[Envelope]) -> None:
        """Publish, repeatedly while the broker refuses. Raises UnreachableError if it does for too long."""
        if self._publisher is not None and envelopes:
            await until_accepted(partial(self._publisher.publish, envelopes))


def _envelopes(order: Order, messages: Iterable[Message], inbox: str | None) -> list[Envelope]:
    """Address the messages of an order, in its trace: to those who have bound them, or to one inbox by its name."""
    headers = tracing.headers(order.traceparent)
    addressed = [envelope(message, headers) for message in messages]
    return addressed if inbox is None else [replace(each, exchange="", routing_key=inbox) for each in addressed]


async def _declare(stack: Stack) -> list[str]:
    """Declare what the broker lacks, and return it; a stream of events with another retention is used as it is."""
    missing = await _find_missing(stack)
    if missing:
        await asyncio.sleep(PAUSE_BEFORE_DECLARING_AGAIN)  # all of it may have been deleted just now
    with contextlib.suppress(EventStreamDiffersError):
        await apply_topology(stack.amqp_url, stack.topology_options)
    return missing


async def _find_missing(stack: Stack) -> list[str]:
    try:
        async with await connect(stack.amqp_url, CONNECT_SECONDS) as connection:
            return await find_missing(connection, topology.RETRY_LADDER, stack.topology_options)
    except (AMQPError, OSError, TimeoutError) as error:
        raise UnreachableError(f"RabbitMQ does not answer: {with_detail(error)}") from error


@contextlib.asynccontextmanager
async def _logged(database: Database, by: str, why: str, report: RecoveryReport) -> AsyncIterator[None]:
    """Log the beginning and the end of a recovery, also of one that fails or is interrupted."""
    entry = {"by": by, "why": why, "action": ACTION, "subject": "broker"}
    await record_action(database, **entry, outcome="started")
    try:
        yield
    except BaseException as error:
        ended = reason_of(error)
        await record_action(database, **entry, outcome=f"{report.in_words()}, then ended: {ended}"[:500])
        raise
    await record_action(database, **entry, outcome=report.in_words())

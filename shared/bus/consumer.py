"""The batch consumer: everything around a handler that every service needs, written once.

A batch is what is in the queue now. Each message is read, grouped by handler and handled; what follows from the batch
(results, retries, dead letters) is published and confirmed; then the batch is acknowledged, at once. Killed anywhere
between, the batch comes again and the idempotent handlers return the same.

    what a handler raises        what becomes of the message
    ───────────────────────────  ───────────────────────────────────────────────────────────────────────────────────
    TransientError               nothing is acknowledged, the same call is repeated until it succeeds; no attempt burns
    anything else, many at once  the batch is split in halves until the bad message stands alone, the others go through
    PoisonError, standing alone  dead letter
    anything else, alone         next rung of the retry ladder, after the last one dead letter
"""

import asyncio
import logging
import time
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from structlog.contextvars import bound_contextvars

from shared import topology, tracing
from shared.bus import Bus, Delivery, Envelope, Handler, Handlers
from shared.bus.backoff import Backoff
from shared.bus.failures import after_failure, dead_letter, failed_attempts, traceback_text
from shared.bus.metrics import (
    BATCH_SIZE,
    DEAD_LETTERED,
    HANDLED_MESSAGES,
    PAUSES,
    RETRIED,
    handling,
    prepare,
    type_label,
)
from shared.bus.publisher import Publisher, envelope
from shared.bus.reading import read, type_name
from shared.bus.replays import handled_notice
from shared.contracts import Message
from shared.errors import PoisonError, TransientError
from shared.failure_points import ACKNOWLEDGED, HANDLED, PUBLISHED, FailurePoint, nothing_fails

log = structlog.get_logger()

_NAMED_ORDERS = 10
"""Orders of a batch that a line of the log names."""


class _AbandonedError(Exception):
    """The batch in hand cannot be finished here: its connection is gone, or the process is ending."""


@dataclass(slots=True)
class _Taken:
    """One readable message of the batch in hand and the delivery that it came in."""

    delivery: Delivery
    message: Message


@dataclass(slots=True)
class _Outcome:
    """What is to be published before the batch in hand may be acknowledged, and what to count then."""

    batch: tracing.Batch
    envelopes: list[Envelope] = field(default_factory=list)
    handled: Tally[str] = field(default_factory=Tally)
    retried: Tally[str] = field(default_factory=Tally)
    dead: Tally[str] = field(default_factory=Tally)


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _as_it_is(error: Exception) -> Exception:
    return error


class Consumer:
    """Takes the messages of one queue to their handlers until it is stopped.

    `as_ours` turns a driver's exception into one of shared.errors; `reach` is told the failure points; `batch_limit`
    is the most messages taken at once; `stalled_after` (seconds) is how long a batch may be in hand before `trouble`
    says so. The bus must have been started with the same queue, and is closed by whoever opened it.
    """

    def __init__(
        self,
        bus: Bus,
        queue: str,
        handlers: Handlers,
        *,
        batch_limit: int = 200,
        reach: FailurePoint = nothing_fails,
        as_ours: Callable[[Exception], Exception] = _as_it_is,
        clock: Callable[[], datetime] = _utc_now,
        ladder: Sequence[topology.RetryDelay] = topology.RETRY_LADDER,
        stalled_after: float = 30.0,
    ) -> None:
        self._bus = bus
        self._publisher = Publisher(bus)
        self._queue = queue
        self._handlers = handlers
        self._batch_limit = batch_limit
        self._reach = reach
        self._as_ours = as_ours
        self._clock = clock
        self._ladder = ladder
        self._stalled_after = stalled_after
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._in_hand_since: float | None = None
        self._waiting_for: str | None = None
        prepare(queue, handlers)

    @property
    def trouble(self) -> str | None:
        """None while messages are taken and handled, else what is wrong, in a few words (for /readyz)."""
        if self._task is None or self._task.done():
            return "the consumer does not run"
        if self._waiting_for is not None:
            return f"waiting: {self._waiting_for}"
        if self._in_hand_since is not None:
            seconds = time.monotonic() - self._in_hand_since
            if seconds > self._stalled_after:
                return f"the batch in hand has not been finished for {seconds:.0f} s"
        return self._bus.trouble

    async def run(self) -> None:
        """Take batches until `stop`; whatever goes wrong in between is logged and survived."""
        self._task = asyncio.current_task()
        backoff = Backoff()
        while not self._stopping.is_set():
            deliveries: Sequence[Delivery] = ()
            try:
                deliveries = await self._bus.receive(self._batch_limit)
                if not deliveries:
                    return  # the bus takes no more
                await self._take(deliveries)
                backoff.reset()
            except _AbandonedError as reason:
                told = {"order_ids": _order_ids(deliveries), "reason": str(reason)}
                log.warning("batch abandoned, it comes again", queue=self._queue, **told)
            except (Exception, asyncio.CancelledError) as error:
                # A consumer that ended would leave its queue to itself, also when a driver lets a cancellation escape.
                if self._task is not None and self._task.cancelling():
                    raise
                log.error("consumer failed, its batch comes again", **self._fault(error, deliveries))  # noqa: TRY400
                await self._return_after_fault(deliveries)
                await self._pause(backoff.next())

    async def stop(self, within: float = 10.0) -> None:
        """Take no more, finish what is in hand, and return when `run` has ended.

        What is not finished after `within` seconds is abandoned: it comes again to whoever consumes next.
        """
        self._stopping.set()
        await self._bus.stop_receiving()
        if self._task is None or self._task.done():
            return
        _, unfinished = await asyncio.wait({self._task}, timeout=within)
        if unfinished:
            log.warning("batch abandoned at the end of the time to stop", queue=self._queue, seconds=within)
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)

    async def _take(self, deliveries: Sequence[Delivery]) -> None:
        BATCH_SIZE.labels(self._queue).observe(len(deliveries))
        self._in_hand_since = time.monotonic()
        try:
            with tracing.batch(self._queue, deliveries) as batch, _named_in_logs(deliveries):
                await self._carry_through(deliveries, _Outcome(batch))
        finally:
            self._in_hand_since = None
            self._waiting_for = None

    async def _carry_through(self, deliveries: Sequence[Delivery], outcome: _Outcome) -> None:
        for handler, group in self._read_and_group(deliveries, outcome).items():
            await self._handle(handler, group, deliveries, outcome)
        self._reach(HANDLED)
        await self._publish(outcome.envelopes, deliveries)
        self._reach(PUBLISHED)
        await self._bus.acknowledge(deliveries)
        self._reach(ACKNOWLEDGED)
        self._count(outcome)

    def _read_and_group(self, deliveries: Sequence[Delivery], outcome: _Outcome) -> dict[Handler, list[_Taken]]:
        groups: dict[Handler, list[_Taken]] = {}
        for delivery in deliveries:
            try:
                message = read(delivery, self._handlers)
            except PoisonError as error:
                self._give_up(delivery, error, outcome)
            else:
                outcome.batch.about(delivery, message.correlation_id)
                groups.setdefault(self._handlers[type(message)], []).append(_Taken(delivery, message))
        return groups

    async def _handle(
        self, handler: Handler, group: Sequence[_Taken], batch: Sequence[Delivery], outcome: _Outcome
    ) -> None:
        """Call `handler` with the group, split until what cannot be handled stands alone."""
        try:
            results = await self._call(handler, group, batch)
        except _AbandonedError:
            raise
        except Exception as error:  # noqa: BLE001 - a handler may raise anything; retried or dead-lettered with it
            if len(group) > 1:
                middle = len(group) // 2
                await self._handle(handler, group[:middle], batch, outcome)
                await self._handle(handler, group[middle:], batch, outcome)
            else:
                self._fail(group[0].delivery, error, outcome)
        else:
            outcome.envelopes.extend(
                envelope(result, outcome.batch.headers(result.correlation_id)) for result in results
            )
            outcome.envelopes.extend(
                envelope(notice, outcome.batch.headers(taken.message.correlation_id))
                for taken in group
                if (notice := handled_notice(taken.delivery)) is not None
            )
            outcome.handled.update(taken.message.routing_key for taken in group)
            self._tell_of_handled(group)

    async def _call(self, handler: Handler, group: Sequence[_Taken], batch: Sequence[Delivery]) -> Sequence[Message]:
        """Call `handler` until it does not fail for a reason that passes."""
        messages = [taken.message for taken in group]
        named = [taken.delivery for taken in group] if len(batch) > 1 else ()  # alone in its batch, it is named already
        backoff = Backoff()
        while True:
            try:
                with handling(self._queue, messages), _named_in_logs(named):
                    results = await handler(messages)
            except Exception as error:  # noqa: BLE001 - raised again below unless it passes by itself
                ours = self._as_ours(error)
                if not isinstance(ours, TransientError):
                    raise ours from error if ours is not error else error.__cause__
                await self._wait_for_server(ours, batch, backoff)
            else:
                self._waiting_for = None
                return results

    async def _publish(self, envelopes: Sequence[Envelope], batch: Sequence[Delivery]) -> None:
        """Publish until every envelope is confirmed, or the batch's connection is gone and it comes again anyway."""
        backoff = Backoff()
        while True:
            try:
                await self._publisher.publish(envelopes)
            except TransientError as error:
                await self._wait_for_server(error, batch, backoff)
            else:
                self._waiting_for = None
                return

    async def _wait_for_server(self, error: TransientError, batch: Sequence[Delivery], backoff: Backoff) -> None:
        if self._waiting_for is None:
            PAUSES.labels(self._queue).inc()
            log.warning("consumer waits", queue=self._queue, messages=len(batch), error=str(error))
        self._waiting_for = str(error)
        if self._stopping.is_set():
            raise _AbandonedError(f"stopping while a server is away: {error}")
        await self._pause(backoff.next())
        if not self._bus.holds(batch):
            raise _AbandonedError(f"its connection is gone: {error}")

    async def _pause(self, seconds: float) -> None:
        """Wait, or less when `stop` is called meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _return_after_fault(self, deliveries: Sequence[Delivery]) -> None:
        try:
            await self._bus.give_back(deliveries)
        except TransientError as error:
            log.warning("batch not given back", queue=self._queue, error=str(error))

    def _tell_of_handled(self, group: Sequence[_Taken]) -> None:
        if log.is_enabled_for(logging.DEBUG):
            for taken in group:
                log.debug("message handled", **self._name(taken.delivery))

    def _fail(self, delivery: Delivery, error: Exception, outcome: _Outcome) -> None:
        if isinstance(error, PoisonError) or failed_attempts(delivery.headers) >= len(self._ladder):
            self._give_up(delivery, error, outcome)
            return
        delivery = outcome.batch.failed(delivery, error)
        retry = after_failure(delivery, error, self._clock(), self._ladder)
        outcome.envelopes.append(retry)
        outcome.retried[type_label(type_name(delivery))] += 1
        text = traceback_text(error)
        log.warning("message retried", **self._context(delivery, error), rung=retry.exchange, exception=text)

    def _give_up(self, delivery: Delivery, error: Exception, outcome: _Outcome) -> None:
        delivery = outcome.batch.failed(delivery, error)
        outcome.envelopes.append(dead_letter(delivery, error, self._clock()))
        outcome.dead[type_label(type_name(delivery))] += 1
        log.error("message dead-lettered", **self._context(delivery, error))

    def _fault(self, error: BaseException, deliveries: Sequence[Delivery]) -> dict[str, object]:
        return {
            "queue": self._queue,
            "messages": len(deliveries),
            "order_ids": _order_ids(deliveries),
            "exception": traceback_text(error),
        }

    def _context(self, delivery: Delivery, error: Exception) -> dict[str, object]:
        return {
            **self._name(delivery),
            "attempts": failed_attempts(delivery.headers) + 1,
            "error_type": type(error).__name__,
            "error": str(error)[:500],
        }

    def _name(self, delivery: Delivery) -> dict[str, object]:
        return {
            "queue": self._queue,
            "message_id": delivery.message_id,
            "order_id": delivery.correlation_id,
            "type": type_name(delivery),
        }

    def _count(self, outcome: _Outcome) -> None:
        counted = ((HANDLED_MESSAGES, outcome.handled), (RETRIED, outcome.retried), (DEAD_LETTERED, outcome.dead))
        for counter, tally in counted:
            for type_, count in tally.items():
                counter.labels(self._queue, type_).inc(count)


def _named_in_logs(deliveries: Sequence[Delivery]) -> AbstractContextManager[None]:
    """Have every line that is logged meanwhile name the message; those about several name the order that they mean."""
    if len(deliveries) != 1:
        return nullcontext()
    only = deliveries[0]
    return bound_contextvars(order_id=only.correlation_id, message_id=only.message_id)


def _order_ids(deliveries: Sequence[Delivery]) -> list[str | None]:
    """What to look for in the records, of a batch that gave trouble as a whole."""
    return [delivery.correlation_id for delivery in deliveries[:_NAMED_ORDERS]]

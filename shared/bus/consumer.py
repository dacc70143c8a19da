"""The batch consumer: everything around the handlers that all services share.

A batch is whatever is in the queue now. Its messages are read, grouped by handler and handled. What follows from the
batch (results, retries, dead letters) is published and confirmed; then the whole batch is acknowledged at once. If the
process is killed anywhere in between, the batch is redelivered and the idempotent handlers return the same results.

    a handler raises                   what happens to the messages
    ─────────────────────────────────  ──────────────────────────────────────────────────────────────────────────
    TransientError                     nothing is acknowledged; the call is repeated until it succeeds, and no attempt
                                       is counted
    anything else, several messages    the batch is halved until the bad message is alone; the others are handled
    PoisonError, a single message      it becomes a dead letter
    anything else, a single message    it is retried on the next level of the retry ladder, in the end dead-lettered

A message that only a newer release can read or handle waits for an upgrade of this process, see `failures.next_level`.
If all messages fail for one cause, the breaker opens: the others wait in the queue, see `shared.bus.breaker`.
"""

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
from shared.bus.batch_loop import BatchAbandonedError, BatchLoop
from shared.bus.breaker import Batch, Breaker, cause_of
from shared.bus.failures import after_failure, dead_letter, failed_attempts, next_level, returned_from, traceback_text
from shared.bus.metrics import (
    BREAKER_OPEN,
    BREAKER_OPENED,
    BREAKER_TESTS,
    DEAD_LETTERED,
    FAILED,
    HANDLED_MESSAGES,
    RETRIED,
    RETRIES_RETURNED,
    RETRIES_SENT,
    SUCCEEDED,
    handling,
    prepare,
    type_label,
)
from shared.bus.publisher import Publisher, envelope
from shared.bus.reading import read, type_name
from shared.bus.replays import handled_notice
from shared.contracts import ConsumerPausesChanged, Message
from shared.errors import NewerReleaseError, PoisonError
from shared.failpoints import ACKNOWLEDGED, HANDLED, PUBLISHED, Failpoint, nothing_fails

log = structlog.get_logger()


_NO_PROOF = frozenset({ConsumerPausesChanged.routing_key})
"""The types whose success says nothing about the other handlers: while a service is paused, its news come for ever."""


@dataclass(slots=True)
class _Taken:
    """A readable message of the current batch, and its delivery."""

    delivery: Delivery
    message: Message


@dataclass(slots=True)
class _Outcome:
    """The messages to publish before the current batch is acknowledged, and the counts for the metrics."""

    batch: tracing.Batch
    envelopes: list[Envelope] = field(default_factory=list)
    handled: Tally[str] = field(default_factory=Tally)
    retried: Tally[str] = field(default_factory=Tally)
    levels: Tally[str] = field(default_factory=Tally)
    dead: Tally[str] = field(default_factory=Tally)
    causes: set[str] = field(default_factory=set)
    """The causes of failures that a retry may overcome."""
    failed: set[str] = field(default_factory=set)
    """The ids of the messages that failed for them."""

    def of_breaker(self) -> Batch:
        """Return what the breaker needs to know."""
        return Batch(not self.handled.keys() <= _NO_PROOF, frozenset(self.causes), frozenset(self.failed))


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _unchanged(error: Exception) -> Exception:
    return error


class Consumer(BatchLoop):
    """Consumes a queue and calls the handlers of its messages, until it is stopped."""

    def __init__(
        self,
        bus: Bus,
        queue: str,
        handlers: Handlers,
        *,
        batch_limit: int = 200,
        failpoint: Failpoint = nothing_fails,
        translate_error: Callable[[Exception], Exception] = _unchanged,
        clock: Callable[[], datetime] = _utc_now,
        ladder: Sequence[topology.RetryDelay] = topology.RETRY_LADDER,
        stalled_after: float = 30.0,
        breaker_batches: int = 0,
    ) -> None:
        super().__init__(
            bus, queue, batch_limit=batch_limit, translate_error=translate_error, stalled_after=stalled_after
        )
        self._publisher = Publisher(bus)
        self._handlers = handlers
        self._failpoint = failpoint
        self._clock = clock
        self._ladder = ladder
        self._breaker = Breaker(breaker_batches)
        prepare(queue, handlers, self._ladder)

    @property
    def breaker_reason(self) -> str | None:
        """Why the breaker is open, in a few words for /readyz; None if it is closed."""
        return self._breaker.in_words(time.monotonic())

    async def _next_batch(self) -> Sequence[Delivery]:
        """Wait for the next batch; while the breaker is open, for the time of the next test and for one message."""
        if not self._breaker.is_open:
            return await super()._next_batch()
        await self._pause(max(0.0, self._breaker.test_at - time.monotonic()))
        if self._stopping.is_set():
            return ()
        await self._limit_intake(1)
        deliveries = await self._bus.receive(1)
        await self._limit_intake(0)  # or the acknowledgement would bring the next message
        return deliveries

    async def _follow_breaker(self, batch: Batch) -> None:
        """Note the result of a batch; open or close the breaker if that follows."""
        before, self._breaker = self._breaker, self._breaker.after(batch, time.monotonic())
        is_open = self._breaker.is_open
        if before.is_open and (batch.handled or batch.causes):
            outcome = SUCCEEDED if batch.handled else FAILED
            BREAKER_TESTS.labels(self._queue, outcome).inc()
        if is_open == before.is_open:
            return
        BREAKER_OPEN.labels(self._queue).set(float(is_open))
        if is_open:
            BREAKER_OPENED.labels(self._queue).inc()
            log.error("breaker opened", queue=self._queue, batches=self._breaker.batches, cause=self._breaker.cause)
        else:
            log.info("breaker closed", queue=self._queue, cause=before.cause, tests=before.tests)
        await self._limit_intake(0 if is_open else None)

    async def _process(self, deliveries: Sequence[Delivery]) -> None:
        with tracing.batch(self._queue, deliveries) as batch, _named_in_logs(deliveries):
            await self._finish(deliveries, _Outcome(batch))

    async def _finish(self, deliveries: Sequence[Delivery], outcome: _Outcome) -> None:
        for handler, group in self._read_and_group(deliveries, outcome).items():
            await self._handle(handler, group, deliveries, outcome)
        self._failpoint(HANDLED)
        await self._until_served(lambda: self._publisher.publish(outcome.envelopes), deliveries)
        self._failpoint(PUBLISHED)
        await self._bus.acknowledge(deliveries)
        self._failpoint(ACKNOWLEDGED)
        self._count(outcome)
        if outcome.causes or self._breaker.batches:
            await self._follow_breaker(outcome.of_breaker())

    def _read_and_group(self, deliveries: Sequence[Delivery], outcome: _Outcome) -> dict[Handler, list[_Taken]]:
        groups: dict[Handler, list[_Taken]] = {}
        for delivery in deliveries:
            if level := returned_from(delivery, self._ladder):
                RETRIES_RETURNED.labels(level).inc()
            try:
                message = read(delivery, self._handlers)
            except PoisonError as error:
                self._give_up(delivery, error, outcome)
            except NewerReleaseError as error:
                self._fail(delivery, error, outcome)
            else:
                outcome.batch.about(delivery, message.correlation_id)
                groups.setdefault(self._handlers[type(message)], []).append(_Taken(delivery, message))
        return groups

    async def _handle(
        self, handler: Handler, group: Sequence[_Taken], batch: Sequence[Delivery], outcome: _Outcome
    ) -> None:
        """Call the handler with the group; if it fails, halve the group until the bad message is alone."""
        try:
            results = await self._call(handler, group, batch)
        except BatchAbandonedError:
            raise
        except Exception as error:  # noqa: BLE001 - a handler may raise anything; retried or dead-lettered with it
            if len(group) > 1:
                middle = len(group) // 2
                await self._handle(handler, group[:middle], batch, outcome)
                await self._handle(handler, group[middle:], batch, outcome)
            else:
                self._note_cause(group[0].delivery, error, outcome)
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
            self._log_handled(group)

    @staticmethod
    def _note_cause(delivery: Delivery, error: Exception, outcome: _Outcome) -> None:
        if not isinstance(error, PoisonError | NewerReleaseError):
            outcome.causes.add(cause_of(error))
            outcome.failed.add(delivery.message_id or str(delivery.correlation_id))

    async def _call(self, handler: Handler, group: Sequence[_Taken], batch: Sequence[Delivery]) -> Sequence[Message]:
        """Call the handler, again after transient errors."""
        messages = [taken.message for taken in group]
        named = (
            [taken.delivery for taken in group] if len(batch) > 1 else ()
        )  # the only message of a batch is already named

        async def call() -> Sequence[Message]:
            with handling(self._queue, messages), _named_in_logs(named):
                return await handler(messages)

        return await self._until_served(call, batch)

    def _log_handled(self, group: Sequence[_Taken]) -> None:
        if log.is_enabled_for(logging.DEBUG):
            for taken in group:
                log.debug("message handled", **self._name(taken.delivery))

    def _fail(self, delivery: Delivery, error: Exception, outcome: _Outcome) -> None:
        if next_level(delivery, error, self._ladder) is None:
            self._give_up(delivery, error, outcome)
            return
        delivery = outcome.batch.failed(delivery, error)
        retry = after_failure(delivery, error, self._clock(), self._ladder)
        outcome.envelopes.append(retry)
        outcome.retried[type_label(type_name(delivery))] += 1
        outcome.levels[retry.exchange] += 1
        text = traceback_text(error)
        log.warning("message retried", **self._context(delivery, error), retry_level=retry.exchange, exception=text)

    def _give_up(self, delivery: Delivery, error: Exception, outcome: _Outcome) -> None:
        delivery = outcome.batch.failed(delivery, error)
        outcome.envelopes.append(dead_letter(delivery, error, self._clock()))
        outcome.dead[type_label(type_name(delivery))] += 1
        log.error("message dead-lettered", **self._context(delivery, error))

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
        for level, count in outcome.levels.items():
            RETRIES_SENT.labels(level).inc(count)


def _named_in_logs(deliveries: Sequence[Delivery]) -> AbstractContextManager[None]:
    """Add the ids of a single delivery to all log lines meanwhile; lines about several name their orders themselves."""
    if len(deliveries) != 1:
        return nullcontext()
    only = deliveries[0]
    return bound_contextvars(order_id=only.correlation_id, message_id=only.message_id)

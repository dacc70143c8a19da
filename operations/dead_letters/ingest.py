"""Takes dead letters from the broker: a batch is recorded, then acknowledged, so that a crash between loses none.

There is no batch that is refused: whatever is in a message, it is recorded. While MongoDB or RabbitMQ is away, the
batch in hand waits and the queue keeps the rest.
"""

import asyncio
import time
from collections.abc import Sequence

import structlog

from operations.dead_letters.letter import without_headers
from operations.dead_letters.records import LetterRecords, Recorded
from shared.bus import Bus, Delivery
from shared.bus.backoff import Backoff
from shared.bus.failures import traceback_text
from shared.bus.metrics import BATCH_SIZE, HANDLED_MESSAGES, PAUSES, type_label
from shared.bus.reading import type_name
from shared.clock import utc_now
from shared.database import as_ours
from shared.errors import TransientError
from shared.failure_points import (
    LETTERS_ACKNOWLEDGED,
    LETTERS_RECORDED,
    LETTERS_TAKEN,
    FailurePoint,
    nothing_fails,
)
from shared.topology import DEAD_LETTERS

PREFETCH = 100
"""Letters that the broker hands out unacknowledged. A body may have many megabytes, and all are in memory at once."""

BATCH = 50
"""So that the broker brings the next ones while these are recorded."""

STALLED_AFTER_SECONDS = 30.0

log = structlog.get_logger(__name__)


class Ingest:
    """Takes the dead letters of a started bus, which consumes from their queue, until it is stopped."""

    def __init__(self, bus: Bus, records: LetterRecords, *, reach: FailurePoint = nothing_fails) -> None:
        self._bus = bus
        self._records = records
        self._reach = reach
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._in_hand_since: float | None = None
        self._waiting_for: str | None = None
        PAUSES.labels(DEAD_LETTERS)

    @property
    def trouble(self) -> str | None:
        """None while letters are taken and recorded, else what is wrong, in a few words (for /readyz)."""
        if self._task is None or self._task.done():
            return "dead letters are not taken"
        if self._waiting_for is not None:
            return f"waiting: {self._waiting_for}"
        if self._in_hand_since is not None and time.monotonic() - self._in_hand_since > STALLED_AFTER_SECONDS:
            return f"the batch in hand has not been finished for {STALLED_AFTER_SECONDS:.0f} s"
        return self._bus.trouble

    async def run(self) -> None:
        """Take batches until `stop`; whatever goes wrong in between is logged and survived."""
        self._task = asyncio.current_task()
        backoff = Backoff()
        while not self._stopping.is_set():
            deliveries: Sequence[Delivery] = ()
            try:
                deliveries = await self._bus.receive(BATCH)
                if not deliveries:
                    return
                await self.take(deliveries)
                backoff.reset()
            except (Exception, asyncio.CancelledError) as error:
                if self._task is not None and self._task.cancelling():
                    raise
                log.error(  # noqa: TRY400 - the text is bounded: an error may carry whole documents
                    "dead letters not recorded, they come again",
                    messages=len(deliveries),
                    exception=traceback_text(error),
                )
                await self._bus.give_back(deliveries)
                await self._pause(backoff.next())

    async def stop(self, within: float = 5.0) -> None:
        """Take no more, finish what is in hand, and return when `run` has ended."""
        self._stopping.set()
        await self._bus.stop_receiving()
        if self._task is None or self._task.done():
            return
        _, unfinished = await asyncio.wait({self._task}, timeout=within)
        if unfinished:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)

    async def take(self, deliveries: Sequence[Delivery]) -> Recorded:
        """Record a batch, waiting for MongoDB as long as it takes, and acknowledge it."""
        BATCH_SIZE.labels(DEAD_LETTERS).observe(len(deliveries))
        self._in_hand_since = time.monotonic()
        try:
            self._reach(LETTERS_TAKEN)
            recorded = await self._record(deliveries)
            self._reach(LETTERS_RECORDED)
            still_ours = self._bus.holds(deliveries)
            await self._bus.acknowledge(deliveries)
            self._reach(LETTERS_ACKNOWLEDGED)
            if still_ours:
                await self._records.acknowledged(recorded)
        finally:
            self._in_hand_since = None
            self._waiting_for = None
        for delivery in deliveries:
            HANDLED_MESSAGES.labels(DEAD_LETTERS, type_label(type_name(delivery))).inc()
        told = {"new": recorded.new, "dead_again": recorded.dead_again, "known_already": recorded.known}
        log.info("dead letters recorded", **told)
        return recorded

    async def _record(self, deliveries: Sequence[Delivery]) -> Recorded:
        """Record a batch; what MongoDB refuses is looked for by halves, and recorded without its headers."""
        try:
            return await self._record_when_possible(deliveries)
        except TransientError:
            raise
        except Exception as error:  # noqa: BLE001 - no letter may keep the others waiting
            log.error("dead letters refused", messages=len(deliveries), exception=traceback_text(error))  # noqa: TRY400
            if len(deliveries) == 1:
                return await self._record_when_possible([without_headers(deliveries[0])])
            middle = len(deliveries) // 2
            first, second = await self._record(deliveries[:middle]), await self._record(deliveries[middle:])
            return first + second

    async def _record_when_possible(self, deliveries: Sequence[Delivery]) -> Recorded:
        backoff = Backoff()
        while True:
            try:
                return await self._records.record(deliveries, utc_now())
            except Exception as error:
                if not isinstance(ours := as_ours(error), TransientError):
                    raise
                if self._waiting_for is None:
                    PAUSES.labels(DEAD_LETTERS).inc()
                    log.warning("dead letters wait", messages=len(deliveries), error=str(ours))
                self._waiting_for = str(ours)
                if self._stopping.is_set():
                    raise ours from error
                await self._pause(backoff.next())

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

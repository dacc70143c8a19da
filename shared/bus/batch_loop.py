"""The loop around every batch of a queue: take what is there, carry it through, survive what goes wrong, stop in time.

What becomes of the messages is for whoever derives from it. A batch that is not finished is not acknowledged, so it
comes again: to this process, or to whoever consumes next.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from shared.bus import Bus, Delivery
from shared.bus.backoff import Backoff
from shared.bus.failures import traceback_text
from shared.bus.metrics import BATCH_SIZE, PAUSES
from shared.errors import TransientError

log = structlog.get_logger()

Result = TypeVar("Result")

_NAMED_ORDERS = 10
"""Orders of a batch that a line of the log names."""


class BatchAbandonedError(TransientError):
    """The current batch cannot be finished here: its connection is gone, or the process is ending."""


class BatchLoop(ABC):
    """Takes batches of one queue until it is stopped.

    `batch_limit` is the most messages taken at once. `translate_error` turns a driver's exception into one of
    shared.errors. `stalled_after` (seconds) is how long a batch may take before `unhealthy_reason` says so. The bus
    must have been started with the same queue; whatever opened it closes it.
    """

    def __init__(
        self,
        bus: Bus,
        queue: str,
        *,
        batch_limit: int,
        translate_error: Callable[[Exception], Exception],
        stalled_after: float,
    ) -> None:
        self._bus = bus
        self._queue = queue
        self._batch_limit = batch_limit
        self._as_ours = translate_error
        self._stalled_after = stalled_after
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._in_hand_since: float | None = None
        self._waiting_for: str | None = None

    @abstractmethod
    async def _carry_through(self, deliveries: Sequence[Delivery]) -> None:
        """Do all that a batch asks for, and acknowledge it at the end."""

    @property
    def unhealthy_reason(self) -> str | None:
        """None while messages are taken and finished, else what is wrong, in a few words (for /readyz)."""
        if self._task is None or self._task.done():
            return "the consumer does not run"
        if self._waiting_for is not None:
            return f"waiting: {self._waiting_for}"
        if self._in_hand_since is not None:
            seconds = time.monotonic() - self._in_hand_since
            if seconds > self._stalled_after:
                return f"the batch in hand has not been finished for {seconds:.0f} s"
        return self._bus.unhealthy_reason

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
                await self.take(deliveries)
                backoff.reset()
            except BatchAbandonedError as reason:
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

    async def take(self, deliveries: Sequence[Delivery]) -> None:
        """Carry one batch through, waiting as long as it takes for a server that is away.

        Raises BatchAbandonedError when it comes again: its connection is gone meanwhile, or `stop` was called.
        """
        BATCH_SIZE.labels(self._queue).observe(len(deliveries))
        self._in_hand_since = time.monotonic()
        try:
            await self._carry_through(deliveries)
        finally:
            self._in_hand_since = None
            self._waiting_for = None

    async def _until_served(self, call: Callable[[], Awaitable[Result]], batch: Sequence[Delivery]) -> Result:
        """Make a call until it does not fail for a reason that passes by itself; raises what it raises otherwise."""
        backoff = Backoff()
        while True:
            try:
                result = await call()
            except Exception as error:  # noqa: BLE001 - raised again below unless it passes by itself
                ours = self._as_ours(error)
                if not isinstance(ours, TransientError):
                    raise ours from error if ours is not error else error.__cause__
                await self._wait_for_server(ours, batch, backoff)
            else:
                self._waiting_for = None
                return result

    async def _wait_for_server(self, error: TransientError, batch: Sequence[Delivery], backoff: Backoff) -> None:
        if self._waiting_for is None:
            PAUSES.labels(self._queue).inc()
            log.warning("consumer waits", queue=self._queue, messages=len(batch), error=str(error))
        self._waiting_for = str(error)
        if self._stopping.is_set():
            raise BatchAbandonedError(f"stopping while a server is away: {error}")
        await self._pause(backoff.next())
        if not self._bus.still_owns(batch):
            raise BatchAbandonedError(f"its connection is gone: {error}")

    async def _pause(self, seconds: float) -> None:
        """Wait, or less when `stop` is called meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _return_after_fault(self, deliveries: Sequence[Delivery]) -> None:
        try:
            await self._bus.requeue(deliveries)
        except TransientError as error:
            log.warning("batch not given back", queue=self._queue, error=str(error))

    def _fault(self, error: BaseException, deliveries: Sequence[Delivery]) -> dict[str, object]:
        # The traceback's text is bounded: an error may carry whole documents.
        return {
            "queue": self._queue,
            "messages": len(deliveries),
            "order_ids": _order_ids(deliveries),
            "exception": traceback_text(error),
        }


def _order_ids(deliveries: Sequence[Delivery]) -> list[str | None]:
    """What to look for in the records, of a batch that gave trouble as a whole."""
    return [delivery.correlation_id for delivery in deliveries[:_NAMED_ORDERS]]

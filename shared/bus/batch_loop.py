"""The loop over the batches of a queue: it takes all available messages, survives errors and stops in time.

Subclasses decide what happens to the messages. An unfinished batch is not acknowledged, so the broker redelivers it, to
this process or to another consumer.
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
"""The number of orders of a batch that a log line names."""


class BatchAbandonedError(TransientError):
    """The batch cannot be finished here because its connection is lost or the process is stopping."""


class BatchLoop(ABC):
    """Takes batches of one queue until it is stopped.

    `batch_limit` is the largest batch. `translate_error` turns a driver's exception into one of shared.errors. A batch
    that takes longer than `stalled_after` seconds makes the loop unhealthy. The bus must consume from the same queue;
    its owner starts and closes it.
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
        self._translate_error = translate_error
        self._stalled_after = stalled_after
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._batch_since: float | None = None
        self._waiting_for: str | None = None
        self._paused = False
        self._intake: int | None = None

    @abstractmethod
    async def _process(self, deliveries: Sequence[Delivery]) -> None:
        """Process a batch, and acknowledge it at the end."""

    @property
    def unhealthy_reason(self) -> str | None:
        """The reason why messages are not processed, in a few words for /readyz; None if they are."""
        if self._task is None or self._task.done():
            return "the consumer does not run"
        if self._waiting_for is not None:
            return f"waiting: {self._waiting_for}"
        if self._batch_since is not None:
            seconds = time.monotonic() - self._batch_since
            if seconds > self._stalled_after:
                return f"the current batch has not been finished for {seconds:.0f} s"
        return self._bus.unhealthy_reason

    async def run(self) -> None:
        """Take batches until `stop`; errors are logged and survived."""
        self._task = asyncio.current_task()
        backoff = Backoff()
        while not self._stopping.is_set():
            deliveries: Sequence[Delivery] = ()
            try:
                deliveries = await self._next_batch()
                if not deliveries:
                    return  # the bus has stopped receiving
                await self.take(deliveries)
                backoff.reset()
            except BatchAbandonedError as reason:
                about = {"order_ids": _order_ids(deliveries), "reason": str(reason)}
                log.warning("batch abandoned, it will be redelivered", queue=self._queue, **about)
            except (Exception, asyncio.CancelledError) as error:
                # If the consumer ended, nothing would consume its queue. A driver may even let a cancellation escape.
                if self._task is not None and self._task.cancelling():
                    raise
                log.error("consumer failed, its batch will be redelivered", **self._fault(error, deliveries))  # noqa: TRY400
                await self._return_after_fault(deliveries)
                await self._pause(backoff.next())

    async def set_paused(self, paused: bool) -> None:
        """Stop or continue to take batches. The one in hand is finished; what is not begun goes back to the queue."""
        self._paused = paused
        await self._limit_intake(self._intake)

    async def _limit_intake(self, most: int | None) -> None:
        """Take at most this many messages at once when it is not paused, see `Bus.limit_intake`."""
        self._intake = most
        await self._bus.limit_intake(0 if self._paused else most)

    async def _next_batch(self) -> Sequence[Delivery]:
        """Wait for the next batch; an empty one is the end."""
        return await self._bus.receive(self._batch_limit)

    async def stop(self, within: float = 10.0) -> None:
        """Stop receiving, finish the current batch, and return when `run` has ended.

        A batch that takes longer than `within` seconds is abandoned: the next consumer gets it.
        """
        self._stopping.set()
        await self._bus.stop_receiving()
        if self._task is None or self._task.done():
            return
        _, unfinished = await asyncio.wait({self._task}, timeout=within)
        if unfinished:
            log.warning("batch abandoned, stopping took too long", queue=self._queue, seconds=within)
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)

    async def take(self, deliveries: Sequence[Delivery]) -> None:
        """Process one batch, waiting for servers that are away as long as it takes.

        Raises BatchAbandonedError if its connection is lost or `stop` is called meanwhile: it will be redelivered.
        """
        BATCH_SIZE.labels(self._queue).observe(len(deliveries))
        self._batch_since = time.monotonic()
        try:
            await self._process(deliveries)
        finally:
            self._batch_since = None
            self._waiting_for = None

    async def _until_served(self, call: Callable[[], Awaitable[Result]], batch: Sequence[Delivery]) -> Result:
        """Repeat a call while it fails with transient errors; any other error is raised."""
        backoff = Backoff()
        while True:
            try:
                result = await call()
            except Exception as error:  # noqa: BLE001 - raised again below unless it is transient
                ours = self._translate_error(error)
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
        """Wait until the time has passed or `stop` is called."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _return_after_fault(self, deliveries: Sequence[Delivery]) -> None:
        try:
            await self._bus.requeue(deliveries)
        except TransientError as error:
            log.warning("batch could not be requeued", queue=self._queue, error=str(error))

    def _fault(self, error: BaseException, deliveries: Sequence[Delivery]) -> dict[str, object]:
        return {
            "queue": self._queue,
            "messages": len(deliveries),
            "order_ids": _order_ids(deliveries),
            "exception": traceback_text(error),
        }


def _order_ids(deliveries: Sequence[Delivery]) -> list[str | None]:
    """Return the orders to look up when a batch fails as a whole."""
    return [delivery.correlation_id for delivery in deliveries[:_NAMED_ORDERS]]

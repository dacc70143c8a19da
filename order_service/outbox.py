"""Publishes the messages of changes that no incoming message caused: the record says "unpublished" until then.

That they are published is noted a little later, for many orders at once: by then most orders have been carried on by
the answers, and the changes have noted it already. A crash in between costs a repetition, which receivers ignore.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta

import structlog

from order_service.order import Order
from order_service.orders import Orders
from order_service.saga import SAGA
from shared.background import run_periodically
from shared.bus.publisher import Publisher
from shared.clock import Clock
from shared.contracts import Message
from shared.database import translate_error
from shared.errors import TransientError
from shared.failpoints import (
    ORDER_CREATED_PUBLISHED,
    ORDER_INSERTED,
    REFUND_REQUESTED,
    Failpoint,
    nothing_fails,
)
from shared.group_commit import GroupCommit

GROUP_LIMIT = 500
NAMED_ORDERS = 10
"""Most orders of a group that a log line names."""

_log = structlog.get_logger(__name__)


class Outbox:
    """Publishes the messages of orders in groups, and notes afterwards that they are published."""

    def __init__(
        self,
        orders: Orders,
        publisher: Publisher,
        clock: Clock,
        *,
        note_after: float,
        resend_after: timedelta,
        failpoint: Failpoint = nothing_fails,
    ) -> None:
        self._orders = orders
        self._publisher = publisher
        self._clock = clock
        self._note_after = note_after
        self._resend_after = resend_after
        self._failpoint = failpoint
        self._groups: GroupCommit[Order, None] = GroupCommit(self._publish_group, limit=GROUP_LIMIT)
        self._published: deque[tuple[float, str, int]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def can_publish(self) -> bool:
        """Whether the broker takes messages now, as far as is known."""
        return self._publisher.can_publish

    def post(self, order: Order) -> None:
        """Publish soon, without waiting; if that fails, the sweep publishes the order."""
        self._start(self._groups.submit(order))

    def post_commands(self, order: Order) -> None:
        """Send the pending commands of an order soon, without waiting; if that fails, the sweep sends them."""
        self._start(self._send_requested(order))

    async def publish(self, orders: Sequence[Order]) -> None:
        """Publish the messages of orders as they are stored.

        Raises BusUnavailableError if they are not confirmed: the orders are due again at once, in all processes.
        """
        if orders:
            self._failpoint(ORDER_INSERTED)
            try:
                await self._send(orders, SAGA.state_messages)
            except TransientError:
                await self._orders.hasten([order.order_id for order in orders], self._clock())
                raise
            confirmed = time.monotonic()
            self._published.extend((confirmed, order.order_id, order.version) for order in orders)

    async def publish_again(self, orders: Sequence[Order]) -> None:
        """Publish the messages of unpublished orders, and note it at once; raises as `publish` does."""
        await self._send(orders, SAGA.state_messages)
        published = [(order.order_id, order.version) for order in orders]
        await self._orders.mark_published(published, self._clock() + self._resend_after)

    async def send_commands(self, orders: Sequence[Order]) -> None:
        """Send the pending commands of orders; raises BusUnavailableError if they are not confirmed."""
        await self._send(orders, SAGA.pending_commands)

    async def note_published(self) -> None:
        """Note published orders until cancelled, at least once per second."""
        await run_periodically(self._note_due, every=min(1.0, self._note_after / 2), name="noting published orders")

    async def _note_due(self) -> None:
        await self.note(time.monotonic() - self._note_after)

    async def note(self, published_before: float) -> None:
        """Note the orders that were confirmed before the given moment of the monotonic clock.

        A batch that cannot be noted is left to the sweep, which publishes its orders again.
        """
        while self._published and self._published[0][0] <= published_before:
            batch: list[tuple[str, int]] = []
            while self._published and self._published[0][0] <= published_before and len(batch) < GROUP_LIMIT:
                _, order_id, version = self._published.popleft()
                batch.append((order_id, version))
            await self._orders.mark_published(batch, self._clock() + self._resend_after)

    async def drain(self) -> None:
        """Publish all orders that are posted, and note it."""
        await self._groups.drain()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.note(time.monotonic())

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._posted)

    async def _send_requested(self, order: Order) -> None:
        self._failpoint(REFUND_REQUESTED)
        try:
            await self.send_commands([order])
        except TransientError:
            await self._orders.schedule_resend([(order, self._clock())])
            raise

    async def _publish_group(self, orders: Sequence[Order]) -> Sequence[None]:
        try:
            await self.publish(orders)
        except TransientError as error:
            named = [order.order_id for order in orders[:NAMED_ORDERS]]
            _log.warning(
                "not published; the sweep will try again", orders=len(orders), order_ids=named, error=str(error)[:200]
            )
            raise
        return [None] * len(orders)

    async def _send(self, orders: Sequence[Order], messages_of: Callable[[Order], tuple[Message, ...]]) -> None:
        await self._publisher.send(
            [message for order in orders for message in _messages(order, messages_of)],
            {order.order_id: order.traceparent for order in orders},
        )
        self._failpoint(ORDER_CREATED_PUBLISHED)

    def _posted(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not isinstance(translate_error(error), TransientError):
            _log.error("publishing failed; the sweep will try again", exc_info=error)


def _messages(order: Order, messages_of: Callable[[Order], tuple[Message, ...]]) -> tuple[Message, ...]:
    """Return the messages of an order; none if it cannot be put into messages, so that it holds up no other order."""
    try:
        return messages_of(order)
    except ValueError:
        _log.exception("the order cannot be put into messages", order_id=order.order_id, status=order.status)
        return ()

"""The loop that finds the orders whose timers have run out, and acts on them; deadlines.py says when that is."""

from collections.abc import Collection, Mapping
from datetime import datetime

import structlog

from order_service.deadlines import Timeouts, after_intent, is_over, resend_at
from order_service.events import DeadlinePassed
from order_service.metrics import count_changes
from order_service.order import Order, Status, replace
from order_service.orders import Change, Orders
from order_service.outbox import NAMED_ORDERS, Outbox
from order_service.pauses import deadline_with, known_pauses, paused_services, waits_for_paused_only
from order_service.saga import SAGA
from shared import tracing
from shared.background import jitter, run_periodically
from shared.clock import Clock
from shared.pausing.pause import Pauses
from shared.pausing.records import PauseRecords

PAGE = 500
RESENT_AT_ONCE = 200
"""Most orders whose commands one sweep sends again: after an outage, new orders must get through as well."""
ADOPT_EVERY = 10
"""The pause between two searches for orders of earlier versions, in multiples of the first pause of a repetition."""

_log = structlog.get_logger(__name__)


class Sweeper:
    """Acts on the orders that are due; any number of order services may do so at once."""

    def __init__(
        self,
        orders: Orders,
        outbox: Outbox,
        pauses: PauseRecords,
        timeouts: Timeouts,
        clock: Clock,
        interval: float,
    ) -> None:
        self._orders = orders
        self._pauses = pauses
        self._outbox = outbox
        self._timeouts = timeouts
        self._clock = clock
        self._interval = interval
        self._adopt_at = clock()
        self._hears_since: datetime | None = clock()
        """Since when other services can tell of their pauses; None without the broker."""

    async def run(self) -> None:
        """Sweep after each interval, until cancelled."""
        await run_periodically(self.sweep, every=lambda: jitter(self._interval), name="sweeping orders")

    async def sweep(self) -> bool:
        """Act on a page of the orders that are due; after the last page, send unanswered commands again.

        A process that cannot publish leaves all of them to the others. Returns whether there is another page.
        """
        if not self._outbox.can_publish:
            self._hears_since = None
            return False
        self._hears_since = self._hears_since or self._clock()
        if await self.sweep_once() == PAGE:
            return True
        await self._adopt()
        await self.resend()
        return False

    async def sweep_once(self) -> int:
        """End the orders of one page whose time is over, publish the others again; returns how many there were."""
        now = self._clock()
        orders = await self._orders.due(now, PAGE)
        later = await self._extended([order for order in orders if is_over(order, now)], now)
        over = [order for order in orders if is_over(order, now) and order.order_id not in later]
        unpublished = [order for order in orders if not is_over(order, now)]
        unpublished += [order for order in orders if order.order_id in later and order.unpublished]
        await self._end(over, now)
        await self._publish_again(unpublished)
        return len(orders)

    async def resend(self) -> int:
        """Send the pending commands of some of the orders that have waited too long for an answer.

        Returns how many orders there were. They are postponed only once they are sent: a process without a broker
        leaves them to the others, and its loop waits longer after each failure. Those that only wait for paused
        services are postponed.
        """
        now = self._clock()
        orders = await self._orders.to_resend(now, RESENT_AT_ONCE)
        paused = paused_services(await self._known_pauses(now), now) if orders else ()
        if sent := [order for order in orders if not waits_for_paused_only(order, paused)]:
            await self._outbox.send_commands(sent)
            named = [order.order_id for order in sent[:NAMED_ORDERS]]
            _log.info("sent unanswered commands again", orders=len(sent), order_ids=named)
        await self._orders.schedule_resend([(order, resend_at(order, now, self._timeouts)) for order in orders])
        return len(orders)

    async def _adopt(self) -> None:
        """Find, now and then, the orders of earlier versions, which may run beside this one during an upgrade."""
        now = self._clock()
        if now >= self._adopt_at:
            await self._orders.adopt(now)
            self._adopt_at = now + ADOPT_EVERY * self._timeouts.resend_after

    async def _known_pauses(self, now: datetime) -> Mapping[str, Pauses]:
        return known_pauses(await self._pauses.all(), self._hears_since or now, now)

    async def _extended(self, over: list[Order], now: datetime) -> Collection[str]:
        """Give the orders that wait for what is or was paused their time again; return their ids."""
        if not over:
            return ()
        pauses, timeout = await self._known_pauses(now), self._timeouts.saga_timeout
        later = {
            order.order_id: deadline
            for order in over
            if order.status is Status.PENDING and (deadline := deadline_with(order, pauses, timeout, now)) > now
        }
        await self._orders.extend([(order, later[order.order_id]) for order in over if order.order_id in later])
        if later:
            _log.info("deadlines extended by a pause", orders=len(later), order_ids=[*later][:NAMED_ORDERS])
        return later

    async def _end(self, orders: list[Order], now: datetime) -> None:
        changes = [self._deadline_passed(order, now) for order in orders]
        # Where an answer has carried an order on meanwhile, the answer wins: the order is no longer due, or will be.
        await self._orders.apply(changes)
        current = await self._orders.load(change.after.order_id for change in changes)
        count_changes([c for c in changes if current[c.before.order_id].version == c.version])
        ended = [
            _in_trace(order) for order in current.values() if order.unpublished and order.status is not Status.PENDING
        ]
        for order in ended:
            reason = order.failure_reason
            _log.info("the order's time is over", order_id=order.order_id, status=order.status, reason=reason)
        await self._outbox.publish(ended)

    def _deadline_passed(self, order: Order, now: datetime) -> Change:
        transition = SAGA.advance(order, DeadlinePassed(), now)
        after = after_intent(transition.order, now, self._timeouts)
        return Change(order, after, (transition.entry,) if transition.entry else ())

    async def _publish_again(self, orders: list[Order]) -> None:
        if not orders:
            return
        # Noted as published only afterwards: a process without a broker leaves them to the others.
        await self._outbox.publish_again(orders)
        named = [order.order_id for order in orders[:NAMED_ORDERS]]
        _log.info("published again after a crash or an outage", orders=len(orders), order_ids=named)


def _in_trace(order: Order) -> Order:
    """Return the order with its next messages continuing the trace from the end of its time."""
    name = DeadlinePassed().routing_key
    return replace(order, traceparent=tracing.continued(order.traceparent, name, order.order_id, order.status))

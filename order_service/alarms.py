"""Timers of an order: when it is published again, when its commands are sent again, and when its time is over.

Pure decisions first; `Alarms` at the end is the loop that acts on them.
"""

import asyncio
import random
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from pymongo.errors import PyMongoError

from order_service.metrics import count_steps
from order_service.order import Order, Status
from order_service.orders import Change, Orders
from order_service.outbox import NAMED_ORDERS, Outbox
from order_service.saga import DeadlinePassed, Step, advance, awaits_answer
from shared import tracing
from shared.clock import Clock
from shared.errors import TransientError

PAGE = 500
RESENT_AT_ONCE = 200
"""Most orders whose commands one sweep sends again: after an outage, new orders must get through as well."""
LONGEST_RESEND = 120
"""The longest pause between two repetitions, in multiples of the first.

Repetitions pile up where no answer comes: in the inbox of a service that is down, or as a dead letter each. With pauses
that double up to an hour, an order adds seven in the first hour and one in each hour after it.
"""
ADOPT_EVERY = 10
"""The pause between two looks for orders of earlier versions, in multiples of the first pause of a repetition."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait."""

    saga_timeout: timedelta
    """For stock and payment, before the order is cancelled."""
    failed_hold: timedelta
    """For a decision about a failed order, before its money goes back."""
    republish_after: timedelta
    """For the note that messages are published, before they are published again."""
    resend_after: timedelta
    """For an answer, before its command is sent again."""


def after_message(before: Order, step: Step, now: datetime, patience: Patience) -> Order:
    """Set the timers after a step that a message caused: it comes again if we crash, so nothing is left unpublished."""
    order = step.order
    if order.status is before.status and order.compensating == before.compensating:
        return order if order.unpublished else replace(order, resend_at=resend_at(order, now, patience))
    hold_ends = now + patience.failed_hold if order.status is Status.FAILED and not order.compensating else None
    order = replace(order, unpublished=False, due_at=hold_ends)
    return replace(order, resend_at=resend_at(order, now, patience))


def after_intent(order: Order, now: datetime, patience: Patience) -> Order:
    """Set the timers after a step that no message stands behind: it is published again unless noted as published."""
    return replace(order, unpublished=True, due_at=now + patience.republish_after, resend_at=None)


def resend_at(order: Order, now: datetime, patience: Patience) -> datetime | None:
    """Return when the order's commands are sent again; None if it waits for no answer.

    It waits as long again as it has waited since its last step, within bounds: after 30 s, 1, 2, 4 and so on up to
    64 min, then every hour.
    """
    if not awaits_answer(order):
        return None
    longest = LONGEST_RESEND * patience.resend_after
    return now + min(max(now - order.updated_at, patience.resend_after), longest)


def is_over(order: Order, now: datetime) -> bool:
    """Whether the time that the order's status may last has passed."""
    if order.status is Status.PENDING:
        return now >= order.deadline
    return order.status is Status.FAILED and not order.unpublished


class Alarms:
    """Looks every interval at the orders that are due; any number of order services may do so at once."""

    def __init__(self, orders: Orders, outbox: Outbox, patience: Patience, clock: Clock, interval: float) -> None:
        self._orders = orders
        self._outbox = outbox
        self._patience = patience
        self._clock = clock
        self._interval = interval
        self._adopt_at = clock()

    async def run(self) -> None:
        """Look until cancelled; a server that is away is waited for."""
        while True:
            try:
                while await self.ring() == PAGE:
                    pass
                await self._adopt()
                await self.resend()
            except (TransientError, PyMongoError) as error:
                _log.warning("orders that are due have to wait", error=str(error)[:200])
            except Exception:  # noqa: BLE001 - a fault in one order must not stop the alarms of all
                _log.exception("looking at orders that are due failed")
            # Not in step with other processes, so that they seldom take the same page.
            await asyncio.sleep(self._interval * random.uniform(0.7, 1.3))  # noqa: S311 - no secret

    async def ring(self) -> int:
        """Deal with one page of the orders that are due; returns how many there were."""
        now = self._clock()
        orders = await self._orders.due(now, PAGE)
        over = [order for order in orders if is_over(order, now)]
        owing = [order for order in orders if not is_over(order, now)]
        await self._end(over, now)
        await self._publish_again(owing)
        return len(orders)

    async def resend(self) -> int:
        """Send again, for some of the orders that have waited too long for an answer, what they wait for.

        Returns how many orders there were. They are postponed once they are sent: a process without a broker leaves
        them to the others.
        """
        now = self._clock()
        orders = await self._orders.to_resend(now, RESENT_AT_ONCE)
        if orders:
            named = [order.order_id for order in orders[:NAMED_ORDERS]]
            _log.info("sending again what has not been answered", orders=len(orders), order_ids=named)
            await self._outbox.send_commands(orders)
        await self._orders.schedule_resend([(order, resend_at(order, now, self._patience)) for order in orders])
        return len(orders)

    async def _adopt(self) -> None:
        """Look, now and then, for orders of earlier versions, which may run beside this one during an upgrade."""
        now = self._clock()
        if now >= self._adopt_at:
            await self._orders.adopt(now)
            self._adopt_at = now + ADOPT_EVERY * self._patience.resend_after

    async def _end(self, orders: list[Order], now: datetime) -> None:
        steps = [(order, advance(order, DeadlinePassed(), now)) for order in orders]
        changes = [
            Change(order, after_intent(step.order, now, self._patience), (step.entry,) if step.entry else ())
            for order, step in steps
        ]
        # An order that an answer has carried on meanwhile is left as it is: it is no longer due, or will be again.
        await self._orders.apply(changes)
        current = await self._orders.load(change.after.order_id for change in changes)
        count_steps([c for c in changes if current[c.before.order_id].version == c.stored.version])
        ended = [
            _in_trace(order) for order in current.values() if order.unpublished and order.status is not Status.PENDING
        ]
        for order in ended:
            _log.info("order's time is over", order_id=order.order_id, status=order.status, reason=order.failure_reason)
        await self._outbox.publish(ended)

    async def _publish_again(self, orders: list[Order]) -> None:
        if not orders:
            return
        named = [order.order_id for order in orders[:NAMED_ORDERS]]
        _log.info("publishing what a crash or an outage left behind", orders=len(orders), order_ids=named)
        # Noted after that: a process without a broker leaves them to the others.
        await self._outbox.publish_again(orders)


def _in_trace(order: Order) -> Order:
    """Return the order with what it publishes now put behind the end of its time."""
    name = DeadlinePassed().routing_key
    return replace(order, traceparent=tracing.continued(order.traceparent, name, order.order_id, order.status))

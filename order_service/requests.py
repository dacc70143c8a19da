"""What clients and operators ask of an existing order: cancel, retry, refund."""

from dataclasses import replace

import structlog

from order_service.alarms import Patience, after_intent
from order_service.handlers import ATTEMPTS
from order_service.metrics import count_steps
from order_service.order import Order, Status
from order_service.orders import Change, Orders
from order_service.outbox import Outbox
from order_service.saga import MAX_RUNS, CancelRequested, RefundRequested, RetryRequested, accepts, advance
from shared import tracing
from shared.clock import Clock
from shared.database import Document
from shared.errors import TransientError
from shared.http import conflict, not_found

_log = structlog.get_logger(__name__)

Request = CancelRequested | RetryRequested | RefundRequested


class Requests:
    """Carries requests into orders; the step is stored with what it owes before anything is published."""

    def __init__(self, orders: Orders, outbox: Outbox, patience: Patience, clock: Clock) -> None:
        self._orders = orders
        self._outbox = outbox
        self._patience = patience
        self._clock = clock

    async def carry_out(self, order_id: str, request: Request, verb: str) -> Document:
        """Do what is asked and return the order's document.

        Raises the 404 problem for an unknown order, the 409 problem if its status does not allow it.
        """
        for _ in range(ATTEMPTS):
            order = (await self._orders.load([order_id])).get(order_id)
            if order is None:
                raise not_found(f"Order {order_id}")
            if not accepts(order, request):
                raise conflict(f"Order {order_id} is {_state(order)}: it cannot be {verb}")
            now = self._clock()
            step = advance(order, request, now)
            if step.entry is None and order.unpublished:
                break  # what it repeats is about to be published anyway
            after = after_intent(step.order, now, self._patience)
            change = Change(order, after, (step.entry,) if step.entry else ())
            if await self._orders.apply([change]):
                count_steps([change])
                self._outbox.post(_told(change.stored, request))
                break
        else:
            raise TransientError(f"Order {order_id} is changing too quickly, try again")
        document = await self._orders.document(order_id)
        if document is None:
            raise not_found(f"Order {order_id}")
        return document


def _told(order: Order, request: Request) -> Order:
    """Tell the log and the order's trace of the request; returns the order with what it publishes now put behind it."""
    name = request.routing_key
    _log.info("request carried out", request=name, order_id=order.order_id, status=order.status)
    return replace(order, traceparent=tracing.continued(order.traceparent, name, order.order_id, order.status))


def _state(order: Order) -> str:
    """Say where the order is, so that who is refused sees why: another operator may have been quicker."""
    match order.status:
        case Status.PROVISIONING:
            return f"PROVISIONING, in run {order.provisioning_run}"
        case Status.FAILED if order.settled:
            return "FAILED and compensated"
        case Status.FAILED if order.compensating:
            return "FAILED and being compensated"
        case Status.FAILED if order.provisioning_run >= MAX_RUNS:
            return f"FAILED after {order.provisioning_run} runs, the most that an order may have; it can be refunded"
        case Status.FAILED:
            return "FAILED, for an operator to retry or refund"
        case _:
            return order.status

"""Requests of clients and operators about an existing order: cancel, retry, refund."""

from http import HTTPStatus

import structlog

from order_service.deadlines import Timeouts, after_intent
from order_service.events import DeliveryNoted, Request
from order_service.handlers import ATTEMPTS
from order_service.metrics import count_changes
from order_service.order import Order, Status, replace
from order_service.orders import Change, Orders
from order_service.outbox import Outbox
from order_service.participants import open_part
from order_service.saga import MAX_RUNS, SAGA
from shared import tracing
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.clock import Clock
from shared.database import Document
from shared.errors import TransientError
from shared.http import ProblemError, conflict, not_found
from shared.problems import ORDER_STATE, SECOND_PERSON_NEEDED

_log = structlog.get_logger(__name__)


class OrderActions:
    """Applies requests to orders; each change is stored as unpublished before its messages are sent."""

    def __init__(
        self, orders: Orders, outbox: Outbox, timeouts: Timeouts, clock: Clock, *, approval_amount: int | None = None
    ) -> None:
        self._orders = orders
        self._outbox = outbox
        self._timeouts = timeouts
        self._clock = clock
        self._approval_amount = approval_amount

    async def execute(
        self, order_id: str, request: Request, verb: str, caller: Principal, permission: Permission
    ) -> Document:
        """Apply the request of a caller, who needs the permission, and return the order's document.

        Raises the 404 problem for an order that is unknown or not visible, the 403 problem if it needs a second person,
        the 409 problem if its status does not allow the request.
        """
        visible = caller.visible(permission)
        for _ in range(ATTEMPTS):
            order = (await self._orders.load([order_id], visible)).get(order_id)
            if order is None:
                raise not_found(f"Order {order_id}")
            if not isinstance(request, DeliveryNoted):  # which moves no money
                require_second_person(order, verb, caller, permission, self._approval_amount)
            if not SAGA.accepts(order, request):
                raise conflict(f"Order {order_id} is {_state(order)}: it cannot be {verb}", ORDER_STATE)
            now = self._clock()
            transition = SAGA.advance(order, request, now)
            if transition.entry is None and order.unpublished:
                break  # the messages that it repeats are about to be published anyway
            after = after_intent(transition.order, now, self._timeouts)
            change = Change(order, after, (transition.entry,) if transition.entry else ())
            if await self._orders.apply([change]):
                count_changes([change])
                self._outbox.post(in_trace(change.stored, request))
                break
        else:
            raise TransientError(f"Order {order_id} is changing too quickly, try again")
        document = await self._orders.document(order_id)
        if document is None:
            raise not_found(f"Order {order_id}")
        return document


def require_second_person(
    order: Order, verb: str, caller: Principal, permission: Permission, approval_amount: int | None
) -> None:
    """Raise the 403 problem if staff asks, and not through the console, which has had a second person approve."""
    if approval_amount is None or order.total_amount < approval_amount:
        return
    if caller.reaches_all(permission) and not caller.through_console:
        raise ProblemError(
            HTTPStatus.FORBIDDEN,
            f"Order {order.order_id} can only be {verb} in the console, where a second person approves: its total is "
            "not below ORDERSAGA_APPROVAL_AMOUNT",
            kind=SECOND_PERSON_NEEDED,
        )


def in_trace(order: Order, request: Request) -> Order:
    """Log the request; return the order with its next messages continuing the trace from the request."""
    name = request.routing_key
    _log.info("request applied", request=name, order_id=order.order_id, status=order.status)
    return replace(order, traceparent=tracing.continued(order.traceparent, name, order.order_id, order.status))


def _state(order: Order) -> str:
    """Describe the order's state for a refusal: another operator may have been quicker."""
    match order.status:
        case Status.PROVISIONING:
            return f"PROVISIONING, in run {order.provisioning_run}"
        case Status.FAILED if order.settled:
            return "FAILED and compensated"
        case Status.FAILED if order.compensating:
            return "FAILED and being compensated"
        case Status.CONFIRMED if open_ := open_part(order):
            return f"CONFIRMED, and {open_}"
        case Status.FAILED if order.provisioning_run >= MAX_RUNS:
            return f"FAILED after {order.provisioning_run} runs, the most that an order may have; it can be refunded"
        case Status.FAILED:
            return "FAILED, for an operator to retry or refund"
        case _:
            return order.status

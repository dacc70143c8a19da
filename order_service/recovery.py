"""What is published again for an order after the broker has lost its messages: commands and events. Pure.

The order's record is enough. A participant answers a repeated command from its own record, and whoever listens to
events knows one by what happened and not by its message.
"""

from datetime import datetime

from order_service import refunds
from order_service.order import Order, RefundStatus, Status
from order_service.saga import SAGA, created, news
from order_service.snapshot import snapshot
from shared.contracts import Message, OrderCreated


def is_overdue(order: Order, now: datetime) -> bool:
    """Return whether the order service is about to cancel the order, because its deadline has passed."""
    return order.status is Status.PENDING and now >= order.deadline


def commands(order: Order, now: datetime) -> tuple[Message, ...]:
    """Return the commands that the order waits for answers to; none if it is overdue and would be charged in vain.

    Raises ValueError if the order cannot be put into messages.
    """
    return () if is_overdue(order, now) else SAGA.pending_commands(order)


def events(order: Order, since: datetime) -> tuple[Message, ...]:
    """Return the events since a time that the record still knows: its present status, and what was refunded."""
    status = news(order) if order.entered_at is not None and order.entered_at >= since else ()
    refunded = (
        refunds.news(order, refund).model_copy(update={"order": snapshot(order)})
        for refund in order.refunds
        if refund.status is RefundStatus.REFUNDED and refund.updated_at >= since
    )
    return (*status, *refunded)


def creation(order: Order, since: datetime) -> tuple[OrderCreated, ...]:
    """Return the event that the order was placed, if that was since a time.

    It is a command as well, so it may only be sent to those who merely listen.
    """
    return (created(order),) if order.created_at >= since else ()

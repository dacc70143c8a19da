"""Timers of an order: when it is republished, when its commands are sent again, and when its time is over. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from order_service.order import Order, Status, replace
from order_service.rules import Transition
from order_service.saga import SAGA, enters

LONGEST_RESEND = 120
"""The longest pause between two repetitions, in multiples of the first.

Repetitions pile up where no answer comes: in the inbox of a service that is down, or as a dead letter each. With pauses
that double up to an hour, an order adds seven in the first hour and one in each hour after it.
"""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The times after which an order is acted on without a message or a request."""

    saga_timeout: timedelta
    """Time for all participants to answer, before the order is cancelled."""
    failed_hold: timedelta
    """Time for a decision about a failed order, before its money is returned."""
    republish_after: timedelta
    """Time for the note that messages are published, before they are published again."""
    resend_after: timedelta
    """Time for an answer, before its command is sent again."""


def after_message(before: Order, transition: Transition, now: datetime, timeouts: Timeouts) -> Order:
    """Set the timers after a transition that a message caused.

    The message comes again if the process crashes, so nothing is left unpublished.
    """
    order = transition.order
    if not enters(before, order) and order.compensating == before.compensating:
        return order if order.unpublished else replace(order, resend_at=resend_at(order, now, timeouts))
    hold_ends = now + timeouts.failed_hold if order.status is Status.FAILED and not order.compensating else None
    return replace(order, unpublished=False, due_at=hold_ends, resend_at=resend_at(order, now, timeouts))


def after_intent(order: Order, now: datetime, timeouts: Timeouts) -> Order:
    """Set the timers after a transition without a message: a request, or the end of the status's time.

    The order is published again unless it is noted as published.
    """
    return replace(order, unpublished=True, due_at=now + timeouts.republish_after, resend_at=None)


def after_refund_request(order: Order, now: datetime, timeouts: Timeouts) -> Order:
    """Set the timers after a refund in part was requested, which changes no status.

    Only its command is to be published, not the news of the status again, so the sweep finds it as an unanswered one.
    """
    return order if order.unpublished else replace(order, resend_at=now + timeouts.republish_after)


def resend_at(order: Order, now: datetime, timeouts: Timeouts) -> datetime | None:
    """Return when the order's commands are sent again; None if it waits for no answer.

    Each pause is as long as the order has waited since its last transition, within bounds: after 30 s, 1, 2, 4 and so
    on up to 64 min, then every hour.
    """
    if not SAGA.awaits_answer(order):
        return None
    longest = LONGEST_RESEND * timeouts.resend_after
    return now + min(max(now - order.updated_at, timeouts.resend_after), longest)


def is_over(order: Order, now: datetime) -> bool:
    """Return whether the order has been in its status for as long as it may."""
    if order.status is Status.PENDING:
        return now >= order.deadline
    return order.status is Status.FAILED and not order.unpublished

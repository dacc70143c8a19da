"""What a replay would do with the payment of an order, by the payment service's own decisions. Pure.

What the bank or a retainer's balance decides is only known when it is asked; what is decided already is repeated.
"""

from datetime import datetime

from operations.dead_letters.effects import Effect, Preview, Unreadable, arrow
from order_service.participants import PAYMENT
from payment_service.lifecycle import (
    HOLDS_MONEY,
    NextAction,
    Payment,
    PaymentStatus,
    capture_answer,
    card_payment,
    charge_answer,
    next_action,
    refund_answer,
    tombstone,
)
from shared.contracts import CapturePayment, Message, OrderCreated, OrderMessage
from shared.errors import PoisonError

Payments = dict[str, Payment | Unreadable]
"""Payments by order."""


def preview_payment(message: OrderMessage, payments: Payments, now: datetime) -> Preview:
    """Return what the payment service would do with a message, and change the payments as it would."""
    recorded = payments.get(message.order_id)
    if isinstance(recorded, Unreadable):
        return Preview(Effect.UNKNOWN, recorded.why)
    if isinstance(message, OrderCreated):
        return _charge(message, recorded, payments, now)
    if isinstance(message, PAYMENT.undo_type):
        return _refund(message, recorded, payments, now)
    return _capture(message, recorded) if isinstance(message, CapturePayment) else _unknown(message)


def _charge(order: OrderCreated, recorded: Payment | None, payments: Payments, now: datetime) -> Preview:
    by_card = order.payment.method == "card"
    if recorded is None:
        return _record(card_payment(order, now), payments) if by_card and not order.total_amount else _unknown(order)
    is_decided = recorded.status is not PaymentStatus.PENDING and not recorded.refund_requested
    if is_decided or (by_card and next_action(recorded) not in (NextAction.CHARGE, NextAction.REFUND)):
        return _nothing(recorded, charge_answer(recorded))
    return _unknown(order)


def _refund(command: OrderMessage, recorded: Payment | None, payments: Payments, now: datetime) -> Preview:
    if recorded is None:
        return _record(tombstone(command.order_id, now), payments)
    is_undecided = recorded.status is PaymentStatus.PENDING and not recorded.refund_requested
    if recorded.status in HOLDS_MONEY or is_undecided:
        return _unknown(command)
    return _nothing(recorded, refund_answer(recorded))


def _capture(command: CapturePayment, recorded: Payment | None) -> Preview:
    if recorded is None:
        why = f"{command.routing_key} for order {command.order_id}, which has no payment"
        return Preview(Effect.FAILS, f"{PoisonError.__name__}: {why}")
    if recorded.status is PaymentStatus.AUTHORIZED and not recorded.refund_requested:
        return _unknown(command)
    return _nothing(recorded, capture_answer(recorded))


def _record(after: Payment, payments: Payments) -> Preview:
    payments[after.order_id] = after
    sent = charge_answer(after)
    return Preview(Effect.CHANGES, arrow("payment ", None, after.status.value), sends=_sends(sent))


def _nothing(recorded: Payment, sent: Message | None) -> Preview:
    return Preview(Effect.NOTHING, f"payment {recorded.status.value}", sends=_sends(sent))


def _sends(answer: Message | None) -> tuple[str, ...]:
    return () if answer is None else (answer.routing_key,)


def _unknown(message: OrderMessage) -> Preview:
    why = "what it comes to is known when the money is asked for"
    return Preview(Effect.UNKNOWN, f"{message.routing_key} can be read; {why}")

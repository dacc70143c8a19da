"""Refunds in part of a payment: the decision whether one is possible, and its answer. Pure, without I/O.

    PENDING ──returned──▶ REFUNDED
       └──refused──▶ FAILED

A part is recorded with its payment before the gateway is called, and PENDING parts count as returned: the sum of all is
never more than was paid. A refund of the whole payment returns what the parts have left.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from payment_service.gateways.port import OutcomeUnknown, Refunded, RefundRefused
from payment_service.lifecycle import Part, PartStatus, Payment, PaymentStatus
from shared.contracts import Message, PartRefunded, PartRefundFailed, RefundPart
from shared.money import to_json_number


def find(payment: Payment, refund_id: str) -> Part | None:
    """Return a part of the payment, None if there is no such part."""
    return next((part for part in payment.parts if part.refund_id == refund_id), None)


def returned(payment: Payment) -> int:
    """Return the amount that was returned in parts."""
    return sum(part.amount for part in payment.parts if part.status is PartStatus.REFUNDED)


def left(payment: Payment) -> int:
    """Return the amount that no part asks for."""
    return (payment.amount or 0) - sum(p.amount for p in payment.parts if p.status is not PartStatus.FAILED)


def decide(payment: Payment, request: RefundPart, now: datetime) -> Part:
    """Decide on a new part: PENDING if the payment holds that much, else FAILED."""
    part = Part(
        refund_id=request.refund_id,
        amount=request.amount,
        status=PartStatus.PENDING,
        created_at=now,
        updated_at=now,
    )
    reason = _refusal(payment, request)
    return replace(part, status=PartStatus.FAILED, failure_reason=reason) if reason else part


def after_refund(part: Part, outcome: Refunded | RefundRefused | OutcomeUnknown, now: datetime) -> Part:
    """Apply the gateway's outcome to a part; without one it stays PENDING."""
    match outcome:
        case Refunded():
            return replace(part, status=PartStatus.REFUNDED, updated_at=now)
        case RefundRefused(reason):
            return replace(part, status=PartStatus.FAILED, failure_reason=reason, updated_at=now)
        case OutcomeUnknown():
            return part


def answers(order_id: str, parts: Iterable[Part]) -> list[Message]:
    """Return the answers to `payment.refund_part`; there is none while the outcome is unknown."""
    return [answer for part in parts if (answer := _answer(order_id, part))]


def _refusal(payment: Payment, request: RefundPart) -> str | None:
    if payment.status is not PaymentStatus.PROCESSED or payment.refund_requested:
        status = "being refunded" if payment.refund_requested else payment.status
        return f"The payment is {status}: no part of it can be returned"
    if request.amount > left(payment):
        available, asked = (
            f"{to_json_number(amount)} {payment.currency}" for amount in (left(payment), request.amount)
        )
        return f"{available} of the payment is left, not {asked}"
    return None


def _answer(order_id: str, part: Part) -> Message | None:
    match part.status:
        case PartStatus.PENDING:
            return None
        case PartStatus.REFUNDED:
            return PartRefunded(order_id=order_id, refund_id=part.refund_id)
        case PartStatus.FAILED:
            return PartRefundFailed(order_id=order_id, refund_id=part.refund_id, reason=part.failure_reason or "")

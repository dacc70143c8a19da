"""The life cycle of a payment: its states, the transitions between them, and the answers; pure, without I/O.

    PENDING ──charged──▶ PROCESSED ──refund──▶ REFUNDED
       │                     ▲
       ├──authorised──▶ AUTHORIZED ──refund──▶ VOIDED
       │                  captured
       ├──declined──▶ FAILED
       └──refund requested before the outcome is known──▶ REFUNDED, or VOIDED if nothing was charged

    (no record) ──refund──▶ VOIDED, the tombstone that stops a late order

If the gateway does not report an outcome, the payment keeps its state and gets a `next_lookup_at`. From then on the
record drives the work, not the message. Answers depend on the record alone, so a repeated message gets the same answer.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, StrEnum, auto

from payment_service.gateways.port import (
    Authorized,
    CaptureRefused,
    Charged,
    ChargeRequest,
    Declined,
    NothingCharged,
    OutcomeUnknown,
    Refunded,
)
from payment_service.refusals import code_of_capture, code_of_charge
from shared.contracts import (
    Message,
    OrderCreated,
    PaymentCaptured,
    PaymentCaptureFailed,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
)

FREE = "no-charge"
"""The transaction id of an order that costs nothing; such an order never reaches the gateway."""

LOOKUP_DELAYS = tuple(timedelta(seconds=seconds) for seconds in (1, 2, 5, 30))
"""Delays before each look-up of an unknown outcome; the last one repeats."""

TAKEOVER_DELAY = timedelta(seconds=5)
"""The time that a refund leaves to the worker that is still charging, before the reconciler takes over."""


class PaymentStatus(StrEnum):
    """The state of a payment."""

    PENDING = "PENDING"
    AUTHORIZED = "AUTHORIZED"
    PROCESSED = "PROCESSED"
    FAILED = "FAILED"
    VOIDED = "VOIDED"
    REFUNDED = "REFUNDED"


HOLDS_MONEY = (PaymentStatus.AUTHORIZED, PaymentStatus.PROCESSED)
"""The states in which money is certainly held, on the card or by us."""

# The OpenAPI document names its schema after these attributes, and that name is part of the API.
PaymentStatus.__name__ = PaymentStatus.__qualname__ = "Status"


class PartStatus(StrEnum):
    """The state of a refund in part."""

    PENDING = "PENDING"
    REFUNDED = "REFUNDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A refund in part, see parts.py; `amount` is in minor units, `entry_id` the journal entry if to a retainer."""

    refund_id: str
    amount: int
    status: PartStatus
    created_at: datetime
    updated_at: datetime
    failure_reason: str | None = None
    entry_id: str | None = None


class NextAction(Enum):
    """The next action that a payment needs before it can be answered."""

    CHARGE = auto()
    CAPTURE = auto()
    REFUND = auto()
    LOOK_UP = auto()
    REFUND_PARTS = auto()
    NONE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """The payment of one order; `amount` is in minor units. A tombstone has neither an amount nor a user.

    With a `retainer_id` the order is paid from that retainer and `transaction_id` is the journal entry; without one it
    is paid by card. With `capture_on_confirm` a card is only authorised, and charged when the order is fulfilled; a
    capture of unknown outcome is noted as `capture_requested`, one that was refused leaves its `failure_reason`.
    `traceparent` lets later messages about the payment continue the order's trace.
    """

    order_id: str
    status: PaymentStatus
    created_at: datetime
    updated_at: datetime
    user_id: str | None = None
    amount: int | None = None
    currency: str | None = None
    token: str | None = None
    retainer_id: str | None = None
    transaction_id: str | None = None
    failure_reason: str | None = None
    refund_requested: bool = False
    next_lookup_at: datetime | None = None
    lookups: int = 0
    unpublished: bool = False
    traceparent: str | None = None
    owner_id: str | None = None
    capture_on_confirm: bool = False
    capture_requested: bool = False
    parts: tuple[Part, ...] = ()
    parts_version: int = 0
    """Counts the parts ever added, so that a part is only added to the payment that it was decided on."""

    def charge_request(self) -> ChargeRequest:
        """Build the request for the gateway; the order id is the idempotency key."""
        return ChargeRequest(
            self.order_id,
            self.amount or 0,
            self.currency or "",
            self.token,
            self.created_at,
            capture=not self.capture_on_confirm,
        )


def card_payment(order: OrderCreated, now: datetime, *, capture_on_confirm: bool = False) -> Payment:
    """Create the payment of an order by card; an order that costs nothing is processed at once."""
    payment = Payment(
        order_id=order.order_id,
        status=PaymentStatus.PENDING,
        created_at=now,
        updated_at=now,
        user_id=order.user_id,
        owner_id=order.owner_id,
        amount=order.total_amount,
        currency=order.currency,
        token=order.payment.token,
    )
    if order.total_amount == 0:
        return replace(payment, status=PaymentStatus.PROCESSED, transaction_id=FREE)
    return replace(payment, capture_on_confirm=capture_on_confirm)


def tombstone(order_id: str, now: datetime) -> Payment:
    """Create the record of a refund that overtook its order: the order will never be charged."""
    return Payment(
        order_id=order_id, status=PaymentStatus.VOIDED, created_at=now, updated_at=now, refund_requested=True
    )


def next_action(payment: Payment) -> NextAction:
    """Return the next action that the payment needs."""
    # A refund of unknown outcome has a look-up scheduled, whatever the status of the payment.
    may_hold = payment.next_lookup_at or payment.status in (PaymentStatus.PENDING, *HOLDS_MONEY)
    if payment.refund_requested and may_hold:
        return NextAction.REFUND
    if payment.status is PaymentStatus.AUTHORIZED and payment.next_lookup_at and payment.capture_requested:
        return NextAction.CAPTURE
    if payment.status is not PaymentStatus.PENDING:
        undecided = payment.next_lookup_at and any(part.status is PartStatus.PENDING for part in payment.parts)
        return NextAction.REFUND_PARTS if undecided else NextAction.NONE
    return NextAction.LOOK_UP if payment.next_lookup_at else NextAction.CHARGE


ChargeOutcome = Charged | Authorized | Declined | OutcomeUnknown


def after_charge(payment: Payment, outcome: ChargeOutcome, now: datetime) -> Payment:
    """Apply the outcome of a charge to the payment."""
    match outcome:
        case Authorized(charge_id):
            return _decided(payment, now, PaymentStatus.AUTHORIZED, transaction_id=charge_id)
        case Charged(charge_id):
            return _decided(payment, now, PaymentStatus.PROCESSED, transaction_id=charge_id)
        case Declined(reason):
            return _decided(payment, now, PaymentStatus.FAILED, failure_reason=reason)
        case OutcomeUnknown():
            return with_next_lookup(payment, now)


def after_capture(payment: Payment, outcome: Charged | CaptureRefused | OutcomeUnknown, now: datetime) -> Payment:
    """Apply the outcome of a capture to the payment: a refused one stays AUTHORIZED, with the reason."""
    match outcome:
        case Charged(charge_id):
            return _decided(payment, now, PaymentStatus.PROCESSED, transaction_id=charge_id)
        case CaptureRefused(reason):
            return _decided(payment, now, payment.status, transaction_id=payment.transaction_id, failure_reason=reason)
        case OutcomeUnknown():
            return replace(with_next_lookup(payment, now), capture_requested=True)


def must_refund(payment: Payment, outcome: ChargeOutcome) -> bool:
    """Return whether a charge with this outcome must be refunded, given the payment as recorded now."""
    if payment.status is PaymentStatus.PENDING:
        return payment.refund_requested
    # The record has been decided without this charge.
    return isinstance(outcome, Charged | Authorized) and payment.status in (PaymentStatus.VOIDED, PaymentStatus.FAILED)


def after_refund(payment: Payment, outcome: Refunded | NothingCharged | OutcomeUnknown, now: datetime) -> Payment:
    """Apply the outcome of a refund to the payment."""
    match outcome:
        case Refunded(charge_id):
            return _decided(payment, now, PaymentStatus.REFUNDED, transaction_id=charge_id)
        case NothingCharged(reason) if payment.status is PaymentStatus.PENDING and reason is not None:
            return _decided(payment, now, PaymentStatus.FAILED, failure_reason=reason)
        case NothingCharged() if payment.status in (PaymentStatus.PENDING, *HOLDS_MONEY):
            return _decided(payment, now, PaymentStatus.VOIDED)
        case NothingCharged():
            return replace(payment, next_lookup_at=None, updated_at=now)
        case OutcomeUnknown():
            return replace(with_next_lookup(payment, now), refund_requested=True)


def with_refund_requested(payment: Payment, now: datetime) -> Payment:
    """Mark a payment whose charge or capture may be in flight; the worker that learns of a charge refunds it."""
    takeover = now + TAKEOVER_DELAY
    due = min(payment.next_lookup_at, takeover) if payment.next_lookup_at else takeover
    return replace(payment, refund_requested=True, next_lookup_at=due, updated_at=now)


def with_next_lookup(payment: Payment, now: datetime) -> Payment:
    """Schedule the next look-up of the payment, with a longer delay each time; one already scheduled keeps its time."""
    if payment.next_lookup_at and payment.next_lookup_at > now:
        return replace(payment, updated_at=now)
    delay = LOOKUP_DELAYS[min(payment.lookups, len(LOOKUP_DELAYS) - 1)]
    return replace(payment, next_lookup_at=now + delay, lookups=payment.lookups + 1, updated_at=now)


def _decided(
    payment: Payment,
    now: datetime,
    status: PaymentStatus,
    *,
    transaction_id: str | None = None,
    failure_reason: str | None = None,
) -> Payment:
    return replace(
        payment,
        status=status,
        transaction_id=transaction_id,
        failure_reason=failure_reason,
        capture_requested=False,
        next_lookup_at=None,
        lookups=0,
        updated_at=now,
    )


def charge_answer(payment: Payment) -> Message | None:
    """Return the answer to `order.created`, or None while the outcome is unknown.

    A refund that was requested while the charge was in flight has not been answered yet, so it is answered here.
    """
    if payment.refund_requested or payment.status in (PaymentStatus.VOIDED, PaymentStatus.REFUNDED):
        return refund_answer(payment)
    if payment.status is PaymentStatus.AUTHORIZED:
        return PaymentProcessed(
            order_id=payment.order_id, status="AUTHORIZED", transaction_id=payment.transaction_id or FREE
        )
    if payment.status is PaymentStatus.PROCESSED:
        return PaymentProcessed(order_id=payment.order_id, transaction_id=payment.transaction_id or FREE)
    if payment.status is PaymentStatus.FAILED:
        reason = payment.failure_reason or ""
        code = code_of_charge(reason, by_card=payment.retainer_id is None)
        return PaymentFailed(order_id=payment.order_id, reason=reason, code=code)
    return None


def capture_answer(payment: Payment) -> Message | None:
    """Return the answer to `payment.capture`, or None while the outcome is unknown.

    Of a payment that is being refunded, or was, the refund is the answer.
    """
    if payment.refund_requested or payment.status in (PaymentStatus.VOIDED, PaymentStatus.REFUNDED):
        return refund_answer(payment)
    if payment.status is PaymentStatus.PROCESSED:
        return PaymentCaptured(order_id=payment.order_id)
    if payment.failure_reason and not payment.next_lookup_at:
        reason = payment.failure_reason
        return PaymentCaptureFailed(order_id=payment.order_id, reason=reason, code=code_of_capture(reason))
    return None


def refund_answer(payment: Payment) -> Message | None:
    """Return the answer to `payment.refund`, or None while money may still be held."""
    if payment.refund_requested and payment.next_lookup_at:
        return None
    if payment.status is PaymentStatus.REFUNDED:
        return PaymentRefunded(order_id=payment.order_id, status="REFUNDED")
    if payment.status in (PaymentStatus.VOIDED, PaymentStatus.FAILED):
        return PaymentRefunded(order_id=payment.order_id, status="VOIDED")
    return None


def mark_unpublished(before: Payment, after: Payment) -> Payment:
    """Mark `after` as unpublished if the transition from `before` produced an answer."""
    answer = charge_answer(after)
    return replace(after, unpublished=True) if answer and answer != charge_answer(before) else after

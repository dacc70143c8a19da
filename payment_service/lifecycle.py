"""The life of a payment: its states and what follows in each; pure, without I/O.

    PENDING ──charged──▶ PROCESSED ──refund──▶ REFUNDED
       │  │                                       ▲
       │  └──refund asked for while charging──────┘  by whoever learns the outcome
       │  └──refund asked for, never charged─▶ VOIDED
       └──declined─▶ FAILED

    (no record) ──refund──▶ VOIDED, the tombstone that a late order runs into

A payment whose outcome the gateway did not tell keeps its state and carries `next_lookup_at`: from then on the record
is the work, not the message. Answers follow from the record alone, so that repeating a message repeats its answer.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, StrEnum, auto

from payment_service.gateways.port import Charged, ChargeRequest, Declined, NothingCharged, OutcomeUnknown, Refunded
from shared.contracts import Message, OrderCreated, PaymentFailed, PaymentProcessed, PaymentRefunded

FREE = "no-charge"
"""The transaction id of an order that costs nothing: it is processed without asking the gateway."""

LOOKUP_DELAYS = tuple(timedelta(seconds=seconds) for seconds in (1, 2, 5, 30))
"""Pauses before an unknown outcome is looked up; the last one repeats."""

TAKEOVER_DELAY = timedelta(seconds=5)
"""How long a refund leaves a charge in flight to whoever is charging, before the look-up takes it over."""


class PaymentStatus(StrEnum):
    """The state of a payment."""

    PENDING = "PENDING"
    PROCESSED = "PROCESSED"
    FAILED = "FAILED"
    VOIDED = "VOIDED"
    REFUNDED = "REFUNDED"


# OpenAPI documents call the schema by these, and its name there is part of the API.
PaymentStatus.__name__ = PaymentStatus.__qualname__ = "Status"


class NextAction(Enum):
    """What a payment needs next."""

    CHARGE = auto()
    REFUND = auto()
    LOOK_UP = auto()
    NONE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """One order's payment; `amount` is in minor units, and unknown (as is the user) in a tombstone.

    With `retainer_id` it is paid from a retainer, and decided from the first record on; `transaction_id` is then the
    entry in the books. Without, it is paid by card. `traceparent` is where what is said about it
    later continues its order's trace.
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

    def charge_request(self) -> ChargeRequest:
        """What the gateway is asked for; the order id is the idempotency key."""
        return ChargeRequest(self.order_id, self.amount or 0, self.currency or "", self.token, self.created_at)


def card_payment(order: OrderCreated, now: datetime) -> Payment:
    """Return the first record of a card payment; it is decided already if no gateway is needed for that."""
    payment = Payment(
        order_id=order.order_id,
        status=PaymentStatus.PENDING,
        created_at=now,
        updated_at=now,
        user_id=order.user_id,
        amount=order.total_amount,
        currency=order.currency,
        token=order.payment.token,
    )
    if order.total_amount == 0:
        return replace(payment, status=PaymentStatus.PROCESSED, transaction_id=FREE)
    return payment


def tombstone(order_id: str, now: datetime) -> Payment:
    """Return the record that a refund leaves when it overtakes its order: nothing will ever be charged."""
    return Payment(
        order_id=order_id, status=PaymentStatus.VOIDED, created_at=now, updated_at=now, refund_requested=True
    )


def next_action(payment: Payment) -> NextAction:
    """Say what has to be done before the payment can answer."""
    held = payment.status in (PaymentStatus.PENDING, PaymentStatus.PROCESSED)
    if payment.refund_requested and (held or payment.next_lookup_at):
        return NextAction.REFUND
    if payment.status is not PaymentStatus.PENDING:
        return NextAction.NONE
    return NextAction.LOOK_UP if payment.next_lookup_at else NextAction.CHARGE


def after_charge(payment: Payment, outcome: Charged | Declined | OutcomeUnknown, now: datetime) -> Payment:
    """Return the payment as it is to be recorded once the gateway has, or has not, answered a charge."""
    match outcome:
        case Charged(charge_id):
            return _decided(payment, now, PaymentStatus.PROCESSED, transaction_id=charge_id)
        case Declined(reason):
            return _decided(payment, now, PaymentStatus.FAILED, failure_reason=reason)
        case OutcomeUnknown():
            return with_next_lookup(payment, now)


def must_refund(payment: Payment, outcome: Charged | Declined | OutcomeUnknown) -> bool:
    """Whether a charge that ended so has to be returned, given the payment as it is recorded by now."""
    if payment.status is PaymentStatus.PENDING:
        return payment.refund_requested
    return isinstance(outcome, Charged) and payment.status in (PaymentStatus.VOIDED, PaymentStatus.FAILED)


def after_refund(payment: Payment, outcome: Refunded | NothingCharged | OutcomeUnknown, now: datetime) -> Payment:
    """Return the payment as it is to be recorded once the gateway has, or has not, answered a refund."""
    match outcome:
        case Refunded(charge_id):
            return _decided(payment, now, PaymentStatus.REFUNDED, transaction_id=charge_id)
        case NothingCharged(reason) if payment.status is PaymentStatus.PENDING and reason is not None:
            return _decided(payment, now, PaymentStatus.FAILED, failure_reason=reason)
        case NothingCharged() if payment.status in (PaymentStatus.PENDING, PaymentStatus.PROCESSED):
            return _decided(payment, now, PaymentStatus.VOIDED)
        case NothingCharged():
            return replace(payment, next_lookup_at=None, updated_at=now)
        case OutcomeUnknown():
            return replace(with_next_lookup(payment, now), refund_requested=True)


def with_refund_requested(payment: Payment, now: datetime) -> Payment:
    """Return a payment whose charge is in flight with the mark that has whoever learns the outcome return it."""
    takeover = now + TAKEOVER_DELAY
    due = min(payment.next_lookup_at, takeover) if payment.next_lookup_at else takeover
    return replace(payment, refund_requested=True, next_lookup_at=due, updated_at=now)


def with_next_lookup(payment: Payment, now: datetime) -> Payment:
    """Return the payment with its next look-up, later each time."""
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
        next_lookup_at=None,
        updated_at=now,
    )


def charge_answer(payment: Payment) -> Message | None:
    """The answer to `order.created`, None while the outcome is not known.

    A refund that was asked for while the charge was in flight got no answer of its own then, so it is answered here.
    """
    if payment.refund_requested or payment.status in (PaymentStatus.VOIDED, PaymentStatus.REFUNDED):
        return refund_answer(payment)
    if payment.status is PaymentStatus.PROCESSED:
        return PaymentProcessed(order_id=payment.order_id, transaction_id=payment.transaction_id or FREE)
    if payment.status is PaymentStatus.FAILED:
        return PaymentFailed(order_id=payment.order_id, reason=payment.failure_reason or "")
    return None


def refund_answer(payment: Payment) -> Message | None:
    """The answer to `payment.refund`, None while money may still be held."""
    if payment.refund_requested and payment.next_lookup_at:
        return None
    if payment.status is PaymentStatus.REFUNDED:
        return PaymentRefunded(order_id=payment.order_id, status="REFUNDED")
    if payment.status in (PaymentStatus.VOIDED, PaymentStatus.FAILED):
        return PaymentRefunded(order_id=payment.order_id, status="VOIDED")
    return None


def mark_unpublished(before: Payment, after: Payment) -> Payment:
    """Return `after` with the mark that its answer is to be published, if the step from `before` gave it one."""
    answer = charge_answer(after)
    return replace(after, unpublished=True) if answer and answer != charge_answer(before) else after

"""The meaning of Stripe's answers and the conversion of amounts; pure, without I/O.

A PaymentIntent gets its card when it is created, and is confirmed once, without naming a card again:

    requires_confirmation ──confirm──▶ succeeded                 Charged
       │                    └────────▶ requires_capture          Authorized; captured: succeeded, voided: canceled
       │                    └────────▶ requires_payment_method   Declined: Stripe has detached the card
       │                    └────────▶ requires_action ──cancel──┐
       └──cancel──▶ canceled                                     │  Declined
                       ▲─────────────────────────────────────────┘
"""

import stripe

from payment_service.gateways.port import (
    Authorized,
    CaptureRefused,
    Charged,
    Declined,
    GatewayKeyReusedError,
    GatewayMisconfiguredError,
    GatewayTimeoutError,
    NothingCharged,
    Refunded,
    RefundRefused,
)
from payment_service.refusals import CARD_UNUSABLE, CLOSED, DECLINED, EXPIRED, NEEDS_CARDHOLDER
from shared.errors import RefusalError

NOTHING_AUTHORIZED = "Nothing was authorised"

ABANDONED = "abandoned"
"""The cancellation reason of an intent whose card asks for its holder's authentication."""
REQUESTED = "requested_by_customer"
"""The cancellation reason of an intent that is refunded before it is confirmed."""

BY_EXPIRY = ("automatic", "expired")
"""The cancellation reasons of an intent that Stripe cancels because its authorisation has expired
(https://docs.stripe.com/api/payment_intents/object#payment_intent_object-cancellation_reason)."""

UNEXPECTED_STATE = "payment_intent_unexpected_state"
ALREADY_REFUNDED = "charge_already_refunded"
EXPIRY_CODES = ("capture_charge_authorization_expired", "charge_expired_for_capture")
"""The codes with which Stripe refuses to capture an expired authorisation (https://docs.stripe.com/error-codes)."""

ZERO_DECIMAL = frozenset(
    ["BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF"]
)
"""Currencies that Stripe counts in whole units (https://docs.stripe.com/currencies#zero-decimal)."""
THREE_DECIMAL = frozenset(["BHD", "JOD", "KWD", "OMR", "TND"])
"""Currencies that Stripe counts in thousandths, the last digit always 0 (#three-decimal on that page)."""
WHOLE_ONLY = frozenset({"ISK"})
"""Counted in hundredths, but only whole units are accepted (#special-cases on that page)."""
REFUSED = frozenset({"UGX"})
"""The page lists these both with and without decimals, and a wrong guess would be off by a factor of a hundred."""

_REASON_LIMIT = 200
_USED = "may not be used again"
"""In the error for a single-use PaymentMethod, which has neither a code nor a parameter."""
_AMOUNT_CODES = frozenset(
    {"amount_too_small", "amount_too_large", "invalid_charge_amount", "invalid_charge_amount_no_decimal_compatible"}
)


class AmountRefusedError(RefusalError):
    """The amount cannot be expressed in Stripe's unit; the text is for the customer."""


def stripe_amount(amount: int, currency: str) -> int:
    """Convert hundredths of a currency to Stripe's unit for it.

    Raises AmountRefusedError if the result would not be exactly the same amount.
    """
    if currency in REFUSED:
        raise AmountRefusedError(f"Cards cannot be charged in {currency}")
    if currency in THREE_DECIMAL:
        return amount * 10
    if currency not in ZERO_DECIMAL | WHOLE_ONLY:
        return amount
    if amount % 100:
        raise AmountRefusedError(f"An amount in {currency} has no decimals")
    return amount if currency in WHOLE_ONLY else amount // 100


def charge_outcome(intent: stripe.PaymentIntent) -> Charged | Authorized | Declined | None:
    """Return the outcome of a charge, None if it was never confirmed; a refunded charge counts as declined.

    Raises GatewayTimeoutError while Stripe itself has no outcome.
    """
    match intent.status:
        case "succeeded":
            return Declined(CLOSED) if is_refunded(intent) else Charged(intent.id)
        case "requires_capture":
            return Authorized(intent.id)
        case "requires_confirmation":
            return None
        case "requires_payment_method":
            failure = intent.last_payment_error
            return Declined(_reason(failure.message if failure else None))
        case "canceled":
            return Declined(NEEDS_CARDHOLDER if intent.cancellation_reason == ABANDONED else CLOSED)
        case unsettled:
            raise GatewayTimeoutError(f"the payment intent is in state {unsettled}")


def capture_outcome(intent: stripe.PaymentIntent, refused_as: str | None = None) -> Charged | CaptureRefused:
    """Return the outcome of a capture; `refused_as` is the code of Stripe's refusal, without Stripe's own text.

    Raises GatewayTimeoutError while Stripe itself has no outcome.
    """
    match intent.status:
        case "succeeded":
            return CaptureRefused(CLOSED) if is_refunded(intent) else Charged(intent.id)
        case "canceled":
            return CaptureRefused(EXPIRED if intent.cancellation_reason in BY_EXPIRY else CLOSED)
        case "requires_capture" if refused_as:
            return CaptureRefused(
                EXPIRED if refused_as in EXPIRY_CODES else f"Stripe refused the capture: {refused_as}"
            )
        case "requires_payment_method" | "requires_confirmation":
            return CaptureRefused(NOTHING_AUTHORIZED)
        case unsettled:
            raise GatewayTimeoutError(f"the payment intent is in state {unsettled}")


def is_refunded(intent: stripe.PaymentIntent) -> bool:
    """Return whether the whole charge was refunded; known only if the intent was retrieved with `latest_charge`."""
    charge = intent.latest_charge
    return isinstance(charge, stripe.Charge) and charge.refunded


def holds_money(intent: stripe.PaymentIntent) -> bool:
    """Return whether an intent, retrieved with `latest_charge`, has money that was not returned as a whole."""
    return intent.status in ("succeeded", "requires_capture") and not is_refunded(intent)


def nothing_charged(declined: Declined) -> NothingCharged:
    """Convert a decline to the outcome of a refund; a key that a refund has closed has no reason."""
    return NothingCharged(None if declined.reason == CLOSED else declined.reason)


def part_outcome(refund: stripe.Refund, intent_id: str) -> Refunded | RefundRefused:
    """Return the outcome of a refund in part; one that is pending at the bank counts as made, as Stripe counts it."""
    if refund.status in ("failed", "canceled"):
        why = getattr(refund, "failure_reason", None)
        return RefundRefused(f"Stripe could not refund: {why or refund.status}")
    return Refunded(intent_id)


def refusal_reason(error: stripe.InvalidRequestError) -> str:
    """Return why Stripe refuses a refund, without Stripe's own text: it may contain a secret."""
    if error.code == ALREADY_REFUNDED:
        return "The charge has been refunded already"
    return f"Stripe refused the refund: {error.code or error.param or 'more than is left of the charge'}"


def decline_reason(error: stripe.StripeError) -> str | None:
    """Return the customer's reason if the error concerns the card or the amount, else None.

    Stripe's own text is used only where it cannot contain the card's token.
    """
    match error:
        case stripe.CardError():
            return _reason(error.user_message)
        case stripe.InvalidRequestError() if error.param == "payment_method" or _USED in (error.user_message or ""):
            return CARD_UNUSABLE
        case stripe.InvalidRequestError() if error.param in ("amount", "currency") or error.code in _AMOUNT_CODES:
            return _reason(error.user_message)
    return None


def translate_error(error: stripe.StripeError) -> Exception:
    """Translate an error that does not concern card or amount, without Stripe's text: it may contain a secret."""
    summary = f"Stripe: {type(error).__name__}, HTTP status {error.http_status}, code {error.code}"
    match error:
        case stripe.IdempotencyError():
            return GatewayKeyReusedError(f"{summary}: the key was used for another charge")
        case stripe.APIConnectionError() | stripe.RateLimitError() | stripe.APIError():
            return GatewayTimeoutError(summary)
    return GatewayMisconfiguredError(summary)


def is_stored_failure(error: stripe.APIError) -> bool:
    """Return whether Stripe has stored this failure and repeats it, for a day, under the same idempotency key."""
    return (error.http_status or 0) >= 500 and (error.headers or {}).get("idempotent-replayed") == "true"


def _reason(message: str | None) -> str:
    return " ".join(message.split())[:_REASON_LIMIT] if message else DECLINED

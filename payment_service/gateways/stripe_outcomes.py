"""What Stripe's answers mean for us, and what amounts it is told; pure, without I/O.

A PaymentIntent of ours gets its card when it is created and is confirmed once, without naming a card again:

    requires_confirmation ──confirm──▶ succeeded                 Charged
       │                    └────────▶ requires_payment_method   Declined: the card is gone, nothing can be confirmed
       │                    └────────▶ requires_action ──cancel──┐
       └──cancel──▶ canceled                                     │  Declined
                       ▲─────────────────────────────────────────┘
"""

import stripe

from payment_service.gateways.port import (
    Charged,
    Declined,
    GatewayMisconfiguredError,
    GatewayTimeoutError,
    KeyReusedError,
    NothingCharged,
)

DECLINED = "The card was declined"
CLOSED = "The payment was cancelled"
NO_CARD = "The order names no card to charge"
CARD_UNUSABLE = "The card cannot be charged: it is unknown or was used before"
NEEDS_CARDHOLDER = "The card asks for its holder's authentication, which an order cannot wait for"

ABANDONED = "abandoned"
"""The cancellation reason of an intent whose card asks for its holder."""
REQUESTED = "requested_by_customer"
"""The cancellation reason of an intent that was refunded before it was confirmed."""

UNEXPECTED_STATE = "payment_intent_unexpected_state"
ALREADY_REFUNDED = "charge_already_refunded"

ZERO_DECIMAL = frozenset(
    ["BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF"]
)
"""Currencies that Stripe counts in whole units (https://docs.stripe.com/currencies#zero-decimal)."""
THREE_DECIMAL = frozenset(["BHD", "JOD", "KWD", "OMR", "TND"])
"""Currencies that Stripe counts in thousandths, the last digit always 0 (#three-decimal on that page)."""
WHOLE_ONLY = frozenset({"ISK"})
"""Counted in hundredths, but only whole units are taken (#special-cases on that page)."""
REFUSED = frozenset({"UGX"})
"""That page lists it both with and without decimals: a wrong guess would be wrong by a factor of a hundred."""

_REASON_LIMIT = 200
_USED = "may not be used again"
"""Of a PaymentMethod that is good for one payment; the error has neither a code nor a parameter."""
_AMOUNT_CODES = frozenset(
    {"amount_too_small", "amount_too_large", "invalid_charge_amount", "invalid_charge_amount_no_decimal_compatible"}
)


class AmountRefusedError(ValueError):
    """Stripe cannot be told the amount; the text is for the customer."""


def stripe_amount(amount: int, currency: str) -> int:
    """Turn hundredths of a currency into the unit in which Stripe counts it.

    Raises AmountRefusedError where that would not be exactly the same money.
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


def charge_outcome(intent: stripe.PaymentIntent) -> Charged | Declined | None:
    """Say what became of a charge, None if it was never confirmed; one that was refunded since took nothing.

    Raises GatewayTimeoutError while Stripe itself does not know.
    """
    match intent.status:
        case "succeeded":
            return Declined(CLOSED) if is_refunded(intent) else Charged(intent.id)
        case "requires_confirmation":
            return None
        case "requires_payment_method":
            failure = intent.last_payment_error
            return Declined(_reason(failure.message if failure else None))
        case "canceled":
            return Declined(NEEDS_CARDHOLDER if intent.cancellation_reason == ABANDONED else CLOSED)
        case unsettled:
            raise GatewayTimeoutError(f"the payment intent is in state {unsettled}")


def is_refunded(intent: stripe.PaymentIntent) -> bool:
    """Whether all of the intent's money was returned; known only if `latest_charge` was asked for with it."""
    charge = intent.latest_charge
    return isinstance(charge, stripe.Charge) and charge.refunded


def nothing_charged(declined: Declined) -> NothingCharged:
    """Say why nothing was taken, which has no reason of the card's where a refund has closed the key."""
    return NothingCharged(None if declined.reason == CLOSED else declined.reason)


def decline_reason(error: stripe.StripeError) -> str | None:
    """Return the reason for the customer if the error is about the card or the amount; None if it says nothing of them.

    Stripe's own text is taken where it cannot name the card's token.
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
    """Turn an error that says nothing of card and amount into ours, without Stripe's text: it may name a secret."""
    told = f"Stripe: {type(error).__name__}, HTTP status {error.http_status}, code {error.code}"
    match error:
        case stripe.IdempotencyError():
            return KeyReusedError(f"{told}: the key was used for another charge")
        case stripe.APIConnectionError() | stripe.RateLimitError() | stripe.APIError():
            return GatewayTimeoutError(told)
    return GatewayMisconfiguredError(told)


def is_stored_failure(error: stripe.APIError) -> bool:
    """Whether this is a failure that Stripe repeats to whoever comes with the same idempotency key, for a day."""
    return (error.http_status or 0) >= 500 and (error.headers or {}).get("idempotent-replayed") == "true"


def _reason(message: str | None) -> str:
    return " ".join(message.split())[:_REASON_LIMIT] if message else DECLINED

"""The meaning of Stripe's states and errors, and the conversion of amounts."""

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st
from stripe import PaymentIntent

from payment_service.gateways.port import (
    Authorized,
    CaptureRefused,
    Charged,
    Declined,
    GatewayKeyReusedError,
    GatewayMisconfiguredError,
    GatewayTimeoutError,
    NothingCharged,
)
from payment_service.gateways.stripe_outcomes import (
    NOTHING_AUTHORIZED,
    REFUSED,
    THREE_DECIMAL,
    WHOLE_ONLY,
    ZERO_DECIMAL,
    AmountRefusedError,
    capture_outcome,
    charge_outcome,
    decline_reason,
    is_stored_failure,
    nothing_charged,
    stripe_amount,
    translate_error,
)
from payment_service.refusals import CARD_UNUSABLE, CLOSED, DECLINED, EXPIRED, NEEDS_CARDHOLDER

SECRET = "pm_1SecretCard"


def an_intent(
    status: str, failure: str | None = None, cancelled_as: str | None = None, charge: object = None
) -> PaymentIntent:
    values = {
        "id": "pi_1",
        "status": status,
        "last_payment_error": {"message": failure} if failure else None,
        "cancellation_reason": cancelled_as,
        "latest_charge": charge,
    }
    return PaymentIntent.construct_from(values, "sk_test")


@pytest.mark.parametrize(
    ("intent", "outcome"),
    [
        (an_intent("succeeded"), Charged("pi_1")),
        (an_intent("succeeded", failure="An earlier attempt"), Charged("pi_1")),
        (an_intent("succeeded", charge="ch_1"), Charged("pi_1")),
        (an_intent("succeeded", charge={"id": "ch_1", "object": "charge", "refunded": False}), Charged("pi_1")),
        (an_intent("succeeded", charge={"id": "ch_1", "object": "charge", "refunded": True}), Declined(CLOSED)),
        (an_intent("requires_confirmation"), None),
        (
            an_intent("requires_payment_method", failure="Your card\n was declined."),
            Declined("Your card was declined."),
        ),
        (an_intent("requires_payment_method"), Declined(DECLINED)),
        (an_intent("requires_capture"), Authorized("pi_1")),
        (an_intent("canceled", cancelled_as="abandoned"), Declined(NEEDS_CARDHOLDER)),
        (an_intent("canceled", cancelled_as="requested_by_customer"), Declined(CLOSED)),
        (an_intent("canceled"), Declined(CLOSED)),
    ],
)
def test_an_intent_that_is_settled_has_an_outcome(intent: PaymentIntent, outcome: object) -> None:
    assert charge_outcome(intent) == outcome


@pytest.mark.parametrize(
    ("intent", "refused_as", "outcome"),
    [
        (an_intent("succeeded"), None, Charged("pi_1")),
        (an_intent("succeeded"), "payment_intent_unexpected_state", Charged("pi_1")),
        (
            an_intent("succeeded", charge={"id": "ch_1", "object": "charge", "refunded": True}),
            "payment_intent_unexpected_state",
            CaptureRefused(CLOSED),
        ),
        (an_intent("canceled", cancelled_as="automatic"), None, CaptureRefused(EXPIRED)),
        (an_intent("canceled", cancelled_as="expired"), None, CaptureRefused(EXPIRED)),
        (an_intent("canceled", cancelled_as="requested_by_customer"), None, CaptureRefused(CLOSED)),
        (an_intent("requires_capture"), "charge_expired_for_capture", CaptureRefused(EXPIRED)),
        (an_intent("requires_capture"), "amount", CaptureRefused("Stripe refused the capture: amount")),
        (an_intent("requires_payment_method"), "state", CaptureRefused(NOTHING_AUTHORIZED)),
    ],
)
def test_a_capture_has_the_outcome_that_its_intent_shows(
    intent: PaymentIntent, refused_as: str | None, outcome: object
) -> None:
    assert capture_outcome(intent, refused_as) == outcome


@pytest.mark.parametrize("status", ["requires_capture", "processing"])
def test_a_capture_that_stripe_has_not_decided_has_no_outcome(status: str) -> None:
    with pytest.raises(GatewayTimeoutError, match=status):
        capture_outcome(an_intent(status))


@pytest.mark.parametrize("status", ["processing", "requires_action", "something_new"])
def test_an_intent_that_is_not_settled_has_none_yet(status: str) -> None:
    with pytest.raises(GatewayTimeoutError, match=status):
        charge_outcome(an_intent(status))


def test_a_key_that_a_refund_closed_gives_no_reason_but_a_decline_does() -> None:
    assert nothing_charged(Declined(CLOSED)) == NothingCharged(None)
    assert nothing_charged(Declined("Your card was declined.")) == NothingCharged("Your card was declined.")


def invalid(param: str | None, code: str | None = None, message: str = "Invalid") -> stripe.InvalidRequestError:
    return stripe.InvalidRequestError(message, param, code, http_status=400)  # type: ignore[no-untyped-call] # stripe has no types there


def card_error(message: str, code: str) -> stripe.CardError:
    return stripe.CardError(message, None, code)  # type: ignore[no-untyped-call] # stripe has no types there


def connection_error(message: str) -> stripe.APIConnectionError:
    return stripe.APIConnectionError(message)  # type: ignore[no-untyped-call] # stripe has no types there


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (card_error("Your card has expired.", "expired_card"), "Your card has expired."),
        (card_error("x" * 1000, "card_declined"), "x" * 200),
        (invalid("payment_method", "resource_missing", f"No such PaymentMethod: '{SECRET}'"), CARD_UNUSABLE),
        (invalid(None, None, f"The PaymentMethod {SECRET} was used. It may not be used again."), CARD_UNUSABLE),
        (invalid("amount", None, "Amount must be at least $0.50 usd"), "Amount must be at least $0.50 usd"),
        (invalid(None, "amount_too_small", "Amount must be at least $0.50 usd"), "Amount must be at least $0.50 usd"),
        (invalid("currency", None, "Invalid currency: xyz"), "Invalid currency: xyz"),
        (invalid("metadata"), None),
        (invalid(None), None),
        (stripe.AuthenticationError("Invalid API Key"), None),
        (stripe.RateLimitError("Too many"), None),
        (stripe.APIError("Oops", http_status=500), None),
    ],
)
def test_only_what_is_about_the_card_or_the_amount_declines(error: stripe.StripeError, reason: str | None) -> None:
    assert decline_reason(error) == reason


@pytest.mark.parametrize(
    ("error", "translated"),
    [
        (stripe.IdempotencyError(SECRET, http_status=400), GatewayKeyReusedError),
        (connection_error(SECRET), GatewayTimeoutError),
        (stripe.RateLimitError(SECRET, http_status=429), GatewayTimeoutError),
        (stripe.APIError(SECRET, http_status=500), GatewayTimeoutError),
        (stripe.APIError(SECRET, http_status=409), GatewayTimeoutError),
        (stripe.AuthenticationError(SECRET, http_status=401), GatewayMisconfiguredError),
        (stripe.PermissionError(SECRET, http_status=403), GatewayMisconfiguredError),
        (invalid("metadata", None, SECRET), GatewayMisconfiguredError),
    ],
)
def test_every_other_error_is_translated_without_stripes_text(
    error: stripe.StripeError, translated: type[Exception]
) -> None:
    found = translate_error(error)
    assert type(found) is translated
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    ("status", "headers", "stored"),
    [
        (500, {"idempotent-replayed": "true"}, True),
        (500, {}, False),
        (409, {"idempotent-replayed": "true"}, False),
    ],
)
def test_a_failure_is_stored_when_stripe_repeats_it(status: int, headers: dict[str, str], stored: bool) -> None:
    assert is_stored_failure(stripe.APIError("Oops", http_status=status, headers=headers)) is stored


@pytest.mark.parametrize(
    ("amount", "currency", "converted"),
    [(1999, "USD", 1999), (50_000, "JPY", 500), (1234, "KWD", 12_340), (500, "ISK", 500), (80_045, "HUF", 80_045)],
)
def test_amounts_are_converted_to_stripes_unit(amount: int, currency: str, converted: int) -> None:
    assert stripe_amount(amount, currency) == converted


@pytest.mark.parametrize(("amount", "currency"), [(50_050, "JPY"), (510, "ISK"), (500, "UGX")])
def test_an_amount_that_would_not_be_the_same_money_is_refused(amount: int, currency: str) -> None:
    with pytest.raises(AmountRefusedError, match=currency):
        stripe_amount(amount, currency)


UNITS_PER_WHOLE = dict.fromkeys(ZERO_DECIMAL, 1) | dict.fromkeys(THREE_DECIMAL, 1000)


@given(st.integers(1, 10**14), st.sampled_from(sorted(ZERO_DECIMAL | THREE_DECIMAL | WHOLE_ONLY | REFUSED | {"USD"})))
def test_a_converted_amount_is_exactly_the_same_money(amount: int, currency: str) -> None:
    try:
        converted = stripe_amount(amount, currency)
    except AmountRefusedError:
        assert currency in REFUSED or amount % 100
    else:
        assert converted * 100 == amount * UNITS_PER_WHOLE.get(currency, 100)

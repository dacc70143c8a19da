"""The Stripe gateway against a local server with Stripe's API: the requests sent, and the meaning of every failure."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from operations.reading.charges import holds_money, holds_nothing, intent_as_charge
from payment_service.gateways.factory import STRIPE_INTENTS as COLLECTION
from payment_service.gateways.factory import OpenGateway, open_gateway
from payment_service.gateways.port import (
    Authorized,
    CaptureRefused,
    Charged,
    ChargeRequest,
    Declined,
    GatewayKeyReusedError,
    GatewayMisconfiguredError,
    GatewayTimeoutError,
    NothingCharged,
    Refunded,
    RefundRefused,
)
from payment_service.refusals import CARD_UNUSABLE, CLOSED, EXPIRED, NEEDS_CARDHOLDER, NO_CARD
from payment_service.settings import PaymentSettings
from shared.clock import utc_now
from shared.database import Database
from tests.support.builders import connected, new_id
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.seeds import seed_count
from tests.support.stripe_api import (
    API_KEY,
    REFUSED,
    THREE_D_SECURE,
    VISA,
    Fault,
    Intent,
    Operation,
    StripeApi,
    run_stripe_api,
)
from tests.support.tasks import end_tasks

PATIENT = 60.0
FOR_EVER = 3600.0

Opened = Callable[..., OpenGateway]


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def database(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_payments") as database:
        yield database


@pytest.fixture
async def api() -> AsyncIterator[StripeApi]:
    async with run_stripe_api() as running:
        yield running


@pytest.fixture
async def opened(api: StripeApi, database: Database) -> AsyncIterator[Opened]:
    """Open gateways that share their records, as processes do."""
    gateways = []

    def another(*, key: str = API_KEY, timeout: float = PATIENT, url: str = api.url) -> OpenGateway:
        settings = PaymentSettings(
            card_gateway="stripe",
            stripe_api_key=SecretStr(key),
            stripe_api_url=url,
            gateway_timeout_seconds=timeout,
        )
        gateways.append(open_gateway(settings, database, utc_now))
        return gateways[-1]

    yield another
    for gateway in gateways:
        await gateway.drain()


@pytest.fixture
def gateway(opened: Opened) -> OpenGateway:
    return opened()


def a_request(card: str | None = VISA, amount: int = 1999, currency: str = "USD") -> ChargeRequest:
    return ChargeRequest(new_id(), amount, currency, card, utc_now())


async def test_the_intent_names_the_order_and_is_confirmed_without_naming_a_card_again(
    gateway: OpenGateway, api: StripeApi
) -> None:
    request = a_request()
    charged = await gateway.charge(request)
    (intent,) = api.of(request.key)
    assert charged == Charged(intent.id)
    assert (intent.amount, intent.currency, intent.payment_method) == (1999, "usd", VISA)
    (create, sent), (confirm, confirmed) = api.requests
    assert (create, confirm) == ("create", "confirm")
    assert sent["allowed_payment_method_types[0]"] == "card"
    assert sent["automatic_payment_methods[allow_redirects]"] == "never"
    assert confirmed == {"error_on_requires_action": "true"}


async def test_money_goes_out_in_the_unit_in_which_stripe_counts_the_currency(
    gateway: OpenGateway, api: StripeApi
) -> None:
    yen, dinars = a_request(amount=120_000, currency="JPY"), a_request(amount=1234, currency="KWD")
    assert isinstance(await gateway.charge(yen), Charged)
    assert isinstance(await gateway.charge(dinars), Charged)
    assert api.of(yen.key)[0].amount == 1200
    assert api.of(dinars.key)[0].amount == 12340


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (a_request(REFUSED), "Your card was declined."),
        (a_request(THREE_D_SECURE), "This payment requires authentication."),
        (a_request("pm_1OfSomebodyElse"), CARD_UNUSABLE),
        (a_request(None), NO_CARD),
        (a_request(amount=49), "Amount must be at least $0.50 usd"),
        (a_request(amount=1050, currency="JPY"), "An amount in JPY has no decimals"),
    ],
    ids=["card", "3-D Secure", "unknown card", "no card", "too small", "half a yen"],
)
async def test_what_stripe_declines_is_declined_for_good(
    gateway: OpenGateway, api: StripeApi, request_: ChargeRequest, reason: str
) -> None:
    assert await gateway.charge(request_) == Declined(reason)
    assert await gateway.charge(request_) == Declined(reason)
    assert await gateway.refund(request_) in (NothingCharged(reason), NothingCharged())
    assert api.held() == set()


async def test_a_card_that_is_good_for_one_payment_declines_the_next(gateway: OpenGateway, api: StripeApi) -> None:
    card = f"pm_once_{new_id()}"
    opened_before, paid, opened_after = a_request(card), a_request(card), a_request(card)
    api.disturb("confirm", "fail before")
    with pytest.raises(GatewayTimeoutError):
        await gateway.charge(opened_before)
    assert isinstance(await gateway.charge(paid), Charged)
    for request in (opened_before, opened_after):
        assert await gateway.charge(request) == Declined(CARD_UNUSABLE)
        assert await gateway.look_up(request) == Declined(CARD_UNUSABLE)
        assert await gateway.refund(request) == NothingCharged(CARD_UNUSABLE)
    assert [intent.status for intent in api.of(opened_before.key)] == ["canceled"]
    assert api.held() == {paid.key}


async def test_a_card_that_waits_for_its_holder_is_declined_and_its_intent_cancelled(
    gateway: OpenGateway, api: StripeApi
) -> None:
    api.ignores_error_on_requires_action = True
    request = a_request(THREE_D_SECURE)
    assert await gateway.charge(request) == Declined(NEEDS_CARDHOLDER)
    assert [intent.status for intent in api.of(request.key)] == ["canceled"]
    assert await gateway.look_up(request) == Declined(NEEDS_CARDHOLDER)
    assert await gateway.refund(request) == NothingCharged(NEEDS_CARDHOLDER)


async def test_a_look_up_cancels_an_intent_that_still_waits_for_the_cardholder(
    gateway: OpenGateway, api: StripeApi
) -> None:
    api.ignores_error_on_requires_action = True
    api.disturb("cancel", "fail before")
    request = a_request(THREE_D_SECURE)
    with pytest.raises(GatewayTimeoutError):
        await gateway.charge(request)
    assert await gateway.look_up(request) == Declined(NEEDS_CARDHOLDER)
    assert [intent.status for intent in api.of(request.key)] == ["canceled"]


FAULTS: list[tuple[Operation, Fault]] = [
    (operation, fault)
    for operation in ("create", "confirm")
    for fault in ("fail before", "fail after", "lose answer", "rate limit")
]


@pytest.mark.parametrize(("operation", "fault"), FAULTS)
async def test_a_charge_without_an_answer_is_looked_up_and_made_once(
    gateway: OpenGateway, api: StripeApi, operation: Operation, fault: Fault
) -> None:
    request = a_request()
    api.disturb(operation, fault)
    with pytest.raises(GatewayTimeoutError):
        await gateway.charge(request)
    taken = api.held()
    found = await gateway.look_up(request)
    assert isinstance(found, Charged) == bool(taken)
    assert isinstance(await gateway.charge(request), Charged)
    assert api.held() == {request.key}


@pytest.mark.parametrize(("operation", "fault"), FAULTS)
async def test_a_charge_without_an_answer_can_be_refunded_and_never_takes_money_later(
    gateway: OpenGateway, api: StripeApi, operation: Operation, fault: Fault
) -> None:
    request = a_request()
    api.disturb(operation, fault)
    with pytest.raises(GatewayTimeoutError):
        await gateway.charge(request)
    taken = api.held()
    assert isinstance(await gateway.refund(request), Refunded) == bool(taken)
    await gateway.charge(request)
    assert api.held() == set()


@pytest.mark.parametrize("fault", ["fail before", "fail after", "lose answer", "rate limit"])
async def test_a_refund_without_an_answer_is_asked_for_again_and_made_once(
    gateway: OpenGateway, api: StripeApi, fault: Fault
) -> None:
    request = a_request()
    charged = await gateway.charge(request)
    assert isinstance(charged, Charged)
    api.disturb("refund", fault)
    with pytest.raises(GatewayTimeoutError):
        await gateway.refund(request)
    assert await gateway.refund(request) == Refunded(charged.charge_id)
    assert [intent.refunds for intent in api.of(request.key)] == [1]


async def test_a_refund_that_fails_at_stripe_is_not_taken_for_made(gateway: OpenGateway, api: StripeApi) -> None:
    request = a_request()
    await gateway.charge(request)
    api.refund_status = "failed"
    with pytest.raises(GatewayTimeoutError, match="failed"):
        await gateway.refund(request)
    api.refund_status = "succeeded"
    api.forget_keys()
    assert isinstance(await gateway.refund(request), Refunded)
    assert api.held() == set()


@pytest.mark.parametrize("fault", ["fail before", "fail after", "lose answer", "rate limit"])
@pytest.mark.parametrize("keys", ["remembered", "forgotten"])
async def test_a_refund_in_part_without_an_answer_is_asked_for_again_and_made_once(
    gateway: OpenGateway, api: StripeApi, fault: Fault, keys: str
) -> None:
    request = a_request()
    charged = await gateway.charge(request)
    assert isinstance(charged, Charged)
    api.disturb("refund", fault)
    with pytest.raises(GatewayTimeoutError):
        await gateway.refund_part(request, "r1", 1000)
    if keys == "forgotten":
        api.forget_keys()
    for _ in range(2):
        assert await gateway.refund_part(request, "r1", 1000) == Refunded(charged.charge_id)
    assert [intent.left for intent in api.of(request.key)] == [999]


async def test_a_refund_in_part_that_takes_too_long_is_made_once(opened: Opened, api: StripeApi) -> None:
    request = a_request()
    patient = opened()
    await patient.charge(request)
    api.disturb("refund", "hold")
    with pytest.raises(GatewayTimeoutError):
        await opened(timeout=0.5).refund_part(request, "r1", 1000)
    with pytest.raises((GatewayTimeoutError, GatewayKeyReusedError)):
        await patient.refund_part(request, "r1", 1000)  # the first is in progress: not an outcome either
    api.release()

    async def returned() -> bool:
        return [intent.left for intent in api.of(request.key)] == [999]

    await eventually(returned, within=30)
    assert isinstance(await patient.refund_part(request, "r1", 1000), Refunded)
    assert await returned()


async def test_stripes_refusals_of_a_refund_in_part_are_final(gateway: OpenGateway, api: StripeApi) -> None:
    request = a_request()
    await gateway.charge(request)
    api.refund_status = "failed"
    refused = await gateway.refund_part(request, "r1", 1000)
    assert refused == RefundRefused("Stripe could not refund: failed")
    api.refund_status = "succeeded"
    assert await gateway.refund_part(request, "r1", 1000) == refused
    assert isinstance(await gateway.refund_part(request, "r2", 2000), RefundRefused)
    assert isinstance(await gateway.refund_part(request, "r3", 1999), Refunded)
    assert await gateway.refund_part(request, "r4", 1) == RefundRefused("The charge has been refunded already")
    assert api.held() == set()


async def test_a_part_of_a_currency_without_decimals_is_counted_as_stripe_does(
    gateway: OpenGateway, api: StripeApi
) -> None:
    request = a_request(amount=50_000, currency="JPY")
    await gateway.charge(request)
    assert isinstance(await gateway.refund_part(request, "r1", 20_000), Refunded)
    assert [intent.left for intent in api.of(request.key)] == [300]


async def test_no_answer_in_time_leaves_the_outcome_unknown_until_it_is_looked_up(
    opened: Opened, api: StripeApi
) -> None:
    request = a_request()
    api.disturb("confirm", "hold")
    with pytest.raises(GatewayTimeoutError):
        await opened(timeout=0.5).charge(request)
    api.release()
    patient = opened()

    async def taken() -> bool:
        return bool(await patient.look_up(request) or await patient.charge(request))

    await eventually(taken, PATIENT, "the charge to be made")
    assert api.held() == {request.key}


async def test_two_processes_that_charge_at_once_take_the_money_once(opened: Opened, api: StripeApi) -> None:
    request = a_request()
    slow, quick = opened(timeout=0.5), opened()
    api.disturb("create", "hold")
    with pytest.raises(GatewayTimeoutError):
        await slow.charge(request)
    if api.waiting:
        with pytest.raises(GatewayTimeoutError, match="409"):
            await quick.charge(request)
    api.release()

    async def charged() -> bool:
        return isinstance(await quick.charge(request), Charged)

    await eventually(charged, PATIENT, "the key to be free again")
    assert len(api.of(request.key)) == 1
    assert api.held() == {request.key}


async def test_a_confirmation_that_a_refund_overtakes_declines(opened: Opened, api: StripeApi) -> None:
    request = a_request()
    api.disturb("confirm", "hold")
    charging = asyncio.create_task(opened().charge(request))
    await eventually(lambda: api.waiting, PATIENT)
    assert await opened().refund(request) == NothingCharged()
    api.release()
    assert await charging == Declined(CLOSED)
    assert api.held() == set()


async def test_a_confirmation_that_another_overtakes_says_the_same(opened: Opened, api: StripeApi) -> None:
    request = a_request()
    api.disturb("confirm", "hold")
    charging = asyncio.create_task(opened().charge(request))
    await eventually(lambda: api.waiting, PATIENT)
    charged = await opened().charge(request)
    api.release()
    assert await charging == charged
    assert api.held() == {request.key}


async def test_a_cancellation_that_a_charge_overtakes_becomes_a_refund(opened: Opened, api: StripeApi) -> None:
    request = a_request()
    api.disturb("confirm", "fail before")
    with pytest.raises(GatewayTimeoutError):
        await opened().charge(request)
    api.disturb("cancel", "hold")
    returning = asyncio.create_task(opened().refund(request))
    await eventually(lambda: api.waiting, PATIENT)
    charged = await opened().charge(request)
    assert isinstance(charged, Charged)
    api.release()
    assert await returning == Refunded(charged.charge_id)
    assert api.held() == set()


async def test_an_unreachable_stripe_leaves_the_outcome_unknown(opened: Opened) -> None:
    with pytest.raises(GatewayTimeoutError, match="APIConnectionError"):
        await opened(url="http://127.0.0.1:9").charge(a_request())


async def test_nothing_depends_on_idempotency_keys_that_stripe_has_forgotten(
    gateway: OpenGateway, api: StripeApi
) -> None:
    taken, refused, returned = a_request(), a_request(REFUSED), a_request()
    outcomes = [await gateway.charge(request) for request in (taken, refused, returned)]
    back = await gateway.refund(returned)
    api.forget_keys()
    assert [await gateway.charge(request) for request in (taken, refused)] == outcomes[:2]
    assert [await gateway.look_up(request) for request in (taken, refused)] == outcomes[:2]
    assert await gateway.refund(returned) == back
    assert len(api.intents) == 3
    assert api.held() == {taken.key}


async def test_an_intent_that_a_crash_left_without_a_record_takes_no_money(
    gateway: OpenGateway, api: StripeApi, database: Database
) -> None:
    request = a_request()
    api.disturb("confirm", "fail before")
    with pytest.raises(GatewayTimeoutError):
        await gateway.charge(request)
    await database[COLLECTION].delete_one({"_id": request.key})
    api.forget_keys()
    assert await gateway.look_up(request) is None
    charged = await gateway.charge(request)
    assert isinstance(charged, Charged)
    assert {intent.id: intent.status for intent in api.of(request.key)}[charged.charge_id] == "succeeded"
    assert api.held() == {request.key}


@pytest.mark.parametrize("how", ["charged", "declined", "closed"])
@pytest.mark.parametrize("written", ["now", "before records had openedAt"])
async def test_the_record_of_a_deleted_order_does_not_decide_a_later_order_of_the_same_id(
    gateway: OpenGateway, api: StripeApi, database: Database, how: str, written: str
) -> None:
    earlier = replace(a_request(REFUSED if how == "declined" else VISA), opened_at=utc_now() - timedelta(days=31))
    if how != "closed":
        await gateway.charge(earlier)
    await gateway.refund(earlier)
    if written != "now":
        long_ago = {"createdAt": earlier.opened_at} if how != "closed" else {"closedAt": earlier.opened_at}
        unknown = dict.fromkeys(("openedAt", "chargedAt", "refundedAt"), "")
        await database[COLLECTION].update_one({"_id": earlier.key}, {"$set": long_ago, "$unset": unknown})

    later = replace(earlier, token=VISA, amount=earlier.amount + 1, opened_at=utc_now())
    assert await gateway.look_up(later) is None
    charged = await gateway.charge(later)
    assert isinstance(charged, Charged)
    assert api.intents[charged.charge_id].amount == later.amount
    assert api.held() == {later.key}
    assert await gateway.refund(later) == Refunded(charged.charge_id)
    assert api.held() == set()


async def test_money_that_was_returned_behind_our_back_is_not_charged(gateway: OpenGateway, api: StripeApi) -> None:
    """An operator uses Stripe's dashboard to refund a charge whose answer was lost."""
    request = a_request()
    api.disturb("confirm", "lose answer")
    with pytest.raises(GatewayTimeoutError):
        await gateway.charge(request)
    (intent,) = api.of(request.key)
    api.refund({"payment_intent": intent.id})
    assert await gateway.look_up(request) == Declined(CLOSED)
    assert await gateway.charge(request) == Declined(CLOSED)
    assert await gateway.refund(request) == Refunded(intent.id)


async def test_the_times_of_charge_and_refund_are_recorded_for_the_audit(
    gateway: OpenGateway, api: StripeApi, database: Database
) -> None:
    request = a_request()
    await gateway.charge(request)
    record = await database[COLLECTION].find_one({"_id": request.key})
    assert record is not None
    assert record["openedAt"] == request.opened_at
    assert "chargedAt" in record
    assert "refundedAt" not in record
    await gateway.refund(request)
    record = await database[COLLECTION].find_one({"_id": request.key})
    assert record is not None
    assert "refundedAt" in record


async def test_a_wrong_key_is_reported_to_the_operator_and_declines_no_card(opened: Opened, api: StripeApi) -> None:
    request = a_request()
    with pytest.raises(GatewayMisconfiguredError, match="AuthenticationError, HTTP status 401"):
        await opened(key="sk_test_ofSomebodyElse").charge(request)
    corrected = opened()
    assert await corrected.look_up(request) is None
    assert isinstance(await corrected.charge(request), Charged)


async def test_neither_keys_nor_tokens_are_logged_or_raised(
    opened: Opened, api: StripeApi, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    secret_card, secret_key = "pm_1SecretCard", "sk_test_SecretKey"
    results = []
    with caplog.at_level(logging.DEBUG):
        for gateway, card in ((opened(), secret_card), (opened(key=secret_key), VISA), (opened(), secret_card)):
            try:
                results.append(str(await gateway.charge(a_request(card))))
            except GatewayTimeoutError as error:
                results.append(repr(error))
            api.disturb("create", "fail after")
    output = capfd.readouterr()
    everything = "".join([*results, caplog.text, output.out, output.err])
    assert "GatewayMisconfiguredError" in everything
    assert "does not accept our calls" in everything
    for secret in (secret_card, secret_key, API_KEY):
        assert secret not in everything


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str, api: StripeApi) -> AsyncIterator[Stack]:
    settings = {"card_gateway": "stripe", "stripe_api_key": API_KEY, "stripe_api_url": api.url, "log_level": "DEBUG"}
    async with run_stack(
        mongodb_url, clean_broker, database_prefix, gateway_timeout_seconds=PATIENT, **settings
    ) as running:
        yield running


async def test_the_service_charges_orders_and_refunds_them_over_stripe(stack: Stack, api: StripeApi) -> None:
    api.disturb("confirm", "lose answer")
    await stack.start("order", "payment")

    async def payment(order_id: str, status: str) -> dict[str, Any]:
        response = await stack.client.get(f"{stack.url('payment')}/payments/{order_id}")
        found: dict[str, Any] = response.json()
        assert (response.status_code, found.get("status")) == (200, status)
        return found

    looked_up = await stack.place(payment={"token": VISA})
    await eventually(lambda: payment(looked_up, "PROCESSED"), 60)
    returned = await stack.place(payment={"token": VISA})
    refused = await stack.place(payment={"token": REFUSED})
    charged = await eventually(lambda: payment(returned, "PROCESSED"), 60)
    assert [intent.id for intent in api.of(returned)] == [charged["transactionId"]]
    declined = await eventually(lambda: payment(refused, "FAILED"), 60)
    assert declined["failureReason"] == "Your card was declined."
    assert api.held() == {looked_up, returned}

    answer = await stack.client.post(f"{stack.url('order')}/orders/{returned}/cancel", json={})
    assert answer.status_code == 202, answer.text
    await eventually(lambda: payment(returned, "REFUNDED"), 60)
    assert api.held() == {looked_up}
    output = "".join(line for process in stack.processes("payment") for line in process.output)
    assert API_KEY not in output
    assert VISA not in output


# --- Authorised now, captured later ---


async def authorized(gateway: OpenGateway) -> ChargeRequest:
    request = replace(a_request(), capture=False)
    assert isinstance(await gateway.charge(request), Authorized)
    return request


async def test_an_intent_is_captured_by_hand_only_if_its_order_asks_for_it(
    gateway: OpenGateway, api: StripeApi
) -> None:
    await gateway.charge(a_request())
    await authorized(gateway)
    assert [body.get("capture_method") for name, body in api.requests if name == "create"] == [None, "manual"]


async def test_an_authorisation_that_has_expired_is_not_captured(gateway: OpenGateway, api: StripeApi) -> None:
    request = await authorized(gateway)
    api.expire(api.of(request.key)[0])
    assert await gateway.capture(request) == CaptureRefused(EXPIRED)
    assert await gateway.refund(request) == NothingCharged()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("capture_charge_authorization_expired", EXPIRED),
        ("charge_expired_for_capture", EXPIRED),
        ("capture_unauthorized_payment", "Stripe refused the capture: capture_unauthorized_payment"),
    ],
)
async def test_a_capture_that_stripe_refuses_can_be_tried_again(
    gateway: OpenGateway, api: StripeApi, code: str, reason: str
) -> None:
    request = await authorized(gateway)
    api.refuses_captures_as = code
    assert await gateway.capture(request) == CaptureRefused(reason)
    api.refuses_captures_as = None
    assert isinstance(await gateway.capture(request), Charged)


@pytest.mark.parametrize("fault", ["fail before", "fail after", "lose answer", "rate limit"])
async def test_a_capture_without_an_answer_is_made_once(gateway: OpenGateway, api: StripeApi, fault: Fault) -> None:
    request = await authorized(gateway)
    api.disturb("capture", fault)
    with pytest.raises(GatewayTimeoutError):
        await gateway.capture(request)
    assert isinstance(await gateway.capture(request), Charged)
    assert api.held() == {request.key}


@pytest.mark.long_form
async def test_a_capture_that_races_the_expiry_of_its_authorisation_has_one_winner(
    opened: Opened, api: StripeApi
) -> None:
    gateways, winners = (opened(), opened()), Counter[bool]()

    async def race(seed: int) -> None:
        dice = random.Random(seed)
        request = await authorized(gateways[0])
        (intent,) = api.of(request.key)
        faults: tuple[Fault, ...] = ("fail before", "fail after", "lose answer")
        api.disturb("capture", *dice.sample(faults, dice.choice((0, 0, 1))))
        if seed % 10 == EXPIRY_FIRST:
            await _expire(api, intent, 0)
        captures = [_captured_at_last(gateway, request, dice.random() / 10) for gateway in gateways]
        moment = FOR_EVER if seed % 10 == CAPTURE_FIRST else dice.random() / 10
        expiring = asyncio.create_task(_expire(api, intent, moment))
        first, second = await asyncio.gather(*captures)
        await end_tasks(expiring)
        is_captured = intent.status == "succeeded"
        assert first == second == (Charged(intent.id) if is_captured else CaptureRefused(EXPIRED)), seed
        assert (request.key in api.held()) == is_captured, seed
        winners[is_captured] += 1

    for some in range(0, seed_count(), 10):
        await asyncio.gather(*map(race, range(some, some + 10)))
    assert min(winners[True], winners[False]) > 0, winners


EXPIRY_FIRST, CAPTURE_FIRST = 0, 1
"""Of ten races, two have a certain winner, so that both ends are seen on any machine."""


async def _expire(api: StripeApi, intent: Intent, after: float) -> None:
    """Let the authorisation expire after some seconds, unless it is captured by then."""
    await asyncio.sleep(after)
    if intent.status == "requires_capture":
        api.expire(intent)


async def _captured_at_last(gateway: OpenGateway, request: ChargeRequest, after: float) -> Charged | CaptureRefused:
    """Capture after some seconds, again and again until the gateway answers."""
    await asyncio.sleep(after)
    while True:
        with suppress(GatewayTimeoutError):
            return await gateway.capture(request)


async def test_a_confirmation_without_an_answer_that_is_voided_is_recorded_as_void(
    gateway: OpenGateway, api: StripeApi, database: Database
) -> None:
    request = replace(a_request(), capture=False)
    api.disturb("confirm", "lose answer")
    with pytest.raises(GatewayTimeoutError):
        await gateway.charge(request)
    assert await gateway.refund(request) == NothingCharged()
    charge = intent_as_charge(await database[COLLECTION].find_one({"_id": request.key}))
    assert charge is not None
    assert charge["outcome"] == "VOIDED"


async def test_the_records_tell_the_audit_what_is_authorised_charged_and_void(
    gateway: OpenGateway, database: Database
) -> None:
    kept, captured, voided = [await authorized(gateway) for _ in range(3)]
    await gateway.capture(captured)
    await gateway.refund(voided)
    outcomes = {}
    for request in (kept, captured, voided):
        charge = intent_as_charge(await database[COLLECTION].find_one({"_id": request.key}))
        assert charge is not None
        outcomes[request.key] = (charge["outcome"], holds_money(charge), holds_nothing(charge))
    assert list(outcomes.values()) == [
        ("AUTHORIZED", True, False),
        ("CHARGED", True, False),
        ("VOIDED", False, True),
    ]

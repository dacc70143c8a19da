"""Failure codes: each service sets the code where the reason arises, and old messages and records have one as well."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from inventory_service.allocation import Refuse, allocate
from inventory_service.refusals import REFUSALS, code_of
from inventory_service.stock import Kind, Product
from order_service.failures import GENERAL, general_code
from order_service.saga import SAGA
from order_service.views import show_listed
from payment_service import refusals as payments
from payment_service.lifecycle import charge_answer
from payment_service.retainer_charger import decide, retainer_payment
from provisioning_service import lifecycle
from shared.contracts import (
    CancelProvisioning,
    OrderCreated,
    PaymentFailed,
    ProvisioningFailed,
    ProvisionServer,
    StockReservationFailed,
)
from shared.contracts.failures import FailureCode
from shared.contracts.orders import Item, PaymentInstruction
from tests.support.builders import an_order

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PRODUCTS = {
    "p1": Product(id="p1", quantity=1, version=1, created_at=NOW, updated_at=NOW, kind=Kind.GOODS, price=10_00),
    "off": Product(id="off", quantity=9, version=1, created_at=NOW, updated_at=NOW, kind=Kind.GOODS, on_sale=False),
    "free": Product(id="free", quantity=9, version=1, created_at=NOW, updated_at=NOW, kind=Kind.GOODS),
    "v": Product(id="v", quantity=None, version=1, created_at=NOW, updated_at=NOW, kind=Kind.VPS, package="basic"),
}


def created(*items: tuple[str, int, int], prices_required: bool = False) -> OrderCreated:
    lines = tuple(Item(product_id=product, quantity=count, price=price) for product, count, price in items)
    total = sum(line.quantity * line.price for line in lines)
    return OrderCreated(order_id="o", user_id="u", items=lines, total_amount=total, prices_required=prices_required)


@pytest.mark.parametrize(
    ("order", "code"),
    [
        (created(("p1", 2, 10_00)), FailureCode.INSUFFICIENT_STOCK),
        (created(("p1", 1, 9_99)), FailureCode.WRONG_PRICE),
        (created(("unknown", 1, 1)), FailureCode.UNKNOWN_PRODUCT),
        (created(("off", 1, 1)), FailureCode.NOT_ON_SALE),
        (created(("free", 1, 1), prices_required=True), FailureCode.NO_PRICE),
        (created(("v", 2, 1)), FailureCode.TOO_MANY_SERVERS),
    ],
    ids=str,
)
def test_every_refusal_of_stock_has_its_code(order: OrderCreated, code: FailureCode) -> None:
    outcome = allocate([order], PRODUCTS, {})["o"]
    assert isinstance(outcome, Refuse)
    assert code_of(outcome.reason) is code
    assert code in REFUSALS


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("Delivery slot:900 has no room for 30: 0 of 100 is free", FailureCode.SLOT_FULL),
        ("No delivery slot with room for 30 until 2026-01-01T00:00:00Z", FailureCode.SLOT_FULL),
        ("Delivery slot:900 is disabled", FailureCode.SLOT_UNAVAILABLE),
        ("There is no delivery slot:901: by the opening hours none starts then", FailureCode.SLOT_UNAVAILABLE),
        ("words of an earlier release", FailureCode.STOCK_REFUSED),
    ],
)
def test_a_slot_that_cannot_be_booked_differs_from_one_that_is_full(reason: str, code: FailureCode) -> None:
    assert code_of(reason) is code


@pytest.mark.parametrize(
    ("retainer", "code"),
    [
        (None, FailureCode.RETAINER_UNAVAILABLE),
        ({"status": "closed"}, FailureCode.RETAINER_UNAVAILABLE),
        ({"currency": "EUR"}, FailureCode.RETAINER_CURRENCY),
        ({"balance": 9_99}, FailureCode.INSUFFICIENT_BALANCE),
    ],
)
def test_a_retainer_that_does_not_pay_says_why(retainer: dict[str, object] | None, code: FailureCode) -> None:
    account = {"ownerId": None, "status": "active", "currency": "USD", "balance": 10_00}
    order = created(("p1", 1, 10_00)).model_copy(
        update={"payment": PaymentInstruction(method="retainer", retainer_id="r1")}
    )
    [payment] = decide([retainer_payment(order, NOW)], None if retainer is None else {**account, **retainer}, NOW)
    answer = charge_answer(payment)
    assert isinstance(answer, PaymentFailed)
    assert answer.code == code


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (payments.NO_CARD, FailureCode.CARD_MISSING),
        (payments.CARD_UNUSABLE, FailureCode.CARD_UNUSABLE),
        (payments.NEEDS_CARDHOLDER, FailureCode.CARDHOLDER_REQUIRED),
        (payments.CLOSED, FailureCode.PAYMENT_CANCELLED),
        ("Your card has insufficient funds.", FailureCode.CARD_DECLINED),
        ("", FailureCode.PAYMENT_REFUSED),
    ],
)
def test_a_card_that_is_refused_in_any_words_has_a_code(reason: str, code: FailureCode) -> None:
    assert payments.code_of_charge(reason, by_card=True) is code


def test_a_capture_says_whether_it_can_be_tried_again() -> None:
    assert payments.code_of_capture(payments.EXPIRED) is FailureCode.AUTHORIZATION_EXPIRED
    assert payments.code_of_capture("The card's bank refused the capture") is FailureCode.CAPTURE_FAILED


def test_a_job_repeats_its_code_until_it_is_tried_again() -> None:
    request = ProvisionServer(order_id="o", user_id="u", package="basic")
    job = lifecycle.refused(lifecycle.requested(request, NOW, 1), NOW)
    [answer] = lifecycle.answers(job)
    assert isinstance(answer, ProvisioningFailed)
    assert answer.code == FailureCode.PROVIDER_UNAVAILABLE
    again = lifecycle.requested_again(job, request.model_copy(update={"run": 2}), NOW, 2)
    assert again.failure_code is None


def test_a_cancelled_job_is_the_clients_doing() -> None:
    [answer] = lifecycle.answers(lifecycle.tombstone(CancelProvisioning(order_id="o", run=1), NOW))
    assert isinstance(answer, ProvisioningFailed)
    assert answer.code == FailureCode.CANCELLED_BY_CLIENT


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (StockReservationFailed(order_id="o", reason="r", code="insufficient_stock"), "insufficient_stock"),
        (StockReservationFailed(order_id="o", reason="r"), "stock_refused"),
        (PaymentFailed(order_id="o", reason="r", code="a_code_of_a_newer_release"), "a_code_of_a_newer_release"),
        (PaymentFailed(order_id="o", reason="r"), "payment_refused"),
    ],
    ids=str,
)
def test_an_order_takes_the_code_of_the_answer_or_the_general_one(
    answer: StockReservationFailed | PaymentFailed, code: str
) -> None:
    order = SAGA.advance(an_order(), answer, NOW + timedelta(seconds=1)).order
    assert (order.failure_reason, order.failure_code) == ("r", code)


def test_a_record_of_an_earlier_release_shows_the_general_code() -> None:
    order = replace(an_order(), failure_reason="The card was declined", cause="payment.failed")
    assert order.failure_code is None
    assert general_code(order.cause) == FailureCode.PAYMENT_REFUSED
    assert {*GENERAL.values()} <= {*FailureCode}
    assert general_code(None) == FailureCode.OTHER
    stored = {
        "_id": "o",
        "userId": "u",
        "totalAmount": 1,
        "currency": "USD",
        "status": "CANCELLED",
        "settled": True,
        "stockStatus": "RELEASED",
        "paymentStatus": "FAILED",
        "createdAt": NOW,
        "updatedAt": NOW,
        "failureReason": "The card was declined",
        "cause": "payment.failed",
    }
    assert show_listed(stored)["failureCode"] == "payment_refused"
    assert show_listed({**stored, "failureCode": "card_declined"})["failureCode"] == "card_declined"
    del stored["failureReason"]
    assert show_listed(stored)["failureCode"] is None

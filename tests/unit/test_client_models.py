"""The client's types: they take what the order service answers, now and later, and send what it accepts."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import order_service.new_order as server
from notification_service import delivery as notifications
from notification_service import views as webhook_views
from order_service import order, views
from order_service.participants import PARTICIPANTS
from ordersaga_client import (
    Address,
    ConflictError,
    Customer,
    Delivery,
    DeliveryStatus,
    Discount,
    FailureCode,
    HistoryEntry,
    InvalidError,
    Item,
    KeyReusedError,
    NewOrder,
    Order,
    Payment,
    PaymentStatus,
    ProvisioningStatus,
    RateLimitedError,
    Refund,
    RefundStatus,
    Server,
    SlotsFullError,
    Status,
    StockStatus,
    Webhook,
    WebhookAttempt,
    WebhookDelivery,
    calls,
    errors,
)
from shared import problems
from shared.contracts import failures

ANSWER: dict[str, Any] = {
    "orderId": "o1",
    "userId": "u1",
    "totalAmount": 19.99,
    "currency": "EUR",
    "status": "CONFIRMED",
    "stockStatus": "RESERVED",
    "paymentStatus": "PROCESSED",
    "settled": True,
    "createdAt": "2026-11-21T11:00:00.000Z",
    "updatedAt": "2026-11-21T11:00:01.000Z",
}
FULL = NewOrder(
    user_id="u1",
    items=[Item(product_id="p1", quantity=3, price=Decimal("19.99"), name="Pizza", options={"extras": ["olives"]})],
    discounts=[Discount(code="SPRING", amount=Decimal("0.97"))],
    shipping_amount=Decimal("4.5"),
    currency="EUR",
    payment=Payment(method="retainer", retainer_id="r1"),
    delivery=Delivery(slot="auto", address=Address(line1="1 High Street", postal_code="LS1"), call_before=True),
    customer=Customer(name="Ann", email="ann@example.org"),
    note="A gift",
    hold_id="h1",
    metadata={"channel": "app"},
)


def sent(new: NewOrder) -> server.NewOrder:
    """The order as the order service reads it."""
    body = calls.place_order(new).body
    assert body is not None
    return server.NewOrder.model_validate_json(body)


def test_the_service_accepts_every_field_and_the_calculated_total() -> None:
    read = sent(FULL)
    assert read.total_amount == 6350
    assert {name for name in server.NewOrder.model_fields if getattr(read, name) is None} == set()
    assert read.items[0].options == {"extras": ["olives"]}
    assert read.delivery is not None
    assert read.delivery.address is not None
    assert read.delivery.address.postal_code == "LS1"


@pytest.mark.parametrize("price", ["0", "0.01", "19.99", "33.33", "999999999999.99"])
def test_amounts_are_sent_and_read_exactly(price: str) -> None:
    amount = Decimal(price)
    read = sent(NewOrder(user_id="u1", items=[Item(product_id="p1", quantity=1, price=amount)]))
    assert read.items[0].price == amount * 100
    answer = json.dumps({**ANSWER, "totalAmount": float(price)})
    assert Order.model_validate_json(answer).total_amount == amount


def test_a_given_total_is_left_to_the_service_to_judge() -> None:
    body = calls.place_order(FULL.model_copy(update={"total_amount": Decimal(1)})).body
    assert body is not None
    with pytest.raises(ValueError, match=r"add up to 63\.5"):
        server.NewOrder.model_validate_json(body)


def test_a_later_release_may_add_fields_and_values() -> None:
    read = Order.model_validate({**ANSWER, "status": "PARKED", "parkedAt": "now"})
    assert read.status == "PARKED"
    assert not isinstance(read.status, Status)
    assert read.model_extra == {"parkedAt": "now"}
    assert Order.model_validate(ANSWER).status is Status.CONFIRMED


def test_a_card_token_is_in_no_log() -> None:
    assert "tok_ok" not in repr(Payment(token="tok_ok"))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Order, views.OrderView),
        (Item, views.ItemView),
        (Discount, views.DiscountView),
        (Customer, views.CustomerView),
        (Address, views.AddressView),
        (Delivery, views.DeliveryView),
        (HistoryEntry, views.HistoryView),
        (Server, views.ServerView),
        (Refund, views.RefundView),
        (NewOrder, server.NewOrder),
        (Payment, server.NewPayment),
        (Webhook, webhook_views.EndpointWithSecretView),
        (WebhookDelivery, webhook_views.DeliveryDetailView),
        (WebhookAttempt, webhook_views.AttemptView),
    ],
)
def test_each_field_of_the_service_is_typed(ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    # A new participant's state is in `model_extra` until it gets a field here.
    states = {row.field for row in PARTICIPANTS}
    assert set(theirs.model_fields) - set(ours.model_fields) - states == set()


def test_each_status_and_failure_code_of_the_services_is_known() -> None:
    assert set(map(str, Status)) == set(map(str, order.Status))
    assert set(map(str, RefundStatus)) == set(map(str, order.RefundStatus))
    assert set(map(str, DeliveryStatus)) == set(map(str, notifications.Status))
    assert set(map(str, FailureCode)) == set(map(str, failures.FailureCode))
    assert set(StockStatus) == set(get_args(order.StockStatus))
    assert set(PaymentStatus) == set(get_args(order.PaymentStatus))
    assert set(ProvisioningStatus) == set(get_args(order.ProvisioningStatus))


def test_filters_become_parameters() -> None:
    summer = timezone(timedelta(hours=2))
    query = calls.list_orders(
        {
            "status": [Status.FAILED, "CANCELLED"],
            "user_id": "u1",
            "settled": False,
            "created_from": datetime(2026, 7, 1, 12, tzinfo=summer),
            "created_to": datetime(2026, 7, 2, tzinfo=UTC),
            "include_items": True,
        },
        cursor="c1",
    ).query
    assert list(query) == [
        ("status", "FAILED"),
        ("status", "CANCELLED"),
        ("include", "items"),
        ("userId", "u1"),
        ("settled", "false"),
        ("createdFrom", "2026-07-01T10:00:00Z"),
        ("createdTo", "2026-07-02T00:00:00Z"),
        ("limit", "100"),
        ("cursor", "c1"),
    ]


@pytest.mark.parametrize("order_id", ["a/b", "a?b=c", "ü"])
def test_an_id_stays_one_part_of_the_path(order_id: str) -> None:
    path = calls.get_order(order_id).path
    assert path.startswith("/orders/")
    assert path.count("/") == 2
    assert "?" not in path


@pytest.mark.parametrize("wait", [0, 31])
def test_a_wait_that_the_service_would_not_grant_is_refused(wait: int) -> None:
    with pytest.raises(ValueError, match="allowed are 1 to 30"):
        calls.place_order(FULL, wait=wait)


def test_a_problem_says_all_that_the_service_said() -> None:
    body = {
        "type": "/problems/invalid-request",
        "title": "Unprocessable Content",
        "detail": "totalAmount: is 1",
        "failureCode": "invalid",
        "errors": [{"field": "totalAmount", "message": "is 1"}, "nonsense"],
    }
    error = errors.problem(422, body, {"x-request-id": "r1"})
    assert isinstance(error, InvalidError)
    assert (error.type, error.detail, error.failure_code, error.request_id) == (
        "/problems/invalid-request",
        "totalAmount: is 1",
        "invalid",
        "r1",
    )
    assert [(each.field, each.message) for each in error.errors] == [("totalAmount", "is 1")]


@pytest.mark.parametrize(("header", "seconds"), [("5", 5.0), ("-1", 0.0), ("soon", None), (None, None)])
def test_the_time_to_wait_is_read(header: str | None, seconds: float | None) -> None:
    error = errors.problem(429, {}, {} if header is None else {"retry-after": header})
    assert isinstance(error, RateLimitedError)
    assert error.retry_after == seconds


@pytest.mark.parametrize(
    ("status", "type_", "error"),
    [
        (422, "/problems/idempotency-key-reused", KeyReusedError),
        (429, "/problems/slots-full", SlotsFullError),
        (429, "/problems/rate-limited", RateLimitedError),
        (409, "/problems/slots-full", ConflictError),
        (422, "about:blank", InvalidError),
    ],
)
def test_the_type_of_a_problem_makes_a_class(status: int, type_: str, error: type[Exception]) -> None:
    found = errors.problem(status, {"type": type_}, {})
    assert (type(found), found.type, found.code) == (error, type_, type_.rsplit("/", 1)[-1])


def test_an_order_without_a_slot_is_told_with_the_error() -> None:
    found = errors.problem(429, {"type": "/problems/slots-full", "order": {**ANSWER, "status": "CANCELLED"}}, {})
    assert isinstance(found, SlotsFullError)
    assert found.order is not None
    assert (found.order.status, found.order.total_amount) == (Status.CANCELLED, Decimal("19.99"))
    assert SlotsFullError(429, {}, {}).order is None


def test_the_types_that_have_a_class_exist() -> None:
    defined = {type_.name for type_ in vars(problems).values() if isinstance(type_, problems.ProblemType)}
    assert {"idempotency-key-reused", "slots-full"} <= defined


def test_a_status_without_a_class_of_its_own_is_a_problem() -> None:
    error = errors.problem(500, {"detail": "An unexpected error"}, {})
    assert type(error) is errors.ProblemError
    assert str(error) == "500 An unexpected error"


def test_the_module_draws_its_tree() -> None:
    drawn = errors.__doc__ or ""
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert {word for word in drawn.replace("`", " ").split() if word.endswith("Error")} == defined

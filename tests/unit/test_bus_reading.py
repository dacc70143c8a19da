"""From deliveries to messages: the contract's shape or a short reason."""

import json
from dataclasses import replace
from typing import Any

import pytest

from shared.bus import Delivery
from shared.bus.reading import MAX_BODY_BYTES, read
from shared.contracts import OrderCreated, RefundPayment
from shared.errors import PoisonError, UnknownTypeError, UnknownValueError

ORDER = b'{"orderId":"o1","userId":"u1","items":[%s],"totalAmount":10}'
ITEM = b'{"productId":"p1","quantity":1,"price":10}'


def delivery(
    body: bytes,
    type_: str | None = "order.created",
    routing_key: str = "order.created",
    exchange: str = "ordersaga",
    headers: dict[str, Any] | None = None,
) -> Delivery:
    return Delivery(body, "payment.inbox", exchange, routing_key, type_, None, None, False, headers or {}, None)


def reason(body: bytes, *, handled: Any = (OrderCreated,), **changed: Any) -> str:
    with pytest.raises(PoisonError) as caught:
        read(delivery(body, **changed), handled)
    return str(caught.value)


def test_unknown_fields_are_ignored_and_known_ones_read() -> None:
    message = read(delivery(ORDER % (ITEM[:-1] + b',"new":1}')), {OrderCreated})
    assert isinstance(message, OrderCreated)
    assert message.items[0].price == 1000


@pytest.mark.parametrize("type_", [None, "", "payment.refund"])
def test_the_routing_key_gives_the_type_of_a_message_from_the_exchange(type_: str | None) -> None:
    assert isinstance(read(delivery(b'{"orderId":"o1"}', type_, "payment.refund"), {RefundPayment}), RefundPayment)


@pytest.mark.parametrize("type_", ["payment.refund", "order.created ", "no.such", "x" * 255])
@pytest.mark.parametrize("exchange", ["ordersaga", "somebody.elses"])
def test_a_type_that_contradicts_the_routing_key_is_refused_with_both(type_: str, exchange: str) -> None:
    text = reason(ORDER % ITEM, handled=(OrderCreated, RefundPayment), type_=type_, exchange=exchange)
    assert text.startswith("the routing key is 'order.created', but the type is '")
    assert len(text) < 250


def test_headers_cannot_change_the_type_of_a_message() -> None:
    text = reason(ORDER % ITEM, type_="payment.refund", headers={"x-routing-key": "payment.refund"})
    assert text == "the routing key is 'order.created', but the type is 'payment.refund'"


def test_the_type_header_gives_the_type_of_a_message_sent_to_the_inbox_by_name() -> None:
    """A retry or a replay: its routing key is the inbox, so nothing else says what it is."""
    direct = delivery(b'{"orderId":"o1"}', "payment.refund", "payment.inbox", exchange="")
    assert isinstance(read(direct, {RefundPayment}), RefundPayment)
    through = delivery(b'{"orderId":"o1"}', "payment.refund", "payment.inbox", exchange="ordersaga")
    with pytest.raises(PoisonError, match=r"the routing key is 'payment\.inbox', but the type is 'payment\.refund'"):
        read(through, {RefundPayment})


def order(item: str) -> bytes:
    return ORDER % item.encode()


WRONG = {
    b"{": "not a valid order.created: Invalid JSON: EOF while parsing an object at line 1 column 1",
    order('{"productId":"p1","quantity":0,"price":10}'): "items.0.quantity: Input should be greater than or equal to 1",
    order('{"productId":"p1","quantity":1.5,"price":10}'): "(got 1.5)",
    order(
        '{"productId":"p1","quantity":"1","price":10}'
    ): "items.0.quantity: Input should be a valid integer (got '1')",
    order('{"productId":"p1","quantity":1,"price":1e400}'): "items.0.price: Value error",
    order(""): "items: Value error, must have at least 1 item",
    ORDER % b",".join([ITEM] * 101): "items: Tuple should have at most 100 items",
}


@pytest.mark.parametrize(("body", "expected"), WRONG.items(), ids=WRONG.values())
def test_the_reason_names_the_field_and_the_value(body: bytes, expected: str) -> None:
    assert expected in reason(body)


def test_the_reason_is_short_for_long_bodies_and_many_errors() -> None:
    assert len(reason(ORDER % b",".join([b'{"productId":"%s"}' % (b"x" * 9_000)] * 100))) < 1500
    assert reason(b'{"orderId":1,"items":1,"currency":1,"payment":1,"delivery":1}').endswith("and 2 more")


def test_a_body_over_the_limit_is_refused_unread() -> None:
    assert "the maximum is 262144" in reason(b"{" * (MAX_BODY_BYTES + 1))


@pytest.mark.parametrize("type_", ["__class__", "order.created ", "ORDER.CREATED", "x" * 255])
def test_an_unknown_type_is_named_briefly(type_: str) -> None:
    with pytest.raises(UnknownTypeError) as caught:
        read(delivery(ORDER % ITEM, type_=type_, routing_key="payment.inbox", exchange=""), {OrderCreated})
    assert str(caught.value).startswith("unknown message type '")
    assert len(str(caught.value)) < 150


def an_order(**fields: Any) -> Delivery:
    return delivery(json.dumps({**json.loads(ORDER % ITEM), **fields}).encode())


def test_a_word_that_only_a_newer_sender_knows_is_named() -> None:
    with pytest.raises(UnknownValueError) as caught:
        read(an_order(payment={"method": "crypto"}), {OrderCreated})
    expected = "not a valid order.created: payment.method: Input should be 'card' or 'retainer' (got 'crypto')"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    "fields",
    [{"payment": {"method": 5}}, {"payment": {"method": None}}, {"payment": {"method": "crypto"}, "userId": ""}],
    ids=str,
)
def test_what_is_wrong_in_any_other_way_is_poison(fields: dict[str, Any]) -> None:
    with pytest.raises(PoisonError):
        read(an_order(**fields), {OrderCreated})


@pytest.mark.parametrize("type_", [None, ""])
def test_a_message_to_the_inbox_without_a_type_is_refused(type_: str | None) -> None:
    assert reason(ORDER % ITEM, type_=type_, routing_key="payment.inbox", exchange="") == "the message has no type"


def test_a_type_without_a_handler_here_is_named() -> None:
    assert (
        reason(b"{}", handled=(), type_=None, routing_key="payment.refund")
        == "payment.refund is not handled here (payment.inbox)"
    )


@pytest.mark.parametrize(("user", "allowed"), [("operations", True), ("deployer", True), ("guest", True), (None, True)])
def test_operations_and_users_of_no_table_may_send_to_an_inbox_by_its_name(user: str | None, allowed: bool) -> None:
    direct = delivery(b'{"orderId":"o1"}', "payment.refund", "payment.inbox", exchange="")
    assert isinstance(read(replace(direct, user_id=user), {RefundPayment}), RefundPayment) is allowed


def test_a_service_may_not_send_to_an_inbox_by_its_name_even_if_the_broker_lets_it() -> None:
    direct = replace(delivery(b'{"orderId":"o1"}', "payment.refund", "payment.inbox", exchange=""), user_id="inventory")
    with pytest.raises(PoisonError, match="'inventory' may not send to an inbox by its name"):
        read(direct, {RefundPayment})
    # Its own retries come through another exchange, which nobody else can reach.
    retry = replace(direct, exchange="ordersaga.inboxes", user_id="payment")
    assert isinstance(read(retry, {RefundPayment}), RefundPayment)

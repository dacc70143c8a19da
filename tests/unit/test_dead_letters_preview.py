"""What a replay would do: in words, per letter and one after the other, without any effect."""

from datetime import UTC, datetime
from typing import Any

from operations.dead_letters.preview import Effect, UnreadableOrder, body_to_send, message_of, previews
from order_service.order import Status
from shared import contracts as c
from shared.contracts import Message
from shared.database import Document
from shared.topology import INVENTORY_INBOX, ORDER_INBOX
from tests.support.builders import an_order

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
RESERVED = c.StockReserved(order_id="o1")
PAID = c.PaymentProcessed(order_id="o1", transaction_id="tx")


def a_letter(message: Message, queue: str = ORDER_INBOX, **changes: Any) -> Document:
    type_ = message.routing_key
    headers: dict[str, Any] = {}
    known = {"_id": "l1", "queue": queue, "routingKey": type_, "type": type_, "correlationId": "o1", "orderId": "o1"}
    body = message.to_json()
    return known | {"headers": headers, "body": body, "size": len(body), "edits": []} | changes


def words(*letters: Document, order: Any = None) -> list[str]:
    messages = [message_of(letter, body_to_send(letter)) for letter in letters]
    orders = {"o1": order} if order is not None else {}
    return [preview.in_words() for preview in previews(messages, orders, NOW)]


def order(**changes: Any) -> Any:
    return an_order(order_id="o1", now=NOW, **changes)


def test_it_says_what_changes_and_what_is_sent() -> None:
    waiting = order(stock_status="RESERVED", fulfilment="goods")
    assert words(a_letter(PAID), order=waiting) == ["PENDING → CONFIRMED, sends order.confirmed"]
    assert words(a_letter(PAID), order=order()) == ["PENDING, payment PENDING → PROCESSED"]
    refused = c.StockReservationFailed(order_id="o1", reason="none left")
    assert words(a_letter(refused), order=order()) == ["PENDING → CANCELLED, sends order.cancelled and payment.refund"]


def test_it_says_why_nothing_changes() -> None:
    settled = order(status=Status.CANCELLED, stock_status="RELEASED", payment_status="VOIDED", settled=True)
    assert words(a_letter(c.StockReleased(order_id="o1")), order=settled) == ["changes nothing: settled"]
    assert words(a_letter(RESERVED), order=settled) == ["changes nothing: settled, sends stock.release again"]


def test_each_finds_its_order_as_those_before_it_left_it() -> None:
    found = words(a_letter(RESERVED), a_letter(PAID), a_letter(PAID), order=order())
    assert found == [
        "PENDING, stock PENDING → RESERVED",
        "PENDING → CONFIRMED, sends order.confirmed",
        "changes nothing: settled, sends order.confirmed again",
    ]


def test_it_says_what_would_fail_again() -> None:
    assert words(a_letter(PAID)) == [
        "fails again: PoisonError: payment.processed for order o1, which does not exist",
    ]
    (broken,) = words(a_letter(PAID, body=b'{"orderId": 7}'), order=order())
    assert broken.startswith("fails again: PoisonError: not a valid payment.processed: orderId")
    (unknown,) = words(a_letter(PAID, routingKey="payment.refnud", type="payment.refnud"), order=order())
    assert unknown == "fails again: UnknownTypeError: unknown message type 'payment.refnud'"
    (big,) = words(a_letter(PAID, body=None, size=5_000_000), order=order())
    assert big == "fails again: the body has 5000000 bytes, too many to be sent: edit it"
    edited = [{"body": PAID.to_json()}]
    assert words(a_letter(PAID, body=None, edits=edited), order=order()) == ["PENDING, payment PENDING → PROCESSED"]


def test_what_fails_again_shows_nothing_hidden() -> None:
    letter = a_letter(PAID, body=b'{"orderId": "o1", "transactionId": "tx", "status": "tok_4242424242424242"}')
    (shown,) = words(letter, order=order())
    assert "4242" not in shown


def test_what_other_services_decide_has_no_preview() -> None:
    release = c.ReleaseStock(order_id="o1", reason="cancelled")
    (shown,) = words(a_letter(release, INVENTORY_INBOX), order=order())
    assert shown == "no preview: stock.release can be read; its service decides when it handles it"
    assert words(a_letter(PAID), order=UnreadableOrder("a newer saga")) == ["no preview: a newer saga"]


def test_an_order_whose_record_is_damaged_has_no_preview() -> None:
    damaged = order(items=(7,), stock_status="RESERVED", fulfilment="goods")
    refused = c.PaymentFailed(order_id="o1", reason="declined")
    (shown,) = words(a_letter(refused), order=damaged)
    assert shown.startswith("no preview: the record of order o1 is damaged (")


def test_a_message_of_another_service_that_cannot_be_read_is_said_to_fail() -> None:
    letter = a_letter(PAID, INVENTORY_INBOX, routingKey="order.created", type="order.created")
    (found,) = previews([message_of(letter, b"{}")], {}, NOW)
    assert found.effect is Effect.FAILS

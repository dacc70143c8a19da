"""What a replay would do: in words, per letter and one after the other, without any effect."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from inventory_service import stock
from inventory_service.stock import Kind, Product, Reservation
from operations.dead_letters.effects import Effect, Unreadable
from operations.dead_letters.payment_preview import Payments
from operations.dead_letters.preview import Read, Records, ToPreview, body_to_send, message_of, previews
from operations.dead_letters.stock_preview import Stock
from order_service.order import Status
from payment_service.lifecycle import Payment, PaymentStatus
from provisioning_service import lifecycle
from provisioning_service.job import Job, State
from provisioning_service.lifecycle import Command
from shared import contracts as c
from shared.contracts import Message
from shared.contracts.provisioning import Server
from shared.database import Document
from shared.topology import INVENTORY_INBOX, NOTIFICATION_INBOX, ORDER_INBOX, PAYMENT_INBOX, PROVISIONING_INBOX
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
    return in_words(messages, Records({"o1": order} if order is not None else {}))


def in_words(messages: Sequence[ToPreview], records: Records) -> list[str]:
    return [preview.in_words() for preview in previews(messages, records, NOW)]


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


def test_what_is_not_decided_by_a_record_has_no_preview() -> None:
    (shown,) = words(a_letter(c.ConsumerPausesChanged(service="inventory", changed_at=NOW, pauses=())))
    assert shown == "no preview: consumer.pauses_changed can be read; its service decides when it handles it"
    assert words(a_letter(PAID), order=Unreadable("a newer saga")) == ["no preview: a newer saga"]


def test_an_order_whose_record_is_damaged_has_no_preview() -> None:
    damaged = order(items=(7,), stock_status="RESERVED", fulfilment="goods")
    refused = c.PaymentFailed(order_id="o1", reason="declined")
    (shown,) = words(a_letter(refused), order=damaged)
    assert shown.startswith("no preview: the record of order o1 is damaged (")


def test_a_message_of_another_service_that_cannot_be_read_is_said_to_fail() -> None:
    letter = a_letter(PAID, INVENTORY_INBOX, routingKey="order.created", type="order.created")
    (found,) = previews([message_of(letter, b"{}")], Records(), NOW)
    assert found.effect is Effect.FAILS


def lamps(order_id: str, quantity: int = 1, **changes: Any) -> c.OrderCreated:
    items = [{"productId": "lamp", "quantity": quantity, "price": 5}]
    body = {"orderId": order_id, "userId": "u1", "items": items, "totalAmount": 5 * quantity, **changes}
    return c.OrderCreated.model_validate_json(orjson.dumps(body))


def lamp(free: int, **changes: Any) -> Product:
    known: dict[str, Any] = {"version": 1, "created_at": NOW, "updated_at": NOW, "supplied": free, "pending_moves": {}}
    return Product(id="lamp", kind=Kind.GOODS, quantity=free, **known | changes)


def of_stock(*messages: Message, free: int = 10, **statuses: str) -> list[str]:
    recorded = {name: Reservation(name, stock.Status(status), NOW, NOW) for name, status in statuses.items()}
    records = Records(stock=Stock(dict(recorded), {"lamp": lamp(free)}, frozenset({"assigned"})))
    return in_words([Read(INVENTORY_INBOX, message) for message in messages], records)


def test_stock_is_reserved_one_order_after_the_other_while_it_lasts() -> None:
    assert of_stock(lamps("a", 2), lamps("b", 2), lamps("c"), free=4) == [
        "stock nothing → RESERVED, sends stock.reserved",
        "stock nothing → RESERVED, sends stock.reserved",
        "no preview: order.created can be read; Insufficient stock for lamp: asked 1, free 0, apart from holds",
    ]
    with_slot = lamps("a", 2, delivery={"slot": "auto"})
    shown = of_stock(with_slot, lamps("b", 3), c.ReleaseStock(order_id="a"), free=4)
    assert all(words.startswith("no preview: ") for words in shown), "the first may get the units, or not"
    (refused,) = of_stock(lamps("a", items=[{"productId": "sofa", "quantity": 1, "price": 5}]))
    assert refused == "stock nothing → FAILED (Unknown product sofa), sends stock.reservation_failed"


def test_stock_that_is_decided_is_answered_from_its_record() -> None:
    asked = (lamps("o1"), c.ReleaseStock(order_id="o1"), c.ShipStock(order_id="o1"))
    assert of_stock(*asked, o1="RELEASED") == [
        "changes nothing: stock RELEASED, sends stock.released again",
        "changes nothing: stock RELEASED, sends stock.released again",
        "fails again: PoisonError: order o1 has a reservation that is RELEASED: there is nothing to ship",
    ]
    assert of_stock(*reversed(asked), o1="RESERVED") == [
        "stock RESERVED → SHIPPED, sends stock.shipped",
        "changes nothing: stock SHIPPED, sends stock.released again",
        "changes nothing: stock SHIPPED, sends stock.reserved again",
    ]
    assert of_stock(c.ReleaseStock(order_id="o1"), lamps("o1")) == [
        "stock nothing → RELEASED, sends stock.released",
        "changes nothing: stock RELEASED, sends stock.released again",
    ]
    (assigned,) = of_stock(c.ReleaseStock(order_id="assigned"))
    assert assigned == "no preview: stock.release can be read; another system has chosen a slot for the order"


def of_payment(*messages: Message, status: str | None = None, **changes: Any) -> list[str]:
    known: Payments = {}
    if status is not None:
        payment = Payment(order_id="o1", status=PaymentStatus(status), created_at=NOW, updated_at=NOW)
        known["o1"] = replace(payment, **changes)
    return in_words([Read(PAYMENT_INBOX, message) for message in messages], Records(payments=known))


def test_money_that_is_decided_is_answered_from_its_record() -> None:
    asked = (lamps("o1"), c.RefundPayment(order_id="o1"), c.CapturePayment(order_id="o1"))
    known = "payment.capture for order o1, which has no payment"
    assert of_payment(*asked[2:]) == [f"fails again: PoisonError: {known}"]
    assert of_payment(*asked[1:]) == [
        "payment nothing → VOIDED, sends payment.refunded",
        "changes nothing: payment VOIDED, sends payment.refunded again",
    ]
    assert (
        of_payment(*asked, status="REFUNDED") == ["changes nothing: payment REFUNDED, sends payment.refunded again"] * 3
    )
    undecided = "can be read; what it comes to is known when the money is asked for"
    assert of_payment(*asked, status="PROCESSED", transaction_id="tx") == [
        "changes nothing: payment PROCESSED, sends payment.processed again",
        f"no preview: payment.refund {undecided}",
        "no preview: payment.capture can be read; its service decides when it handles it",
    ]
    for message in asked:
        (shown,) = of_payment(message, status="AUTHORIZED")
        assert shown == (
            "changes nothing: payment AUTHORIZED, sends payment.processed again"
            if message is asked[0]
            else f"no preview: {message.routing_key} {undecided}"
        )
    assert of_payment(lamps("o1")) == [f"no preview: order.created {undecided}"]
    free = lamps("o1", totalAmount=0)
    assert of_payment(free) == ["payment nothing → PROCESSED, sends payment.processed"]


def test_damaged_records_of_other_services_have_no_preview() -> None:
    records = Records(stock=Stock({}, {"lamp": lamp(10, supplied=10, pending_moves=None)}))
    (shown,) = in_words([Read(INVENTORY_INBOX, lamps("o1"))], records)
    assert shown.startswith("no preview: the record of order o1 is damaged (")
    (shown,) = in_words([Read(INVENTORY_INBOX, lamps("o1"))], Records(stock=Stock({}, {"lamp": Unreadable("broken")})))
    assert shown == "no preview: broken"


def of_jobs(*messages: Message, **jobs: Job | Unreadable) -> list[str]:
    return in_words([Read(PROVISIONING_INBOX, message) for message in messages], Records(jobs=jobs))


def a_job(*commands: Command, **changes: Any) -> Job:
    job: Job | None = None
    for command in commands:
        job = lifecycle.without_final_message(lifecycle.commanded(job, command, NOW, 1), job)
    assert job is not None
    return replace(job, **changes)


def test_a_request_for_a_server_starts_a_run_and_only_a_further_one_starts_another() -> None:
    first, second = [c.ProvisionServer(order_id="o1", user_id="u1", package="10.0.0", run=run) for run in (1, 2)]
    failed = a_job(first, state=State.FAILED, failure_reason="No address")
    assert of_jobs(first, first) == [
        "provisioning nothing → QUEUED (FAILED if no provider is configured), sends provisioning.progress",
        "changes nothing: provisioning QUEUED",
    ]
    assert of_jobs(first, second, o1=failed) == [
        "changes nothing: provisioning FAILED, sends provisioning.failed again",
        "provisioning FAILED → QUEUED (FAILED if no provider is configured), sends provisioning.progress",
    ]
    assert of_jobs(first, o1=Unreadable("damaged")) == ["no preview: damaged"]


def test_a_cancellation_ends_what_no_worker_runs() -> None:
    request, cancel = (
        c.ProvisionServer(order_id="o1", user_id="u1", package="10.0.0"),
        c.CancelProvisioning(order_id="o1"),
    )
    ended = "provisioning QUEUED → FAILED (Cancelled), sends provisioning.failed"
    repeated = "changes nothing: provisioning FAILED, sends provisioning.failed again"
    assert of_jobs(cancel, cancel, request, o1=a_job(request)) == [ended, repeated, repeated]
    assert of_jobs(cancel) == ["provisioning nothing → FAILED (Cancelled), sends provisioning.failed"]
    (running,) = of_jobs(cancel, o1=a_job(request, state=State.RUNNING))
    assert running.startswith("no preview: provisioning.cancel can be read; the worker")
    (bought,) = of_jobs(cancel, o1=a_job(request, state=State.WAITING, ip="10.0.0.7"))
    assert bought == "provisioning WAITING, records provisioning.cancel"
    (done,) = of_jobs(cancel, o1=a_job(request, state=State.COMPLETED, ip="10.0.0.7", server=Server(ip="10.0.0.7")))
    assert done == "changes nothing: provisioning COMPLETED, sends provisioning.completed again"


def test_a_message_that_a_service_does_not_take_damages_no_record() -> None:
    request = c.ProvisionServer(order_id="o1", user_id="u1", package="10.0.0")
    confirmed = c.OrderConfirmed(order_id="o1", user_id="u1", total_amount=1000)
    assert in_words([Read(NOTIFICATION_INBOX, request), Read(PROVISIONING_INBOX, confirmed)], Records()) == [
        "no preview: provisioning.requested can be read; its service decides when it handles it",
        "no preview: order.confirmed can be read; its service decides when it handles it",
    ]


def test_what_webhooks_hear_of_is_said_without_knowing_them() -> None:
    confirmed = c.OrderConfirmed(order_id="o1", user_id="u1", total_amount=1000)
    low = c.PackageLowIps(package="10.0.0", ipv4=3)
    damaged = c.OrderRefunded(order_id="o1", user_id="u1", refund_id="r1", amount=100, order={"updatedAt": "yesterday"})
    messages = (confirmed, confirmed, low, damaged)
    found = in_words([Read(NOTIFICATION_INBOX, message) for message in messages], Records())
    goes = "no preview: order.confirmed goes to those of its owner's webhooks that asked for it and have not got it yet"
    assert found == [
        goes,
        goes,
        "no preview: package.low_ips goes to those of the staff's webhooks that asked for it and have not got it yet",
        "fails again: ValueError: Invalid isoformat string: 'yesterday'",
    ]

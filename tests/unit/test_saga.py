"""The saga as a dialogue: every status with every event, and what must hold whatever the order of events."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from order_service import refunds
from order_service.diagram import transitions
from order_service.events import (
    CancelRequested,
    DeadlinePassed,
    DeliveryNoted,
    Event,
    RefundPartRequested,
    RefundRequested,
    Request,
    RetryRequested,
)
from order_service.order import Order, Refund, RefundLine, Status
from order_service.rules import Transition
from order_service.saga import MAX_RUNS, SAGA
from shared import contracts as c
from shared.contracts.inventory import ServerSpecification
from shared.contracts.orders import DeliveryInstruction, Item, PaymentInstruction
from shared.contracts.provisioning import Server

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
ID = "0123456789abcdef"


def new_order() -> Order:
    return Order(
        order_id=ID,
        user_id="u1",
        items=(Item(product_id="p1", quantity=2, price=500),),
        total_amount=1000,
        currency="USD",
        payment=PaymentInstruction(),
        delivery=DeliveryInstruction(),
        created_at=NOW,
        updated_at=NOW,
        deadline=NOW + timedelta(minutes=5),
    )


STOCK_RESERVED = c.StockReserved(order_id=ID)
SERVER_RESERVED = c.StockReserved(
    order_id=ID, fulfilment="vps", provisioning=ServerSpecification(package="103.181.91", package_id="7", ram=2048)
)
NO_STOCK = c.StockReservationFailed(order_id=ID, reason="Insufficient stock for p1: asked 2, free 1")
SHIPPED = c.StockShipped(order_id=ID)
STOCK_RELEASED = c.StockReleased(order_id=ID)
PAID = c.PaymentProcessed(order_id=ID, transaction_id="tx")
AUTHORIZED = c.PaymentProcessed(order_id=ID, status="AUTHORIZED", transaction_id="tx")
CAPTURED = c.PaymentCaptured(order_id=ID)
NOT_CAPTURED = c.PaymentCaptureFailed(order_id=ID, reason="The authorisation has expired")
DECLINED = c.PaymentFailed(order_id=ID, reason="The card was declined")
REFUNDED = c.PaymentRefunded(order_id=ID, status="REFUNDED")
VOIDED = c.PaymentRefunded(order_id=ID, status="VOIDED")
PROGRESS = c.ProvisioningProgress(order_id=ID, step="buy", attempt=1, message="Your server is being provisioned")
SERVER_READY = c.ProvisioningCompleted(order_id=ID, server=Server(ip="103.181.91.50"))
NO_SERVER = c.ProvisioningFailed(order_id=ID, reason="Package has no available IPs")
FIRST_RUN_FAILED = c.ProvisioningFailed(order_id=ID, reason="The provider does not answer", run=1)
SECOND_RUN_FAILED = c.ProvisioningFailed(order_id=ID, reason="PROVISIONING BLOCKED: Wrong package assigned", run=2)
WRONG_SERVER = c.ProvisioningFailed(
    order_id=ID, reason="PROVISIONING BLOCKED: Wrong package assigned", run=2, bought=True
)
SAID_1, SAID_2, SAID_3 = (
    c.ProvisioningProgress(order_id=ID, step="buy", attempt=1, message=message, sequence=sequence)
    for sequence, message in enumerate(
        ("Your server is being provisioned", "Waiting 2 minutes before attempt 2 of 3", "Your server is ready"), start=1
    )
)
CANCEL = CancelRequested("changed my mind")
DELIVERED = DeliveryNoted()
RETRY, REFUND, DEADLINE = RetryRequested(), RefundRequested(), DeadlinePassed()


def refund_part(refund_id: str, amount: int, units: int = 0) -> RefundPartRequested:
    """A request for a refund in part; with units of p1, they go back into free stock."""
    lines = (RefundLine("p1", units),) if units else ()
    return RefundPartRequested(
        Refund(refund_id=refund_id, amount=amount, created_at=NOW, updated_at=NOW, lines=lines, restock=bool(units))
    )


PART = refund_part("r1", 500, units=1)
OTHER_PART = refund_part("r2", 500)
PART_REFUNDED = c.PartRefunded(order_id=ID, refund_id="r1")
PART_REFUSED = c.PartRefundFailed(order_id=ID, refund_id="r1", reason="The card's bank refused the refund")
STOCK_RETURNED = c.StockReturned(order_id=ID, refund_id="r1")

EVENTS: dict[str, Event] = {
    "stock reserved": STOCK_RESERVED,
    "server reserved": SERVER_RESERVED,
    "no stock": NO_STOCK,
    "stock released": STOCK_RELEASED,
    "shipped": SHIPPED,
    "paid": PAID,
    "authorized": AUTHORIZED,
    "captured": CAPTURED,
    "not captured": NOT_CAPTURED,
    "declined": DECLINED,
    "refunded": REFUNDED,
    "voided": VOIDED,
    "progress": PROGRESS,
    "progress 1": SAID_1,
    "progress 2": SAID_2,
    "server ready": SERVER_READY,
    "no server": NO_SERVER,
    "no server, run 1": FIRST_RUN_FAILED,
    "no server, run 2": SECOND_RUN_FAILED,
    "wrong server": WRONG_SERVER,
    "cancel": CANCEL,
    "delivered": DELIVERED,
    "retry": RETRY,
    "refund": REFUND,
    "deadline": DEADLINE,
    "refund in part": PART,
    "another refund in part": OTHER_PART,
    "part refunded": PART_REFUNDED,
    "part refused": PART_REFUSED,
    "stock returned": STOCK_RETURNED,
}


def play(*events: Event, order: Order | None = None) -> Order:
    order = order or new_order()
    for event in events:
        order = SAGA.advance(order, event, NOW).order
    return order


def last(*events: Event) -> Transition:
    return SAGA.advance(play(*events[:-1]), events[-1], NOW)


def sent(*events: Event) -> list[str]:
    return [message.routing_key for message in last(*events).messages]


# The effect of each event in each status: the status it leads to and the messages. All other pairs must change and
# send nothing.
STATES = {
    "PENDING": new_order(),
    "PENDING with stock": play(STOCK_RESERVED),
    "PENDING with payment": play(PAID),
    "CONFIRMED": play(STOCK_RESERVED, PAID),
    "PENDING, authorized": play(AUTHORIZED),
    "CONFIRMED, authorized": play(STOCK_RESERVED, AUTHORIZED),
    "CONFIRMED, captured": play(STOCK_RESERVED, AUTHORIZED, CAPTURED),
    "COMPLETED, goods leaving": play(STOCK_RESERVED, PAID, DELIVERED),
    "COMPLETED goods": play(STOCK_RESERVED, PAID, DELIVERED, SHIPPED),
    "CONFIRMED, being refunded": play(STOCK_RESERVED, PAID, PART),
    "CONFIRMED, stock on its way back": play(STOCK_RESERVED, PAID, PART, PART_REFUNDED),
    "CONFIRMED, refunded in part": play(STOCK_RESERVED, PAID, PART, PART_REFUNDED, STOCK_RETURNED),
    "CONFIRMED, refund refused": play(STOCK_RESERVED, PAID, PART, PART_REFUSED),
    "COMPLETED goods, being refunded": play(STOCK_RESERVED, PAID, DELIVERED, SHIPPED, PART),
    "COMPLETED, goods leaving, being refunded": play(STOCK_RESERVED, PAID, PART, DELIVERED),
    "PROVISIONING": play(SERVER_RESERVED, PAID),
    "PROVISIONING, to be cancelled": play(SERVER_RESERVED, PAID, CANCEL),
    "PROVISIONING, progress 2 known": play(SERVER_RESERVED, PAID, SAID_2),
    "PROVISIONING, run 2": play(SERVER_RESERVED, PAID, FIRST_RUN_FAILED, RETRY),
    "PROVISIONING, run 2, to be cancelled": play(SERVER_RESERVED, PAID, FIRST_RUN_FAILED, RETRY, CANCEL),
    "COMPLETED": play(SERVER_RESERVED, PAID, SERVER_READY),
    "COMPLETED though cancelled": play(SERVER_RESERVED, PAID, CANCEL, SERVER_READY),
    "FAILED": play(SERVER_RESERVED, PAID, NO_SERVER),
    "FAILED, run 2": play(SERVER_RESERVED, PAID, FIRST_RUN_FAILED, RETRY, SECOND_RUN_FAILED),
    "FAILED, compensating": play(SERVER_RESERVED, PAID, NO_SERVER, REFUND),
    "FAILED, run 2, compensating": play(SERVER_RESERVED, PAID, FIRST_RUN_FAILED, RETRY, SECOND_RUN_FAILED, DEADLINE),
    "FAILED, its money gone": play(SERVER_RESERVED, PAID, NO_SERVER, REFUNDED),
    "PROVISIONING, authorized": play(SERVER_RESERVED, AUTHORIZED),
    "COMPLETED, authorized": play(SERVER_RESERVED, AUTHORIZED, SERVER_READY),
    "FAILED, authorized": play(SERVER_RESERVED, AUTHORIZED, NO_SERVER),
    "FAILED, not captured": play(STOCK_RESERVED, AUTHORIZED, NOT_CAPTURED),
    "FAILED, server not captured": play(SERVER_RESERVED, AUTHORIZED, SERVER_READY, NOT_CAPTURED),
    "FAILED, not captured, compensating": play(STOCK_RESERVED, AUTHORIZED, NOT_CAPTURED, REFUND),
    "CANCELLED, authorized": play(AUTHORIZED, CANCEL),
    "CANCELLED by client": play(CANCEL),
    "CANCELLED by stock": play(NO_STOCK),
    "CANCELLED by payment": play(STOCK_RESERVED, DECLINED),
    "CANCELLED in run 2": play(SERVER_RESERVED, PAID, FIRST_RUN_FAILED, RETRY, CANCEL, SECOND_RUN_FAILED),
    "CANCELLED and settled": play(STOCK_RESERVED, DECLINED, STOCK_RELEASED),
}

COMPENSATING = (
    "FAILED, compensating",
    "FAILED, run 2, compensating",
    "CANCELLED by client",
    "CANCELLED by stock",
    "CANCELLED by payment",
    "CANCELLED in run 2",
    "CANCELLED, authorized",
    "FAILED, not captured, compensating",
)
BOTH = ["stock.release", "payment.refund"]
REACTIONS: dict[tuple[str, str], tuple[str, list[str]]] = {
    ("PENDING", "stock reserved"): ("PENDING", []),
    ("PENDING", "server reserved"): ("PENDING", []),
    ("PENDING", "paid"): ("PENDING", []),
    ("PENDING", "no stock"): ("CANCELLED", ["order.cancelled", "payment.refund"]),
    ("PENDING", "declined"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING", "stock released"): ("CANCELLED", ["order.cancelled", "payment.refund"]),
    ("PENDING", "refunded"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING", "voided"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING", "cancel"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("PENDING", "deadline"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("PENDING with stock", "server reserved"): ("PENDING", []),
    ("PENDING with stock", "paid"): ("CONFIRMED", ["order.confirmed"]),
    ("PENDING with stock", "no stock"): ("CANCELLED", ["order.cancelled", "payment.refund"]),
    ("PENDING with stock", "declined"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING with stock", "stock released"): ("CANCELLED", ["order.cancelled", "payment.refund"]),
    ("PENDING with stock", "refunded"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING with stock", "voided"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING with stock", "cancel"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("PENDING with stock", "deadline"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("PENDING with payment", "stock reserved"): ("CONFIRMED", ["order.confirmed"]),
    ("PENDING with payment", "server reserved"): ("PROVISIONING", ["order.provisioning", "provisioning.requested"]),
    ("PENDING with payment", "no stock"): ("CANCELLED", ["order.cancelled", "payment.refund"]),
    ("PENDING with payment", "declined"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING with payment", "stock released"): ("CANCELLED", ["order.cancelled", "payment.refund"]),
    ("PENDING with payment", "refunded"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING with payment", "voided"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING with payment", "cancel"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("PENDING with payment", "deadline"): ("CANCELLED", ["order.cancelled", *BOTH]),
    # The answer that completed the join comes again: what followed from it may have been lost, so it is repeated.
    ("CONFIRMED", "paid"): ("CONFIRMED", ["order.confirmed"]),
    ("CONFIRMED", "delivered"): ("COMPLETED", ["order.completed", "stock.ship"]),
    ("COMPLETED, goods leaving", "shipped"): ("COMPLETED", []),
    ("CONFIRMED", "refund in part"): ("CONFIRMED", ["payment.refund_part"]),
    ("CONFIRMED, being refunded", "delivered"): (
        "COMPLETED",
        ["order.completed", "stock.ship", "payment.refund_part"],
    ),
    ("CONFIRMED, stock on its way back", "delivered"): ("COMPLETED", ["order.completed", "stock.ship", "stock.return"]),
    ("CONFIRMED, refunded in part", "delivered"): ("COMPLETED", ["order.completed", "stock.ship"]),
    ("CONFIRMED, refund refused", "delivered"): ("COMPLETED", ["order.completed", "stock.ship"]),
    ("COMPLETED, goods leaving", "refund in part"): ("COMPLETED", ["payment.refund_part"]),
    ("COMPLETED, goods leaving, being refunded", "part refunded"): ("COMPLETED", ["order.refunded", "stock.return"]),
    ("CONFIRMED, being refunded", "paid"): ("CONFIRMED", ["order.confirmed", "payment.refund_part"]),
    ("CONFIRMED, being refunded", "part refunded"): ("CONFIRMED", ["order.refunded", "stock.return"]),
    ("CONFIRMED, being refunded", "part refused"): ("CONFIRMED", []),
    ("CONFIRMED, stock on its way back", "paid"): ("CONFIRMED", ["order.confirmed", "stock.return"]),
    # A repeated answer repeats what followed from it, which a crash may have lost.
    ("CONFIRMED, stock on its way back", "part refunded"): ("CONFIRMED", ["order.refunded", "stock.return"]),
    ("CONFIRMED, stock on its way back", "stock returned"): ("CONFIRMED", []),
    ("CONFIRMED, refunded in part", "paid"): ("CONFIRMED", ["order.confirmed"]),
    ("CONFIRMED, refunded in part", "part refunded"): ("CONFIRMED", ["order.refunded"]),
    ("CONFIRMED, refund refused", "paid"): ("CONFIRMED", ["order.confirmed"]),
    **{
        (state, "another refund in part"): (state.partition(",")[0].partition(" ")[0], ["payment.refund_part"])
        for state in (
            "CONFIRMED",
            "CONFIRMED, being refunded",
            "CONFIRMED, stock on its way back",
            "CONFIRMED, refunded in part",
            "CONFIRMED, refund refused",
            "COMPLETED goods",
            "COMPLETED goods, being refunded",
            "COMPLETED, goods leaving",
            "COMPLETED, goods leaving, being refunded",
        )
    },
    ("COMPLETED goods", "refund in part"): ("COMPLETED", ["payment.refund_part"]),
    ("COMPLETED goods, being refunded", "part refunded"): ("COMPLETED", ["order.refunded", "stock.return"]),
    ("COMPLETED goods, being refunded", "part refused"): ("COMPLETED", []),
    ("PROVISIONING", "paid"): ("PROVISIONING", ["order.provisioning", "provisioning.requested"]),
    ("PROVISIONING", "server ready"): ("COMPLETED", ["order.completed"]),
    ("PROVISIONING", "no server"): ("FAILED", ["order.failed"]),
    ("PROVISIONING", "no server, run 1"): ("FAILED", ["order.failed"]),
    ("PROVISIONING", "no server, run 2"): ("FAILED", ["order.failed"]),
    ("PROVISIONING", "wrong server"): ("FAILED", ["order.failed"]),
    ("PROVISIONING", "cancel"): ("PROVISIONING", ["provisioning.cancel"]),
    ("PROVISIONING, to be cancelled", "paid"): (
        "PROVISIONING",
        ["order.provisioning", "provisioning.requested", "provisioning.cancel"],
    ),
    ("PROVISIONING, to be cancelled", "server ready"): ("COMPLETED", ["order.completed"]),
    ("PROVISIONING, to be cancelled", "no server"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("PROVISIONING, to be cancelled", "no server, run 1"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("PROVISIONING, to be cancelled", "no server, run 2"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("PROVISIONING, to be cancelled", "wrong server"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, to be cancelled", "cancel"): ("PROVISIONING", ["provisioning.cancel"]),
    ("PROVISIONING, progress 2 known", "paid"): ("PROVISIONING", ["order.provisioning", "provisioning.requested"]),
    ("PROVISIONING, progress 2 known", "server ready"): ("COMPLETED", ["order.completed"]),
    ("PROVISIONING, progress 2 known", "no server"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, progress 2 known", "no server, run 1"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, progress 2 known", "no server, run 2"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, progress 2 known", "wrong server"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, progress 2 known", "cancel"): ("PROVISIONING", ["provisioning.cancel"]),
    # Late answers of the first run do not end the second, but a server is a server.
    ("PROVISIONING, run 2", "server ready"): ("COMPLETED", ["order.completed"]),
    ("PROVISIONING, run 2", "no server"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, run 2", "no server, run 2"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, run 2", "wrong server"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, run 2", "cancel"): ("PROVISIONING", ["provisioning.cancel"]),
    ("PROVISIONING, run 2, to be cancelled", "server ready"): ("COMPLETED", ["order.completed"]),
    ("PROVISIONING, run 2, to be cancelled", "no server"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("PROVISIONING, run 2, to be cancelled", "no server, run 2"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("PROVISIONING, run 2, to be cancelled", "wrong server"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, run 2, to be cancelled", "cancel"): ("PROVISIONING", ["provisioning.cancel"]),
    ("COMPLETED", "server ready"): ("COMPLETED", ["order.completed"]),
    ("COMPLETED though cancelled", "server ready"): ("COMPLETED", ["order.completed"]),
    ("FAILED", "no server"): ("FAILED", ["order.failed"]),
    ("FAILED", "no server, run 1"): ("FAILED", ["order.failed"]),
    ("FAILED", "no server, run 2"): ("FAILED", ["order.failed"]),
    ("FAILED", "wrong server"): ("FAILED", ["order.failed"]),
    ("FAILED", "server ready"): ("COMPLETED", ["order.completed"]),
    ("FAILED", "stock released"): ("FAILED", []),
    ("FAILED", "refunded"): ("FAILED", []),
    ("FAILED", "voided"): ("FAILED", []),
    ("FAILED", "retry"): ("PROVISIONING", ["order.provisioning", "provisioning.requested"]),
    ("FAILED", "refund"): ("FAILED", BOTH),
    ("FAILED", "deadline"): ("FAILED", BOTH),
    ("FAILED, run 2", "no server"): ("FAILED", ["order.failed"]),
    ("FAILED, run 2", "no server, run 2"): ("FAILED", ["order.failed"]),
    ("FAILED, run 2", "wrong server"): ("FAILED", ["order.failed"]),
    ("FAILED, run 2", "server ready"): ("COMPLETED", ["order.completed"]),
    ("FAILED, run 2", "retry"): ("PROVISIONING", ["order.provisioning", "provisioning.requested"]),
    ("FAILED, run 2", "refund"): ("FAILED", BOTH),
    ("FAILED, run 2", "deadline"): ("FAILED", BOTH),
    ("FAILED, run 2, compensating", "no server"): ("FAILED", ["order.failed", *BOTH]),
    ("FAILED, run 2, compensating", "no server, run 2"): ("FAILED", ["order.failed", *BOTH]),
    ("FAILED, run 2, compensating", "wrong server"): ("FAILED", ["order.failed", *BOTH]),
    # A server that is no longer paid for does not complete the order; what is still held can be returned.
    ("FAILED, its money gone", "no server"): ("FAILED", ["order.failed"]),
    ("FAILED, its money gone", "no server, run 1"): ("FAILED", ["order.failed"]),
    ("FAILED, its money gone", "no server, run 2"): ("FAILED", ["order.failed"]),
    ("FAILED, its money gone", "wrong server"): ("FAILED", ["order.failed"]),
    ("FAILED, its money gone", "refund"): ("FAILED", ["stock.release"]),
    ("FAILED, its money gone", "deadline"): ("FAILED", ["stock.release"]),
    ("FAILED, compensating", "no server"): ("FAILED", ["order.failed", *BOTH]),
    ("FAILED, compensating", "no server, run 1"): ("FAILED", ["order.failed", *BOTH]),
    ("FAILED, compensating", "no server, run 2"): ("FAILED", ["order.failed", *BOTH]),
    ("FAILED, compensating", "wrong server"): ("FAILED", ["order.failed", *BOTH]),
    ("FAILED, compensating", "stock released"): ("FAILED", []),
    ("FAILED, compensating", "refunded"): ("FAILED", []),
    ("FAILED, compensating", "voided"): ("FAILED", []),
    # A repeated request sends the unanswered part of the compensation again.
    ("FAILED, compensating", "cancel"): ("FAILED", BOTH),
    ("FAILED, compensating", "refund"): ("FAILED", BOTH),
    ("FAILED, run 2, compensating", "cancel"): ("FAILED", BOTH),
    ("FAILED, run 2, compensating", "refund"): ("FAILED", BOTH),
    ("CANCELLED by client", "cancel"): ("CANCELLED", BOTH),
    ("CANCELLED by client", "refund"): ("CANCELLED", BOTH),
    ("CANCELLED by stock", "cancel"): ("CANCELLED", ["payment.refund"]),
    ("CANCELLED by stock", "refund"): ("CANCELLED", ["payment.refund"]),
    ("CANCELLED by payment", "cancel"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED by payment", "refund"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED in run 2", "cancel"): ("CANCELLED", BOTH),
    ("CANCELLED in run 2", "refund"): ("CANCELLED", BOTH),
    # Late answers on a cancelled order are compensated; the answer that cancelled it repeats what it led to.
    ("CANCELLED by client", "stock reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED by client", "server reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED by client", "paid"): ("CANCELLED", ["payment.refund"]),
    ("CANCELLED by client", "no stock"): ("CANCELLED", []),
    ("CANCELLED by client", "declined"): ("CANCELLED", []),
    ("CANCELLED by client", "stock released"): ("CANCELLED", []),
    ("CANCELLED by client", "refunded"): ("CANCELLED", []),
    ("CANCELLED by client", "voided"): ("CANCELLED", []),
    ("CANCELLED by stock", "no stock"): ("CANCELLED", ["order.cancelled", "payment.refund"]),
    ("CANCELLED by stock", "stock reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED by stock", "server reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED by stock", "paid"): ("CANCELLED", ["payment.refund"]),
    ("CANCELLED by stock", "declined"): ("CANCELLED", []),
    ("CANCELLED by stock", "refunded"): ("CANCELLED", []),
    ("CANCELLED by stock", "voided"): ("CANCELLED", []),
    ("CANCELLED by payment", "declined"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("CANCELLED by payment", "stock reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED by payment", "server reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED by payment", "no stock"): ("CANCELLED", []),
    ("CANCELLED by payment", "stock released"): ("CANCELLED", []),
    ("CANCELLED by payment", "paid"): ("CANCELLED", ["payment.refund"]),
    ("CANCELLED in run 2", "stock reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED in run 2", "server reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED in run 2", "paid"): ("CANCELLED", ["payment.refund"]),
    ("CANCELLED in run 2", "no server"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("CANCELLED in run 2", "no server, run 2"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("CANCELLED in run 2", "wrong server"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("CANCELLED and settled", "declined"): ("CANCELLED", ["order.cancelled"]),
    ("CANCELLED and settled", "stock reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED and settled", "server reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED and settled", "no stock"): ("CANCELLED", []),
    ("CANCELLED and settled", "paid"): ("CANCELLED", ["payment.refund"]),
    # An authorised payment is as good as a charged one until the order is fulfilled; then it is captured, and
    # only then is the order announced.
    ("PENDING, authorized", "stock reserved"): ("CONFIRMED", ["payment.capture"]),
    ("PENDING, authorized", "server reserved"): ("PROVISIONING", ["order.provisioning", "provisioning.requested"]),
    ("PENDING, authorized", "no stock"): ("CANCELLED", ["order.cancelled", "payment.refund"]),
    ("PENDING, authorized", "stock released"): ("CANCELLED", ["order.cancelled", "payment.refund"]),
    ("PENDING, authorized", "declined"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING, authorized", "refunded"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING, authorized", "voided"): ("CANCELLED", ["order.cancelled", "stock.release"]),
    ("PENDING, authorized", "cancel"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("PENDING, authorized", "deadline"): ("CANCELLED", ["order.cancelled", *BOTH]),
    ("CONFIRMED, authorized", "paid"): ("CONFIRMED", ["payment.capture"]),
    ("CONFIRMED, authorized", "captured"): ("CONFIRMED", ["order.confirmed"]),
    ("CONFIRMED, authorized", "not captured"): ("FAILED", ["order.failed"]),
    ("CONFIRMED, captured", "captured"): ("CONFIRMED", ["order.confirmed"]),
    ("CONFIRMED, captured", "delivered"): ("COMPLETED", ["order.completed", "stock.ship"]),
    ("CONFIRMED, captured", "refund in part"): ("CONFIRMED", ["payment.refund_part"]),
    ("CONFIRMED, captured", "another refund in part"): ("CONFIRMED", ["payment.refund_part"]),
    ("PROVISIONING, authorized", "paid"): ("PROVISIONING", ["order.provisioning", "provisioning.requested"]),
    ("PROVISIONING, authorized", "server ready"): ("COMPLETED", ["payment.capture"]),
    ("PROVISIONING, authorized", "no server"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, authorized", "no server, run 1"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, authorized", "no server, run 2"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, authorized", "wrong server"): ("FAILED", ["order.failed"]),
    ("PROVISIONING, authorized", "cancel"): ("PROVISIONING", ["provisioning.cancel"]),
    ("COMPLETED, authorized", "captured"): ("COMPLETED", ["order.completed"]),
    ("COMPLETED, authorized", "not captured"): ("FAILED", ["order.failed"]),
    ("COMPLETED, authorized", "server ready"): ("COMPLETED", ["payment.capture"]),
    ("FAILED, authorized", "server ready"): ("COMPLETED", ["payment.capture"]),
    ("FAILED, authorized", "no server"): ("FAILED", ["order.failed"]),
    ("FAILED, authorized", "no server, run 1"): ("FAILED", ["order.failed"]),
    ("FAILED, authorized", "no server, run 2"): ("FAILED", ["order.failed"]),
    ("FAILED, authorized", "wrong server"): ("FAILED", ["order.failed"]),
    ("FAILED, authorized", "retry"): ("PROVISIONING", ["order.provisioning", "provisioning.requested"]),
    ("FAILED, authorized", "refund"): ("FAILED", BOTH),
    ("FAILED, authorized", "deadline"): ("FAILED", BOTH),
    # What is refused at the end can be retried from there, or given up; a late success of a repetition counts.
    ("FAILED, not captured", "captured"): ("CONFIRMED", ["order.confirmed"]),
    ("FAILED, not captured", "not captured"): ("FAILED", ["order.failed"]),
    ("FAILED, not captured", "retry"): ("CONFIRMED", ["payment.capture"]),
    ("FAILED, not captured", "refund"): ("FAILED", BOTH),
    ("FAILED, not captured", "deadline"): ("FAILED", BOTH),
    ("FAILED, not captured", "stock released"): ("FAILED", []),
    ("FAILED, not captured", "refunded"): ("FAILED", []),
    ("FAILED, not captured", "voided"): ("FAILED", []),
    ("FAILED, server not captured", "captured"): ("COMPLETED", ["order.completed"]),
    ("FAILED, server not captured", "not captured"): ("FAILED", ["order.failed"]),
    ("FAILED, server not captured", "retry"): ("COMPLETED", ["payment.capture"]),
    ("FAILED, server not captured", "refund"): ("FAILED", BOTH),
    ("FAILED, server not captured", "deadline"): ("FAILED", BOTH),
    ("FAILED, not captured, compensating", "not captured"): ("FAILED", ["order.failed", *BOTH]),
    ("FAILED, not captured, compensating", "cancel"): ("FAILED", BOTH),
    ("FAILED, not captured, compensating", "refund"): ("FAILED", BOTH),
    ("CANCELLED, authorized", "stock reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED, authorized", "server reserved"): ("CANCELLED", ["stock.release"]),
    ("CANCELLED, authorized", "paid"): ("CANCELLED", ["payment.refund"]),
    ("CANCELLED, authorized", "cancel"): ("CANCELLED", BOTH),
    ("CANCELLED, authorized", "refund"): ("CANCELLED", BOTH),
}
REACTIONS |= {(state, "authorized"): reaction for (state, event), reaction in REACTIONS.items() if event == "paid"}
REACTIONS["PENDING with stock", "authorized"] = ("CONFIRMED", ["payment.capture"])


@pytest.mark.parametrize("state", STATES)
def test_every_status_with_every_event(state: str) -> None:
    before = STATES[state]
    for name, event in EVENTS.items():
        step = SAGA.advance(before, event, NOW)
        expected = REACTIONS.get((state, name), (before.status.value, []))
        assert (step.order.status.value, [message.routing_key for message in step.messages]) == expected, name
        assert all(message.correlation_id == ID for message in step.messages), name


def test_the_page_names_only_statuses_and_events_that_exist() -> None:
    assert set(SAGA.table) == set(Status)
    assert {kind for row in SAGA.table.values() for kind in row} <= {type(event) for event in EVENTS.values()}


@pytest.mark.parametrize("events", list(permutations([STOCK_RESERVED, PAID])))
def test_either_answer_may_complete_the_join(events: tuple[Event, ...]) -> None:
    order = play(*events)
    assert order.status is Status.CONFIRMED
    assert order.settled
    assert order.confirmed_at == NOW


def test_a_step_that_is_done_is_not_in_the_history_twice() -> None:
    assert last(STOCK_RESERVED, PAID, PAID).entry is None
    assert last(STOCK_RESERVED, STOCK_RESERVED).entry is None


def test_delivered_goods_are_settled_once_their_stock_is_shipped() -> None:
    delivered = play(STOCK_RESERVED, PAID, DELIVERED)
    assert (delivered.completed_at, delivered.settled, delivered.stock_status) == (NOW, False, "RESERVED")
    assert [message.routing_key for message in SAGA.pending_commands(delivered)] == ["stock.ship"]
    shipped = play(SHIPPED, order=delivered)
    assert (shipped.settled, shipped.stock_status) == (True, "SHIPPED")
    assert SAGA.pending_commands(shipped) == ()
    for state, order in STATES.items():
        captured = order.payment_status != "AUTHORIZED"
        assert SAGA.accepts(order, DELIVERED) == (order.status is Status.CONFIRMED and captured), state


def test_a_fulfilled_order_is_settled_once_its_payment_is_captured() -> None:
    for committed in (play(STOCK_RESERVED, AUTHORIZED), play(SERVER_RESERVED, AUTHORIZED, SERVER_READY)):
        assert (committed.settled, committed.payment_status) == (False, "AUTHORIZED")
        assert [message.routing_key for message in SAGA.pending_commands(committed)] == ["payment.capture"]
        captured = play(CAPTURED, order=committed)
        assert (captured.settled, captured.payment_status) == (True, "PROCESSED")
        failed = play(NOT_CAPTURED, order=committed)
        assert (failed.settled, failed.failure_reason) == (False, "The authorisation has expired")
        retried = play(RETRY, order=failed)
        assert retried == replace(committed, cause=RETRY.routing_key)
        assert not refunds.refusal(captured, PART.refund) or captured.fulfilment == "vps"
        assert refunds.refusal(committed, PART.refund)


def test_an_order_that_is_not_captured_is_given_up_as_a_whole() -> None:
    given_up = play(STOCK_RESERVED, AUTHORIZED, NOT_CAPTURED, DEADLINE)
    assert (given_up.compensating, given_up.settled) == (True, False)
    assert play(STOCK_RELEASED, VOIDED, order=given_up).settled
    assert not SAGA.accepts(given_up, RETRY)


def test_a_cancelled_order_is_settled_when_nothing_is_held_and_not_before() -> None:
    assert not play(CANCEL).settled
    assert not play(CANCEL, STOCK_RELEASED).settled
    assert play(CANCEL, STOCK_RELEASED, VOIDED).settled
    assert play(CANCEL, NO_STOCK, DECLINED).settled
    assert play(NO_STOCK, DECLINED).settled
    assert not play(NO_STOCK, PAID).settled
    assert play(NO_STOCK, PAID, REFUNDED).settled


def test_a_late_answer_after_its_compensation_does_not_undo_it() -> None:
    order = play(CANCEL, STOCK_RELEASED, REFUNDED, STOCK_RESERVED, PAID)
    assert (order.stock_status, order.payment_status, order.settled) == ("RELEASED", "REFUNDED", True)


def test_the_reason_of_a_timeout_names_the_silent_participants() -> None:
    assert play(DEADLINE).failure_reason == "Timed out waiting for stock and payment"
    assert play(STOCK_RESERVED, DEADLINE).failure_reason == "Timed out waiting for payment"
    assert play(PAID, DEADLINE).failure_reason == "Timed out waiting for stock"


def test_a_failed_order_holds_the_money_until_an_operator_decides() -> None:
    failed = STATES["FAILED"]
    assert not failed.settled
    assert failed.payment_status == "PROCESSED"
    assert SAGA.accepts(failed, RETRY)
    assert SAGA.accepts(failed, REFUND)
    given_up = play(REFUND, order=failed)
    assert not SAGA.accepts(given_up, RETRY)
    settled = play(STOCK_RELEASED, REFUNDED, order=given_up)
    assert settled.settled
    assert settled.status is Status.FAILED
    assert not SAGA.accepts(settled, REFUND)
    assert play(RETRY, SERVER_READY, order=failed).status is Status.COMPLETED


def test_what_is_held_goes_back_even_if_nothing_is_left_to_return() -> None:
    """Stock and money came back by themselves during the hold: the decision settles the order at once."""
    given_up = play(STOCK_RELEASED, REFUNDED, DEADLINE, order=STATES["FAILED"])
    assert (given_up.status, given_up.settled, SAGA.pending_commands(given_up)) == (Status.FAILED, True, ())


def test_an_order_has_a_bounded_number_of_runs() -> None:
    order = STATES["FAILED"]
    while SAGA.accepts(order, RETRY):
        order = play(RETRY, NO_SERVER, order=order)
    assert order.provisioning_run == MAX_RUNS
    assert play(RETRY, order=order) == order
    assert SAGA.accepts(order, REFUND)
    assert play(SERVER_READY, order=order).status is Status.COMPLETED, "a late server still counts"


def test_every_entry_into_provisioning_is_a_run_that_its_messages_carry() -> None:
    assert play(STOCK_RESERVED, PAID).provisioning_run == 0, "goods have none"
    for run in (1, 2, 3):
        step = last(SERVER_RESERVED, PAID, *(NO_SERVER, RETRY) * (run - 1))
        order = step.order
        assert order.provisioning_run == run
        for messages in (step.messages, SAGA.state_messages(order)):
            (requested,) = [message for message in messages if isinstance(message, c.ProvisionServer)]
            assert (requested.run, requested.package_id, requested.ram) == (run, "7", 2048)
        repeated = SAGA.state_messages(play(CANCEL, order=order))
        (cancelled,) = [message for message in repeated if isinstance(message, c.CancelProvisioning)]
        assert cancelled.run == run


@pytest.mark.parametrize(
    "state",
    [
        "PROVISIONING, run 2",
        "PROVISIONING, run 2, to be cancelled",
        "FAILED, run 2",
        "FAILED, run 2, compensating",
        "CANCELLED in run 2",
    ],
)
def test_the_failure_of_an_earlier_run_is_past(state: str) -> None:
    assert SAGA.advance(STATES[state], FIRST_RUN_FAILED, NOW) == Transition(STATES[state])


def test_a_retry_forgets_the_reason_and_the_next_failure_has_its_own() -> None:
    again = STATES["PROVISIONING, run 2"]
    assert (again.failure_reason, again.provisioning_status) == (None, "REQUESTED")
    failed = STATES["FAILED, run 2"]
    assert (failed.failure_reason, failed.provisioning_status) == (SECOND_RUN_FAILED.reason, "FAILED")


def history(*events: Event) -> list[tuple[str, str | None]]:
    """Return what the customer reads of the provisioning: event and words."""
    order, lines = play(SERVER_RESERVED, PAID), []
    for event in events:
        step = SAGA.advance(order, event, NOW)
        order = step.order
        lines += [(step.entry.event, step.entry.message)] if step.entry else []
    return lines


def test_the_history_shows_the_customer_what_happens() -> None:
    said = [("provisioning.progress", message.message) for message in (SAID_1, SAID_2, SAID_3)]
    assert history(SAID_1, SAID_2, FIRST_RUN_FAILED, RETRY, SAID_3, SERVER_READY) == [
        *said[:2],
        ("provisioning.failed", "The provider does not answer"),
        ("order.retry_requested", None),
        said[2],
        ("provisioning.completed", None),
    ]
    assert history(CANCEL, CANCEL) == [("order.cancel_requested", "changed my mind")]


def test_progress_is_recorded_once_and_only_forwards_over_all_runs() -> None:
    lines = history(SAID_2, SAID_1, SAID_2, FIRST_RUN_FAILED, SAID_2, RETRY, SAID_1, SAID_2, SAID_3, SAID_3)
    assert [words for event, words in lines if event == "provisioning.progress"] == [SAID_2.message, SAID_3.message]


def test_progress_without_a_number_is_recorded_when_its_step_changes() -> None:
    second = PROGRESS.model_copy(update={"attempt": 2, "message": "Once more"})
    lines = history(PROGRESS, PROGRESS, second, second, SAID_1)
    assert [words for _, words in lines] == [PROGRESS.message, "Once more", SAID_1.message]
    assert play(SAID_2, PROGRESS, second, order=STATES["PROVISIONING"]).progress_sequence == 2


def test_only_requests_with_a_meaning_are_accepted() -> None:
    """The requests that each state allows; the API answers all others with 409."""
    allowed = {
        state: {name for name in ("cancel", "retry", "refund") if SAGA.accepts(order, EVENTS[name])}
        for state, order in STATES.items()
    }
    assert {state: names for state, names in allowed.items() if names} == {
        "PENDING": {"cancel"},
        "PENDING with stock": {"cancel"},
        "PENDING with payment": {"cancel"},
        "PROVISIONING": {"cancel"},
        "PROVISIONING, to be cancelled": {"cancel"},
        "PROVISIONING, progress 2 known": {"cancel"},
        "PROVISIONING, run 2": {"cancel"},
        "PROVISIONING, run 2, to be cancelled": {"cancel"},
        "FAILED": {"retry", "refund"},
        "FAILED, run 2": {"retry", "refund"},
        "FAILED, its money gone": {"refund"},
        "PENDING, authorized": {"cancel"},
        "PROVISIONING, authorized": {"cancel"},
        "FAILED, authorized": {"retry", "refund"},
        "FAILED, not captured": {"retry", "refund"},
        "FAILED, server not captured": {"retry", "refund"},
        **{state: {"cancel", "refund"} for state in COMPENSATING},
    }


@pytest.mark.parametrize("state", ["CONFIRMED", "COMPLETED", "FAILED", "CANCELLED and settled"])
def test_a_client_cannot_cancel_what_is_over(state: str) -> None:
    assert not SAGA.accepts(STATES[state], CANCEL)


@settings(max_examples=500)
@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=12))
def test_any_messages_in_any_order(names: list[str]) -> None:
    order, committed = new_order(), False
    for name in names:
        before, step = order, SAGA.advance(order, EVENTS[name], NOW)
        order = step.order
        if order.status in (Status.CONFIRMED, Status.PROVISIONING, Status.COMPLETED):
            committed = True
            assert order.stock_status in ("RESERVED", "SHIPPED")
            assert order.payment_status in ("AUTHORIZED", "PROCESSED")
        is_delivery = before.status is Status.CONFIRMED and name == "delivered"
        is_refusal = before.payment_status == "AUTHORIZED" and name == "not captured"
        if before.status in (Status.CONFIRMED, Status.COMPLETED, Status.CANCELLED) and not (is_delivery or is_refusal):
            assert order.status is before.status, "a final status is final"
        if before.settled and not isinstance(EVENTS[name], RefundPartRequested) and not is_delivery:
            assert order.settled, "what is settled stays settled until more is requested"
        if order.status is Status.CANCELLED and before.status is not Status.CANCELLED:
            _assert_compensated(order, step)
        assert (step.entry is not None) == (replace(order, updated_at=NOW) != replace(before, updated_at=NOW))
    if order.settled and order.status in (Status.CONFIRMED, Status.COMPLETED):
        assert order.payment_status == "PROCESSED", "settled means captured"
    if order.status is Status.COMPLETED:
        assert committed
        assert order.server is not None or order.fulfilment == "goods"
    assert refunds.left(order) >= 0


def _assert_compensated(order: Order, step: Transition) -> None:
    kinds = {type(message) for message in step.messages}
    assert (c.ReleaseStock in kinds) == (order.stock_status in ("PENDING", "RESERVED"))
    assert (c.RefundPayment in kinds) == (order.payment_status in ("PENDING", "AUTHORIZED", "PROCESSED"))


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=8), st.sampled_from(sorted(EVENTS)))
def test_redelivery_repeats_what_the_first_delivery_sent(names: list[str], name: str) -> None:
    before = play(*(EVENTS[n] for n in names))
    first = SAGA.advance(before, EVENTS[name], NOW)
    if isinstance(EVENTS[name], Request | DeadlinePassed):
        return  # these are not redelivered: the record says that their messages are unpublished
    again = SAGA.advance(first.order, EVENTS[name], NOW)
    assert {m.routing_key for m in first.messages} <= {m.routing_key for m in again.messages}
    assert again.order == first.order


def test_a_new_order_is_published_as_order_created() -> None:
    (created,) = SAGA.state_messages(new_order())
    assert isinstance(created, c.OrderCreated)
    assert created.to_json() == (
        b'{"orderId":"0123456789abcdef","userId":"u1","items":[{"productId":"p1","quantity":2,"price":5}],'
        b'"totalAmount":10,"currency":"USD","payment":{"method":"card"},"delivery":{},"at":"2026-01-31T09:30:00.000Z"}'
    )


# --- Lost messages: the record is enough to complete an order. ---


def reachable() -> set[Order]:
    return {order for order, _, _ in transitions()}


def is_held(order: Order) -> bool:
    """Return whether the order's money waits for a decision, until `due_at`."""
    return order.status is Status.FAILED and not order.compensating


def test_every_unsettled_order_has_pending_commands_or_is_held_until_its_time_is_over() -> None:
    for order in reachable():
        pending, unsettled = bool(SAGA.pending_commands(order)), not order.settled and not is_held(order)
        assert pending == SAGA.awaits_answer(order) == unsettled, order


def test_pending_commands_carry_an_order_to_its_end_even_if_all_messages_are_lost() -> None:
    """Each participant answers a repeated command from its own record, with any decision it may have made."""
    ends: dict[Order, bool] = {}

    def settles(order: Order) -> bool:
        """Return whether every sequence of answers to its pending commands settles the order."""
        if order not in ends:
            ends[order] = False  # an order that comes back here is in a cycle
            ends[order] = order.settled or all(
                settles(play(*answers, order=order)) for answers in answered_again(order)
            )
        return ends[order]

    assert [order for order in reachable() if not settles(order)] == []


def answered_again(order: Order) -> list[tuple[Event, ...]]:
    """Return the possible sets of answers to all pending commands; for a held order, the end of its hold."""
    if is_held(order):
        return [(DeadlinePassed(),)]
    choices = [answers_to(message, order) for message in SAGA.pending_commands(order)]
    return [tuple(chosen) for chosen in product(*(choice for group in choices for choice in group))]


def answers_to(message: c.Message, order: Order) -> list[list[Event]]:
    """Return the possible answers of each participant that receives the message."""
    match message:
        case c.OrderCreated():
            any_stock: list[Event] = [SERVER_RESERVED, STOCK_RESERVED, NO_STOCK]
            return [
                any_stock if order.stock_status == "PENDING" else [stock_again(order)],
                [PAID, AUTHORIZED, DECLINED] if order.payment_status == "PENDING" else [payment_again(order)],
            ]
        case c.CapturePayment():
            return [[CAPTURED, NOT_CAPTURED]]
        case c.ReleaseStock():
            return [[STOCK_RELEASED]]
        case c.ShipStock():
            return [[SHIPPED]]
        case c.RefundPayment():
            return [[REFUNDED, VOIDED]]
        case c.ProvisionServer():
            failed = c.ProvisioningFailed(order_id=order.order_id, reason="no server", run=message.run)
            return [[SERVER_READY, failed, failed.model_copy(update={"bought": True})]]
        case c.RefundPart(refund_id=refund_id):
            refused = c.PartRefundFailed(order_id=ID, refund_id=refund_id, reason="The card's bank refused the refund")
            return [[c.PartRefunded(order_id=ID, refund_id=refund_id), refused]]
        case c.ReturnStock(refund_id=refund_id):
            return [[c.StockReturned(order_id=ID, refund_id=refund_id)]]
        case _:
            return []


def payment_again(order: Order) -> Event:
    return AUTHORIZED if order.payment_status == "AUTHORIZED" else PAID


def stock_again(order: Order) -> Event:
    return SERVER_RESERVED if order.fulfilment == "vps" else STOCK_RESERVED


UNDOING = (c.ReleaseStock, c.RefundPayment)


@pytest.mark.parametrize(("state", "event"), list(product(STATES, EVENTS)))
def test_nothing_is_undone_before_the_order_has_ended_and_no_order_becomes_pending_again(
    state: str, event: str
) -> None:
    """So an order that is PENDING meets no answer to a release or a refund: simulation/coverage.py says so."""
    before = STATES[state]
    transition = SAGA.advance(before, EVENTS[event], NOW)
    if any(isinstance(message, UNDOING) for message in transition.messages):
        assert transition.order.status in (Status.CANCELLED, Status.FAILED)
    assert transition.order.status is not Status.PENDING or before.status is Status.PENDING


@pytest.mark.parametrize("state", [name for name in STATES if name.startswith("CANCELLED")])
@pytest.mark.parametrize(
    ("success", "undo", "undone"),
    [
        (STOCK_RESERVED, c.ReleaseStock, STOCK_RELEASED),
        (PAID, c.RefundPayment, REFUNDED),
        (AUTHORIZED, c.RefundPayment, VOIDED),
    ],
)
def test_a_late_success_is_undone_by_the_commands_that_are_sent_until_they_are_answered(
    state: str, success: Event, undo: type[c.Message], undone: Event
) -> None:
    """That it is also undone at once only saves time: without it, the sweep would send the same command."""
    order = play(success, order=STATES[state])
    is_released = all(
        participant.is_released(order) for participant in SAGA.participants if participant.undo_type is undo
    )
    assert any(isinstance(command, undo) for command in SAGA.pending_commands(order)) is not is_released
    assert not any(isinstance(command, undo) for command in SAGA.pending_commands(play(undone, order=order)))

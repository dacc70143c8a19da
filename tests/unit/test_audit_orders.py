"""The audit's judgement of one order and one product: tolerated while in progress, and wrong from some time on."""

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from operations.audit import stock
from operations.audit.order_records import OrderRecords
from operations.audit.orders import (
    COMPENSATION,
    LATE,
    PROVISIONING,
    STALLED,
    UNPUBLISHED,
    activity,
    judge,
    paid_through,
)
from operations.audit.report import Violation
from operations.audit.stock import LONGEST_PENDING, StockRecords, lingering, out
from tests.support.builders import records_of

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
INSTANT = timedelta(milliseconds=1)
Document = dict[str, Any]

MONEY = {"amount": 1000, "currency": "USD"}
CHARGED = {"outcome": "CHARGED", "chargeId": "ch_1", **MONEY}
INTENT = {"intentId": "pi_1", "chargedAt": NOW, **MONEY}


def an_order(status: str = "PENDING", **changes: Any) -> Document:
    order = {
        "_id": "o1",
        "items": [{"productId": "p1", "quantity": 2, "price": 500}],
        "totalAmount": 1000,
        "currency": "USD",
        "status": status,
        "stockStatus": "PENDING",
        "paymentStatus": "PENDING",
        "settled": False,
        "updatedAt": NOW,
        "deadline": NOW + timedelta(minutes=5),
        "history": [{"status": "PENDING"}, {"status": status}],
    }
    return order | changes


def a_reservation(status: str) -> Document:
    return {"status": status, "items": [{"productId": "p1", "quantity": 2}], "updatedAt": NOW}


def a_payment(status: str) -> Document:
    transaction = {"transactionId": "ch_1"} if status in ("PROCESSED", "REFUNDED") else {}
    return {"status": status, "updatedAt": NOW, **MONEY, **transaction}


def kinds(order: Document, *records: Document | None) -> list[str]:
    """The violations of an order with this reservation, payment, charge and intent at Stripe."""
    reservation, payment, charge, intent = (*records, None, None, None, None)[:4]
    job = {"state": "FAILED", "updatedAt": order["updatedAt"]} if order["status"] == "FAILED" else None
    recorded = records_of(stock=reservation, payment=payment)
    return [violation.kind for violation in judge(OrderRecords("o1", order, recorded, charge, job, intent), NOW)]


RESERVATIONS: tuple[Document | None, ...] = (
    None,
    a_reservation("RESERVED"),
    a_reservation("FAILED"),
    a_reservation("RELEASED"),
)
PAYMENTS_AND_CHARGES: tuple[tuple[Document | None, Document | None], ...] = (
    (None, None),
    (a_payment("PENDING"), None),
    (a_payment("PENDING"), CHARGED),
    (a_payment("PENDING"), {"outcome": "DECLINED", **MONEY}),
    (a_payment("PENDING"), CHARGED | {"refundedAt": NOW}),
    (a_payment("PROCESSED"), CHARGED),
    (a_payment("PROCESSED"), CHARGED | {"refundedAt": NOW}),
    (a_payment("FAILED"), {"outcome": "DECLINED", **MONEY}),
    (a_payment("REFUNDED"), CHARGED | {"refundedAt": NOW}),
    ({"status": "VOIDED", "updatedAt": NOW}, None),
    ({"status": "VOIDED", "updatedAt": NOW}, CHARGED),  # the charge is about to be returned
    ({"status": "VOIDED", "updatedAt": NOW}, {"outcome": "VOIDED"}),
)


@pytest.mark.parametrize("status", ["PENDING", "CANCELLED"])
def test_an_order_in_progress_is_not_wrong_whatever_its_participants_have_done(status: str) -> None:
    for reservation, (payment, charge) in product(RESERVATIONS, PAYMENTS_AND_CHARGES):
        order = an_order(status)
        assert kinds(order, reservation, payment, charge) == [], (reservation, payment, charge)
        recorded = records_of(stock=reservation, payment=payment)
        assert activity(OrderRecords("o1", order, recorded, charge), NOW).in_flight


FROM_RETAINER = a_payment("PROCESSED") | {"retainerId": "r1", "transactionId": "e1"}
AT_STRIPE = a_payment("PROCESSED") | {"transactionId": "pi_1"}
WENT_THROUGH = {"stockStatus": "RESERVED", "paymentStatus": "PROCESSED", "settled": True}


@pytest.mark.parametrize(("payment", "intent"), [(FROM_RETAINER, None), (AT_STRIPE, INTENT)])
def test_an_order_not_paid_at_the_simulated_gateway_has_no_charge_there(
    payment: Document, intent: Document | None
) -> None:
    order = an_order("CONFIRMED", **WENT_THROUGH)
    assert kinds(order, a_reservation("RESERVED"), payment, None, intent) == []
    assert kinds(order, a_reservation("RESERVED"), payment, CHARGED, intent) == ["charged twice"]
    returned = CHARGED | {"refundedAt": NOW}
    assert kinds(order, a_reservation("RESERVED"), payment, returned, intent) == []
    assert kinds(order, a_reservation("RESERVED"), payment | {"amount": 1}, None, intent) == ["payment amount"]


@pytest.mark.parametrize(
    ("intent", "wrong"),
    [
        (INTENT, []),
        ({"intentId": "pi_1", **MONEY}, []),  # written by a release that did not record charges
        (None, ["charge", "money"]),
        (INTENT | {"intentId": "pi_2"}, ["charge"]),
        (INTENT | {"amount": 999}, ["charge amount"]),
        (INTENT | {"currency": "EUR"}, ["charge amount"]),
        (INTENT | {"refundedAt": NOW}, ["money"]),
        ({"reason": "The card was declined", **MONEY}, ["charge", "money"]),
        ({"closedAt": NOW}, ["charge", "money"]),
    ],
)
def test_an_order_paid_over_stripe_has_its_charge_there(intent: Document | None, wrong: list[str]) -> None:
    order = an_order("CONFIRMED", **WENT_THROUGH)
    assert kinds(order, a_reservation("RESERVED"), AT_STRIPE, None, intent) == wrong


@pytest.mark.parametrize("money", ["REFUNDED", "VOIDED", "FAILED"])
@pytest.mark.parametrize("gateway", ["simulated", "stripe"])
def test_a_cancelled_order_holds_no_money_at_either_gateway(money: str, gateway: str) -> None:
    order = an_order("CANCELLED", stockStatus="RELEASED", paymentStatus=money, settled=True)
    charge, payment = (CHARGED, a_payment(money)) if gateway == "simulated" else (INTENT, a_payment(money))
    if gateway == "stripe" and money == "REFUNDED":
        payment |= {"transactionId": "pi_1"}

    def wrong(charge: Document) -> list[str]:
        charges = (charge, None) if gateway == "simulated" else (None, charge)
        return kinds(order, a_reservation("RELEASED"), payment, *charges)

    assert wrong(charge) == (["refund"] if money == "REFUNDED" else []) + ["money held"]
    assert wrong(charge | {"refundedAt": NOW}) == []


def test_money_at_stripe_without_an_order_is_found() -> None:
    def wrong(intent: Document) -> list[str]:
        return [violation.kind for violation in judge(OrderRecords("o1", None, intent=intent), NOW)]

    assert wrong(INTENT) == ["charge without order"]
    for intent in (INTENT | {"refundedAt": NOW}, {"intentId": "pi_1", **MONEY}, {"closedAt": NOW}):
        assert wrong(intent) == []


@pytest.mark.parametrize(
    ("asked", "payment", "right"),
    [
        ({"method": "retainer", "retainerId": "r1"}, FROM_RETAINER, True),
        ({"method": "retainer", "retainerId": "r2"}, FROM_RETAINER, False),
        ({"method": "retainer", "retainerId": "r1"}, AT_STRIPE, False),
        ({"method": "card"}, FROM_RETAINER, False),
        ({"method": "card", "token": "tok"}, AT_STRIPE, True),
        ({"method": "retainer", "retainerId": "r1"}, {"status": "VOIDED", "updatedAt": NOW}, True),
    ],
)
def test_the_money_is_from_the_source_that_the_customer_chose(asked: Document, payment: Document, right: bool) -> None:
    order = an_order("CONFIRMED", payment=asked, **WENT_THROUGH)
    assert ("payment method" not in kinds(order, a_reservation("RESERVED"), payment)) == right


@pytest.mark.parametrize(
    ("payment", "through"),
    [
        (None, None),
        (a_payment("FAILED") | {"retainerId": "r1"}, None),
        (a_payment("PROCESSED") | {"transactionId": "no-charge"}, None),
        (a_payment("REFUNDED"), "simulated"),
        (FROM_RETAINER, "retainer"),
        (AT_STRIPE, "stripe"),
    ],
)
def test_the_source_of_a_payment(payment: Document | None, through: str | None) -> None:
    assert paid_through(OrderRecords("o1", None, records_of(payment=payment))) == through


LIMITS = [
    ("deadline", an_order(deadline=NOW - LATE), {"deadline": NOW - LATE - INSTANT}),
    ("compensation", an_order("CANCELLED", updatedAt=NOW - COMPENSATION), {"updatedAt": NOW - COMPENSATION - INSTANT}),
    (
        "compensation",
        an_order("FAILED", compensating=True, updatedAt=NOW - COMPENSATION),
        {"updatedAt": NOW - COMPENSATION - INSTANT},
    ),
    (
        "provisioning",
        an_order("PROVISIONING", stockStatus="RESERVED", paymentStatus="PROCESSED", updatedAt=NOW - PROVISIONING),
        {"updatedAt": NOW - PROVISIONING - INSTANT},
    ),
    (
        "hold",
        an_order("FAILED", stockStatus="RESERVED", paymentStatus="PROCESSED", dueAt=NOW - LATE),
        {"dueAt": NOW - LATE - INSTANT},
    ),
    (
        "order unpublished",
        an_order(unpublished=True, dueAt=NOW - UNPUBLISHED),
        {"dueAt": NOW - UNPUBLISHED - INSTANT},
    ),
]


@pytest.mark.parametrize(("kind", "in_time", "too_late"), LIMITS)
def test_the_time_from_which_on_an_order_is_late(kind: str, in_time: Document, too_late: Document) -> None:
    participants = (a_reservation("RESERVED"), a_payment("PROCESSED"), CHARGED)
    assert kinds(in_time, *participants) == []
    assert kinds(in_time | too_late, *participants) == [kind]


def test_an_order_is_stalled_after_a_while_without_any_step() -> None:
    old: Document = {"updatedAt": NOW - STALLED - INSTANT}
    reservation = a_reservation("RESERVED")
    assert activity(OrderRecords("o1", an_order(**old)), NOW).stalled
    assert activity(OrderRecords("o1", an_order(**old), records_of(stock=reservation | old)), NOW).stalled
    assert not activity(OrderRecords("o1", an_order(**old), records_of(stock=reservation)), NOW).stalled
    assert not activity(OrderRecords("o1", an_order(), records_of(stock=reservation | old)), NOW).stalled


@pytest.mark.parametrize(
    ("order", "payment"),
    [
        (an_order(unpublished=True), None),  # the sweep publishes it
        (an_order(), {"status": "PENDING", "nextLookupAt": NOW}),  # the payment service asks the gateway again
        (an_order("FAILED"), None),  # it awaits a decision
        (an_order("CONFIRMED", settled=True), None),
    ],
)
def test_an_order_that_waits_for_no_message_has_lost_none(order: Document, payment: Document | None) -> None:
    old = {"updatedAt": NOW - timedelta(days=1)}
    assert not activity(OrderRecords("o1", order | old, records_of(payment=payment and payment | old)), NOW).stalled


# --- One product. ---


def stock_records(moving: dict[str, int], reserved: int, *reserved_orders: str, **product: Any) -> StockRecords:
    """A product with `reserved` units reserved, two for each of these orders; orders with a pending move exist."""
    document = {"kind": "goods", "quantity": 0, "supplied": 0, "moving": moving} | product
    reservations = {order_id: a_reservation("RESERVED") for order_id in reserved_orders}
    return StockRecords("p1", document, reserved, 0, reservations, {order_id: an_order() for order_id in moving})


@pytest.mark.parametrize(
    ("moving", "reserved", "reserved_orders", "expected"),
    [
        ({}, 6, (), 6),
        ({"o1": -2}, 6, (), 8),  # taken, not recorded yet
        ({"o1": -2}, 6, ("o1",), 6),  # taken and recorded, the pending move not yet removed
        ({"o1": 2}, 6, ("o1",), 4),  # returned, not recorded yet
        ({"o1": 2}, 4, (), 4),  # returned and recorded, the pending move not yet removed
        ({"o1": -2, "o2": 2, "o3": -1}, 6, ("o2",), 7),
    ],
)
def test_units_that_are_out(
    moving: dict[str, int], reserved: int, reserved_orders: tuple[str, ...], expected: int
) -> None:
    records = stock_records(moving, reserved, *reserved_orders)
    assert out(records) == expected
    assert stock.judge(stock_records(moving, reserved, *reserved_orders, quantity=3, supplied=3 + expected), NOW) == []
    wrong = stock.judge(stock_records(moving, reserved, *reserved_orders, quantity=3, supplied=4 + expected), NOW)
    assert [violation.kind for violation in wrong] == ["conservation"]


def test_a_pending_move_of_a_settled_order_is_wrong_if_it_holds_units_and_else_harmless() -> None:
    over = {"settled": True, "updatedAt": NOW - LONGEST_PENDING}
    records = stock_records({"o1": -2}, 0, supplied=2)._replace(orders={"o1": an_order("CANCELLED", **over)})
    assert stock.judge(records, NOW) == []
    (violation,) = stock.judge(records, NOW + INSTANT)
    assert (violation.invariant, violation.kind, violation.id) == (2, "pending move", "p1")
    recorded = stock_records({"o1": -2}, 2, "o1", supplied=2)._replace(orders={"o1": an_order("CONFIRMED", **over)})
    assert stock.judge(recorded, NOW + INSTANT) == []
    assert (lingering(recorded, NOW), lingering(recorded, NOW + INSTANT)) == (0, 1)


def test_servers_are_not_counted() -> None:
    assert stock.judge(stock_records({}, 3, kind="vps", quantity=None, supplied=None), NOW) == []


def test_a_violation_found_twice_has_the_same_key() -> None:
    first = Violation(1, "conservation", "product", "p1", "5 free", "6")
    assert first.key == Violation(1, "conservation", "product", "p1", "4 free", "6").key
    assert first.key != Violation(1, "conservation", "product", "p2", "5 free", "6").key
    assert first.key != Violation(1, "conservation", "order", "p1", "5 free", "6").key

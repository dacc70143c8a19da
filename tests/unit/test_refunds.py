"""Refunds in part, as pure decisions: of the order, of the payment and of the stock."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory_service import stock
from inventory_service.stock import Product, Reservation, ReservationLine, Return
from order_service import refunds
from order_service.events import RefundPartRequested
from order_service.order import Order, Refund, RefundLine, RefundStatus, Status
from order_service.saga import SAGA
from payment_service import parts
from payment_service.lifecycle import NextAction, Part, PartStatus, Payment, PaymentStatus, next_action
from shared import contracts as c
from shared.contracts import RefundPart
from shared.contracts.orders import MAX_REFUNDS, Item
from tests.support.builders import an_order

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def goods(**changes: Any) -> Order:
    """A confirmed order of four units of p1 at 20.00 and one of p2 at 20.00."""
    items = (Item(product_id="p1", quantity=4, price=2000), Item(product_id="p2", quantity=1, price=2000))
    states: dict[str, Any] = {"stock_status": "RESERVED", "payment_status": "PROCESSED", "fulfilment": "goods"}
    confirmed = states | {"status": Status.CONFIRMED, "settled": True, "now": NOW}
    return an_order(items=items, total_amount=10_000, **confirmed | changes)


def a_refund(number: int, amount: int, *lines: RefundLine, **changes: Any) -> Refund:
    refund = Refund(refund_id=f"r{number}", amount=amount, lines=lines, created_at=NOW, updated_at=NOW)
    return replace(refund, **changes)


@pytest.mark.parametrize("status", list(Status))
def test_the_status_decides_whether_an_order_is_refunded_in_part(status: Status) -> None:
    request = RefundPartRequested(a_refund(1, 1))
    assert SAGA.accepts(goods(status=status), request) == (status in (Status.CONFIRMED, Status.COMPLETED))


def test_servers_are_not_refunded_in_part() -> None:
    server = goods(status=Status.COMPLETED, fulfilment="vps")
    assert "only goods" in (refunds.refusal(server, a_refund(1, 1)) or "")


def test_an_order_has_a_bounded_number_of_refunds_refused_ones_included() -> None:
    failed = tuple(a_refund(number, 1, status=RefundStatus.FAILED) for number in range(MAX_REFUNDS))
    assert refunds.refusal(goods(refunds=failed[1:]), a_refund(999, 1)) is None
    assert "100 refunds" in (refunds.refusal(goods(refunds=failed), a_refund(999, 1)) or "")


@pytest.mark.parametrize("status", list(RefundStatus))
def test_money_and_units_of_a_refund_are_gone_until_it_fails(status: RefundStatus) -> None:
    order = goods(refunds=(a_refund(1, 6000, RefundLine("p1", 3), status=status),))
    gone = status is not RefundStatus.FAILED
    assert refunds.left(order) == (4000 if gone else 10_000)
    assert refunds.units_left(order) == {"p1": 1 if gone else 4, "p2": 1}
    assert (refunds.refusal(order, a_refund(2, 6000)) is None) == (not gone)
    assert (refunds.refusal(order, a_refund(2, 1, RefundLine("p1", 2))) is None) == (not gone)


STEPS = st.tuples(
    st.sampled_from(["refund", "refunded", "failed"]),
    st.integers(0, 3),
    st.integers(1, 6000),
    st.lists(st.tuples(st.sampled_from(["p1", "p2"]), st.integers(1, 3)), max_size=2, unique_by=lambda line: line[0]),
)


@given(st.lists(STEPS, max_size=20))
def test_refunds_never_exceed_what_was_paid_and_bought(steps: list[Any]) -> None:
    order = goods()
    for kind, number, amount, lines in steps:
        ids: dict[str, Any] = {"order_id": order.order_id, "refund_id": f"r{number}"}
        event: Any = {
            "refund": RefundPartRequested(a_refund(number, amount, *(RefundLine(*line) for line in lines))),
            "refunded": c.PartRefunded(**ids),
            "failed": c.PartRefundFailed(**ids, reason="no"),
        }[kind]
        order = SAGA.advance(order, event, NOW).order
        assert refunds.left(order) >= 0
        assert all(count >= 0 for count in refunds.units_left(order).values())
        assert 0 <= refunds.refunded_amount(order) <= order.total_amount
        assert order.settled != refunds.is_waiting(order)


def a_payment(*known: Part, **changes: Any) -> Payment:
    payment = Payment(
        order_id="o1",
        status=PaymentStatus.PROCESSED,
        created_at=NOW,
        updated_at=NOW,
        amount=10_000,
        currency="USD",
        parts=known,
    )
    return replace(payment, **changes)


def a_part(refund_id: str, amount: int, status: PartStatus) -> Part:
    return Part(refund_id=refund_id, amount=amount, status=status, created_at=NOW, updated_at=NOW)


@pytest.mark.parametrize(
    ("payment", "reason"),
    [
        (a_payment(), None),
        (a_payment(a_part("r0", 4000, PartStatus.REFUNDED)), None),
        (a_payment(a_part("r0", 9000, PartStatus.FAILED)), None),
        (a_payment(a_part("r0", 4001, PartStatus.REFUNDED)), "59.99 USD of the payment is left"),
        (a_payment(a_part("r0", 4001, PartStatus.PENDING)), "59.99 USD of the payment is left"),
        (a_payment(refund_requested=True), "being refunded"),
        *(
            (a_payment(status=status), status.value)
            for status in PaymentStatus
            if status is not PaymentStatus.PROCESSED
        ),
    ],
)
def test_the_payment_decides_on_a_part(payment: Payment, reason: str | None) -> None:
    part = parts.decide(payment, RefundPart(order_id="o1", refund_id="r1", amount=6000), NOW)
    assert part.status is (PartStatus.PENDING if reason is None else PartStatus.FAILED)
    assert reason is None or reason in (part.failure_reason or "")


def test_a_pending_part_is_asked_for_again_only_if_that_is_scheduled() -> None:
    pending = a_part("r1", 1, PartStatus.PENDING)
    assert next_action(a_payment(pending)) is NextAction.NONE
    assert next_action(a_payment(pending, next_lookup_at=NOW)) is NextAction.REFUND_PARTS
    assert next_action(a_payment(pending, next_lookup_at=NOW, refund_requested=True)) is NextAction.REFUND
    done = a_part("r1", 1, PartStatus.REFUNDED)
    assert next_action(a_payment(done, next_lookup_at=NOW)) is NextAction.NONE


def an_item(quantity: int, **moves: int) -> Product:
    return Product(
        id="p1",
        version=1,
        created_at=NOW,
        updated_at=NOW,
        quantity=quantity,
        supplied=10,
        kind=stock.Kind.GOODS,
        pending_moves={key.replace("__", ":"): change for key, change in moves.items()},
    )


RESERVED = Reservation("o", stock.Status.RESERVED, NOW, NOW, items=(ReservationLine("p1", 3, 0),))


@pytest.mark.parametrize(
    ("item", "returns", "after"),
    [
        (an_item(7), (), {"return:r1:o": 2}),
        (an_item(7, o=-3), (), {"return:r1:o": 2}),
        (an_item(7, other=-1), (), {"other": -1, "return:r1:o": 2}),
        (an_item(8), (Return("r0", {"p1": 1}),), {"return:r1:o": 2}),
        (an_item(9, return__r1__o=2), (), None),
        (an_item(10, o=3), (), None),
    ],
    ids=["plain", "just reserved", "another order", "after another refund", "this very return", "being released"],
)
def test_units_of_a_refund_are_put_back(item: Product, returns: tuple[Return, ...], after: Any) -> None:
    changed = stock.put_back(replace(RESERVED, returns=returns), Return("r1", {"p1": 2}), {"p1": item}, {})
    if after is None:
        assert changed == []
        return
    (put_back,) = changed
    assert (put_back.quantity, put_back.pending_moves) == (item.free + 2, after)


def test_units_that_the_order_does_not_have_are_not_put_back() -> None:
    for held, count in ((replace(RESERVED, returns=(Return("r0", {"p1": 2}),)), 2), (RESERVED, 4)):
        with pytest.raises(ValueError, match="cannot come back"):
            stock.put_back(held, Return("r1", {"p1": count}), {"p1": an_item(7)}, {})
    with pytest.raises(ValueError, match="cannot come back"):
        stock.put_back(RESERVED, Return("r1", {"p1": 2}), {"p1": an_item(9, return__r0__o=2)}, {})

"""The order in events: what the API shows of it, and nothing about the person."""

import json
from datetime import timedelta
from typing import Any

import pytest

from order_service.new_order import NewOrder
from order_service.order import Order, Refund, RefundStatus, Status
from order_service.orders import NewRecord, from_document, new_document
from order_service.particulars import documents_of
from order_service.saga import SAGA
from order_service.snapshot import snapshot
from order_service.views import show, show_new
from shared import contracts as c
from shared.contracts.orders import DeliveryInstruction, OrderSnapshot
from shared.contracts.provisioning import Server
from tests.support.builders import an_order, order_body

PERSONAL = "Ann Smith"
WITH_PARTICULARS = NewOrder.model_validate_json(
    json.dumps(
        order_body()
        | {
            "customer": {"name": PERSONAL, "email": "ann@example.org"},
            "delivery": {"slot": "auto", "instructions": PERSONAL, "address": {"line1": PERSONAL}},
            "note": PERSONAL,
            "metadata": {"channel": PERSONAL},
        }
    )
)
LATER = an_order().created_at + timedelta(seconds=5)
OWNED: dict[str, Any] = {"owner_id": "shop", "entered_at": LATER, "updated_at": LATER}
ORDERS = {
    "new": an_order(),
    "with a slot": an_order(
        **OWNED,
        delivery=DeliveryInstruction(slot="auto"),
        slot="slot:1700000000",
        slot_visible_at=LATER,
        status=Status.CONFIRMED,
        confirmed_at=LATER,
        settled=True,
        hold_id="h1",
    ),
    "of an earlier release": an_order(status=Status.CONFIRMED, completed_at=LATER),
    "refunded in part": an_order(
        status=Status.CONFIRMED,
        refunds=(
            Refund(refund_id="r1", amount=199, created_at=LATER, updated_at=LATER, status=RefundStatus.REFUNDED),
            Refund(refund_id="r2", amount=199, created_at=LATER, updated_at=LATER),
        ),
    ),
    "with a server": an_order(status=Status.COMPLETED, completed_at=LATER, server=Server(ip="103.181.91.50")),
    "failed": an_order(**OWNED, status=Status.FAILED, failure_reason="No address is free"),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_snapshot_is_what_the_api_shows_without_history_and_person(order: Order) -> None:
    document = new_document(NewRecord(order, None, documents_of(WITH_PARTICULARS)))
    shown = show(document, personal=False)
    for left_out in ("history", "metadata"):
        del shown[left_out]
    assert snapshot(from_document(document)) == shown
    assert PERSONAL not in json.dumps(snapshot(order))
    OrderSnapshot.model_validate_json(json.dumps(snapshot(order)))


def test_a_new_order_is_shown_to_its_caller_as_it_is_stored() -> None:
    record = NewRecord(an_order(delivery=DeliveryInstruction(slot="auto")), None, documents_of(WITH_PARTICULARS))
    assert show_new(record) == show(new_document(record), personal=True)


def test_news_carry_the_order_as_it_is_after_the_transition() -> None:
    order = an_order(owner_id="shop", stock_status="RESERVED")
    paid = c.PaymentProcessed(order_id=order.order_id, transaction_id="tx")
    transition = SAGA.advance(order, paid, LATER)
    (news,) = transition.messages
    assert isinstance(news, c.OrderConfirmed)
    assert (news.owner_id, news.at, news.order) == ("shop", LATER, snapshot(transition.order))
    assert news.order is not None
    assert news.order["settled"]
    again = SAGA.advance(transition.order, paid, LATER + timedelta(hours=1))
    assert again.messages == (news,), "a repetition is the same message"


def test_news_of_a_refund_carry_the_order_that_it_is_of() -> None:
    refund = Refund(refund_id="r1", amount=199, created_at=LATER, updated_at=LATER)
    order = an_order(
        owner_id="shop", status=Status.CONFIRMED, stock_status="RESERVED", payment_status="PROCESSED", refunds=(refund,)
    )
    transition = SAGA.advance(order, c.PartRefunded(order_id=order.order_id, refund_id="r1"), LATER)
    (news,) = transition.messages
    assert isinstance(news, c.OrderRefunded)
    assert (news.owner_id, news.at, news.order) == ("shop", LATER, snapshot(transition.order))
    assert news.order is not None
    assert (news.order["refundedAmount"], news.order["settled"]) == (1.99, True)


def test_two_runs_of_one_order_are_told_apart_by_their_time() -> None:
    failed = an_order(
        status=Status.FAILED, stock_status="RESERVED", payment_status="PROCESSED", fulfilment="vps", entered_at=LATER
    )
    first = SAGA.state_messages(failed)
    assert [getattr(message, "at", None) for message in first] == [LATER]
    old = SAGA.state_messages(an_order(status=Status.CANCELLED))
    assert "at" not in json.loads(old[0].to_json()), "an order of an earlier release has no time of it"

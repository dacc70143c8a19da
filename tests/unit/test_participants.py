"""A third participant is one row: the saga joins, refuses, times out, compensates and settles it like the others.

Operators' tools read its record by a second row: the timeline, the audit and the cleanup treat it like the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from itertools import permutations
from typing import Any, ClassVar, Literal

import pytest

from operations.audit import orders as audited_orders
from operations.audit.order_records import OrderRecords
from operations.audit.orders import NO_CHARGE
from operations.reading import participant_records
from operations.reading.participant_records import PARTICIPANT_RECORDS, ParticipantRecord
from operations.removal import removable
from operations.removal.removable import Candidate, why_kept
from operations.timeline import timeline
from operations.timeline.timeline import TimelineRecords
from order_service.events import CancelRequested, DeadlinePassed, Event
from order_service.order import Order, Status
from order_service.orders import NewRecord, _changing_fields
from order_service.participants import (
    FAILED,
    PARTICIPANTS,
    PAYMENT,
    PENDING,
    STOCK,
    AnyParticipant,
    Participant,
    Wording,
)
from order_service.rules import Transition
from order_service.saga import SAGA, Saga
from order_service.views import show_new
from shared import contracts as c
from shared.database import Document
from shared.services import Service
from tests.support.builders import an_order
from tests.unit.test_saga import (
    DECLINED,
    ID,
    NO_STOCK,
    NOW,
    PAID,
    REFUNDED,
    SERVER_RESERVED,
    STOCK_RELEASED,
    STOCK_RESERVED,
    VOIDED,
)


class CourierBooked(c.OrderMessage):
    routing_key: ClassVar[str] = "shipping.booked"
    tracking_number: str


class BookingRefused(c.OrderMessage):
    routing_key: ClassVar[str] = "shipping.refused"
    reason: str


class CourierCancelled(c.OrderMessage):
    routing_key: ClassVar[str] = "shipping.cancelled"


class CancelCourier(c.OrderMessage):
    routing_key: ClassVar[str] = "shipping.cancel"


@dataclass(frozen=True, slots=True)
class ShippedOrder(Order):
    shipping_status: Literal["PENDING", "BOOKED", "FAILED", "CANCELLED"] = "PENDING"
    tracking_number: str | None = None


SHIPPING = Participant(
    name="shipping",
    field="shipping_status",
    done=CourierBooked,
    succeeded="BOOKED",
    brings=lambda answer: {"tracking_number": answer.tracking_number},
    refused=BookingRefused,
    undo=lambda order: CancelCourier(order_id=order.order_id),
    undo_type=CancelCourier,
    undone=CourierCancelled,
    undone_state=lambda _: "CANCELLED",
    undone_early="The courier was cancelled before the order was confirmed",
    holds_nothing=frozenset({FAILED, "CANCELLED"}),
    wording=Wording(doing="Booking", done="Booked", refused="Refused", undoing="Cancelling", undone="Cancelled"),
)
SERVICE = Service(
    name="shipping",
    package="shipping_service",
    port=3020,
    settings="shipping_service.settings:ShippingSettings",
    database="shipping",
    inbox="shipping.inbox",
    description="Books couriers",
)
EXTENDED = Saga((*PARTICIPANTS, SHIPPING))

BOOKED = CourierBooked(order_id=ID, tracking_number="T1")
NO_COURIER = BookingRefused(order_id=ID, reason="No courier delivers there")
COURIER_CANCELLED = CourierCancelled(order_id=ID)
CANCEL, DEADLINE = CancelRequested("changed my mind"), DeadlinePassed()


def new_order() -> ShippedOrder:
    order = an_order(now=NOW, order_id=ID)
    return ShippedOrder(**{field.name: getattr(order, field.name) for field in fields(Order)})


def last(*events: Event) -> Transition:
    transition = Transition(new_order())
    for event in events:
        transition = EXTENDED.advance(transition.order, event, NOW)
    return transition


def sent(transition: Transition) -> list[str]:
    return [message.routing_key for message in transition.messages]


@pytest.mark.parametrize("events", list(permutations([STOCK_RESERVED, PAID, BOOKED])))
def test_the_last_of_three_answers_completes_the_join(events: tuple[Event, ...]) -> None:
    waiting = last(*events[:2])
    assert (waiting.order.status, waiting.messages) == (Status.PENDING, ())
    confirmed = last(*events)
    assert (confirmed.order.status, confirmed.order.settled) == (Status.CONFIRMED, True)
    assert sent(confirmed) == ["order.confirmed"]
    assert isinstance(confirmed.order, ShippedOrder)
    assert (confirmed.order.shipping_status, confirmed.order.tracking_number) == ("BOOKED", "T1")


def test_a_server_is_requested_only_when_all_three_have_answered() -> None:
    assert sent(last(SERVER_RESERVED, PAID)) == []
    assert sent(last(SERVER_RESERVED, PAID, BOOKED)) == ["order.provisioning", "provisioning.requested"]


def test_its_refusal_cancels_the_order_and_undoes_the_others() -> None:
    refused = last(STOCK_RESERVED, NO_COURIER)
    assert (refused.order.status, refused.order.failure_reason) == (Status.CANCELLED, "No courier delivers there")
    assert sent(refused) == ["order.cancelled", "stock.release", "payment.refund"]
    assert refused.entry is not None
    assert (refused.entry.event, refused.entry.message) == ("shipping.refused", "No courier delivers there")


@pytest.mark.parametrize("refusal", [NO_STOCK, DECLINED])
def test_the_refusal_of_another_undoes_it_whether_or_not_it_has_answered(refusal: Event) -> None:
    assert "shipping.cancel" in sent(last(BOOKED, refusal))
    assert "shipping.cancel" in sent(last(refusal))


def test_the_reason_of_a_timeout_names_it() -> None:
    assert last(DEADLINE).order.failure_reason == "Timed out waiting for stock and payment and shipping"
    assert last(STOCK_RESERVED, PAID, DEADLINE).order.failure_reason == "Timed out waiting for shipping"
    assert last(BOOKED, PAID, DEADLINE).order.failure_reason == "Timed out waiting for stock"


def test_a_late_answer_is_undone() -> None:
    late = last(CANCEL, BOOKED)
    assert sent(late) == ["shipping.cancel"]
    assert SHIPPING.state(late.order) == "BOOKED"
    again = last(CANCEL, COURIER_CANCELLED, BOOKED)
    assert sent(again) == ["shipping.cancel"]
    assert SHIPPING.state(again.order) == "CANCELLED"
    assert SHIPPING.state(last(CANCEL, NO_COURIER, COURIER_CANCELLED).order) == "FAILED"


def test_an_early_undo_cancels_the_order_with_its_reason() -> None:
    early = last(BOOKED, COURIER_CANCELLED)
    assert early.order.failure_reason == "The courier was cancelled before the order was confirmed"
    assert sent(early) == ["order.cancelled", "stock.release", "payment.refund"]


def test_a_cancelled_order_is_settled_once_it_too_holds_nothing() -> None:
    assert not last(CANCEL, STOCK_RELEASED, REFUNDED).order.settled
    assert last(CANCEL, STOCK_RELEASED, REFUNDED, COURIER_CANCELLED).order.settled
    assert last(CANCEL, STOCK_RELEASED, VOIDED, NO_COURIER).order.settled
    assert last(NO_COURIER, STOCK_RELEASED, DECLINED).order.settled


def test_its_undo_is_sent_again_until_it_is_answered() -> None:
    cancelled = last(CANCEL, STOCK_RELEASED, REFUNDED).order
    assert [message.routing_key for message in EXTENDED.pending_commands(cancelled)] == ["shipping.cancel"]
    assert EXTENDED.pending_commands(last(CANCEL, STOCK_RELEASED, REFUNDED, COURIER_CANCELLED).order) == ()


def test_all_its_answers_are_handled() -> None:
    added = [answer.routing_key for answer in EXTENDED.answer_types if answer not in SAGA.answer_types]
    assert added == ["shipping.booked", "shipping.refused", "shipping.cancelled"]


# --- Operators' tools. ---

SUCCEEDED = {
    "stock": {"status": "RESERVED"},
    "payment": {"status": "PROCESSED", "transactionId": NO_CHARGE},
    "shipping": {"status": "BOOKED"},
}
RETURNED = {"stock": {"status": "RELEASED"}, "payment": {"status": "FAILED"}, "shipping": {"status": "CANCELLED"}}


@pytest.fixture
def three_records(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ParticipantRecord(participant=SHIPPING, service=SERVICE, collection="bookings", noun="booking")
    for module in (participant_records, timeline, audited_orders, removable):
        monkeypatch.setattr(module, "PARTICIPANT_RECORDS", (*PARTICIPANT_RECORDS, row))
    monkeypatch.setattr(timeline, "LANES", ("order", "stock", "payment", "shipping", "provisioning"))


def stored(status: str, records: Mapping[str, Document], *history: tuple[str, str]) -> Document:
    """Return a stored order whose participants have the states of these records; one second passes between events."""
    states = {f"{name}Status": record["status"] for name, record in records.items()}
    lines = [
        {"at": NOW + timedelta(seconds=second), "event": event, "status": status}
        for second, (event, status) in enumerate([("order.created", "PENDING"), *history])
    ]
    times = {"createdAt": NOW, "updatedAt": NOW, "deadline": NOW + timedelta(minutes=5)}
    return {
        "_id": ID,
        "totalAmount": 0,
        "status": status,
        **states,
        **times,
        "settled": status != "PENDING",
        "history": lines,
    }


@pytest.mark.usefixtures("three_records")
def test_the_timeline_shows_its_work_and_its_compensation() -> None:
    history = [("shipping.booked", "PENDING"), ("payment.failed", "CANCELLED"), ("shipping.cancelled", "CANCELLED")]
    steps = timeline.build_timeline(TimelineRecords(ID, stored("CANCELLED", RETURNED, *history), RETURNED))
    assert [(step.kind, step.title) for step in steps if "shipping" in (step.lane, step.to)] == [
        ("message", "order.created"),
        ("work", "Booked"),
        ("message", "shipping.booked"),
        ("message", "shipping.cancel"),
        ("compensation", "Cancelled"),
        ("message", "shipping.cancelled"),
    ]


@pytest.mark.usefixtures("three_records")
def test_the_timeline_waits_for_its_answer() -> None:
    order = stored("PENDING", SUCCEEDED | {"shipping": {"status": "PENDING"}}, ("stock.reserved", "PENDING"))
    waits = [
        (step.lane, step.title) for step in timeline.open_steps(timeline.build_timeline(TimelineRecords(ID, order)))
    ]
    assert waits == [("shipping", "Booking"), ("order", "Answer from shipping")]


def violations(status: str, records: Mapping[str, Document]) -> list[str]:
    order = stored(status, records)
    return [violation.kind for violation in audited_orders.judge(OrderRecords(ID, order, records), NOW)]


@pytest.mark.usefixtures("three_records")
def test_the_audit_finds_what_it_lacks_and_what_it_holds() -> None:
    not_booked, not_returned = (
        SUCCEEDED | {"shipping": {"status": "FAILED"}},
        RETURNED | {"shipping": {"status": "BOOKED"}},
    )
    assert (violations("CONFIRMED", SUCCEEDED), violations("CANCELLED", RETURNED)) == ([], [])
    assert violations("CONFIRMED", not_booked) == ["join", "shipping"]
    assert violations("CANCELLED", not_returned) == ["settled", "shipping held"]


@pytest.mark.usefixtures("three_records")
def test_the_cleanup_keeps_an_order_that_it_may_hold() -> None:
    cancelled = {"_id": ID, "status": "CANCELLED"}
    assert why_kept(Candidate(cancelled, RETURNED), NOW) is None
    not_returned = RETURNED | {"shipping": {"status": "BOOKED"}}
    assert why_kept(Candidate(cancelled, not_returned), NOW) == "the release of the shipping is not confirmed"


def test_every_participant_has_a_record() -> None:
    assert [row.participant for row in PARTICIPANT_RECORDS] == list(PARTICIPANTS)


# --- The table itself. ---


@pytest.mark.parametrize("participant", PARTICIPANTS, ids=lambda participant: participant.name)
def test_a_row_fits_the_order(participant: AnyParticipant) -> None:
    order = an_order()
    assert participant.state(order) == PENDING
    assert _changing_fields(order)[participant.stored_field] == PENDING
    assert show_new(NewRecord(order))[participant.stored_field] == PENDING
    assert FAILED in participant.holds_nothing
    assert participant.provisional < participant.holds_nothing
    assert not participant.holds_nothing & {PENDING, participant.succeeded}
    undo = participant.undo(order)
    assert (type(undo), undo.correlation_id) == (participant.undo_type, order.order_id)


def test_the_rows_have_nothing_in_common() -> None:
    def values(name: str) -> list[Any]:
        return [getattr(participant, name) for participant in PARTICIPANTS]

    for name in ("name", "field", "stored_field", "done", "refused", "undone"):
        assert len(set(values(name))) == len(PARTICIPANTS), name


def test_a_state_that_a_later_undo_may_replace_is_not_final() -> None:
    voided, refunded = an_order(payment_status="VOIDED"), an_order(payment_status="REFUNDED")
    assert (PAYMENT.is_released(voided), PAYMENT.is_final(voided)) == (True, False)
    assert (PAYMENT.is_released(refunded), PAYMENT.is_final(refunded)) == (True, True)
    assert STOCK.is_final(an_order(stock_status="RELEASED"))

"""An order's timeline: the steps for each way that an order can go, and how the graph is drawn."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.console.timeline import TimelineRow, draw
from operations.timeline.timeline import LANES, TimelineRecords, TimelineStep, build_timeline, open_steps
from tests.support.builders import records_of

PLACED = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
Document = dict[str, Any]


def after(milliseconds: float) -> datetime:
    return PLACED + timedelta(milliseconds=milliseconds)


def an_order(status: str, *history: tuple[float, str, str], **changes: Any) -> Document:
    lines = [{"at": after(at), "event": event, "status": status} for at, event, status in history]
    order = {
        "_id": "o1",
        "status": status,
        "stockStatus": "PENDING",
        "paymentStatus": "PENDING",
        "settled": status in ("CONFIRMED", "COMPLETED"),
        "createdAt": PLACED,
        "updatedAt": after(history[-1][0]),
        "deadline": after(300_000),
        "history": lines,
    }
    return order | changes


CREATED = (0, "order.created", "PENDING")
CONFIRMED = an_order(
    "CONFIRMED",
    CREATED,
    (12, "stock.reserved", "PENDING"),
    (31, "payment.processed", "CONFIRMED"),
    stockStatus="RESERVED",
    paymentStatus="PROCESSED",
)


def steps_of(
    order: Document | None, stock: Document | None = None, payment: Document | None = None, **records: Any
) -> list[TimelineStep]:
    return build_timeline(TimelineRecords("o1", order, records_of(stock=stock, payment=payment), **records))


def one(steps: list[TimelineStep], lane: str, title: str) -> TimelineStep:
    found = [step for step in steps if step.lane == lane and step.title == title]
    assert len(found) == 1, [(step.lane, step.title) for step in steps]
    return found[0]


def summary(steps: list[TimelineStep]) -> list[tuple[str, str, str]]:
    return [(step.lane, step.kind, step.title) for step in steps]


def test_a_confirmed_order_of_goods() -> None:
    steps = steps_of(CONFIRMED, stock={"_id": "o1", "status": "RESERVED", "createdAt": after(9)})
    assert summary(steps) == [
        ("order", "state", "Order placed"),
        ("order", "message", "order.created"),
        ("order", "message", "order.created"),
        ("stock", "work", "Reserved"),
        ("payment", "work", "Charged"),
        ("stock", "message", "stock.reserved"),
        ("order", "state", "Stock reserved"),
        ("payment", "message", "payment.processed"),
        ("order", "state", "Payment processed"),
    ]
    assert one(steps, "stock", "Reserved").seconds == 0.009
    assert one(steps, "payment", "Charged").seconds == 0.031
    assert {step.to for step in steps if step.title == "order.created"} == {"stock", "payment"}
    sent = one(steps, "stock", "stock.reserved")
    assert (sent.at, sent.until, sent.to) == (after(9), after(12), "order")
    assert open_steps(steps) == []


def test_a_missing_answer_is_an_open_step() -> None:
    order = an_order("PENDING", CREATED, (31, "payment.processed", "PENDING"), paymentStatus="PROCESSED")
    waits = open_steps(steps_of(order))
    assert [(step.lane, step.title) for step in waits] == [("stock", "Reserving"), ("order", "Answer from stock")]
    assert waits[0].at == PLACED
    assert waits[1].due == after(300_000)


def test_a_refusal_compensates_only_what_may_have_succeeded() -> None:
    order = an_order(
        "CANCELLED",
        CREATED,
        (9, "payment.processed", "PENDING"),
        (30, "stock.reservation_failed", "CANCELLED"),
        (80, "payment.refunded", "CANCELLED"),
        stockStatus="FAILED",
        paymentStatus="REFUNDED",
        settled=True,
    )
    steps = steps_of(order, payment={"_id": "o1", "status": "REFUNDED", "updatedAt": after(70)})
    assert [step.title for step in steps if step.kind == "compensation"] == ["Refunded"]
    assert one(steps, "payment", "Refunded").seconds == 0.05
    assert [step.title for step in steps if step.kind == "message" and step.lane == "order"][2:] == ["payment.refund"]
    assert one(steps, "stock", "Refused").outcome == "failed"
    assert open_steps(steps) == []


def test_a_compensation_without_an_answer_is_open() -> None:
    order = an_order("CANCELLED", CREATED, (5, "order.cancel_requested", "CANCELLED"), cause="order.cancel_requested")
    waits = open_steps(steps_of(order, stock={"_id": "o1", "status": "RELEASED"}))
    assert [(step.lane, step.kind, step.title) for step in waits] == [
        ("stock", "compensation", "Releasing"),
        ("payment", "compensation", "Refunding"),
    ]
    assert waits[0].detail == "Recorded status: RELEASED"
    assert waits[1].detail == "No record of the order yet"


def test_a_compensation_with_nothing_to_return_says_so() -> None:
    order = an_order(
        "CANCELLED",
        CREATED,
        (5, "order.cancel_requested", "CANCELLED"),
        (9, "stock.reservation_failed", "CANCELLED"),
        (20, "payment.refunded", "CANCELLED"),
        settled=True,
    )
    steps = steps_of(order, payment={"_id": "o1", "status": "VOIDED", "updatedAt": after(15)})
    assert [step.title for step in steps if step.kind == "compensation"] == ["Nothing to return", "Nothing to return"]


SERVER = an_order(
    "FAILED",
    CREATED,
    (12, "stock.reserved", "PENDING"),
    (31, "payment.processed", "PROVISIONING"),
    (9000, "provisioning.failed", "FAILED"),
    (60_000, "order.retry_requested", "PROVISIONING"),
    (70_000, "provisioning.failed", "FAILED"),
    stockStatus="RESERVED",
    paymentStatus="PROCESSED",
    dueAt=after(86_400_000),
)
JOB = {
    "_id": "o1",
    "state": "FAILED",
    "package": "103.181.9",
    "updatedAt": after(70_000),
    "attempts": [
        {"step": "check", "at": after(2000), "outcome": "ok", "detail": "3 free"},
        {"step": "buy", "at": after(4000), "outcome": "failed", "detail": "attempt 1 of 2: 500"},
        {"step": "check", "at": after(6000), "outcome": "ok", "detail": "3 free"},
        {"step": "buy", "at": after(8000), "outcome": "failed", "detail": "attempt 2 of 2: 500"},
        {"step": "check", "at": after(65_000), "outcome": "ok", "detail": "2 free"},
        {"step": "buy", "at": after(69_000), "outcome": "strange", "detail": "?"},
    ],
}


def test_a_server_with_retries_and_another_run() -> None:
    steps = steps_of(SERVER, job=JOB)
    provisioning = [
        (step.kind, step.title, step.seconds, step.outcome)
        for step in steps
        if step.lane == "provisioning" and step.kind != "message"
    ]
    assert provisioning == [
        ("wait", "Queued for package 103.181.9", 1.969, "ok"),
        ("attempt", "Check addresses", None, "ok"),
        ("attempt", "Buy", None, "failed"),
        ("retry", "Pause before the next attempt", 2.0, "ok"),
        ("attempt", "Check addresses", None, "ok"),
        ("attempt", "Buy", None, "failed"),
        ("wait", "Queued for package 103.181.9", 5.0, "ok"),
        ("attempt", "Check addresses", None, "ok"),
        ("attempt", "Buy", None, "unknown"),
    ]
    (decision,) = open_steps(steps)
    assert (decision.title, decision.at, decision.due) == ("Operator's decision", after(70_000), after(86_400_000))


@pytest.mark.parametrize(
    ("job", "title", "kind"),
    [
        (None, "Server", "work"),
        ({"state": "QUEUED", "package": "p", "waitingSince": after(40)}, "Queued for package p", "wait"),
        ({"state": "WAITING", "dueAt": after(90_000), "updatedAt": after(50)}, "Next attempt", "retry"),
        ({"state": "RUNNING", "step": "buy", "updatedAt": after(50)}, "Buy", "work"),
        ({"state": "COMPLETED", "updatedAt": after(50)}, "Answer", "work"),
    ],
    ids=["none", "queued", "waiting", "running", "over"],
)
def test_the_current_step_of_provisioning(job: Document | None, title: str, kind: str) -> None:
    order = an_order(
        "PROVISIONING",
        CREATED,
        (12, "stock.reserved", "PENDING"),
        (31, "payment.processed", "PROVISIONING"),
        stockStatus="RESERVED",
        paymentStatus="PROCESSED",
    )
    (wait,) = open_steps(steps_of(order, job=job))
    assert (wait.lane, wait.title, wait.kind) == ("provisioning", title, kind)


def test_an_unanswered_purchase_is_shown() -> None:
    order = an_order("PROVISIONING", CREATED, (31, "payment.processed", "PROVISIONING"), stockStatus="RESERVED")
    purchase = {"asked": ["103.181.9.5"], "answered": False}
    job = {"state": "WAITING", "updatedAt": after(50), "purchase": purchase}
    (wait,) = [step for step in open_steps(steps_of(order, job=job)) if step.lane == "provisioning"]
    assert wait.detail == "Requested 103.181.9.5, no answer yet: the provider may still complete it"


def test_a_charge_without_an_outcome_is_an_open_step() -> None:
    order = an_order("PENDING", CREATED, (12, "stock.reserved", "PENDING"), stockStatus="RESERVED")
    payment = {"status": "PENDING", "updatedAt": after(100), "nextLookupAt": after(2100), "lookups": 2}
    (wait,) = [
        step for step in open_steps(steps_of(order, payment=payment)) if step.kind == "wait" and step.due == after(2100)
    ]
    assert (wait.lane, wait.detail) == ("payment", "Looked up 2 times")


def test_messages_that_a_crash_left_unpublished_are_an_open_step() -> None:
    steps = steps_of(CONFIRMED | {"settled": False, "unpublished": True, "dueAt": after(5000)})
    assert [(step.title, step.due) for step in open_steps(steps)] == [("Messages to publish", after(5000))]


LETTER = {
    "_id": "l1",
    "status": "dead",
    "queue": "inventory.inbox",
    "routingKey": "order.created",
    "error": {"type": "KeyError", "message": "'price'"},
    "attempts": 5,
    "firstFailedAt": after(20),
    "lastFailedAt": after(156_000),
    "replays": [],
    "discarded": None,
}


def test_a_dead_letter_with_the_retries_before_it() -> None:
    steps = steps_of(None, letters=[LETTER])
    assert [(step.kind, step.lane, step.outcome, step.letter) for step in steps] == [
        ("retry", "stock", "failed", "l1"),
        ("dead letter", "stock", "open", "l1"),
    ]
    assert steps[0].detail == "5 attempts"
    assert steps[1].detail == "KeyError: 'price'"
    assert [step.kind for step in open_steps(steps)] == ["dead letter"]


def test_a_replay_that_was_handled_ends_the_wait() -> None:
    replay = {"at": after(200_000), "by": "op-1", "why": "fixed", "outcome": "handled", "outcomeAt": after(200_050)}
    steps = steps_of(None, letters=[LETTER | {"status": "handled", "replays": [replay]}])
    assert open_steps(steps) == []
    assert [(step.kind, step.outcome) for step in steps][-1] == ("replay", "ok")
    assert steps[-1].detail == "by op-1: fixed"
    assert steps[-1].seconds == 0.05


def test_a_letter_that_failed_again_first_died_before_its_replay() -> None:
    replay = {"at": after(200_000), "by": "op-1", "why": "", "edited": True, "outcome": "dead"}
    steps = steps_of(None, letters=[LETTER | {"lastFailedAt": after(300_000), "replays": [replay]}])
    assert one(steps, "stock", "order.created dead-lettered").at == after(200_000)
    assert one(steps, "stock", "order.created edited and replayed").outcome == "failed"


def test_a_discarded_letter_is_not_open() -> None:
    discarded = {"at": after(400_000), "by": "op-1", "why": "a test order"}
    steps = steps_of(None, letters=[LETTER | {"status": "discarded", "discarded": discarded}])
    assert open_steps(steps) == []
    assert steps[-1].title == "order.created discarded"


def test_records_without_times_make_a_shorter_timeline() -> None:
    bare = {"_id": "o1", "status": "PENDING", "settled": False, "history": [{"status": "PENDING"}]}
    assert steps_of(bare, stock={"status": "RESERVED"}, payment={}, job={}) == []
    assert steps_of(None) == []
    assert not TimelineRecords("o1", None).exist
    assert TimelineRecords("o1", None, letters=(LETTER,)).exist


def test_a_step_as_json_has_every_field() -> None:
    (first, *_) = steps_of(CONFIRMED)
    assert first.as_json() == {
        "at": "2026-01-31T09:30:00.000Z",
        "until": None,
        "seconds": None,
        "lane": "order",
        "to": None,
        "kind": "state",
        "title": "Order placed",
        "detail": None,
        "outcome": "ok",
        "status": "PENDING",
        "due": None,
        "deadLetter": None,
    }


# --- The graph. ---


def row_of(rows: list[TimelineRow], title: str) -> TimelineRow:
    return next(row for row in rows if row.step.title == title)


def test_messages_are_drawn_in_the_rows_of_the_states() -> None:
    rows = draw(steps_of(CONFIRMED, stock={"_id": "o1", "createdAt": after(9)}))
    assert [row.step.title for row in rows] == [
        "Order placed",
        "Reserved",
        "Charged",
        "Stock reserved",
        "Payment processed",
    ]
    placed = row_of(rows, "Order placed").cells
    assert placed["order"].line.split() == ["from-right", "from-right"]
    assert placed["stock"].line.split() == ["into-right", "through"]
    assert placed["payment"].line == "into-right"
    taken = row_of(rows, "Payment processed").cells
    assert (taken["order"].line, taken["stock"].line, taken["payment"].line) == ("into-left", "through", "from-left")


def test_messages_to_and_from_a_state_do_not_overlap() -> None:
    rows = draw(steps_of(SERVER, job=JOB))
    titles = [row.step.title for row in rows]
    assert titles[titles.index("Payment processed") + 1] == "provisioning.requested"
    assert row_of(rows, "provisioning.requested").cells["provisioning"].line == "into-right"
    assert row_of(rows, "Retry requested").cells["provisioning"].line == "into-right"


def test_a_bar_covers_the_rows_of_its_time() -> None:
    rows = draw(steps_of(CONFIRMED, stock={"_id": "o1", "createdAt": after(9)}))
    payment = [row.cells["payment"].bar for row in rows]
    assert payment == ["", "", "work", "work", ""]
    assert [row.cells["payment"].begins for row in rows] == [False, False, True, False, False]
    assert [row.cells["stock"].bar for row in rows] == ["", "work", "work", "", ""]


def test_an_open_step_is_drawn_to_the_end() -> None:
    order = an_order("PENDING", CREATED, (31, "payment.processed", "PENDING"), paymentStatus="PROCESSED")
    rows = draw(steps_of(order))
    assert [row.cells["stock"].bar for row in rows][1:] == ["work"] * (len(rows) - 1)


EVENTS = (
    "order.created",
    "stock.reserved",
    "stock.reservation_failed",
    "stock.released",
    "payment.processed",
    "payment.failed",
    "payment.refunded",
    "provisioning.progress",
    "provisioning.failed",
    "order.cancel_requested",
    "order.deadline_passed",
)
STATUSES = ("PENDING", "CONFIRMED", "PROVISIONING", "CANCELLED", "FAILED")


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from(EVENTS), st.sampled_from(STATUSES)), min_size=1, max_size=12
    ),
    st.sampled_from(("QUEUED", "WAITING", "RUNNING", "FAILED")),
)
def test_any_history_makes_an_ordered_drawable_timeline(history: list[tuple[int, str, str]], state: str) -> None:
    ordered = sorted(history, key=lambda line: line[0])
    order = an_order(ordered[-1][2], *ordered)
    job = JOB | {"state": state}
    letter = LETTER | {"firstFailedAt": after(3), "lastFailedAt": after(9)}
    steps = steps_of(order, job=job, letters=[letter])
    assert [step.at for step in steps] == sorted(step.at for step in steps)
    assert all(step.until is None or step.until >= step.at for step in steps)
    rows = draw(steps)
    kept = [step for step in steps if step.kind != "message"]
    assert [row.step for row in rows if row.step.kind != "message"] == kept
    assert all(set(row.cells) == set(LANES) for row in rows)


def authorised_first(*events: tuple[float, str, str, str | None], **changes: Any) -> Document:
    """Confirmed goods whose card was only authorised at first, and these entries since then."""
    begin = [
        {"at": after(0), "event": "order.created", "status": "PENDING"},
        {"at": after(12), "event": "stock.reserved", "status": "PENDING"},
        {"at": after(31), "event": "payment.processed", "status": "CONFIRMED", "message": "Authorised"},
    ]
    since = [{"at": after(at), "event": event, "status": now, "message": text} for at, event, now, text in events]
    return CONFIRMED | {"fulfilment": "goods", "history": begin + since, **changes}


def test_a_card_that_is_captured_when_the_order_is_confirmed() -> None:
    steps = steps_of(authorised_first((60, "payment.captured", "CONFIRMED", None)))
    assert one(steps, "payment", "Authorised").until == after(31)
    captured = one(steps, "payment", "Captured")
    assert (captured.at, captured.until, captured.outcome) == (after(31), after(60), "ok")
    messages = [(step.lane, step.to, step.title) for step in steps if step.kind == "message"]
    assert messages[-2:] == [("order", "payment", "payment.capture"), ("payment", "order", "payment.captured")]
    assert open_steps(steps) == []


def test_a_capture_without_an_answer_is_open() -> None:
    steps = steps_of(authorised_first(paymentStatus="AUTHORIZED", settled=False))
    assert [(step.lane, step.title, step.at) for step in open_steps(steps)] == [("payment", "Capturing", after(31))]


def test_a_refused_capture_and_the_one_that_a_retry_asked_for() -> None:
    refused = (60, "payment.capture_failed", "FAILED", "The authorisation has expired")
    retried = (900, "order.retry_requested", "CONFIRMED", None)
    steps = steps_of(authorised_first(refused, retried, (950, "payment.captured", "CONFIRMED", None)))
    failed, captured = one(steps, "payment", "Capture refused"), one(steps, "payment", "Captured")
    assert (failed.at, failed.until, failed.outcome) == (after(31), after(60), "failed")
    assert failed.detail == "The authorisation has expired"
    assert (captured.at, captured.until) == (after(900), after(950))
    sent = [step.at for step in steps if step.title == "payment.capture"]
    assert sent == [after(31), after(900)]


def a_refund(refund_id: str, status: str, **fields: Any) -> Document:
    asked = {"amount": 4000, "createdAt": after(100), "updatedAt": after(200), "reason": "Two were broken"}
    return {"refundId": refund_id, "status": status, **asked, **fields}


def with_refunds(*events: tuple[float, str, str | None], refunds: list[Document], settled: bool = True) -> Document:
    """A confirmed order with these entries about refunds, and their refunds."""
    lines = [{"at": after(at), "event": event, "status": "CONFIRMED", "message": text} for at, event, text in events]
    return CONFIRMED | {"history": [*CONFIRMED["history"], *lines], "refunds": refunds, "settled": settled}


def test_a_refund_in_part_goes_through_payment_and_stock() -> None:
    units = [{"productId": "p1", "quantity": 2}]
    order = with_refunds(
        (100, "order.refund_part_requested", "Refund r1: Two were broken"),
        (150, "payment.refunded_part", "Refund r1"),
        (180, "stock.returned", "Refund r1"),
        refunds=[a_refund("r1", "REFUNDED", items=units, restock=True, returned=True)],
    )
    steps = steps_of(order)
    money, back = one(steps, "payment", "Refund 40"), one(steps, "stock", "Put 2 units back")
    assert (money.at, money.until, money.detail, money.outcome) == (after(100), after(150), "Two were broken", "ok")
    assert (back.at, back.until, back.outcome) == (after(150), after(180), "ok")
    sent = [(step.lane, step.to, step.title) for step in steps if step.kind == "message" and step.at >= after(100)]
    assert sent == [
        ("order", "payment", "payment.refund_part"),
        ("payment", "order", "payment.refunded_part"),
        ("order", "stock", "stock.return"),
        ("stock", "order", "stock.returned"),
    ]
    assert open_steps(steps) == []


def test_refunds_that_wait_and_fail_are_told_apart() -> None:
    order = with_refunds(
        (100, "order.refund_part_requested", "Refund r1: Two were broken"),
        (110, "order.refund_part_requested", "Refund r2"),
        (150, "payment.refund_part_failed", "Refund r1: The bank refused"),
        refunds=[
            a_refund("r1", "FAILED", failureReason="The bank refused"),
            a_refund("r2", "PENDING", amount=100, createdAt=after(110)),
        ],
        settled=False,
    )
    steps = steps_of(order)
    failed, waiting = one(steps, "payment", "Refund 40"), one(steps, "payment", "Refund 1")
    assert (failed.outcome, failed.detail, failed.until) == ("failed", "The bank refused", after(150))
    assert open_steps(steps) == [waiting]
    assert one(steps, "order", "Refund in part failed").outcome == "failed"

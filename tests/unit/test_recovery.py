"""What is published again for an order, in every state that it can reach; and the report of a recovery."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from notification_service.events import MESSAGES, event_from
from operations import cli
from operations.commands import recover as command
from operations.recovery.report import MOST_NAMED, RecoveryReport
from order_service import recovery
from order_service.order import Order, Status
from order_service.saga import SAGA
from shared.contracts import Message
from tests.unit.test_saga import EVENTS, NOW, is_held, new_order, reachable

MINUTE = timedelta(minutes=1)


def event_ids(messages: Iterable[Message]) -> set[str]:
    """Return the ids under which webhooks know these messages; commands have none."""
    return {event_from(message, NOW).id for message in messages if isinstance(message, MESSAGES)}


def test_every_order_that_waits_for_an_answer_gets_its_commands_again_and_no_other_does() -> None:
    for order in reachable():
        waits = not order.settled and not is_held(order)
        commands = recovery.commands(order, order.deadline - MINUTE)
        assert bool(commands) == waits, order
        assert commands == SAGA.pending_commands(order)


def test_an_order_past_its_deadline_is_not_charged_in_vain() -> None:
    for order in reachable():
        overdue = order.status is Status.PENDING
        assert recovery.is_overdue(order, order.deadline) == overdue
        expected = () if overdue else SAGA.pending_commands(order)
        assert recovery.commands(order, order.deadline) == expected


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=12))
def test_events_have_the_ids_that_they_were_published_with(names: list[str]) -> None:
    """So a webhook that has an event ignores it, and one that has not gets it; none is made up."""
    order = new_order()
    published = event_ids(SAGA.state_messages(order))
    for minute, name in enumerate(names, start=1):
        step = SAGA.advance(order, EVENTS[name], NOW + minute * MINUTE)
        published |= event_ids(step.messages)
        order = step.order
    again = event_ids([*recovery.creation(order, NOW), *recovery.events(order, NOW)])
    assert again <= published
    assert event_ids(SAGA.state_messages(order)) <= again
    assert len(again) == 1 + len(_announced(order)) + sum(refund.status == "REFUNDED" for refund in order.refunds)


def _announced(order: Order) -> set[str]:
    return event_ids(message for message in SAGA.state_messages(order) if message.routing_key != "order.created")


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=12))
def test_nothing_older_than_the_time_is_published_again(names: list[str]) -> None:
    order = new_order()
    for minute, name in enumerate(names, start=1):
        order = SAGA.advance(order, EVENTS[name], NOW + minute * MINUTE).order
    for since in (NOW + minute * MINUTE for minute in range(len(names) + 2)):
        status_is_new = order.entered_at is not None and order.entered_at >= since and bool(_announced(order))
        refunds = [each for each in order.refunds if each.status == "REFUNDED" and each.updated_at >= since]
        assert len(recovery.events(order, since)) == status_is_new + len(refunds)
    assert recovery.creation(order, order.created_at)
    assert not recovery.creation(order, order.created_at + timedelta(milliseconds=1))


def test_a_report_names_a_bounded_number_of_orders() -> None:
    report = RecoveryReport(NOW)
    for number in range(3 * MOST_NAMED):
        report.note_unsendable(f"order-{number % (2 * MOST_NAMED)}")
    assert report.unsendable == [f"order-{number}" for number in range(MOST_NAMED)]
    assert not report.ok


def test_the_report_says_what_is_left_to_others() -> None:
    report = RecoveryReport(datetime(2026, 1, 31, 9, 30, tzinfo=UTC), missing=["queue order.inbox"], orders=2)
    report.commands.update(["order.created", "order.created", "stock.release"])
    report.events.update(["order.confirmed"])
    report.overdue, report.held, report.letters_without_outcome = 1, 2, 3
    report.continuing = {"payments to look up": 4, "provisioning jobs": 0}
    report.note_unsendable("bad")
    console = Console(width=100)
    with console.capture() as captured:
        command.show(report, console, done=True)
    assert captured.get().splitlines() == [
        "1 exchange or queue was missing, and declared",
        "Sent again, for 2 orders that wait for answers: 3",
        "       2 order.created",
        "       1 stock.release",
        "Published again, since 2026-01-31T09:30:00+00:00: 1",
        "       1 order.confirmed",
        "Continued by their services: 4",
        "       4 payments to look up",
        "1 order past the deadline: the order service cancels it",
        "2 FAILED orders wait for a decision, or for the end of the hold",
        "3 replayed dead letters have no outcome: see `ordersaga dead-letters list --status pending`",
        "✗ order bad cannot be put into messages",
        "Once the orders have settled, `ordersaga audit` checks the books.",
    ]


@pytest.mark.parametrize("words", [["--since", "yesterday"], ["--rate", "0"], ["--nonsense"]])
def test_wrong_usage_has_exit_status_2(words: list[str]) -> None:
    words = ["recover", *words]
    assert CliRunner().invoke(cli.build_application(words), words).exit_code == 2

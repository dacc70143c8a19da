"""The timers of an order: whatever happens to it, a timer is set until it is settled."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from order_service.deadlines import after_intent, after_message, after_refund_request, resend_at
from order_service.events import RefundPartRequested
from order_service.order import Order, Status
from order_service.saga import SAGA
from shared.contracts import Message
from tests.support.builders import TIMEOUTS, an_order
from tests.unit.test_saga import AUTHORIZED, CAPTURED, EVENTS, NOT_CAPTURED, RETRY, STOCK_RESERVED, play

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def noted(order: Order, now: datetime) -> Order:
    """The order once it is noted that its messages are out, as MongoDB does it."""
    due_at = order.deadline if order.status is Status.PENDING else None
    return replace(order, unpublished=False, due_at=due_at, resend_at=resend_at(order, now, TIMEOUTS))


@given(st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.booleans()), max_size=12))
def test_an_unsettled_order_always_has_a_timer(happenings: list[tuple[str, bool]]) -> None:
    order = after_intent(an_order(now=NOW), NOW, TIMEOUTS)
    for number, (name, is_noted) in enumerate(happenings):
        now = NOW + timedelta(seconds=number)
        before, step = order, SAGA.advance(order, EVENTS[name], now)
        if step.entry is not None:
            match EVENTS[name]:
                case Message():
                    order = after_message(before, step, now, TIMEOUTS)
                case RefundPartRequested():
                    order = after_refund_request(step.order, now, TIMEOUTS)
                case _:
                    order = after_intent(step.order, now, TIMEOUTS)
        if is_noted and order.unpublished:
            order = noted(order, now)
        held = order.status is Status.FAILED and not order.compensating
        if order.unpublished or held:
            assert order.due_at is not None
        elif not order.settled:
            assert order.resend_at is not None
            assert order.due_at == (order.deadline if order.status is Status.PENDING else None)
        else:
            assert (order.due_at, order.resend_at) == (None, None)


def test_a_captured_order_is_announced_by_its_capture_and_not_again_by_the_sweep() -> None:
    order = play(STOCK_RESERVED, AUTHORIZED, NOT_CAPTURED)
    retried = after_intent(SAGA.advance(order, RETRY, NOW).order, NOW, TIMEOUTS)
    assert retried.unpublished
    captured = SAGA.advance(retried, CAPTURED, NOW)
    assert [message.routing_key for message in captured.messages] == ["order.confirmed"]
    after = after_message(retried, captured, NOW, TIMEOUTS)
    assert (after.unpublished, after.due_at, after.resend_at, after.settled) == (False, None, None, True)


def test_commands_are_sent_again_after_ever_longer_pauses() -> None:
    order = an_order(now=NOW)
    now, seconds = NOW, []
    for _ in range(10):
        moment = resend_at(order, now, TIMEOUTS)
        assert moment is not None
        seconds.append((moment - NOW).total_seconds())
        now = moment
    assert seconds == [30, 60, 120, 240, 480, 960, 1920, 3840, 7440, 11040]


def test_an_outage_of_a_day_adds_few_messages_for_each_order() -> None:
    order, moment, sent = an_order(now=NOW), resend_at(an_order(now=NOW), NOW, TIMEOUTS), 0
    while moment is not None and moment < NOW + timedelta(days=1):
        sent, moment = sent + 1, resend_at(order, moment, TIMEOUTS)
    assert moment is not None
    assert sent <= 31

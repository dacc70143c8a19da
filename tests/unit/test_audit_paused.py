"""The audit's judgement of orders that wait for a service whose consumption is paused."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from operations.audit.order_records import OrderRecords
from operations.audit.orders import COMPENSATION, STALLED
from operations.audit.paused import AFTER_PAUSE, PausesByService, awaited_services, is_stalled, judge
from shared.pausing.pause import Pause
from tests.support.builders import records_of
from tests.unit.test_audit_orders import CHARGED, NOW, a_payment, a_reservation, an_order

LONG_AFTER = NOW + timedelta(hours=2)
INSTANT = timedelta(milliseconds=1)

CANCELLED = an_order("CANCELLED", stockStatus="RELEASED", paymentStatus="PROCESSED")
RECORDS = OrderRecords(
    "o1", CANCELLED, records_of(stock=a_reservation("RELEASED"), payment=a_payment("PROCESSED")), CHARGED
)


def kinds(pauses: PausesByService, now: datetime = LONG_AFTER) -> tuple[list[str], list[str]]:
    found, excused = judge(RECORDS, now, pauses)
    return [violation.kind for violation in found], [violation.kind for violation in excused]


def test_what_waits_for_a_paused_service_is_not_late() -> None:
    assert kinds({}) == (["compensation"], [])
    assert kinds({"payment": (Pause(NOW),)}) == ([], ["compensation"])
    assert kinds({"order": (Pause(NOW),)}) == ([], ["compensation"])
    assert kinds({"inventory": (Pause(NOW),), "notification": (Pause(NOW),)}) == (["compensation"], [])


def test_after_a_pause_a_service_has_time_for_what_has_piled_up() -> None:
    def ended(ago: timedelta) -> PausesByService:
        return {"payment": (Pause(NOW, ended_at=LONG_AFTER - ago),)}

    assert kinds(ended(AFTER_PAUSE - INSTANT)) == ([], ["compensation"])
    assert kinds(ended(AFTER_PAUSE)) == (["compensation"], [])
    before = {"payment": (Pause(NOW - timedelta(hours=1), until=NOW),)}
    soon = NOW + COMPENSATION + INSTANT
    assert kinds(before, soon) == (["compensation"], []), "the pause was over before the order's last step"


def test_what_was_late_before_the_pause_still_is() -> None:
    assert kinds({"payment": (Pause(NOW + COMPENSATION),)}) == ([], ["compensation"])
    assert kinds({"payment": (Pause(NOW + COMPENSATION + INSTANT),)}) == (["compensation"], [])


def test_a_pause_excuses_nothing_but_lateness() -> None:
    wrong = RECORDS._replace(order=CANCELLED | {"totalAmount": 1})
    found, excused = judge(wrong, LONG_AFTER, {"payment": (Pause(NOW),)})
    assert {"total", "payment amount"} <= {violation.kind for violation in found}
    assert [violation.kind for violation in excused] == ["compensation"]


def test_a_message_that_a_paused_service_may_have_is_not_lost() -> None:
    assert is_stalled(RECORDS, LONG_AFTER, {})
    assert not is_stalled(RECORDS, NOW, {})
    assert not is_stalled(RECORDS, LONG_AFTER, {"payment": (Pause(NOW),)})
    assert is_stalled(RECORDS, LONG_AFTER, {"payment": (Pause(NOW + STALLED + INSTANT),)})


COMPLETED = {"stockStatus": "RESERVED", "paymentStatus": "PROCESSED"}


@pytest.mark.parametrize(
    ("order", "services"),
    [
        (an_order(), {"inventory", "payment"}),
        (an_order(stockStatus="RESERVED"), {"payment"}),
        (an_order("PROVISIONING", **COMPLETED), {"provisioning"}),
        (an_order("CANCELLED", stockStatus="RESERVED", paymentStatus="FAILED"), {"inventory"}),
        (an_order("CONFIRMED", stockStatus="RESERVED", paymentStatus="AUTHORIZED"), {"payment"}),
        (an_order("COMPLETED", fulfilment="goods", **COMPLETED), {"inventory"}),
        (an_order("CONFIRMED", refunds=[{"status": "PENDING"}], **COMPLETED), {"inventory", "payment"}),
    ],
)
def test_an_order_waits_for_those_who_have_something_to_do(order: dict[str, Any], services: set[str]) -> None:
    assert awaited_services(OrderRecords("o1", order)) == services | {"order"}

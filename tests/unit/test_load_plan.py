"""The orders of a load test, and the figures of its report."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from operations.audit import Report, Violation
from operations.commands.load_display import show
from operations.load.cost import Cost, Usage, cost_between
from operations.load.outcomes import Outcomes
from operations.load.plan import VARIETY, LoadPlan
from operations.load.report import LoadReport, SlotFigures, milliseconds, percentile
from order_service.new_order import Customer, NewDelivery, NewItem, NewOrder


def test_the_same_plan_makes_the_same_orders() -> None:
    plan = LoadPlan(orders=50, products=5, lines=3, seed=7)
    assert plan.bodies("load-1") == plan.bodies("load-1")
    assert plan.bodies("load-1") != replace(plan, seed=8).bodies("load-1")


def test_every_order_adds_up_and_names_no_product_twice() -> None:
    plan = LoadPlan(orders=200, products=5, lines=3, payment_token="tok_declined")
    for body in map(json.loads, plan.bodies("load-1")):
        products = [item["productId"] for item in body["items"]]
        assert len(set(products)) == 3
        assert set(products) <= set(plan.product_ids("load-1"))
        assert body["totalAmount"] == sum(item["quantity"] * item["price"] for item in body["items"])
        assert body["userId"] == "load-1"
        assert body["payment"] == {"token": "tok_declined"}


def test_a_long_test_places_the_same_orders_again() -> None:
    assert len(LoadPlan(orders=20).bodies("load-1")) == 20
    assert len(LoadPlan(orders=100 * VARIETY).bodies("load-1")) == VARIETY


def test_orders_want_a_slot_only_if_the_plan_says_so() -> None:
    wishes = [json.loads(body).get("delivery") for body in LoadPlan(orders=3, slots=True).bodies("load-1")]
    assert wishes == [{"slot": "auto"}] * 3
    assert all("delivery" not in json.loads(body) for body in LoadPlan(orders=3).bodies("load-1"))


def test_more_lines_than_products_cannot_be_placed() -> None:
    with pytest.raises(ValueError, match="3 lines per order need as many products, but there are 2"):
        LoadPlan(orders=1, products=2, lines=3)


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (91, 10), (99, 10), (100, 10), (0, 1)])
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    assert percentile(range(1, 11), percent) == expected


def test_percentiles_of_nothing_are_zero() -> None:
    assert milliseconds([]) == {"p50": 0, "p90": 0, "p99": 0, "max": 0}


def test_durations_need_not_be_in_order() -> None:
    assert milliseconds([0.003, 0.001, 0.0024]) == {"p50": 2.4, "p90": 3.0, "p99": 3.0, "max": 3.0}


def shown(status: str, *, settled: bool = True, accepted: float = 0.0, took: float = 0.0) -> dict[str, Any]:
    """Return an order of the API that was accepted and updated some seconds after a fixed time."""
    start = datetime(2026, 1, 31, 9, 30, tzinfo=UTC) + timedelta(seconds=accepted)
    end = (start + timedelta(seconds=took)).isoformat().replace("+00:00", "Z")
    reason = "The card was declined" if status == "CANCELLED" else None
    times: dict[str, Any] = {"slot": "slot:900" if status == "CONFIRMED" else None}
    times |= {"createdAt": start.isoformat(), "updatedAt": end, "completedAt": None, "cancelledAt": None}
    times |= {"confirmedAt": None, "server": None}
    times |= {"confirmedAt": end} if status == "CONFIRMED" else {"cancelledAt": end} if status == "CANCELLED" else {}
    return {"status": status, "settled": settled, "failureReason": reason, **times}


def test_outcomes_are_counted_and_timed_by_the_orders_own_times() -> None:
    outcomes = Outcomes()
    for order in (
        shown("CONFIRMED", accepted=0.0, took=0.5),
        shown("CANCELLED", accepted=1.0, took=1.0),
        shown("PENDING", settled=False, accepted=1.5, took=9.0),
    ):
        outcomes.add(order)
    assert outcomes.orders == 3
    assert outcomes.unsettled == 1
    assert outcomes.statuses == {"CONFIRMED": 1, "CANCELLED": 1, "PENDING": 1}
    assert outcomes.reasons == {"The card was declined": 1}
    assert list(outcomes.to_final) == [0.5, 1.0]
    assert outcomes.seconds == 2.0


def test_orders_with_slots_and_those_that_found_all_full_are_counted() -> None:
    outcomes = Outcomes()
    full = {"failureReason": "No delivery slot with room for 10 until 2026-02-01T00:00:00Z"}
    declined = {"slot": "slot:900"}  # released again
    for order in (
        shown("CONFIRMED"),
        shown("CONFIRMED"),
        shown("CONFIRMED") | {"slot": "slot:1800"},
        shown("CANCELLED") | full,
        shown("CANCELLED") | declined,
    ):
        outcomes.add(order)
    assert (outcomes.slots, outcomes.full) == ({"slot:900": 2, "slot:1800": 1}, 1)


@pytest.mark.parametrize(
    ("slots", "line"),
    [
        (SlotFigures(3, 2, 0), "delivery slots: 2, for 3 orders\n"),
        (
            SlotFigures(3, 2, 1000),
            "delivery slots: 2, for 3 orders; 1,000 orders were refused because all slots are full\n",
        ),
        (None, None),
    ],
    ids=["room for all", "full", "no slots"],
)
def test_the_report_shows_the_delivery_slots(slots: SlotFigures | None, line: str | None) -> None:
    console = Console(file=io.StringIO(), width=100)
    show(replace(REPORT, slots=slots), console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert line in printed if line else "slots" not in printed
    assert replace(REPORT, slots=slots).as_json().get("slots") == (slots.as_json() if slots else None)


REPORT = LoadReport(
    placed=10,
    accepted=10,
    in_doubt=0,
    refused=0,
    recorded=10,
    unsettled=0,
    seconds=2.0,
    latencies_ms={},
    statuses={"CONFIRMED": 10},
    reasons={},
    errors={},
    cost={"order": Cost(0.05, 2**20)},
    audit=Report(),
    audited=10,
    audited_in="/stack (databases ordersaga_*)",
)


def test_a_complete_load_test() -> None:
    assert REPORT.ok
    assert REPORT.orders_per_second == 5.0
    assert REPORT.as_json()["cost"] == {"order": {"cpuSeconds": 0.05, "cpuMsPerOrder": 5.0, "rssMiB": 1.0}}


@pytest.mark.parametrize(
    "incomplete",
    [
        {"unsettled": 1},
        {"recorded": 9},  # an accepted order is missing
        {"recorded": 11},  # there is an order that was not placed
        {"accepted": 0, "recorded": 0},
        {"audited": 0},  # the audit covered another stack
        {"audited": 9},  # the audit left an accepted order out
        {"audit": Report(violations=[Violation(1, "conservation", "product", "p1", "5", "6")])},
    ],
)
def test_what_makes_a_load_test_fail(incomplete: dict[str, Any]) -> None:
    assert not replace(REPORT, **incomplete).ok


def test_an_order_without_an_answer_may_or_may_not_be_recorded() -> None:
    in_doubt = replace(REPORT, accepted=9, in_doubt=1)
    assert replace(in_doubt, recorded=9).ok
    assert replace(in_doubt, recorded=10).ok
    assert not replace(in_doubt, recorded=11).ok


def test_a_restarted_process_counts_from_its_start() -> None:
    before = {"order": Usage(1, 10.0, 5), "inventory": Usage(2, 10.0, 5)}
    after = {"order": Usage(1, 10.5, 7), "inventory": Usage(3, 0.25, 8), "payment": Usage(4, 0.125, 9)}
    assert cost_between(before, after) == {"order": Cost(0.5, 7), "inventory": Cost(0.25, 8), "payment": Cost(0.125, 9)}


def test_details_are_all_that_a_shop_may_know_about_an_order() -> None:
    order = NewOrder.model_validate_json(LoadPlan(orders=1, lines=2, slots=True, details=True).bodies("run")[0])
    assert order.model_fields_set == NewOrder.model_fields.keys() - {"currency", "hold_id"}
    assert order.items[0].model_fields_set == NewItem.model_fields.keys()
    assert order.customer is not None
    assert order.customer.model_fields_set == Customer.model_fields.keys()
    assert order.delivery is not None
    assert order.delivery.model_fields_set == NewDelivery.model_fields.keys()

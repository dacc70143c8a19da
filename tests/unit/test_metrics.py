"""The metrics' names and labels: a bounded number of series, in Prometheus' units, all of them documented."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import httpx
import pytest
from prometheus_client import generate_latest

from inventory_service.metrics import OTHER, count_decisions, reason_class
from inventory_service.stock import Reservation, assignment_id
from inventory_service.stock import Status as Stock
from operations import metrics as stack_metrics
from order_service.events import CancelRequested, DeadlinePassed
from order_service.failures import GENERAL
from order_service.metrics import count_changes, reason_of
from order_service.order import Order, Status
from order_service.orders import Change
from order_service.saga import SAGA
from shared.bus.metrics import handling, type_label
from shared.contracts import (
    Message,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    ProvisioningFailed,
    StockReleased,
    StockReserved,
)
from shared.contracts.inventory import ServerSpecification
from shared.http import create_app
from tests.support.access import ADMIN, key_authenticator
from tests.support.builders import an_order
from tests.support.monitoring import ROOT, Metric, Samples, declared_metrics, promtool, samples_of, value

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
METRICS = declared_metrics()
GRPC_LABELS = {"grpc_method", "grpc_code"}
"""As other servers name them, so that ready-made dashboards fit."""
PAGE = (ROOT / "docs/monitoring.md").read_text()


@pytest.fixture
def counted() -> "Counted":
    return Counted()


class Counted:
    """The counts since the start of the test."""

    def __init__(self) -> None:
        self._before = _samples()

    def __call__(self, name: str, **labels: str) -> float:
        return value(_samples(), name, **labels) - value(self._before, name, **labels)


def _samples() -> Samples:
    return samples_of(generate_latest().decode())


# --- Names. ---


@pytest.mark.parametrize("name", METRICS)
def test_names_are_in_base_units_and_lower_case(name: str) -> None:
    metric = METRICS[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert (metric.kind == "counter") == name.endswith("_total")
    assert not re.search(r"_(ms|milliseconds|minutes|hours|percent|kb|mb)(_|$)", name)
    assert metric.help


def test_names_are_as_prometheus_wants_them() -> None:
    promtool("check", "metrics", given=generate_latest().decode())


@pytest.mark.parametrize("name", METRICS)
def test_no_label_is_without_bound(name: str) -> None:
    allowed = {
        "method",
        "route",
        "status",
        "queue",
        "type",
        "outcome",
        "reason",
        "of",
        "operation",
        "state",
        "call",
        "attempt",
    }
    assert (
        set(METRICS[name].labels)
        <= allowed | {"package", "service", "source", "collection", "dependency", "level", "version"} | GRPC_LABELS
    )


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_in_the_table(name: str) -> None:
    assert row(METRICS[name]) in PAGE, f"docs/monitoring.md needs the row: {row(METRICS[name])}"


def test_the_table_has_no_unknown_metric() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == METRICS.keys()


def row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help.rstrip('.')} |"


# --- Orders. ---


def test_an_order_that_is_refused_is_counted_with_its_reason_and_its_compensation(counted: "Counted") -> None:
    order = an_order(now=NOW, stock_status="RESERVED")
    cancelled = step(order, PaymentFailed(order_id=order.order_id, reason="The card of Mr. X was declined"), seconds=2)
    count_changes([Change(order, cancelled, ())])
    assert counted("orders_ended_total") == counted("orders_ended_total", reason="payment_refused") == 1
    assert counted("saga_duration_seconds_sum", status="CANCELLED") == 2
    assert (counted("saga_compensations_total", of="stock"), counted("saga_compensations_total", of="payment")) == (
        1,
        0,
    )
    settled = step(cancelled, StockReleased(order_id=order.order_id), seconds=5)
    count_changes([Change(cancelled, settled, ())])
    assert counted("orders_ended_total") == 1
    assert counted("saga_compensated_total", status="CANCELLED") == 1
    assert counted("saga_compensation_seconds_sum") == pytest.approx(3)


def test_a_successful_order_has_no_reason_and_no_compensation(counted: "Counted") -> None:
    order = an_order(now=NOW, stock_status="RESERVED", fulfilment="goods")
    confirmed = step(order, PaymentProcessed(order_id=order.order_id, transaction_id="t1"), seconds=1)
    count_changes([Change(order, confirmed, ())])
    assert counted("orders_ended_total", status="CONFIRMED", reason="none") == 1
    assert counted("saga_compensations_total") == counted("saga_compensated_total") == 0


def test_a_step_that_ends_nothing_counts_nothing(counted: "Counted") -> None:
    order = an_order(now=NOW, payment_status="PROCESSED")
    server = ServerSpecification(package="103.1.2", package_id="7", ram=2048)
    reserved = StockReserved(order_id=order.order_id, fulfilment="vps", provisioning=server)
    provisioning = step(order, reserved, seconds=1)
    assert provisioning.status is Status.PROVISIONING
    count_changes([Change(order, provisioning, ())])
    assert counted("orders_ended_total") == counted("saga_compensations_total") == 0


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (DeadlinePassed(), "timed_out"),
        (CancelRequested("changed my mind"), "cancelled_by_client"),
        (PaymentRefunded(order_id="o1", status="VOIDED"), "returned_early"),
    ],
    ids=["deadline", "client", "voided"],
)
def test_the_reason_is_the_event_that_ended_the_order(event: Any, reason: str) -> None:
    assert reason_of(step(an_order(now=NOW, order_id="o1"), event, seconds=1)) == reason


def test_a_cancellation_that_waited_for_a_step_counts_as_the_clients() -> None:
    order = an_order(
        now=NOW, order_id="o1", status=Status.PROVISIONING, stock_status="RESERVED", payment_status="PROCESSED"
    )
    failed = ProvisioningFailed(order_id="o1", reason="stopped", retryable=False)
    assert reason_of(step(order, failed, seconds=1)) == "provisioning_failed"
    assert reason_of(step(replace(order, cancel_requested=True), failed, seconds=1)) == "cancelled_by_client"


def test_every_event_that_may_end_an_order_badly_has_its_reason() -> None:
    events = [event for status in (Status.PENDING, Status.PROVISIONING) for event in SAGA.table[status]]
    ends = {_key(event) for event in events} | {"payment.capture_failed"}
    harmless = {
        "stock.reserved",
        "payment.processed",
        "provisioning.progress",
        "provisioning.completed",
    }
    assert ends - harmless == GENERAL.keys()


def _key(event: Any) -> str:
    """The routing key of a message, or the event of a request in the history."""
    return str(event.routing_key if issubclass(event, Message) else event._field_defaults["routing_key"])


def step(order: Order, event: Any, *, seconds: float) -> Order:
    return SAGA.advance(order, event, NOW + timedelta(seconds=seconds)).order


# --- Stock. ---


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("Insufficient stock for slot:1: asked 2, free 1", "insufficient_stock"),
        ("Unknown product Delivery 7", "unknown_product"),
        ("Price of p1 is 5, the order says 5.01", "wrong_price"),
        ("An order can hold one server at most", "too_many_servers"),
        ("Delivery slots are not available: order without delivery.slot", "slot"),
        ("No delivery slot with room for 5 until tomorrow", "slot"),
        ("the moon is in the wrong phase", OTHER),
    ],
)
def test_the_reason_of_a_refusal_has_a_class(reason: str, name: str) -> None:
    assert reason_class(reason) == name


def test_decisions_about_stock_are_counted_by_outcome_and_class(counted: "Counted") -> None:
    refused = Reservation("o1", Stock.FAILED, NOW, NOW, failure_reason="Insufficient stock for p1: asked 2, free 1")
    count_decisions([Reservation("o2", Stock.RESERVED, NOW, NOW), refused])
    assert counted("inventory_reservations_total", outcome="RESERVED") == 1
    assert counted("inventory_reservations_total", outcome="FAILED") == 1
    assert counted("inventory_refusals_total") == counted("inventory_refusals_total", reason="insufficient_stock") == 1


# --- Messages and requests. ---


def test_calls_of_handlers_are_measured_by_type_and_outcome(counted: "Counted") -> None:
    one, other = StockReleased(order_id="o1"), PaymentFailed(order_id="o1", reason="declined")
    with handling("a.inbox", [one, one]):
        pass
    with handling("a.inbox", [one, other]):
        pass
    with pytest.raises(RuntimeError), handling("a.inbox", [one]):
        raise RuntimeError
    found = {
        (type_, outcome): counted("ordersaga_handling_seconds_count", queue="a.inbox", type=type_, outcome=outcome)
        for type_ in ("stock.released", "payment.failed", "mixed")
        for outcome in ("handled", "failed")
    }
    assert {labels for labels, count in found.items() if count} == {
        ("stock.released", "handled"),
        ("mixed", "handled"),
        ("stock.released", "failed"),
    }


def test_a_type_that_a_sender_invents_is_not_a_series() -> None:
    assert type_label("order.created") == "order.created"
    assert type_label("order.created; drop table") == "unknown"


async def test_a_method_that_a_client_invents_is_not_a_series(counted: "Counted") -> None:
    async def ready() -> dict[str, str]:
        return {}

    transport = httpx.ASGITransport(create_app("test", "for this test", ready, authenticator=key_authenticator()))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ADMIN) as client:
        for number in range(3):
            await client.request(f"BREW{number}", f"/coffee/{number}")
    assert counted("http_requests_total", method="other", route="unknown") == 3
    assert "BREW" not in generate_latest().decode()


# --- The stack as a whole. ---


def test_open_orders_are_shown_by_status_with_their_age() -> None:
    found = [
        standing("PENDING", count=3, late=2, seconds=400),
        standing("PROVISIONING", count=1, seconds=10),
        standing("CANCELLED", count=2, seconds=30),
        standing("FAILED", count=5, seconds=5000, not_captured=4),
        standing("FAILED", count=1, seconds=60, compensating=True),
    ]
    stack_metrics.show_orders(found, NOW)
    seen = _samples()
    assert {status: value(seen, "ordersaga_open_orders", status=status) for status in stack_metrics.OPEN_STATUSES} == {
        "PENDING": 3,
        "CONFIRMED": 0,
        "PROVISIONING": 1,
        "COMPLETED": 0,
        "CANCELLED": 2,
        "FAILED": 6,
    }
    assert value(seen, "ordersaga_orders_past_deadline") == 2
    assert value(seen, "ordersaga_orders_not_captured") == 4
    assert value(seen, "ordersaga_open_order_oldest_seconds", status="FAILED") == 5000
    # A FAILED order holds its money for a decision: that is not a stalled compensation.
    assert value(seen, "ordersaga_open_compensations") == 3
    assert value(seen, "ordersaga_open_compensation_oldest_seconds") == 60
    stack_metrics.show_orders([], NOW)
    seen = _samples()
    assert value(seen, "ordersaga_open_orders") == value(seen, "ordersaga_open_compensation_oldest_seconds") == 0


async def test_assignments_of_slots_and_holds_are_not_reservations_of_orders() -> None:
    mongo = MagicMock()
    counted = mongo.__getitem__.return_value.__getitem__.return_value
    counted.estimated_document_count = AsyncMock(return_value=10)
    counted.count_documents = AsyncMock(return_value=4)
    await stack_metrics.Observer(mongo, "p", "amqp://unused")._count_records()
    assert [call.args[0]["_id"] for call in counted.count_documents.await_args_list] == [
        {"$gte": "assignment:", "$lt": "assignment;"},
        {"$gte": "hold:", "$lt": "hold;"},
    ]
    low, high = stack_metrics.ASSIGNMENTS["_id"]["$gte"], stack_metrics.ASSIGNMENTS["_id"]["$lt"]
    assert low <= assignment_id("o1", 7) < high
    seen = _samples()
    assert value(seen, "ordersaga_records", collection="assignments") == 4
    assert value(seen, "ordersaga_records", collection="holds") == 4
    assert value(seen, "ordersaga_records", collection="reservations") == 2
    assert value(seen, "ordersaga_records", collection="orders") == 10


def test_a_missing_package_disappears() -> None:
    packages = [{"_id": "103.1.2", "ipv4": 3, "low": True}, {"_id": "103.1.3", "ipv4": 9, "low": False}]
    waits = [{"_id": "103.1.2", "since": NOW - timedelta(seconds=40)}]
    stack_metrics.show_packages(packages, waits, NOW)
    seen = _samples()
    assert value(seen, "ordersaga_package_free_addresses", package="103.1.2") == 3
    assert value(seen, "ordersaga_package_low", package="103.1.2") == 1
    assert value(seen, "ordersaga_package_low", package="103.1.3") == 0
    assert value(seen, "ordersaga_lock_wait_oldest_seconds", package="103.1.2") == 40
    assert value(seen, "ordersaga_lock_wait_oldest_seconds", package="103.1.3") == 0
    stack_metrics.show_packages([], [], NOW)
    assert not [name for name, _ in _samples() if name.startswith(("ordersaga_package", "ordersaga_lock_wait"))]


def standing(
    status: str, *, count: int, seconds: float, late: int = 0, not_captured: int = 0, compensating: bool | None = None
) -> Any:
    figures = {"count": count, "late": late, "notCaptured": not_captured, "since": NOW - timedelta(seconds=seconds)}
    return {"_id": {"status": status, "compensating": compensating}, **figures}

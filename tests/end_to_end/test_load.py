"""`ordersaga load` against a running stack: orders, figures and result."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from operations.audit import audit
from operations.audit.order_records import OrderRecords
from operations.audit.service_databases import ServiceDatabases
from operations.errors import UnreachableError
from operations.load import LoadPlan, LoadProgress, run_load
from operations.settings import Stack as Address
from tests.support import warm_processes
from tests.support.access import ADMIN_KEY
from tests.support.processes import Stack, run_module_stack
from tests.support.servers import Servers


@pytest.fixture(scope="module")
async def stack(servers: Servers) -> AsyncIterator[Stack]:
    """Run one stack for all tests, which ignore each other's orders."""
    async with run_module_stack(servers) as running:
        yield running


NEVER = datetime.min.replace(tzinfo=UTC)


def address(stack: Stack) -> Address:
    urls = {service: stack.url(service) for service in ("order", "inventory")}
    return Address(stack.mongodb_url, stack.amqp_url, urls, None, stack.database_prefix, ADMIN_KEY)


async def test_every_order_is_placed_settled_and_timed(stack: Stack) -> None:
    progress = LoadProgress()
    report = await run_load(
        address(stack), LoadPlan(orders=100, concurrency=10, products=4, lines=2, details=True), progress
    )
    assert report.ok
    assert (report.placed, report.accepted, report.recorded, report.unsettled) == (100, 100, 100, 0)
    assert report.statuses == {"CONFIRMED": 100}
    assert (report.errors, report.reasons) == ({}, {})
    assert (progress.phase, progress.done) == ("auditing", 100)
    assert report.audit.checked["orders"] >= 100
    for measured in ("post", "final", "settled"):
        figures = report.latencies_ms[measured]
        assert 0 < figures["p50"] <= figures["p90"] <= figures["p99"] <= figures["max"]
    assert report.seconds > 0
    assert report.orders_per_second == pytest.approx(100 / report.seconds)
    assert report.cost["load"].rss_bytes > 0


async def test_declined_orders_are_cancelled_and_release_everything(stack: Stack) -> None:
    report = await run_load(address(stack), LoadPlan(orders=40, rate=200, payment_token="tok_declined"))
    assert report.ok
    assert report.statuses == {"CANCELLED": 40}
    assert report.reasons == {"The card was declined": 40}


async def test_an_audit_during_a_load_test_finds_orders_in_flight_and_no_violations(stack: Stack) -> None:
    """Successful and declined orders buy and release one hot product at the same time."""
    good = asyncio.create_task(run_load(address(stack), LoadPlan(orders=200, products=1)))
    declined = asyncio.create_task(
        run_load(address(stack), LoadPlan(orders=200, products=1, payment_token="tok_declined"))
    )
    in_flight = 0
    while not (good.done() and declined.done()):
        report = await audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix, confirm_after=0)
        assert report.violations == []
        in_flight = max(in_flight, report.information["inFlight"])
    assert in_flight > 0
    assert (await good).ok
    assert (await declined).ok


async def test_orders_that_do_not_settle_are_reported(stack: Stack) -> None:
    """Without payment, accepted orders stay pending: neither confirmed nor lost, and the load test fails."""
    for process in stack.processes("payment"):
        await stack.kill(process)
    try:
        report = await run_load(address(stack), LoadPlan(orders=20, timeout=0.5))
    finally:
        await stack.start("payment")
    assert (report.accepted, report.recorded, report.unsettled) == (20, 20, 20)
    assert not report.complete
    assert not report.ok
    assert report.audit.ok
    assert report.audit.information["inFlight"] == 20


async def test_a_stack_that_does_not_exist() -> None:
    nowhere = {"order": "http://127.0.0.1:1", "inventory": "http://127.0.0.1:1"}
    with pytest.raises(UnreachableError, match="inventory service"):
        await run_load(
            Address("mongodb://127.0.0.1:1/", "amqp://127.0.0.1:1/", nowhere, None, "nothing"), LoadPlan(orders=1)
        )


async def ordersaga(*words: str, **settings: str) -> tuple[int, str, str]:
    """Run the command line with these settings; return its exit status, its output and its errors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
    environment |= {f"ORDERSAGA_{name.upper()}": value for name, value in settings.items()}
    environment["ORDERSAGA_API_KEY"] = ADMIN_KEY
    return await warm_processes.run("operations.cli", *words, environment=environment)


async def test_the_command_line(stack: Stack) -> None:
    where = {"mongodb_url": stack.mongodb_url, "amqp_url": stack.amqp_url, "database_prefix": stack.database_prefix}
    where |= {"order_url": stack.url("order"), "inventory_url": stack.url("inventory")}
    named = f"(databases {stack.database_prefix}_*)"
    status, output, errors = await ordersaga("load", "--orders", "30", "--json", **where)
    assert status == 0, errors
    document = json.loads(output)
    assert (document["ok"], document["settled"], document["audit"]["ok"]) == (True, 30, True)
    assert document["stack"]["databasePrefix"] == stack.database_prefix
    assert named in errors
    assert f"orders go to {stack.url('order')}" in errors

    status, output, errors = await ordersaga("load", "--orders", "30", "--rate", "300", **where)
    assert status == 0, errors
    assert "30 of 30 orders settled" in output
    assert "Stock is conserved" in output

    status, output, errors = await ordersaga("audit", **where)
    assert status == 0, errors
    assert named in errors
    assert re.search(r"Every successful order has stock and payment +[\d,]+ orders", output)


async def test_an_audit_that_leaves_an_order_out_is_reported(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = ServiceDatabases.orders

    async def without_the_newest(databases: ServiceDatabases) -> AsyncIterator[list[OrderRecords]]:
        async for page in orders(databases):
            yield sorted(page, key=lambda each: (each.order or {}).get("updatedAt", NEVER))[:-1]

    assert (await run_load(address(stack), LoadPlan(orders=3))).ok
    monkeypatch.setattr(ServiceDatabases, "orders", without_the_newest)
    report = await run_load(address(stack), LoadPlan(orders=3))
    assert (report.audit.ok, report.complete, report.recorded) == (True, True, 3)
    assert report.audited == 2
    assert not report.ok


async def test_an_audit_of_a_stack_that_did_not_take_the_orders_is_reported(stack: Stack) -> None:
    """The books of the other stack balance because they are empty."""
    where = {"mongodb_url": stack.mongodb_url, "amqp_url": stack.amqp_url, "database_prefix": "another"}
    where |= {"order_url": stack.url("order"), "inventory_url": stack.url("inventory")}
    status, output, errors = await ordersaga("load", "--orders", "3", **where)
    assert status == 1, errors
    assert "The audit covered another stack: 0 of the 3 orders are in" in output
    assert "(databases another_*)" in output


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("amqp_url", "amqp://u:S3#CR3T@h/"),
        ("mongodb_url", "mongodb://u:S3/CR3T@h/"),
        ("inventory_url", "http://user:S3/CR3T4@h/"),
    ],
)
async def test_a_malformed_url_is_one_line_without_the_password(stack: Stack, setting: str, url: str) -> None:
    where = {"mongodb_url": stack.mongodb_url, "amqp_url": stack.amqp_url, setting: url}
    status, output, errors = await ordersaga("load", "--orders", "1", **where)
    assert (status, output) == (3, "")
    assert errors.count("\n") == 1
    assert errors.startswith(f"ORDERSAGA_{setting.upper()}='{url.partition(':')[0]}://")
    assert "percent-encoded" in errors
    assert "CR3T" not in errors


async def test_exit_statuses_of_the_command_line(mongodb_url: str) -> None:
    assert (await ordersaga("load", "--orders", "0"))[0] == 2
    assert (await ordersaga("load", "--products", "2", "--lines", "3"))[0] == 2
    for command in ("load", "audit"):
        nowhere = {
            "amqp_url": "amqp://127.0.0.1:1/",
            "order_url": "http://127.0.0.1:1",
            "inventory_url": "http://127.0.0.1:1",
        }
        status, _, errors = await ordersaga(command, mongodb_url=mongodb_url, **nowhere)
        assert status == 3, errors
        assert "Traceback" not in errors

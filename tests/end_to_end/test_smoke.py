"""`ordersaga smoke` against a running stack: what it does, and that it undoes all of it, also when a step fails."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pymongo
import pytest

from operations.smoke.calls import Calls
from operations.smoke.steps import PRODUCT, SmokeTest
from shared.services import CONSOLE
from tests.support import warm_processes
from tests.support.access import ADMIN, ADMIN_KEY
from tests.support.processes import SAGA_SERVICES, Stack, run_stack
from tests.support.servers import Servers, delete_topology

SECONDS = 60.0
"""How long an order may take in these tests: for a slow machine."""


@pytest.fixture(scope="module")
async def stack(servers: Servers) -> AsyncIterator[Stack]:
    """Run one stack for all tests."""
    await delete_topology(servers.amqp_url)
    prefix = f"t{secrets.token_hex(8)}"
    async with run_stack(servers.mongodb_url, servers.amqp_url, prefix) as running:
        await running.start()
        yield running
    await delete_topology(servers.amqp_url)
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        for name in ("orders", "inventory", "payments", CONSOLE.database):
            await client.drop_database(f"{prefix}_{name}")


@pytest.fixture
async def test(stack: Stack) -> AsyncIterator[SmokeTest]:
    urls = {name: stack.url(name) for name in SAGA_SERVICES}
    async with httpx.AsyncClient(headers=ADMIN, timeout=SECONDS) as client:
        yield SmokeTest(Calls(client, urls), within=SECONDS)


async def smoke(stack: Stack, *words: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    variables = stack.command_environment | {"ORDERSAGA_API_KEY": ADMIN_KEY} | (environment or {})
    status, output, errors = await warm_processes.run("operations.cli", "smoke", *words, environment=variables)
    assert status in (0, 1), errors
    return status, output


async def assert_undone(stack: Stack, user: str) -> None:
    """Nothing is on sale or held, no money is anywhere that it was not, and the books balance."""
    product = (await stack.client.get(f"{stack.url('inventory')}/products/{PRODUCT}")).json()
    assert product["onSale"] is False
    listed = await stack.client.get(f"{stack.url('order')}/orders", params={"userId": user})
    for order in listed.json()["items"]:
        assert order["settled"]
        assert order["status"] == "CANCELLED" or order["refundedAmount"] == order["totalAmount"]
    await stack.assert_books_balance()


async def test_one_of_everything_is_done_and_undone(stack: Stack) -> None:
    """With room in slots; the second run finds what the first has left behind."""
    rules = {"openTime": "00:00", "closeTime": "23:30", "durationMinutes": 30, "horizonSlots": 4, "capacity": 100}
    configured = await stack.client.put(f"{stack.url('inventory')}/slots/config", json=rules)
    assert configured.is_success, configured.text
    for _ in range(2):
        status, output = await smoke(stack, "--json", "--why", "deployment 7")
        document = json.loads(output)
        assert (status, document["ok"]) == (0, True), output
        assert [(step["step"], step["outcome"]) for step in document["steps"]] == [
            *((name, "done") for name in ("stock", "hold", "funds", "order")),
            *((name, "undone") for name in ("order", "funds", "hold", "stock")),
        ]
        assert "room in the slot slot:" in document["steps"][1]["detail"]
    slots = (await stack.client.get(f"{stack.url('inventory')}/slots")).json()["items"]
    assert {slot["load"] for slot in slots} == {0}
    async with pymongo.AsyncMongoClient[dict[str, Any]](stack.mongodb_url) as client:
        entries = (
            await client[CONSOLE.database_in(stack.database_prefix)]["actions"].find({"action": "smoke"}).to_list()
        )
    assert [entry["why"] for entry in entries] == ["deployment 7"] * 2
    for entry in entries:
        await assert_undone(stack, entry["subject"])


async def test_a_service_that_does_not_answer_is_named_and_the_rest_undone(stack: Stack) -> None:
    status, output = await smoke(stack, environment={"ORDERSAGA_PAYMENT_URL": "http://127.0.0.1:1"})
    assert status == 1
    assert [line.split(":")[0] for line in output.splitlines()] == [
        "✓ stock done",
        "✓ hold done",
        "✗ funds failed",
        "✓ hold undone",
        "✓ stock undone",
    ]
    assert "POST /api/retainers of payment" in output


async def test_an_order_that_is_not_confirmed_in_time_is_cancelled_or_refunded(stack: Stack, test: SmokeTest) -> None:
    steps = []
    async for step in test.run():
        steps.append(step)
        if step.name == "funds" and step.outcome == "done":
            test._within = 0.0
            await stack.kill(stack.processes("payment")[0])
        if step.name == "order" and step.outcome == "failed":
            test._within = SECONDS
            await stack.start("payment")
            test._calls._urls["payment"] = stack.url("payment")
    assert [(step.name, step.outcome) for step in steps[3:]] == [
        ("order", "failed"),
        ("order", "undone"),
        ("funds", "undone"),
        ("hold", "undone"),
        ("stock", "undone"),
    ], steps
    assert "is still {'status': 'PENDING'" in steps[3].detail
    await assert_undone(stack, test.user)


async def test_an_interrupted_run_is_undone(stack: Stack, test: SmokeTest) -> None:
    async def run() -> list[tuple[str, str]]:
        steps: list[tuple[str, str]] = []
        async for step in test.run():
            steps.append((step.name, step.outcome))
            if steps[-1] == ("funds", "done"):
                asyncio.current_task().cancel()  # type: ignore[union-attr]
        return steps

    assert (await asyncio.create_task(run()))[3:] == [
        ("order", "failed"),
        ("order", "undone"),
        ("funds", "undone"),
        ("hold", "undone"),
        ("stock", "undone"),
    ]
    await assert_undone(stack, test.user)


async def test_without_a_stack_it_says_so(stack: Stack) -> None:
    environment = {"ORDERSAGA_MONGODB_URL": "", "ORDERSAGA_AMQP_URL": "", "ORDERSAGA_DATA_DIR": "/nonexistent"}
    variables = stack.command_environment | environment
    status, _, errors = await warm_processes.run("operations.cli", "smoke", environment=variables)
    assert (status, "no stack runs" in errors) == (3, True)

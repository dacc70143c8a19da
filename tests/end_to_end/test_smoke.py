"""`ordersaga smoke` against a running stack: what it does, and that it undoes all of it, also when a step fails."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pymongo
import pytest

from operations import settings
from operations.commands.smoke import _run
from operations.smoke.calls import Calls
from operations.smoke.products import ProductOfRun
from operations.smoke.steps import SmokeTest, Step
from shared.services import CONSOLE
from tests.support import warm_processes
from tests.support.access import ADMIN, ADMIN_KEY
from tests.support.processes import SAGA_SERVICES, Stack, run_module_stack
from tests.support.servers import Servers

SECONDS = 60.0
"""How long an order may take in these tests: for a slow machine."""


@pytest.fixture(scope="module")
async def stack(servers: Servers) -> AsyncIterator[Stack]:
    """Run one stack for all tests."""
    async with run_module_stack(servers) as running:
        yield running


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
    for product in await products(stack):
        assert product["onSale"] is False
        stock = (await stack.client.get(f"{stack.url('inventory')}/inventory/{product['productId']}")).json()
        assert (stock["quantity"], stock["reserved"]) == (0, 0)
    listed = await stack.client.get(f"{stack.url('order')}/orders", params={"userId": user})
    for order in listed.json()["items"]:
        assert order["settled"]
        assert order["status"] == "CANCELLED" or order["refundedAmount"] == order["totalAmount"]
    await stack.assert_books_balance()


async def products(stack: Stack) -> list[dict[str, Any]]:
    listed = (await stack.client.get(f"{stack.url('inventory')}/products")).json()["items"]
    return [each for each in listed if each["productId"].startswith("ordersaga-smoke-test")]


async def test_one_of_everything_is_done_and_undone(stack: Stack) -> None:
    """With room in slots, by two runs at the same time."""
    rules = {"openTime": "00:00", "closeTime": "23:30", "durationMinutes": 30, "horizonSlots": 4, "capacity": 100}
    configured = await stack.client.put(f"{stack.url('inventory')}/slots/config", json=rules)
    assert configured.is_success, configured.text
    words = ("--json", "--why", "deployment 7")
    for status, output in await asyncio.gather(smoke(stack, *words), smoke(stack, *words)):
        document = json.loads(output)
        assert (status, document["ok"]) == (0, True), output
        assert [(step["step"], step["outcome"]) for step in document["steps"]] == [
            *((name, "done") for name in ("stock", "hold", "funds", "order")),
            *((name, "undone") for name in ("order", "funds", "hold", "stock")),
        ]
        assert "room in the slot slot:" in document["steps"][1]["detail"]
    assert len(await products(stack)) == 2, "one for each run at the same time"
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
    assert len(await products(stack)) == 2, "a run takes what others have left"


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


async def test_an_undo_that_is_interrupted_is_named_and_the_rest_undone(stack: Stack, test: SmokeTest) -> None:
    async def run() -> list[tuple[str, str, str]]:
        steps: list[tuple[str, str, str]] = []
        async for step in test.run():
            steps.append((step.name, step.outcome, step.detail))
            if step.outcome == "undone" and step.name == "order":
                asyncio.current_task().cancel()  # type: ignore[union-attr]
        return steps

    steps = (await asyncio.create_task(run()))[4:]
    assert [step[:2] for step in steps] == [
        ("order", "undone"),
        ("funds", "not undone"),
        ("hold", "undone"),
        ("stock", "undone"),
    ], steps
    assert steps[1][2] == "interrupted"
    await assert_undone(stack, test.user)


class _Spoiling(httpx.AsyncHTTPTransport):
    """Replaces the first answer to a request that the service has carried out, or loses it."""

    def __init__(self, method: str, path: str, body: str | None) -> None:
        super().__init__()
        self._method = method
        self._path = path
        self._body = body
        self._spoilt = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if self._spoilt or request.method != self._method or not re.fullmatch(self._path, request.url.path):
            return answer
        self._spoilt = True
        await answer.aread()
        await answer.aclose()
        if self._body is None:
            raise httpx.ReadTimeout("no answer")
        return httpx.Response(answer.status_code, text=self._body)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (None, "POST /api/retainers of payment: no answer"),
        ("<html>", "POST /api/retainers of payment: 201, but not with JSON: <html>"),
        ("[]", "an answer has another form than expected: TypeError("),
        ("{}", "an answer has another form than expected: KeyError('retainer')"),
    ],
)
async def test_a_retainer_whose_answer_is_lost_or_unusable_is_closed(
    stack: Stack, body: str | None, detail: str
) -> None:
    urls = {name: stack.url(name) for name in SAGA_SERVICES}
    spoiling = _Spoiling("POST", "/api/retainers", body)
    async with httpx.AsyncClient(headers=ADMIN, timeout=SECONDS, transport=spoiling) as client:
        test = SmokeTest(Calls(client, urls), within=SECONDS)
        steps = [step async for step in test.run()][2:]
    assert [(step.name, step.outcome) for step in steps] == [
        ("funds", "failed"),
        ("funds", "undone"),
        ("hold", "undone"),
        ("stock", "undone"),
    ], steps
    assert steps[0].detail.startswith(detail)
    retainer = await stack.client.get(f"{stack.url('payment')}/api/retainers/{test._retainer}")
    assert retainer.json()["data"]["status"] == "inactive"
    await assert_undone(stack, test.user)


PRODUCT = "ordersaga-smoke-test-[0-9]"


@pytest.mark.parametrize(
    ("method", "path", "is_new"),
    [
        ("PUT", f"/products/{PRODUCT}", True),
        ("POST", f"/inventory/{PRODUCT}/restock", True),
        ("POST", f"/inventory/{PRODUCT}/restock", False),
        ("PUT", f"/inventory/{PRODUCT}", False),
        ("PATCH", f"/products/{PRODUCT}", False),
    ],
)
async def test_a_product_is_given_back_although_an_answer_about_it_is_lost(
    stack: Stack, method: str, path: str, *, is_new: bool
) -> None:
    urls = {name: stack.url(name) for name in SAGA_SERVICES}
    async with (
        httpx.AsyncClient(headers=ADMIN, timeout=SECONDS) as unspoilt,
        httpx.AsyncClient(headers=ADMIN, timeout=SECONDS, transport=_Spoiling(method, path, None)) as client,
    ):
        known = len(await products(stack))
        others = [ProductOfRun(Calls(unspoilt, urls), uuid.uuid4().hex) for _ in range(known if is_new else 0)]
        taken = [await other.take(2) for other in others]
        assert len(set(taken)) == len(taken)
        test = SmokeTest(Calls(client, urls), within=SECONDS)
        steps = [(step.name, step.outcome) async for step in test.run()]
        assert steps == [("stock", "failed"), ("stock", "undone")]
        left = [each["productId"] for each in await products(stack) if each["onSale"]]
        assert left == taken, "those of the others are as they were"
        for other in others:
            await other.give_back()
    assert len(await products(stack)) == known + is_new
    await assert_undone(stack, test.user)


async def test_a_product_that_another_run_takes_first_is_left_alone(stack: Stack) -> None:
    urls = {name: stack.url(name) for name in SAGA_SERVICES}
    async with httpx.AsyncClient(headers=ADMIN, timeout=SECONDS) as client:
        one, other = (ProductOfRun(Calls(client, urls), uuid.uuid4().hex) for _ in range(2))
        names = await asyncio.gather(one.take(2), other.take(2))
        assert names[0] != names[1]
        own, one._claim = one._claim, other._claim
        assert await one.give_back() == "the product belongs to another run"
        product = await stack.client.get(f"{stack.url('inventory')}/products/{names[1]}")
        assert product.json()["onSale"]
        await other.give_back()
        one._claim = own
        await one.give_back()


async def test_a_run_that_cannot_be_shown_is_undone_and_noted(stack: Stack) -> None:
    def closed(step: Step) -> None:
        raise BrokenPipeError(step.name)

    location = settings.Stack(
        mongodb_url=stack.mongodb_url,
        amqp_url=stack.amqp_url,
        urls={name: stack.url(name) for name in SAGA_SERVICES},
        data_dir=None,
        database_prefix=stack.database_prefix,
        api_key=ADMIN_KEY,
    )
    with pytest.raises(BrokenPipeError):
        await _run(location, SECONDS, None, "shown nowhere", closed)
    async with pymongo.AsyncMongoClient[dict[str, Any]](stack.mongodb_url) as client:
        actions = client[CONSOLE.database_in(stack.database_prefix)]["actions"]
        (entry,) = await actions.find({"action": "smoke", "why": "shown nowhere"}).to_list()
    assert entry["outcome"].endswith("order undone; funds undone; hold undone; stock undone")
    await assert_undone(stack, entry["subject"])


async def test_without_a_stack_it_says_so(stack: Stack) -> None:
    environment = {"ORDERSAGA_MONGODB_URL": "", "ORDERSAGA_AMQP_URL": "", "ORDERSAGA_DATA_DIR": "/nonexistent"}
    variables = stack.command_environment | environment
    status, _, errors = await warm_processes.run("operations.cli", "smoke", environment=variables)
    assert (status, "no stack runs" in errors) == (3, True)

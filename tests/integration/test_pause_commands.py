"""Pausing and resuming a consumer, by the console and by commands, through a real order service."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from typer.testing import CliRunner

from operations import cli
from operations.actions import list_actions
from operations.commands import pauses
from operations.console import ConsoleDependencies
from operations.console.consumers import Consumption
from operations.stack.services import ask_readiness
from shared.access.permissions import Role
from shared.clock import utc_now
from tests.support.access import ADMIN_KEY, KEYS, bearer
from tests.support.consoles import BY_ADMIN, NO_SERVICES, console_dependencies, pages_of
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack

REASON = "the gateway is being repaired"


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    async with run_stack(mongodb_url, clean_broker, database_prefix) as found:
        await found.start("order")
        yield found


@pytest.fixture
async def dependencies(stack: Stack) -> AsyncIterator[ConsoleDependencies]:
    urls = NO_SERVICES | {"order": stack.url("order")}
    async with console_dependencies(stack.mongodb_url, stack.amqp_url, stack.database_prefix, urls) as found:
        yield found


@pytest.fixture
async def pages(dependencies: ConsoleDependencies) -> AsyncIterator[httpx.AsyncClient]:
    async with pages_of(dependencies) as client:
        yield client


async def run(stack: Stack, *words: str, status: int = 0) -> str:
    known = {name: value for name, value in stack.command_environment.items() if name.startswith("ORDERSAGA_")}
    known |= {"ORDERSAGA_API_KEY": ADMIN_KEY, "ORDERSAGA_OPERATOR": "ann", "COLUMNS": "160"}
    result = await asyncio.to_thread(CliRunner(env=known).invoke, cli.build_application(words), words)
    assert result.exit_code == status, (result.output, result.exception)
    return result.stdout


async def test_a_consumer_is_paused_and_resumed_by_page_and_command(
    stack: Stack, dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    text = (await pages.get("/consumers")).text
    assert 'href="/consumers/order/pause"' in text
    assert "running" in text
    assert (await pages.get("/consumers/console/pause")).status_code == 404
    assert "Holds of stock" in (await pages.get("/consumers/order/pause")).text

    done = await pages.post("/consumers/order/pause", data={"why": REASON, "minutes": "30"})
    assert (done.status_code, done.headers["location"]) == (303, "/consumers")
    text = (await pages.get("/consumers")).text
    assert ">paused</span> since" in text
    assert REASON in text
    assert 'href="/consumers/order/resume"' in text

    async def named_on_every_page() -> bool:
        banner = (await pages.get("/outages")).text
        return "order.inbox is paused" in banner and REASON in banner and "none is cancelled" in banner

    await eventually(named_on_every_page, 60, "the banner")
    banner = (await pages.get("/outages", headers=bearer(KEYS[Role.ACCOUNTANT]))).text
    assert "order.inbox is paused" in banner
    assert all(hidden not in banner for hidden in (REASON, BY_ADMIN, "/consumers")), "it needs letters:read"
    shown = await asyncio.to_thread(ask_readiness, stack.url("order"))
    assert (shown.unhealthy_reason, shown.degraded) == (None, None)
    assert "until 20" in (shown.paused or "")

    # A command changes the reason, and the end: the operator's name is known.
    assert "order is paused until it is resumed" in await run(stack, "pause", "order", "--yes", "--reason", "longer")
    listed = json.loads(await run(stack, "pauses", "--json", status=3))
    found = {each["service"]: each for each in listed["items"]}
    assert (found["order"]["by"], found["order"]["reason"], found["order"]["until"]) == ("ann", "longer", None)
    assert found["inventory"]["paused"] is None
    assert "paused" in await run(stack, "pauses", status=3)

    assert "consumes its inbox again" in await run(stack, "resume", "order", "--reason", "it works")
    await run(stack, "resume", "order", "--reason", "it works", status=1)
    refused = await pages.post("/consumers/order/resume", data={"why": "again"})
    assert refused.status_code == 409
    assert "is not paused" in refused.text
    away = await pages.post("/consumers/payment/pause", data={"why": REASON})
    assert away.status_code == 503

    written = [
        (entry["action"], entry["subject"], entry["by"], entry["outcome"].partition(":")[0])
        for entry in (await list_actions(dependencies.operations)).items
        if entry["outcome"] != "started"
    ]
    assert written == [
        ("consumer.pause", "payment", BY_ADMIN, "not done"),
        ("consumer.resume", "order", BY_ADMIN, "not done"),
        ("consumer.resume", "order", "ann", "not done"),
        ("consumer.resume", "order", "ann", "resumed"),
        ("consumer.pause", "order", "ann", "paused"),
        ("consumer.pause", "order", BY_ADMIN, "paused for 1800 s"),
    ]


PAUSED = Consumption("payment", "payment.inbox", True, utc_now(), None, "ann", REASON)
RUNS = Consumption("order", "order.inbox")
AWAY = Consumption("inventory", "inventory.inbox", problem="it does not answer")


@pytest.mark.parametrize(
    ("found", "status"), [([RUNS], 0), ([RUNS, PAUSED], 1), ([RUNS, AWAY], 3), ([PAUSED, AWAY], 3)]
)
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_the_exit_status_says_whether_something_is_paused(
    found: list[Consumption], status: int, form: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(_stack: object) -> list[Consumption]:
        return found

    monkeypatch.setattr(pauses, "chosen_target", lambda: None)
    monkeypatch.setattr(pauses, "_read", read)
    words = ("pauses", *form)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli.build_application(words), words)
    assert result.exit_code == status, result.output
    assert (REASON in result.stdout) == (PAUSED in found)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("pause", "console", "--yes", "--reason", "x"), "is none of"),
        (("pause", "payment", "--yes", "--reason", "x", "--for", "soon"), "such as 30m"),
        (("pause", "payment", "--yes", "--reason", "x", "--for", "31d"), "30 days"),
        (("pause", "payment", "--yes"), "required with --yes"),
        (("resume", "payment", "--reason", " "), "has 0 characters"),
    ],
)
async def test_wrong_usage_is_explained(words: tuple[str, ...], why: str) -> None:
    environment = {"ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1", "ORDERSAGA_AMQP_URL": "amqp://127.0.0.1:1"}
    result = CliRunner(env=environment | {"COLUMNS": "200"}).invoke(cli.build_application(words), words)
    assert result.exit_code == 2
    assert why in result.output

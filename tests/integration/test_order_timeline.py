"""`ordersaga order timeline` over the records of real services: the whole timeline, in order, at 80 columns."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from operations import cli
from operations.commands.order_display import duration
from shared.clock import utc_now
from tests.support.builders import connected
from tests.support.shop import A_SERVER, Shop, open_shop
from tests.support.terminals import TERMINAL

HOSTILE = "no \x1b[2Jthanks [red]at all[/]"


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def shop(mongodb_url: str, database_prefix: str) -> AsyncIterator[Shop]:
    async with open_shop(mongodb_url, database_prefix) as opened:
        yield opened


@pytest.fixture
def environment(mongodb_url: str, database_prefix: str) -> dict[str, str]:
    """Return the settings of the command; it never connects to the broker."""
    return {
        "ORDERSAGA_MONGODB_URL": mongodb_url,
        "ORDERSAGA_AMQP_URL": "amqp://127.0.0.1:1/",
        "ORDERSAGA_DATABASE_PREFIX": database_prefix,
        **TERMINAL,
    }


async def timeline(environment: dict[str, str], *words: str, status: int = 0, command: str = "timeline") -> str:
    """Run the command, check its exit status and return its output."""
    runner, arguments = CliRunner(env=environment), ["order", command, *words]
    result = await asyncio.to_thread(runner.invoke, cli.build_application(arguments), arguments)
    assert result.exit_code == status, result.output
    return result.stdout


async def document(environment: dict[str, str], order_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await timeline(environment, order_id, "--json"))
    return found


def assert_readable(text: str, *words: str) -> None:
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    for word in words:
        assert word in text


async def test_the_purchase_of_a_server_is_shown_by_all_four_services(shop: Shop, environment: dict[str, str]) -> None:
    async with shop.all_running():
        order_id = await shop.place(**A_SERVER)
        settled = await shop.settled(order_id)
    shown = await document(environment, order_id)
    assert (shown["status"], shown["settled"], shown["waitingFor"]) == ("COMPLETED", True, [])
    assert {step["lane"] for step in shown["steps"]} == {"order", "stock", "payment", "provisioning"}
    assert [step["at"] for step in shown["steps"]] == sorted(step["at"] for step in shown["steps"])
    states = [step["status"] for step in shown["steps"] if step["kind"] == "state"]
    assert states == [entry["status"] for entry in settled["history"]]
    bought = [step for step in shown["steps"] if step["kind"] == "attempt" and step["title"] == "Buy"]
    assert [step["outcome"] for step in bought] == ["ok"]
    assert all(step["seconds"] is None or step["seconds"] >= 0 for step in shown["steps"])
    text = await timeline(environment, order_id)
    assert_readable(text, order_id, "COMPLETED, settled", "order → stock", "order → server", "Buy", "Charged")
    assert "waits for" not in text


async def test_a_cancelled_order_shows_the_reason_and_its_compensations(
    shop: Shop, environment: dict[str, str]
) -> None:
    async with shop.running("order"):
        order_id = await shop.place()
        await shop.ask("order", "POST", f"/orders/{order_id}/cancel", {"reason": HOSTILE})
        async with shop.all_running("inventory", "payment"):
            await shop.settled(order_id)
    text = await timeline(environment, order_id)
    assert_readable(text, "CANCELLED, settled", r"no \x1b[2Jthanks [red]at all[/]", "stock.release", "Released")
    shown = await document(environment, order_id)
    assert shown["failureReason"] == HOSTILE
    assert {step["lane"] for step in shown["steps"] if step["kind"] == "compensation"} == {"stock", "payment"}


async def test_an_order_in_flight_shows_its_open_steps(shop: Shop, environment: dict[str, str]) -> None:
    async with shop.running("order"):
        order_id = await shop.place()
    # Only after the services have ended: their log lines would be part of the output.
    text = await timeline(environment, order_id)
    shown = await document(environment, order_id)
    assert_readable(text, "PENDING, not settled", "waits for", "Answer from stock and payment", "due in ")
    assert {"stock", "payment"} <= {step["lane"] for step in shown["waitingFor"]}


async def test_a_dead_letter_is_part_of_the_timeline_and_names_the_command_that_shows_it(
    shop: Shop, environment: dict[str, str], mongodb_url: str, database_prefix: str
) -> None:
    async with shop.running("order"):
        order_id = await shop.place()
    now = utc_now()
    letter = {
        "_id": "letter1",
        "status": "dead",
        "queue": "payment.inbox",
        "routingKey": "order.created",
        "orderId": order_id,
        "service": "payment",
        "error": {"type": "KeyError", "message": "'amount' " * 20, "traceback": ""},
        "attempts": 5,
        "firstFailedAt": now,
        "lastFailedAt": now + timedelta(seconds=156),
        "replays": [],
    }
    async with connected(mongodb_url, f"{database_prefix}_operations") as operations:
        await operations["dead_letters"].insert_one(letter)
    text = await timeline(environment, order_id)
    assert_readable(text, "order.created dead-lettered", "KeyError", "ordersaga dead-letters show letter1", "2m 36s")
    shown = await document(environment, order_id)
    assert "letter1" in [step["deadLetter"] for step in shown["waitingFor"]]


async def test_trace_is_another_name_for_timeline(environment: dict[str, str]) -> None:
    named = [await timeline(environment, "o1", "--json", status=1, command=name) for name in ("trace", "timeline")]
    assert named[0] == named[1]
    help_text = CliRunner(env=environment).invoke(cli.build_application(["order"]), ["order", "--help"]).output
    assert "timeline" in help_text
    assert "trace" not in help_text


async def test_an_unknown_order(environment: dict[str, str]) -> None:
    assert await timeline(environment, "unknown", status=1) == ""
    shown = json.loads(await timeline(environment, "unknown", "--json", status=1))
    assert shown == {"orderId": "unknown", "found": False}


def test_an_unreachable_database_has_exit_status_3(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("operations.reading.reachability.TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("sys.argv", ["ordersaga", "order", "timeline", "o1"])
    for name, value in (environment | {"ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1/"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended, ThreadPoolExecutor(1) as outside_the_loop:
        outside_the_loop.submit(cli.main).result()
    assert ended.value.code == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    stack, reason = shown.err.splitlines()
    assert stack.startswith("stack: mongodb://127.0.0.1:1/ and ")
    assert reason.startswith("MongoDB does not answer")


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0.000 s"),
        (0.0126, "0.013 s"),
        (119.9994, "119.999 s"),
        (120, "2m 00s"),
        (3599.7, "1h 00m"),
        (90061, "1d 01h"),
    ],
)
def test_durations(seconds: float, written: str) -> None:
    assert duration(seconds) == written

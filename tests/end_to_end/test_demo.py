"""`ordersaga demo`: all scenarios, interruptions, and failed checks."""

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from rich.console import Console

from operations.commands import demo as command
from operations.commands.demo_display import TerminalReporter
from operations.demo.demo_stack import DemoStack
from operations.demo.incident import Incident
from operations.demo.reporter import Reporter
from operations.demo.scenarios import SCENARIOS, Scenario, run_scenarios
from operations.demo.shop_client import NotSettledError, ShopClient
from operations.errors import UnreachableError
from operations.settings import Stack
from operations.stack.layout import Layout
from operations.stack.processes import find_marked
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]


COMMAND = ("-m", "operations.cli", "demo")
# The demo over a stack that is one process, in a scenario that does not end.
HANGING = (
    "-c",
    """
import asyncio, subprocess, typer
from operations.commands import demo
from operations.demo import demo_stack
from operations.demo.scenarios import Scenario
from operations.settings import Stack
from operations.stack.processes import MARK

def start(options, listener, environment):
    subprocess.Popen(["sleep", "600"], env={**environment, MARK: str(options.root)})

async def hang(reporter, *_):
    reporter.check(True, "exactly five orders are confirmed", "")
    await asyncio.Event().wait()

demo_stack.start_in_background = start
demo_stack.locate_stack = lambda *_: Stack("mongodb://127.0.0.1:1/", "amqp://127.0.0.1:1/", {}, None, "nothing")
demo.SCENARIOS = (Scenario("Hangs", hang),)
typer.run(demo.demo)
""",
)


@pytest.fixture
def program() -> tuple[str, ...]:
    """Return what Python runs."""
    return COMMAND


@pytest.fixture
def demo(tmp_path: Path, program: tuple[str, ...]) -> Iterator["subprocess.Popen[str]"]:
    """A running demo without a terminal; what it prints goes to `out` in the test's directory."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
    # Settings of the user must not reach the demo: its checks would fail with them.
    settings = {"ORDERSAGA_PAYMENT_FAILURE_RATE": "1", "ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1/"}
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *program],
            env={**inherited, **settings, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
    yield process
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    process.wait(90)


def printed(tmp_path: Path) -> str:
    return (tmp_path / "out").read_text()


def directory_of(output: str) -> Path:
    found = re.search(r"starting the stack in (\S+)", output)
    assert found, output
    return Path(found[1])


async def test_all_checks_pass(demo: "subprocess.Popen[str]", tmp_path: Path) -> None:
    status = await asyncio.to_thread(demo.wait, 300)
    output = printed(tmp_path)
    assert status == 0, output
    titles = [f"{number}. {title}" for number, (title, _) in enumerate(SCENARIOS, start=1)]
    assert re.findall(r"^\d\. .*$", output, re.MULTILINE) == titles
    assert "✗" not in output
    assert "exactly five orders are confirmed" in output
    assert "five get the first slot, five the second" in output
    assert "two are cancelled: No delivery slot with room for 10 until" in output
    assert "the slots are booked: 50 of 50 and 60 of 60" in output
    assert "every clock is sold once: 70 confirmed, 30 cancelled" in output
    assert "the provider has sold these five and no wrong one" in output
    assert "the retried order gets the sixth server" in output
    assert "the job records: an attempt without an answer bought" in output
    assert "one server was sold, and the customer has it" in output
    assert re.search(r"[\d,]+ orders per second", output)
    assert "the books balance" in output
    assert "ordersaga up" in output
    assert "\x1b" not in output
    assert_gone(directory_of(output))


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(HANGING, id="one process"),
        pytest.param(COMMAND, id="a whole stack", marks=pytest.mark.extended),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_ended_in_the_middle_it_leaves_nothing(
    number: signal.Signals, demo: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    await eventually(lambda: "exactly five orders are confirmed" in printed(tmp_path), 180, "the first scenario")
    directory = directory_of(printed(tmp_path))
    assert find_marked(directory) != []
    demo.send_signal(number)
    assert await asyncio.to_thread(demo.wait, 90) == command.INTERRUPTED, printed(tmp_path)
    assert "interrupted" in printed(tmp_path)
    assert "Traceback" not in printed(tmp_path)
    assert_gone(directory)


def assert_gone(directory: Path) -> None:
    assert find_marked(directory) == []
    mentioning = [process for process in psutil.process_iter(["cmdline"]) if _mentions(process, str(directory))]
    assert mentioning == []
    assert not directory.exists()


def _mentions(process: psutil.Process, text: str) -> bool:
    return any(text in word for word in process.info["cmdline"] or ())


# --- Failed checks ---


async def passing(reporter: Reporter, _demo_stack: DemoStack, _shop: ShopClient) -> None:
    reporter.check(True, "one is one", 2)


async def failing(reporter: Reporter, _demo_stack: DemoStack, _shop: ShopClient) -> None:
    reporter.check(False, "two are five", "[4]")


async def hanging(_reporter: Reporter, _demo_stack: DemoStack, _shop: ShopClient) -> None:
    raise NotSettledError("after 30 s 99 of 100 orders are settled")


@pytest.fixture
def reporter() -> TerminalReporter:
    return TerminalReporter(Console(file=io.StringIO(), width=80))


@pytest.fixture
def demo_stack() -> DemoStack:
    nowhere = Stack("mongodb://127.0.0.1:1/", "amqp://127.0.0.1:1/", {}, None, "nothing")
    return DemoStack(Layout(Path("nowhere")), nowhere)


def text_of(reporter: TerminalReporter) -> str:
    assert isinstance(reporter.console.file, io.StringIO)
    return reporter.console.file.getvalue()


async def test_a_failed_check_is_shown_with_the_actual_result(
    reporter: TerminalReporter, demo_stack: DemoStack
) -> None:
    await run_scenarios((Scenario("Fails", failing), Scenario("Passes", passing)), reporter, demo_stack)
    assert "✗ failed: two are five; actual: [4]" in text_of(reporter)
    assert "✓ one is one" in text_of(reporter)
    assert reporter.failed


async def test_a_scenario_that_cannot_be_completed_ends_the_demo(
    reporter: TerminalReporter, demo_stack: DemoStack
) -> None:
    await run_scenarios((Scenario("Hangs", hanging), Scenario("Passes", passing)), reporter, demo_stack)
    assert "✗ after 30 s 99 of 100 orders are settled" in text_of(reporter)
    assert "one is one" not in text_of(reporter)
    assert reporter.failed


async def test_an_incident_that_cannot_be_made_leaves_no_stack(
    demo_stack: DemoStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its making is in `test_tutorial.py`."""

    async def fail(*_: Any) -> None:
        raise UnreachableError("the order service does not answer")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("operations.demo.demo_stack.start_in_background", lambda *_: None)
    monkeypatch.setattr("operations.demo.demo_stack.locate_stack", lambda *_: demo_stack.stack)
    monkeypatch.setattr(command, "make_incident", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(typer.Exit) as ended:
        await asyncio.to_thread(command.demo, keep=True)
    assert ended.value.exit_code == 1
    assert "the order service does not answer" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


async def test_an_incident_as_json(
    demo_stack: DemoStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo_stack.stack.urls["console"] = "http://127.0.0.1:1"

    async def make(*_: Any) -> Incident:
        return Incident(["good"], ["stuck"], ["paid"], ["failed"], 17)

    monkeypatch.setattr(command, "lasting_stack", lambda *_: contextlib.nullcontext(demo_stack))
    monkeypatch.setattr(command, "make_incident", make)
    monkeypatch.setattr(command, "create_link", lambda *_: "http://127.0.0.1:1/sign-in/link?token=x")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(typer.Exit) as ended:
        await asyncio.to_thread(command.demo, keep=True, as_json_document=True)
    assert ended.value.exit_code == 0
    assert json.loads(capsys.readouterr().out) == {
        "dataDirectory": str(demo_stack.stack.data_dir),
        "console": "http://127.0.0.1:1",
        "signInLink": "http://127.0.0.1:1/sign-in/link?token=x",
        "orders": {"good": ["good"], "stuck": "stuck", "withoutAnswer": ["paid"], "failedServers": ["failed"]},
        "deadLetters": 17,
    }


async def test_json_is_only_printed_of_an_incident() -> None:
    with pytest.raises(typer.BadParameter, match="only with --keep"):
        command.demo(as_json_document=True)


@pytest.mark.parametrize(("scenario", "status"), [(passing, 0), (failing, 1), (hanging, 1)])
async def test_the_exit_status_says_whether_all_checks_passed(
    scenario: Any,
    status: int,
    demo_stack: DemoStack,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "temporary_stack", lambda _: contextlib.nullcontext(demo_stack))
    monkeypatch.setattr(command, "SCENARIOS", (Scenario("Only", scenario),))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(typer.Exit) as ended:
        await asyncio.to_thread(command.demo)
    assert ended.value.exit_code == status
    assert ("All checks passed" in capsys.readouterr().out) == (status == 0)
    assert demo_stack.keep_data == (status != 0)

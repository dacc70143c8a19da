"""`ordersaga logs`: the logs of all programs in the order of time, without a running stack."""

import contextlib
import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from operations import cli
from operations.stack.layout import Layout
from operations.stack.logs import SUPERVISOR, StackLogs
from tests.support.eventually import eventually

ORDER = """\
2026-01-31T09:30:00.100000Z [info     ] started port=3008 service=order
2026-01-31T09:30:02.100000Z [error    ] fault service=order
Traceback (most recent call last):
  at 2026-01-31T09:00:00Z
2026-01-31T09:30:04.100000Z [warning  ] \x1b]0;PWNED\x07 service=order
"""
BEFORE = "2026-01-31T08:00:00.000000Z [info     ] the run before service=order\n"
PAYMENT = '{"service": "payment", "event": "waits", "level": "warning", "timestamp": "2026-01-31T09:30:01.100000Z"}\n'
MONGODB = '{"t":{"$date":"2026-01-31T10:30:03.000+01:00"},"s":"E","msg":"slow"}\n'
RABBITMQ = "2026-01-31 09:30:03.500000+00:00 [notice] <0.1.0> no line end"
EVENTS = "2026-01-31T09:30:05.000+00:00 order (pid 7) ended by signal 9\n"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Return the data directory of a stack that has ended."""
    layout = Layout(tmp_path / "stack")
    layout.logs.mkdir(parents=True)
    logs = {"order.log": ORDER, "order.log.old": BEFORE, "payment.log": PAYMENT, "mongodb.log": MONGODB}
    for name, text in (logs | {"rabbitmq.log": RABBITMQ}).items():
        (layout.logs / name).write_text(text)
    layout.supervisor_log.write_text(EVENTS)
    return layout


def run(layout: Layout, *words: str) -> Result:
    arguments = ["logs", *words, "--data-dir", str(layout.root)]
    return CliRunner().invoke(cli.build_application(arguments), arguments)


def test_the_lines_of_all_programs_come_in_the_order_of_time(layout: Layout) -> None:
    result = run(layout)
    assert result.exit_code == 0
    assert [(line[:10].strip(), line[13:40]) for line in result.stdout.splitlines()] == [
        ("order", "2026-01-31T09:30:00.100000Z"),
        ("payment", '{"service": "payment", "eve'),
        ("order", "2026-01-31T09:30:02.100000Z"),
        ("order", "Traceback (most recent call"),
        ("order", "  at 2026-01-31T09:00:00Z"),
        ("mongodb", '{"t":{"$date":"2026-01-31T1'),
        ("rabbitmq", "2026-01-31 09:30:03.500000+"),
        ("order", "2026-01-31T09:30:04.100000Z"),
        (SUPERVISOR, "2026-01-31T09:30:05.000+00:"),
    ]
    assert result.stderr == f"logs: {layout.logs}\n"


def test_lines_of_one_program_are_as_written_except_what_could_control_a_terminal(layout: Layout) -> None:
    shown = run(layout, "order").stdout
    assert shown == ORDER.replace("\x1b", r"\x1b").replace("\x07", r"\x07")
    assert run(layout, "payment").stdout == PAYMENT


def test_since_a_time_the_run_before_counts_too(layout: Layout) -> None:
    whole = run(layout, "order", "--since", "2026-01-31T07:00:00Z").stdout
    assert whole.startswith(BEFORE)
    assert len(whole.splitlines()) == 6
    late = run(layout, "--since", "2026-01-31T09:30:03.200Z").stdout
    assert [line.split()[0] for line in late.splitlines()] == ["rabbitmq", "order", SUPERVISOR]


def test_what_is_not_there_is_said(layout: Layout, tmp_path: Path) -> None:
    unknown = run(layout, "shipping")
    assert unknown.exit_code == 2
    said = " ".join(unknown.stderr.replace("│", "").split())
    assert "shipping has no log here; choose from mongodb, order, payment, rabbitmq, supervisor" in said
    assert run(layout, "--since", "yesterday").exit_code == 2
    nothing = run(Layout(tmp_path / "empty"))
    assert nothing.exit_code == 1
    assert f"nothing was ever started in {tmp_path / 'empty'}" in nothing.stderr


def test_lines_and_logs_that_come_later_are_followed_also_over_a_new_start(layout: Layout) -> None:
    with contextlib.closing(StackLogs(layout, ["order", "shipping"], None)) as logs:
        follow_over_a_new_start(layout, lambda: [line.text for line in logs.read()])


def follow_over_a_new_start(layout: Layout, read: Callable[[], list[str]]) -> None:
    assert len(read()) == 5
    assert read() == []
    log = layout.logs / "order.log"
    with log.open("a") as file:
        file.write("2026-01-31T09:31:00Z half")
        file.flush()
        assert read() == []
        file.write(" and whole\n")
        file.flush()
        assert read() == ["2026-01-31T09:31:00Z half and whole"]
        file.write("2026-01-31T09:32:00Z the last line\n2026-01-31T09:32:10Z killed in the mid")
    log.replace(layout.logs / "order.log.old")
    log.write_text("2026-01-31T09:33:00Z started again\n")
    (layout.logs / "shipping.log").write_text("2026-01-31T09:32:30Z new\n")
    assert read() == [
        "2026-01-31T09:32:00Z the last line",
        "2026-01-31T09:32:10Z killed in the mid",
        "2026-01-31T09:32:30Z new",
        "2026-01-31T09:33:00Z started again",
    ]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


async def test_a_terminal_has_colours_and_follows_until_it_is_interrupted(
    layout: Layout, terminal: tuple[int, int]
) -> None:
    ours, theirs = terminal
    words = ["-f", "--data-dir", str(layout.root)]
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "operations.cli", "logs", *words],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    seen = io.StringIO()

    def shown(text: str) -> bool:
        with contextlib.suppress(BlockingIOError):
            seen.write(os.read(ours, 65536).decode())
        return text in seen.getvalue()

    try:
        await eventually(lambda: shown("ended by signal 9"), 60, "the lines that are there")
        with (layout.logs / "payment.log").open("a") as file:
            file.write("one more line\n")
        await eventually(lambda: shown("one more line"), 60, "the line that was appended")
        process.send_signal(2)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert "\x1b[31m2026-01-31T09:30:02.100000Z [error    ] fault" in seen.getvalue()
    assert "\x1b]0;PWNED" not in seen.getvalue()

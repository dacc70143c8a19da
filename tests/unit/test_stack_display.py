"""`ordersaga up` says in words what it waits for."""

import io
import json
from dataclasses import replace
from pathlib import Path

from operations.commands.stack_display import StartDisplay
from operations.commands.terminal import open_console
from operations.stack.layout import Layout
from operations.stack.processes import Identity
from operations.stack.services import _why_not_ready
from operations.stack.state import ProcessState, State

HERE = Identity(7, 0.0)


def start(display: StartDisplay) -> None:
    """Go through a start: a server that is awaited first, and a service after it."""
    mongodb, order = ProcessState("mongodb"), ProcessState("order")
    state = State(phase="starting", processes=(mongodb, order))
    display.on_change(state)
    for changed in (
        replace(mongodb, identity=HERE, detail="starting"),
        replace(mongodb, identity=HERE, detail="the replica set is being initiated"),
        replace(mongodb, identity=HERE, detail="the replica set is being initiated"),
        replace(mongodb, identity=HERE, detail="ready", ready=True),
        replace(order, identity=HERE, detail="rabbitmq: [connecting]"),
        replace(order, identity=HERE, detail="ready", ready=True),
    ):
        state = state.with_process(changed)
        display.on_change(state)


def test_without_a_terminal_each_reason_is_one_line(tmp_path: Path) -> None:
    file = io.StringIO()
    with StartDisplay(open_console(file=file), Layout(tmp_path)) as display:
        start(display)
    assert file.getvalue().splitlines() == [
        f"starting the stack in {tmp_path}",
        "waiting for mongodb: starting",
        "waiting for mongodb: the replica set is being initiated",
        "mongodb is ready",
        "waiting for order: rabbitmq: [connecting]",
        "order is ready",
    ]


def test_a_terminal_says_what_each_program_waits_for(tmp_path: Path) -> None:
    file = io.StringIO()
    console = open_console(file=file, force_terminal=True, color_system=None, width=100)
    with StartDisplay(console, Layout(tmp_path)) as display:
        mongodb = ProcessState("mongodb", identity=HERE, detail="the replica set has no primary yet")
        display.on_change(State(phase="starting", processes=(mongodb, ProcessState("order"))))
        display._progress.refresh()
        shown = file.getvalue()
    assert "mongodb       the replica set has no primary yet" in shown
    assert "order         waits for mongodb" in shown


def test_an_unready_service_is_described_by_what_it_waits_for() -> None:
    body = {"detail": "x", "down": {"mongodb": "not checked yet", "rabbitmq": "connecting"}}
    assert _why_not_ready(json.dumps(body).encode()) == "mongodb: not checked yet; rabbitmq: connecting"
    assert [_why_not_ready(body) for body in (b"", b"[]", b'{"down": {}}', b'{"down": 1}')] == [None] * 4

"""The command `doctor`."""

import asyncio
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from operations.commands.target import chosen_stack
from operations.commands.terminal import foreign, open_console, print_json
from operations.doctor.broker import Control, check_broker
from operations.doctor.database import check_database
from operations.doctor.finding import Finding, ok, wrong
from operations.doctor.machine import check_machine
from operations.doctor.provider import check_provider
from operations.errors import UnreachableError
from operations.settings import Stack
from operations.stack.layout import Layout, choose_data_directory
from operations.stack.rabbitmq import RabbitMQ, find_rabbitmq
from operations.stack.services import SERVICES, SIMULATOR
from operations.stack.state import State, UnreadableStateError, read_state, read_state_if_readable
from operations.stack.status import check_stack
from shared.observability import logs_to_stderr

MARKS = {"ok": "[green]✓[/]", "note": "[yellow]-[/]", "wrong": "[red]✗[/]"}


def doctor(
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="The stack to check.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check what the stack needs on this machine and, where one runs, the stack itself.

    Exit status 0 when nothing is wrong, else 1.
    """
    with logs_to_stderr():
        findings = asyncio.run(_examine(data_dir))
    healthy = all(finding.outcome != "wrong" for finding in findings)
    if as_json:
        print_json({"ok": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings, healthy)
    raise typer.Exit(0 if healthy else 1)


async def _examine(data_dir: Path | None) -> list[Finding]:
    layout = Layout(choose_data_directory(data_dir, last_used=True))
    state = read_state_if_readable(layout)
    findings = list(check_machine(layout.root, os.environ, stack_runs=state.running))
    try:
        read_state(layout)
    except UnreadableStateError as error:
        findings.append(wrong("remembered state", str(error), ""))
    try:
        stack = chosen_stack(data_dir)
    except UnreachableError:
        return findings
    if state.running:
        findings += await _check_processes(layout)
    known = {process.name for process in state.processes} if state.running else SERVICES.keys()
    services = [name for name in SERVICES if name in known]
    findings += [finding async for finding in check_database(stack.mongodb_url, stack.database_prefix, services)]
    findings += [finding async for finding in check_broker(stack.amqp_url, _control(layout, state, stack))]
    if "provisioning" in services:
        findings.append(await check_provider(_simulator_url(state), os.environ))
    return findings


def _simulator_url(state: State) -> str | None:
    return next((process.url for process in state.processes if state.running and process.name == SIMULATOR), None)


async def _check_processes(layout: Layout) -> list[Finding]:
    _, processes = await check_stack(layout)
    return [
        ok(f"{status.process.name} process", f"ready at {status.process.url}")
        if status.missing is None
        else wrong(
            f"{status.process.name} process",
            status.missing,
            f"see {layout.logs / status.process.name}.log; it is started again by itself",
        )
        for status in processes
        if status.process.name not in ("mongodb", "rabbitmq")
    ]


def _control(layout: Layout, state: State, stack: Stack) -> Control | None:
    """Return rabbitmqctl for the node of this stack, if it is one that `up` runs."""
    runs_it = state.running and any(process.name == "rabbitmq" for process in state.processes)
    if not runs_it or stack.amqp_url != state.amqp_url:
        return None
    return RabbitMQ(find_rabbitmq(), layout.rabbitmq, state.node, state.ports).control


def _print(findings: list[Finding], healthy: bool) -> None:
    console = open_console(highlight=False, soft_wrap=True)
    for finding in findings:
        console.print(f"{MARKS[finding.outcome]} {foreign(finding.what)}: {foreign(finding.detail)}")
        if finding.mend:
            console.print(f"  [dim]{foreign(finding.mend)}[/]")
    wrong_ones = sum(finding.outcome == "wrong" for finding in findings)
    console.print("nothing is wrong" if healthy else f"{wrong_ones} to mend")

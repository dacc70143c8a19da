"""The command `ordersaga doctor`."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from operations.commands.target import DataDirectory, chosen_stack
from operations.commands.terminal import foreign, open_console, print_json
from operations.doctor.archive import check_archive
from operations.doctor.broker import check_broker
from operations.doctor.database import check_database
from operations.doctor.database_users import check_users
from operations.doctor.finding import Finding, note, ok, wrong
from operations.doctor.machine import check_machine
from operations.doctor.provider import check_provider
from operations.doctor.slow import check_slow
from operations.doctor.webhooks import check_silent_webhooks
from operations.errors import UnreachableError
from operations.settings import Stack
from operations.stack.environment import with_values_for_commands
from operations.stack.layout import Layout, choose_data_directory
from operations.stack.queue_members import Control
from operations.stack.rabbitmq import RabbitMQ, find_rabbitmq
from operations.stack.rabbitmq_cluster import RabbitMQCluster
from operations.stack.services import Answer, ask_readiness
from operations.stack.state import State, UnreadableStateError, read_state, read_state_if_readable
from operations.stack.status import check_stack
from shared.errors import StartError
from shared.services import PROCESSES, SERVICES, SIMULATOR
from shared.tls import client_context

RESUME = "`ordersaga pauses` says who paused it and why, `ordersaga resume {}` ends it"
BREAKER_OPEN = "docs/runbooks/breaker-open.md"
MARKS = {"ok": "[green]✓[/]", "note": "[yellow]-[/]", "wrong": "[red]✗[/]"}


def doctor(
    data_dir: DataDirectory = None,
    slow: Annotated[
        bool, typer.Option("--slow", help="Also show index use, slow operations, current operations and locks.")
    ] = False,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check the prerequisites on this machine and, if a stack runs, the stack itself. Nothing is changed.

    Exit status 0 if nothing is wrong, 1 if something must be fixed.
    """
    findings = asyncio.run(_examine(data_dir, slow=slow))
    problems = sum(finding.outcome == "wrong" for finding in findings)
    if as_json_document:
        print_json({"ok": not problems, "findings": [finding.as_json() for finding in findings]})
    else:
        show_findings(findings, f"{problems} to fix" if problems else "nothing is wrong")
    raise typer.Exit(1 if problems else 0)


async def _examine(data_dir: Path | None, *, slow: bool) -> list[Finding]:
    layout = Layout(choose_data_directory(data_dir, last_used=True))
    state = read_state_if_readable(layout)
    findings = list(check_machine(layout.root, os.environ, stack_runs=state.running))
    try:
        read_state(layout)
    except UnreadableStateError as error:
        findings.append(wrong("stored state", str(error), ""))
    try:
        client_context(with_values_for_commands(os.environ))
    except StartError as error:
        fix = "correct the file, or the variable that names it"
        return [*findings, wrong("settings", str(error), fix)]
    try:
        stack = chosen_stack(data_dir)
    except UnreachableError:
        return findings
    findings += await _examine_stack(layout, state, stack)
    if slow:
        findings += [finding async for finding in check_slow(stack.url_for_changes, stack.database_prefix)]
    return findings


async def _examine_stack(layout: Layout, state: State, stack: Stack) -> list[Finding]:
    findings = await _check_processes(layout) if state.running else []
    known = {process.name for process in state.processes} if state.running else SERVICES.keys()
    services = [name for name in SERVICES if name in known]
    is_own = stack.database_users is not None
    url, prefix = stack.url_for_changes, stack.database_prefix
    findings += [finding async for finding in check_database(url, prefix, services, is_own=is_own)]
    findings += [finding async for finding in check_users(url, prefix, stack.database_users)]
    if archive := await check_archive(url, prefix):
        findings.append(archive)
    if not stack.topology_options.webhooks and (silent := await check_silent_webhooks(url, prefix)):
        findings.append(silent)
    answers = await _answers(stack)
    paused = {name: answer.paused for name, answer in answers.items() if answer.paused is not None}
    findings += [note(f"{name} consumer", f"paused {times}", RESUME.format(name)) for name, times in paused.items()]
    broken = {name: answer.degraded or "" for name, answer in answers.items() if answer.breaker_is_open}
    findings += [wrong(f"{name} consumer", why, BREAKER_OPEN) for name, why in broken.items()]
    control = control_of(layout, state, stack)
    of_broker = check_broker(stack.amqp_url, control, stack.topology_options, services, paused, broken)
    findings += [finding async for finding in of_broker]
    if "provisioning" in services:
        findings.append(await check_provider(_simulator_url(state), os.environ))
    return findings


async def _answers(stack: Stack) -> dict[str, Answer]:
    """Return what the services say about themselves, by their names."""
    names = [name for name, service in SERVICES.items() if service.can_be_paused and name in stack.urls]
    answers = await asyncio.gather(*(asyncio.to_thread(ask_readiness, stack.urls[name]) for name in names))
    return dict(zip(names, answers, strict=True))


def _simulator_url(state: State) -> str | None:
    return next((process.url for process in state.processes if state.running and process.name == SIMULATOR.name), None)


async def _check_processes(layout: Layout) -> list[Finding]:
    _, processes = await check_stack(layout)
    return [
        ok(f"{status.process.name} process", f"ready at {status.process.url}")
        if status.unhealthy_reason is None
        else wrong(
            f"{status.process.name} process",
            status.unhealthy_reason,
            f"see {layout.logs / status.process.name}.log; the supervisor restarts it",
        )
        for status in processes
        if status.process.name in PROCESSES  # the servers have checks of their own
    ]


def control_of(layout: Layout, state: State, stack: Stack) -> Control | None:
    """Return rabbitmqctl for the broker of this stack if `up` runs it."""
    runs_it = state.running and any(process.name == "rabbitmq" for process in state.processes)
    if not runs_it or stack.amqp_url != state.amqp_url:
        return None
    kind = RabbitMQCluster if state.cluster else RabbitMQ
    return kind(find_rabbitmq(), layout.rabbitmq, state.node, state.ports).control


def show_findings(findings: list[Finding], verdict: str) -> None:
    """Print each finding with what to do about it, and the verdict on all of them."""
    console = open_console(highlight=False, soft_wrap=True)
    for finding in findings:
        console.print(f"{MARKS[finding.outcome]} {foreign(finding.subject)}: {foreign(finding.detail)}")
        if finding.fix:
            console.print(f"  [dim]{foreign(finding.fix)}[/]")
    console.print(verdict)

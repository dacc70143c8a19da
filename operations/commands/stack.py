"""The commands `up`, `down` and `status`."""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from operations.commands.stack_display import StartDisplay, print_processes
from operations.commands.terminal import open_console, print_error, print_json
from operations.stack.background import start_in_background
from operations.stack.layout import Layout, choose_data_directory
from operations.stack.orphans import end_leftovers
from operations.stack.processes import end_all
from operations.stack.run import CANNOT_RUN, Options, run_stack
from operations.stack.services import choose_services
from operations.stack.state import (
    AlreadyRunsError,
    State,
    UnreadableStateError,
    find_holder,
    hold,
    read_state_if_readable,
    write_state,
)
from operations.stack.status import NamedStack, ProcessStatus, all_ready, as_json, check_stack

# A supervisor gives services 12 s and servers 30 s before it kills them.
SUPERVISOR_ENDS_WITHIN_SECONDS = 60.0

DataDirectory = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where the stack's data lies.", show_default="ORDERSAGA_DATA_DIR, or .ordersaga"),
]


def up(
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background; return when ready.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the stack's data first.")] = False,
    data_dir: DataDirectory = None,
    port_offset: Annotated[
        int | None, typer.Option(min=0, max=30000, help="Use the default ports plus this number, or fail.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Services to start, separated by commas; '' for the servers alone.")
    ] = None,
) -> None:
    """Start MongoDB, RabbitMQ, the services and a simulated provider on this machine, and keep them running.

    What ORDERSAGA_MONGODB_URL, ORDERSAGA_AMQP_URL or ORDERSAGA_SMARTVPS_URL names is used instead of being started.
    """
    try:
        services = tuple(choose_services(only))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from None
    options = Options(choose_data_directory(data_dir), services, fresh, port_offset)
    console = open_console()
    try:
        _run(options, console, detach)
    except CANNOT_RUN as error:
        raise _failed(str(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(1) from None


def _run(options: Options, console: Console, detach: bool) -> None:
    layout = Layout(options.root)
    with StartDisplay(console, layout) as display:
        if not detach:
            run_stack(options, display)
            return
        start_in_background(options, display)
    console.print("`ordersaga down` ends it", highlight=False)


def down(data_dir: DataDirectory = None) -> None:
    """End a stack: the services first, then the servers. Also ends what a killed supervisor left behind."""
    layout = Layout(choose_data_directory(data_dir, last_used=True))
    console = open_console()
    try:
        with console.status(f"ending the stack in {layout.root}"):
            ended = layout.root.is_dir() and _end_stack(layout)
    except OSError as error:
        raise _failed(f"the stack in {layout.root} cannot be ended: {error}") from error
    done = f"the stack in {layout.root} has ended" if ended else f"nothing runs in {layout.root}"
    console.print(done, highlight=False, soft_wrap=True)


def _end_stack(layout: Layout) -> bool:
    """End the supervisor and what has none; return whether there was anything to end. Raises OSError."""
    supervised = _end_supervisor(layout)
    return bool(_end_leftovers(layout)) or supervised


def _end_supervisor(layout: Layout) -> bool:
    """Ask the supervisor to end its stack and wait until it has; kill it when it does not."""
    supervisor = find_holder(layout)
    if supervisor is None:
        return False
    end_all([supervisor], SUPERVISOR_ENDS_WITHIN_SECONDS)
    return True


def _end_leftovers(layout: Layout) -> int:
    try:
        with hold(layout):
            state = read_state_if_readable(layout)
            left = end_leftovers(layout, state)
            if left:
                gone = tuple(replace(process, identity=None, ready=False) for process in state.processes)
                with contextlib.suppress(OSError):  # a full disk: that they are gone is seen without it
                    write_state(layout, replace(state, phase="stopped", supervisor=None, processes=gone))
            return left
    except AlreadyRunsError:  # somebody started it anew in this moment
        return 0


def _failed(reason: str) -> typer.Exit:
    """Print why a command failed; return what ends it with exit status 1."""
    print_error(reason)
    return typer.Exit(1)


def status(
    data_dir: DataDirectory = None,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what runs where. Exit status 0 when all of it is ready, else 1.

    Where no stack runs in the data directory, it is the one whose servers and services the environment names.
    """
    layout = Layout(choose_data_directory(data_dir, last_used=True))
    try:
        state, processes = asyncio.run(check_stack(layout))
    except UnreadableStateError as error:
        raise _failed(str(error)) from None
    if as_json_document:
        print_json(as_json(layout, state, processes))
    else:
        _print_status(layout, state, processes)
    raise typer.Exit(0 if all_ready(state, processes) else 1)


def _print_status(layout: Layout, state: State, processes: list[ProcessStatus]) -> None:
    console = open_console()
    if not state.running:
        console.print(f"nothing runs in {layout.root}", highlight=False, soft_wrap=True)
        if state.error:
            console.print(f"the last start failed: {state.error}", markup=False, highlight=False, soft_wrap=True)
        return
    print_processes(console, processes)
    where = "as the environment names it" if isinstance(state, NamedStack) else f"data and logs: {layout.root}"
    console.print(where, highlight=False, soft_wrap=True)

"""The commands `up`, `down` and `status`."""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from operations.commands.remote.status import read_state as read_remote_state
from operations.commands.remote.status import show_state as show_remote_state
from operations.commands.stack_display import StartDisplay, print_processes
from operations.commands.target import DataDirectory, name_target
from operations.commands.terminal import open_console, print_error, print_json
from operations.settings import RemoteStack, remote_stack
from operations.stack.background import start_in_background
from operations.stack.layout import REMOTE_URL_VARIABLE, Layout, choose_data_directory
from operations.stack.orphans import end_orphans
from operations.stack.processes import end_all
from operations.stack.run import CANNOT_RUN, StackOptions, run_stack
from operations.stack.services import choose_services
from operations.stack.state import (
    AlreadyRunsError,
    State,
    UnreadableStateError,
    acquire_lock,
    find_lock_holder,
    read_state_if_readable,
    write_state,
)
from operations.stack.status import ExternalStack, ProcessStatus, all_ready, as_json, check_stack

# A supervisor gives services 12 s and servers 30 s before it kills them.
SUPERVISOR_ENDS_WITHIN_SECONDS = 60.0

NewDataDirectory = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Directory of the stack's data.", show_default="ORDERSAGA_DATA_DIR, or .ordersaga"),
]


def up(
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background; return when ready.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the stack's data first.")] = False,
    data_dir: NewDataDirectory = None,
    port_offset: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=30000,
            help="Use the default ports plus this number, or fail.",
            show_default="0, or free ports where one is taken",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Services to start, separated by commas; '' for the servers alone.", show_default="all"),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Let everybody on this machine do everything, without a key.")
    ] = False,
    grpc: Annotated[
        bool, typer.Option("--grpc", help="Take orders over gRPC too, on port 3018 if it is free.")
    ] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Start three RabbitMQ nodes and a MongoDB replica set with three members.")
    ] = False,
) -> None:
    """Start MongoDB, RabbitMQ, the services and a simulated provider on this machine, and keep them running.

    Servers named by ORDERSAGA_MONGODB_URL, ORDERSAGA_AMQP_URL or ORDERSAGA_SMARTVPS_URL are used and not started. With
    --cluster, a data directory of single servers grows to three of each, and stays so.

    Exit status 0 after an orderly end (with --detach: when ready), 1 if the stack cannot run, 2 for wrong usage.
    """
    try:
        services = tuple(choose_services(only))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from None
    options = StackOptions(choose_data_directory(data_dir), services, fresh, port_offset, no_auth, grpc, cluster)
    console = open_console()
    try:
        _run(options, console, detach)
    except CANNOT_RUN as error:
        raise _failed(str(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(1) from None


def _run(options: StackOptions, console: Console, detach: bool) -> None:
    layout = Layout(options.root)
    with StartDisplay(console, layout) as display:
        if not detach:
            run_stack(options, display)
            return
        start_in_background(options, display)
    console.print("`ordersaga down` ends it", highlight=False)


def down(data_dir: DataDirectory = None) -> None:
    """End a stack, services first, then servers; also end the processes that a killed supervisor left behind.

    Exit status 0, also if nothing runs, 1 if the stack cannot be ended.
    """
    layout = Layout(choose_data_directory(data_dir, last_used=True))
    console = open_console()
    try:
        with console.status(f"ending the stack in {layout.root}"):
            ended = layout.root.is_dir() and _end_stack(layout)
    except OSError as error:
        raise _failed(f"the stack in {layout.root} cannot be ended: {error}") from error
    result = f"the stack in {layout.root} has ended" if ended else f"nothing runs in {layout.root}"
    console.print(result, highlight=False, soft_wrap=True)


def _end_stack(layout: Layout) -> bool:
    """End the supervisor and any orphans; return False if there were none. Raises OSError."""
    supervised = _end_supervisor(layout)
    return bool(_end_orphans(layout)) or supervised


def _end_supervisor(layout: Layout) -> bool:
    """Ask the supervisor to end its stack and wait until it has; kill it after a timeout."""
    supervisor = find_lock_holder(layout)
    if supervisor is None:
        return False
    end_all([supervisor], SUPERVISOR_ENDS_WITHIN_SECONDS)
    return True


def _end_orphans(layout: Layout) -> int:
    try:
        with acquire_lock(layout):
            state = read_state_if_readable(layout)
            ended = end_orphans(layout, state)
            if ended:
                stopped = tuple(replace(process, identity=None, ready=False) for process in state.processes)
                with contextlib.suppress(OSError):  # a full disk: `status` finds out without the file
                    write_state(layout, replace(state, phase="stopped", supervisor=None, processes=stopped))
            return ended
    except AlreadyRunsError:  # it was started again in this moment
        return 0


def _failed(reason: str) -> typer.Exit:
    """Print the reason for a failure; return the exception that ends the command with exit status 1."""
    print_error(reason)
    return typer.Exit(1)


def status(
    data_dir: DataDirectory = None,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the processes of a stack, their addresses and whether they are ready.

    If no stack runs in the data directory, the stack whose servers and services the environment names is shown. With
    ORDERSAGA_URL, what the console of that stack says is away or paused.

    Exit status 0 if everything is ready, 1 if not.
    """
    if (remote := remote_stack()) is not None:
        if data_dir is not None:
            raise typer.BadParameter(
                f"is a stack of this machine, and {REMOTE_URL_VARIABLE} names another: unset one of them",
                param_hint="--data-dir",
            )
        _show_from_elsewhere(remote, as_json_document)
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


def _show_from_elsewhere(stack: RemoteStack, as_json_document: bool) -> NoReturn:
    name_target("stack", stack.describe())
    state = asyncio.run(read_remote_state(stack))
    if as_json_document:
        print_json(state)
    else:
        show_remote_state(state, open_console(highlight=False))
    raise typer.Exit(0 if state["ok"] else 1)


def _print_status(layout: Layout, state: State, processes: list[ProcessStatus]) -> None:
    console = open_console()
    if not state.running:
        console.print(f"nothing runs in {layout.root}", highlight=False, soft_wrap=True)
        if state.error:
            console.print(f"the last start failed: {state.error}", markup=False, highlight=False, soft_wrap=True)
        return
    print_processes(console, processes)
    where = "defined by the environment" if isinstance(state, ExternalStack) else f"data and logs: {layout.root}"
    console.print(where, highlight=False, soft_wrap=True)

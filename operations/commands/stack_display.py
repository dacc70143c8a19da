"""Shows the start of a stack and the status of its processes."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Column, Table

from operations.stack.layout import Layout
from operations.stack.state import ProcessState, State
from operations.stack.status import ProcessStatus
from shared.urls import hide_credentials

A_KEY_IS_NEEDED = (
    "curl needs a key: KEY=$(ordersaga keys create --role admin --owner me)\n"
    "the console needs you to sign in: `ordersaga console` prints a link"
)
WEBHOOKS_ARE_OFF = "webhooks are off: no endpoint gets events; ORDERSAGA_WEBHOOKS=on changes that"
NO_KEY_NEEDED = "no authentication: everybody on this machine may do everything"


class StartDisplay:
    """Shows the start of a stack: what each program waits for, and when it is ready; after the start, events.

    On a terminal that is a spinner for each program, else a line for each reason.
    """

    def __init__(self, console: Console, layout: Layout) -> None:
        self._console = console
        self._layout = layout
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description:<13}"),
            TextColumn("{task.fields[detail]}", style="dim"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: set[str] = set()
        self._phase = ""

    def __enter__(self) -> Self:
        self._console.print(f"starting the stack in {escape(str(self._layout.root))}", highlight=False, soft_wrap=True)
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_change(self, state: State) -> None:
        """Show the new state."""
        if self._phase in ("", "starting") and state.phase in ("starting", "ready"):
            awaited = [process.name for process in state.processes if process.identity and not process.ready]
            for process in state.processes:
                self._show(process, awaited)
        if state.phase not in ("starting", self._phase):
            self._enter_phase(state)
        self._phase = state.phase

    def on_event(self, text: str) -> None:
        """Print an event with the time."""
        now = datetime.now().astimezone()
        self._console.print(f"[dim]{now:%H:%M:%S}[/] {escape(text)}", highlight=False, soft_wrap=True)

    def _show(self, process: ProcessState, awaited: Sequence[str]) -> None:
        if process.name not in self._tasks:
            self._tasks[process.name] = self._progress.add_task(process.name, total=1, start=False, detail="")
        task = self._tasks[process.name]
        if process.identity is not None and not self._progress.tasks[task].started:
            self._progress.start_task(task)
        detail = process.detail if process.identity else f"waits for {', '.join(awaited) or 'its turn'}"
        self._progress.update(task, completed=int(process.ready), detail=escape(detail))
        if process.identity is not None and not self._console.is_terminal:
            self._say(f"{process.name} is ready" if process.ready else f"waiting for {process.name}: {process.detail}")

    def _say(self, line: str) -> None:
        """Print a line once."""
        if line not in self._said:
            self._said.add(line)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _enter_phase(self, state: State) -> None:
        self._progress.stop()
        if state.phase == "ready":
            print_ready(self._console, self._layout, state)
        elif state.phase == "stopping":
            self.on_event("ending the services, then the servers (ctrl-C again kills them)")
        elif state.phase == "stopped":
            self.on_event("everything has ended")


class TemporaryStackDisplay:
    """Shows the start and the end of a stack that a command runs for itself."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def starting(self, layout: Layout) -> StartDisplay:
        """Show the start."""
        return StartDisplay(self._console, layout)

    def stopping(self) -> Status:
        """Show a spinner during the end."""
        return self._console.status("removing the stack")

    def data_kept(self, root: Path) -> None:
        """Print where the data and logs of a failed run are."""
        self._console.print(f"[dim]data and logs are kept in {root}[/]", highlight=False, soft_wrap=True)


def print_ready(console: Console, layout: Layout, state: State) -> None:
    """Print the addresses of a stack that is ready."""
    listed = [process for process in state.processes if process.url is not None]
    print_processes(console, [ProcessStatus(process, None) for process in listed])
    for name, url in (("mongodb", state.mongodb_url), ("rabbitmq", state.amqp_url)):
        if url and name not in {process.name for process in listed}:
            console.print(f"{name} is external: {hide_credentials(url)}", highlight=False, soft_wrap=True)
    if state.grpc_port:
        console.print(f"order takes calls of gRPC on port {state.grpc_port}", highlight=False, soft_wrap=True)
    if not state.webhooks:
        console.print(WEBHOOKS_ARE_OFF, highlight=False, soft_wrap=True)
    console.print(f"data and logs: {layout.root}", highlight=False, soft_wrap=True)
    console.print(A_KEY_IS_NEEDED if state.needs_keys else NO_KEY_NEEDED, markup=False, highlight=False, soft_wrap=True)


def print_processes(console: Console, processes: list[ProcessStatus]) -> None:
    """Print a table of processes; below it, the reasons why processes are not ready, or degraded."""
    table = Table("name", Column("listens on", overflow="fold"), "pid", "ready", box=None, padding=(0, 1, 0, 0))
    for status in processes:
        process = status.process
        table.add_row(
            process.name,
            hide_credentials(process.url or ""),
            str(process.identity.pid) if process.identity else "-",
            _ready(status),
        )
    console.print(table)
    for status in processes:
        if status.unhealthy_reason is not None:
            reason = f"{status.process.name} is not ready: {status.unhealthy_reason}"
            console.print(reason, style="red", markup=False, highlight=False, soft_wrap=True)
        elif status.degraded is not None:
            reason = f"{status.process.name} is degraded: {status.degraded}"
            console.print(reason, style="yellow", markup=False, highlight=False, soft_wrap=True)
        if status.paused is not None:
            reason = f"the consumption of {status.process.name} is paused {status.paused}; `ordersaga pauses` says why"
            console.print(reason, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _ready(status: ProcessStatus) -> str:
    if status.unhealthy_reason is not None:
        return "[red]no[/]"
    return "[yellow]degraded[/]" if status.degraded is not None else "[green]yes[/]"

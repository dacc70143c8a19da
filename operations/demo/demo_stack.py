"""The stack that a story is told on: fresh, in a directory and on ports of its own, gone when the story is over."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from operations.commands.stack_display import StartDisplay
from operations.errors import UnreachableError
from operations.settings import Stack, locate_stack
from operations.stack.background import start_in_background
from operations.stack.layout import Layout
from operations.stack.orphans import end_leftovers
from operations.stack.processes import end_all, find
from operations.stack.run import Options
from operations.stack.services import PROCESSES
from operations.stack.state import ProcessState, find_holder, hold, read_state, read_state_if_readable

SUPERVISOR_ENDS_WITHIN_SECONDS = 60.0
POLL_SECONDS = 0.05
# Where the servers' programs are is a matter of the machine; every other setting would change the story.
KEPT_SETTINGS = ("ORDERSAGA_MONGOD", "ORDERSAGA_RABBITMQ_SERVER")


@dataclass(frozen=True)
class Comeback:
    """A service's return after a kill: the processes before and after, and the seconds in between."""

    killed_pid: int
    new_pid: int
    seconds: float


class DemoStack:
    """A running stack of one's own; `keep_data` has its data and logs kept when it is taken down."""

    def __init__(self, layout: Layout, stack: Stack) -> None:
        self._layout = layout
        self.stack = stack
        self.keep_data = False

    def kill(self, service: str) -> int:
        """End a service with SIGKILL, which it cannot prepare for; returns the pid that it had."""
        identity = self._process(service).identity
        process = find(identity) if identity else None
        if process is None:
            raise UnreachableError(f"{service} does not run")
        process.kill()
        return process.pid

    async def back(self, service: str, killed_pid: int, within: float = 30) -> Comeback:
        """Wait until the supervisor has started a killed service again and it is ready."""
        started = time.monotonic()
        while time.monotonic() - started < within:
            process = self._process(service)
            if process.ready and process.identity and process.identity.pid != killed_pid:
                return Comeback(killed_pid, process.identity.pid, time.monotonic() - started)
            await asyncio.sleep(POLL_SECONDS)
        raise UnreachableError(f"{service} is not back after {within:.0f} s: {self._process(service).detail}")

    def _process(self, service: str) -> ProcessState:
        return next(process for process in read_state(self._layout).processes if process.name == service)


@contextlib.contextmanager
def own_stack(console: Console) -> Iterator[DemoStack]:
    """Start a stack and give it; takes it down, whatever happens, and keeps its data only where something went wrong.

    Raises StartError when it does not start.
    """
    root = Path(tempfile.mkdtemp(prefix="ordersaga-demo-"))
    layout = Layout(root)
    environment = _environment(root)
    keep = True
    try:
        with StartDisplay(console, layout) as display:
            start_in_background(Options(root, tuple(PROCESSES)), display, environment)
        stage = DemoStack(layout, locate_stack(root, environment))
        yield stage
        keep = stage.keep_data
    except KeyboardInterrupt:
        keep = False
        raise
    finally:
        _end(layout, console)
        if keep:
            console.print(f"[dim]data and logs are kept in {root}[/]", highlight=False, soft_wrap=True)
        else:
            shutil.rmtree(root, ignore_errors=True)


def _environment(root: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
    kept |= {name: os.environ[name] for name in KEPT_SETTINGS if name in os.environ}
    # The stack is not to be remembered as the one used last: it will soon be gone.
    return {**kept, "XDG_STATE_HOME": str(root / "state")}


def _end(layout: Layout, console: Console) -> None:
    """End every process of the stack; a ctrl-C meanwhile changes nothing about it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with console.status("taking the stack down"):
            if supervisor := find_holder(layout):
                end_all([supervisor], SUPERVISOR_ENDS_WITHIN_SECONDS)
            with hold(layout):
                end_leftovers(layout, read_state_if_readable(layout))
    finally:
        signal.signal(signal.SIGINT, before)

"""The stack of a demo, with its own directory and ports: removed when the demo ends, or left to run."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from operations.errors import UnreachableError
from operations.settings import Stack, locate_stack
from operations.stack.background import start_in_background
from operations.stack.layout import Layout
from operations.stack.processes import find
from operations.stack.run import StackOptions
from operations.stack.state import ProcessState, read_state
from operations.stack.temporary import StackDisplay, end, own_environment, without_settings
from shared.services import PROCESSES

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Restart:
    """The restart of a killed service: the old and the new process, and the seconds between kill and readiness."""

    killed_pid: int
    new_pid: int
    seconds: float


class DemoStack:
    """A running temporary stack. Set `keep_data` to keep its data and logs when it is removed."""

    def __init__(self, layout: Layout, stack: Stack) -> None:
        self._layout = layout
        self.stack = stack
        self.keep_data = False

    def kill(self, service: str) -> int:
        """Kill a service with SIGKILL and return its pid."""
        identity = self._process(service).identity
        process = find(identity) if identity else None
        if process is None:
            raise UnreachableError(f"{service} does not run")
        process.kill()
        return process.pid

    async def wait_for_restart(self, service: str, killed_pid: int, within: float = 60) -> Restart:
        """Wait until the supervisor has restarted a killed service and the service is ready."""
        started = time.monotonic()
        while time.monotonic() - started < within:
            process = self._process(service)
            if process.ready and process.identity and process.identity.pid != killed_pid:
                return Restart(killed_pid, process.identity.pid, time.monotonic() - started)
            await asyncio.sleep(POLL_SECONDS)
        raise UnreachableError(f"{service} is not ready after {within:.0f} s: {self._process(service).detail}")

    def _process(self, service: str) -> ProcessState:
        return next(process for process in read_state(self._layout).processes if process.name == service)


@contextlib.contextmanager
def temporary_stack(display: StackDisplay, *, no_auth: bool = False) -> Iterator[DemoStack]:
    """Start a stack, yield it and remove it; its data is kept only after a failure.

    With `no_auth`, its services answer without a key.

    Raises StackStartError when it does not start.
    """
    root = Path(tempfile.mkdtemp(prefix="ordersaga-demo-"))
    layout = Layout(root)
    environment = own_environment(root)
    keep = True
    try:
        with display.starting(layout) as listener:
            start_in_background(StackOptions(root, tuple(PROCESSES), no_auth=no_auth), listener, environment)
        demo_stack = DemoStack(layout, locate_stack(root, environment))
        yield demo_stack
        keep = demo_stack.keep_data
    except KeyboardInterrupt:
        keep = False
        raise
    finally:
        end(layout, display)
        if keep:
            display.data_kept(root)
        else:
            shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def lasting_stack(display: StackDisplay, settings: Mapping[str, str]) -> Iterator[DemoStack]:
    """Start a stack with these settings, and leave it to run as the one used last; an error in the context removes it.

    Raises StackStartError when it does not start.
    """
    root = Path(tempfile.mkdtemp(prefix="ordersaga-demo-"))
    layout = Layout(root)
    environment = {**without_settings(), **settings}
    try:
        with display.starting(layout) as listener:
            start_in_background(StackOptions(root, tuple(PROCESSES)), listener, environment)
        yield DemoStack(layout, locate_stack(root, environment))
    except BaseException:
        end(layout, display)
        shutil.rmtree(root, ignore_errors=True)
        raise

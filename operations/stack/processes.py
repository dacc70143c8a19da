"""Starting, recognising and ending processes, so that none is left behind and none of another owner is touched.

Three things see to that, each enough for another way to die:

- a process is recorded by its pid *and* the time it started, so that a recycled pid is never taken for it;
- every process carries `ORDERSAGA_STACK=<data directory>` in its environment, and so do its own children: what
  was started but not yet recorded, or detached itself (as Erlang's name server does), is found by that mark;
- on Linux the kernel sends SIGTERM to it when its supervisor dies, even by kill -9 (PR_SET_PDEATHSIG).
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field

from operations.stack.files import open_private
from operations.stack.program import Command

MARK = "ORDERSAGA_STACK"
PR_SET_PDEATHSIG = 1
# create_time is computed from the boot time, which moves a little when the clock is adjusted.
START_TIME_TOLERANCE_SECONDS = 1.0


@dataclass(frozen=True)
class Identity:
    """What tells one process from every other: its pid and when it started (seconds since the epoch)."""

    pid: Annotated[int, Field(ge=1, le=2**31 - 1)]
    started: float


def identify(pid: int) -> Identity | None:
    """Return the identity of the process that has this pid now, None when there is none."""
    try:
        return Identity(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def find(identity: Identity) -> psutil.Process | None:
    """Return the process if it still runs; a zombie does not, nor does another that got its pid."""
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.started) < START_TIME_TOLERANCE_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def find_marked(stack: Path) -> list[psutil.Process]:
    """Return the running processes that belong to the stack in this data directory, never this one itself."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for process in psutil.process_iter() if process.pid not in own and _has_mark(process, stack)]


def _has_mark(process: psutil.Process, stack: Path) -> bool:
    try:
        return process.environ().get(MARK) == str(stack) and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):  # another user's process, or one that has just ended
        return False


def end_all(processes: Iterable[psutil.Process], grace_seconds: float) -> None:
    """End processes that are not this one's children: SIGTERM, then SIGKILL to what remains after the grace."""
    remaining = list(processes)
    for process in remaining:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    remaining = psutil.wait_procs(remaining, timeout=grace_seconds)[1]
    for process in remaining:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(remaining, timeout=10)


class Child:
    """A running child process of this one."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, log_offset: int) -> None:
        self._process = process
        self._log = log
        self._log_offset = log_offset
        self.identity = identify(process.pid) or Identity(process.pid, 0.0)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.identity.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Wait for its end; the exit status, or minus the number of the signal that ended it."""
        return await self._process.wait()

    async def end(self, grace_seconds: float) -> int:
        """SIGTERM, then after the grace SIGKILL to it and to its process group; the exit status."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.wait()
        except TimeoutError:
            self.kill()
            return await self.wait()

    def kill(self) -> None:
        """SIGKILL to it and to its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def last_lines(self, count: int = 3) -> list[str]:
        """The last lines that it has written to its log since it was started; none when that cannot be read."""
        try:
            with self._log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_offset, end - 64 * 1024))
                text = log.read().decode(errors="replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


async def spawn(command: Command, log: Path, stack: Path) -> Child:
    """Start a command in a session of its own, its output appended to the log.

    Raises OSError when it cannot be executed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open_private(log, "ab") as output:
        offset = output.tell()
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            env={**command.environment, MARK: str(stack)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # A session of its own: ctrl-C at the terminal reaches the supervisor alone, which ends the rest in order.
            start_new_session=True,
            preexec_fn=_ended_with_parent(),
        )
    return Child(process, log, offset)


def _ended_with_parent() -> Callable[[], None] | None:
    """Return what makes the kernel end a child with this process; None where the system has no such thing."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: nothing may be loaded between fork and exec
    parent = os.getpid()

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_child

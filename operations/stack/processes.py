"""Starts, identifies and ends processes: none is left behind, and no process of another owner is touched.

Three mechanisms ensure that, each for another kind of failure:

- A process is recorded with its pid *and* its start time, so a recycled pid is never mistaken for it.
- Every process and its children have `ORDERSAGA_STACK=<data directory>` in their environment. This mark finds processes
  that were started but not yet recorded, or that detached themselves, as Erlang's name server does.
- On Linux the kernel sends SIGTERM to a process when its supervisor dies, even by kill -9 (PR_SET_PDEATHSIG).
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
# create_time is computed from the boot time, which changes slightly when the clock is adjusted.
START_TIME_TOLERANCE_SECONDS = 1.0


@dataclass(frozen=True)
class Identity:
    """The identity of a process: its pid and its start time (seconds since the epoch)."""

    pid: Annotated[int, Field(ge=1, le=2**31 - 1)]
    started: float


def identify(pid: int) -> Identity | None:
    """Return the identity of the process that has this pid now, None if there is none."""
    try:
        return Identity(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def find(identity: Identity) -> psutil.Process | None:
    """Return the process if it still runs: not a zombie, and not another process with the same pid."""
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.started) < START_TIME_TOLERANCE_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def find_marked(stack: Path) -> list[psutil.Process]:
    """Return the running processes of the stack in this data directory, except this process and its parents."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for process in psutil.process_iter() if process.pid not in own and _has_mark(process, stack)]


def _has_mark(process: psutil.Process, stack: Path) -> bool:
    try:
        return process.environ().get(MARK) == str(stack) and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):  # another user's process, or one that has just ended
        return False


def end_all(processes: Iterable[psutil.Process], grace_seconds: float) -> None:
    """End processes that are not children of this one: SIGTERM, and SIGKILL after the grace period."""
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
    """A running child process."""

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
        """True until the process has ended."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Wait for the end; return the exit status, or the negative number of the signal that ended it."""
        return await self._process.wait()

    async def end(self, grace_seconds: float) -> int:
        """Send SIGTERM, and SIGKILL to the process group after the grace period; return the exit status."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.wait()
        except TimeoutError:
            self.kill()
            return await self.wait()

    def kill(self) -> None:
        """Send SIGKILL to the process and its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def last_lines(self, count: int = 3) -> list[str]:
        """Return the last lines of its log since its start; none if the log cannot be read."""
        try:
            with self._log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_offset, end - 64 * 1024))
                text = log.read().decode(errors="replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


async def spawn(command: Command, log: Path, stack: Path) -> Child:
    """Start a command in a new session and append its output to the log.

    Raises OSError if it cannot be executed.
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
            # A new session: ctrl-C at the terminal reaches only the supervisor, which ends the others in order.
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
    return Child(process, log, offset)


def _die_with_parent() -> Callable[[], None] | None:
    """Return a function that makes the kernel end a child with this process; None where that is not supported."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded here: nothing may be loaded between fork and exec
    parent = os.getpid()

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before the call above
            os._exit(1)

    return in_child

"""Starts a program and waits until it is ready."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from operations.errors import CommandError
from operations.stack.processes import Child, spawn
from operations.stack.program import Program

PROBE_INTERVAL_SECONDS = 0.1


class StackStartError(CommandError):
    """A program could not be started; the message has its name, the reason and the last lines of its log."""


async def start(program: Program, logs: Path, stack: Path, within_seconds: float = 60) -> Child:
    """Start a program with its output in `logs` and return it once it is ready.

    Raises StackStartError if it ends or is not ready in time; it does not run then.
    """
    child = await spawn(program.prepare(), logs / f"{program.name}.log", stack)
    try:
        await wait_until_ready(program, child, within_seconds)
    except BaseException:
        await child.end(program.grace_seconds)
        raise
    return child


async def wait_until_ready(
    program: Program, child: Child, within_seconds: float, on_progress: Callable[[str], None] = lambda _: None
) -> None:
    """Wait until the program is ready; call `on_progress` with the reason why it is not, whenever that changes.

    Raises StackStartError if the program ends, is not ready in time or cannot become ready.
    """
    deadline = time.monotonic() + within_seconds
    reported = None
    while (reason := await program.probe()) is not None or not child.running:
        if not child.running:
            raise StackStartError(_ended(program, await child.wait(), child.last_lines()))
        if time.monotonic() > deadline:
            raise StackStartError(_not_ready(program, within_seconds, reason, child.last_lines()))
        if reason is not None and reason != reported:
            on_progress(reason)
            reported = reason
        await asyncio.sleep(PROBE_INTERVAL_SECONDS)


def _ended(program: Program, status: int, lines: list[str]) -> str:
    return "\n".join([f"{program.name} ended during its start {exit_text(status)}", *lines])


def _not_ready(program: Program, within_seconds: float, reason: str | None, lines: list[str]) -> str:
    return "\n".join([f"{program.name} is not ready after {within_seconds:.0f} s: {reason}", *lines])


def exit_text(status: int) -> str:
    """Describe the end of a process by its exit status; a negative one is the signal that ended it."""
    return f"by signal {-status}" if status < 0 else f"with exit status {status}"

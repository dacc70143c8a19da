"""Starting one program and waiting until it is ready."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from operations.stack.processes import Child, spawn
from operations.stack.program import Program

PROBE_INTERVAL_SECONDS = 0.1


class StartError(Exception):
    """A program could not be started; the message has its name, the reason and the last lines of its log."""


async def start(program: Program, logs: Path, stack: Path, within_seconds: float = 60) -> Child:
    """Start a program, its output in `logs`, and return it once it is ready.

    Raises StartError when it ends, or is not ready within the time; nothing is left running then.
    """
    child = await spawn(program.prepare(), logs / f"{program.name}.log", stack)
    try:
        await until_ready(program, child, within_seconds)
    except BaseException:
        await child.end(program.grace_seconds)
        raise
    return child


async def until_ready(
    program: Program, child: Child, within_seconds: float, on_missing: Callable[[str], None] = lambda _: None
) -> None:
    """Wait until the program is ready; `on_missing` hears what is missing whenever that changes.

    Raises StartError when it ends first, or is not ready within the time.
    """
    deadline = time.monotonic() + within_seconds
    told = None
    while (missing := await program.probe()) is not None or not child.running:
        if not child.running:
            raise StartError(_ended(program, await child.wait(), child.last_lines()))
        if time.monotonic() > deadline:
            raise StartError(_not_ready(program, within_seconds, missing, child.last_lines()))
        if missing is not None and missing != told:
            on_missing(missing)
            told = missing
        await asyncio.sleep(PROBE_INTERVAL_SECONDS)


def _ended(program: Program, status: int, lines: list[str]) -> str:
    return "\n".join([f"{program.name} ended at its start {exit_text(status)}", *lines])


def _not_ready(program: Program, within_seconds: float, missing: str | None, lines: list[str]) -> str:
    return "\n".join([f"{program.name} is not ready after {within_seconds:.0f} s: {missing}", *lines])


def exit_text(status: int) -> str:
    """Say how a process ended, from its exit status (negative: the signal that ended it)."""
    return f"by signal {-status}" if status < 0 else f"with exit status {status}"

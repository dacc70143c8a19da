"""What the processes of a stack on this machine have used: CPU seconds and memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from operations.stack.layout import Layout
from operations.stack.processes import find
from operations.stack.state import read_state_if_readable

GENERATOR = "load"
"""The name under which this process itself is listed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """A process with its children, so far."""

    pid: int
    cpu_seconds: float
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process has used between two moments, and its memory at the second."""

    cpu_seconds: float
    rss_bytes: int


def usage(data_dir: Path | None) -> dict[str, Usage]:
    """What each process of the stack in that data directory, and this process, has used; this one alone without it."""
    measured = {GENERATOR: _of(psutil.Process())}
    for process in read_state_if_readable(Layout(data_dir)).processes if data_dir else ():
        running = find(process.identity) if process.identity else None
        if running is not None:
            measured[process.name] = _of(running)
    return measured


def between(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> dict[str, Cost]:
    """What each has used from one moment to the other; a process that was started anew counts from its start."""
    costs = {}
    for name, now in after.items():
        earlier = before.get(name)
        used_before = earlier.cpu_seconds if earlier and earlier.pid == now.pid else 0.0
        costs[name] = Cost(now.cpu_seconds - used_before, now.rss_bytes)
    return costs


def _of(process: psutil.Process) -> Usage:
    cpu_seconds, rss_bytes = 0.0, 0
    own = process.pid
    # A server may be a script whose child does the work. The generator's children are none of it.
    family = [process] if own == psutil.Process().pid else [process, *process.children(recursive=True)]
    for member in family:
        try:
            with member.oneshot():
                times = member.cpu_times()
                cpu_seconds += times.user + times.system
                rss_bytes += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return Usage(own, cpu_seconds, rss_bytes)

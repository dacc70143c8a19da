"""The CPU time and the memory that the processes of a stack on this machine use."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from operations.stack.layout import Layout
from operations.stack.processes import find
from operations.stack.state import read_state_if_readable

GENERATOR = "load"
"""The name of this process in the figures."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources that a process and its children have used so far."""

    pid: int
    cpu_seconds: float
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """The CPU time that a process used during the test, and its memory at the end."""

    cpu_seconds: float
    rss_bytes: int


def measure_usage(data_dir: Path | None) -> dict[str, Usage]:
    """Measure this process and, if a data directory is given, each process of the stack in it."""
    measured = {GENERATOR: usage_of(psutil.Process())}
    for process in read_state_if_readable(Layout(data_dir)).processes if data_dir else ():
        running = find(process.identity) if process.identity else None
        if running is not None:
            measured[process.name] = usage_of(running)
    return measured


def cost_between(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> dict[str, Cost]:
    """Return the cost of each process between two measurements; a restarted process counts from its start."""
    costs = {}
    for name, now in after.items():
        earlier = before.get(name)
        used_before = earlier.cpu_seconds if earlier and earlier.pid == now.pid else 0.0
        costs[name] = Cost(now.cpu_seconds - used_before, now.rss_bytes)
    return costs


def usage_of(process: psutil.Process) -> Usage:
    """Measure a process and its children; of this process, itself alone."""
    cpu_seconds, rss_bytes = 0.0, 0
    pid = process.pid
    # A server may be a script whose child does the work. The children of this process are not part of the load test.
    family = [process] if pid == psutil.Process().pid else [process, *process.children(recursive=True)]
    for member in family:
        try:
            with member.oneshot():
                times = member.cpu_times()
                cpu_seconds += times.user + times.system
                rss_bytes += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return Usage(pid, cpu_seconds, rss_bytes)

"""How a stack is right now: what its data directory remembers, checked against the processes and servers.

Where no stack runs in the data directory, it is the stack that the environment names, in containers for example.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from operations.reading.reachability import amqp_missing, mongodb_missing
from operations.stack.layout import AMQP_URL_VARIABLE, DATABASE_PREFIX_VARIABLE, MONGODB_URL_VARIABLE, Layout
from operations.stack.processes import find
from operations.stack.services import PROCESSES, probe_readiness
from operations.stack.state import ProcessState, State, read_state


@dataclass(frozen=True)
class NamedStack(State):
    """A stack that was not started by `ordersaga up`: the environment names its servers and services."""

    @property
    def running(self) -> bool:
        """Always true: whether its processes are ready is known only by asking them."""
        return True


@dataclass(frozen=True)
class ProcessStatus:
    """One process: `missing` is None when it is ready, else one line that says why not."""

    process: ProcessState
    missing: str | None


def named_stack(environment: Mapping[str, str]) -> NamedStack | None:
    """Return the stack that the URLs of both servers and of at least one service name, if all of these are set."""
    urls = {
        "mongodb": environment.get(MONGODB_URL_VARIABLE),
        "rabbitmq": environment.get(AMQP_URL_VARIABLE),
        **{name: environment.get(f"ORDERSAGA_{name.upper()}_URL") for name in PROCESSES},
    }
    named = tuple(ProcessState(name, url) for name, url in urls.items() if url)
    if not urls["mongodb"] or not urls["rabbitmq"] or len(named) == len(("mongodb", "rabbitmq")):
        return None
    return NamedStack(
        phase="ready",
        mongodb_url=urls["mongodb"],
        amqp_url=urls["rabbitmq"],
        database_prefix=environment.get(DATABASE_PREFIX_VARIABLE) or State.database_prefix,
        processes=named,
    )


async def check_stack(layout: Layout, environment: Mapping[str, str] = os.environ) -> tuple[State, list[ProcessStatus]]:
    """Return the stack's state and how each of its listed processes is."""
    state = read_state(layout)
    if not state.running and (named := named_stack(environment)):
        missing = await asyncio.gather(*(_unanswered(process.url or "") for process in named.processes))
        return named, [ProcessStatus(*pair) for pair in zip(named.processes, missing, strict=True)]
    listed = [process for process in state.processes if process.url is not None]
    missing = await asyncio.gather(*(_missing(process) for process in listed))
    return state, [ProcessStatus(process, reason) for process, reason in zip(listed, missing, strict=True)]


async def _missing(process: ProcessState) -> str | None:
    if process.identity is None or find(process.identity) is None:
        return "does not run" if process.detail in ("ready", "starts") else process.detail
    return await _unanswered(process.url or "")


async def _unanswered(url: str) -> str | None:
    if url.startswith("mongodb"):
        return await mongodb_missing(url)
    if url.startswith("amqp"):
        return await amqp_missing(url)
    return await asyncio.to_thread(probe_readiness, url)


def all_ready(state: State, processes: list[ProcessStatus]) -> bool:
    """Whether the stack is supervised and everything in it is ready."""
    return state.running and bool(processes) and all(status.missing is None for status in processes)


def as_json(layout: Layout, state: State, processes: list[ProcessStatus]) -> dict[str, Any]:
    """Return what `ordersaga status --json` prints."""
    running = state.running
    return {
        "dataDirectory": None if isinstance(state, NamedStack) else str(layout.root),
        "phase": state.phase if running else "stopped",
        "ready": all_ready(state, processes),
        "supervisorPid": state.supervisor.pid if running and state.supervisor else None,
        "mongodbUrl": state.mongodb_url if running else None,
        "amqpUrl": state.amqp_url if running else None,
        "databasePrefix": state.database_prefix,
        "processes": [_process_as_json(layout, state, status) for status in processes] if running else [],
    }


def _process_as_json(layout: Layout, state: State, status: ProcessStatus) -> dict[str, Any]:
    process = status.process
    return {
        "name": process.name,
        "pid": process.identity.pid if process.identity else None,
        "url": process.url,
        "ready": status.missing is None,
        "detail": status.missing or "ready",
        "restarts": process.restarts,
        "log": None if isinstance(state, NamedStack) else str(layout.logs / f"{process.name}.log"),
    }

"""How a stack is right now: what its data directory remembers, checked against the processes and servers."""

import asyncio
from dataclasses import dataclass
from typing import Any

from operations.native.layout import Layout
from operations.native.processes import find
from operations.native.reachability import amqp_missing, mongodb_missing
from operations.native.services import probe_readiness
from operations.native.state import ProcessState, State, read_state


@dataclass(frozen=True)
class ProcessStatus:
    """One process: `missing` is None when it is ready, else one line that says why not."""

    process: ProcessState
    missing: str | None


async def check_stack(layout: Layout) -> tuple[State, list[ProcessStatus]]:
    """Return the stack's state and how each of its listed processes is."""
    state = read_state(layout)
    listed = [process for process in state.processes if process.url is not None]
    missing = await asyncio.gather(*(_missing(process) for process in listed))
    return state, [ProcessStatus(process, reason) for process, reason in zip(listed, missing, strict=True)]


async def _missing(process: ProcessState) -> str | None:
    if process.identity is None or find(process.identity) is None:
        return "does not run" if process.detail in ("ready", "starts") else process.detail
    url = process.url or ""
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
        "dataDirectory": str(layout.root),
        "phase": state.phase if running else "stopped",
        "ready": all_ready(state, processes),
        "supervisorPid": state.supervisor.pid if running and state.supervisor else None,
        "mongodbUrl": state.mongodb_url if running else None,
        "amqpUrl": state.amqp_url if running else None,
        "databasePrefix": state.database_prefix,
        "processes": [_process_as_json(layout, status) for status in processes] if running else [],
    }


def _process_as_json(layout: Layout, status: ProcessStatus) -> dict[str, Any]:
    process = status.process
    return {
        "name": process.name,
        "pid": process.identity.pid if process.identity else None,
        "url": process.url,
        "ready": status.missing is None,
        "detail": status.missing or "ready",
        "restarts": process.restarts,
        "log": str(layout.logs / f"{process.name}.log"),
    }

"""Checks the processes and servers of a stack against the state in its data directory.

If no stack runs in the data directory, the stack in the environment is checked, for example one in containers.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from operations.errors import UnreachableError
from operations.reading.reachability import amqp_missing, mongodb_missing
from operations.stack.environment import with_values_for_commands
from operations.stack.layout import AMQP_URL_VARIABLE, DATABASE_PREFIX_VARIABLE, MONGODB_URL_VARIABLE, Layout
from operations.stack.processes import find
from operations.stack.services import Answer, ask_readiness
from operations.stack.state import ProcessState, State, read_state
from shared.errors import StartError
from shared.services import PROCESSES
from shared.tls import client_context
from shared.urls import hide_credentials


@dataclass(frozen=True)
class ExternalStack(State):
    """A stack that `ordersaga up` did not start; the environment has the URLs of its servers and services."""

    @property
    def running(self) -> bool:
        """Always True: only a request to its processes can show whether they are ready."""
        return True


@dataclass(frozen=True)
class ProcessStatus:
    """The status of a process; `unhealthy_reason` is None if it is ready.

    `degraded` says what does not work at the moment although it is ready, None if everything works. `paused` says since
    when and until when the consumption of its inbox is paused.
    """

    process: ProcessState
    unhealthy_reason: str | None
    degraded: str | None = None
    paused: str | None = None


def external_stack(environment: Mapping[str, str]) -> ExternalStack | None:
    """Return the stack in the environment if it has the URLs of both servers and of at least one service.

    Raises UnreachableError if a file that the environment names for one of them cannot be used.
    """
    try:
        environment = with_values_for_commands(environment)
        client_context(environment)
    except StartError as error:
        raise UnreachableError(str(error)) from None
    urls = {
        "mongodb": environment.get(MONGODB_URL_VARIABLE),
        "rabbitmq": environment.get(AMQP_URL_VARIABLE),
        **{name: environment.get(process.url_variable) for name, process in PROCESSES.items()},
    }
    named = tuple(ProcessState(name, url) for name, url in urls.items() if url)
    if not urls["mongodb"] or not urls["rabbitmq"] or len(named) == len(("mongodb", "rabbitmq")):
        return None
    return ExternalStack(
        phase="ready",
        mongodb_url=urls["mongodb"],
        amqp_url=urls["rabbitmq"],
        database_prefix=environment.get(DATABASE_PREFIX_VARIABLE) or State.database_prefix,
        processes=named,
    )


async def check_stack(layout: Layout, environment: Mapping[str, str] = os.environ) -> tuple[State, list[ProcessStatus]]:
    """Return the state of the stack and the status of each listed process."""
    state = read_state(layout)
    if not state.running and (external := external_stack(environment)):
        answers = await asyncio.gather(*(_check_url(process.url or "") for process in external.processes))
        return external, [ProcessStatus(each, *found) for each, found in zip(external.processes, answers, strict=True)]
    listed = [process for process in state.processes if process.url is not None]
    answers = await asyncio.gather(*(_check_process(process, state) for process in listed))
    return state, [ProcessStatus(each, *found) for each, found in zip(listed, answers, strict=True)]


async def _check_process(process: ProcessState, state: State) -> Answer:
    if process.identity is None or find(process.identity) is None:
        return Answer("does not run" if process.detail in ("ready", "starting") else process.detail)
    return await _check_url(process.url or "", is_member=state.cluster)


async def _check_url(url: str, *, is_member: bool = False) -> Answer:
    if url.startswith("mongodb"):
        return Answer(await mongodb_missing(url, is_member=is_member))
    if url.startswith("amqp"):
        return Answer(await amqp_missing(url))
    return await asyncio.to_thread(ask_readiness, url)


def all_ready(state: State, processes: list[ProcessStatus]) -> bool:
    """Return whether the stack has a supervisor and all its processes are ready."""
    return state.running and bool(processes) and all(status.unhealthy_reason is None for status in processes)


def as_json(layout: Layout, state: State, processes: list[ProcessStatus]) -> dict[str, Any]:
    """Return the JSON document of `ordersaga status --json`, without passwords."""
    running = state.running
    return {
        "dataDirectory": None if isinstance(state, ExternalStack) else str(layout.root),
        "phase": state.phase if running else "stopped",
        "ready": all_ready(state, processes),
        "supervisorPid": state.supervisor.pid if running and state.supervisor else None,
        "mongodbUrl": _shown(state.mongodb_url) if running else None,
        "amqpUrl": _shown(state.amqp_url) if running else None,
        "grpcPort": int(state.grpc_port) if running and state.grpc_port else None,
        "databasePrefix": state.database_prefix,
        "cluster": state.cluster if running else False,
        "processes": [_process_as_json(layout, state, status) for status in processes] if running else [],
    }


def _shown(url: str | None) -> str | None:
    return hide_credentials(url) if url else url


def _process_as_json(layout: Layout, state: State, status: ProcessStatus) -> dict[str, Any]:
    process = status.process
    return {
        "name": process.name,
        "pid": process.identity.pid if process.identity else None,
        "url": _shown(process.url),
        "ready": status.unhealthy_reason is None,
        "detail": status.unhealthy_reason or (f"degraded: {status.degraded}" if status.degraded else "ready"),
        "paused": status.paused,
        "restarts": process.restarts,
        "log": None if isinstance(state, ExternalStack) else str(layout.logs / f"{process.name}.log"),
    }

"""Runs a stack in this process, from its start to its end."""

import asyncio
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from operations.stack.access import OFF
from operations.stack.api_keys import KeyFileError
from operations.stack.environment import is_set, unknown_settings
from operations.stack.files import PRIVATE_UMASK, restrict
from operations.stack.layout import (
    AMQP_URL_VARIABLE,
    AUTH_VARIABLE,
    CLUSTER_SIZE,
    DATA_DIRECTORY_VARIABLE,
    MONGODB_URL_VARIABLE,
    Layout,
    remember_as_last_used,
)
from operations.stack.orphans import end_orphans
from operations.stack.plan import make_plan
from operations.stack.ports import PortClaims, PortTakenError
from operations.stack.processes import identify
from operations.stack.program import ServerMissingError
from operations.stack.relocation import MovedError, check_location
from operations.stack.start import StackStartError
from operations.stack.state import AlreadyRunsError, State, UnreadableStateError, acquire_lock, read_state, write_state
from operations.stack.supervisor import READY_WITHIN_SECONDS, Supervisor
from shared.services import PROCESSES

CANNOT_RUN = (AlreadyRunsError, KeyFileError, MovedError, PortTakenError, ServerMissingError, StackStartError)
"""The errors for which a stack cannot run; their messages are for the user."""


@dataclass(frozen=True)
class StackOptions:
    """The options of `ordersaga up`; without an offset, `plan` chooses the ports."""

    root: Path
    services: tuple[str, ...]
    fresh: bool = False
    port_offset: int | None = None
    no_auth: bool = False
    """Answer without authentication, whatever the environment says."""
    grpc: bool = False
    """Serve gRPC too, on a port that `plan` chooses."""
    cluster: bool = False
    """Run three of each server. A data directory with a cluster stays one without this."""


class StackListener(Protocol):
    """Receives the changes of a stack."""

    def on_change(self, state: State) -> None:
        """Receive a new state."""

    def on_event(self, text: str) -> None:
        """Receive an event, such as the end or the restart of a program."""


def run_stack(options: StackOptions, listener: StackListener, environment: Mapping[str, str] = os.environ) -> None:
    """Run a stack until SIGINT, SIGTERM or SIGHUP; return when all its processes have ended.

    Raises one of CANNOT_RUN.
    """
    layout = Layout(options.root)
    os.umask(PRIVATE_UMASK)  # also for MongoDB, RabbitMQ and the services
    try:
        with acquire_lock(layout), PortClaims() as claims:
            supervisor = _prepare(layout, options, listener, environment, claims)
            asyncio.run(_supervise(supervisor))
    except OSError as error:
        raise cannot_run(layout, error) from error


def cannot_run(layout: Layout, error: OSError) -> StackStartError:
    """Return a StackStartError for an error of the operating system."""
    return StackStartError(f"the stack in {layout.root} cannot run: {error}")


def _prepare(
    layout: Layout, options: StackOptions, listener: StackListener, environment: Mapping[str, str], claims: PortClaims
) -> Supervisor:
    """End orphans of an earlier run, prepare the data directory and return the supervisor of the planned stack."""
    if options.no_auth:
        environment = {**environment, AUTH_VARIABLE: OFF}
    if unknown := unknown_settings(environment, (kind.settings for kind in PROCESSES.values())):
        listener.on_event(f"ignored, because no program has such a setting: {', '.join(unknown)}")
    stored = _stored_state(layout, listener)
    claims.reserve(stored.ports.values())
    if ended := end_orphans(layout, stored):
        listener.on_event(f"ended {ended} processes that a killed supervisor left behind")
    if options.fresh:
        _delete_data(layout, environment)
    elif stored.is_new_cluster:
        _delete_servers(layout)
        listener.on_event("the servers of a cluster were never all ready here, so they start anew, without data")
    check_location(layout)
    for directory in (layout.logs, *layout.servers):
        restrict(directory)
    _rotate_logs(layout)
    has_data = any(directory.exists() for directory in layout.servers)
    plan = make_plan(
        layout,
        options.services,
        options.port_offset,
        stored,
        claims,
        environment,
        grpc=options.grpc,
        cluster=is_cluster(layout, options, listener, environment),
    )
    is_new_cluster = plan.state.cluster and not has_data
    state = replace(plan.state, phase="starting", supervisor=identify(os.getpid()), is_new_cluster=is_new_cluster)
    write_state(layout, state)  # a full disk fails the start here already
    _remember_as_last_used(layout, listener, environment)
    ready_within = READY_WITHIN_SECONDS * (CLUSTER_SIZE if state.cluster else 1)
    return Supervisor(layout, plan.stages, state, listener.on_change, listener.on_event, ready_within)


def is_cluster(layout: Layout, options: StackOptions, listener: StackListener, environment: Mapping[str, str]) -> bool:
    """Return whether to run a cluster: a single server would not be a majority of one whose data is here."""
    has_servers = not all(is_set(environment, variable) for variable in (MONGODB_URL_VARIABLE, AMQP_URL_VARIABLE))
    if options.cluster or not (layout.has_cluster and has_servers):
        return options.cluster
    listener.on_event("the data is that of a cluster, so it runs as one; --fresh deletes the data")
    return True


def _stored_state(layout: Layout, listener: StackListener) -> State:
    """Return the stored state; without it, ports are chosen again and processes are found by their mark."""
    try:
        return read_state(layout)
    except UnreadableStateError as error:
        listener.on_event(f"continues without the stored state: {error.__cause__}")
        return State()


def _remember_as_last_used(layout: Layout, listener: StackListener, environment: Mapping[str, str]) -> None:
    try:
        remember_as_last_used(layout.root, environment)
    except OSError as error:
        listener.on_event(f"other commands need --data-dir or {DATA_DIRECTORY_VARIABLE} to find this stack: {error}")


async def _supervise(supervisor: Supervisor) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.request_stop)
    await supervisor.run()


def _delete_data(layout: Layout, environment: Mapping[str, str]) -> None:
    """Delete the data and the logs of a stopped stack, and no other file in its directory.

    The key is deleted with the data that it decrypts, so it stays if the data is in an external MongoDB.
    """
    _delete_servers(layout)
    shutil.rmtree(layout.logs, ignore_errors=True)
    layout.state_file.unlink(missing_ok=True)
    layout.location_file.unlink(missing_ok=True)
    if not is_set(environment, MONGODB_URL_VARIABLE):
        layout.credentials_key.unlink(missing_ok=True)


def _delete_servers(layout: Layout) -> None:
    for directory in layout.servers:
        shutil.rmtree(directory, ignore_errors=True)


def _rotate_logs(layout: Layout) -> None:
    """Keep the logs of the previous run under another name."""
    for log in layout.logs.glob("*.log"):
        log.replace(log.with_suffix(".log.old"))

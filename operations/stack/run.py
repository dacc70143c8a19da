"""One stack from its start to its end, in this process."""

import asyncio
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from operations.stack.environment import unknown_settings
from operations.stack.files import PRIVATE_UMASK, restrict
from operations.stack.layout import (
    DATA_DIRECTORY_VARIABLE,
    MONGODB_URL_VARIABLE,
    Layout,
    remember_as_last_used,
)
from operations.stack.origin import MovedError, check_origin
from operations.stack.orphans import end_leftovers
from operations.stack.plan import make_plan
from operations.stack.ports import PortClaims, PortTakenError
from operations.stack.processes import identify
from operations.stack.program import ServerMissingError
from operations.stack.services import PROCESSES
from operations.stack.start import StartError
from operations.stack.state import AlreadyRunsError, State, UnreadableStateError, hold, read_state, write_state
from operations.stack.supervisor import Supervisor

CANNOT_RUN = (AlreadyRunsError, MovedError, PortTakenError, ServerMissingError, StartError)
"""Every reason for which a stack does not run; the message of each is for the user."""


@dataclass(frozen=True)
class Options:
    """What `ordersaga up` was asked for; without an offset, ports are chosen as `plan` says."""

    root: Path
    services: tuple[str, ...]
    fresh: bool = False
    port_offset: int | None = None


class View(Protocol):
    """Who watches a stack."""

    def change(self, state: State) -> None:
        """Hear of a new state."""

    def event(self, text: str) -> None:
        """Hear of something that happened: a death, a restart."""


def run_stack(options: Options, view: View, environment: Mapping[str, str] = os.environ) -> None:
    """Run a stack until SIGINT, SIGTERM or SIGHUP; returns when every process of it has ended.

    Raises one of CANNOT_RUN.
    """
    layout = Layout(options.root)
    os.umask(PRIVATE_UMASK)  # also for MongoDB, RabbitMQ and the services
    try:
        with hold(layout), PortClaims() as claims:
            supervisor = _prepare(layout, options, view, environment, claims)
            asyncio.run(_supervise(supervisor))
    except OSError as error:
        raise cannot_run(layout, error) from error


def cannot_run(layout: Layout, error: OSError) -> StartError:
    """Return the error that says why the system does not let a stack run."""
    return StartError(f"the stack in {layout.root} cannot run: {error}")


def _prepare(
    layout: Layout, options: Options, view: View, environment: Mapping[str, str], claims: PortClaims
) -> Supervisor:
    """End what an earlier run left, make the data directory ready and return what runs the planned stack."""
    if unknown := unknown_settings(environment, (kind.settings for kind in PROCESSES.values())):
        view.event(f"not passed on, as no program has such a setting: {', '.join(unknown)}")
    remembered = _remembered(layout, view)
    if ended := end_leftovers(layout, remembered):
        view.event(f"ended {ended} processes that a killed supervisor had left behind")
    if options.fresh:
        _wipe(layout, environment)
    check_origin(layout)
    for directory in (layout.logs, layout.mongodb, layout.rabbitmq):
        restrict(directory)
    _set_old_logs_aside(layout)
    plan = make_plan(layout, options.services, options.port_offset, remembered, claims, environment)
    state = replace(plan.state, phase="starting", supervisor=identify(os.getpid()))
    write_state(layout, state)  # a disk that is full already ends the start
    _remember_as_last_used(layout, view, environment)
    return Supervisor(layout, plan.stages, state, view.change, view.event)


def _remembered(layout: Layout, view: View) -> State:
    """Return the remembered state; without it ports are chosen again, and processes are found by their mark."""
    try:
        return read_state(layout)
    except UnreadableStateError as error:
        view.event(f"continues without the remembered state: {error.__cause__}")
        return State()


def _remember_as_last_used(layout: Layout, view: View, environment: Mapping[str, str]) -> None:
    try:
        remember_as_last_used(layout.root, environment)
    except OSError as error:
        view.event(f"other commands need --data-dir or {DATA_DIRECTORY_VARIABLE} to find this stack: {error}")


async def _supervise(supervisor: Supervisor) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.request_stop)
    await supervisor.run()


def _wipe(layout: Layout, environment: Mapping[str, str]) -> None:
    """Delete the data and the logs of a stack that does not run; nothing else that may lie in its directory.

    The key goes with the data that it opens: not where these lie in a MongoDB that is not the stack's own.
    """
    for directory in (layout.mongodb, layout.rabbitmq, layout.logs):
        shutil.rmtree(directory, ignore_errors=True)
    layout.state_file.unlink(missing_ok=True)
    layout.origin_file.unlink(missing_ok=True)
    if not environment.get(MONGODB_URL_VARIABLE):
        layout.credentials_key.unlink(missing_ok=True)


def _set_old_logs_aside(layout: Layout) -> None:
    """Begin new logs, and keep those of the run before."""
    for log in layout.logs.glob("*.log"):
        log.replace(log.with_suffix(".log.old"))

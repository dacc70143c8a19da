"""The state of a stack, stored in its data directory: its ports, its supervisor and its processes.

The file is replaced atomically, so a reader never sees half a state. It is written as soon as a process was started:
after the death of the supervisor, it lists the processes to end.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal

import psutil
from pydantic import Field, TypeAdapter, ValidationError

from operations.errors import CommandError
from operations.stack.files import open_private, write_private
from operations.stack.layout import Layout
from operations.stack.processes import Identity, find
from operations.stack.relocation import has_moved
from shared.topology import DEFAULT_EVENTS_RETENTION, WHOLE, TopologyOptions

Phase = Literal["starting", "ready", "stopping", "stopped", "failed"]


# Checked when a stored state is read.
Port = Annotated[int, Field(ge=1, le=65535)]


class AlreadyRunsError(CommandError):
    """Another supervisor holds the lock of the data directory."""


@dataclass(frozen=True)
class ProcessState:
    """A program of the stack: its process if it runs, and its condition."""

    name: str
    url: str | None = None
    identity: Identity | None = None
    ready: bool = False
    detail: str = "not started yet"
    restarts: int = 0


@dataclass(frozen=True)
class State:
    """The stored state of a stack; `processes` are in the order of their start."""

    node: str = ""
    ports: dict[str, Port] = field(default_factory=dict)
    phase: Phase = "stopped"
    error: str | None = None
    supervisor: Identity | None = None
    mongodb_url: str | None = None
    amqp_url: str | None = None
    database_prefix: str = "ordersaga"
    processes: tuple[ProcessState, ...] = ()
    needs_keys: bool = True
    """False if the services answer everybody on this machine."""
    mongodb_has_users: bool = False
    """True if MongoDB has the users of `database_users`, whose passwords are not in this file."""
    events_retention: str = DEFAULT_EVENTS_RETENTION
    """For how long its broker keeps events; empty if it keeps none."""

    partitions: int = WHOLE
    """Into how many partitions its inboxes are divided."""

    webhooks: bool = True
    """Whether events go to webhooks."""

    grpc_port: str | None = None
    """The port on which the order service serves gRPC, if it does."""

    cluster: bool = False
    """True if it has three of each server that it runs."""

    is_new_cluster: bool = False
    """True until all servers of the first start of a cluster are ready: no service has stored anything on them."""

    @property
    def topology_options(self) -> TopologyOptions:
        """What the settings of the stack decide about the topology of its broker."""
        return TopologyOptions(self.events_retention, self.partitions, self.webhooks)

    @property
    def running(self) -> bool:
        """True if the supervisor is alive."""
        return self.supervisor is not None and find(self.supervisor) is not None

    def with_process(self, changed: ProcessState) -> "State":
        """Return a copy in which this process replaces the one of the same name."""
        kept = tuple(changed if process.name == changed.name else process for process in self.processes)
        return replace(self, processes=kept)


_STORED = TypeAdapter(State)


class UnreadableStateError(CommandError):
    """The stored state cannot be read; the message has the reason and a remedy."""


def read_state(layout: Layout) -> State:
    """Return the stored state; an empty one if there is none or if the directory was moved or copied.

    Raises UnreadableStateError.
    """
    try:
        stored = layout.state_file.read_bytes()
        if has_moved(layout):  # the processes and ports in a copied state belong to the original
            return State()
        return _STORED.validate_json(stored)
    except (FileNotFoundError, NotADirectoryError):
        return State()
    except (OSError, ValidationError) as error:
        raise UnreadableStateError(
            f"{layout.state_file} cannot be read ({_reason(error)}): `ordersaga down` ends its processes, "
            "`ordersaga up` restarts the stack with its data, `ordersaga up --fresh` without"
        ) from error


def _reason(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join([*map(str, first["loc"]), first["msg"]])


def read_state_if_readable(layout: Layout) -> State:
    """Return the stored state, or an empty one if it cannot be read."""
    try:
        return read_state(layout)
    except UnreadableStateError:
        return State()


def write_state(layout: Layout, state: State) -> None:
    """Replace the stored state atomically. URLs in it may contain passwords, so only the owner can read the file.

    Raises OSError.
    """
    write_private(layout.state_file, json.dumps(asdict(state), indent=1).encode())


@contextlib.contextmanager
def acquire_lock(layout: Layout) -> Iterator[None]:
    """Hold the lock of the data directory as its only supervisor; the kernel releases it when the process ends.

    Raises AlreadyRunsError if another process holds it.
    """
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open_private(layout.lock_file, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = find_lock_holder(layout)
            pid = f" (pid {holder.pid})" if holder else ""
            raise AlreadyRunsError(
                f"a stack already runs in {layout.root}{pid}: `ordersaga status` shows it, `ordersaga down` ends it, "
                "--data-dir selects another directory"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the state has the pid too, if it can be written
            file.truncate(0)
            file.write(b"%d\n" % os.getpid())
            file.flush()
        yield


def find_lock_holder(layout: Layout) -> psutil.Process | None:
    """Return the process that holds the lock of the data directory; None if no process holds it.

    The lock itself decides, not the content of the file, which may be a copy or out of date.
    """
    try:
        with layout.lock_file.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        pass
    except (FileNotFoundError, NotADirectoryError):
        return None
    with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
        return psutil.Process(int(layout.lock_file.read_text()))
    supervisor = read_state_if_readable(layout).supervisor
    return find(supervisor) if supervisor else None

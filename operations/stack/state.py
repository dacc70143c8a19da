"""What is remembered of a stack in its data directory: its ports, its supervisor, its processes.

The file is replaced as a whole, so a reader sees one state or the next and never half of one. It is written as
soon as a process is started: who comes after a killed supervisor finds in it what there is to end.
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

from operations.stack.files import open_private, write_private
from operations.stack.layout import Layout
from operations.stack.origin import has_moved
from operations.stack.processes import Identity, find

Phase = Literal["starting", "ready", "stopping", "stopped", "failed"]


# Checked when a stored state is read.
Port = Annotated[int, Field(ge=1, le=65535)]


class AlreadyRunsError(Exception):
    """Another supervisor holds the data directory."""


@dataclass(frozen=True)
class ProcessState:
    """One program of the stack: its process if it runs, and how it is."""

    name: str
    url: str | None = None
    identity: Identity | None = None
    ready: bool = False
    detail: str = "waits for its turn"
    restarts: int = 0


@dataclass(frozen=True)
class State:
    """A stack as its data directory remembers it; `processes` are in the order of their start."""

    node: str = ""
    ports: dict[str, Port] = field(default_factory=dict)
    phase: Phase = "stopped"
    error: str | None = None
    supervisor: Identity | None = None
    mongodb_url: str | None = None
    amqp_url: str | None = None
    database_prefix: str = "ordersaga"
    processes: tuple[ProcessState, ...] = ()

    @property
    def running(self) -> bool:
        """Whether its supervisor lives."""
        return self.supervisor is not None and find(self.supervisor) is not None

    def with_process(self, changed: ProcessState) -> "State":
        """Return the state with this process in the place of the one of the same name."""
        kept = tuple(changed if process.name == changed.name else process for process in self.processes)
        return replace(self, processes=kept)


_STORED = TypeAdapter(State)


class UnreadableStateError(Exception):
    """The remembered state cannot be read; the message says why, and what helps."""


def read_state(layout: Layout) -> State:
    """Return the remembered state; that of a stack that never ran when there is none, or when it is another stack's.

    Raises UnreadableStateError.
    """
    try:
        stored = layout.state_file.read_bytes()
        if has_moved(layout):  # the processes and ports of a copied state are the original's
            return State()
        return _STORED.validate_json(stored)
    except (FileNotFoundError, NotADirectoryError):
        return State()
    except (OSError, ValidationError) as error:
        raise UnreadableStateError(
            f"{layout.state_file} cannot be read ({_reason(error)}): `ordersaga down` ends what still runs there, "
            "`ordersaga up` starts the stack again with its data, `ordersaga up --fresh` without"
        ) from error


def _reason(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join([*map(str, first["loc"]), first["msg"]])


def read_state_if_readable(layout: Layout) -> State:
    """Return the remembered state, and that of a stack that never ran when it cannot be read."""
    try:
        return read_state(layout)
    except UnreadableStateError:
        return State()


def write_state(layout: Layout, state: State) -> None:
    """Replace the remembered state, all of it or nothing. The file may hold a password in a URL: for its owner only.

    Raises OSError.
    """
    write_private(layout.state_file, json.dumps(asdict(state), indent=1).encode())


@contextlib.contextmanager
def hold(layout: Layout) -> Iterator[None]:
    """Hold the data directory as its only supervisor; the kernel lets go of it when the process ends.

    Raises AlreadyRunsError when another one holds it.
    """
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open_private(layout.lock_file, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = find_holder(layout)
            pid = f" (pid {holder.pid})" if holder else ""
            raise AlreadyRunsError(
                f"a stack already runs in {layout.root}{pid}: `ordersaga status` shows it, `ordersaga down` ends it, "
                "--data-dir names another directory"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the state names the supervisor too, if it can be written
            file.truncate(0)
            file.write(b"%d\n" % os.getpid())
            file.flush()
        yield


def find_holder(layout: Layout) -> psutil.Process | None:
    """Return the process that holds the data directory, whatever its state says; None when there is none.

    The lock itself is asked, and not only what is written in it: that may be copied, or left over.
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

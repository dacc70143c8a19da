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
from typing import Any, Literal

from operations.native.layout import Layout
from operations.native.processes import Identity, find

Phase = Literal["starting", "ready", "stopping", "stopped", "failed"]


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
    ports: dict[str, int] = field(default_factory=dict)
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


def read_state(layout: Layout) -> State:
    """Return the remembered state; that of a stack that never ran when there is none."""
    try:
        stored = json.loads(layout.state_file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return State()
    processes = tuple(
        ProcessState(**{**process, "identity": _identity(process["identity"])}) for process in stored["processes"]
    )
    return State(**{**stored, "supervisor": _identity(stored["supervisor"]), "processes": processes})


def _identity(stored: dict[str, Any] | None) -> Identity | None:
    return Identity(**stored) if stored else None


def write_state(layout: Layout, state: State) -> None:
    """Replace the remembered state, all of it or nothing. The file may hold a password in a URL: for its owner only."""
    written = layout.state_file.with_suffix(".new")
    with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(state), file, indent=1)
    written.replace(layout.state_file)


@contextlib.contextmanager
def hold(layout: Layout) -> Iterator[None]:
    """Hold the data directory as its only supervisor; the kernel lets go of it when the process ends.

    Raises AlreadyRunsError when another one holds it.
    """
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with layout.lock_file.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            supervisor = read_state(layout).supervisor
            pid = f" (pid {supervisor.pid})" if supervisor else ""
            raise AlreadyRunsError(
                f"a stack already runs in {layout.root}{pid}: `ordersaga status` shows it, `ordersaga down` ends it, "
                "--data-dir names another directory"
            ) from None
        yield

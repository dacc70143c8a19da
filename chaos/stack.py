"""The stack that faults happen to, and its processes by name."""

import asyncio
import contextlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pymongo

from chaos.clocks import FakedClock
from chaos.disks import disk_of
from chaos.further_processes import FurtherProcess
from operations.doctor.broker_cluster import check_nodes
from operations.settings import Stack, locate_stack
from operations.stack.background import start_in_background
from operations.stack.database_users import ADMINISTRATOR, load_users
from operations.stack.layout import CLUSTER_PORTS, CLUSTER_SIZE, Layout, numbered
from operations.stack.ports import is_free
from operations.stack.processes import find
from operations.stack.queue_members import cluster_status, list_members
from operations.stack.rabbitmq import RabbitMQ, find_rabbitmq
from operations.stack.rabbitmq_cluster import RabbitMQCluster
from operations.stack.run import StackOptions
from operations.stack.state import ProcessState, read_state
from operations.stack.temporary import StackDisplay, end, own_environment
from shared.broker_rights import VIRTUAL_HOST
from shared.services import PROCESSES, SERVICES

BACK_WITHIN = 300.0
"""Seconds within which a process that was ended is back, on a machine that is busy with the others as well."""
POLL_SECONDS = 0.1
COMMAND_MS = 10_000
FOLLOWS_WITHIN = timedelta(seconds=15)
"""How far a member may be behind by the clock: when nobody writes, the primary does every 10 s."""
OFFSETS = range(200, 5600, 100)
"""What may be added to all ports: the sums are below the range that Linux uses for outgoing connections."""


class ChaosStack:
    """The processes of a running stack, also those that were started beside it. What is killed is started again."""

    def __init__(self, directory: Path) -> None:
        self.layout = Layout(directory)
        state = read_state(self.layout)
        self.is_cluster = state.cluster
        numbers = range(1, CLUSTER_SIZE + 1 if state.cluster else 2)
        self.nodes: Sequence[str] = [numbered("rabbitmq", number) for number in numbers]
        self.members: Sequence[str] = [numbered("mongodb", number) for number in numbers]
        self._further: Mapping[str, FurtherProcess] = {}
        kind = RabbitMQCluster if state.cluster else RabbitMQ
        self.broker: RabbitMQCluster | RabbitMQ = kind(find_rabbitmq(), self.layout.rabbitmq, state.node, state.ports)

    @property
    def location(self) -> Stack:
        """The URLs of its servers and services, as commands find them."""
        return locate_stack(self.layout.root, {})

    def add(self, further: Mapping[str, FurtherProcess]) -> None:
        """Let further processes of services belong to it, by their names."""
        self._further = further

    def processes_of(self, service: str) -> list[str]:
        """Return the names of all processes of a service."""
        return [service, *(name for name in self._further if name.rpartition("-")[0] == service)]

    @property
    def clocks(self) -> dict[str, FakedClock]:
        """The clocks that can jump, by the names of their processes."""
        return {name: process.clock for name, process in self._further.items() if process.clock is not None}

    @property
    def names(self) -> list[str]:
        """The names of all servers and of all processes of services."""
        return [*self.nodes, *self.members, *(name for service in SERVICES for name in self.processes_of(service))]

    def urls_of(self, service: str) -> list[str]:
        """Return the addresses of all processes of a service."""
        return [str(self.process(name).url) for name in self.processes_of(service)]

    # --- Single processes. ---

    def process(self, name: str) -> ProcessState:
        """Return the state of a process."""
        if name in self._further:
            return self._further[name].state
        return next(each for each in read_state(self.layout).processes if each.name == name)

    def find(self, name: str) -> psutil.Process:
        """Return a process that runs. Raises LookupError if it does not."""
        identity = self.process(name).identity
        if identity is None or (found := find(identity)) is None:
            raise LookupError(f"{name} does not run")
        return found

    def supervisor(self) -> psutil.Process:
        """Return the process that starts servers and services again. Raises LookupError if it does not run."""
        identity = read_state(self.layout).supervisor
        if identity is None or (found := find(identity)) is None:
            raise LookupError("the supervisor does not run")
        return found

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process. Raises LookupError if it does not run."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.find(name).send_signal(number)

    def runs(self, name: str) -> bool:
        """Return whether a process is there and ready."""
        state = self.process(name)
        return state.ready and state.identity is not None and find(state.identity) is not None

    def require(self, names: Collection[str]) -> None:
        """Raise LookupError unless all of these run, so that the loss of one leaves the others."""
        if away := sorted(name for name in names if not self.runs(name)):
            raise LookupError(f"{', '.join(away)} is away")

    async def restart(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a process by a signal, and wait until it is back. Raises LookupError or TimeoutError."""
        before = self.process(name)
        self.send(name, number)
        deadline = time.monotonic() + BACK_WITHIN
        while (now := self.process(name)).identity == before.identity or not now.ready:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is not back after {BACK_WITHIN:g} s: {now.detail}")
            await asyncio.sleep(POLL_SECONDS)

    async def away(self) -> list[str]:
        """Wait until all processes run; return the names of those that are not back in time."""
        deadline = time.monotonic() + BACK_WITHIN
        while missing := [name for name in self.names if not self.runs(name)]:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
        return sorted(missing)

    # --- Servers and their roles. ---

    async def leader(self, queue: str) -> str:
        """Return the name of the node that leads a queue. Raises LookupError if none is known."""
        try:
            queues = await asyncio.to_thread(list_members, self.broker.control, VIRTUAL_HOST)
        except (OSError, subprocess.SubprocessError) as error:
            raise LookupError(f"rabbitmqctl failed: {error}") from error
        leaders = {found.name: found.leader for found in queues}
        return {node.node: node.name for node in self.broker.nodes}[leaders[queue]]

    async def primary(self) -> str:
        """Return the name of the member that is the primary. Raises LookupError for none."""
        for name in self.members:
            if (said := await self.command(name, "hello")) and said.get("isWritablePrimary"):
                return name
        raise LookupError("the replica set has no primary")

    async def spare_one(self, servers: Sequence[str]) -> None:
        """Raise LookupError unless all nodes, or all members, run and work together: then they can do without one."""
        self.require(servers)
        if servers is self.nodes:
            await self.whole()  # a node may run, but be parted from the others
        if servers is self.members:
            await self.require_followers()  # a member may run, but lag behind a primary that is taken away

    async def require_followers(self) -> None:
        """Raise LookupError unless all members follow one primary: after a fault, one may have to catch up first."""
        if not self.is_cluster:
            return
        status = await self.command(self.members[0], "replSetGetStatus")
        if status is None or (astray := not_following(status)):
            raise LookupError(f"members that do not follow: {', '.join(astray) if status else 'unknown'}")

    async def command(self, member: str, name: str) -> dict[str, Any] | None:
        """Run a command of the administrator on a member; return None if that ends it, or it refuses."""
        users = load_users(self.layout.secrets, self.location.database_prefix)
        port = read_state(self.layout).ports[member]
        url = users.url(ADMINISTRATOR, f"mongodb://127.0.0.1:{port}/?directConnection=true")
        with contextlib.suppress(pymongo.errors.PyMongoError):
            async with pymongo.AsyncMongoClient[dict[str, Any]](url, timeoutMS=COMMAND_MS) as client:
                return await client.admin.command(name)
        return None

    async def whole(self) -> None:
        """Wait until all nodes of the broker see each other, as `ordersaga doctor` judges it. Raises TimeoutError."""
        deadline = time.monotonic() + BACK_WITHIN
        while self.is_cluster and (wrong := await self.what_is_apart()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the cluster is not whole after {BACK_WITHIN:g} s: {wrong}")
            await asyncio.sleep(0.5)

    async def what_is_apart(self) -> str:
        """Return which nodes do not see each other, in words; an empty text if all do."""
        return await asyncio.to_thread(self._what_is_apart)

    def _what_is_apart(self) -> str:
        try:
            finding = check_nodes(cluster_status(self.broker.control))
        except (OSError, subprocess.SubprocessError) as error:
            return f"rabbitmqctl failed: {error}"
        return "" if finding.outcome == "ok" else finding.detail


def not_following(status: dict[str, Any]) -> list[str]:
    """Return the members that neither lead nor follow, by the status of their set; all of them without a primary."""
    members, now = status["members"], status["date"]
    if not any(member["stateStr"] == "PRIMARY" for member in members):
        return [member["name"] for member in members]
    return [
        member["name"]
        for member in members
        if member["stateStr"] != "PRIMARY"
        and not (member["stateStr"] == "SECONDARY" and now - member["optimeDate"] < FOLLOWS_WITHIN)
    ]


@dataclass(slots=True)
class OwnStack:
    """A stack in a temporary directory, which is deleted at its end unless `keep` is set."""

    directory: Path
    keep: bool = False


@contextlib.contextmanager
def own_stack(
    display: StackDisplay, settings: Mapping[str, str], *, cluster: bool, on_small_disks: Sequence[str] = ()
) -> Iterator[OwnStack]:
    """Start a stack with these settings on free ports in a temporary directory, and end it.

    The servers named have a small disk each. Raises one of `CANNOT_RUN` if it does not start.
    """
    own = OwnStack(Path(tempfile.mkdtemp(prefix="ordersaga-chaos-")))
    layout = Layout(own.directory)
    disks = [disk_of(layout, server) for server in on_small_disks]
    environment = {**own_environment(own.directory), **settings}
    try:
        for disk in disks:
            disk.mount()
        options = StackOptions(own.directory, tuple(PROCESSES), port_offset=_free_offset(), cluster=cluster)
        with display.starting(layout) as listener:
            start_in_background(options, listener, environment)
        yield own
    finally:
        end(layout, display)
        for disk in disks:
            disk.keep() if own.keep else disk.unmount()
        if own.keep:
            display.data_kept(own.directory)
        else:
            shutil.rmtree(own.directory, ignore_errors=True)


def _free_offset() -> int:
    """Return an offset with which all ports are free: those without one are for stacks that people use."""
    ports = [*CLUSTER_PORTS.values(), *(process.port for process in PROCESSES.values())]
    offsets = random.sample(OFFSETS, len(OFFSETS))
    return next((offset for offset in offsets if all(is_free(port + offset) for port in ports)), OFFSETS[0])

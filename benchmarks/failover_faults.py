"""The faults of `benchmarks.failover`: each kills, stops or restarts servers and services of a running cluster."""

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pymongo

from benchmarks.further_processes import FurtherProcess
from operations.doctor.broker_cluster import check_nodes
from operations.stack.layout import Layout
from operations.stack.processes import find
from operations.stack.queue_members import cluster_status, list_members
from operations.stack.rabbitmq import find_rabbitmq
from operations.stack.rabbitmq_cluster import RabbitMQCluster
from operations.stack.state import ProcessState, read_state
from shared.broker_rights import VIRTUAL_HOST

SILENT_SECONDS = 30.0
"""How long a server that is stopped (SIGSTOP) says nothing."""
GATHERED_SECONDS = 5.0
"""The time for clients to connect elsewhere."""
_BACK_WITHIN = 90.0
BROKER_NODES = ("rabbitmq", "rabbitmq-2", "rabbitmq-3")
MEMBERS = ("mongodb", "mongodb-2", "mongodb-3")
SERVICES = ("order", "inventory", "payment", "notification", "provisioning")


class Cluster:
    """The processes of a stack that `ordersaga up --cluster` has started; its supervisor restarts what is killed."""

    def __init__(self, directory: Path) -> None:
        self._layout = Layout(directory)
        state = read_state(self._layout)
        self._further: Mapping[str, FurtherProcess] = {}
        self._broker = RabbitMQCluster(find_rabbitmq(), self._layout.rabbitmq, state.node, state.ports)

    def add(self, further: Mapping[str, FurtherProcess]) -> None:
        """Let further processes be killed, too, by their names."""
        self._further = further

    def process(self, name: str) -> ProcessState:
        """Return the state of a process."""
        if name in self._further:
            return self._further[name].state
        return next(each for each in read_state(self._layout).processes if each.name == name)

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process. Raises LookupError if it does not run."""
        identity = self.process(name).identity
        if identity is None or (found := find(identity)) is None:
            raise LookupError(f"{name} does not run")
        found.send_signal(number)

    async def restarted(self, name: str, before: ProcessState) -> None:
        """Wait until a process that was ended is back and ready. Raises TimeoutError."""
        deadline = time.monotonic() + _BACK_WITHIN
        while (now := self.process(name)).identity == before.identity or not now.ready:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is not back after {_BACK_WITHIN:g} s: {now.detail}")
            await asyncio.sleep(0.1)

    async def restart(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a process by a signal, and wait until it is back. Raises LookupError or TimeoutError."""
        before = self.process(name)
        self.send(name, number)
        await self.restarted(name, before)

    @contextlib.asynccontextmanager
    async def silent(self, name: str) -> AsyncIterator[None]:
        """Stop a process, and continue it at the end."""
        self.send(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(name, signal.SIGCONT)

    def runs(self, name: str) -> bool:
        """Return whether a process is there and ready."""
        found = self.process(name)
        return found.ready and found.identity is not None and find(found.identity) is not None

    async def leader(self, queue: str) -> str:
        """Return the name of the node that leads a queue. Raises OSError, SubprocessError, or LookupError for none."""
        queues = await asyncio.to_thread(list_members, self._broker.control, VIRTUAL_HOST)
        leaders = {found.name: found.leader for found in queues}
        return {node.node: node.name for node in self._broker.nodes}[leaders[queue]]

    async def primary(self) -> str:
        """Return the name of the member that is the primary. Raises LookupError for none."""
        return await asyncio.to_thread(self._primary)

    def _primary(self) -> str:
        for name in MEMBERS:
            with contextlib.suppress(pymongo.errors.PyMongoError):
                url = self.process(name).url
                with pymongo.MongoClient[dict[str, object]](url, serverSelectionTimeoutMS=2000) as client:
                    if client.admin.command("hello").get("isWritablePrimary"):
                        return name
        raise LookupError("the replica set has no primary")

    async def whole(self) -> None:
        """Wait until all nodes of the broker see each other, as `ordersaga doctor` judges it. Raises TimeoutError."""
        deadline = time.monotonic() + _BACK_WITHIN
        while wrong := await asyncio.to_thread(self._what_is_apart):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the cluster is not whole after {_BACK_WITHIN:g} s: {wrong}")
            await asyncio.sleep(0.5)

    def _what_is_apart(self) -> str:
        try:
            finding = check_nodes(cluster_status(self._broker.control))
        except (OSError, subprocess.SubprocessError) as error:
            return f"rabbitmqctl failed: {error}"
        return "" if finding.outcome == "ok" else finding.detail

    async def gather_clients(self) -> None:
        """Have all clients connect to the first node of the broker: the others close theirs, and take no more."""
        others = self._broker.nodes[1:]
        for node in others:
            await asyncio.to_thread(node.control, "suspend_listeners")
        for node in others:
            await asyncio.to_thread(node.control, "close_all_connections", "--global", "a test")
        await asyncio.sleep(GATHERED_SECONDS)
        for node in others:
            await asyncio.to_thread(node.control, "resume_listeners")


Act = Callable[[Cluster], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: what is done before the measurement, in the middle of it, and after it."""

    name: str
    title: str
    act: Act
    prepare: Act | None = None
    repair: Act | None = None


async def _kill_a_node(cluster: Cluster) -> None:
    await cluster.restart("rabbitmq-2", signal.SIGKILL)


async def _kill_the_first_node(cluster: Cluster) -> None:
    await cluster.restart("rabbitmq", signal.SIGKILL)


async def _silence_a_node(cluster: Cluster) -> None:
    async with cluster.silent("rabbitmq-2"):
        await asyncio.sleep(SILENT_SECONDS)


async def _restart_the_silent_node(cluster: Cluster) -> None:
    # RabbitMQ 3.10 leaves it parted from the nodes that had given it up (docs/clusters.md).
    await cluster.restart("rabbitmq-2")


async def _kill_the_primary(cluster: Cluster) -> None:
    await cluster.restart(await cluster.primary(), signal.SIGKILL)


async def _silence_the_primary(cluster: Cluster) -> None:
    async with cluster.silent(await cluster.primary()):
        await asyncio.sleep(SILENT_SECONDS)


async def _restart_all_servers(cluster: Cluster) -> None:
    for name in (*BROKER_NODES, *MEMBERS):
        await cluster.restart(name)


def _kill_a_service(name: str) -> Act:
    async def act(cluster: Cluster) -> None:
        await cluster.restart(name, signal.SIGKILL)

    return act


FAULTS: Sequence[Fault] = (
    Fault("none", "no fault", lambda _cluster: asyncio.sleep(10)),
    Fault("node-killed", "kill -9 of a broker node, clients spread", _kill_a_node),
    Fault(
        "all-on-node-killed", "kill -9 of the broker node of all clients", _kill_the_first_node, Cluster.gather_clients
    ),
    Fault(
        "node-silent",
        f"a broker node silent for {SILENT_SECONDS:g} s",
        _silence_a_node,
        repair=_restart_the_silent_node,
    ),
    Fault("primary-killed", "kill -9 of the primary", _kill_the_primary),
    Fault("primary-silent", f"the primary silent for {SILENT_SECONDS:g} s", _silence_the_primary),
    Fault("rolling-restart", "restart of all nodes and members in turn", _restart_all_servers),
    *(Fault(f"{name}-killed", f"kill -9 of {name}", _kill_a_service(name)) for name in SERVICES),
)

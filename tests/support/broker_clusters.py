"""A cluster of RabbitMQ nodes, as processes of this machine that a test may kill or stop."""

import asyncio
import contextlib
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from chaos.network import Endpoint
from operations.stack.layout import CLUSTER_PORTS, Layout, numbered
from operations.stack.ports import PortClaims
from operations.stack.processes import Child
from operations.stack.program import Program
from operations.stack.queue_members import list_members
from operations.stack.rabbitmq import Epmd, find_rabbitmq
from operations.stack.rabbitmq_cluster import RabbitMQCluster
from operations.stack.start import start
from operations.stack.state import acquire_lock
from tests.support.servers import DIRECTORY_PREFIX

START_SECONDS = 240
"""The time in which the nodes have to start: a stalled machine is not their fault."""


class BrokerCluster:
    """Three nodes with RabbitMQ's own user."""

    def __init__(self, directory: Path, ports: dict[str, int]) -> None:
        self._directory = directory
        self._ports = ports
        installation = find_rabbitmq()
        self._names = Epmd(installation, ports["epmd"])
        self._cluster = RabbitMQCluster(installation, directory / "rabbitmq", f"t{secrets.token_hex(4)}", ports)
        self._running: dict[str, Child] = {}

    @property
    def urls(self) -> list[str]:
        """The URL of each node."""
        return [node.url for node in self._cluster.nodes]

    async def start(self) -> None:
        """Start the nodes that do not run."""
        # In turn: one that joins a node in its first start may find it half made.
        programs: tuple[Program, ...] = (self._names, *self._cluster.nodes)
        for program in programs:
            if program.name not in self._running:
                logs = self._directory / "logs"
                self._running[program.name] = await start(program, logs, self._directory, START_SECONDS)

    async def kill(self, number: int) -> None:
        """End a node by SIGKILL."""
        child = self._running.pop(self._cluster.nodes[number].name)
        child.kill()
        await child.wait()

    async def leader_of(self, queue: str) -> int:
        """Return the number of the node that leads a queue."""
        listed = await asyncio.to_thread(list_members, self._cluster.control, "/")
        leader = next(each.leader for each in listed if each.name == queue)
        return [node.node for node in self._cluster.nodes].index(leader)

    def rabbitmqctl(self, number: int, *arguments: str) -> str:
        """Run rabbitmqctl on a node; it takes a second or two."""
        return self._cluster.nodes[number].control(*arguments)

    def endpoint(self, number: int) -> Endpoint:
        """Return the process of a node and the port on which the others reach it."""
        name = self._cluster.nodes[number].name
        return Endpoint(self._running[name].pid, (self._ports[numbered("distribution", number + 1)],))

    @contextlib.asynccontextmanager
    async def silent(self, number: int) -> AsyncIterator[None]:
        """Stop a node: its connections stay open, and nothing is answered. At the end it is killed.

        If it went on, RabbitMQ 3.10 would leave it parted from the nodes that had given it up, until it is restarted.
        """
        psutil.Process(self._running[self._cluster.nodes[number].name].pid).send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            await self.kill(number)

    async def stop(self) -> None:
        """End all nodes."""
        for child in self._running.values():
            child.kill()
        await asyncio.gather(*(child.wait() for child in self._running.values()))


@contextlib.asynccontextmanager
async def broker_cluster() -> AsyncIterator[BrokerCluster]:
    """Start a cluster in a temporary directory; it ends, and its data goes, when the context does."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=DIRECTORY_PREFIX)))
        stack.enter_context(acquire_lock(Layout(directory)))
        claims = stack.enter_context(PortClaims())
        ports = claims.claim_preferred([name for name in CLUSTER_PORTS if not name.startswith("mongodb")])
        cluster = BrokerCluster(directory, ports)
        try:
            await cluster.start()
            yield cluster
        finally:
            await cluster.stop()

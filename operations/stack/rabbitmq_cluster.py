"""RabbitMQ as a cluster of three nodes on this machine.

An empty node joins the first one, which `plan` starts before it, also if that one ran alone until then. Once all nodes
answer, the topology is declared, and every queue gets a member on each node: see `queue_members`.
"""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from operations.stack.broker_users import BrokerUsers
from operations.stack.layout import CLUSTER_SIZE, numbered, numbered_directory
from operations.stack.queue_members import spread_queues
from operations.stack.rabbitmq import RabbitMQ, RabbitMQInstallation

NET_TICK_SECONDS = 4
"""How soon the nodes miss one that is silent: until then, nothing answers that waits for it."""

CLUSTER_CONFIGURATION = (
    f"net_ticktime = {NET_TICK_SECONDS}",
    # A node that has lost the majority pauses, rather than go on with a state of its own.
    "cluster_partition_handling = pause_minority",
    "queue_leader_locator = balanced",
    # An empty node asks the first one for as long as a start may take. Then it would begin a cluster of its own.
    "cluster_formation.discovery_retry_limit = 600",
    "cluster_formation.discovery_retry_interval = 500",
)
"""Lines of rabbitmq.conf: docs/clusters.md says why."""

ADVANCED_CLUSTER_CONFIGURATION = (
    # In milliseconds, how often a queue looks whether the node of its leader is silent, and how long it then waits
    # before it elects another.
    "{aten, [{poll_interval, 1000}]}",
    # The seconds that whoever calls a node that has gone waits for each step of a new connection to it.
    "{kernel, [{net_setuptime, 2}]}",
)
"""Erlang terms of advanced.config, for what RabbitMQ 3.10 does not take in rabbitmq.conf."""


class RabbitMQCluster:
    """The nodes of a cluster; each is a program of its own."""

    def __init__(
        self,
        installation: RabbitMQInstallation,
        first_directory: Path,
        node: str,
        ports: Mapping[str, int],
        environment: Mapping[str, str] = os.environ,
        users: BrokerUsers | None = None,
    ) -> None:
        """Use the ports named `amqp`, `amqp-2` and so on; all nodes share `epmd`."""
        self.prepared = False
        self.preparing = asyncio.Lock()
        self.nodes = [
            ClusterNode(self, number, installation, first_directory, node, ports, environment, users)
            for number in range(1, CLUSTER_SIZE + 1)
        ]

    @property
    def url(self) -> str:
        """The URL for commands, of all nodes."""
        return ",".join(node.url for node in self.nodes)

    def url_of(self, user: str) -> str:
        """Return the URL for one of the users, of all nodes."""
        return ",".join(node.url_of(user) for node in self.nodes)

    def control(self, *arguments: str, tool: str = "rabbitmqctl") -> str:
        """Run rabbitmqctl, or another tool of RabbitMQ, on the first node where it succeeds, and return its output.

        Raises OSError or subprocess.SubprocessError if it fails on all.
        """
        for node in self.nodes[:-1]:
            with contextlib.suppress(subprocess.SubprocessError):
                return node.control(*arguments, tool=tool)
        return self.nodes[-1].control(*arguments, tool=tool)

    async def is_complete(self) -> bool:
        """Return whether all nodes answer."""
        return not any(await asyncio.gather(*(node.unreachable() for node in self.nodes)))


class ClusterNode(RabbitMQ):
    """A node of a cluster. The one that is ready last prepares the broker for services."""

    def __init__(
        self,
        cluster: RabbitMQCluster,
        number: int,
        installation: RabbitMQInstallation,
        first_directory: Path,
        node: str,
        ports: Mapping[str, int],
        environment: Mapping[str, str],
        users: BrokerUsers | None,
    ) -> None:
        own_ports = {name: ports[numbered(name, number)] for name in ("amqp", "distribution")}
        directory = numbered_directory(first_directory, number)
        super().__init__(
            installation, directory, numbered(node, number), own_ports | {"epmd": ports["epmd"]}, environment, users
        )
        self.name = numbered("rabbitmq", number)
        self._home = first_directory  # the nodes of a cluster share a cookie
        self._cluster = cluster

    def configuration(self) -> list[str]:
        """Return the lines of rabbitmq.conf."""
        first = self._cluster.nodes[0]
        seeds = [] if self is first else [first.node, self.node]
        formation = [f"cluster_formation.classic_config.nodes.{place} = {node}" for place, node in enumerate(seeds, 1)]
        return [*super().configuration(), *CLUSTER_CONFIGURATION, *formation]

    def advanced_configuration(self) -> list[str]:
        """Return the Erlang terms of advanced.config."""
        return [*super().advanced_configuration(), *ADVANCED_CLUSTER_CONFIGURATION]

    def node_environment(self) -> dict[str, str]:
        """Return the environment of the node and of RabbitMQ's tools for it."""
        # The tools join the nodes' network for a moment, where all have to keep the same time.
        return super().node_environment() | {"RABBITMQ_CTL_ERL_ARGS": f"-kernel net_ticktime {NET_TICK_SECONDS}"}

    async def prepare_broker(self) -> None:
        """Declare the topology and spread the queues, if all nodes answer and it has not been done."""
        async with self._cluster.preparing:
            if self._users is None or self._cluster.prepared or not await self._cluster.is_complete():
                return
            await super().prepare_broker()
            # On the first, which knows the streams of a node that ran alone until now; others learn of them later.
            await asyncio.to_thread(spread_queues, self._cluster.nodes[0].control, self._users.virtual_host)
            self._cluster.prepared = True

"""The members and the leaders of queues in a cluster, as RabbitMQ's tools list them.

RabbitMQ chooses the members of a queue when it is declared, and adds none when a node joins later. Leaders stay where
they went when a node was away.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shared import topology

Control = Callable[..., str]
"""Runs rabbitmqctl on the broker, or another tool that `tool` names, and returns its output."""

QUORUM, STREAM = "quorum", "stream"

LOADED = frozenset({*topology.INBOXES, topology.DEAD_LETTERS})
"""The queues through which messages go when all is well, and the dead letters."""
LOADED_PATTERN = r"(\.inbox(\.[0-9]+)?|\.dead-letters)$"


@dataclass(frozen=True, slots=True)
class QueueMembers:
    """The nodes that have a copy of a queue, and the one that leads it."""

    name: str
    kind: str
    leader: str
    members: frozenset[str]


def list_members(control: Control, virtual_host: str) -> list[QueueMembers]:
    """Return the members of every quorum queue and every stream. Raises OSError or SubprocessError."""
    columns = ("name", "type", "leader", "members")
    listed: list[dict[str, Any]] = json.loads(
        control("-q", "list_queues", "-p", virtual_host, *columns, "--formatter", "json")
    )
    return [
        QueueMembers(queue["name"], queue["type"], queue["leader"], frozenset(queue["members"]))
        for queue in listed
        if queue["type"] in (QUORUM, STREAM)
    ]


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The nodes of a cluster, those of them that run, and whether some of these have lost sight of each other."""

    nodes: tuple[str, ...]
    running: tuple[str, ...]
    is_partitioned: bool


def cluster_status(control: Control) -> ClusterStatus:
    """Return the nodes as one of them sees them. Raises OSError or SubprocessError."""
    status: dict[str, Any] = json.loads(control("-q", "cluster_status", "--formatter", "json"))
    return ClusterStatus(
        tuple(sorted(status["disk_nodes"])), tuple(sorted(status["running_nodes"])), bool(status["partitions"])
    )


def spread_queues(control: Control, virtual_host: str) -> None:
    """Give every queue a member on every node that runs, and spread the leaders if they are not.

    Meant for at most as many nodes as a queue should have members. Raises OSError or SubprocessError.
    """
    nodes, queues = cluster_status(control).running, list_members(control, virtual_host)
    for node in nodes:
        without = [queue for queue in queues if node not in queue.members]
        if any(queue.kind == QUORUM for queue in without):
            control("grow", node, "all", "--vhost-pattern", f"^{virtual_host}$", tool="rabbitmq-queues")
        for stream in (queue.name for queue in without if queue.kind == STREAM):
            control("add_replica", "--vhost", virtual_host, stream, node, tool="rabbitmq-streams")
    # Only these: while nodes have only just started, moving a leader takes some seconds.
    if not is_balanced(queues, nodes):
        patterns = ("--vhost-pattern", f"^{virtual_host}$", "--queue-pattern", LOADED_PATTERN)
        control("rebalance", QUORUM, *patterns, tool="rabbitmq-queues")


def is_balanced(queues: Sequence[QueueMembers], nodes: Sequence[str]) -> bool:
    """Return whether every node leads at least half of its share of the queues that carry the load."""
    leaders = count_leaders(queues, nodes)
    return all(2 * count * len(nodes) >= sum(leaders.values()) for count in leaders.values())


def count_leaders(queues: Sequence[QueueMembers], nodes: Sequence[str]) -> Counter[str]:
    """Return how many of the queues that carry the load each node leads. The retry queues are nearly always empty."""
    leaders = Counter(dict.fromkeys(nodes, 0))
    leaders.update(queue.leader for queue in queues if topology.inbox_of(queue.name) in LOADED)
    return leaders

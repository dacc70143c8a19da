"""The members and the leaders of queues in a cluster, as RabbitMQ's tools list them.

RabbitMQ chooses the members of a queue when it is declared, and adds none when a node joins later. Leaders stay where
they went when a node was away.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Control = Callable[..., str]
"""Runs rabbitmqctl on the broker, or another tool that `tool` names, and returns its output."""

QUORUM, STREAM = "quorum", "stream"


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


def running_nodes(control: Control) -> list[str]:
    """Return the names of the nodes that run. Raises OSError or SubprocessError."""
    status: dict[str, Any] = json.loads(control("-q", "cluster_status", "--formatter", "json"))
    return sorted(status["running_nodes"])


def spread_queues(control: Control, virtual_host: str) -> None:
    """Give every queue a member on every node that runs, and spread the leaders if a node leads none.

    Meant for at most as many nodes as a queue should have members. Raises OSError or SubprocessError.
    """
    nodes, queues = running_nodes(control), list_members(control, virtual_host)
    for node in nodes:
        without = [queue for queue in queues if node not in queue.members]
        if any(queue.kind == QUORUM for queue in without):
            control("grow", node, "all", "--vhost-pattern", f"^{virtual_host}$", tool="rabbitmq-queues")
        for stream in (queue.name for queue in without if queue.kind == STREAM):
            control("add_replica", "--vhost", virtual_host, stream, node, tool="rabbitmq-streams")
    # Not for less: moving a leader takes some seconds while nodes have only just started.
    if 0 in count_leaders(queues, nodes).values():
        control("rebalance", QUORUM, "--vhost-pattern", f"^{virtual_host}$", tool="rabbitmq-queues")


def is_balanced(queues: Sequence[QueueMembers], nodes: Sequence[str]) -> bool:
    """Return whether every node leads at least half of its share of the quorum queues."""
    leaders = count_leaders(queues, nodes)
    return all(2 * count * len(nodes) >= sum(leaders.values()) for count in leaders.values())


def count_leaders(queues: Sequence[QueueMembers], nodes: Sequence[str]) -> Counter[str]:
    """Return the number of quorum queues that each node leads."""
    leaders = Counter(dict.fromkeys(nodes, 0))
    leaders.update(queue.leader for queue in queues if queue.kind == QUORUM)
    return leaders

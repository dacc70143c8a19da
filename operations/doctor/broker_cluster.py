"""Checks a RabbitMQ cluster: its nodes, the members of its queues, its leaders, and how soon it misses a node."""

import re
import subprocess
from collections.abc import Iterator, Sequence

from operations.doctor.finding import Finding, note, ok, wrong
from operations.stack.queue_members import (
    ClusterStatus,
    Control,
    QueueMembers,
    cluster_status,
    count_leaders,
    is_balanced,
    list_members,
)
from operations.stack.rabbitmq_cluster import NET_TICK_SECONDS

NODES, MEMBERS, LEADERS, TICK, PARTITIONS = "cluster nodes", "queue members", "queue leaders", "net tick", "partitions"
PAGE = "docs/clusters.md"
RESTART = "`ordersaga down`, then `ordersaga up --detach`: the start"
"""How the members and leaders of a stack of ours are put right: RabbitMQ's tools do not find its private nodes."""
WANTED_MEMBERS = 3
SLOW_TICK_SECONDS = 15
"""The net tick from which a silent node holds up orders for longer than clients wait."""
_MOST_NAMED = 3


def check_cluster(control: Control | None, virtual_host: str) -> list[Finding]:
    """Check the cluster; one node is in order if it is the only one. Without `control`, nothing can be checked."""
    if control is None:
        detail = "not checked: members and settings can only be listed for nodes that `ordersaga up` runs"
        return [note("cluster", detail, f"{PAGE} has the commands for other nodes")]
    try:
        status = cluster_status(control)
        if len(status.nodes) == 1:
            return [ok("cluster", "a single node: nothing is handled while it is away")]
        queues = list_members(control, virtual_host)
        return [
            check_nodes(status),
            check_members(queues, status),
            check_leaders(queues, status.running),
            *check_settings(control, status.running),
        ]
    except (OSError, subprocess.SubprocessError) as error:
        return [note("cluster", f"not checked: rabbitmqctl failed: {error}")]


def check_nodes(status: ClusterStatus) -> Finding:
    """Check that all nodes run, see each other, and that the loss of one leaves a majority."""
    down = sorted(set(status.nodes) - set(status.running))
    if status.is_partitioned:  # then the other side does not count as running, although it may
        apart = f"{_listed(down)} and the others" if down else "some"
        return wrong(NODES, f"{apart} do not see each other", f"restart the smaller side: {PAGE}")
    if down:
        fix = f"start it; if it never returns, rabbitmqctl forget_cluster_node {down[0]}"
        return wrong(NODES, f"{_listed(down)} of {len(status.nodes)} does not run", fix)
    if len(status.nodes) < WANTED_MEMBERS:
        return wrong(NODES, f"{len(status.nodes)}: without either of them both pause", f"add a third node: {PAGE}")
    return ok(NODES, f"all {len(status.nodes)} run")


def check_members(queues: Sequence[QueueMembers], status: ClusterStatus) -> Finding:
    """Check that every queue has three members, or one on each node if there are fewer nodes."""
    wanted = min(WANTED_MEMBERS, len(status.nodes))
    short = [queue for queue in queues if len(queue.members) < wanted]
    if not short:
        return ok(MEMBERS, f"at least {wanted} of each of {len(queues)} queues and streams")
    detail = f"{len(short)} of {len(queues)} have fewer than {wanted}: {_listed([queue.name for queue in short])}"
    return wrong(MEMBERS, detail, f"{RESTART} adds the members that are missing")


def check_leaders(queues: Sequence[QueueMembers], running: Sequence[str]) -> Finding:
    """Check that the nodes lead similar numbers of queues: the leader of a queue does most of its work."""
    leaders = count_leaders(queues, running)
    detail = ", ".join(f"{node} leads {number}" for node, number in sorted(leaders.items()))
    if not is_balanced(queues, running):
        return note(LEADERS, f"{detail} of the queues that carry the load", f"{RESTART} spreads them")
    return ok(LEADERS, detail)


def check_settings(control: Control, running: Sequence[str]) -> Iterator[Finding]:
    """Check on each node how soon it misses another, and what it does when it has lost the majority."""
    ticks, handling = read_settings(control, running)
    slow = {node: seconds for node, seconds in ticks.items() if seconds > SLOW_TICK_SECONDS}
    if slow:
        detail = f"a silent node is missed after up to {max(slow.values()) * 5 // 4} s; until then, its queues wait"
        yield note(
            TICK, detail, f"net_ticktime = {NET_TICK_SECONDS} in rabbitmq.conf of every node, then restart each: {PAGE}"
        )
    else:
        slowest = max(ticks.values(), default=0)
        yield ok(TICK, f"a silent node is missed after {slowest} to {slowest * 5 // 4} s")
    other = {node: how for node, how in handling.items() if how != "pause_minority"}
    if other:
        detail = ", ".join(f"{how} on {node}" for node, how in other.items())
        fix = "cluster_partition_handling = pause_minority in rabbitmq.conf of every node, then restart each"
        yield wrong(PARTITIONS, f"{detail}: the sides of a partition go on with different contents", fix)
    else:
        yield ok(PARTITIONS, "a node without the majority pauses")


def read_settings(control: Control, running: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Return the net tick in seconds, and the handling of partitions, of each node that runs."""
    names = ", ".join(f"'{node}'" for node in running)
    tick, handling = "net_kernel, get_net_ticktime, []", "application, get_env, [rabbit, cluster_partition_handling]"
    answer = control("-q", "eval", f"[{{N, rpc:call(N, {tick}), rpc:call(N, {handling})}} || N <- [{names}]].")
    # A net tick that is being changed is {ongoing_change_to,8}.
    found = re.findall(r"\{'?([^',\s]+@[^',\s]+)'?,\s*(?:\{\w+,\s*)?(\d+)\}?,\s*\{ok,\s*\{?(\w+)", answer)
    return {node: int(seconds) for node, seconds, _ in found}, {node: how for node, _, how in found}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (" and others" if len(names) > _MOST_NAMED else "")

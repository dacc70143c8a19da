"""The faults of `benchmarks.failover`: each kills, stops or restarts servers and services of a running cluster."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from chaos.stack import ChaosStack

SILENT_SECONDS = 30.0
"""How long a server that is stopped (SIGSTOP) says nothing."""
GATHERED_SECONDS = 5.0
"""The time for clients to connect elsewhere."""
SERVICES = ("order", "inventory", "payment", "notification", "provisioning")


@contextlib.asynccontextmanager
async def silent(cluster: ChaosStack, name: str) -> AsyncIterator[None]:
    """Stop a process, and continue it at the end."""
    cluster.send(name, signal.SIGSTOP)
    try:
        yield
    finally:
        cluster.send(name, signal.SIGCONT)


async def gather_clients(cluster: ChaosStack) -> None:
    """Have all clients connect to the first node of the broker: the others close theirs, and take no more."""
    others = cluster.broker.nodes[1:]
    for node in others:
        await asyncio.to_thread(node.control, "suspend_listeners")
    for node in others:
        await asyncio.to_thread(node.control, "close_all_connections", "--global", "a test")
    await asyncio.sleep(GATHERED_SECONDS)
    for node in others:
        await asyncio.to_thread(node.control, "resume_listeners")


Act = Callable[[ChaosStack], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: what is done before the measurement, in the middle of it, and after it."""

    name: str
    title: str
    act: Act
    prepare: Act | None = None
    repair: Act | None = None


async def _kill_a_node(cluster: ChaosStack) -> None:
    await cluster.restart("rabbitmq-2", signal.SIGKILL)


async def _kill_the_first_node(cluster: ChaosStack) -> None:
    await cluster.restart("rabbitmq", signal.SIGKILL)


async def _silence_a_node(cluster: ChaosStack) -> None:
    async with silent(cluster, "rabbitmq-2"):
        await asyncio.sleep(SILENT_SECONDS)


async def _restart_the_silent_node(cluster: ChaosStack) -> None:
    # RabbitMQ 3.10 leaves it parted from the nodes that had given it up (docs/clusters.md).
    await cluster.restart("rabbitmq-2")


async def _kill_the_primary(cluster: ChaosStack) -> None:
    await cluster.restart(await cluster.primary(), signal.SIGKILL)


async def _silence_the_primary(cluster: ChaosStack) -> None:
    async with silent(cluster, await cluster.primary()):
        await asyncio.sleep(SILENT_SECONDS)


async def _restart_all_servers(cluster: ChaosStack) -> None:
    for name in (*cluster.nodes, *cluster.members):
        await cluster.restart(name)


def _kill_a_service(name: str) -> Act:
    async def act(cluster: ChaosStack) -> None:
        await cluster.restart(name, signal.SIGKILL)

    return act


FAULTS: Sequence[Fault] = (
    Fault("none", "no fault", lambda _cluster: asyncio.sleep(10)),
    Fault("node-killed", "kill -9 of a broker node, clients spread", _kill_a_node),
    Fault("all-on-node-killed", "kill -9 of the broker node of all clients", _kill_the_first_node, gather_clients),
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

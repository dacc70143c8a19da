"""Faults of processes: killed, stopped for some seconds, restarted in order, and servers that stay away.

Each leaves the others of its kind: it happens only while all processes of the service, all nodes of the broker or all
members of the database run, and to a node only while the nodes see each other.
"""

import contextlib
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import psutil

from chaos.fault import Act, Injected
from chaos.stack import ChaosStack
from operations.stack.rabbitmq_cluster import NET_TICK_SECONDS
from shared import topology
from shared.services import SERVICES

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 6.0
SHORTEST_LOSS, LONGEST_LOSS = 20.0, 40.0
PARTED_AFTER = NET_TICK_SECONDS * 3 / 4
"""The shortest pause in seconds after which the other nodes may have given up a node of the broker."""

Choose = Callable[[ChaosStack, random.Random], Awaitable[str]]
Inject = Callable[[ChaosStack, random.Random, str], Awaitable[Injected]]


@dataclass(frozen=True, slots=True)
class ProcessFault:
    """A kind of faults that hit one process: how it is chosen, and what happens to it."""

    name: str
    title: str
    weight: int
    choose: Choose
    inject: Inject

    def missing(self) -> str | None:
        """Return None: signals can be sent everywhere."""
        return None

    async def strike(self, stack: ChaosStack, chance: random.Random) -> Injected:
        """Choose a process and inject the fault. Raises LookupError if the others could not spare it just now."""
        return await self.inject(stack, chance, await self.choose(stack, chance))


# --- Which process. ---


def a_process_of(*services: str) -> Choose:
    """Choose a process of one of these services."""

    async def choose(stack: ChaosStack, chance: random.Random) -> str:
        processes = stack.processes_of(chance.choice(services))
        stack.require(processes)
        return chance.choice(processes)

    return choose


async def a_node(stack: ChaosStack, chance: random.Random) -> str:
    """Choose a node of the broker."""
    await stack.spare_one(stack.nodes)
    return chance.choice(stack.nodes)


async def a_leader(stack: ChaosStack, chance: random.Random) -> str:
    """Choose the node that leads a random inbox."""
    await stack.spare_one(stack.nodes)
    return await stack.leader(chance.choice(list(topology.INBOXES)))


async def a_member(stack: ChaosStack, chance: random.Random) -> str:
    """Choose a member of the replica set."""
    await stack.spare_one(stack.members)
    return chance.choice(stack.members)


async def the_primary(stack: ChaosStack, _chance: random.Random) -> str:
    """Choose the primary."""
    await stack.spare_one(stack.members)
    return await stack.primary()


async def a_server(stack: ChaosStack, chance: random.Random) -> str:
    """Choose a node or a member."""
    servers = chance.choice([stack.nodes, stack.members])
    await stack.spare_one(servers)
    return chance.choice(servers)


# --- What happens to it. ---


async def kill(stack: ChaosStack, _chance: random.Random, name: str) -> Injected:
    """Kill it with -9; the supervisor starts it again."""
    _kill(stack.find(name))
    return Injected(name)


async def pause(stack: ChaosStack, chance: random.Random, name: str) -> Injected:
    """Stop it for some seconds, as a machine that stands still."""
    return _stop(stack, name, chance.uniform(SHORTEST_PAUSE, LONGEST_PAUSE))


async def end_in_order(stack: ChaosStack, _chance: random.Random, name: str) -> Injected:
    """End it with SIGTERM, as for an upgrade; the supervisor starts it again."""
    stack.send(name, signal.SIGTERM)
    return Injected(name)


async def keep_away(stack: ChaosStack, chance: random.Random, name: str) -> Injected:
    """Kill it and keep it from being started again, or stop it, for so long that the others do without it."""
    seconds = chance.uniform(SHORTEST_LOSS, LONGEST_LOSS)
    if chance.random() < 1 / 2:
        return _stop(stack, name, seconds)
    victim, supervisor = stack.find(name), stack.supervisor()
    injected = Injected(f"{name}, killed and kept away for {seconds:.0f} s", seconds, _continuing(supervisor))
    supervisor.suspend()
    try:
        _kill(victim)
    except LookupError:
        await injected.repair()
        raise
    return injected


def _kill(process: psutil.Process) -> None:
    """Kill a process. Raises LookupError if it has just ended."""
    try:
        process.kill()
    except psutil.NoSuchProcess as error:
        raise LookupError(str(error)) from error


def _stop(stack: ChaosStack, name: str, seconds: float) -> Injected:
    """Stop a process for so long. Raises LookupError if it has just ended."""
    stopped = stack.find(name)
    try:
        stopped.suspend()
    except psutil.NoSuchProcess as error:
        raise LookupError(str(error)) from error
    injected = Injected(f"{name}, stopped for {seconds:.1f} s", seconds, _continuing(stopped))
    if stack.is_cluster and name in stack.nodes and seconds > PARTED_AFTER:
        injected.duty, injected.told = _restarting(stack, name), f"restarted {name} (docs/clusters.md)"
    return injected


def _continuing(process: psutil.Process) -> Act:
    async def resume() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, and is started again
            process.resume()

    return resume


def _restarting(stack: ChaosStack, name: str) -> Act:
    # RabbitMQ 3.10 leaves such a node parted from the nodes that had given it up.
    async def restart() -> None:
        with contextlib.suppress(LookupError):  # it has ended by itself
            await stack.restart(name)

    return restart


def process_faults(*, cluster: bool) -> Sequence[ProcessFault]:
    """Return the kinds of faults of processes: on single servers, or on a cluster."""
    services = tuple(SERVICES)
    killed = [ProcessFault(f"{each}-killed", f"kill -9 of {each}", 1, a_process_of(each), kill) for each in services]
    common = [
        *killed,
        ProcessFault("service-paused", "a service stopped for 1 to 6 s", 2, a_process_of(*services), pause),
        ProcessFault("service-restarted", "orderly restart of a service", 1, a_process_of(*services), end_in_order),
    ]
    if not cluster:
        return [
            ProcessFault("node-killed", "kill -9 of RabbitMQ", 2, a_node, kill),
            ProcessFault("member-killed", "kill -9 of MongoDB", 2, a_member, kill),
            *common,
            ProcessFault("node-paused", "RabbitMQ stopped for 1 to 6 s", 1, a_node, pause),
            ProcessFault("member-paused", "MongoDB stopped for 1 to 6 s", 1, a_member, pause),
            ProcessFault("server-restarted", "orderly restart of a server", 1, a_server, end_in_order),
        ]
    return [
        ProcessFault("leader-killed", "kill -9 of the node that leads an inbox", 3, a_leader, kill),
        ProcessFault("node-killed", "kill -9 of a broker node", 2, a_node, kill),
        ProcessFault("primary-killed", "kill -9 of the primary", 3, the_primary, kill),
        ProcessFault("member-killed", "kill -9 of a member", 2, a_member, kill),
        *common,
        ProcessFault("node-paused", "a broker node stopped for 1 to 6 s", 1, a_node, pause),
        ProcessFault("member-paused", "a member stopped for 1 to 6 s", 1, a_member, pause),
        ProcessFault("server-restarted", "orderly restart of a node or a member", 2, a_server, end_in_order),
        ProcessFault("server-lost", "a node or a member lost for 20 to 40 s", 1, a_server, keep_away),
    ]

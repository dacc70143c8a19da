"""Faults of the network: a server or a service that some others do not reach for a while, and that does not reach them.

Clients reach a server that is cut off from its kind, as they do when the link between two zones is lost.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chaos import namespaces, network
from chaos.fault import Act, Injected
from chaos.network import Cut, Endpoint
from chaos.process_faults import Choose, a_process_of
from chaos.stack import ChaosStack
from operations.stack.state import read_state
from shared.services import SERVICES

SHORTEST, LONGEST = 3.0, 40.0
"""Seconds. Most are short: half of them last less than 11 s."""
RETURNS_WITHIN = 20.0
"""Seconds after which an operator restarts a node that has not come back to the others by itself."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A kind of partitions: who is cut off, and from which servers."""

    name: str
    title: str
    weight: int
    choose: Choose
    servers_of: Callable[[ChaosStack], Sequence[str]]

    def missing(self) -> str | None:
        """Return why processes of this machine cannot be cut off from each other."""
        return network.missing() or namespaces.missing()

    async def strike(self, stack: ChaosStack, chance: random.Random) -> Injected:
        """Cut a process off. Raises LookupError if it or one of the others is away."""
        servers = self.servers_of(stack)
        await stack.spare_one(servers)
        name = await self.choose(stack, chance)
        others = [server for server in servers if server != name]
        cut = Cut(_endpoint(stack, name), [_endpoint(stack, other) for other in others])
        seconds = SHORTEST * (LONGEST / SHORTEST) ** chance.random()

        async def heal() -> None:
            await asyncio.to_thread(cut.heal)

        await asyncio.to_thread(cut.make)
        injected = Injected(f"{name} from {', '.join(others)}, for {seconds:.0f} s", seconds, heal)
        if name in stack.nodes:
            injected.duty = _bringing_back(stack, name, injected)
        return injected


def _endpoint(stack: ChaosStack, name: str) -> Endpoint:
    """Return the process and the ports that others use: of a node those for clients and for other nodes."""
    ports = read_state(stack.layout).ports
    place = name.removeprefix("rabbitmq")
    known = (name, f"amqp{place}", f"distribution{place}") if name in stack.nodes else (name,)
    is_server = name in stack.nodes or name in stack.members
    return Endpoint(stack.find(name).pid, tuple(ports[port] for port in known if port in ports) if is_server else ())


def _bringing_back(stack: ChaosStack, name: str, injected: Injected) -> Act:
    """Do what docs/clusters.md says about a node that others still miss: restart it."""

    async def bring_back() -> None:
        deadline = time.monotonic() + RETURNS_WITHIN
        while why := await stack.what_is_apart():
            if time.monotonic() > deadline:
                injected.told = f"restarted {name} (docs/clusters.md): {why}"
                return await stack.restart(name)
        return None

    return bring_back


async def a_node(stack: ChaosStack, chance: random.Random) -> str:
    """Choose a node of the broker."""
    return chance.choice(stack.nodes)


async def a_member(stack: ChaosStack, chance: random.Random) -> str:
    """Choose a member of the replica set."""
    return chance.choice(stack.members)


async def the_primary(stack: ChaosStack, _chance: random.Random) -> str:
    """Choose the primary."""
    return await stack.primary()


def nodes_of(stack: ChaosStack) -> Sequence[str]:
    """Return the nodes of the broker."""
    return stack.nodes


def members_of(stack: ChaosStack) -> Sequence[str]:
    """Return the members of the replica set."""
    return stack.members


def partitions(*, cluster: bool) -> Sequence[Partition]:
    """Return the kinds of partitions: of a stack of single servers, or of a cluster."""
    a_service = a_process_of(*SERVICES)
    of_services = [
        Partition("service-off-broker", "a service cut off from the broker", 1, a_service, nodes_of),
        Partition("service-off-database", "a service cut off from the database", 1, a_service, members_of),
    ]
    if not cluster:
        return of_services
    return [
        Partition("node-parted", "a broker node cut off from the others", 1, a_node, nodes_of),
        Partition("primary-parted", "the primary cut off from the members", 1, the_primary, members_of),
        Partition("member-parted", "a member cut off from the others", 1, a_member, members_of),
        *of_services,
    ]

"""What the top of the overview says about every part of the stack: services, brokers, members of the replica set."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple

from operations.console.dependencies import ConsoleDependencies
from operations.console.outages import MONGODB
from operations.console.upstream import Health, Unavailable, attempt
from operations.impact.waiting import RABBITMQ
from operations.incidents.changes import AWAY
from operations.incidents.records import IncidentRecords
from shared.bus.amqp.nodes import host_and_port
from shared.services import CONSOLE
from shared.urls import split_amqp_url

_ROLES = {
    "RSPrimary": "primary",
    "RSSecondary": "secondary",
    "RSArbiter": "arbiter",
    "Mongos": "router",
    "Standalone": "ready",
    "LoadBalancer": "ready",
    "RSOther": "not serving",
    "RSGhost": "in no set",
}
"""What the driver calls a server, and what that is; one that does not answer is away."""

_BAD_ROLES = {
    AWAY: AWAY,
    "not serving": "it starts, recovers or rolls back: it serves no reads",
    "in no set": "it answers, and belongs to no replica set",
}


class Part(NamedTuple):
    """A part of the stack, its state in a word, and what is wrong with it; None if nothing is.

    One that is `degraded` works, but something that it needs does not.
    """

    name: str
    state: str
    problem: str | None = None
    degraded: bool = False


class PartGroup(NamedTuple):
    """Parts of one kind."""

    name: str
    parts: Sequence[Part]


class Problems(NamedTuple):
    """How many parts do not work, how many are degraded, and how many there are."""

    broken: int
    degraded: int
    parts: int


def services_of(health: Mapping[str, Health]) -> PartGroup:
    """Return the state of each service, as it reports it; the console is ready, as it serves this page."""
    parts = [_service(name, found) for name, found in health.items()]
    return PartGroup("Services", [*parts, Part(CONSOLE.name, "ready")])


def _service(name: str, found: Health) -> Part:
    if found.problem is None:
        return Part(name, "ready")
    if found.why is None and found.ready:
        return Part(name, "degraded", found.problem.removeprefix("degraded: "), degraded=True)
    return Part(name, "not ready", found.problem)


def brokers_of(away: str | None, nodes: Mapping[str, str]) -> PartGroup:
    """Return the state of RabbitMQ, and of each node of a cluster as last seen."""
    whole = Part("broker", "does not answer" if away else "ready", away)
    parts = [
        Part(name, AWAY if state == AWAY else "ready", state if state == AWAY else None)
        for name, state in nodes.items()
    ]
    return PartGroup(RABBITMQ, [whole, *parts])


def members_of(away: str | None, members: Mapping[str, str]) -> PartGroup:
    """Return the state of MongoDB, and the role of each member of a replica set; `away` are those without one."""
    whole = Part("database", "does not answer" if away else "ready", away)
    parts = [Part(name, role, _BAD_ROLES.get(role)) for name, role in members.items()]
    return PartGroup(MONGODB, [whole, *parts])


def count_problems(groups: Sequence[PartGroup]) -> Problems:
    """Count the parts, and those of them that do not work or are degraded."""
    parts = [part for group in groups for part in group.parts]
    degraded = sum(part.degraded for part in parts)
    return Problems(sum(part.problem is not None for part in parts) - degraded, degraded, len(parts))


async def read_health(dependencies: ConsoleDependencies, broker: Awaitable[object]) -> list[PartGroup]:
    """Return the state of every part; `broker` is a request to the broker, Unavailable if that is away."""
    names = list(dependencies.services.urls)
    asked, ping, nodes, health = await asyncio.gather(
        broker,
        attempt(dependencies.operations.command("ping"), MONGODB),
        _nodes(dependencies),
        asyncio.gather(*(dependencies.services.health(name) for name in names)),
    )
    return [
        services_of(dict(zip(names, health, strict=True))),
        brokers_of(asked.why if isinstance(asked, Unavailable) else None, nodes),
        members_of(ping.why if isinstance(ping, Unavailable) else None, _members(dependencies.client)),
    ]


async def _nodes(dependencies: ConsoleDependencies) -> Mapping[str, str]:
    """Return the state of each node of a cluster as the watch for incidents has seen it, nothing for a single one."""
    urls = split_amqp_url(dependencies.amqp_url)
    names = [host_and_port(url) for url in urls] if len(urls) > 1 else []
    records = IncidentRecords(dependencies.operations)
    states = await attempt(records.states([f"node/{name}" for name in names]), MONGODB) if names else {}
    if isinstance(states, Unavailable):
        return {}
    return {name: states[f"node/{name}"] for name in names if f"node/{name}" in states}


def _members(client: Any) -> Mapping[str, str]:
    """Return the role of each member of a replica set as the driver sees it now, nothing for a single server."""
    known = client.topology_description.server_descriptions()
    if len(known) < 2:
        return {}
    return {f"{host}:{port}": _role(described) for (host, port), described in sorted(known.items())}


def _role(described: Any) -> str:
    return _ROLES.get(described.server_type_name, AWAY)

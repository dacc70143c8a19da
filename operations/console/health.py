"""What the top of the overview says about every part of the stack: services, brokers, members of the replica set."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from operations.console.dependencies import ConsoleDependencies
from operations.console.outages import MONGODB
from operations.console.upstream import Unavailable, attempt
from operations.impact.waiting import RABBITMQ
from operations.incidents.changes import AWAY
from operations.incidents.records import IncidentRecords
from shared.bus.amqp.nodes import host_and_port
from shared.services import CONSOLE
from shared.urls import split_amqp_url


class Part(NamedTuple):
    """A part of the stack, its state in a word, and what is wrong with it; None if nothing is."""

    name: str
    state: str
    problem: str | None = None


class PartGroup(NamedTuple):
    """Parts of one kind."""

    name: str
    parts: Sequence[Part]


def services_of(problems: Mapping[str, str | None]) -> PartGroup:
    """Return the state of each service by its problem; the console answers, or nobody would see this."""
    parts = [Part(name, "not ready" if problem else "ready", problem) for name, problem in problems.items()]
    return PartGroup("Services", [*parts, Part(CONSOLE.name, "ready")])


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
    parts = [Part(name, role, role if role == AWAY else None) for name, role in members.items()]
    return PartGroup(MONGODB, [whole, *parts])


def count_problems(groups: Sequence[PartGroup]) -> tuple[int, int]:
    """Return how many parts do not work, and how many there are."""
    parts = [part for group in groups for part in group.parts]
    return sum(part.problem is not None for part in parts), len(parts)


async def read_health(dependencies: ConsoleDependencies, rabbitmq_away: str | None) -> list[PartGroup]:
    """Return the state of every part; who has asked the broker already says why it is away."""
    names = list(dependencies.services.urls)
    ping, nodes, problems = await asyncio.gather(
        attempt(dependencies.operations.command("ping"), MONGODB),
        _nodes(dependencies),
        asyncio.gather(*(dependencies.services.ready(name) for name in names)),
    )
    return [
        services_of(dict(zip(names, problems, strict=True))),
        brokers_of(rabbitmq_away, nodes),
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
    if not described.is_server_type_known:
        return AWAY
    return "primary" if described.is_writable else "secondary"

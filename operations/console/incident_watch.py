"""Observes the stack and records incidents. Several processes may do so at once; each incident is recorded once.

A state counts once two looks in a row agree, so a single late answer is no incident. What is seen while MongoDB is away
cannot be recorded; the first look at which a server or service was away is remembered, and recorded afterwards.
"""

import asyncio
import contextlib
import inspect
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import aiormq.exceptions
from aio_pika.abc import AbstractConnection

from operations.audit.runs import OK
from operations.console.audit import outcome_of
from operations.console.dependencies import ConsoleDependencies
from operations.console.outages import BREAKER, MONGODB, Check, StackChecks, outages_of
from operations.dead_letters.schema import GROUPS
from operations.dead_letters.status import NEW
from operations.impact.waiting import RABBITMQ
from operations.incidents.changes import (
    AWAY,
    BALANCED,
    CLOSED,
    DOWN,
    ENOUGH,
    LOW,
    NOT_READY,
    OPEN,
    PAUSED,
    RUNNING,
    UP,
    VIOLATED,
    Release,
    Seen,
)
from operations.incidents.facts import COLLECTED, bulk_subject, ended_bulk, new_groups
from operations.incidents.incident import Incident
from operations.incidents.records import IncidentRecords
from operations.order_actions.bulk import ENDED, STOPPED, BulkActions
from operations.order_actions.schema import BULK_ACTIONS
from shared.background import run_periodically
from shared.bus.amqp.connecting import connect
from shared.bus.amqp.nodes import host_and_port
from shared.failpoints import Failpoint, nothing_fails
from shared.outage_words import in_words
from shared.release import STARTED_AT, VERSION
from shared.services import CONSOLE
from shared.urls import split_amqp_url

LOOK_SECONDS = 5.0
CONNECT_SECONDS = 3.0


REMEMBERED = timedelta(hours=1)
"""How far back new groups of dead letters are looked for; longer than a process of operations is away."""
LONGEST_BULK = timedelta(days=7)

_STATES = {"dependency-down": DOWN, "service-down": DOWN, "not-ready": NOT_READY, "breaker-open": UP}
"""What an outage means for its server or service, by the name of its runbook; a breaker is a subject of its own."""


class IncidentWatch:
    """Looks at the stack every few seconds."""

    def __init__(
        self, dependencies: ConsoleDependencies, checks: StackChecks, failpoint: Failpoint = nothing_fails
    ) -> None:
        self._dependencies = dependencies
        self._checks = checks
        self._looked_at = float("-inf")
        self._records = IncidentRecords(dependencies.operations, failpoint)
        self._nodes = _BrokerNodes(dependencies.amqp_url)
        self._last: dict[str, Seen] = {}
        self._groups_at: datetime | None = None
        self._missed: tuple[datetime, Sequence[Seen]] | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        try:
            await run_periodically(self.look, every=LOOK_SECONDS, name="looking for incidents")
        finally:
            await self._nodes.close()

    async def look(self) -> None:
        """Look once, and record what changed since the last look."""
        # Never the one of the last look: two that agree must be two checks.
        checked, at = await self._checks.latest(after=self._looked_at), self._dependencies.clock()
        self._looked_at = checked.ended
        seen = [*_of_check(checked, at), *await self._nodes.look(), *await self._members()]
        if MONGODB in checked.away:
            agreed = [each for each in self._agreed(seen) if each.state in (DOWN, NOT_READY, AWAY)]
            if agreed and self._missed is None:
                self._missed = at, agreed
            return
        seen += [*await self._packages(), *await self._audit()]
        await self._records.finish()
        if self._missed is not None:
            missed_at, missed = self._missed
            await self._records.observe(missed, missed_at)
            self._missed = None
        await self._records.observe(self._agreed(seen), at)
        await self._look_at_releases()
        await self._records.add([*await self._groups(at), *await self._bulk(at)])

    def _agreed(self, seen: Sequence[Seen]) -> list[Seen]:
        """Return what this look and the last one agree on."""
        before, self._last = self._last, {each.subject: each for each in seen}
        return [each for each in seen if each.subject in before and before[each.subject].state == each.state]

    async def _members(self) -> list[Seen]:
        """Return the primary of a replica set, and its members."""
        client: Any = self._dependencies.client
        primary = client.primary
        if inspect.isawaitable(primary):  # not with the driver Motor
            primary = await primary
        found = [Seen("primary/MongoDB", f"{primary[0]}:{primary[1]}")] if primary else []
        known = client.topology_description.server_descriptions()
        if len(known) > 1 and primary:  # without a primary, the members are not known to be members
            found += [
                Seen(f"member/{host}:{port}", UP if described.is_server_type_known else AWAY)
                for (host, port), described in known.items()
            ]
        return found

    async def _packages(self) -> list[Seen]:
        fields = {"low": True, "ipv4": True}
        return [
            Seen(
                f"package/{package['_id']}",
                LOW if package.get("low") else ENOUGH,
                f"{package.get('ipv4', 0)} free",
                link="/packages",
            )
            async for package in self._dependencies.packages.find({}, fields)
        ]

    async def _audit(self) -> list[Seen]:
        last = await self._dependencies.audit_runs.last(answered=True)
        if last is None:
            return []
        state = BALANCED if last["status"] == OK else VIOLATED
        return [Seen("audit/books", state, outcome_of(last), link=f"/audit/runs/{last['_id']}")]

    async def _look_at_releases(self) -> None:
        await self._records.observe_release(CONSOLE.name, Release(STARTED_AT, VERSION))
        services = self._dependencies.services
        releases = await asyncio.gather(*(services.release(name) for name in services.urls))
        for name, release in zip(services.urls, releases, strict=True):
            if release is not None:
                await self._records.observe_release(name, release)

    async def _groups(self, at: datetime) -> list[Incident]:
        groups = self._dependencies.operations[GROUPS]
        if self._groups_at is not None and at - self._groups_at < COLLECTED:
            return []  # all groups that are new are read, by the index of their status
        recent = {"$gte": at - REMEMBERED}
        query = {"status": NEW, "$or": [{"since": recent, "reopenedAt": None}, {"reopenedAt": recent}]}
        fields = {"since": True, "reopenedAt": True, "errorType": True, "service": True}
        found = new_groups(await groups.find(query, fields).to_list(None), at)
        self._groups_at = at
        return found

    async def _bulk(self, at: datetime) -> list[Incident]:
        operations = self._dependencies.operations
        ended = {"status": {"$in": [ENDED, STOPPED]}, "at": {"$gte": at - LONGEST_BULK}}
        found = await operations[BULK_ACTIONS].find(ended | {"endedAt": {"$gte": at - REMEMBERED}}).to_list(None)
        new = await self._records.unknown([bulk_subject(bulk["_id"]) for bulk in found])
        records = BulkActions(operations)
        return [
            ended_bulk(bulk, await records.outcomes(bulk["_id"])) for bulk in found if bulk_subject(bulk["_id"]) in new
        ]


def _of_check(checked: Check, at: datetime) -> Iterator[Seen]:
    """Yield the states of both servers and of all services."""
    outages = {outage.name: outage for outage in outages_of(checked, at)}
    for name in (MONGODB, RABBITMQ, *checked.healths):
        outage = outages.get(name)
        state = _STATES[outage.runbook] if outage else UP
        why, link = (outage.why, f"/runbooks/{outage.runbook}") if outage and state != UP else ("", None)
        if name not in checked.healths:
            yield Seen(f"server/{name}", state, why, link=link)
            continue
        health = checked.healths[name]
        yield Seen(f"service/{name}", state, why, name, link)
        if health.why is None:
            yield Seen(f"consumer/{name}", PAUSED if health.paused else RUNNING, service=name)
            breaker = health.down.get(BREAKER)
            yield Seen(f"breaker/{name}", OPEN if breaker else CLOSED, breaker or "", name)


class _BrokerNodes:
    """Connections to the nodes of a cluster, one each: a node that is away ends its own."""

    def __init__(self, amqp_url: str) -> None:
        urls = split_amqp_url(amqp_url)
        self._urls = urls if len(urls) > 1 else ()
        self._connections: dict[str, AbstractConnection] = {}

    async def look(self) -> list[Seen]:
        """Return the state of each node, of none if there is only one."""
        return list(await asyncio.gather(*map(self._look_at, self._urls)))

    async def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            with contextlib.suppress(aiormq.exceptions.AMQPError, OSError, TimeoutError):
                await asyncio.wait_for(connection.close(), 1)

    async def _look_at(self, url: str) -> Seen:
        name, connection = f"node/{host_and_port(url)}", self._connections.get(url)
        if connection is not None and not connection.is_closed:
            return Seen(name, UP)
        try:
            self._connections[url] = await connect(url, CONNECT_SECONDS)
        except (aiormq.exceptions.AMQPError, OSError, TimeoutError) as error:
            return Seen(name, AWAY, in_words(error))
        return Seen(name, UP)

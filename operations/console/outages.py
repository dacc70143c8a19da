"""What is away, for the banner that every page shows: since when, what that means, and the runbook."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from operations.console.dependencies import ConsoleDependencies
from operations.console.upstream import PAUSE_FACTOR, Health, ServiceResponse, Unavailable, acting_for, attempt
from operations.impact.impact import Impact
from operations.impact.reading import ImpactReader
from operations.impact.waiting import RABBITMQ
from operations.reading.broker import count_messages
from shared.services import CONSOLE, INVENTORY, NOTIFICATION, ORDER, PAYMENT, PROVISIONING, SERVICES

USABLE_SECONDS = 60.0
"""The age up to which a page that is opened shows a result at once, while the next one is on its way."""

FRESH_SECONDS = 4.0
"""The age up to which a check is shared; pages renew the banner every 5 s, and IncidentWatch looks as often."""

MONGODB = "MongoDB"

MEANING: Mapping[str, str] = {
    MONGODB: "No order can be placed or read. What was accepted is not lost and goes on when MongoDB is back.",
    RABBITMQ: "Orders are accepted and wait: nothing is reserved or charged until RabbitMQ is back.",
    ORDER.name: "No order can be placed, and those under way wait.",
    INVENTORY.name: "No stock is reserved or released: new orders wait, and are cancelled if that lasts.",
    PAYMENT.name: "Nothing is charged or refunded: new orders wait, and are cancelled if that lasts.",
    PROVISIONING.name: "No server is bought: paid orders wait for theirs.",
    NOTIFICATION.name: "No webhook is sent; they are sent later.",
    CONSOLE.name: "Dead letters and replays may stand still.",
}

BREAKER = "breaker"
"""The part of a service that does not work while its consumer only tests single messages."""

PAUSED_MEANING: Mapping[str, str] = {
    ORDER.name: "Answers wait, and no order goes on; none is cancelled meanwhile.",
    INVENTORY.name: "No stock is reserved or released: orders wait, and are not cancelled meanwhile.",
    PAYMENT.name: "Nothing is charged or refunded: orders wait, and are not cancelled meanwhile.",
    PROVISIONING.name: "No new server is bought: paid orders wait; jobs that have begun go on.",
    NOTIFICATION.name: "No new webhook is recorded; those that are recorded are sent.",
}

_DEPENDENT = {MONGODB: {"mongodb"}, RABBITMQ: {"rabbitmq", "consumer", "dead letters"}}
"""The problems that a service has because a server is away: the banner names the server, and not each service."""

_PACKAGED, _IN_REPOSITORY = Path(__file__).parent / "runbooks", Path(__file__).parents[2] / "docs" / "runbooks"


WAITED_FOR = (RABBITMQ, ORDER.name, INVENTORY.name, PAYMENT.name, PROVISIONING.name)
"""What orders wait for while it is away. Without MongoDB they cannot be read, and for the others none waits."""


class Outage(NamedTuple):
    """A server or service that cannot be used, since when, why, what that means, and the name of the runbook.

    `waiting` is about the orders that wait for it; None if that is not known, or none can.
    """

    name: str
    since: datetime
    why: str
    meaning: str
    runbook: str
    state: str = "cannot be used"
    waiting: Impact | None = None

    @property
    def title(self) -> str:
        """How people call it."""
        return self.name if self.name in (MONGODB, RABBITMQ) else f"the {self.name} service"


class PausedInbox(NamedTuple):
    """A consumption that an operator has paused: since when, until when, who, why, and what that means."""

    inbox: str
    since: datetime
    until: datetime | None
    by: str | None
    reason: str | None
    meaning: str


class Check(NamedTuple):
    """Why MongoDB and RabbitMQ are away, those of them that are, and what each service says about itself.

    `ended` is when the check did, on the clock that measures.
    """

    away: Mapping[str, str]
    healths: Mapping[str, Health]
    ended: float = float("-inf")

    @property
    def age(self) -> float:
        """How many seconds ago that was so."""
        return time.monotonic() - self.ended


class StackChecks:
    """Asks servers and services whether they work, once for everybody in this process who wants to know."""

    def __init__(self, dependencies: ConsoleDependencies) -> None:
        self._dependencies = dependencies
        self._last = Check({}, {})
        self._checking = asyncio.Lock()

    async def latest(self, after: float = float("-inf")) -> Check:
        """Return a check that is fresh and ended later than `after`: the last one, that in progress, or a new one."""
        async with self._checking:
            if self._last.ended <= after or self._last.age > FRESH_SECONDS:
                with acting_for(None):  # for everybody, whoever has asked
                    found = await check(self._dependencies)
                self._last = found._replace(ended=time.monotonic())
            return self._last


class OutageWatch:
    """Knows what is away, for all pages that are open."""

    def __init__(self, dependencies: ConsoleDependencies, checks: StackChecks) -> None:
        self._dependencies = dependencies
        self._checks = checks
        self._outages: Sequence[Outage] = ()
        self._pauses: Sequence[PausedInbox] = ()
        self._checked = Check({}, {})
        self._checking = asyncio.Lock()
        self._impact = ImpactReader(dependencies.client, dependencies.prefix)
        self._waiting: Mapping[str, Impact] = {}
        self._count_next_at = float("-inf")
        self._renewal: asyncio.Task[None] | None = None

    @property
    def outages(self) -> Sequence[Outage]:
        """What is away, as last seen."""
        return self._outages

    @property
    def pauses(self) -> Sequence[PausedInbox]:
        """What is paused, as last seen."""
        return self._pauses

    async def look(self) -> None:
        """Return at once if there is a result that can be shown, and renew it in the background; else check."""
        if self._checked.age > USABLE_SECONDS:
            await self.refresh()
        elif self._checked.age > FRESH_SECONDS and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.create_task(self.refresh(), name="outages")

    async def refresh(self) -> None:
        """Check, unless the last result is fresh. A check that another page has begun is awaited."""
        async with self._checking:
            if self._checked.age > FRESH_SECONDS:
                checked = await self._checks.latest()
                with acting_for(None):
                    self._pauses = await self._find_pauses(checked)
                found = outages_of(checked, self._dependencies.clock())
                since = {outage.name: outage.since for outage in self._outages}
                waiting = await self._count_waiting({outage.name for outage in found})
                self._outages = [
                    each._replace(
                        since=min(each.since, since.get(each.name, each.since)), waiting=waiting.get(each.name)
                    )
                    for each in found
                ]
                self._checked = checked

    async def _count_waiting(self, away: set[str]) -> Mapping[str, Impact]:
        """Return which orders wait for what is away; the longer it takes to count them, the less often it is done."""
        names = [name for name in WAITED_FOR if name in away]
        if not names or MONGODB in away:
            self._waiting = {}
        elif time.monotonic() >= self._count_next_at or any(name not in self._waiting for name in names):
            began = time.monotonic()
            found = await attempt(self._impact.of_outages(names, self._dependencies.clock()), MONGODB)
            self._waiting = {} if isinstance(found, Unavailable) else found
            self._count_next_at = began + PAUSE_FACTOR * (time.monotonic() - began)
        return self._waiting

    async def _find_pauses(self, checked: Check) -> list[PausedInbox]:
        paused = {name: health for name, health in checked.healths.items() if health.paused}
        return await asyncio.gather(*(self._paused(name, health) for name, health in paused.items()))

    async def _paused(self, name: str, health: Health) -> PausedInbox:
        """Return who paused a service and why; only the times if it does not say that now."""
        since, until = health.paused or (self._dependencies.clock(), None)
        answer = await self._dependencies.services.get(name, "/consumer")
        pause = answer.body.get("pause") if isinstance(answer, ServiceResponse) else None
        by, reason = (pause.get("by"), pause.get("reason")) if isinstance(pause, dict) else (None, None)
        return PausedInbox(SERVICES[name].inbox, since, until, by, reason, PAUSED_MEANING.get(name, ""))


async def check(dependencies: ConsoleDependencies) -> Check:
    """Ask both servers and all services whether they work."""
    services = dependencies.services
    *servers, healths = await asyncio.gather(
        attempt(dependencies.operations.command("ping"), MONGODB),
        attempt(count_messages(dependencies.amqp_url, ()), RABBITMQ),
        asyncio.gather(*(services.health(name) for name in services.urls)),
    )
    away = {
        name: answer.why
        for name, answer in zip((MONGODB, RABBITMQ), servers, strict=True)
        if isinstance(answer, Unavailable)
    }
    return Check(away, dict(zip(services.urls, healths, strict=True)))


def outages_of(checked: Check, now: datetime) -> list[Outage]:
    """Return what is away; a service that only lacks a server that is away is not."""
    found = [Outage(name, now, why, MEANING[name], "dependency-down") for name, why in checked.away.items()]
    explained = set().union(*(_DEPENDENT[name] for name in checked.away))
    for name, health in checked.healths.items():
        if (outage := _of_service(name, health, explained, now)) is not None:
            found.append(outage)
    return found


def _of_service(name: str, health: Health, explained: set[str], now: datetime) -> Outage | None:
    """Return the outage of a service, None if it works, or would if the servers that are away were back."""
    if health.why is not None:
        return Outage(name, now, health.why, MEANING.get(name, ""), "service-down")
    left = {part: why for part, why in health.down.items() if part not in explained}
    if not left:
        return None
    if set(left) == {BREAKER}:
        since = health.since.get(BREAKER, now)
        state = "has stopped consuming, as all messages fail"
        return Outage(name, since, left[BREAKER], MEANING.get(name, ""), "breaker-open", state)
    since = min((health.since[part] for part in left if part in health.since), default=now)
    why = "; ".join(f"{part}: {why}" for part, why in left.items())
    return Outage(name, since, why, MEANING.get(name, ""), "not-ready")


def read_runbook(name: str) -> str | None:
    """Return the text of a runbook, None if there is none of this name."""
    for directory in (_PACKAGED, _IN_REPOSITORY):
        known = {path.stem: path for path in directory.glob("*.md")}
        if name in known:
            return known[name].read_text()
    return None

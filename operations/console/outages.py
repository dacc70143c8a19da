"""What is away, for the banner that every page shows: since when, what that means, and the runbook."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from operations.console.dependencies import ConsoleDependencies
from operations.console.upstream import Health, Unavailable, attempt
from operations.reading.broker import count_messages
from shared.services import CONSOLE, INVENTORY, NOTIFICATION, ORDER, PAYMENT, PROVISIONING

USABLE_SECONDS = 60.0
"""The age up to which a page that is opened shows a result at once, while the next one is on its way."""

FRESH_SECONDS = 4.0
"""The age up to which all pages share a result; the banner is renewed every 5 s."""

MONGODB, RABBITMQ = "MongoDB", "RabbitMQ"

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

_DEPENDENT = {MONGODB: {"mongodb"}, RABBITMQ: {"rabbitmq", "consumer", "dead letters"}}
"""The problems that a service has because a server is away: the banner names the server, and not each service."""

_PACKAGED, _IN_REPOSITORY = Path(__file__).parent / "runbooks", Path(__file__).parents[2] / "docs" / "runbooks"


class Outage(NamedTuple):
    """A server or service that cannot be used, since when, why, what that means, and the name of the runbook."""

    name: str
    since: datetime
    why: str
    meaning: str
    runbook: str


class OutageWatch:
    """Asks servers and services whether they work, once for all pages that are open."""

    def __init__(self, dependencies: ConsoleDependencies) -> None:
        self._dependencies = dependencies
        self._outages: Sequence[Outage] = ()
        self._checked_at = float("-inf")
        self._checking = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None

    @property
    def outages(self) -> Sequence[Outage]:
        """What is away, as last seen."""
        return self._outages

    async def look(self) -> None:
        """Return at once if there is a result that can be shown, and renew it in the background; else check."""
        if self._age() > USABLE_SECONDS:
            await self.refresh()
        elif self._age() > FRESH_SECONDS and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.create_task(self.refresh(), name="outages")

    def _age(self) -> float:
        return time.monotonic() - self._checked_at

    async def refresh(self) -> None:
        """Check, unless the last result is fresh. A check that another page has begun is awaited."""
        async with self._checking:
            if self._age() > FRESH_SECONDS:
                found = await self._check()
                since = {outage.name: outage.since for outage in self._outages}
                self._outages = [
                    each._replace(since=min(each.since, since.get(each.name, each.since))) for each in found
                ]
                self._checked_at = time.monotonic()

    async def _check(self) -> list[Outage]:
        return outages_of(await check(self._dependencies), self._dependencies.clock())


class Check(NamedTuple):
    """Why MongoDB and RabbitMQ are away, those of them that are, and what each service says about itself."""

    away: Mapping[str, str]
    healths: Mapping[str, Health]


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

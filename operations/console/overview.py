"""The first page: how the shop does at this moment, and what is wrong."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.figures import Open, Recent, read_open, read_recent
from operations.console.pages import Pages
from operations.console.upstream import Missing, attempt
from operations.dead_letters.groups import GroupPage
from operations.dead_letters.service import DeadLetterService
from operations.reading.broker import count_messages
from shared.database import Document
from shared.topology import DEAD_LETTERS

FRESH_SECONDS = 2.0
"""How long a look at the servers is shown to everybody who asks."""

REST_FACTOR = 20
"""How much longer than a look at the dead letters the time without one is."""

GROUPS = 8
"""Groups of dead letters that are shown, those with the newest failures."""

SERVICES = ("order", "inventory", "payment", "provisioning")


class Health(NamedTuple):
    """Whether a service is ready; if not, why."""

    name: str
    trouble: str | None


class Snapshot(NamedTuple):
    """Everything that the overview shows; a part that could not be had is Missing."""

    recent: Recent | Missing
    open: Open | Missing
    queues: dict[str, int | None] | Missing
    low: list[Document] | Missing
    groups: GroupPage | Missing
    letters: dict[str, int] | Missing
    health: Sequence[Health]

    @property
    def waiting(self) -> int:
        """Messages in all queues but that of the dead letters."""
        if isinstance(self.queues, Missing):
            return 0
        return sum(count or 0 for name, count in self.queues.items() if name != DEAD_LETTERS)

    @property
    def most_waiting(self) -> int:
        """The length of the longest queue, at least 1: what the bars are drawn to."""
        return 1 if isinstance(self.queues, Missing) else max([1, *(count or 0 for count in self.queues.values())])


class LetterWatch:
    """Looks at the dead letters; the longer a look takes, the more seldom.

    Counting 100,000 letters takes half a second, which a page that nobody reads must not take from the database every
    two seconds.
    """

    def __init__(self, letters: DeadLetterService, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._letters = letters
        self._monotonic = monotonic
        self._last: tuple[GroupPage | Missing, dict[str, int] | Missing] | None = None
        self._next_at = 0.0

    async def look(self) -> tuple[GroupPage | Missing, dict[str, int] | Missing]:
        """The groups that are open and the counts by status, the last ones or new ones."""
        if self._last is None or self._monotonic() >= self._next_at:
            began = self._monotonic()
            self._last = await asyncio.gather(
                attempt(self._letters.group_page(open_only=True, limit=GROUPS), "MongoDB"),
                attempt(self._letters.counts(), "MongoDB"),
            )
            failed = any(isinstance(part, Missing) for part in self._last)
            took = 0.0 if failed else self._monotonic() - began
            self._next_at = began + max(FRESH_SECONDS / 2, REST_FACTOR * took)
        return self._last


class Lookout:
    """Takes snapshots, one for all who look at the same time."""

    def __init__(self, desk: ConsoleDependencies) -> None:
        self._desk = desk
        self._letters = LetterWatch(DeadLetterService(desk.operations))
        self._taking = asyncio.Lock()
        self._last: Snapshot | None = None
        self._taken_at = 0.0

    async def snapshot(self) -> Snapshot:
        """The state of things, at most FRESH_SECONDS old."""
        async with self._taking:
            if self._last is None or time.monotonic() - self._taken_at > FRESH_SECONDS:
                self._last = await self._take()
                self._taken_at = time.monotonic()
            return self._last

    async def _take(self) -> Snapshot:
        desk = self._desk
        (recent, unsettled, queues), low, (groups, counts), health = await asyncio.gather(
            asyncio.gather(
                attempt(read_recent(desk.orders, desk.clock()), "MongoDB"),
                attempt(read_open(desk.orders), "MongoDB"),
                attempt(count_messages(desk.amqp_url), "RabbitMQ"),
            ),
            attempt(desk.packages.find({"low": True}).sort("ipv4").limit(20).to_list(None), "MongoDB"),
            self._letters.look(),
            asyncio.gather(*(desk.services.ready(name) for name in SERVICES)),
        )
        troubles = [Health(name, trouble) for name, trouble in zip(SERVICES, health, strict=True)]
        return Snapshot(recent, unsettled, queues, low, groups, counts, troubles)


def create_overview(desk: ConsoleDependencies, pages: Pages) -> APIRouter:
    """The overview and the part of it that renews itself."""
    router, lookout = pages.router(), Lookout(desk)

    async def show(request: Request, template: str) -> Response:
        return pages.show(request, template, snapshot=await lookout.snapshot(), dead_letters_queue=DEAD_LETTERS)

    @router.get("/")
    async def overview(request: Request) -> Response:
        return await show(request, "overview.html")

    @router.get("/overview")
    async def live(request: Request) -> Response:
        return await show(request, "overview_live.html")

    return router

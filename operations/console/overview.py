"""The overview: the current state of the shop, and its problems."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.figures import OpenOrders, RecentOrders, read_open_orders, read_recent_orders
from operations.console.health import PartGroup, Problems, count_problems, read_health
from operations.console.history import Asked, History, create_history
from operations.console.pages import Pages
from operations.console.retry_offer import RetryOffer, read_retry_offer
from operations.console.upstream import PAUSE_FACTOR, Unavailable, attempt
from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.service import DeadLetterService
from operations.impact.ranking import Impacts, RankedPage, rank_groups
from operations.impact.reading import ImpactReader
from operations.reading.broker import count_messages
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.database import Document
from shared.http import add_routes
from shared.topology import DEAD_LETTERS, INBOXES

FRESH_SECONDS = 2.0
"""The time for which all operators see the same snapshot."""

GROUPS = 8
"""The number of groups shown, those that do the most harm."""

SECONDS = 10.0
"""The time limit for the groups: the first time, everything that they are about is read."""


_OPEN_GROUPS = GroupFilters(open_only=True)


class OverviewSnapshot(NamedTuple):
    """Everything that the overview shows; parts that could not be read are Unavailable."""

    recent: RecentOrders | Unavailable
    open: OpenOrders | Unavailable
    queues: dict[str, int | None] | Unavailable
    low: list[Document] | Unavailable
    groups: RankedPage | Unavailable
    letters: dict[str, int] | Unavailable
    health: Sequence[PartGroup]

    @property
    def problems(self) -> Problems:
        """How many parts of the stack do not work or are degraded, and how many there are."""
        return count_problems(self.health)

    @property
    def shown_queues(self) -> dict[str, int | None]:
        """The inboxes and the dead letters, and every other queue that is not empty."""
        if isinstance(self.queues, Unavailable):
            return {}
        always = (*INBOXES, DEAD_LETTERS)
        return {name: count for name, count in self.queues.items() if name in always or count != 0}

    @property
    def waiting(self) -> int:
        """The number of messages in all queues except the dead letters."""
        if isinstance(self.queues, Unavailable):
            return 0
        return sum(count or 0 for name, count in self.queues.items() if name != DEAD_LETTERS)

    @property
    def most_waiting(self) -> int:
        """The length of the longest queue, at least 1, as the scale of the bars."""
        return 1 if isinstance(self.queues, Unavailable) else max([1, *(count or 0 for count in self.queues.values())])


class DeadLetterCache:
    """Caches the dead letters; the longer it takes to count them, the less often it does.

    Counting 100,000 letters takes half a second, too much for the database to do every two seconds.
    """

    def __init__(
        self, service: DeadLetterService, impacts: Impacts, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._service = service
        self._impacts = impacts
        self._monotonic = monotonic
        self._last: tuple[RankedPage | Unavailable, dict[str, int] | Unavailable] | None = None
        self._next_at = 0.0

    async def read(self) -> tuple[RankedPage | Unavailable, dict[str, int] | Unavailable]:
        """Return the open groups and the counts by status, from the cache or the database."""
        if self._last is None or self._monotonic() >= self._next_at:
            began = self._monotonic()
            self._last = await asyncio.gather(
                attempt(rank_groups(self._service, self._impacts, _OPEN_GROUPS, limit=GROUPS), "MongoDB", SECONDS),
                attempt(self._service.counts(), "MongoDB"),
            )
            took = self._monotonic() - began
            failed = any(isinstance(part, Unavailable) for part in self._last)
            # A failure is tried again sooner, but one that took long leaves the database some time.
            self._next_at = began + max(FRESH_SECONDS / 2, 2 * took if failed else PAUSE_FACTOR * took)
        return self._last


class SnapshotCache:
    """Takes snapshots for the overview, and shares each with all operators."""

    def __init__(self, dependencies: ConsoleDependencies) -> None:
        self._dependencies = dependencies
        impacts = ImpactReader(dependencies.client, dependencies.prefix)
        self._dead_letters = DeadLetterCache(DeadLetterService(dependencies.operations), impacts)
        self._taking = asyncio.Lock()
        self._last: OverviewSnapshot | None = None
        self._taken_at = 0.0

    async def read(self) -> OverviewSnapshot:
        """Return a snapshot that is at most FRESH_SECONDS old."""
        async with self._taking:
            if self._last is None or time.monotonic() - self._taken_at > FRESH_SECONDS:
                self._last = await self._take()
                self._taken_at = time.monotonic()
            return self._last

    async def _take(self) -> OverviewSnapshot:
        dependencies = self._dependencies
        queues_read = asyncio.ensure_future(attempt(count_messages(dependencies.amqp_url), "RabbitMQ"))
        (recent, unsettled), queues, low, (groups, counts), health = await asyncio.gather(
            asyncio.gather(
                attempt(read_recent_orders(dependencies.orders, dependencies.clock()), "MongoDB"),
                attempt(read_open_orders(dependencies.orders), "MongoDB"),
            ),
            queues_read,
            attempt(dependencies.packages.find({"low": True}).sort("ipv4").limit(20).to_list(None), "MongoDB"),
            self._dead_letters.read(),
            read_health(dependencies, queues_read),
        )
        return OverviewSnapshot(recent, unsettled, queues, low, groups, counts, health)


def create_overview(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the overview and its live parts."""
    router, cache, history = pages.router(), SnapshotCache(dependencies), History(dependencies)
    add_routes(router, create_history(pages, history))

    def show(request: Request, template: str, snapshot: OverviewSnapshot, **values: object) -> Response:
        return pages.show(request, template, snapshot=snapshot, dead_letters_queue=DEAD_LETTERS, **values)

    async def offer_of(snapshot: OverviewSnapshot, caller: Principal) -> RetryOffer | None:
        if isinstance(snapshot.open, Unavailable) or not caller.may(Permission.ORDERS_DECIDE):
            return None
        return await read_retry_offer(dependencies, snapshot.open.undecided)

    @router.get("/")
    @requires(Permission.SELF_READ)
    async def overview(request: Request, caller: Caller, asked: Asked = "") -> Response:
        # At once: while MongoDB is away, each takes its whole time.
        snapshot, values = await asyncio.gather(cache.read(), history.values(request, asked))
        retry = await offer_of(snapshot, caller)
        return show(request, "overview.html", snapshot, retry=retry, **values)

    @router.get("/overview")
    @requires(Permission.SELF_READ)
    async def live(request: Request) -> Response:
        return show(request, "overview_live.html", await cache.read())

    @router.get("/overview/figures")
    @requires(Permission.SELF_READ)
    async def figures(request: Request) -> Response:
        return show(request, "overview_figures.html", await cache.read())

    return router

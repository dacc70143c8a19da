"""The charts of the overview: throughput, latency, failures and queue age over time, from the samples."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from operations.console.charts import HEIGHT, WIDTH, charts_of, step_in_words
from operations.console.dependencies import ConsoleDependencies
from operations.console.pages import Pages
from operations.console.upstream import PAUSE_FACTOR, Unavailable, attempt
from operations.samples.history import RANGES, Point, Range, points_of
from operations.samples.records import SampleRecords
from shared.access.middleware import caller_of, requires
from shared.access.permissions import Permission
from shared.http import invalid

FRESH_SECONDS = 10.0
"""The time for which all operators see the same charts; there is a new sample once a minute."""

SECONDS = 10.0
"""The time limit for the samples of a range."""

REFRESH_SECONDS = 30
"""How often a page that is open renews its charts."""

Asked = Annotated[str, Query(alias="range", max_length=10)]


def range_of(asked: str) -> Range:
    """Return the range of this name, by default the shortest one. Raises the 422 problem for another."""
    if asked and asked not in RANGES:
        raise invalid(("range", f"is {asked!r}, must be one of {', '.join(RANGES)}"))
    return RANGES[asked] if asked else next(iter(RANGES.values()))


class HistoryCache:
    """Reads the points of each range, and shares them with all operators."""

    def __init__(self, dependencies: ConsoleDependencies, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._records = SampleRecords(dependencies.operations)
        self._clock = dependencies.clock
        self._monotonic = monotonic
        self._reading = {name: asyncio.Lock() for name in RANGES}
        self._last: dict[str, tuple[float, Sequence[Point] | Unavailable]] = {}

    async def read(self, wanted: Range) -> Sequence[Point] | Unavailable:
        """Return the points of a range, from the cache or the database, which is read once for all who wait."""
        async with self._reading[wanted.name]:
            return await self._read_once(wanted)

    async def _read_once(self, wanted: Range) -> Sequence[Point] | Unavailable:
        began = self._monotonic()
        if wanted.name in self._last and began < self._last[wanted.name][0]:
            return self._last[wanted.name][1]
        found = await attempt(self._read(wanted), "MongoDB", SECONDS)
        took = self._monotonic() - began
        fresh = 1.0 if isinstance(found, Unavailable) else max(FRESH_SECONDS, PAUSE_FACTOR * took)
        self._last[wanted.name] = began + fresh, found
        return found

    async def _read(self, wanted: Range) -> Sequence[Point]:
        now = self._clock()
        samples = await self._records.since(now - wanted.span - wanted.step)
        # A week has ten thousand samples: adding them up must not hold up other pages.
        return await asyncio.to_thread(points_of, samples, wanted, now)


class History:
    """The charts, for the overview and for their own live part."""

    def __init__(self, dependencies: ConsoleDependencies) -> None:
        self._cache = HistoryCache(dependencies)

    async def values(self, request: Request, asked: str) -> dict[str, object]:
        """Return what the template of the charts needs."""
        wanted, caller = range_of(asked), caller_of(request.scope)
        points = await self._cache.read(wanted)
        letters = caller is not None and caller.may(Permission.LETTERS_READ)
        known = [] if isinstance(points, Unavailable) else points
        return {
            "points": points,
            "charts": charts_of(known, letters=letters),
            "shown_range": wanted,
            "ranges": RANGES.values(),
            "step": step_in_words(wanted),
            "chart_size": (WIDTH, HEIGHT),
            "refresh_seconds": REFRESH_SECONDS,
            "incomplete": any(not point.complete for point in known),
            "no_samples": all(point.accepted is None for point in known),
        }


def create_history(pages: Pages, history: History) -> APIRouter:
    """Return the route of the charts as a live part of the overview."""
    router = pages.router()

    @router.get("/overview/charts")
    @requires(Permission.SELF_READ)
    async def charts(request: Request, asked: Asked = "") -> Response:
        return pages.show(request, "charts.html", **await history.values(request, asked))

    return router

"""The list of groups of dead letters, with filters, order and pages."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.impacts import ImpactCache
from operations.console.lists import SPANS, page_links, read_period
from operations.console.pages import Pages
from operations.console.saved_views import views_of
from operations.console.upstream import Unavailable, attempt
from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.outcome import ReplayOutcome
from operations.dead_letters.service import DeadLetterService
from operations.dead_letters.status import GROUP_STATUSES
from operations.impact.ranking import Sorting, rank_groups
from operations.impact.reading import ImpactReader
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.database import Document
from shared.topology import INBOXES

GROUPS = 50
"""Groups on a page."""

SECONDS = 10.0
"""The time limit for the list: the first one after a while reads what all groups are about."""

PATH = "/dead-letters"

Short = Annotated[str, Query(max_length=300)]


def create_groups(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the route of the list of groups."""
    router, service = pages.router(), DeadLetterService(dependencies.operations)
    impacts = ImpactCache(ImpactReader(dependencies.client, dependencies.prefix))

    @router.get(PATH)
    @requires(Permission.LETTERS_READ)
    async def groups(
        request: Request,
        status: Short = "",
        inbox: Short = "",
        cause: Short = "",
        product: Short = "",
        span: Short = "",
        since: Short = "",
        until: Short = "",
        sort: Sorting = Sorting.HARM,
        page: Annotated[int, Query(ge=1, le=10_000)] = 1,
    ) -> Response:
        asked = {"status": status, "inbox": inbox, "cause": cause, "product": product, "span": span}
        asked = {name: text.strip() for name, text in (asked | {"since": since, "until": until}).items()}
        period = read_period(span, since, until, dependencies.clock())
        filters = GroupFilters(
            status=asked["status"] or None,
            queue=asked["inbox"] or None,
            cause=asked["cause"] or None,
            product=asked["product"] or None,
            since=period.since,
            until=period.until,
        )
        ranking = rank_groups(service, impacts, filters, by=sort, limit=GROUPS, skip=(page - 1) * GROUPS)
        found, counts, replays = await asyncio.gather(
            attempt(ranking, "MongoDB", SECONDS),
            attempt(service.counts(), "MongoDB"),
            attempt(newest_replays(service, 5), "MongoDB"),
        )
        chosen = asked | ({"sort": str(sort)} if sort is not Sorting.HARM else {})
        links = None
        if not isinstance(found, Unavailable):
            links = page_links(PATH, chosen, page=page, size=GROUPS, shown=len(found.items), total=found.total)
        return pages.show(
            request,
            "groups.html",
            found=found,
            links=links,
            counts=counts,
            replays=replays,
            asked=asked,
            filtered=any(asked.values()),
            sort=sort,
            sortings=list(Sorting),
            spans=SPANS,
            statuses=GROUP_STATUSES,
            inboxes=list(INBOXES),
            views=await views_of(request, dependencies, PATH),
        )

    return router


async def newest_replays(service: DeadLetterService, limit: int, skip: int = 0) -> list[tuple[Document, ReplayOutcome]]:
    """Return replays with what became of their letters, the newest first, without the first `skip`."""
    found = await service.replays(limit, skip)
    outcomes = await service.outcomes(replay["_id"] for replay in found)
    return [(replay, outcomes[replay["_id"]]) for replay in found]

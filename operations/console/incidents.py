"""The page of incidents: what happened to the stack itself."""

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.pages import Pages
from operations.console.saved_views import views_of
from operations.console.upstream import Unavailable, attempt
from operations.dead_letters.times import read_time
from operations.incidents.incident import KINDS, SEVERITIES
from operations.incidents.records import IncidentFilter, IncidentRecords
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.http import invalid
from shared.paging import wrong_cursor
from shared.services import SERVICES

PAGE = 50

Field = Annotated[str, Query(max_length=100)]


def _asked(
    kind: Field = "", severity: Field = "", service: Field = "", since: Field = "", until: Field = ""
) -> Mapping[str, str]:
    return {"kind": kind, "severity": severity, "service": service, "since": since, "until": until}


Asked = Annotated[Mapping[str, str], Depends(_asked)]
"""The fields of the form, by name."""


def create_incidents(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the page and its live part."""
    router, records = pages.router(), IncidentRecords(dependencies.operations)

    async def show(request: Request, template: str, asked: Mapping[str, str], cursor: str | None) -> Response:
        wanted = _filter(asked, dependencies)
        try:
            found = await attempt(records.page(wanted, limit=PAGE, cursor=cursor), "MongoDB")
        except ValueError:
            raise wrong_cursor() from None
        chosen = {name: value for name, value in asked.items() if value}
        more = None
        if not isinstance(found, Unavailable) and found.next_cursor:
            more = "/incidents?" + urlencode({**chosen, "cursor": found.next_cursor})
        return pages.show(
            request,
            template,
            found=found,
            asked=asked,
            query=urlencode(chosen),
            cursor=cursor,
            more=more,
            kinds=KINDS,
            severities=SEVERITIES,
            services=SERVICES,
            views=await views_of(request, dependencies, "/incidents"),
        )

    @router.get("/incidents")
    @requires(Permission.LETTERS_READ)
    async def page(
        request: Request, asked: Asked, cursor: Annotated[str | None, Query(max_length=1000)] = None
    ) -> Response:
        return await show(request, "incidents.html", asked, cursor)

    @router.get("/incidents/live")
    @requires(Permission.LETTERS_READ)
    async def live(request: Request, asked: Asked) -> Response:
        return await show(request, "incidents_live.html", asked, None)

    return router


def _filter(asked: Mapping[str, str], dependencies: ConsoleDependencies) -> IncidentFilter:
    """Return the filter that a form describes. Raises the problem of an invalid field."""
    now, times = dependencies.clock(), {}
    for name in ("since", "until"):
        text = asked[name].strip()
        try:
            times[name] = read_time(text, now) if text else None
        except ValueError as error:
            raise invalid((name, str(error))) from None
    for name, known in (("kind", KINDS), ("severity", SEVERITIES)):
        if asked[name] and asked[name] not in known:
            raise invalid((name, f"must be one of {', '.join(known)}"))
    one = {name: (asked[name],) if asked[name] else () for name in ("kind", "severity", "service")}
    return IncidentFilter(one["kind"], one["severity"], one["service"], times["since"], times["until"])

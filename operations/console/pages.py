"""Renders templates as responses, with the security headers of every page, and errors as pages."""

from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from pymongo.errors import PyMongoError
from starlette.exceptions import HTTPException

from operations.console import wording
from operations.console.dependencies import ConsoleDependencies
from operations.console.form_limits import refuse_form
from operations.console.outages import OutageWatch
from operations.console.staff import serving_staff
from operations.console.upstream import Unavailable
from operations.errors import UnreachableError
from shared.access.middleware import caller_of
from shared.access.permissions import STAFF, Permission
from shared.errors import TransientError
from shared.http import ProblemError, authorize
from shared.outage_words import in_words, with_detail

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"

SECURITY: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

NAVIGATION = (
    ("/", "Overview", Permission.SELF_READ),
    ("/dead-letters", "Dead letters", Permission.LETTERS_READ),
    ("/orders", "Orders", Permission.ORDERS_READ),
    ("/inventory", "Inventory", Permission.CATALOGUE_READ),
    ("/packages", "Packages", Permission.PROVISIONING_READ),
    ("/consumers", "Consumers", Permission.LETTERS_READ),
    ("/webhooks", "Webhooks", Permission.WEBHOOKS_READ),
    ("/audit", "Audit", Permission.LETTERS_READ),
    ("/incidents", "Incidents", Permission.LETTERS_READ),
    ("/approvals", "Approvals", Permission.ORDERS_READ),
    ("/actions", "Actions", Permission.LETTERS_READ),
)
"""The sections, with the permission that each needs."""

BENEATH = {"/slots": "/inventory", "/products": "/inventory", "/jobs": "/packages", "/locks": "/packages"}
"""The pages that belong to a section with another address."""

_log = structlog.get_logger(__name__)

Handle = Callable[[Request], Coroutine[Any, Any, Response]]


@cache
def _templates() -> Environment:
    """The templates, which are compiled once in a process, with the first page that needs each."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(wording.FILTERS)
    templates.tests["unavailable"] = lambda value: isinstance(value, Unavailable)
    return templates


class Pages:
    """The templates of a console."""

    def __init__(self, dependencies: ConsoleDependencies, watch: OutageWatch) -> None:
        self._dependencies = dependencies
        self._watch = watch
        self._templates = _templates()

    def show(self, request: Request, template: str, status: int = HTTPStatus.OK, /, **values: Any) -> Response:
        """Render a page, or a part of one."""
        now, person = self._dependencies.clock(), caller_of(request.scope)

        def may(permission: str) -> bool:
            return person is not None and person.may(Permission(permission))

        text = self._templates.get_template(template).render(
            navigation=[(address, name) for address, name, permission in NAVIGATION if may(permission)],
            person=person,
            may=may,
            section=_section(request.url.path),
            now=now,
            ago=_Ago(now),
            outages=self._watch.outages if person is not None and person.roles & STAFF else (),
            pauses=self._watch.pauses if person is not None and person.roles & STAFF else (),
            **values,
        )
        # Text from outside may contain lone surrogates, which cannot be encoded.
        return HTMLResponse(text.encode("utf-8", "backslashreplace"), int(status), SECURITY)

    async def look_for_outages(self) -> None:
        """Find out what is away, for the banner of a page that is opened; one that was open lately need not wait."""
        await self._watch.look()

    async def refresh_outages(self) -> None:
        """Find out what is away, for the banner alone, unless that is known already."""
        await self._watch.refresh()

    def problem(self, request: Request, status: HTTPStatus, detail: str) -> Response:
        """Render an error as a page, or as a part if a part was requested."""
        whole = "not_found.html" if status is HTTPStatus.NOT_FOUND and caller_of(request.scope) else "problem.html"
        template = "problem_part.html" if request.headers.get("HX-Request") else whole
        return self.show(request, template, status, title=_TITLES.get(status, status.phrase), detail=detail)

    def router(self) -> APIRouter:
        """Return a router that renders errors as pages too."""
        return APIRouter(route_class=_page_route(self), include_in_schema=False)


_TITLES = {
    HTTPStatus.NOT_FOUND: "Not found",
    HTTPStatus.FORBIDDEN: "Refused",
    HTTPStatus.SERVICE_UNAVAILABLE: "A server is not responding",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Invalid input",
}


class _Ago:
    """Describes times relative to the time of the page."""

    def __init__(self, now: datetime) -> None:
        self._now = now

    def __call__(self, at: datetime) -> str:
        return wording.ago(at, self._now)


def _section(path: str) -> str:
    first = "/" + path.split("/")[1]
    return BENEATH.get(first, first)


def _page_route(pages: Pages) -> type[APIRoute]:
    class PageRoute(APIRoute):
        for_staff = True
        """Pages show the records of every owner, whatever the reach of the permission that they need."""

        def get_route_handler(self) -> Handle:
            handle = super().get_route_handler()

            async def handle_if_allowed(request: Request) -> Response:
                authorize(request.scope, self.endpoint)
                with serving_staff(request):
                    return await _checked(pages, request, handle)

            async def handle_or_explain(request: Request) -> Response:
                return await _explained(pages, request, handle_if_allowed)

            return handle_or_explain

    return PageRoute


async def _checked(pages: Pages, request: Request, handle: Handle) -> Response:
    if _is_whole_page(request) and caller_of(request.scope) is not None:
        await pages.look_for_outages()
    if request.method == "POST":
        # The framework caches the body, so the handler can read it again.
        refused = refuse_form(request.headers.get("content-type", ""), await request.body())
        if refused is not None:
            return pages.problem(request, refused.status, refused.detail)
    return await handle(request)


def _is_whole_page(request: Request) -> bool:
    """Return whether somebody opens a page, with its banner of outages: not a part of one, a file or an action."""
    return (
        request.method == "GET"
        and not request.headers.get("HX-Request")
        and not request.url.path.startswith("/static/")
    )


async def _explained(pages: Pages, request: Request, handle: Handle) -> Response:
    try:
        return await handle(request)
    except ProblemError as error:
        return pages.problem(request, error.status, error.detail)
    except HTTPException as error:
        return pages.problem(request, HTTPStatus(error.status_code), str(error.detail))
    except RequestValidationError as error:
        return pages.problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, wording.validation_text(error))
    except (PyMongoError, UnreachableError, TransientError) as error:
        _log.warning("a page is not available", path=request.url.path, error=with_detail(error))
        return pages.problem(request, HTTPStatus.SERVICE_UNAVAILABLE, _outage(error))


def _outage(error: Exception) -> str:
    """Return which server is away, and why; errors of MongoDB's driver do not say that it is MongoDB."""
    return f"MongoDB: {in_words(error)}" if isinstance(error, PyMongoError) else in_words(error)

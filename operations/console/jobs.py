"""The pages about provisioning jobs: the servers that are being bought, and one order's job with its attempts."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.lists import SPANS, address, read_period
from operations.console.pages import Pages
from operations.console.upstream import Unavailable, attempt
from operations.jobs.search import OPEN, JobSearch, count_jobs, find_job, find_jobs, states_of
from operations.jobs.wording import STEPS, attempts_in_words, last_error, next_attempt_at, requested_at, what_next
from provisioning_service.job import State
from provisioning_service.jobs import MAX_ATTEMPTS
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.http import invalid, not_found

STATUSES = (OPEN, *(str(state) for state in State))

Text = Annotated[str, Query(max_length=200)]

_WORDS = {
    "attempts_in_words": attempts_in_words,
    "last_error": last_error,
    "next_attempt_at": next_attempt_at,
    "requested_at": requested_at,
    "what_next": what_next,
}
"""What the templates say about a job."""


def create_jobs(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the list and of one job."""
    router = pages.router()

    @router.get("/jobs")
    @requires(Permission.ORDERS_READ)
    async def jobs(
        request: Request,
        status: Text = "",
        package: Text = "",
        order: Text = "",
        span: Text = "",
        since: Text = "",
        until: Text = "",
        cursor: Annotated[str | None, Query(max_length=1000)] = None,
        *,
        caller: Caller,
    ) -> Response:
        period = read_period(span, since, until, dependencies.clock())
        search = JobSearch(_states(status), package.strip(), order.strip(), period.since, period.until)
        found, total = await asyncio.gather(
            attempt(find_jobs(dependencies.jobs, search, cursor), "MongoDB"),
            attempt(count_jobs(dependencies.jobs, search), "MongoDB"),
        )
        asked = {"status": status, "package": package, "order": order, "span": span, "since": since, "until": until}
        following = None if isinstance(found, Unavailable) else found.next_cursor
        return pages.show(
            request,
            "jobs.html",
            found=found,
            total=total,
            asked=asked,
            first=address("/jobs", asked) if cursor else None,
            # A span ends now, so its beginning stays the same on all pages only as a time.
            more=address("/jobs", asked | _fixed(search, span), cursor=following) if following else None,
            statuses=STATUSES,
            spans=SPANS,
            packages=caller.may(Permission.PROVISIONING_READ),
            **_WORDS,
        )

    @router.get("/jobs/{order_id}")
    @requires(Permission.ORDERS_READ)
    async def job(
        request: Request, order_id: Annotated[str, Path(min_length=1, max_length=200)], caller: Caller
    ) -> Response:
        found = await find_job(dependencies.jobs, order_id)
        if found is None:
            raise not_found(f"A job of order {order_id}")
        packages = caller.may(Permission.PROVISIONING_READ)
        return pages.show(request, "job.html", job=found, titles=STEPS, most=MAX_ATTEMPTS, packages=packages, **_WORDS)

    return router


def _states(status: str) -> tuple[str, ...]:
    try:
        return states_of(status)
    except ValueError:
        raise invalid(("status", f"is {status!r}, must be one of {', '.join(STATUSES)}")) from None


def _fixed(search: JobSearch, span: str) -> dict[str, str]:
    return {"span": "", "since": search.since.isoformat()} if span and search.since else {}

"""The routes about provisioning jobs: the servers that are being bought."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field

from operations.api.routes import staff_router
from operations.console.dependencies import ConsoleDependencies
from operations.jobs.search import MOST_COUNTED, OPEN_STATES, JobSearch, count_jobs, find_job, find_jobs
from operations.jobs.wording import last_error, next_attempt_at, requested_at
from provisioning_service.job import State, Step
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.clock import to_rfc3339
from shared.database import Document
from shared.http import View, invalid, json_response, not_found
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit
from shared.validation import Moment

States = Annotated[list[State] | None, Query(description="Once for each status that is wanted")]


class ListedJobView(View):
    """A job of the list; a retry of its order is another run of it."""

    order_id: str
    owner_id: str | None
    status: State
    step: Step
    package: str | None = Field(description="null where a cancellation came before the request")
    run: int
    purchase_attempts: int = Field(description="of this run, to buy")
    credential_attempts: int = Field(description="of this run, to get the credentials of what was bought")
    requested_at: datetime | None = Field(description="when this run was requested")
    last_error: str | None
    next_attempt_at: datetime | None = Field(description="null unless it waits for its next attempt")
    ip: str | None
    created_at: datetime
    updated_at: datetime


class ListedJobPage(View):
    """A page of jobs, the newest first; beyond 10,000 jobs, `total` is the least that there are."""

    items: list[ListedJobView]
    next_cursor: str | None
    total: int
    total_is_exact: bool


class JobEntryView(View):
    """One line of a job's log."""

    step: Step
    at: datetime
    outcome: str = Field(description="ok, failed or unknown")
    detail: str


class OpenPurchaseView(View):
    """The last attempt to buy that has given no address."""

    asked: list[str] = Field(description="the addresses that were asked for")
    started_at: datetime
    answered: bool = Field(description="if not, the provider may still complete it")


class JobDetail(ListedJobView):
    """A job with its log, which has its latest 200 attempts."""

    failure_code: str | None
    retryable: bool
    wrong_ips: list[str] = Field(description="addresses that the provider assigned and the order must not have")
    purchase: OpenPurchaseView | None
    attempts: list[JobEntryView]


def create_jobs(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the routes."""
    router = staff_router("provisioning")

    @router.get("/jobs", response_model=ListedJobPage)
    @requires(Permission.ORDERS_READ)
    async def list_jobs(
        status: States = None,
        unfinished: Annotated[bool, Query(description="Only jobs that something is still to happen to")] = False,
        package: Annotated[str, Query(max_length=200)] = "",
        order_id: Annotated[str, Query(alias="orderId", max_length=200, description="Or how it begins")] = "",
        since: Moment | None = None,
        until: Moment | None = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
    ) -> Response:
        """Jobs that match all that is asked for, the newest first, and how many there are."""
        if status and unfinished:
            raise invalid(("unfinished", "is allowed without status only"))
        states = OPEN_STATES if unfinished else tuple(status or ())
        search = JobSearch(states, package, order_id, since, until)
        page = await find_jobs(dependencies.jobs, search, cursor, limit=limit)
        total = await count_jobs(dependencies.jobs, search)
        return json_response(
            {
                "items": [_listed(job) for job in page.items],
                "nextCursor": page.next_cursor,
                "total": total,
                "totalIsExact": total < MOST_COUNTED,
            }
        )

    @router.get("/jobs/{order_id}", response_model=JobDetail)
    @requires(Permission.ORDERS_READ)
    async def get_job(order_id: str) -> Response:
        """The job of an order, with each of its attempts."""
        job = await find_job(dependencies.jobs, order_id)
        if job is None:
            raise not_found(f"A job of order {order_id}")
        return json_response(_listed(job) | _rest(job))

    return router


def _listed(job: Document) -> dict[str, Any]:
    return {
        "orderId": job["_id"],
        "ownerId": job.get("ownerId"),
        "status": job["state"],
        "step": job["step"],
        "package": job.get("package"),
        "run": job.get("run") or 1,
        "purchaseAttempts": job.get("buys") or 0,
        "credentialAttempts": job.get("looks") or 0,
        "requestedAt": _moment(requested_at(job)),
        "lastError": last_error(job),
        "nextAttemptAt": _moment(next_attempt_at(job)),
        "ip": job.get("ip"),
        "createdAt": to_rfc3339(job["createdAt"]),
        "updatedAt": to_rfc3339(job["updatedAt"]),
    }


def _rest(job: Document) -> dict[str, Any]:
    purchase = job.get("purchase")
    return {
        "failureCode": job.get("failureCode"),
        "retryable": bool(job.get("retryable")),
        "wrongIps": job.get("wrongIps") or [],
        "purchase": {
            "asked": purchase["asked"],
            "startedAt": to_rfc3339(purchase["startedAt"]),
            "answered": purchase["answered"],
        }
        if purchase
        else None,
        "attempts": [
            {"step": each["step"], "at": to_rfc3339(each["at"]), "outcome": each["outcome"], "detail": each["detail"]}
            for each in job.get("attempts") or ()
        ],
    }


def _moment(at: datetime | None) -> str | None:
    return None if at is None else to_rfc3339(at)

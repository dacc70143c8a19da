"""The provisioning service's HTTP routes: what is recorded about jobs."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from provisioning_service.jobs import Jobs
from provisioning_service.lifecycle import Job, State
from shared.contracts.base import Name
from shared.http import View, json_response, new_router, not_found
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, read_cursor, write_cursor

OrderIdParameter = Annotated[str, Path(min_length=1, max_length=200)]


class JobView(View):
    """An order's job; package and RAM are null where a cancellation came before its request."""

    order_id: str
    package: str | None
    ram: int | None
    state: State
    attempts: list[dict[str, str]]
    next_attempt_at: str | None
    ip: str | None
    failure_reason: str | None


class JobPage(View):
    """A page of jobs, in the order of their orders' ids."""

    items: list[JobView]
    next_cursor: str | None


def create_router(jobs: Jobs) -> APIRouter:
    """The routes over these jobs."""
    router = new_router("jobs")

    @router.get("/jobs", response_model=JobPage)
    async def list_jobs(
        status: State | None = None,
        package: Annotated[Name | None, Query()] = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
    ) -> Response:
        """Jobs in the order of their orders' ids; all of them, or those in one state or for one package."""
        after = None if cursor is None else read_cursor(cursor, (str,))[0]
        page = await jobs.page(status, package, after=after, limit=limit)
        following = write_cursor([page[-1].order_id]) if len(page) == limit else None
        return json_response({"items": [show(job) for job in page], "nextCursor": following})

    @router.get("/jobs/{order_id}", response_model=JobView)
    async def get_job(order_id: OrderIdParameter) -> Response:
        """The job of one order."""
        job = await jobs.find(order_id)
        if job is None:
            raise not_found(f"A job of order {order_id}")
        return json_response(show(job))

    return router


def show(job: Job) -> dict[str, Any]:
    """Write a job as JobView describes it; nothing was attempted, since there is nobody to buy from."""
    return {
        "orderId": job.order_id,
        "package": job.package,
        "ram": job.ram,
        "state": job.state,
        "attempts": [],
        "nextAttemptAt": None,
        "ip": None,
        "failureReason": job.failure_reason,
    }

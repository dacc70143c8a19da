"""What all routes of the operations API share."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any
from uuid import NAMESPACE_URL, uuid4, uuid5

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, StringConstraints

from operations.approvals.records import ApprovalRecords
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import signed_in
from operations.console.operator_actions import ActionDone, ActionFailed
from operations.console.staff import serving_staff
from operations.dead_letters.replays import NotPossibleError
from operations.errors import UnreachableError
from shared import problems
from shared.cursors import write_cursor
from shared.database import Document
from shared.http import Body, ProblemError, StrictRoute, View, conflict, json_response, key_reused, located, new_router
from shared.openapi import with_headers
from shared.paging import read_cursor

PREFIX = "/api/v1"

MOST_SKIPPED = 1_000_000

Reason = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=500),
    Field(description="why, for the log of actions", examples=["the customer called"]),
]
Words = Annotated[str | None, Query(max_length=300)]
"""A filter of a list; without it, everything matches."""

ACCEPTED: dict[int | str, dict[str, Any]] = {202: with_headers("Location")}


class Reasoned(Body):
    """Why something is done."""

    reason: Reason


class Accepted(View):
    """What became of a request: `done`, or `waiting` for a second person, who approves it in the console."""

    outcome: str = Field(description="`done` or `waiting`", examples=["done"])
    approval: str | None = Field(None, description="with `waiting`: the id of the request that somebody approves")


class _StaffRoute(StrictRoute):
    for_staff = True
    """Routes show the records of every owner, whatever the reach of the permission that they need."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_for_staff(request: Request) -> Response:
            with serving_staff(request):
                try:
                    return await handle(request)
                except NotPossibleError as error:
                    raise conflict(str(error)) from None
                except UnreachableError as error:
                    detail, kind = str(error), problems.UNAVAILABLE
                    raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, detail, kind=kind) from None

        return handle_for_staff


def staff_router(tag: str, prefix: str = PREFIX) -> APIRouter:
    """Return a router whose routes answer staff alone."""
    return new_router(tag, route_class=_StaffRoute, prefix=prefix)


def done(*steps: str, **more: object) -> Response:
    """Answer that the request is accepted, with `more` about it; `steps` lead to what it concerns."""
    return json_response({"outcome": "done", "approval": None} | more, HTTPStatus.ACCEPTED, at(*steps))


def at(*steps: str) -> dict[str, str]:
    """Return the header with the path of something in this API."""
    return located(*PREFIX.strip("/").split("/"), *steps)


def id_of(request: Request, key: str | None) -> str:
    """Return an id for what a request creates: the same for each request of a caller to one path with one key."""
    if key is None:
        return uuid4().hex[:16]
    return uuid5(NAMESPACE_URL, f"{signed_in(request).subject}\0{request.url.path}\0{key}").hex[:16]


def checked(outcome: ActionDone | ActionFailed | None) -> None:
    """Raise the problem of an action that was not done, or may not have been."""
    if isinstance(outcome, ActionFailed):
        raise ProblemError(HTTPStatus(outcome.status), f"{outcome.verdict}: {outcome.why}")


def read_skip(cursor: str | None) -> int:
    """Return how many items the pages before had, for a list that has no order of its own. Raises the 422 problem."""
    return 0 if cursor is None else min(max(read_cursor(cursor, (int,))[0], 0), MOST_SKIPPED)


def write_skip(shown: int, total: int) -> str | None:
    """Return the cursor of the next page after the items that were shown, None if there is none."""
    return write_cursor([shown]) if shown < min(total, MOST_SKIPPED) else None


async def ask_second_person(
    request: Request,
    dependencies: ConsoleDependencies,
    *,
    action: str,
    subject: str,
    why: str,
    parameters: Document | None = None,
    approval_id: str | None = None,
) -> Response:
    """Record the act of a request as one that needs a second person, and answer so; once under one id.

    Raises the 422 problem if another act has the id.
    """
    records = ApprovalRecords(dependencies.operations, dependencies.clock)
    known = await records.find(approval_id) if approval_id else None
    if known is not None and (known["why"], known["parameters"]) != (why, parameters or {}):
        raise key_reused("The key belongs to another request")
    asked = await records.ask(
        signed_in(request),
        action=action,
        subject=subject,
        why=why,
        parameters=parameters or {},
        approval_id=approval_id,
    )
    content = {"outcome": "waiting", "approval": asked}
    return json_response(content, HTTPStatus.ACCEPTED, at("approvals", asked))

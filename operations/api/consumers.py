"""The routes about consumers: which inboxes are paused, by whom and why, and how to pause and resume them."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from operations.api.routes import Reason, Reasoned, checked, staff_router
from operations.console.consumers import PAUSE, RESUME, Consumption, change, check_pausable, read_all, read_consumption
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor
from operations.console.operator_actions import ActionFailed
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.clock import to_rfc3339
from shared.http import Body, View, json_response, shown_as
from shared.openapi import documented
from shared.pausing.api import LONGEST_SECONDS


class ConsumerView(View):
    """Whether the inbox of a service is consumed, as the service says; the other fields are those of a pause."""

    service: str
    inbox: str
    paused: bool | None = Field(description="null if the service does not say it")
    since: datetime | None
    until: datetime | None = Field(description="null if it lasts until it is resumed")
    by: str | None
    reason: str | None
    problem: str | None = Field(description="why the service does not say it")


class ConsumerList(View):
    """The consumers of all services."""

    items: list[ConsumerView]


class NewPause(Body):
    """Why a consumer is paused, and for how long; without a time, until it is resumed."""

    model_config = shown_as({"reason": "The gateway is being repaired", "seconds": 1800})

    reason: Reason
    seconds: Annotated[int, Field(ge=1, le=LONGEST_SECONDS)] | None = None


def create_consumers(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the routes."""
    router = staff_router("state")

    @router.get("/consumers", response_model=ConsumerList)
    @requires(Permission.LETTERS_READ)
    async def list_consumers() -> Response:
        """Which inboxes are paused: since when, until when, by whom and why."""
        return json_response({"items": [_as_json(each) for each in await read_all(dependencies.services)]})

    async def changed(service: str, failed: ActionFailed | None) -> Response:
        checked(failed)
        return json_response(_as_json(await read_consumption(dependencies.services, service)))

    @router.post("/consumers/{service}/pause", response_model=ConsumerView, responses=documented(404, 409))
    @requires(Permission.LETTERS_DECIDE)
    async def pause_consumer(request: Request, service: str, body: NewPause) -> Response:
        """Pause the consumption of a service's inbox, in all of its processes; once more, it changes reason and end."""
        check_pausable(service)
        by, why = actor(request), body.reason
        return await changed(service, await change(dependencies, service, PAUSE, by=by, why=why, seconds=body.seconds))

    @router.post("/consumers/{service}/resume", response_model=ConsumerView, responses=documented(404, 409))
    @requires(Permission.LETTERS_DECIDE)
    async def resume_consumer(request: Request, service: str, body: Reasoned) -> Response:
        """Consume the inbox of a service again."""
        check_pausable(service)
        return await changed(service, await change(dependencies, service, RESUME, by=actor(request), why=body.reason))

    return router


def _as_json(found: Consumption) -> dict[str, Any]:
    times = {name: to_rfc3339(at) if (at := getattr(found, name)) else None for name in ("since", "until")}
    return found.as_json() | times

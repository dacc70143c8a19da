"""The page about consumers: which inboxes are paused, by whom and why, and the forms that pause and resume them."""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Form, Path, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.operator_actions import ActionFailed, OperatorAction, ServiceCall, execute
from operations.console.pages import Pages
from operations.console.upstream import Services, Unavailable, attempt
from operations.reading.broker import count_messages
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.http import not_found
from shared.services import SERVICES

PAUSE, RESUME = "pause", "resume"
PAUSABLE = tuple(service for service in SERVICES.values() if service.can_be_paused)

What = Literal["pause", "resume"]
ServicePath = Annotated[str, Path(max_length=40)]

MINUTES = (0, 5, 15, 30, 60, 240, 1440)
"""The durations that the form offers; 0 is a pause without an end."""


class Consumption(NamedTuple):
    """Whether an inbox is consumed, as its service says; `by`, `reason` and the times are those of a running pause."""

    service: str
    inbox: str
    paused: bool = False
    since: datetime | None = None
    until: datetime | None = None
    by: str | None = None
    reason: str | None = None
    problem: str | None = None
    """Why the service does not say it."""
    breaker: str | None = None
    """Why its breaker is open."""
    waiting: int | None = None
    """The number of messages that wait."""

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of `ordersaga pauses --json`."""
        return {
            "service": self.service,
            "inbox": self.inbox,
            "paused": self.paused if self.problem is None else None,
            "since": self.since,
            "until": self.until,
            "by": self.by,
            "reason": self.reason,
            "problem": self.problem,
        }


def consumption_from_json(document: dict[str, Any]) -> Consumption:
    """Return what the operations API says about an inbox."""
    fields = {name: document[name] for name in ("service", "inbox", "by", "reason", "problem")}
    for name in ("since", "until"):
        fields[name] = datetime.fromisoformat(at) if (at := document[name]) else None
    return Consumption(paused=bool(document["paused"]), **fields)


def read_answer(service: str, answer: dict[str, Any]) -> Consumption:
    """Return what a service answers about its inbox."""
    inbox, pause = SERVICES[service].inbox, answer.get("pause")
    if not answer.get("paused") or not isinstance(pause, dict):
        return Consumption(service, inbox)
    until = datetime.fromisoformat(pause["until"]) if pause.get("until") else None
    since = datetime.fromisoformat(pause["since"])
    return Consumption(service, inbox, True, since, until, pause.get("by"), pause.get("reason"))


async def read_consumption(services: Services, service: str) -> Consumption:
    """Ask a service whether its inbox is consumed."""
    answer = await services.get(service, "/consumer")
    if isinstance(answer, Unavailable):
        return Consumption(service, SERVICES[service].inbox, problem=answer.why)
    return read_answer(service, answer.body)


async def read_all(services: Services) -> list[Consumption]:
    """Ask every service that is part of the stack."""
    return [*await asyncio.gather(*(read_consumption(services, name) for name in _known(services)))]


def _known(services: Services) -> list[str]:
    return [service.name for service in PAUSABLE if service.name in services.urls]


async def change(
    dependencies: ConsoleDependencies, service: str, what: str, *, by: str, why: str, seconds: int | None = None
) -> ActionFailed | None:
    """Pause or resume the consumption of a service, and log it; return why that failed, None if it is done."""
    action = OperatorAction(by, why, f"consumer.{what}", service)
    body = {"reason": why} | ({"seconds": seconds} if seconds is not None else {})
    done = {PAUSE: "paused" if seconds is None else f"paused for {seconds} s", RESUME: "resumed"}[what]
    return await execute(dependencies, action, ServiceCall("POST", service, f"/consumer/{what}", body), done=done)


def check_pausable(service: str) -> None:
    """Raise the 404 problem for a service whose consumption cannot be paused."""
    if service not in {each.name for each in PAUSABLE}:
        raise not_found(f"The consumer of {service}")


def create_consumers(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the page and of its forms."""
    router = pages.router()

    @router.get("/consumers")
    @requires(Permission.LETTERS_READ)
    async def consumers(request: Request) -> Response:
        known, queues, healths = await asyncio.gather(
            read_all(dependencies.services),
            attempt(count_messages(dependencies.amqp_url), "RabbitMQ"),
            asyncio.gather(*(dependencies.services.health(service.name) for service in PAUSABLE)),
        )
        counts: Any = {} if isinstance(queues, Unavailable) else queues
        breakers = {service.name: health.down.get("breaker") for service, health in zip(PAUSABLE, healths, strict=True)}
        rows = [each._replace(breaker=breakers[each.service], waiting=counts.get(each.inbox)) for each in known]
        return pages.show(request, "consumers.html", consumers=rows)

    def show_form(
        request: Request, service: str, what: str, failed: ActionFailed | None = None, why: str = ""
    ) -> Response:
        check_pausable(service)
        status = failed.status if failed else 200
        inbox = SERVICES[service].inbox
        return pages.show(
            request,
            "consumer_change.html",
            status,
            service=service,
            inbox=inbox,
            what=what,
            why=why,
            error=failed,
            minutes=MINUTES,
        )

    @router.get("/consumers/{service}/{what}")
    @requires(Permission.LETTERS_DECIDE)
    async def ask(request: Request, service: ServicePath, what: What) -> Response:
        """Ask for a reason, and for how long."""
        return show_form(request, service, what)

    @router.post("/consumers/{service}/{what}")
    @requires(Permission.LETTERS_DECIDE)
    async def do(
        request: Request,
        service: ServicePath,
        what: What,
        why: Annotated[Why, Form()],
        minutes: Annotated[int, Form(ge=0, le=43_200)] = 0,
    ) -> Response:
        """Pause or resume the consumption, and log it."""
        check_pausable(service)
        seconds = minutes * 60 if minutes and what == PAUSE else None
        failed = await change(dependencies, service, what, by=actor(request), why=why, seconds=seconds)
        return redirect("/consumers") if failed is None else show_form(request, service, what, failed, why)

    return router

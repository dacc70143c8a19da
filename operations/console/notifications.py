"""The page of notifications: rules, which channels can be used, a test of each rule, and what came of messages."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Form, Path, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.pages import Pages
from operations.console.upstream import attempt
from operations.incidents.incident import KINDS, SEVERITIES
from operations.notifications.editing import RuleEditor
from operations.notifications.records import MOST_RULES, NotificationRecords
from operations.notifications.rules import CHANNELS, Rule, split
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.http import conflict, invalid, not_found
from shared.services import SERVICES

SHOWN = 50
ADDRESS = "/notifications"

Name = Annotated[str, Path(max_length=50)]
Chosen = Annotated[str, Form(max_length=1000)]


def create_notifications(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the page, its live part, and of the acts on rules."""
    router = pages.router()
    records = NotificationRecords(dependencies.operations)

    async def show(request: Request, template: str) -> Response:
        return pages.show(
            request,
            template,
            rules=await attempt(records.rules(), "MongoDB"),
            messages=await attempt(records.latest(SHOWN), "MongoDB"),
            failing=await attempt(records.count_failing(dependencies.clock()), "MongoDB"),
            usable=dependencies.channels,
            channels=CHANNELS,
            kinds=KINDS,
            severities=SEVERITIES,
            services=SERVICES,
        )

    @router.get(ADDRESS)
    @requires(Permission.WEBHOOKS_READ)
    async def page(request: Request) -> Response:
        return await show(request, "notifications.html")

    @router.get(ADDRESS + "/messages")
    @requires(Permission.WEBHOOKS_READ)
    async def messages(request: Request) -> Response:
        return await show(request, "notification_messages.html")

    _add_acts(router, RuleEditor(dependencies.operations))
    return router


def _add_acts(router: APIRouter, editor: RuleEditor) -> None:
    """Add the routes of the acts on rules; each is in the log of actions."""

    @router.post(ADDRESS)
    @requires(Permission.WEBHOOKS_WRITE)
    async def add(
        request: Request,
        why: Annotated[Why, Form()],
        name: Annotated[str, Form(max_length=50)],
        channel: Annotated[str, Form(max_length=20)],
        to: Annotated[str, Form(max_length=6000)] = "",
        kinds: Chosen = "",
        severities: Chosen = "",
        services: Chosen = "",
    ) -> Response:
        """Add a rule."""
        rule = Rule(name.strip(), channel, split(to), split(kinds), split(severities), split(services))
        _check(rule.objections())
        if not await editor.add(rule, by=actor(request), why=why):
            raise conflict(f"There is a rule {rule.name} already, or there are {MOST_RULES} rules")
        return redirect(ADDRESS)

    @router.post(ADDRESS + "/{name}/remove")
    @requires(Permission.WEBHOOKS_WRITE)
    async def remove(request: Request, name: Name, why: Annotated[Why, Form()]) -> Response:
        """Remove a rule."""
        _found(name, await editor.remove(name, by=actor(request), why=why))
        return redirect(ADDRESS)

    @router.post(ADDRESS + "/{name}/enabled")
    @requires(Permission.WEBHOOKS_WRITE)
    async def turn(
        request: Request, name: Name, why: Annotated[Why, Form()], enabled: Annotated[bool, Form()]
    ) -> Response:
        """Turn a rule on or off."""
        _found(name, await editor.enable(name, enabled, by=actor(request), why=why))
        return redirect(ADDRESS)

    @router.post(ADDRESS + "/{name}/test")
    @requires(Permission.WEBHOOKS_WRITE)
    async def test(request: Request, name: Name) -> Response:
        """Send a test message; its result is on the page."""
        _found(name, await editor.test(name, by=actor(request)))
        return redirect(f"{ADDRESS}#messages")


def _found(name: str, found: object) -> None:
    """Raise the 404 problem if there is no rule of this name."""
    if not found:
        raise not_found(f"The rule {name}")


def _check(objections: Sequence[tuple[str, str]]) -> None:
    """Raise the 422 problem for a rule that is not valid."""
    if objections:
        raise invalid(*objections)

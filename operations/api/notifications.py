"""The routes about notification rules: which incidents are sent to the outside, and what came of messages."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import Field, StringConstraints

from operations.api.routes import ACCEPTED, Reason, at, staff_router
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor
from operations.notifications.editing import RuleEditor, changed
from operations.notifications.records import MOST_RULES, NotificationRecords
from operations.notifications.rules import Rule
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.clock import to_rfc3339
from shared.database import Document
from shared.http import Body, View, conflict, invalid, json_response, not_found, shown_as
from shared.openapi import documented, with_headers
from shared.paging import DEFAULT_LIMIT, Limit

RuleName = Annotated[str, Path(max_length=50)]
Channel = Literal["webhook", "slack", "email"]
Words = Annotated[
    list[Annotated[str, Field(max_length=300)]], Field(max_length=50, description="an empty list means all")
]
Addresses = Annotated[list[Annotated[str, Field(max_length=400)]], Field(max_length=20)]
WhyRemoved = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=500),
    Query(description="why, for the log of actions"),
]


class RuleView(View):
    """A rule: the incidents that it is about (an empty list means all), and where they are sent."""

    name: str
    channel: str
    to: list[str] = Field(description="the addresses, for e-mail")
    kinds: list[str]
    severities: list[str]
    services: list[str]
    enabled: bool


class RuleList(View):
    """All rules by name, and the channels that the console can send through."""

    items: list[RuleView]
    usable_channels: list[str]


class NewRule(Body):
    """A rule to add, and why."""

    model_config = shown_as({"name": "night", "channel": "slack", "severities": ["critical"], "reason": "Nights"})

    name: Annotated[str, Field(max_length=50, description="lower-case letters, digits and hyphens")]
    channel: Channel
    to: Addresses = Field(default_factory=list)
    kinds: Words = Field(default_factory=list)
    severities: Words = Field(default_factory=list)
    services: Words = Field(default_factory=list)
    reason: Reason


class RuleChange(Body):
    """What to change of a rule, and why; what is not given stays as it is."""

    model_config = shown_as({"enabled": False, "reason": "Planned work until noon"})

    channel: Channel | None = None
    to: Addresses | None = None
    kinds: Words | None = None
    severities: Words | None = None
    services: Words | None = None
    enabled: bool | None = Field(None, description="what happens while a rule is off is never sent")
    reason: Reason


class MessageView(View):
    """A message of a rule, and what came of it."""

    id: str
    rule: str
    channel: str
    at: datetime
    status: str = Field(description="pending, sent or failed")
    words: str | None = Field(description="what came of the last attempt")
    attempts: int
    test: bool


class MessageList(View):
    """The newest messages."""

    items: list[MessageView]


def create_notifications(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the routes."""
    router = staff_router("notifications")
    records, editor = NotificationRecords(dependencies.operations), RuleEditor(dependencies.operations)
    _add_rules(router, dependencies, records, editor)
    _add_messages(router, records, editor)
    return router


def _add_rules(
    router: APIRouter, dependencies: ConsoleDependencies, records: NotificationRecords, editor: RuleEditor
) -> None:
    @router.get("/notification-rules", response_model=RuleList)
    @requires(Permission.WEBHOOKS_READ)
    async def list_notification_rules() -> Response:
        """The rules: which incidents are sent where."""
        items = [rule.as_json() for rule in await records.rules()]
        return json_response({"items": items, "usableChannels": list(dependencies.channels)})

    @router.post(
        "/notification-rules",
        status_code=201,
        response_model=RuleView,
        responses=documented(409) | {201: with_headers("Location")},
    )
    @requires(Permission.WEBHOOKS_WRITE)
    async def add_notification_rule(request: Request, body: NewRule) -> Response:
        """Add a rule; incidents from now on are sent."""
        rule = changed(Rule(body.name, body.channel), body.model_dump(exclude={"reason"}))
        _check(rule)
        if not await editor.add(rule, by=actor(request), why=body.reason):
            raise conflict(f"There is a rule {rule.name} already, or there are {MOST_RULES} rules")
        return json_response(rule.as_json(), HTTPStatus.CREATED, at("notification-rules", rule.name))

    @router.get("/notification-rules/{name}", response_model=RuleView)
    @requires(Permission.WEBHOOKS_READ)
    async def get_notification_rule(name: RuleName) -> Response:
        """A rule."""
        return json_response((await _rule(records, name)).as_json())

    @router.patch("/notification-rules/{name}", response_model=RuleView, responses=documented(404))
    @requires(Permission.WEBHOOKS_WRITE)
    async def change_notification_rule(request: Request, name: RuleName, body: RuleChange) -> Response:
        """Change a rule, or turn it on or off."""
        found = await _rule(records, name)
        changes = _changes(body)
        _check(changed(found, changes))
        if set(changes) == {"enabled"}:
            await editor.enable(name, changes["enabled"], by=actor(request), why=body.reason)
            rule = await records.find(name)
        else:
            rule = await editor.change(name, changes, by=actor(request), why=body.reason)
        if rule is None:
            raise _unknown(name)
        return json_response(rule.as_json())

    @router.delete("/notification-rules/{name}", status_code=204, responses=documented(404))
    @requires(Permission.WEBHOOKS_WRITE)
    async def remove_notification_rule(request: Request, name: RuleName, reason: WhyRemoved) -> Response:
        """Delete a rule."""
        if not await editor.remove(name, by=actor(request), why=reason):
            raise _unknown(name)
        return Response(status_code=HTTPStatus.NO_CONTENT)


def _add_messages(router: APIRouter, records: NotificationRecords, editor: RuleEditor) -> None:
    @router.post(
        "/notification-rules/{name}/test",
        status_code=202,
        response_model=MessageView,
        responses=ACCEPTED | documented(404),
    )
    @requires(Permission.WEBHOOKS_WRITE)
    async def send_test_notification(request: Request, name: RuleName) -> Response:
        """Send a test message of a rule; the answer has the address of its outcome."""
        message_id = await editor.test(name, by=actor(request))
        if message_id is None:
            raise _unknown(name)
        shown = _message(await records.message(message_id) or {})
        return json_response(shown, HTTPStatus.ACCEPTED, at("notification-messages", message_id))

    @router.get("/notification-messages", response_model=MessageList)
    @requires(Permission.WEBHOOKS_READ)
    async def list_notification_messages(limit: Limit = DEFAULT_LIMIT) -> Response:
        """The newest messages of all rules, and what came of them."""
        return json_response({"items": [_message(each) for each in await records.latest(limit)]})

    @router.get("/notification-messages/{message_id}", response_model=MessageView)
    @requires(Permission.WEBHOOKS_READ)
    async def get_notification_message(message_id: str) -> Response:
        """A message, and what came of it."""
        found = await records.message(message_id)
        if found is None:
            raise not_found(f"The message {message_id[:100]}")
        return json_response(_message(found))


def _check(rule: Rule) -> None:
    """Raise the 422 problem for a rule that is not valid."""
    if objections := rule.objections():
        raise invalid(*objections)


def _changes(body: RuleChange) -> dict[str, Any]:
    """Return what is given of the fields of a rule. Raises the 422 problem if there is nothing."""
    changes = body.model_dump(exclude={"reason"}, exclude_none=True)
    if not changes:
        raise invalid(("body", "must have what is to change"))
    return changes


async def _rule(records: NotificationRecords, name: str) -> Rule:
    found = await records.find(name)
    if found is None:
        raise _unknown(name)
    return found


def _unknown(name: str) -> Exception:
    return not_found(f"The rule {name}")


def _message(found: Document) -> dict[str, Any]:
    return {
        "id": found["_id"],
        "rule": found["rule"],
        "channel": found["channel"],
        "at": to_rfc3339(found["at"]),
        "status": found["status"],
        "words": found.get("words"),
        "attempts": found["attempts"],
        "test": bool(found.get("test")),
    }

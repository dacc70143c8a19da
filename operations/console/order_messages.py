"""Operators' acts that send messages: the nudge of an order, and the release of what is held without an order."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from operations.actions import ORDER_RELEASE
from operations.console.approvals import ask_for_approval
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.operator_actions import ActionFailed, OperatorAction
from operations.console.pages import Pages
from operations.console.upstream import path
from operations.errors import UnreachableError
from operations.reading.connection import open_bus
from operations.reading.participant_records import recorded_states
from operations.recovery.nudging import NotNudgeableError, nudge
from operations.timeline.mentions import read_mentions
from operations.timeline.records import read_records
from operations.timeline.release import NotReleasableError, refuse_release, release_held
from operations.timeline.timeline import TimelineRecords
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.bus.publisher import Publisher
from shared.http import conflict

FORM = "/orders/{order_id}/release"
NAME = "ordersaga-console"


async def send_nudge(dependencies: ConsoleDependencies, action: OperatorAction) -> ActionFailed | None:
    """Send an order again what it is owed; return None if the broker has it."""
    client, prefix, order_id = dependencies.client, dependencies.prefix, action.subject
    try:
        async with open_bus(dependencies.amqp_url, None, name=NAME) as bus:
            await nudge(client, prefix, Publisher(bus), order_id, by=action.by, why=action.why)
    except NotNudgeableError as error:
        return ActionFailed("Not done", str(error), HTTPStatus.CONFLICT)
    except UnreachableError as error:
        return ActionFailed("Outcome unknown", str(error), HTTPStatus.SERVICE_UNAVAILABLE)
    return None


def add_release_form(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    """Add the form and its action to the routes about orders."""

    async def show(
        request: Request, records: TimelineRecords, *, why: str = "", error: ActionFailed | None = None
    ) -> Response:
        return pages.show(
            request,
            "order_release.html",
            error.status if error else HTTPStatus.OK,
            order_id=records.order_id,
            held=recorded_states(records.by_participant),
            mentions=await read_mentions(dependencies.client, dependencies.prefix, records),
            why=why,
            error=error,
            needs_approval=_needs_approval(dependencies, records),
        )

    @router.get(FORM)
    @requires(Permission.ORDERS_DECIDE)
    async def ask(request: Request, order_id: str) -> Response:
        """Ask for confirmation and a reason."""
        records = await read_records(dependencies.client, dependencies.prefix, order_id)
        if refusal := refuse_release(records):
            raise conflict(f"Nothing can be released: {refusal}")
        return await show(request, records)

    @router.post(FORM)
    @requires(Permission.ORDERS_DECIDE)
    async def act(request: Request, order_id: str, why: Annotated[Why, Form()]) -> Response:
        """Send the commands that undo stock and payment, log it, and show the records."""
        client, prefix = dependencies.client, dependencies.prefix
        records = await read_records(client, prefix, order_id)
        if refuse_release(records) is None and _needs_approval(dependencies, records):
            return await ask_for_approval(request, dependencies, action=ORDER_RELEASE, subject=order_id, why=why)
        try:
            await release_held(client, prefix, dependencies.amqp_url, order_id, by=actor(request), why=why)
        except NotReleasableError as error:
            raise conflict(f"Nothing can be released: {error}") from None
        except UnreachableError as error:
            failed = ActionFailed("Outcome unknown", str(error), HTTPStatus.SERVICE_UNAVAILABLE)
            return await show(request, records, why=why, error=failed)
        return redirect(path("orders", order_id))


def _needs_approval(dependencies: ConsoleDependencies, records: TimelineRecords) -> bool:
    return dependencies.approval_policy.order_needs((records.payment or {}).get("amount"))

"""The pages about orders: the search, one order with its timeline, and the actions on it."""

import asyncio
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from operations.actions import list_actions
from operations.console.approvals import ask_for_approval
from operations.console.dependencies import ConsoleDependencies
from operations.console.figures import STATUSES
from operations.console.forms import Why, actor, redirect
from operations.console.lists import SPANS, address, read_period
from operations.console.operator_actions import OperatorAction
from operations.console.order_messages import add_release_form
from operations.console.order_taking import needs_approval, take
from operations.console.pages import Pages
from operations.console.refunds import add_refund_form, is_refundable
from operations.console.saved_views import views_of
from operations.console.timeline import draw
from operations.console.upstream import Unavailable, attempt, path
from operations.order_actions.actions import BULK_ACTIONS, ORDER_ACTIONS, OrderAction, possible_actions
from operations.order_actions.search import count_orders, find_orders, search_of, visible_to
from operations.recovery.nudging import NotNudgeableError, pending_envelopes
from operations.timeline.mentions import read_mentions
from operations.timeline.records import read_records
from operations.timeline.release import holds_something
from operations.timeline.timeline import LANES, TimelineRecords, build_timeline, open_steps
from order_service.participants import PARTICIPANTS
from order_service.particulars import show_items, show_particulars
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.database import Document
from shared.http import conflict, not_found

Text = Annotated[str, Query(max_length=300)]


class OrderSorting(StrEnum):
    """What a list of orders is sorted by."""

    NEWEST = "newest"
    OLDEST = "oldest"


@dataclass(frozen=True, slots=True)
class OrderCriteria:
    """The criteria of a search, by the names of the console's query parameters."""

    id: Annotated[str, Query(max_length=200)] = ""
    number: Annotated[str, Query(max_length=40)] = ""
    customer: Text = ""
    user: Text = ""
    status: Text = ""
    reason: Text = ""
    code: Text = ""
    owner: Text = ""
    product: Text = ""
    since: Text = ""
    until: Text = ""
    open: Annotated[str, Query(max_length=1)] = ""


class Owed(NamedTuple):
    """The messages that an order waits for answers to, and where they are sent; or why there are none."""

    messages: tuple[str, ...]
    why_none: str = ""


def create_orders(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes about orders."""
    router = pages.router()
    _add_search(router, dependencies, pages)
    _add_order(router, dependencies, pages)
    for order_action in ORDER_ACTIONS.values():
        _add_action(router, dependencies, pages, order_action)
    add_refund_form(router, dependencies, pages)
    add_release_form(router, dependencies, pages)
    return router


def _add_search(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    @router.get("/orders")
    @requires(Permission.ORDERS_READ)
    async def search(
        request: Request,
        span: Text = "",
        sort: OrderSorting = OrderSorting.NEWEST,
        cursor: Annotated[str | None, Query(max_length=1000)] = None,
        *,
        criteria: Annotated[OrderCriteria, Depends()],
        caller: Caller,
    ) -> Response:
        period = read_period(span, criteria.since, criteria.until, dependencies.clock())
        asked = search_of(asdict(criteria))._replace(since=period.since, until=period.until)
        visible_to(asked, caller)
        oldest_first = sort is OrderSorting.OLDEST
        found, total = await asyncio.gather(
            attempt(find_orders(dependencies.orders, asked, cursor, oldest_first=oldest_first), "MongoDB"),
            attempt(count_orders(dependencies.orders, asked), "MongoDB"),
        )
        if asked.number and not isinstance(found, Unavailable) and len(found.items) == 1:
            return RedirectResponse(path("orders", found.items[0]["_id"]), 303)
        if not isinstance(found, Unavailable) and asked.order_id in [order["_id"] for order in found.items]:
            return RedirectResponse(path("orders", asked.order_id), 303)
        parameters = asked.parameters | ({"sort": str(sort)} if oldest_first else {})
        more = None
        if not isinstance(found, Unavailable) and found.next_cursor:
            more = address("/orders", parameters, cursor=found.next_cursor)
        return pages.show(
            request,
            "orders.html",
            search=asked,
            asked={"span": span, "since": criteria.since, "until": criteria.until},
            found=found,
            total=total,
            more=more,
            first=address("/orders", parameters) if cursor else None,
            sort=sort,
            sortings=list(OrderSorting),
            spans=SPANS,
            statuses=STATUSES,
            bulk_actions=BULK_ACTIONS,
            views=await views_of(request, dependencies, "/orders"),
        )


def _add_order(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    async def show(request: Request, order_id: str, template: str, caller: Principal) -> Response:
        client, prefix = dependencies.client, dependencies.prefix
        records = await read_records(client, prefix, order_id)
        actions = await list_actions(dependencies.operations, subject=order_id, limit=20)
        mentions = [] if records.order else await read_mentions(client, prefix, records)
        if not records.exist and not mentions and not actions.items:
            raise not_found(f"Order {order_id}, or a record that names it,")
        order = records.order or {}
        steps = build_timeline(records)
        return pages.show(
            request,
            template,
            records=records,
            order=order,
            items=show_items(order),
            particulars=show_particulars(order, personal=caller.may(Permission.ORDERS_FULFIL)),
            rows=draw(steps),
            open_steps=open_steps(steps),
            lanes=LANES,
            participants=PARTICIPANTS,
            order_actions=possible_actions(records.order),
            owed=_owed(records.order, dependencies),
            mentions=mentions,
            releasable=holds_something(records),
            is_refundable=is_refundable(records.order),
            actions=actions.items,
        )

    @router.get("/orders/{order_id}")
    @requires(Permission.ORDERS_READ)
    async def order(request: Request, order_id: str, caller: Caller) -> Response:
        return await show(request, order_id, "order.html", caller)

    @router.get("/orders/{order_id}/timeline")
    @requires(Permission.ORDERS_READ)
    async def live(request: Request, order_id: str, caller: Caller) -> Response:
        return await show(request, order_id, "order_live.html", caller)


def _add_action(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages, order_action: OrderAction) -> None:
    name = order_action.name

    @router.get(f"/orders/{{order_id}}/do/{name}")
    @requires(order_action.permission)
    async def ask(request: Request, order_id: str) -> Response:
        """Ask for confirmation and a reason."""
        records = await _records(dependencies, order_id)
        if order_action not in possible_actions(records.order):
            raise conflict(
                f"An order that is {(records.order or {}).get('status')} cannot be {order_action.participle}"
            )
        return pages.show(
            request,
            "order_action.html",
            order_action=order_action,
            order=records.order,
            why="",
            error=None,
            needs_approval=needs_approval(dependencies, order_action, records.order),
        )

    @router.post(f"/orders/{{order_id}}/do/{name}")
    @requires(order_action.permission)
    async def act(request: Request, order_id: str, why: Annotated[Why, Form()]) -> Response:
        """Have the order service execute the action, log it, and show the order."""
        records = await _records(dependencies, order_id)
        action = OperatorAction(actor(request), why, order_action.log_name, order_id)
        if needs_approval(dependencies, order_action, records.order):
            return await ask_for_approval(request, dependencies, action=action.action, subject=order_id, why=why)
        failed = await take(dependencies, order_action, action)
        if failed is None:
            return redirect(path("orders", order_id))
        records = await _records(dependencies, order_id)
        order = records.order or {"_id": order_id}
        return pages.show(
            request, "order_action.html", failed.status, order_action=order_action, order=order, why=why, error=failed
        )


def _owed(order: Document | None, dependencies: ConsoleDependencies) -> Owed | None:
    """Return what an unsettled order is owed, as its card shows it."""
    if order is None or order.get("settled") is not False:
        return None
    try:
        envelopes = pending_envelopes(order, dependencies.clock())
    except NotNudgeableError as error:
        return Owed((), str(error))
    return Owed(tuple(f"{each.type} to {each.routing_key}" for each in envelopes))


async def _records(dependencies: ConsoleDependencies, order_id: str) -> TimelineRecords:
    records = await read_records(dependencies.client, dependencies.prefix, order_id)
    if not records.exist:
        raise not_found(f"Order {order_id}")
    return records

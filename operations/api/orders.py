"""The routes about orders: the list, one order with its timeline, and the actions on it."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import Field

from operations.actions import ORDER_RELEASE
from operations.api.routes import (
    ACCEPTED,
    Accepted,
    Reason,
    Reasoned,
    ask_second_person,
    checked,
    done,
    id_of,
    staff_router,
)
from operations.approvals.policy import REFUND_PART
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor
from operations.console.operator_actions import OperatorAction, ServiceCall, execute
from operations.console.order_taking import needs_approval, take
from operations.console.upstream import path
from operations.order_actions.actions import ORDER_ACTIONS, OrderAction, possible_actions
from operations.order_actions.order_json import order_as_json
from operations.order_actions.search import MOST_COUNTED, OrderSearch, count_orders, find_orders, visible_to
from operations.timeline.mentions import Mention, read_mentions
from operations.timeline.records import read_records
from operations.timeline.release import NotReleasableError, refuse_release, release_held
from operations.timeline.timeline import TimelineRecords, build_timeline
from operations.timeline.timeline_json import timeline_as_json
from order_service.order import Status
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.clock import to_rfc3339
from shared.contracts.base import Name, OrderId
from shared.contracts.orders import MAX_ITEMS, MAX_QUANTITY
from shared.cursors import MAX_LIMIT
from shared.http import Body, View, conflict, json_response, not_found, shown_as
from shared.money import JsonMoney, to_json_number
from shared.openapi import documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit
from shared.validation import Moment

Statuses = Annotated[list[Status] | None, Query(description="Once for each status that is wanted")]
OrderIds = Annotated[
    list[OrderId] | None, Query(alias="orderId", max_length=MAX_LIMIT, description="Once for each order that is wanted")
]
RefundKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="The same key and body answer the first refund again"),
]
ReleaseKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="The same key and reason ask a second person once"),
]


class OrderView(View):
    """An order of the list."""

    order_id: str
    order_number: str
    status: str
    settled: bool
    failure_reason: str | None
    failure_code: str | None
    user_id: str | None
    owner_id: str | None
    total_amount: float | None
    currency: str | None
    created_at: datetime
    updated_at: datetime | None


class OrderPage(View):
    """A page of orders, the newest first; beyond 10,000 orders, `total` is the least that there are."""

    items: list[OrderView]
    next_cursor: str | None
    total: int
    total_is_exact: bool


class StepView(View):
    """A step in the timeline of an order; an open one has no end."""

    at: datetime
    until: datetime | None
    seconds: float | None
    lane: str = Field(description="who does it: order, stock, payment or provisioning")
    to: str | None = Field(description="of a message: who gets it")
    kind: str
    title: str
    detail: str | None
    outcome: str = Field(description="ok, failed, unknown or open")
    status: str | None
    due: datetime | None
    dead_letter: str | None


class MentionView(View):
    """A record that names an order which the order service does not know."""

    what: str
    state: str
    detail: str
    at: datetime | None


class OrderDetail(View):
    """An order with its timeline, and what can be done with it."""

    order_id: str
    found: bool = Field(description="whether any service has a record of it")
    status: str | None = Field(description="null if the order service does not know it")
    settled: bool | None
    failure_reason: str | None
    traceparent: str | None
    steps: list[StepView]
    waiting_for: list[StepView]
    actions: list[str] = Field(description="the actions that its status allows", examples=[["cancel", "nudge"]])
    mentions: list[MentionView]
    recorded: dict[str, str] = Field(description="the states of stock and payment, as their services recorded them")


class RefundLine(Body):
    """Units of one product to refund, at the price of the order's line."""

    product_id: Name
    quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)]


class PartialRefund(Body):
    """The part to refund: an amount or lines; with `restock`, the units of the lines go back into free stock."""

    model_config = shown_as({"items": [{"productId": "p1", "quantity": 1}], "reason": "Damaged", "restock": True})

    amount: Annotated[JsonMoney, Field(gt=0)] | None = None
    items: Annotated[list[RefundLine], Field(min_length=1, max_length=MAX_ITEMS)] | None = None
    restock: bool = False
    reason: Reason


def create_orders(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the routes."""
    router = staff_router("orders")
    _add_reading(router, dependencies)
    for action in ORDER_ACTIONS.values():
        _add_action(router, dependencies, action)
    _add_refund(router, dependencies)
    _add_release(router, dependencies)
    return router


def _add_reading(router: APIRouter, dependencies: ConsoleDependencies) -> None:
    @router.get("/orders", response_model=OrderPage)
    @requires(Permission.ORDERS_READ)
    async def list_orders(
        order_id: OrderIds = None,
        status: Statuses = None,
        reason: Annotated[str, Query(max_length=300, description="The failure reason, or how it begins")] = "",
        code: Annotated[str, Query(max_length=100, description="The failure code")] = "",
        user_id: Annotated[str, Query(alias="userId", max_length=300)] = "",
        owner_id: Annotated[str, Query(alias="ownerId", max_length=300)] = "",
        product_id: Annotated[str, Query(alias="productId", max_length=300)] = "",
        order_number: Annotated[str, Query(alias="orderNumber", max_length=40)] = "",
        customer: Annotated[str, Query(max_length=300, description="Words of the name, or how they begin")] = "",
        unsettled: Annotated[bool, Query(description="Only orders that something is still to happen to")] = False,
        stuck: Annotated[bool, Query(description="Only orders that have waited for an answer for 5 minutes")] = False,
        since: Moment | None = None,
        until: Moment | None = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
        *,
        caller: Caller,
    ) -> Response:
        """Orders that match all that is asked for, the newest first, and how many there are."""
        asked = OrderSearch(
            ids=tuple(dict.fromkeys(order_id or ())),
            number=order_number,
            customer=customer,
            user=user_id,
            reason=reason,
            open=unsettled,
            statuses=tuple(status or ()),
            code=code,
            owner=owner_id,
            product=product_id,
            since=since,
            until=until,
            stuck_at=dependencies.clock() if stuck else None,
        )
        page = await find_orders(dependencies.orders, visible_to(asked, caller), cursor, limit=limit)
        total = await count_orders(dependencies.orders, asked)
        return json_response(
            {
                "items": [order_as_json(order) for order in page.items],
                "nextCursor": page.next_cursor,
                "total": total,
                "totalIsExact": total < MOST_COUNTED,
            }
        )

    @router.get("/orders/{order_id}", response_model=OrderDetail)
    @requires(Permission.ORDERS_READ)
    async def get_order(order_id: str) -> Response:
        """An order with its timeline over all services, and the actions that are possible.

        Of an order that the order service does not know, the records that name it.
        """
        records = await read_records(dependencies.client, dependencies.prefix, order_id)
        mentions = [] if records.order else await read_mentions(dependencies.client, dependencies.prefix, records)
        if not records.exist and not mentions:
            raise not_found(f"Order {order_id}, or a record that names it,")
        actions = [action.name for action in possible_actions(records.order)]
        return json_response(
            timeline_as_json(records, build_timeline(records))
            | {
                "found": records.exist,
                "actions": actions,
                "mentions": [_mention_as_json(mention) for mention in mentions],
                "recorded": {name: str(record.get("status")) for name, record in records.by_participant.items()},
            }
        )


def _add_action(router: APIRouter, dependencies: ConsoleDependencies, order_action: OrderAction) -> None:
    name = order_action.name

    @requires(order_action.permission)
    async def act(request: Request, order_id: str, body: Reasoned) -> Response:
        records = await _records(dependencies, order_id)
        action = OperatorAction(actor(request), body.reason, order_action.log_name, order_id)
        if needs_approval(dependencies, order_action, records.order):
            return await ask_second_person(
                request, dependencies, action=action.action, subject=order_id, why=body.reason
            )
        checked(await take(dependencies, order_action, action))
        return done("orders", order_id)

    act.__doc__ = f"{order_action.title} an order. {order_action.warning}"
    router.add_api_route(
        f"/orders/{{order_id}}/{name}",
        act,
        name=f"{name}_order",
        methods=["POST"],
        status_code=202,
        response_model=Accepted,
        responses=ACCEPTED | documented(404, 409),
    )


def _add_refund(router: APIRouter, dependencies: ConsoleDependencies) -> None:
    @router.post(
        "/orders/{order_id}/refunds",
        status_code=202,
        response_model=Accepted,
        responses=ACCEPTED | documented(404, 409),
    )
    @requires(Permission.ORDERS_FULFIL)
    async def refund_part_of_order(
        request: Request, order_id: str, body: PartialRefund, idempotency_key: RefundKey = None
    ) -> Response:
        """Refund a part of a CONFIRMED or COMPLETED order of goods: an amount, or units of its lines."""
        order = (await _records(dependencies, order_id)).order
        part, key = _refund_as_json(body), id_of(request, idempotency_key)
        if dependencies.approval_policy.order_needs((order or {}).get("totalAmount")):
            return await ask_second_person(
                request,
                dependencies,
                action=REFUND_PART,
                subject=order_id,
                why=body.reason,
                parameters={"refund": part},
                approval_id=key,
            )
        action, address = (
            OperatorAction(actor(request), body.reason, REFUND_PART, order_id),
            path("orders", order_id, "refunds"),
        )
        checked(await execute(dependencies, action, ServiceCall("POST", "order", address, part, key), done="accepted"))
        return done("orders", order_id)


def _add_release(router: APIRouter, dependencies: ConsoleDependencies) -> None:
    @router.post(
        "/orders/{order_id}/release",
        status_code=202,
        response_model=Accepted,
        responses=ACCEPTED | documented(409),
    )
    @requires(Permission.ORDERS_DECIDE)
    async def release_order(
        request: Request, order_id: str, body: Reasoned, idempotency_key: ReleaseKey = None
    ) -> Response:
        """Return stock and money that are held for an id which the order service does not know."""
        client, prefix = dependencies.client, dependencies.prefix
        records = await read_records(client, prefix, order_id)
        amount = (records.payment or {}).get("amount")
        if refuse_release(records) is None and dependencies.approval_policy.order_needs(amount):
            return await ask_second_person(
                request,
                dependencies,
                action=ORDER_RELEASE,
                subject=order_id,
                why=body.reason,
                approval_id=id_of(request, idempotency_key),
            )
        try:
            await release_held(client, prefix, dependencies.amqp_url, order_id, by=actor(request), why=body.reason)
        except NotReleasableError as error:
            raise conflict(f"Nothing can be released: {error}") from None
        return done("orders", order_id)


async def _records(dependencies: ConsoleDependencies, order_id: str) -> TimelineRecords:
    records = await read_records(dependencies.client, dependencies.prefix, order_id)
    if records.order is None:
        raise not_found(f"Order {order_id}")
    return records


def _refund_as_json(body: PartialRefund) -> dict[str, Any]:
    """Return the request to the order service."""
    part: dict[str, Any] = {"reason": body.reason, "restock": body.restock}
    if body.amount is not None:
        part["amount"] = to_json_number(body.amount)
    if body.items is not None:
        part["items"] = [{"productId": line.product_id, "quantity": line.quantity} for line in body.items]
    return part


def _mention_as_json(mention: Mention) -> dict[str, Any]:
    return {
        "what": mention.what,
        "state": mention.state,
        "detail": mention.detail,
        "at": to_rfc3339(mention.at) if mention.at else None,
    }

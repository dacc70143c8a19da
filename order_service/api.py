"""The order service's HTTP routes."""

from collections.abc import Sequence
from dataclasses import asdict, astuple
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import Headers

from order_service.event_stream import EventStream
from order_service.events import CancelRequested, DeliveryNoted, RefundRequested, RetryRequested
from order_service.following import Followers
from order_service.new_order import NewOrder
from order_service.order import Status
from order_service.order_actions import OrderActions
from order_service.order_number import ids_of
from order_service.orders import CountedFailures, Filter, NewRecord, Orders
from order_service.placement import OrderPlacement
from order_service.preferences import wait_in
from order_service.refund_requests import NewRefund, RefundRequests
from order_service.views import (
    ErasureView,
    FailurePage,
    OrderPage,
    OrderView,
    RefundPage,
    RefundView,
    sees_personal,
    show,
    show_listed,
    show_new,
    show_refund,
)
from order_service.waiting import NOT_WAITED, WaitingRequests
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.asyncapi import ASYNCAPI_PATH, asyncapi
from shared.clock import Clock, utc_now
from shared.contracts.base import Name, Text
from shared.contracts.failures import FailureCode
from shared.cursors import time_key
from shared.database import Document
from shared.http import (
    REPLAYED,
    Body,
    invalid,
    json_response,
    located,
    new_router,
    not_found,
    problem_response,
    shown_as,
)
from shared.lean_route import LeanRoute, checked_before_body
from shared.openapi import documented, with_headers
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, after_time, page_response, read_cursor
from shared.problems import (
    NOT_REFUNDABLE,
    ORDER_STATE,
    OTHER_PERSON,
    OUTCOME_UNKNOWN,
    OVERLOADED,
    SECOND_PERSON_NEEDED,
    SLOTS_FULL,
    TOO_MANY_STREAMS,
)
from shared.validation import Moment

OrderIdParameter = Annotated[str, Path(min_length=1, max_length=200)]
Included = Annotated[Literal["items"] | None, Query(description="`items`: show each order's items as well")]
Statuses = Annotated[Sequence[Status], Query(max_length=50, description="May be repeated: orders in any of them")]
FailureReason = Annotated[
    str | None, Query(alias="failureReason", max_length=1000, description="The whole text, as orders show it")
]
CreatedFrom = Annotated[
    Moment | None, Query(alias="createdFrom", description="Orders of this time or later, with its time zone")
]
CreatedTo = Annotated[Moment | None, Query(alias="createdTo", description="Orders before this time")]
Sort = Annotated[
    Literal["-createdAt", "createdAt"],
    Query(description="Newest first, or oldest first; a cursor is for one of the two"),
]
OrderNumber = Annotated[str | None, Query(alias="orderNumber", max_length=40, examples=["7ZK4-M2QX"])]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key and body answer the first order again; each owner has keys of its own",
    ),
]

Preference = Annotated[
    str | None,
    Header(
        max_length=1000,
        description="`wait=N` (RFC 7240): answer when the order is final, after N seconds at the latest, at most 30. "
        "`Preference-Applied` says that the answer has waited",
        examples=["wait=10"],
    ),
]

LastEventId = Annotated[
    int, Header(ge=0, le=10**6, description="The last `id` that was received: the stream continues after it")
]

RefundKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="The same key and body answer the first refund again"),
]

_WAITED = {"model": OrderView, "description": "The final order, if the request waits: see `Prefer`"}

_EVENTS = {
    "type": "string",
    "description": "`retry:` first, then an event per entry of the history: its number as `id:`, its name as `event:`, "
    "the entry as `data:`. `settled`, the last event, has no id.",
    "x-event-data": {"$ref": "#/components/schemas/HistoryView"},
}
_EXAMPLE_OF_EVENTS = """retry: 2000

id: 1
event: order.created
data: {"at":"2026-01-31T09:30:00.000Z","event":"order.created","status":"PENDING"}

id: 2
event: payment.failed
data: {"at":"2026-01-31T09:30:00.250Z","event":"payment.failed","status":"CANCELLED","message":"The card was declined"}

id: 3
event: stock.released
data: {"at":"2026-01-31T09:30:00.300Z","event":"stock.released","status":"CANCELLED"}

event: settled
data: {"at":"2026-01-31T09:30:00.300Z","event":"settled","status":"CANCELLED","message":"The card was declined"}

"""

_STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The events. The data of each is JSON with the schema `HistoryView`; the last one is `settled`",
        "content": {"text/event-stream": {"schema": _EVENTS, "example": _EXAMPLE_OF_EVENTS}},
    },
    204: {"description": "The order is settled, and all its events have been seen"},
    **documented(TOO_MANY_STREAMS),
}


class Cancellation(Body):
    """Why the client does not want the order any more."""

    model_config = shown_as({"reason": "Ordered twice"})

    reason: Text | None = None


def create_router(
    orders: Orders,
    placement: OrderPlacement,
    actions: OrderActions,
    refunds: RefundRequests,
    waiting: WaitingRequests,
    followers: Followers,
    clock: Clock = utc_now,
) -> APIRouter:
    """Return the routes over these orders."""
    router = new_router("orders", route_class=LeanRoute)
    _add_placement(router, placement, waiting)
    _add_reads(router, orders, followers)
    _add_actions(router, actions)
    _add_erasure(router, orders, clock)
    _add_refunds(router, refunds)
    _add_messages(router)
    return router


def _add_placement(router: APIRouter, placement: OrderPlacement, waiting: WaitingRequests) -> None:
    async def admit(headers: Headers, caller: Principal) -> None:
        await placement.admit(headers.get("idempotency-key"), caller)

    @requires(Permission.ORDERS_PLACE)
    @checked_before_body(admit)
    async def place_order(
        new: NewOrder,
        caller: Caller,
        request: Request,
        idempotency_key: IdempotencyKey = None,
        prefer: Preference = None,  # noqa: ARG001 - for the documentation: a request may have several
    ) -> Response:
        """Accept an order; it is carried to its end from here on, whatever happens.

        With `Prefer: wait=N` the answer waits up to N seconds for the order to become final: CONFIRMED, COMPLETED,
        CANCELLED or FAILED. Its compensations may still be on their way then; `settled` says so.
        """
        placed = await placement.place(new, idempotency_key, caller)
        seconds = wait_in(request.headers.getlist("prefer"))
        outcome = NOT_WAITED
        if seconds is not None:
            stored = placed.order if isinstance(placed, NewRecord) else placed
            outcome = await waiting.wait(stored, seconds, partial(_disconnected, request))
        headers = {"Preference-Applied": f"wait={seconds}"} if outcome.waited else {}
        return _placed(placed, outcome.final, headers)

    headers = with_headers("Preference-Applied")
    answers = {
        200: _WAITED | headers,
        202: headers,
        **documented(OTHER_PERSON, SLOTS_FULL, OVERLOADED, OUTCOME_UNKNOWN),
    }
    router.add_api_route(
        "/orders",
        place_order,
        methods=["POST"],
        status_code=202,
        response_model=OrderView,
        responses=answers,
    )
    router.add_api_route(
        "/order",
        place_order,
        name="place_order_at_former_path",
        summary="Place an order at the path of the first release",
        methods=["POST"],
        status_code=202,
        response_model=OrderView,
        responses=answers,
        deprecated=True,
    )


def _placed(placed: NewRecord | Document, final: Document | None, headers: dict[str, str]) -> Response:
    """Answer with an order: 200 if it is known to be final, 429 if no slot had room for it, else 202."""
    if final is not None:
        shown = show(final, personal=True)
    else:
        shown = show_new(placed) if isinstance(placed, NewRecord) else show(placed, personal=True)
    headers = located("orders", shown["orderId"]) | headers
    if not isinstance(placed, NewRecord):
        headers |= REPLAYED
    if final is None:
        return json_response(shown, 202, headers)
    if final.get("failureCode") == FailureCode.SLOT_FULL:
        status, why = HTTPStatus.TOO_MANY_REQUESTS, final["failureReason"]
        return problem_response(status, why, kind=SLOTS_FULL, headers=headers, order=shown)
    return json_response(shown, 200, headers)


async def _disconnected(request: Request) -> None:
    """Return once the client is gone; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_reads(router: APIRouter, orders: Orders, followers: Followers) -> None:
    @router.get("/orders", response_model=OrderPage)
    @requires(Permission.ORDERS_READ)
    async def list_orders(
        status: Statuses = (),
        user_id: Annotated[Name | None, Query(alias="userId")] = None,
        settled: bool | None = None,
        number: OrderNumber = None,
        failure_reason: FailureReason = None,
        created_from: CreatedFrom = None,
        created_to: CreatedTo = None,
        sort: Sort = "-createdAt",
        include: Included = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
        *,
        caller: Caller,
    ) -> Response:
        """Orders without their histories, newest first or oldest first; all, or those that meet every condition.

        `orderNumber` is the number that people read out; two orders share one about once in a million orders.
        """
        wanted = Filter(
            statuses=status,
            user_id=user_id,
            settled=settled,
            ids=_ids_of(number) if number is not None else None,
            failure_reason=failure_reason,
            created_from=created_from,
            created_to=created_to,
        )
        page = await orders.page(
            wanted,
            oldest_first=sort == "createdAt",
            with_items=include == "items",
            after=after_time(cursor),
            limit=limit,
            visible=caller.visible(Permission.ORDERS_READ),
        )
        return page_response(
            page, show_listed, key=lambda order: time_key(order["createdAt"], order["_id"]), limit=limit
        )

    @router.get("/orders/failures", response_model=FailurePage)
    @requires(Permission.ORDERS_READ)
    async def count_failures(caller: Caller, limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Failed and cancelled orders, counted by status, reason and code, most frequent first."""
        after = None if cursor is None else CountedFailures(*read_cursor(cursor, (int, str, str, str)))
        visible = caller.visible(Permission.ORDERS_READ)
        counts = await orders.count_failures(after=after, limit=limit, visible=visible)
        return page_response(counts, asdict, key=astuple, limit=limit)

    @router.get("/orders/{order_id}", response_model=OrderView)
    @requires(Permission.ORDERS_READ)
    async def get_order(order_id: OrderIdParameter, caller: Caller) -> Response:
        """One order with its history."""
        document = await orders.document(order_id, caller.visible(Permission.ORDERS_READ))
        if document is None:
            raise not_found(f"Order {order_id}")
        return json_response(show(document, personal=sees_personal(caller)))

    @router.get("/orders/{order_id}/events", response_class=StreamingResponse, responses=_STREAM_RESPONSES)
    @requires(Permission.ORDERS_READ)
    async def follow_order(order_id: OrderIdParameter, caller: Caller, last_event_id: LastEventId = 0) -> Response:
        """Follow an order by server-sent events: one per line of its history, then `settled`; 204 once all are sent."""
        return EventStream(followers, order_id, last_event_id, caller.visible(Permission.ORDERS_READ))


def _add_actions(router: APIRouter, actions: OrderActions) -> None:
    @router.post(
        "/orders/{order_id}/cancel",
        status_code=202,
        response_model=OrderView,
        responses=documented(ORDER_STATE, SECOND_PERSON_NEEDED),
    )
    @requires(Permission.ORDERS_CANCEL)
    async def cancel_order(
        order_id: OrderIdParameter, caller: Caller, cancellation: Cancellation | None = None
    ) -> Response:
        """Cancel an order that is not fulfilled yet; a server being provisioned, when its running step ends."""
        reason = (cancellation and cancellation.reason) or "Cancelled by the client"
        request, permission = CancelRequested(reason), Permission.ORDERS_CANCEL
        return _accepted(await actions.execute(order_id, request, "cancelled", caller, permission), caller)

    @router.post(
        "/orders/{order_id}/deliver",
        status_code=202,
        response_model=OrderView,
        responses=documented(ORDER_STATE),
    )
    @requires(Permission.ORDERS_FULFIL)
    async def deliver_order(order_id: OrderIdParameter, caller: Caller) -> Response:
        """Note that the goods of a CONFIRMED order have left: it is COMPLETED, and its stock no longer reserved."""
        permission = Permission.ORDERS_FULFIL
        return _accepted(await actions.execute(order_id, DeliveryNoted(), "delivered", caller, permission), caller)

    @router.post(
        "/orders/{order_id}/retry",
        status_code=202,
        response_model=OrderView,
        responses=documented(ORDER_STATE, SECOND_PERSON_NEEDED),
    )
    @requires(Permission.ORDERS_DECIDE)
    async def retry_order(order_id: OrderIdParameter, caller: Caller) -> Response:
        """Provision or capture once more; for a FAILED order whose money is still held."""
        permission = Permission.ORDERS_DECIDE
        return _accepted(await actions.execute(order_id, RetryRequested(), "retried", caller, permission), caller)

    @router.post(
        "/orders/{order_id}/refund",
        status_code=202,
        response_model=OrderView,
        responses=documented(ORDER_STATE, SECOND_PERSON_NEEDED),
    )
    @requires(Permission.ORDERS_DECIDE)
    async def refund_order(order_id: OrderIdParameter, caller: Caller) -> Response:
        """Return the money now; for a FAILED order whose money is still held."""
        permission = Permission.ORDERS_DECIDE
        return _accepted(await actions.execute(order_id, RefundRequested(), "refunded", caller, permission), caller)


def _add_refunds(router: APIRouter, refunds: RefundRequests) -> None:
    @router.post(
        "/orders/{order_id}/refunds",
        status_code=202,
        response_model=RefundView,
        responses=documented(NOT_REFUNDABLE, SECOND_PERSON_NEEDED),
    )
    @requires(Permission.ORDERS_FULFIL)
    async def refund_part(
        order_id: OrderIdParameter, new: NewRefund, caller: Caller, idempotency_key: RefundKey = None
    ) -> Response:
        """Return a part of the money, by amount or by lines; for CONFIRMED and COMPLETED orders of goods."""
        permission = Permission.ORDERS_FULFIL
        refund, repeated = await refunds.request(order_id, new, idempotency_key, caller, permission)
        headers = located("orders", order_id, "refunds") | (REPLAYED if repeated else {})
        return json_response(show_refund(refund), 202, headers)

    @router.get("/orders/{order_id}/refunds", response_model=RefundPage)
    @requires(Permission.ORDERS_READ)
    async def list_refunds(
        order_id: OrderIdParameter, caller: Caller, limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None
    ) -> Response:
        """The refunds in part of an order, oldest first, refused ones included."""
        found = await refunds.of_order(order_id, caller.visible(Permission.ORDERS_READ))
        start = 0 if cursor is None else int(read_cursor(cursor, (int,))[0]) + 1
        page = list(enumerate(found))[max(start, 0) :][:limit]
        return page_response(page, lambda each: show_refund(each[1]), key=lambda each: [each[0]], limit=limit)


def _add_messages(router: APIRouter) -> None:
    @router.get(ASYNCAPI_PATH, include_in_schema=False)
    async def get_asyncapi() -> Response:
        """Describe the messages of all services; it answers to everybody, like the OpenAPI document."""
        return json_response(asyncapi())


def _add_erasure(router: APIRouter, orders: Orders, clock: Clock) -> None:
    @router.delete("/users/{user_id}/personal-data", response_model=ErasureView)
    @requires(Permission.PERSONAL_ERASE)
    async def erase_personal_data(user_id: Annotated[Name, Path()]) -> Response:
        """Erase what the orders of a user say about the person; amounts, items and the user's id stay.

        `ordersaga erase` does this, and erases the same from dead letters.
        """
        return json_response({"userId": user_id, "orders": await orders.erase_personal(user_id, clock())})


def _accepted(document: Document, caller: Principal) -> Response:
    return json_response(show(document, personal=sees_personal(caller)), 202, located("orders", document["_id"]))


def _ids_of(number: str) -> tuple[str, str]:
    try:
        return ids_of(number)
    except ValueError as error:
        raise invalid(("orderNumber", str(error))) from None

"""The order service's HTTP routes."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import StreamingResponse

from order_service.intake import Intake, NewOrder
from order_service.order import Order, Status
from order_service.orders import Orders
from order_service.requests import Requests
from order_service.saga import CancelRequested, RefundRequested, RetryRequested
from order_service.views import FailurePage, OrderPage, OrderView, show, show_entry, show_new
from shared.contracts.base import Name, Text
from shared.database import Document
from shared.http import Body, ProblemError, invalid, json_response, new_router, not_found
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, read_cursor, write_cursor

EVENTS_POLL_SECONDS = 0.2
EVENTS_SLOWEST_POLL_SECONDS = 2.0
MAX_FOLLOWERS = 200
"""Event streams that a process serves at once: each is a few reads a second."""
EVENTS_KEEPALIVE_SECONDS = 15.0

OrderIdParameter = Annotated[str, Path(min_length=1, max_length=200)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key and body answer the first order again; random, as all clients share them",
    ),
]


class Cancellation(Body):
    """Why the client does not want the order any more."""

    reason: Text | None = None


def create_router(orders: Orders, intake: Intake, requests: Requests) -> APIRouter:
    """The routes over these orders."""
    router = new_router("orders")
    _add_placing(router, intake)
    _add_reading(router, orders)
    _add_requests(router, requests)
    return router


def _add_placing(router: APIRouter, intake: Intake) -> None:
    async def place(new: NewOrder, idempotency_key: IdempotencyKey = None) -> Response:
        """Accept an order; it is carried to its end from here on, whatever happens."""
        order = await intake.place(new, idempotency_key)
        shown = show_new(order) if isinstance(order, Order) else show(order)
        return json_response(shown, 202, {"Location": f"/orders/{shown['orderId']}"})

    for path in ("/orders", "/order"):
        router.add_api_route(
            path,
            place,
            methods=["POST"],
            status_code=202,
            response_model=OrderView,
            include_in_schema=path == "/orders",
        )


def _add_reading(router: APIRouter, orders: Orders) -> None:
    followers: set[object] = set()

    @router.get("/orders", response_model=OrderPage)
    async def list_orders(
        status: Status | None = None,
        user_id: Annotated[Name | None, Query(alias="userId")] = None,
        settled: bool | None = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
    ) -> Response:
        """Orders, newest first; all of them, or those in a status, of a user, settled or not."""
        after = None
        if cursor is not None:
            milliseconds, order_id = read_cursor(cursor, (int, str))
            after = (_moment(milliseconds), order_id)
        statuses = [status] if status else list(Status)
        page = await orders.page(statuses=statuses, user_id=user_id, settled=settled, after=after, limit=limit)
        return json_response({"items": [show(document) for document in page], "nextCursor": _cursor(page, limit)})

    @router.get("/orders/failures", response_model=FailurePage)
    async def count_failures(limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Failed and cancelled orders, counted by reason, most frequent first."""
        after = None
        if cursor is not None:
            count, ended_as, reason = read_cursor(cursor, (int, str, str))
            after = (count, ended_as, reason)
        counts = await orders.count_failures(after=after, limit=limit)
        items = [{"status": status, "reason": reason, "count": count} for status, reason, count in counts]
        last = counts[-1] if len(counts) == limit else None
        next_cursor = write_cursor([last[2], last[0], last[1]]) if last else None
        return json_response({"items": items, "nextCursor": next_cursor})

    @router.get("/orders/{order_id}", response_model=OrderView)
    async def get_order(order_id: OrderIdParameter) -> Response:
        """One order with its history."""
        return json_response(show(await _find(orders, order_id)))

    @router.get("/orders/{order_id}/events", response_class=StreamingResponse)
    async def follow(
        order_id: OrderIdParameter, last_event_id: Annotated[int, Header(ge=0, le=10**6)] = 0
    ) -> StreamingResponse:
        """Server-sent events: one per line of the order's history, until it is settled."""
        if len(followers) >= MAX_FOLLOWERS:
            detail = f"{MAX_FOLLOWERS} clients follow orders already; ask for the order itself, or try again"
            raise ProblemError(HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": "5"})
        document = await _find(orders, order_id)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            _events(orders, document, last_event_id, followers), media_type="text/event-stream", headers=headers
        )


def _add_requests(router: APIRouter, requests: Requests) -> None:
    @router.post("/orders/{order_id}/cancel", status_code=202, response_model=OrderView)
    async def cancel(order_id: OrderIdParameter, cancellation: Cancellation | None = None) -> Response:
        """Cancel an order that is not fulfilled yet; a server being provisioned, when its running step ends."""
        reason = (cancellation and cancellation.reason) or "Cancelled by the client"
        return _accepted(await requests.carry_out(order_id, CancelRequested(reason), "cancelled"))

    @router.post("/orders/{order_id}/retry", status_code=202, response_model=OrderView)
    async def retry(order_id: OrderIdParameter) -> Response:
        """Provision once more; for a FAILED order whose money is still held."""
        return _accepted(await requests.carry_out(order_id, RetryRequested(), "retried"))

    @router.post("/orders/{order_id}/refund", status_code=202, response_model=OrderView)
    async def refund(order_id: OrderIdParameter) -> Response:
        """Return the money now; for a FAILED order whose money is still held."""
        return _accepted(await requests.carry_out(order_id, RefundRequested(), "refunded"))


def _accepted(document: Document) -> Response:
    return json_response(show(document), 202)


async def _find(orders: Orders, order_id: str) -> Document:
    document = await orders.document(order_id)
    if document is None:
        raise not_found(f"Order {order_id}")
    return document


def _moment(milliseconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        raise invalid(("cursor", "is not a nextCursor of this list")) from None


def _cursor(page: list[Document], limit: int) -> str | None:
    if len(page) < limit:
        return None
    last = page[-1]
    return write_cursor([round(last["createdAt"].timestamp() * 1000), last["_id"]])


async def _events(orders: Orders, document: Document, seen: int, followers: set[object]) -> AsyncIterator[bytes]:
    """What has happened and what happens, with fewer and fewer looks at an order of which nothing is heard."""
    follower = object()
    followers.add(follower)
    try:
        async for event in _until_settled(orders, document, seen):
            yield event
    finally:
        followers.discard(follower)


async def _until_settled(orders: Orders, document: Document, seen: int) -> AsyncIterator[bytes]:
    last_sent, pause = time.monotonic(), EVENTS_POLL_SECONDS
    while True:
        for number, entry in enumerate(document["history"][seen:], start=seen + 1):
            yield _event(number, show_entry(entry))
            seen, last_sent, pause = number, time.monotonic(), EVENTS_POLL_SECONDS
        if document["settled"]:
            return
        if time.monotonic() - last_sent > EVENTS_KEEPALIVE_SECONDS:
            yield b": still here\n\n"
            last_sent = time.monotonic()
        await asyncio.sleep(pause)
        pause = min(pause * 1.2, EVENTS_SLOWEST_POLL_SECONDS)
        document = await _find(orders, document["_id"])


def _event(number: int, entry: dict[str, Any]) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, entry["event"].encode(), orjson.dumps(entry))

"""Server-sent events: an order's history as it grows, until the order is settled.

    retry: 2000

    id: 1
    event: order.created
    data: {"at": "…", "event": "order.created", "status": "PENDING"}

    event: settled
    data: {"at": "…", "event": "settled", "status": "CANCELLED", "message": "The card was declined"}

The data of every event has the shape of an entry of the history. The last event has no id: a client that reconnects
names the last entry that it has seen, so it misses none if the order goes on after all, as with a refund in part.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse
from pymongo.errors import PyMongoError
from starlette.types import Receive, Scope, Send

from order_service.orders import Orders
from order_service.views import show_entry
from shared.access.middleware import is_still_known
from shared.access.principal import Visible
from shared.database import Document, is_transient
from shared.http import ProblemError, not_found
from shared.problems import TOO_MANY_STREAMS

MAX_SUBSCRIBERS = 200
"""Event streams that a process serves at once: each takes a few reads per second."""
POLL_SECONDS = 0.2
SLOWEST_POLL_SECONDS = 2.0
KEEPALIVE_SECONDS = 15.0
RECHECK_SECONDS = 2.0
"""How often it is checked that the caller's key, token or session is still valid."""

RETRY_SECONDS = 2.0
"""The pause after which clients are asked to reconnect when a stream has broken off."""
SETTLED = "settled"
"""The name of the last event."""

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Subscribers:
    """Counts and limits the event streams that this process serves."""

    def __init__(self) -> None:
        self._count = 0

    @contextmanager
    def subscription(self) -> Iterator[None]:
        """Count a stream for as long as the context lasts; raises the 429 problem if there are too many already."""
        if self._count >= MAX_SUBSCRIBERS:
            detail = f"{MAX_SUBSCRIBERS} clients follow orders already; request the order itself, or try again"
            raise ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS, detail, kind=TOO_MANY_STREAMS, headers={"Retry-After": "5"}
            )
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


class EventStream(Response):
    """One event per line of the order's history after the first `seen`, then `settled`; 204 once there are no more.

    A browser reopens a stream that has ended, and names the last event that it received; only 204 stops it. It is
    counted before anything is awaited, and until the request ends, even if that is before its first byte.
    """

    def __init__(self, orders: Orders, subscribers: Subscribers, order_id: str, seen: int, visible: Visible) -> None:
        super().__init__()
        self._visible = visible
        self._orders = orders
        self._subscribers = subscribers
        self._order_id = order_id
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request; raises the 404 problem for an unknown order, the 429 problem if the process is full."""
        with self._subscribers.subscription():
            document = await self._orders.document(self._order_id, self._visible)
            if document is None:
                raise not_found(f"Order {self._order_id}")
            answer = Response(status_code=HTTPStatus.NO_CONTENT, headers=_HEADERS)
            if not document["settled"] or len(document["history"]) > self._seen:
                events = self._until_settled(scope, document)
                answer = StreamingResponse(events, media_type="text/event-stream", headers=_HEADERS)
            await answer(scope, receive, send)

    async def _until_settled(self, scope: Scope, document: Document | None) -> AsyncIterator[bytes]:
        """Yield past and new events; poll an order less and less often while it does not change.

        The stream ends when the caller's credential does.
        """
        seen, last_sent, pause = self._seen, time.monotonic(), POLL_SECONDS
        last_checked = time.monotonic()
        yield b"retry: %d\n\n" % (RETRY_SECONDS * 1000)
        while document is not None:
            for number, entry in enumerate(document["history"][seen:], start=seen + 1):
                yield b"id: %d\n" % number + _event(show_entry(entry))
                seen, last_sent, pause = number, time.monotonic(), POLL_SECONDS
            if document["settled"]:
                yield _event(_settled(document))
                return
            if time.monotonic() - last_sent > KEEPALIVE_SECONDS:
                yield b": still here\n\n"
                last_sent = time.monotonic()
            if time.monotonic() - last_checked > RECHECK_SECONDS:
                if not await is_still_known(scope):
                    return
                last_checked = time.monotonic()
            await asyncio.sleep(pause)
            pause = min(pause * 1.2, SLOWEST_POLL_SECONDS)
            document = await self._reload(document)

    async def _reload(self, document: Document) -> Document | None:
        """Return the current document; the last one while MongoDB is away, as the answer has begun already."""
        try:
            return await self._orders.document(self._order_id, self._visible)
        except PyMongoError as error:
            if not is_transient(error):
                raise
            return document


def _event(shown: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (shown["event"].encode(), orjson.dumps(shown))


def _settled(document: Document) -> dict[str, Any]:
    """Show the end of an order like an entry of its history, with the reason if it was not fulfilled."""
    reason = document.get("failureReason")
    shown = {"at": document["updatedAt"], "event": SETTLED, "status": document["status"]}
    return show_entry(shown | ({"message": reason} if reason else {}))

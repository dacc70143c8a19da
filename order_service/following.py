"""Server-sent events: an order's history as it grows, until the order is settled."""

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
from shared.database import Document, is_passing
from shared.http import ProblemError, not_found

MAX_FOLLOWERS = 200
"""Event streams that a process serves at once: each is a few reads a second."""
POLL_SECONDS = 0.2
SLOWEST_POLL_SECONDS = 2.0
KEEPALIVE_SECONDS = 15.0

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Followers:
    """The event streams that this process serves."""

    def __init__(self) -> None:
        self._count = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place for as long as the context lasts; raises the 429 problem if there is none."""
        if self._count >= MAX_FOLLOWERS:
            detail = f"{MAX_FOLLOWERS} clients follow orders already; ask for the order itself, or try again"
            raise ProblemError(HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": "5"})
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


class EventStream(Response):
    """One event per line of the order's history after the first `seen`; 204 once there will be no more.

    A browser opens a stream again that has ended, naming the last event it got; only 204 stops it. The place is taken
    before anything is waited for, and given back however the request ends, also before its first byte.
    """

    def __init__(self, orders: Orders, followers: Followers, order_id: str, seen: int) -> None:
        super().__init__()
        self._orders = orders
        self._followers = followers
        self._order_id = order_id
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request; raises the 404 problem for an unknown order and the 429 problem without a place."""
        with self._followers.place():
            document = await self._orders.document(self._order_id)
            if document is None:
                raise not_found(f"Order {self._order_id}")
            answer = Response(status_code=HTTPStatus.NO_CONTENT, headers=_HEADERS)
            if not document["settled"] or len(document["history"]) > self._seen:
                events = self._until_settled(document)
                answer = StreamingResponse(events, media_type="text/event-stream", headers=_HEADERS)
            await answer(scope, receive, send)

    async def _until_settled(self, document: Document | None) -> AsyncIterator[bytes]:
        """What has happened and what happens, with fewer and fewer looks at an order of which nothing is heard."""
        seen, last_sent, pause = self._seen, time.monotonic(), POLL_SECONDS
        while document is not None:
            for number, entry in enumerate(document["history"][seen:], start=seen + 1):
                yield _event(number, show_entry(entry))
                seen, last_sent, pause = number, time.monotonic(), POLL_SECONDS
            if document["settled"]:
                return
            if time.monotonic() - last_sent > KEEPALIVE_SECONDS:
                yield b": still here\n\n"
                last_sent = time.monotonic()
            await asyncio.sleep(pause)
            pause = min(pause * 1.2, SLOWEST_POLL_SECONDS)
            document = await self._look_again(document)

    async def _look_again(self, document: Document) -> Document | None:
        """Return the order as it is now; as it was while MongoDB is away, for the answer has begun."""
        try:
            return await self._orders.document(self._order_id)
        except PyMongoError as error:
            if not is_passing(error):
                raise
            return document


def _event(number: int, entry: dict[str, Any]) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, entry["event"].encode(), orjson.dumps(entry))

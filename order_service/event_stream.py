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

import time
from collections.abc import AsyncIterator
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from order_service.following import Followers
from order_service.views import show_entry
from shared.access.middleware import is_still_known
from shared.access.principal import Visible
from shared.database import Document

KEEPALIVE_SECONDS = 15.0
RETRY_SECONDS = 2.0
"""The pause after which clients are asked to reconnect when a stream has broken off."""
SETTLED = "settled"
"""The name of the last event."""

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """One event per line of the order's history after the first `seen`, then `settled`; 204 once there are no more.

    A browser reopens a stream that has ended, and names the last event that it received; only 204 stops it. It is
    counted before anything is awaited, and until the request ends, even if that is before its first byte.
    """

    def __init__(self, followers: Followers, order_id: str, seen: int, visible: Visible) -> None:
        super().__init__()
        self._visible = visible
        self._followers = followers
        self._order_id = order_id
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request; raises the 404 problem for an unknown order, the 429 problem if the process is full."""
        with self._followers.place():
            document = await self._followers.document(self._order_id, self._visible)
            answer = Response(status_code=HTTPStatus.NO_CONTENT, headers=_HEADERS)
            if not document["settled"] or len(document["history"]) > self._seen:
                events = self._events(scope, document)
                answer = StreamingResponse(events, media_type="text/event-stream", headers=_HEADERS)
            await answer(scope, receive, send)

    async def _events(self, scope: Scope, document: Document) -> AsyncIterator[bytes]:
        """Yield past and new events, and a comment now and then in between."""
        last_sent = time.monotonic()
        yield b"retry: %d\n\n" % (RETRY_SECONDS * 1000)
        readings = self._followers.readings(document, self._seen, self._visible, partial(is_still_known, scope))
        async for current, entries in readings:
            for number, entry in entries:
                yield b"id: %d\n" % number + _event(show_entry(entry))
                last_sent = time.monotonic()
            if current["settled"]:
                yield _event(_settled(current))
            elif time.monotonic() - last_sent > KEEPALIVE_SECONDS:
                yield b": still here\n\n"
                last_sent = time.monotonic()


def _event(shown: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (shown["event"].encode(), orjson.dumps(shown))


def _settled(document: Document) -> dict[str, Any]:
    """Show the end of an order like an entry of its history, with the reason if it was not fulfilled."""
    reason = document.get("failureReason")
    shown = {"at": document["updatedAt"], "event": SETTLED, "status": document["status"]}
    return show_entry(shown | ({"message": reason} if reason else {}))

"""Lets clients follow an order: what has happened, and then what happens, until the order is settled."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import NamedTuple

from pymongo.errors import PyMongoError

from order_service.orders import Orders
from shared.access.principal import Visible
from shared.admission import Places
from shared.database import Document, is_transient
from shared.http import ProblemError, not_found
from shared.problems import TOO_MANY_STREAMS

MAX_FOLLOWERS = 200
"""Clients that a process lets follow at once: each takes a few reads per second."""
FIRST_POLL_SECONDS = 0.05
"""How soon an order is read again after it has changed; less and less often while it does not."""
SLOWEST_POLL_SECONDS = 1.0
RECHECK_SECONDS = 2.0
"""How often it is checked that the caller's key, token or session is still valid."""

IsKnown = Callable[[], Awaitable[bool]]
"""Says whether the credential of a client is still valid."""


class Reading(NamedTuple):
    """An order as it is now, and the entries of its history that its follower has not seen, with their numbers."""

    document: Document
    entries: Sequence[tuple[int, Document]]


class Followers:
    """The clients of this process that follow orders, by whatever protocol."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._places = Places()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End all readings: the clients come again elsewhere."""
        self._stopping.set()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count a client for as long as the context lasts; raises the 429 problem if there are too many already."""
        with self._places.one() as taken:
            if taken > MAX_FOLLOWERS:
                detail = f"{MAX_FOLLOWERS} clients follow orders already; request the order itself, or try again"
                raise ProblemError(
                    HTTPStatus.TOO_MANY_REQUESTS, detail, kind=TOO_MANY_STREAMS, headers={"Retry-After": "5"}
                )
            yield

    async def document(self, order_id: str, visible: Visible) -> Document:
        """Return an order that a client wants to follow. Raises the 404 problem."""
        document = await self._orders.document(order_id, visible)
        if document is None:
            raise not_found(f"Order {order_id}")
        return document

    async def readings(
        self, document: Document, seen: int, visible: Visible, is_known: IsKnown
    ) -> AsyncIterator[Reading]:
        """Yield the order as it is and whenever it has been read again; the last one is that of the settled order.

        They end before that when the caller is not known any more, the order is gone, or the process stops.
        """
        pause, checked, current = FIRST_POLL_SECONDS, time.monotonic(), document
        while True:
            entries = list(enumerate(current["history"][seen:], start=seen + 1))
            if entries:
                seen, pause = entries[-1][0], FIRST_POLL_SECONDS
            yield Reading(current, entries)
            if current["settled"]:
                return
            if time.monotonic() - checked > RECHECK_SECONDS:
                if not await is_known():
                    return
                checked = time.monotonic()
            await self._wait(pause)
            pause = min(pause * 1.2, SLOWEST_POLL_SECONDS)
            again = await self._reload(current, visible)
            if again is None or self._stopping.is_set():
                return
            current = again

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _reload(self, document: Document, visible: Visible) -> Document | None:
        """Return the current document; the last one while MongoDB is away, as the answer has begun already."""
        try:
            return await self._orders.document(document["_id"], visible)
        except PyMongoError as error:
            if not is_transient(error):
                raise
            return document

"""Lets requests wait until their orders reach a goal: one future for each order that is waited for.

The handler of answers completes the futures of the orders that reach it in this process. The others are found by one
read for all that are waited for, so a waiting request costs no reads of its own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import structlog
from prometheus_client import Gauge
from pymongo.errors import PyMongoError

from order_service.order import Order, Status
from order_service.orders import Orders, from_document
from order_service.saga import is_final
from shared.background import run_periodically
from shared.database import Document, first_line, is_transient
from shared.group_commit import GroupCommit

READ_SECONDS = 0.15
"""The pause between two reads of the orders that are waited for."""
READ_AT_ONCE = 500
"""Most orders of one read; of more, each read takes the next ones."""

_log = structlog.get_logger(__name__)
_requests = Gauge(
    "order_requests_waiting", "Requests that wait for their order (Prefer: wait), and calls of gRPC for its slot"
)


Gone = Callable[[], Coroutine[Any, Any, object]]
"""Returns once the client of a request is gone."""


async def _stays() -> None:
    """Never return: a call of gRPC is cancelled when its client goes away."""
    await asyncio.Event().wait()


class Goal(NamedTuple):
    """What is waited for."""

    is_reached: Callable[[Order], bool]
    reached: Callable[[Orders, Sequence[str]], Awaitable[Sequence[Order]]]
    """Reads those of the orders that may have reached it."""


def is_booked(order: Order) -> bool:
    """Return whether the order has its slot, or will never have one."""
    return order.slot is not None or order.status in (Status.CANCELLED, Status.FAILED)


FINAL = Goal(is_final, lambda orders, ids: orders.ended(ids))
BOOKED = Goal(is_booked, lambda orders, ids: orders.booked(ids))


class Outcome(NamedTuple):
    """The document of an order that has reached the goal, else None; whether the request has waited as it asked to."""

    final: Document | None
    waited: bool


NOT_WAITED = Outcome(None, waited=False)


class _Awaited:
    """An order that is waited for: the future is True once it has reached the goal, False if the process stops."""

    def __init__(self) -> None:
        self.future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.requests = 0


class WaitingRequests:
    """The requests of this process that wait, at most `limit`."""

    def __init__(self, orders: Orders, goal: Goal = FINAL, *, limit: int) -> None:
        self._orders = orders
        self._goal = goal
        self._limit = limit
        self._awaited: dict[str, _Awaited] = {}
        self._is_any_awaited = asyncio.Event()
        self._count = 0
        self.is_stopping = False
        self._reads: GroupCommit[str, Document | None] = GroupCommit(self._read_documents, limit=READ_AT_ONCE)

    async def wait(self, placed: Order | Document, seconds: float, gone: Gone = _stays) -> Outcome:
        """Wait until an order reaches the goal: for the seconds, or until the client is `gone` or the process stops.

        Nothing is awaited before the order is waited for, so its end cannot be missed between its insertion and here.
        """
        if not isinstance(placed, Order):
            if self._goal.is_reached(from_document(placed)):
                return Outcome(placed, waited=True)
            order_id: str = placed["_id"]
        else:
            order_id = placed.order_id
        if self.is_stopping or self._count >= self._limit:
            return NOT_WAITED
        done = await self._end_of(order_id, seconds, gone)
        if not done:
            return Outcome(None, waited=done is None)
        return await self._final(order_id)

    def announce(self, orders: Iterable[Order]) -> None:
        """Answer the requests that wait for those of the orders that have reached the goal."""
        for order in orders:
            awaited = self._awaited.get(order.order_id)
            if awaited and self._goal.is_reached(order) and not awaited.future.done():
                awaited.future.set_result(True)

    def stop(self) -> None:
        """Let all requests go, and let none wait from now on: the process stops."""
        self.is_stopping = True
        for awaited in self._awaited.values():
            if not awaited.future.done():
                awaited.future.set_result(False)

    async def run(self) -> None:
        """Read the orders that are waited for periodically, as long as there are any, until cancelled."""
        await run_periodically(self._read_and_rest, every=READ_SECONDS, name="reading orders that are waited for")

    async def _read_and_rest(self) -> None:
        await self.read()
        await self._is_any_awaited.wait()

    async def read(self) -> None:
        """Read the next of the orders that are waited for: one query, whatever their number."""
        ids = list(islice(self._awaited, READ_AT_ONCE))
        for order_id in ids:
            self._awaited[order_id] = self._awaited.pop(order_id)
        if ids:
            self.announce(await self._goal.reached(self._orders, ids))

    async def _end_of(self, order_id: str, seconds: float, gone: Gone) -> bool | None:
        """Return the result of the order's future; None if the time is over, False if the client is gone."""
        awaited = self._awaited.setdefault(order_id, _Awaited())
        awaited.requests += 1
        self._is_any_awaited.set()
        self._count += 1
        _requests.inc()
        leaving = asyncio.create_task(gone())
        try:
            either: set[asyncio.Future[Any]] = {awaited.future, leaving}
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if awaited.future.done():
                return awaited.future.result()
            return False if leaving.done() else None
        finally:
            leaving.cancel()
            self._count -= 1
            _requests.dec()
            awaited.requests -= 1
            if not awaited.requests:
                del self._awaited[order_id]
            if not self._awaited:
                self._is_any_awaited.clear()

    async def _final(self, order_id: str) -> Outcome:
        """Read an order that has reached the goal; while the database is away, the order is still accepted."""
        try:
            return Outcome(await self._reads.submit(order_id), waited=True)
        except PyMongoError as error:
            if not is_transient(error):
                raise
            _log.warning("the final order was not read", order_id=order_id, error=first_line(error))
            return NOT_WAITED

    async def _read_documents(self, ids: Sequence[str]) -> Sequence[Document | None]:
        documents = await self._orders.documents(set(ids))
        return [documents.get(order_id) for order_id in ids]

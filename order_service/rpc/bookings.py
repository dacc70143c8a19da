"""Waits for the slots of new orders: one read for all that wait, whichever process handles the answers."""

import asyncio
import time

import structlog
from pymongo.errors import PyMongoError

from order_service.orders import Orders
from shared.database import Document, first_line, is_transient

FIRST_READ_SECONDS = 0.005
PAUSE_SECONDS = 0.02
"""The least time between two reads; it is twice as long as the last read took, so that slow reads do not add up."""

_log = structlog.get_logger(__name__)


class Bookings:
    """The orders whose slots the calls of this process wait for."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._waiting: dict[str, list[asyncio.Future[Document]]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def wait(self, order_id: str) -> Document:
        """Return an order once its slot is booked, or it has ended without one. Several calls may wait for one."""
        future: asyncio.Future[Document] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(order_id, []).append(future)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        try:
            return await future
        finally:
            self._forget(order_id, future)

    def _forget(self, order_id: str, future: asyncio.Future[Document]) -> None:
        futures = self._waiting.get(order_id, [])
        if future in futures:
            futures.remove(future)
            if not futures:
                del self._waiting[order_id]

    async def _read(self) -> None:
        """Read until no call waits any longer."""
        try:
            await asyncio.sleep(FIRST_READ_SECONDS)
            while self._waiting:
                started = time.monotonic()
                for order_id, document in (await self._booked()).items():
                    for future in self._waiting.pop(order_id, ()):
                        if not future.done():
                            future.set_result(document)
                await asyncio.sleep(max(PAUSE_SECONDS, 2 * (time.monotonic() - started)))
        except Exception as error:  # noqa: BLE001 - each call that waits reports it
            for future in [each for futures in self._waiting.values() for each in futures if not each.done()]:
                future.set_exception(error)
        finally:
            self._reader = None

    async def _booked(self) -> dict[str, Document]:
        try:
            return await self._orders.booked(list(self._waiting))
        except PyMongoError as error:
            if not is_transient(error):
                raise
            _log.warning("bookings not read", error=first_line(error))
            return {}

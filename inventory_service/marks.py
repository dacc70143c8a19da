"""Removes marks that have done their work: on the side of other writes, after a short idle time, and by a sweep.

What is known about an order, from its reservation, is noted per product until the mark is gone. Whoever writes the
product next removes the mark with it; if nobody does, `flush` does. What a killed worker knew is found by `sweep`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from datetime import timedelta

import structlog
from pymongo.errors import PyMongoError

from inventory_service.metrics import overdue_marks
from inventory_service.products import Products
from inventory_service.reservations import Reservations
from inventory_service.stock import Product, Status, settled
from shared.clock import Clock
from shared.errors import TransientError

RETRY_SECONDS = 1.0
LINGER_SECONDS = 1.0
"""Under load a mark waits this long for a write that takes it along; a write of its own is one more to collide with."""
OVERDUE_SECONDS = 60.0
"""A mark without a reservation is a message in hand or on its way back; longer than this is worth a warning."""

_log = structlog.get_logger(__name__)


class Marks:
    """What this process knows about marks on products, and the ways it makes use of it."""

    def __init__(
        self, products: Products, reservations: Reservations, clock: Clock, *, idle: float, sweep_interval: float
    ) -> None:
        self._products = products
        self._reservations = reservations
        self._clock = clock
        self._idle = idle
        self._sweep_interval = sweep_interval
        self._known: dict[str, dict[str, Status]] = {}
        self._since: dict[str, float] = {}
        self._last_noted = 0.0
        self._something_known = asyncio.Event()
        self._unresolved: dict[tuple[str, str], float] = {}

    def known(self, product_id: str) -> Mapping[str, Status]:
        """What became of orders that have marks on this product, as far as it is known."""
        return self._known.get(product_id, {})

    def note(self, product_id: str, order_id: str, status: Status) -> None:
        """Note what a reservation says about an order that has, or had a moment ago, a mark on the product."""
        self._known.setdefault(product_id, {})[order_id] = status
        self._last_noted = time.monotonic()
        self._since.setdefault(product_id, self._last_noted)
        self._something_known.set()

    def note_all(self, products: Iterable[Product], statuses: Mapping[str, Status]) -> set[str]:
        """Note every status of which a product carries the mark; returns the products that are owed units by that."""
        owed = set()
        for product in products:
            for order_id in product.moving.keys() & statuses.keys():
                self.note(product.product_id, order_id, statuses[order_id])
                if statuses[order_id] is not Status.RESERVED and product.held_for(order_id):
                    owed.add(product.product_id)
        return owed

    def removed(self, before: Product, after: Product) -> None:
        """Forget about the marks that a write has removed."""
        self._forget(before.product_id, before.moving.keys() - after.moving.keys())

    async def settle(self, product_ids: Collection[str]) -> None:
        """Write what is known into these products: marks go, and units of orders that do not keep them come back."""
        left = set(product_ids)
        while left:
            noted = {product_id: dict(self.known(product_id)) for product_id in left}
            before = await self._products.read(left)
            after = {product_id: settled(product, noted[product_id]) for product_id, product in before.items()}
            changed = {product_id for product_id in before if after[product_id] is not before[product_id]}
            written = await self._products.write([after[product_id] for product_id in changed])
            done = left - (changed - written)
            for product_id in done:
                self._forget(product_id, noted[product_id])
            left -= done

    async def flush(self) -> None:
        """Settle what is known whenever there is nothing else to do for a moment, until cancelled."""
        while True:
            await self._something_known.wait()
            await asyncio.sleep(self._idle)
            await _surviving(self._settle_waiting)

    async def sweep(self) -> None:
        """Look every interval for marks that a killed worker has left, until cancelled."""
        while True:
            await asyncio.sleep(self._sweep_interval)
            await _surviving(self.sweep_once)

    async def drain(self) -> None:
        """Settle everything that is known."""
        await self.settle(list(self._known))

    async def sweep_once(self) -> None:
        """Find out about old marks whose orders are decided; a mark without a reservation belongs to its message."""
        before = self._clock() - timedelta(seconds=self._sweep_interval)
        products = await self._products.marked_before(before)
        marks = {(p.product_id, order_id) for p in products for order_id in p.moving}
        statuses = await self._reservations.statuses({order_id for _, order_id in marks})
        self.note_all(products, statuses)
        self._watch({mark for mark in marks if mark[1] not in statuses})

    def _watch(self, unresolved: set[tuple[str, str]]) -> None:
        now = time.monotonic()
        self._unresolved = {mark: self._unresolved.get(mark, now) for mark in unresolved}
        overdue = [mark for mark, since in self._unresolved.items() if now - since > OVERDUE_SECONDS]
        overdue_marks.set(len(overdue))
        if overdue:
            product_id, order_id = overdue[0]
            _log.warning(
                "stock is taken for orders that nobody decides",
                marks=len(overdue),
                product_id=product_id,
                order_id=order_id,
            )

    def _forget(self, product_id: str, order_ids: Iterable[str]) -> None:
        known = self._known.get(product_id)
        if known is None:
            return
        for order_id in order_ids:
            known.pop(order_id, None)
        if not known:
            del self._known[product_id]
            del self._since[product_id]
        if not self._known:
            self._something_known.clear()

    async def _settle_waiting(self) -> None:
        now = time.monotonic()
        idle = now - self._last_noted >= self._idle
        await self.settle(
            [product_id for product_id, since in self._since.items() if idle or now - since >= LINGER_SECONDS]
        )


async def _surviving(work: Callable[[], Awaitable[None]]) -> None:
    """Do the work; what goes wrong is logged, and done again after a pause."""
    try:
        await work()
    except (TransientError, PyMongoError) as error:
        _log.warning("marks on products have to wait", error=str(error)[:200])
        await asyncio.sleep(RETRY_SECONDS)
    except Exception:  # noqa: BLE001 - logged; a fault here must not end the service, the marks only wait
        _log.exception("removing marks from products failed")
        await asyncio.sleep(RETRY_SECONDS)

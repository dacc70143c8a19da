"""Reserves stock for a batch of orders: for each all it asks for, or nothing. Why this order of steps: stock.py."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from inventory_service import metrics
from inventory_service.allocation import Outcome, Refuse, Reserve, Wait, allocate, server_of, wanted
from inventory_service.marks import Marks
from inventory_service.products import Products
from inventory_service.reservations import Reservations
from inventory_service.stock import Line, Product, Reservation, Status, may_return, settled, taken
from shared.clock import Clock
from shared.contracts import OrderCreated
from shared.failure_points import RESERVATION_RECORDED, STOCK_MOVED, FailurePoint

PATIENCE_SECONDS = 0.5
"""How long an order waits for what others may give back before it is decided over what is free."""
PAUSE_SECONDS = 0.005


class Reserving:
    """Carries batches of orders to a reservation each; any number of workers may do so at once."""

    def __init__(
        self,
        products: Products,
        reservations: Reservations,
        marks: Marks,
        clock: Clock,
        reach: FailurePoint,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._products = products
        self._reservations = reservations
        self._marks = marks
        self._clock = clock
        self._reach = reach
        self._patience = patience

    async def reserve(self, orders: Sequence[OrderCreated]) -> dict[str, Reservation]:
        """Decide every order, or find out what was decided before; returns the reservations by order.

        When it returns, the reservations are stored, and orders that were refused hold nothing.
        """
        open_orders: dict[str, OrderCreated] = {}
        for order in orders:
            open_orders.setdefault(order.order_id, order)
        decided: dict[str, Reservation] = {}
        deadline = time.monotonic() + self._patience
        passes = 0
        while open_orders:
            passes += 1
            now_decided = await self._pass(list(open_orders.values()), patient=time.monotonic() < deadline)
            decided |= now_decided
            for order_id in now_decided:
                del open_orders[order_id]
        metrics.passes.observe(passes)
        return decided

    async def _pass(self, orders: list[OrderCreated], *, patient: bool) -> dict[str, Reservation]:
        """Go once through all steps; returns what is decided now, which is all unless another worker was in the way."""
        before = await self._products.read({item.product_id for order in orders for item in order.items})
        recorded = await self._reservations.read(order.order_id for order in orders)
        owed = self._marks.note_all(before.values(), _statuses(recorded))
        undecided = [order for order in orders if order.order_id not in recorded]
        products = {product_id: settled(p, self._marks.known(product_id)) for product_id, p in before.items()}
        outcomes = self._allocate(undecided, products, patient=patient)
        written = await self._take(outcomes, before, products)
        new = await self._record(undecided, outcomes, products, written)
        owed |= self._marks.note_all((products | written).values(), _statuses(new))
        if owed:
            await self._marks.settle(owed)
        waiting = [order for order in undecided if isinstance(outcomes[order.order_id], Wait)]
        if waiting and not new:
            await self._wait(waiting, products)
        return recorded | new

    def _allocate(
        self, orders: Sequence[OrderCreated], products: Mapping[str, Product], *, patient: bool
    ) -> dict[str, Outcome]:
        returning = {}
        if patient:
            returning = {product_id: may_return(p, self._marks.known(product_id)) for product_id, p in products.items()}
        with metrics.allocation_seconds.time():
            return allocate(orders, products, returning)

    async def _take(
        self, outcomes: Mapping[str, Outcome], before: Mapping[str, Product], products: Mapping[str, Product]
    ) -> dict[str, Product]:
        """Move the quantities; returns the products that were written, as they are now."""
        takes: dict[str, dict[str, int]] = {}
        for order_id, outcome in outcomes.items():
            if isinstance(outcome, Reserve):
                for product_id, count in outcome.take.items():
                    takes.setdefault(product_id, {})[order_id] = count
        after = {product_id: taken(products[product_id], by_order) for product_id, by_order in takes.items()}
        stored = await self._products.write(list(after.values()))
        for product_id in stored:
            self._marks.removed(before[product_id], after[product_id])
        if stored:
            self._reach(STOCK_MOVED)
        return {product_id: after[product_id] for product_id in stored}

    async def _record(
        self,
        orders: Sequence[OrderCreated],
        outcomes: Mapping[str, Outcome],
        products: Mapping[str, Product],
        written: Mapping[str, Product],
    ) -> dict[str, Reservation]:
        """Insert the reservations of orders that hold everything or are refused; returns those that are new."""
        decisions = []
        for order in orders:
            outcome = outcomes[order.order_id]
            if isinstance(outcome, Refuse):
                decisions.append(self._refused(order, outcome.reason))
            elif isinstance(outcome, Reserve) and outcome.take.keys() <= written.keys():
                decisions.append(self._reserved(order, products))
        existing = await self._reservations.insert(decisions)
        new = {reservation.order_id: reservation for reservation in decisions if reservation.order_id not in existing}
        for reservation in new.values():
            metrics.reservations.labels(reservation.status).inc()
        if new:
            self._reach(RESERVATION_RECORDED)
        return new

    async def _wait(self, orders: Sequence[OrderCreated], products: Mapping[str, Product]) -> None:
        """Find out what has become of the orders that these wait for; if nothing yet, pause."""
        contested = [products[product_id] for order in orders for product_id in wanted(order, products)]
        holders = {
            order_id
            for product in contested
            for order_id in product.moving.keys() - self._marks.known(product.product_id).keys()
        }
        statuses = await self._reservations.statuses(holders)
        owed = self._marks.note_all(contested, statuses)
        if owed:
            await self._marks.settle(owed)
        if not statuses:
            await asyncio.sleep(PAUSE_SECONDS)

    def _reserved(self, order: OrderCreated, products: Mapping[str, Product]) -> Reservation:
        now = self._clock()
        server = server_of(order, products)
        return Reservation(order.order_id, Status.RESERVED, now, now, _lines(order), server=server)

    def _refused(self, order: OrderCreated, reason: str) -> Reservation:
        now = self._clock()
        return Reservation(order.order_id, Status.FAILED, now, now, _lines(order), failure_reason=reason)


def _lines(order: OrderCreated) -> tuple[Line, ...]:
    return tuple(Line(item.product_id, item.quantity, item.price) for item in order.items)


def _statuses(reservations: Mapping[str, Reservation]) -> dict[str, Status]:
    return {order_id: reservation.status for order_id, reservation in reservations.items()}

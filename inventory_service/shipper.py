"""Marks what orders hold as shipped, once their goods have left. stock.py explains the order of the steps."""

from collections.abc import Iterable, Mapping

from inventory_service.pending_moves import PendingMoves
from inventory_service.reservations import Reservations
from inventory_service.stock import (
    Product,
    Reservation,
    Status,
    StockItem,
    check_reserved,
    clear_moves,
    ship,
    units_by_product,
)
from inventory_service.stock_items import StockItems
from shared.failpoints import RESERVATION_RECORDED, STOCK_MOVED, Failpoint


class Shipper:
    """Ships the reservations of batches of orders; safe with any number of concurrent workers."""

    def __init__(
        self, stock_items: StockItems, reservations: Reservations, pending_moves: PendingMoves, failpoint: Failpoint
    ) -> None:
        self._stock_items = stock_items
        self._reservations = reservations
        self._pending_moves = pending_moves
        self._failpoint = failpoint

    async def ship(self, order_ids: Iterable[str]) -> None:
        """Ship every order, each once; PoisonError if the stock of one of them is not reserved."""
        # Of these, the items never change, so they may be read before the products.
        left = await self._reservations.read_existing(order_ids)
        for order_id in order_ids:
            check_reserved(order_id, left.get(order_id))
        while left:
            for order_id in await self._attempt(left):
                del left[order_id]

    async def _attempt(self, left: Mapping[str, Reservation]) -> set[str]:
        """Go through all steps once; return the orders that are done."""
        # Items first, reservations second: the guards of stock.py depend on this order.
        product_ids = {line.product_id for reservation in left.values() for line in reservation.items}
        before = await self._stock_items.read(product_ids)
        recorded = await self._reservations.read_existing(left)
        done = [order_id for order_id, found in recorded.items() if found.status is Status.SHIPPED]
        for order_id in done:
            self._remember(recorded[order_id])
        holding = {key: check_reserved(key, found) for key, found in recorded.items() if key not in done}
        return {*done} | await self._count(holding, before)

    async def _count(self, holding: Mapping[str, Reservation], before: Mapping[str, StockItem]) -> set[str]:
        """Count the units as shipped and mark the reservations; return the orders that are done."""
        uncounted = {order_id: _uncounted(reservation, before) for order_id, reservation in holding.items()}
        ships: dict[str, dict[str, int]] = {}
        for order_id, units in uncounted.items():
            for product_id, count in units.items():
                ships.setdefault(product_id, {})[order_id] = count
        after = {
            product_id: ship(_cleared(before[product_id], self._pending_moves), by_order)
            for product_id, by_order in ships.items()
        }
        stored = await self._stock_items.write(list(after.values()))
        for product_id in stored:
            self._pending_moves.forget_cleared(before[product_id], after[product_id])
        if stored:
            self._failpoint(STOCK_MOVED)
        shipped = [order_id for order_id, units in uncounted.items() if units.keys() <= stored]
        await self._reservations.mark(shipped, Status.SHIPPED)
        if shipped:
            self._failpoint(RESERVATION_RECORDED)
        for order_id in shipped:
            self._remember(holding[order_id])
        return set(shipped)

    def _remember(self, reservation: Reservation) -> None:
        for product_id in units_by_product(reservation.items):
            self._pending_moves.remember(product_id, reservation.order_id, Status.SHIPPED)


def _cleared(item: StockItem, pending_moves: PendingMoves) -> Product:
    cleared = clear_moves(item, pending_moves.known_statuses(item.id))
    if not isinstance(cleared, Product):
        raise TypeError(f"{item.id} is a slot, which nothing ships")
    return cleared


def _uncounted(reservation: Reservation, items: Mapping[str, StockItem]) -> dict[str, int]:
    """Return the units that are not counted as shipped yet, by product, without those that refunds have put back."""
    return {
        product_id: count
        for product_id in units_by_product(reservation.items)
        if (item := items.get(product_id)) is not None
        and item.is_counted
        and not reservation.is_shipped_from(item)
        and (count := reservation.still_held(item)) > 0
    }

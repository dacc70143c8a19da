"""Puts units of refunds back into free stock, once per refund. stock.py explains the order of the steps.

The reservation records the return, and keeps its status: RESERVED, or that of an order whose units have left.
"""

from collections.abc import Mapping, Sequence

from inventory_service.pending_moves import PendingMoves
from inventory_service.reservations import Reservations
from inventory_service.stock import (
    Reservation,
    Return,
    Status,
    StockItem,
    put_back,
    return_id,
)
from inventory_service.stock_items import StockItems
from shared.contracts import ReturnStock
from shared.errors import PoisonError
from shared.failpoints import RESERVATION_RECORDED, STOCK_MOVED, Failpoint

Key = tuple[str, str]
"""The order and the refund."""


class Returner:
    """Returns the units of batches of refunds; safe with any number of concurrent workers."""

    def __init__(
        self, stock_items: StockItems, reservations: Reservations, pending_moves: PendingMoves, failpoint: Failpoint
    ) -> None:
        self._stock_items = stock_items
        self._reservations = reservations
        self._pending_moves = pending_moves
        self._failpoint = failpoint

    async def put_back(self, commands: Sequence[ReturnStock]) -> None:
        """Put the units of every command back; those of a repeated one, and of a released order, are back already.

        Raises PoisonError for an order without a reservation, and for more units than the order has left.
        """
        waiting = {(command.order_id, command.refund_id): _return(command) for command in commands}
        while waiting:
            for key in await self._attempt(waiting):
                del waiting[key]

    async def _attempt(self, waiting: Mapping[Key, Return]) -> set[Key]:
        """Go through all steps once; return the refunds that are done."""
        # Items first, reservations second: the guards of stock.py depend on this order.
        items = await self._stock_items.read({product for each in waiting.values() for product in each.units})
        recorded = await self._reservations.read_existing({order_id for order_id, _ in waiting})
        done: set[Key] = set()
        for (order_id, refund_id), asked in _one_per_order(waiting).items():
            reservation = recorded.get(order_id)
            if reservation is None or reservation.status is Status.FAILED:
                raise PoisonError(f"stock.return for order {order_id}, which has no stock")
            if await self._put_back(reservation, asked, items):
                done.add((order_id, refund_id))
        return done

    async def _put_back(self, reservation: Reservation, asked: Return, items: Mapping[str, StockItem]) -> bool:
        """Put the units of one refund back; return False if another worker has changed one of the items meanwhile."""
        move = return_id(reservation.order_id, asked.refund_id)
        is_recorded = asked.refund_id in [each.refund_id for each in reservation.returns]
        if not is_recorded and reservation.status is not Status.RELEASED:
            if not await self._move(reservation, asked, items):
                return False
            await self._reservations.record_return(reservation.order_id, asked)
            self._failpoint(RESERVATION_RECORDED)
        for item_id in asked.units:
            self._pending_moves.remember(item_id, move, Status.RELEASED)
        return True

    async def _move(self, reservation: Reservation, asked: Return, items: Mapping[str, StockItem]) -> bool:
        """Add the units to the quantities; return False if another worker has changed an item since it was read."""
        known = {item_id: self._pending_moves.known_statuses(item_id) for item_id in asked.units}
        try:
            after = put_back(reservation, asked, items, known)
        except ValueError as error:
            raise PoisonError(f"stock.return for order {reservation.order_id}: {error}") from error
        stored = await self._stock_items.write(after)
        for item in after:
            if item.id in stored:
                self._pending_moves.forget_cleared(items[item.id], item)
        if stored:
            self._failpoint(STOCK_MOVED)
        return len(stored) == len(after)


def _return(command: ReturnStock) -> Return:
    units: dict[str, int] = {}
    for item in command.items:
        units[item.product_id] = units.get(item.product_id, 0) + item.quantity
    return Return(command.refund_id, units)


def _one_per_order(waiting: Mapping[Key, Return]) -> dict[Key, Return]:
    """Return the first refund of each order: what a second one may return depends on the first."""
    first = {order_id: (order_id, refund_id) for order_id, refund_id in reversed(list(waiting))}
    return {key: waiting[key] for key in first.values()}

"""Handlers for new orders and releases; both answer from the reservation."""

from collections.abc import Sequence

from inventory_service.holds import Holds
from inventory_service.releaser import Releaser
from inventory_service.reservation_processor import ReservationProcessor
from inventory_service.stock import Reservation, Status
from shared.bus import Handlers
from shared.contracts import Message, OrderCreated, ReleaseStock, StockReleased, StockReservationFailed, StockReserved


class StockHandlers:
    """Handlers of the inventory service; a repeated message gets the same answer."""

    def __init__(self, processor: ReservationProcessor, releaser: Releaser, holds: Holds) -> None:
        self._processor = processor
        self._releaser = releaser
        self._holds = holds

    async def reserve(self, orders: Sequence[OrderCreated]) -> Sequence[Message]:
        """Reserve stock for new orders, in the order of their arrival.

        A slot that another system has assigned to one of these orders is released if the order is refused, because
        nothing releases it later, and if the order has booked its own slot, because an order has one slot only. What an
        order leaves of a hold that it has taken over is returned.
        """
        claims = await self._holds.claim(orders)
        reservations = await self._processor.reserve(orders, claims)
        await self._holds.finish(claims)
        unassigned = [
            order_id
            for order_id, found in reservations.items()
            if found.status is Status.FAILED or found.booking is not None
        ]
        if unassigned:
            await self._releaser.release_assignments(unassigned)
        return [answer(reservation) for reservation in reservations.values()]

    async def release(self, commands: Sequence[ReleaseStock]) -> Sequence[Message]:
        """Release the stock of orders."""
        await self._releaser.release(commands)
        return [StockReleased(order_id=order_id) for order_id in dict.fromkeys(c.order_id for c in commands)]


def answer(reservation: Reservation) -> Message:
    """Build the message that reports a reservation."""
    if reservation.status is Status.RELEASED:
        return StockReleased(order_id=reservation.order_id)
    if reservation.status is Status.FAILED:
        return StockReservationFailed(order_id=reservation.order_id, reason=reservation.failure_reason or "")
    slot = reservation.booking.slot_id if reservation.booking is not None else None
    if reservation.server is not None:
        return StockReserved(
            order_id=reservation.order_id, fulfilment="vps", provisioning=reservation.server, slot=slot
        )
    return StockReserved(order_id=reservation.order_id, slot=slot)


def handlers(processor: ReservationProcessor, releaser: Releaser, holds: Holds) -> Handlers:
    """Map message types to handlers."""
    stock = StockHandlers(processor, releaser, holds)
    return {
        OrderCreated: stock.reserve,
        ReleaseStock: stock.release,
    }

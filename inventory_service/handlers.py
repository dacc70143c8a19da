"""New orders and releases, answered from the reservations that they lead to."""

from collections.abc import Sequence

from inventory_service.releaser import Releaser
from inventory_service.reservation_processor import ReservationProcessor
from inventory_service.stock import Reservation, Status
from shared.bus import Handlers
from shared.contracts import Message, OrderCreated, ReleaseStock, StockReleased, StockReservationFailed, StockReserved


class StockHandlers:
    """What the inventory service does with messages; a message that comes again is answered the same."""

    def __init__(self, processor: ReservationProcessor, releaser: Releaser) -> None:
        self._processor = processor
        self._releaser = releaser

    async def reserve(self, orders: Sequence[OrderCreated]) -> Sequence[Message]:
        """Reserve for new orders, in their order of arrival.

        What another system has assigned to an order meanwhile goes back if the order is refused, as nothing releases it
        later, and if it has a slot of its own: an order has one slot.
        """
        reservations = await self._processor.reserve(orders)
        unassigned = [
            order_id
            for order_id, found in reservations.items()
            if found.status is Status.FAILED or found.booking is not None
        ]
        if unassigned:
            await self._releaser.release_assignments(unassigned)
        return [answer(reservation) for reservation in reservations.values()]

    async def release(self, commands: Sequence[ReleaseStock]) -> Sequence[Message]:
        """Release what orders hold."""
        await self._releaser.release(commands)
        return [StockReleased(order_id=order_id) for order_id in dict.fromkeys(c.order_id for c in commands)]


def answer(reservation: Reservation) -> Message:
    """What follows from a reservation."""
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


def handlers(processor: ReservationProcessor, releaser: Releaser) -> Handlers:
    """Which handler takes which message."""
    stock = StockHandlers(processor, releaser)
    return {
        OrderCreated: stock.reserve,
        ReleaseStock: stock.release,
    }

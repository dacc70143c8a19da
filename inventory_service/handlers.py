"""Handlers for new orders, releases and shipping; all answer from the reservation."""

from collections.abc import Sequence

from inventory_service.answers import answer
from inventory_service.holds import Holds
from inventory_service.releaser import Releaser
from inventory_service.reservation_processor import ReservationProcessor
from inventory_service.returner import Returner
from inventory_service.shipper import Shipper
from inventory_service.stock import Status
from shared.bus import Handlers
from shared.contracts import (
    Message,
    OrderCreated,
    ReleaseStock,
    ReturnStock,
    ShipStock,
    StockReleased,
    StockReturned,
    StockShipped,
)


class StockHandlers:
    """Handlers of the inventory service; a repeated message gets the same answer."""

    def __init__(
        self,
        processor: ReservationProcessor,
        releaser: Releaser,
        shipper: Shipper,
        returner: Returner,
        holds: Holds,
    ) -> None:
        self._processor = processor
        self._releaser = releaser
        self._shipper = shipper
        self._returner = returner
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

    async def ship(self, commands: Sequence[ShipStock]) -> Sequence[Message]:
        """Ship the stock of orders; PoisonError if that of one of them is not reserved."""
        order_ids = list(dict.fromkeys(command.order_id for command in commands))
        await self._shipper.ship(order_ids)
        return [StockShipped(order_id=order_id) for order_id in order_ids]

    async def put_back(self, commands: Sequence[ReturnStock]) -> Sequence[Message]:
        """Put units of refunds back into free stock."""
        await self._returner.put_back(commands)
        refunds = dict.fromkeys((command.order_id, command.refund_id) for command in commands)
        return [StockReturned(order_id=order_id, refund_id=refund_id) for order_id, refund_id in refunds]


def handlers(
    processor: ReservationProcessor, releaser: Releaser, shipper: Shipper, returner: Returner, holds: Holds
) -> Handlers:
    """Map message types to handlers."""
    stock = StockHandlers(processor, releaser, shipper, returner, holds)
    return {
        OrderCreated: stock.reserve,
        ReleaseStock: stock.release,
        ShipStock: stock.ship,
        ReturnStock: stock.put_back,
    }

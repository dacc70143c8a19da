"""The answer to a new order, from its reservation. Pure."""

from inventory_service.refusals import code_of
from inventory_service.stock import Reservation, Status
from shared.contracts import Message, StockReleased, StockReservationFailed, StockReserved


def answer(reservation: Reservation) -> Message:
    """Build the message that reports a reservation."""
    if reservation.status is Status.RELEASED:
        return StockReleased(order_id=reservation.order_id)
    if reservation.status is Status.FAILED:
        reason = reservation.failure_reason or ""
        return StockReservationFailed(order_id=reservation.order_id, reason=reason, code=code_of(reason))
    return StockReserved(
        order_id=reservation.order_id,
        fulfilment="goods" if reservation.server is None else "vps",
        provisioning=reservation.server,
        slot=reservation.booking.slot_id if reservation.booking else None,
        slot_visible_at=reservation.booking.visible_at if reservation.booking else None,
    )

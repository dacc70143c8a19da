"""An order as events carry it: what `GET /orders/{orderId}` shows, without its history and anything personal. Pure."""

from datetime import UTC, datetime
from typing import Any

from order_service.failures import general_code
from order_service.order import Order, Status
from order_service.order_number import order_number
from order_service.participants import PARTICIPANTS
from order_service.refunds import refunded_amount
from shared.clock import to_rfc3339
from shared.contracts.orders import SLOT_PREFIX
from shared.contracts.provisioning import Server
from shared.money import to_json_number


def snapshot(order: Order) -> dict[str, Any]:
    """Show the order; a test keeps this equal to what the API shows of the stored one."""
    slot = order.delivery.slot
    return {
        "orderId": order.order_id,
        "orderNumber": order_number(order.order_id),
        "userId": order.user_id,
        "ownerId": order.owner_id,
        "items": [
            {"productId": i.product_id, "quantity": i.quantity, "price": to_json_number(i.price)} for i in order.items
        ],
        "totalAmount": to_json_number(order.total_amount),
        "currency": order.currency,
        "status": order.status.value,
        **{participant.stored_field: participant.state(order) for participant in PARTICIPANTS},
        "provisioningStatus": order.provisioning_status,
        "failureReason": order.failure_reason,
        "failureCode": shown_code(order.failure_reason, order.failure_code, order.cause),
        "settled": order.settled,
        "refundedAmount": to_json_number(refunded_amount(order)),
        "slot": order.slot,
        "slotStart": start_of_slot(order.slot),
        "slotVisibleAt": moment(order.slot_visible_at),
        "server": _server(order.server),
        "createdAt": to_rfc3339(order.created_at),
        "updatedAt": to_rfc3339(order.updated_at),
        **ends(order.status, order.confirmed_at, order.completed_at),
        "cancelledAt": moment(order.cancelled_at),
        **({"holdId": order.hold_id} if order.hold_id else {}),
        **({"delivery": {"slot": slot}} if slot is not None else {}),
    }


def ends(status: str, confirmed: datetime | None, completed: datetime | None) -> dict[str, str | None]:
    """Show when the order was confirmed and completed; earlier releases stored the first of goods as the second."""
    if status == Status.CONFIRMED and confirmed is None:
        confirmed, completed = completed, None
    return {"confirmedAt": moment(confirmed), "completedAt": moment(completed)}


def shown_code(reason: str | None, code: str | None, cause: str | None) -> str | None:
    """Show the code of a failure: the general one if the order was stored without one by an earlier release."""
    return None if reason is None else code or general_code(cause)


def start_of_slot(slot: str | None) -> str | None:
    """Show when a slot begins, which its id says."""
    if slot is None or not slot.startswith(SLOT_PREFIX):
        return None
    return to_rfc3339(datetime.fromtimestamp(int(slot.removeprefix(SLOT_PREFIX)), UTC))


def moment(value: datetime | None) -> str | None:
    """Show a time that may be missing."""
    return to_rfc3339(value) if value else None


def _server(server: Server | None) -> dict[str, Any] | None:
    if server is None:
        return None
    return {"ip": server.ip, "username": server.username, "os": server.os, "expiresAt": server.expires_at}

"""Orders as the API shows them."""

from datetime import datetime
from typing import Any

from pydantic import Field

from order_service.order import PaymentStatus, ProvisioningStatus, Refund, RefundStatus, Status, StockStatus
from order_service.order_number import order_number
from order_service.orders import NewRecord, stored_items
from order_service.participants import PARTICIPANTS
from order_service.particulars import show_items, show_particulars
from order_service.snapshot import ends, moment, shown_code, snapshot, start_of_slot
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.clock import to_rfc3339
from shared.contracts.failures import FailureCode
from shared.database import Document
from shared.http import View, shown_as
from shared.money import to_json_number

_LISTED = {
    "orderId": "5f0c2b1e9d",
    "orderNumber": "7ZK4-M2QX",
    "userId": "u1",
    "ownerId": "shop",
    "totalAmount": 39.98,
    "currency": "EUR",
    "status": "CANCELLED",
    "stockStatus": "RELEASED",
    "paymentStatus": "FAILED",
    "provisioningStatus": None,
    "failureReason": "The card was declined",
    "failureCode": "card_declined",
    "settled": True,
    "refundedAmount": 0,
    "slot": None,
    "slotStart": None,
    "slotVisibleAt": None,
    "server": None,
    "createdAt": "2026-11-28T12:00:00Z",
    "updatedAt": "2026-11-28T12:00:01Z",
    "confirmedAt": None,
    "completedAt": None,
    "cancelledAt": "2026-11-28T12:00:00Z",
}
_EXAMPLE = {
    **_LISTED,
    "items": [{"productId": "p1", "quantity": 2, "price": 19.99}],
    "history": [
        {"at": "2026-11-28T12:00:00Z", "event": "order.created", "status": "PENDING"},
        {
            "at": "2026-11-28T12:00:00Z",
            "event": "payment.failed",
            "status": "CANCELLED",
            "message": "The card was declined",
        },
        {"at": "2026-11-28T12:00:01Z", "event": "stock.released", "status": "CANCELLED"},
    ],
}


class ItemView(View):
    """One line of an order."""

    product_id: str
    quantity: int
    price: float
    name: str | None = None
    options: dict[str, Any] | None = None


class DiscountView(View):
    """An amount off the sum of the items."""

    code: str | None = None
    amount: float


class CustomerView(View):
    """The person who gets the goods."""

    name: str | None = None
    email: str | None = None
    phone: str | None = None


class AddressView(View):
    """Where the goods go."""

    line1: str | None = None
    line2: str | None = None
    city: str | None = None
    region: str | None = None
    postal_code: str | None = None
    country: str | None = None


class DeliveryView(View):
    """When and where the customer wants the goods, as it was asked for; the booked slot is `slot` of the order."""

    slot: str | None = None
    method: str | None = None
    address: AddressView | None = None
    instructions: str | None = None
    call_before: bool | None = None


class HistoryView(View):
    """One line of an order's history."""

    at: datetime
    event: str
    status: Status
    message: str | None = None


class ServerView(View):
    """The server of an order; its credentials are the provisioning service's to show."""

    ip: str
    username: str | None = None
    os: str | None = None
    expires_at: str | None = None


class ListedOrder(View):
    """An order in a list: without its history, and without its items unless they were asked for."""

    model_config = shown_as(_LISTED)

    order_id: str
    order_number: str | None = Field(
        description="for people; `GET /orders?orderNumber=` finds it", examples=["7ZK4-M2QX"]
    )
    user_id: str
    owner_id: str | None = None
    items: list[ItemView] | None = Field(default=None, description="only with `include=items`")
    total_amount: float = Field(examples=[19.99])
    currency: str
    status: Status
    stock_status: StockStatus
    payment_status: PaymentStatus
    provisioning_status: ProvisioningStatus | None
    failure_reason: str | None = Field(description="for people")
    failure_code: FailureCode | None = Field(
        default=None, description="`failureReason` for programs; more codes may be added, see docs/problems.md"
    )
    settled: bool
    refunded_amount: float = Field(description="what was returned by refunds in part")
    slot: str | None
    slot_start: datetime | None
    slot_visible_at: datetime | None
    server: ServerView | None
    created_at: datetime
    updated_at: datetime
    confirmed_at: datetime | None = Field(description="when stock and payment were complete")
    completed_at: datetime | None
    cancelled_at: datetime | None


class OrderView(ListedOrder):
    """An order with its items and its history; fields that were not given are left out."""

    model_config = shown_as(_EXAMPLE)

    items: list[ItemView]
    customer: CustomerView | None = Field(default=None, description="personal: needs `orders:fulfil` or an own order")
    delivery: DeliveryView | None = None
    discounts: list[DiscountView] | None = None
    shipping_amount: float | None = None
    note: str | None = None
    hold_id: str | None = None
    metadata: dict[str, str] | None = None
    personal_data_erased_at: datetime | None = None
    history: list[HistoryView]


class OrderPage(View):
    """A page of orders, newest first."""

    items: list[ListedOrder]
    next_cursor: str | None


class ErasureView(View):
    """How many orders of a user had personal data, which is erased now."""

    user_id: str
    orders: int


class RefundedItemView(View):
    """Units of a product that a refund is for."""

    product_id: str
    quantity: int


class RefundView(View):
    """A refund in part."""

    model_config = shown_as(
        {
            "refundId": "c1a3f7e0",
            "amount": 19.99,
            "status": "REFUNDED",
            "items": [{"productId": "p1", "quantity": 1}],
            "reason": "Damaged",
            "restock": True,
            "returned": True,
            "failureReason": None,
            "createdAt": "2026-11-28T12:00:00Z",
            "updatedAt": "2026-11-28T12:00:01Z",
        }
    )

    refund_id: str
    amount: float = Field(examples=[19.99])
    status: RefundStatus
    items: list[RefundedItemView] | None = Field(description="null if it is for an amount")
    reason: str | None
    restock: bool
    returned: bool = Field(description="the units are back in free stock")
    failure_reason: str | None
    created_at: datetime
    updated_at: datetime


class RefundPage(View):
    """A page of an order's refunds, oldest first."""

    items: list[RefundView]
    next_cursor: str | None


class FailureCount(View):
    """How many orders ended in this way for this reason."""

    model_config = shown_as(
        {"count": 3, "status": "CANCELLED", "reason": "The card was declined", "code": "card_declined"}
    )

    count: int
    status: Status
    reason: str = Field(description="for people; the `failureReason` of these orders")
    code: FailureCode = Field(description="for programs; the `failureCode` of these orders")


class FailurePage(View):
    """Failed and cancelled orders, counted by status, reason and code, most frequent first."""

    items: list[FailureCount]
    next_cursor: str | None


def sees_personal(caller: Principal) -> bool:
    """Return whether the caller sees what is known about the person: their own shop's, or to fulfil the order."""
    return not caller.reaches_all(Permission.ORDERS_READ) or Permission.ORDERS_FULFIL in caller.grants


def show_new(record: NewRecord) -> dict[str, Any]:
    """Show an order that has just been accepted, to the caller who has placed it."""
    order = record.order
    shown = snapshot(order)
    shown["items"] = show_items({**record.particulars, "items": stored_items(order)})
    shown["history"] = [{"at": to_rfc3339(order.created_at), "event": "order.created", "status": order.status}]
    given: Document = {**record.particulars, "delivery": {"slot": order.delivery.slot}}
    return {**shown, **show_particulars(given, personal=True)}


def show(document: Document, *, personal: bool) -> dict[str, Any]:
    """Show a stored order; what is known about the person only with `personal`."""
    return {
        **show_listed(document),
        "history": [show_entry(entry) for entry in document["history"]],
        **({"holdId": document["holdId"]} if "holdId" in document else {}),
        **show_particulars(document, personal=personal),
    }


def show_listed(document: Document) -> dict[str, Any]:
    """Show a stored order without its history, and without its items if they were not loaded.

    The order may be of a newer saga, in a status that this release does not know.
    """
    items = show_items(document)
    return {
        "orderId": document["_id"],
        "orderNumber": order_number(document["_id"]),
        "userId": document["userId"],
        "ownerId": document.get("ownerId"),
        **({"items": items} if items else {}),
        "totalAmount": to_json_number(document["totalAmount"]),
        "currency": document["currency"],
        "status": document["status"],
        **{participant.stored_field: document.get(participant.stored_field) for participant in PARTICIPANTS},
        "provisioningStatus": document.get("provisioningStatus"),
        "failureReason": document.get("failureReason"),
        "failureCode": shown_code(document.get("failureReason"), document.get("failureCode"), document.get("cause")),
        "settled": document["settled"],
        "refundedAmount": to_json_number(document.get("refundedAmount", 0)),
        "slot": document.get("slot"),
        "slotStart": start_of_slot(document.get("slot")),
        "slotVisibleAt": moment(document.get("slotVisibleAt")),
        "server": _server(document.get("server")),
        "createdAt": to_rfc3339(document["createdAt"]),
        "updatedAt": to_rfc3339(document["updatedAt"]),
        **ends(document["status"], document.get("confirmedAt"), document.get("completedAt")),
        "cancelledAt": moment(document.get("cancelledAt")),
    }


def show_refund(refund: Refund) -> dict[str, Any]:
    """Show a refund in part."""
    return {
        "refundId": refund.refund_id,
        "amount": to_json_number(refund.amount),
        "status": refund.status,
        "items": [{"productId": line.product_id, "quantity": line.quantity} for line in refund.lines] or None,
        "reason": refund.reason,
        "restock": refund.restock,
        "returned": refund.returned,
        "failureReason": refund.failure_reason,
        "createdAt": to_rfc3339(refund.created_at),
        "updatedAt": to_rfc3339(refund.updated_at),
    }


def show_entry(entry: Document) -> dict[str, Any]:
    """Show one line of an order's history."""
    return {**entry, "at": to_rfc3339(entry["at"])}


def _server(server: Document | None) -> dict[str, Any] | None:
    if server is None:
        return None
    return {name: server.get(name) for name in ("ip", "username", "os", "expiresAt")}

"""Orders as the API shows them."""

from datetime import datetime
from typing import Any

from pydantic import Field

from order_service.order import (
    Order,
    PaymentStatus,
    ProvisioningStatus,
    Refund,
    RefundStatus,
    Status,
    StockStatus,
)
from order_service.participants import PARTICIPANTS
from shared.clock import to_rfc3339
from shared.database import Document
from shared.http import View
from shared.money import to_json_number


class ItemView(View):
    """One line of an order."""

    product_id: str
    quantity: int
    price: float


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

    order_id: str
    user_id: str
    owner_id: str | None = None
    items: list[ItemView] | None = Field(default=None, description="only with `include=items`")
    total_amount: float = Field(examples=[19.99])
    currency: str
    status: Status
    stock_status: StockStatus
    payment_status: PaymentStatus
    provisioning_status: ProvisioningStatus | None
    failure_reason: str | None
    settled: bool
    refunded_amount: float = Field(description="what was returned by refunds in part")
    slot: str | None
    server: ServerView | None
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None
    cancelled_at: datetime | None


class OrderView(ListedOrder):
    """An order with its items and its history."""

    items: list[ItemView]
    history: list[HistoryView]


class OrderPage(View):
    """A page of orders, newest first."""

    items: list[ListedOrder]
    next_cursor: str | None


class RefundedItemView(View):
    """Units of a product that a refund is for."""

    product_id: str
    quantity: int


class RefundView(View):
    """A refund in part."""

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

    status: Status
    reason: str
    count: int


class FailurePage(View):
    """Failed and cancelled orders, counted by reason, most frequent first."""

    items: list[FailureCount]
    next_cursor: str | None


def show_new(order: Order) -> dict[str, Any]:
    """Show an order that has just been accepted."""
    at = to_rfc3339(order.created_at)
    return {
        "orderId": order.order_id,
        "userId": order.user_id,
        "ownerId": order.owner_id,
        "items": [
            {"productId": i.product_id, "quantity": i.quantity, "price": to_json_number(i.price)} for i in order.items
        ],
        "totalAmount": to_json_number(order.total_amount),
        "currency": order.currency,
        "status": order.status,
        **{participant.stored_field: participant.state(order) for participant in PARTICIPANTS},
        "provisioningStatus": None,
        "failureReason": None,
        "settled": False,
        "refundedAmount": 0,
        "slot": None,
        "server": None,
        "createdAt": at,
        "updatedAt": at,
        "completedAt": None,
        "cancelledAt": None,
        "history": [{"at": at, "event": "order.created", "status": order.status}],
    }


def show(document: Document) -> dict[str, Any]:
    """Show a stored order."""
    return show_listed(document) | {"history": [show_entry(entry) for entry in document["history"]]}


def show_listed(document: Document) -> dict[str, Any]:
    """Show a stored order without its history, and without its items if they were not loaded."""
    items = [{**item, "price": to_json_number(item["price"])} for item in document.get("items", ())]
    return {
        "orderId": document["_id"],
        "userId": document["userId"],
        "ownerId": document.get("ownerId"),
        **({"items": items} if items else {}),
        "totalAmount": to_json_number(document["totalAmount"]),
        "currency": document["currency"],
        "status": document["status"],
        **{participant.stored_field: document[participant.stored_field] for participant in PARTICIPANTS},
        "provisioningStatus": document.get("provisioningStatus"),
        "failureReason": document.get("failureReason"),
        "settled": document["settled"],
        "refundedAmount": to_json_number(document.get("refundedAmount", 0)),
        "slot": document.get("slot"),
        "server": _server(document.get("server")),
        "createdAt": to_rfc3339(document["createdAt"]),
        "updatedAt": to_rfc3339(document["updatedAt"]),
        "completedAt": _moment(document.get("completedAt")),
        "cancelledAt": _moment(document.get("cancelledAt")),
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


def _moment(value: datetime | None) -> str | None:
    return to_rfc3339(value) if value else None


def _server(server: Document | None) -> dict[str, Any] | None:
    if server is None:
        return None
    return {name: server.get(name) for name in ("ip", "username", "os", "expiresAt")}

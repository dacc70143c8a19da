"""Orders, and actions on many of them, as JSON documents: of commands and of the operations API. Pure."""

from collections.abc import Mapping
from typing import Any

from operations.order_actions.bulk import DONE, FAILED, WAITING
from operations.order_actions.search import OrderTotals
from operations.sign_in.person import person_of
from order_service.order_number import order_number
from shared.clock import to_rfc3339
from shared.database import Document
from shared.money import to_json_number


def order_as_json(order: Document) -> dict[str, Any]:
    """Return an order of a list."""
    return {
        "orderId": order["_id"],
        "orderNumber": order_number(order["_id"]),
        "status": order.get("status"),
        "settled": order.get("settled"),
        "failureReason": order.get("failureReason"),
        "failureCode": order.get("failureCode"),
        "userId": order.get("userId"),
        "ownerId": order.get("ownerId"),
        "totalAmount": to_json_number(order["totalAmount"]) if "totalAmount" in order else None,
        "currency": order.get("currency"),
        "createdAt": to_rfc3339(order["createdAt"]),
        "updatedAt": to_rfc3339(order["updatedAt"]) if "updatedAt" in order else None,
    }


def totals_as_json(totals: OrderTotals) -> dict[str, Any]:
    """Return how many orders there are, of how many customers, and what they cost, by currency."""
    amounts = {currency: to_json_number(amount) for currency, amount in totals.amounts.items()}
    return {"orders": totals.orders, "customers": totals.customers, "amounts": amounts}


def bulk_as_json(bulk: Document, outcomes: Mapping[str, int]) -> dict[str, Any]:
    """Return an action on many orders, with the number of orders of each outcome; `open` are those without one."""
    known = {outcome: outcomes.get(outcome, 0) for outcome in (DONE, WAITING, FAILED)}
    return {
        "id": bulk["_id"],
        "action": bulk["action"],
        "at": to_rfc3339(bulk["at"]),
        "by": person_of(bulk["by"]).label,
        "why": bulk["why"],
        "status": bulk["status"],
        "total": bulk["total"],
        **known,
        "open": bulk["total"] - sum(known.values()),
    }


def item_as_json(item: Document) -> dict[str, Any]:
    """Return an order of an action on many, with its result."""
    return {
        "orderId": item["orderId"],
        "userId": item.get("userId"),
        "totalAmount": None if item.get("totalAmount") is None else to_json_number(item["totalAmount"]),
        "currency": item.get("currency"),
        "outcome": item.get("outcome"),
        "detail": item.get("detail"),
    }

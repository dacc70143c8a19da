"""The actions on orders, as one table: which orders each is possible for, who may do it, and what it does. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from order_service.events import CancelRequested, DeliveryNoted, RefundRequested, RetryRequested
from shared.access.permissions import Permission

Document = dict[str, Any]

NUDGE = "nudge"

AWAITS_ANSWER: Document = {"$or": [{"status": {"$ne": "FAILED"}}, {"compensating": True}]}
"""The condition of the unsettled orders that wait for an answer, and not for a decision."""


class OrderAction(NamedTuple):
    """An action on an order; `warning` describes its effects.

    The order service executes it and notes `event` in the order's history; a nudge only publishes messages.
    """

    name: str
    title: str
    participle: str
    statuses: tuple[str, ...]
    permission: Permission
    warning: str
    event: str | None = None
    moves_money: bool = True

    @property
    def log_name(self) -> str:
        """The name in the log of actions."""
        return f"order.{self.name}"

    @property
    def query(self) -> Document:
        """The MongoDB query of the orders for which the action is possible."""
        if self.name == NUDGE:
            return {"settled": False} | AWAITS_ANSWER
        under_way: Document = {name: {"$ne": True} for name in _UNDER_WAY}
        return {"status": {"$in": list(self.statuses)}, "settled": False} | under_way

    def is_possible(self, order: Document | None) -> bool:
        """Return whether the order's state allows the action; the order service checks again."""
        if order is None:
            return False
        if self.name == NUDGE:
            return order.get("settled") is False and (
                order.get("status") != "FAILED" or bool(order.get("compensating"))
            )
        return order.get("status") in self.statuses and not any(order.get(name) for name in _UNDER_WAY)

    def body(self, why: str) -> dict[str, str] | None:
        """Return the body of the request to the order service."""
        return {"reason": why} if self.name == "cancel" else None


_UNDER_WAY = ("compensating", "cancelRequested")
"""The fields of an order whose compensation or cancellation has begun."""

ORDER_ACTIONS: Mapping[str, OrderAction] = {
    action.name: action
    for action in (
        OrderAction(
            "cancel",
            "Cancel",
            "cancelled",
            ("PENDING", "PROVISIONING"),
            Permission.ORDERS_CANCEL,
            "Stock and money are returned. Provisioning in progress stops after its current step. Your reason becomes "
            "the failure reason of the order, which the customer may see.",
            CancelRequested._field_defaults["routing_key"],
        ),
        OrderAction(
            "deliver",
            "Deliver",
            "delivered",
            ("CONFIRMED",),
            Permission.ORDERS_FULFIL,
            "The order is completed: its goods have left, and its stock is no longer reserved. This cannot be undone.",
            DeliveryNoted._field_defaults["routing_key"],
            moves_money=False,
        ),
        OrderAction(
            "retry",
            "Retry",
            "retried",
            ("FAILED",),
            Permission.ORDERS_DECIDE,
            "What failed starts again: the provisioning, or the capture of the payment. Stock and money stay held "
            "meanwhile.",
            RetryRequested._field_defaults["routing_key"],
        ),
        OrderAction(
            "refund",
            "Refund",
            "refunded",
            ("FAILED",),
            Permission.ORDERS_DECIDE,
            "Stock and money are returned now. The order cannot be retried afterwards.",
            RefundRequested._field_defaults["routing_key"],
        ),
        OrderAction(
            NUDGE,
            "Nudge",
            "nudged",
            (),
            Permission.ORDERS_DECIDE,
            "The messages that the order waits for answers to are sent again, now. Each service answers from its "
            "record, so nothing is done twice.",
            moves_money=False,
        ),
    )
}
"""The actions on orders, by their name; it is the one in the order service's path."""

BULK_ACTIONS = tuple(ORDER_ACTIONS[name] for name in ("cancel", "retry", "refund", NUDGE))
"""The actions on many orders at once."""


def possible_actions(order: Document | None) -> list[OrderAction]:
    """Return the actions that the order's state allows."""
    return [action for action in ORDER_ACTIONS.values() if action.is_possible(order)]

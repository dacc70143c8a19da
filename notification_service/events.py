"""What the messages of the order service become: events for endpoints. Pure.

An event's id is derived from what happened and not from the message, so a message that comes twice makes the same event
again. It is the `webhook-id` of every attempt to deliver the event.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from shared.clock import to_rfc3339
from shared.contracts import (
    Message,
    OrderCancelled,
    OrderCompleted,
    OrderConfirmed,
    OrderCreated,
    OrderFailed,
    OrderProvisioning,
    OrderRefunded,
    PackageLowIps,
)
from shared.contracts.orders import OrderEvent

ORDER_EVENTS: tuple[type[OrderEvent], ...] = (
    OrderConfirmed,
    OrderProvisioning,
    OrderCompleted,
    OrderCancelled,
    OrderFailed,
)
MESSAGES: tuple[type[Message], ...] = (OrderCreated, *ORDER_EVENTS, OrderRefunded, PackageLowIps)
"""The messages that become events."""

EVENT_TYPES = tuple(message.routing_key for message in MESSAGES)
"""The types of events that an endpoint can ask for."""

TEST_EVENT = "webhook.test"
"""The type of the event that an owner sends to try an endpoint; it needs no pattern."""

_PATTERN = re.compile(r"\*|[a-z_]+\.(?:\*|[a-z_]+)")

# Not the payment, whose token is a secret, and nothing personal.
_CREATED_FIELDS = {"order_id", "user_id", "owner_id", "items", "total_amount", "currency", "delivery"}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for the endpoints of one owner, or of the staff if it belongs to no owner."""

    id: str
    type: str
    body: str
    """The JSON text that is sent, always the same bytes."""
    owner_id: str | None = None
    user_id: str | None = None
    order_id: str | None = None
    for_staff: bool = False
    """True for what concerns the operation of the system and no owner."""


def check_pattern(pattern: str) -> str:
    """Return a pattern of event types. Raises ValueError unless it matches one at least."""
    if not _PATTERN.fullmatch(pattern) or not any(matches(pattern, type_) for type_ in EVENT_TYPES):
        raise ValueError(f"allowed are *, order.*, package.* and the types {', '.join(EVENT_TYPES)}")
    return pattern


def matches(pattern: str, event_type: str) -> bool:
    """Return whether a pattern, such as `order.*`, matches an event's type."""
    if pattern.endswith("*"):
        return event_type.startswith(pattern[:-1])
    return pattern == event_type


def is_for_staff(message: Message) -> bool:
    """Return whether a message concerns the operation of the system, and no owner."""
    return isinstance(message, PackageLowIps)


def owner_of(message: Message) -> str | None:
    """Return the owner of the order that a message is about, None for an order without one."""
    return getattr(message, "owner_id", None)


def event_from(message: Message, now: datetime) -> Event:
    """Return the event that a message reports; `now` is its time if the message is of a release that said none."""
    match message:
        case OrderCreated():
            return _order_event(message, "", message.at or now, _created(message))
        case OrderRefunded():
            refund = {"refundId": message.refund_id, "amount": message.model_dump(mode="json")["amount"]}
            updated = (message.order or {}).get("updatedAt")
            at = message.at or (datetime.fromisoformat(updated) if updated else now)
            return _order_event(message, message.refund_id, at, {**_order(message), **refund})
        case OrderEvent():
            occurrence = "" if message.at is None else to_rfc3339(message.at)
            return _order_event(message, occurrence, message.at or now, _order(message))
        case PackageLowIps():
            # Without a time in the message: one event a day for each number that is left.
            occurrence = to_rfc3339(message.at) if message.at else f"{message.ipv4} {now.date()}"
            type_ = message.routing_key
            data = message.model_dump(mode="json", exclude_none=True, exclude={"at"})
            body = _body(type_, message.at or now, data)
            return Event(event_id(type_, message.package, occurrence), type_, body, for_staff=is_for_staff(message))
        case _:
            raise TypeError(f"{type(message).__name__} is no event")


def trial_event(endpoint_id: str, number: str, now: datetime) -> Event:
    """Return an event with which the owner of an endpoint tries it."""
    body = _body(TEST_EVENT, now, {"webhookId": endpoint_id})
    return Event(event_id(TEST_EVENT, endpoint_id, number), TEST_EVENT, body)


def event_id(event_type: str, subject: str, occurrence: str) -> str:
    """Return the id of an event: the same for the same occurrence of the same type about the same subject."""
    text = "\0".join((event_type, subject, occurrence))
    return f"evt_{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _order_event(message: Any, occurrence: str, at: datetime, data: Mapping[str, Any]) -> Event:
    return Event(
        event_id(message.routing_key, message.order_id, occurrence),
        message.routing_key,
        _body(message.routing_key, at, data),
        owner_id=owner_of(message),
        user_id=message.user_id,
        order_id=message.order_id,
    )


def _created(message: OrderCreated) -> dict[str, Any]:
    shown = message.model_dump(mode="json", by_alias=True, exclude_none=True, include=_CREATED_FIELDS)
    return {**shown, "status": "PENDING"}


def _order(message: Any) -> dict[str, Any]:
    """Return the order in the message; of a message from an earlier release, what it says of the order."""
    if message.order is not None:
        return dict(message.order)
    shown: dict[str, Any] = message.model_dump(mode="json", by_alias=True, exclude_none=True)
    return shown


def _body(event_type: str, at: datetime, data: Mapping[str, Any]) -> str:
    return orjson.dumps({"type": event_type, "timestamp": to_rfc3339(at), "data": data}).decode()

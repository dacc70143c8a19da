"""Requests and how their answers are read, without any I/O: what the two clients have in common."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from ordersaga_client.errors import ProblemError, UnreadableAnswerError, problem
from ordersaga_client.models import (
    DeliveryStatus,
    Model,
    NewOrder,
    NewRefund,
    Order,
    Page,
    Redelivered,
    Refund,
    Status,
    Webhook,
    WebhookDelivery,
)

PAGE_SIZE = 100
"""Entries that are requested at once when a list is iterated over; the services allow no more."""
MAX_WAIT = 30
"""The longest time in seconds that a service waits for an order before it answers."""

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=Model)
Service = Literal["order", "notification"]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. It is `repeatable` if sending it twice has the effect of sending it once."""

    method: str
    path: str
    read: Callable[[bytes], T]
    service: Service = "order"
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    repeatable: bool = False
    wait: int = 0
    """Seconds that the service may take on top of the usual time."""


class OrderFilters(TypedDict, total=False):
    """Which orders a list has: those that meet every condition, `created_to` excluded; and in which order."""

    status: Status | str | Sequence[Status | str]
    user_id: str
    settled: bool
    order_number: str
    failure_reason: str
    created_from: datetime
    created_to: datetime
    sort: Literal["-createdAt", "createdAt"]
    include_items: bool


def answer_to(call: Call[T], response: httpx.Response) -> T:
    """Read an answer whose body is loaded; raises ProblemError or UnreadableAnswerError."""
    raise_for_problem(response)
    try:
        return call.read(response.content)
    except ValidationError as error:
        raise UnreadableAnswerError(f"{call.method} {call.path} was answered with something else: {error}") from error


def raise_for_problem(response: httpx.Response) -> None:
    """Raise ProblemError unless the answer is a success. The body must be loaded if it is not."""
    if response.is_success:
        return
    raise _problem_of(response)


def _problem_of(response: httpx.Response) -> ProblemError:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):  # from a proxy in between
        body = {"title": response.reason_phrase}
    return problem(response.status_code, body, response.headers)


# --- Orders. ---


def place_order(new: NewOrder, wait: int | None = None, idempotency_key: str | None = None) -> Call[Order]:
    """Place an order, under a new key unless one is given, so that it can be repeated."""
    if wait is not None and not 1 <= wait <= MAX_WAIT:
        raise ValueError(f"wait is {wait}, allowed are 1 to {MAX_WAIT} seconds")
    complete = new if new.total_amount is not None else new.model_copy(update={"total_amount": new.total()})
    headers = {"Idempotency-Key": idempotency_key or new_key()}
    if wait is not None:
        headers["Prefer"] = f"wait={wait}"
    call = Call("POST", "/orders", Order.model_validate_json, headers=headers, body=_body(complete), repeatable=True)
    return replace(call, wait=wait or 0)


def get_order(order_id: str) -> Call[Order]:
    """Read an order with its history."""
    return Call("GET", _order_path(order_id), Order.model_validate_json, repeatable=True)


def list_orders(filters: OrderFilters, cursor: str | None = None, limit: int = PAGE_SIZE) -> Call[Page[Order]]:
    """Read one page of the orders."""
    query = [*_order_query(filters), *_paging(cursor, limit)]
    return Call("GET", "/orders", Page[Order].model_validate_json, query=query, repeatable=True)


def cancel_order(order_id: str, reason: str | None = None) -> Call[Order]:
    """Cancel an order."""
    body = None if reason is None else _json({"reason": reason})
    return Call("POST", _order_path(order_id, "cancel"), Order.model_validate_json, body=body)


def deliver_order(order_id: str) -> Call[Order]:
    """Note that the goods of an order have left."""
    return Call("POST", _order_path(order_id, "deliver"), Order.model_validate_json)


def refund_order(order_id: str, new: NewRefund, idempotency_key: str | None = None) -> Call[Refund]:
    """Return a part of the money, under a new key unless one is given."""
    return Call(
        "POST",
        _order_path(order_id, "refunds"),
        Refund.model_validate_json,
        headers={"Idempotency-Key": idempotency_key or new_key()},
        body=_body(new),
        repeatable=True,
    )


def list_refunds(order_id: str, cursor: str | None = None, limit: int = PAGE_SIZE) -> Call[Page[Refund]]:
    """Read one page of an order's refunds in part."""
    path, query = _order_path(order_id, "refunds"), _paging(cursor, limit)
    return Call("GET", path, Page[Refund].model_validate_json, query=query, repeatable=True)


def order_events(order_id: str, after: str | None) -> Call[None]:
    """Read an order's events as a stream, which the clients read line by line."""
    headers = {"Accept": "text/event-stream"}
    if after is not None:
        headers["Last-Event-ID"] = after
    return Call("GET", _order_path(order_id, "events"), _nothing, headers=headers, repeatable=True)


# --- Webhooks. ---


def create_webhook(
    url: str, events: Sequence[str], user_id: str | None = None, description: str | None = None
) -> Call[Webhook]:
    """Register an endpoint."""
    given = {"url": url, "events": list(events), "userId": user_id, "description": description}
    body = _json({name: value for name, value in given.items() if value is not None})
    return Call("POST", "/webhooks", Webhook.model_validate_json, "notification", body=body)


def list_webhooks(cursor: str | None = None, limit: int = PAGE_SIZE) -> Call[Page[Webhook]]:
    """Read one page of the endpoints."""
    read, query = Page[Webhook].model_validate_json, _paging(cursor, limit)
    return Call("GET", "/webhooks", read, "notification", query, repeatable=True)


def get_webhook(webhook_id: str) -> Call[Webhook]:
    """Read an endpoint."""
    return Call("GET", _webhook_path(webhook_id), Webhook.model_validate_json, "notification", repeatable=True)


class WebhookChanges(TypedDict, total=False):
    """What can be changed of an endpoint."""

    url: str
    events: Sequence[str]
    description: str
    enabled: bool


def update_webhook(webhook_id: str, changes: WebhookChanges) -> Call[Webhook]:
    """Change an endpoint."""
    read, body = Webhook.model_validate_json, _json(changes)
    return Call("PATCH", _webhook_path(webhook_id), read, "notification", body=body, repeatable=True)


def delete_webhook(webhook_id: str) -> Call[None]:
    """Remove an endpoint."""
    return Call("DELETE", _webhook_path(webhook_id), _nothing, "notification")


def rotate_webhook(webhook_id: str) -> Call[Webhook]:
    """Replace the secret of an endpoint; both sign for a day."""
    return Call("POST", _webhook_path(webhook_id, "rotate"), Webhook.model_validate_json, "notification")


def check_webhook(webhook_id: str) -> Call[WebhookDelivery]:
    """Have an event sent to an endpoint for a test."""
    return Call("POST", _webhook_path(webhook_id, "test"), WebhookDelivery.model_validate_json, "notification")


def list_deliveries(
    webhook_id: str, status: DeliveryStatus | str | None = None, cursor: str | None = None, limit: int = PAGE_SIZE
) -> Call[Page[WebhookDelivery]]:
    """Read one page of the deliveries to an endpoint."""
    query = [*([] if status is None else [("status", str(status))]), *_paging(cursor, limit)]
    read = Page[WebhookDelivery].model_validate_json
    return Call("GET", _webhook_path(webhook_id, "deliveries"), read, "notification", query, repeatable=True)


def get_delivery(webhook_id: str, delivery_id: str) -> Call[WebhookDelivery]:
    """Read a delivery with its attempts."""
    path = _webhook_path(webhook_id, "deliveries", delivery_id)
    return Call("GET", path, WebhookDelivery.model_validate_json, "notification", repeatable=True)


def redeliver(webhook_id: str, delivery_id: str) -> Call[WebhookDelivery]:
    """Deliver an event once more, under the same id."""
    path = _webhook_path(webhook_id, "deliveries", delivery_id, "redeliver")
    return Call("POST", path, WebhookDelivery.model_validate_json, "notification")


def redeliver_failed(webhook_id: str, since: datetime) -> Call[Redelivered]:
    """Deliver all events once more that were not delivered since a time."""
    path, body = _webhook_path(webhook_id, "redeliver"), _json({"since": _text(since)})
    return Call("POST", path, Redelivered.model_validate_json, "notification", body=body)


# --- Parts of requests. ---


def new_key() -> str:
    """Return an idempotency key that no other request has."""
    return uuid.uuid4().hex


def _order_path(order_id: str, *parts: str) -> str:
    return _path("orders", order_id, *parts)


def _webhook_path(webhook_id: str, *parts: str) -> str:
    return _path("webhooks", webhook_id, *parts)


def _path(*parts: str) -> str:
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def _body(model: Model) -> bytes:
    return model.model_dump_json(by_alias=True, exclude_none=True).encode()


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _nothing(_body: bytes) -> None:
    return None


def _paging(cursor: str | None, limit: int) -> list[tuple[str, str]]:
    return [("limit", str(limit)), *([] if cursor is None else [("cursor", cursor)])]


def _order_query(filters: OrderFilters) -> list[tuple[str, str]]:
    status = filters.get("status", ())
    query = [("status", str(each)) for each in ([status] if isinstance(status, str) else status)]
    if filters.get("include_items"):
        query.append(("include", "items"))
    for name, parameter in _PARAMETERS.items():
        if (value := filters.get(name)) is not None:
            query.append((parameter, _text(value)))
    return query


_PARAMETERS = {
    "user_id": "userId",
    "settled": "settled",
    "order_number": "orderNumber",
    "failure_reason": "failureReason",
    "created_from": "createdFrom",
    "created_to": "createdTo",
    "sort": "sort",
}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value)

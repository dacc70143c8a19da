"""Endpoints and deliveries as the API shows them."""

from datetime import datetime
from typing import Any

from pydantic import Field

from notification_service.delivery import Attempt, Delivery, Status
from notification_service.endpoint import Endpoint
from shared.clock import to_rfc3339
from shared.http import View


class EndpointView(View):
    """An endpoint; its secret is never shown again."""

    id: str
    url: str
    events: list[str] = Field(description="patterns of event types", examples=[["order.*"]])
    user_id: str | None = Field(description="the only person whose orders it hears of")
    description: str | None
    owner_id: str | None
    enabled: bool
    disabled_reason: str | None = Field(description="why it was disabled, unless by its owner")
    disabled_at: str | None
    failing_since: str | None = Field(description="the first failure since the last success")
    created_at: str
    updated_at: str


class EndpointWithSecretView(EndpointView):
    """An endpoint with its new secret, which is shown only this once."""

    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])


class EndpointPage(View):
    """A page of endpoints, in the order of their ids."""

    items: list[EndpointView]
    next_cursor: str | None


class AttemptView(View):
    """An attempt: the status that was answered, or the error; `body` is the beginning of the answer."""

    at: str
    status: int | None
    error: str | None
    body: str
    seconds: float


class DeliveryView(View):
    """A delivery; its id is the `webhook-id` of every attempt."""

    id: str
    webhook_id: str = Field(description="the endpoint")
    type: str
    order_id: str | None
    status: Status
    failure_reason: str | None = Field(description="why there is no further attempt")
    attempts: int = Field(description="the attempts since it was recorded or last asked for again")
    last_attempt: AttemptView | None
    next_attempt_at: str | None
    created_at: str
    delivered_at: str | None


class DeliveryDetailView(DeliveryView):
    """A delivery with what is sent and the latest attempts, the first one first."""

    body: str
    history: list[AttemptView]


class DeliveryPage(View):
    """A page of deliveries, the newest first."""

    items: list[DeliveryView]
    next_cursor: str | None


class RedeliveredView(View):
    """The number of deliveries that are attempted again."""

    redelivered: int


def show_endpoint(endpoint: Endpoint, secret: str | None = None) -> dict[str, Any]:
    """Build the response of EndpointView, or with a secret of EndpointWithSecretView."""
    shown = {
        "id": endpoint.id,
        "url": endpoint.url,
        "events": list(endpoint.events),
        "userId": endpoint.user_id,
        "description": endpoint.description,
        "ownerId": endpoint.owner_id,
        "enabled": endpoint.enabled,
        "disabledReason": endpoint.disabled_reason,
        "disabledAt": _moment(endpoint.disabled_at),
        "failingSince": _moment(endpoint.failing_since),
        "createdAt": to_rfc3339(endpoint.created_at),
        "updatedAt": to_rfc3339(endpoint.updated_at),
    }
    return shown if secret is None else {**shown, "secret": secret}


def show_delivery(delivery: Delivery) -> dict[str, Any]:
    """Build the response of DeliveryView."""
    return {
        "id": delivery.event_id,
        "webhookId": delivery.endpoint_id,
        "type": delivery.type,
        "orderId": delivery.order_id,
        "status": delivery.status,
        "failureReason": delivery.failure_reason,
        "attempts": delivery.tries,
        "lastAttempt": _show_attempt(delivery.attempts[-1]) if delivery.attempts else None,
        "nextAttemptAt": _moment(delivery.due_at),
        "createdAt": to_rfc3339(delivery.created_at),
        "deliveredAt": _moment(delivery.delivered_at),
    }


def show_delivery_in_detail(delivery: Delivery) -> dict[str, Any]:
    """Build the response of DeliveryDetailView."""
    history = [_show_attempt(attempt) for attempt in delivery.attempts]
    return {**show_delivery(delivery), "body": delivery.body, "history": history}


def _show_attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "at": to_rfc3339(attempt.at),
        "status": attempt.status,
        "error": attempt.error,
        "body": attempt.body,
        "seconds": round(attempt.seconds, 3),
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else to_rfc3339(moment)

"""Verifies the deliveries of webhooks (https://www.standardwebhooks.com), with the standard library alone."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from ordersaga_client.errors import WebhookVerificationError
from ordersaga_client.models import Model, Order

TOLERANCE = 300.0
"""How many seconds a delivery's time may differ from ours."""

_PREFIX = "whsec_"


class WebhookEvent(Model):
    """An event, as a webhook gets it. Handle each `webhook_id` once: it is the same for each attempt to deliver it."""

    webhook_id: str
    type: str
    timestamp: datetime
    data: Mapping[str, Any]

    @property
    def order_id(self) -> str | None:
        """The id of the order that the event is about, if it is about one."""
        order_id: str | None = self.data.get("orderId")
        return order_id

    @property
    def order(self) -> Order | None:
        """The order at that time, without its history; None if the event does not have it."""
        try:
            return Order.model_validate(self.data)
        except ValidationError:
            return None


def verify(
    payload: bytes | str,
    headers: Mapping[str, str],
    secrets: str | Iterable[str],
    tolerance: float = TOLERANCE,
) -> WebhookEvent:
    """Return the event of a delivery, given its body as it was received, and its headers.

    Of several `secrets`, one must have signed it: give the old and the new one while you replace them. Raises
    WebhookVerificationError if none has, or if the delivery is more than `tolerance` seconds old.
    """
    body = payload.encode() if isinstance(payload, str) else payload
    given = {name.lower(): value for name, value in headers.items()}
    try:
        webhook_id, timestamp, signatures = (given[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as missing:
        raise WebhookVerificationError(f"the header {missing.args[0]} is missing") from None
    _check_time(timestamp, tolerance)
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    expected = [_signature(secret, signed) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    offered = list(_offered(signatures))
    if not any(hmac.compare_digest(ours, theirs) for ours in expected for theirs in offered):
        raise WebhookVerificationError("no signature is right: another secret, or the body was changed")
    return _event(webhook_id, body)


def _check_time(timestamp: str, tolerance: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 20):
        raise WebhookVerificationError("the header webhook-timestamp is not a time")
    if abs(time.time() - int(timestamp)) > tolerance:
        raise WebhookVerificationError(f"it is more than {tolerance:g} seconds old, or the clocks differ")


def _signature(secret: str, signed: bytes) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not key:  # with an empty one, which an unset variable may be, everybody could sign
        raise WebhookVerificationError("the secret is not one of a webhook, such as whsec_…")
    return hmac.new(key, signed, hashlib.sha256).digest()


def _offered(signatures: str) -> Iterator[bytes]:
    for signature in signatures.split():
        version, _, encoded = signature.partition(",")
        if version == "v1":
            try:
                yield base64.b64decode(encoded, validate=True)
            except ValueError:
                continue


def _event(webhook_id: str, body: bytes) -> WebhookEvent:
    try:
        content = json.loads(body)
        return WebhookEvent.model_validate({**content, "webhookId": webhook_id})
    except (TypeError, ValueError) as error:
        raise WebhookVerificationError(f"the body is not an event: {error}") from error

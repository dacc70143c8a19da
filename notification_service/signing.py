"""Signs deliveries after Standard Webhooks (https://www.standardwebhooks.com)."""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime

from notification_service.signing_secrets import PREFIX


def sign(secrets: Sequence[str], webhook_id: str, timestamp: datetime, body: bytes) -> dict[str, str]:
    """Return the headers of a delivery, signed with each of the secrets."""
    seconds = int(timestamp.timestamp())
    content = f"{webhook_id}.{seconds}.".encode() + body
    signatures = (
        base64.b64encode(hmac.digest(base64.b64decode(secret.removeprefix(PREFIX)), content, hashlib.sha256)).decode()
        for secret in secrets
    )
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }

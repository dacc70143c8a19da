"""Signs deliveries after Standard Webhooks (https://www.standardwebhooks.com)."""

from collections.abc import Sequence
from datetime import datetime

from standardwebhooks import Webhook


def sign(secrets: Sequence[str], webhook_id: str, timestamp: datetime, body: bytes) -> dict[str, str]:
    """Return the headers of a delivery, signed with each of the secrets."""
    text = body.decode()
    signatures = (Webhook(secret).sign(webhook_id, timestamp, text) for secret in secrets)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(timestamp.timestamp())),
        "webhook-signature": " ".join(signatures),
    }

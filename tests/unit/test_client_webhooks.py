"""The client's verification of webhooks, in plain Python."""

import base64
import hashlib
import hmac
import json
import time
from decimal import Decimal
from typing import Any

import pytest

from ordersaga_client import WebhookVerificationError
from ordersaga_client.webhooks import verify
from tests.unit.test_client_models import ANSWER

SECRET = "whsec_" + base64.b64encode(b"a secret of this test alone").decode()
OTHER = "whsec_" + base64.b64encode(b"another secret").decode()
BODY = json.dumps({"type": "order.confirmed", "timestamp": "2026-11-21T11:00:00Z", "data": ANSWER}).encode()


def signed(secret: str = SECRET, body: bytes = BODY, at: float | None = None) -> dict[str, str]:
    """The headers of a delivery."""
    timestamp = str(int(time.time() if at is None else at))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"msg_1.{timestamp}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": "msg_1", "webhook-timestamp": timestamp, "webhook-signature": signature}


def test_the_example_of_the_specification_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1614265330.0)
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    # Its body is no event of ours, which is noticed only after the signature is found right.
    with pytest.raises(WebhookVerificationError, match="not an event"):
        verify('{"test": 2432232314}', headers, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


def test_a_delivery_becomes_an_event_with_the_order() -> None:
    event = verify(BODY, {name.title(): value for name, value in signed().items()}, SECRET)
    assert (event.webhook_id, event.type, event.order_id) == ("msg_1", "order.confirmed", "o1")
    assert event.order is not None
    assert event.order.total_amount == Decimal("19.99")


def test_an_event_may_lack_the_order() -> None:
    body = json.dumps({"type": "webhook.test", "timestamp": "2026-11-21T11:00:00Z", "data": {}}).encode()
    event = verify(body, signed(body=body), SECRET)
    assert (event.order, event.order_id) == (None, None)


def test_while_a_secret_is_replaced_either_is_right() -> None:
    assert verify(BODY, signed(OTHER), [SECRET, OTHER]).type == "order.confirmed"
    both = f"{signed(OTHER)['webhook-signature']} v1a,ed25519 v1,!! {signed()['webhook-signature']}"
    assert verify(BODY, signed() | {"webhook-signature": both}, SECRET).type == "order.confirmed"


NOT_RIGHT = "no signature is right"


@pytest.mark.parametrize(
    ("changes", "body", "why"),
    [
        ({"id": "msg_2"}, BODY, NOT_RIGHT),
        ({"signature": ""}, BODY, NOT_RIGHT),
        ({"signature": "v1,ü"}, BODY, NOT_RIGHT),
        ({"timestamp": "now"}, BODY, "not a time"),
        ({"timestamp": "²"}, BODY, "not a time"),
        ({"timestamp": "1" * 5000}, BODY, "not a time"),
        ({}, b"[]", "not an event"),
        ({}, b"\xff", "not an event"),
    ],
)
def test_what_cannot_be_trusted_is_refused(changes: dict[str, str], body: bytes, why: str) -> None:
    headers = signed(body=body) | {f"webhook-{name}": value for name, value in changes.items()}
    with pytest.raises(WebhookVerificationError, match=why):
        verify(body, headers, SECRET)


def test_what_another_has_signed_or_changed_is_refused() -> None:
    other_version = signed() | {"webhook-signature": signed()["webhook-signature"].replace("v1,", "v2,")}
    for headers, body in ((signed(OTHER), BODY), (signed(), BODY + b" "), (other_version, BODY)):
        with pytest.raises(WebhookVerificationError, match=NOT_RIGHT):
            verify(body, headers, SECRET)


@pytest.mark.parametrize("name", ["id", "timestamp", "signature"])
def test_a_header_that_is_missing_is_named(name: str) -> None:
    headers = signed()
    del headers[f"webhook-{name}"]
    with pytest.raises(WebhookVerificationError, match=f"webhook-{name} is missing"):
        verify(BODY, headers, SECRET)


@pytest.mark.parametrize("age", [400, -400])
def test_a_delivery_of_another_time_is_refused(age: int) -> None:
    headers = signed(at=time.time() - age)
    with pytest.raises(WebhookVerificationError, match="more than 300 seconds old"):
        verify(BODY, headers, SECRET)
    assert verify(BODY, headers, SECRET, tolerance=1000).webhook_id == "msg_1"


@pytest.mark.parametrize("secret", ["whsec_!", "", "whsec_", "ü"])
def test_a_secret_that_is_none_is_named(secret: str) -> None:
    with pytest.raises(WebhookVerificationError, match="the secret is not one of a webhook"):
        verify(BODY, signed(), secret)


def test_all_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Any] = []

    def compare(ours: bytes, theirs: bytes) -> bool:
        compared.append(ours)
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    with pytest.raises(WebhookVerificationError):
        verify(BODY, signed(), [SECRET, OTHER])
    assert len(compared) == 2

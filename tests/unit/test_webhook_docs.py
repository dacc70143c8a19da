"""The code with which docs/webhooks.md verifies a delivery takes what is signed here, and nothing else."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from notification_service.signing import sign
from notification_service.signing_secrets import new_secret

PAGE = Path(__file__).parents[2] / "docs/webhooks.md"
BODY = b'{"type":"order.confirmed","data":{"note":"\xc3\xa9"}}'


def by_hand() -> Callable[[str, bytes, dict[str, str]], Any]:
    """The function of the page that needs no library."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "def " in block)
    names: dict[str, Any] = {}
    exec(code, names)
    verify: Callable[[str, bytes, dict[str, str]], Any] = names["verify"]
    return verify


def test_both_secrets_of_a_rotation_verify_with_the_library_and_by_hand() -> None:
    secrets = [new_secret(), new_secret()]
    headers = sign(secrets, "evt_1", datetime.now(UTC), BODY)
    for secret in secrets:
        assert by_hand()(secret, BODY, headers)["type"] == "order.confirmed"
        assert Webhook(secret).verify(BODY, headers)["type"] == "order.confirmed"


@pytest.mark.parametrize("change", ["secret", "body", "id", "time"])
def test_what_was_changed_or_is_old_is_refused_by_hand(change: str) -> None:
    secret, at = new_secret(), datetime.now(UTC)
    headers = sign([secret], "evt_1", at - timedelta(minutes=10) if change == "time" else at, BODY)
    if change == "id":
        headers["webhook-id"] = "evt_2"
    with pytest.raises(ValueError, match="too old" if change == "time" else "not signed"):
        by_hand()(
            new_secret() if change == "secret" else secret,
            BODY.replace(b"c", b"C") if change == "body" else BODY,
            headers,
        )

"""The settings of sign-in: what belongs together, and what keeps a console from starting."""

import pytest

from operations.settings import OperationsSettings
from shared.errors import StartError
from shared.settings import load

HEADER, ROLES, PROXIES = "ORDERSAGA_OPERATOR_HEADER", "ORDERSAGA_OPERATOR_ROLES_HEADER", "ORDERSAGA_TRUSTED_PROXIES"
ISSUER, CLIENT, SECRET = "ORDERSAGA_OIDC_ISSUER", "ORDERSAGA_OIDC_CLIENT_ID", "ORDERSAGA_OIDC_CLIENT_SECRET"


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({HEADER: "X-User", ROLES: "X-Roles"}, "X-User is believed only from ORDERSAGA_TRUSTED_PROXIES"),
        ({HEADER: "X-User", PROXIES: "10.0.0.1"}, f"{HEADER} and {ROLES} must be set together"),
        ({ROLES: "X-Roles", PROXIES: "10.0.0.1"}, f"{HEADER} and {ROLES} must be set together"),
        ({CLIENT: "console"}, f"with {CLIENT}, {ISSUER} must be set too"),
        ({SECRET: "s3cret", ISSUER: "https://id.example"}, f"with {SECRET}, {CLIENT} must be set too"),
        ({"ORDERSAGA_OIDC_SCOPES": "profile"}, "ORDERSAGA_OIDC_SCOPES='profile' is not valid"),
        ({"ORDERSAGA_APPROVAL_AMOUNT": "much"}, "ORDERSAGA_APPROVAL_AMOUNT='much' is not valid: an amount such as 500"),
        ({"ORDERSAGA_APPROVAL_AMOUNT": "1.234"}, "ORDERSAGA_APPROVAL_AMOUNT='1.234' is not valid: must have at most"),
        ({"ORDERSAGA_APPROVAL_ACTIONS": "order.refund"}, "'order.refund' is not valid"),
        ({"ORDERSAGA_SESSION_SECONDS": "59"}, "ORDERSAGA_SESSION_SECONDS='59' is not valid"),
        ({"ORDERSAGA_CONSOLE_PUBLIC_URL": "ops.example"}, "ORDERSAGA_CONSOLE_PUBLIC_URL='ops.example' is not valid"),
    ],
)
def test_a_wrong_combination_is_refused(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], refusal: str) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartError) as raised:
        load(OperationsSettings)
    assert refusal in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_complete_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        HEADER: "X-User",
        ROLES: "X-Roles",
        PROXIES: "10.0.0.0/8",
        ISSUER: "https://id.example",
        CLIENT: "console",
        SECRET: "s3cret",
        "ORDERSAGA_CONSOLE_PUBLIC_URL": "https://ops.example/",
        "ORDERSAGA_APPROVAL_AMOUNT": "99.50",
        "ORDERSAGA_APPROVAL_ACTIONS": "dead-letters.replay, accounts.repair",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = load(OperationsSettings)
    assert settings.console_public_url == "https://ops.example"
    assert "s3cret" not in repr(settings)
    assert (settings.approval_amount, settings.approval_actions) == (9950, ("dead-letters.replay", "accounts.repair"))

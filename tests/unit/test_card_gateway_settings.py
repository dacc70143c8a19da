"""The settings of the card gateway: a missing or wrong one stops the process with one line."""

import subprocess
import sys

import pytest

from payment_service.settings import PaymentSettings
from shared.errors import StartError
from shared.settings import load

KEY = "sk_test_4eC39HqLyjWDarjtT1zdp7dc"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PaymentSettings.model_fields:
        monkeypatch.delenv(f"ORDERSAGA_{name.upper()}", raising=False)


def test_the_simulated_gateway_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY", "")
    settings = load(PaymentSettings)
    assert (settings.card_gateway, settings.stripe_api_key) == ("simulated", None)
    assert settings.stripe_api_url == "https://api.stripe.com"


def test_without_stripe_its_library_is_not_imported() -> None:
    """It takes longer than all the rest of the payment service."""
    code = "import sys, payment_service.__main__; print(*{'stripe', 'requests'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_stripe_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSAGA_CARD_GATEWAY", "stripe")
    monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY", KEY)
    settings = load(PaymentSettings)
    assert settings.stripe_api_key is not None
    assert settings.stripe_api_key.get_secret_value() == KEY
    assert KEY not in repr(settings)


@pytest.mark.parametrize("key", [None, ""])
def test_stripe_without_a_key_is_one_line(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    monkeypatch.setenv("ORDERSAGA_CARD_GATEWAY", "stripe")
    if key is not None:
        monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY", key)
    with pytest.raises(StartError) as raised:
        load(PaymentSettings)
    assert str(raised.value) == "with ORDERSAGA_CARD_GATEWAY=stripe, ORDERSAGA_STRIPE_API_KEY must be set too"


@pytest.mark.parametrize("key", ["pk_test_publishable", " ", f"{KEY}\n", f"{KEY} x", "secret"])
def test_anything_but_a_secret_key_of_stripe_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY", key)
    with pytest.raises(StartError) as raised:
        load(PaymentSettings)
    line = str(raised.value)
    assert line.startswith("ORDERSAGA_STRIPE_API_KEY=*** is not valid: a secret key")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [("CARD_GATEWAY", "paypal"), ("STRIPE_API_URL", "api.stripe.com"), ("STRIPE_API_URL", "https://api.stripe.com/v1")],
)
def test_other_wrong_values_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"ORDERSAGA_{name}", value)
    with pytest.raises(StartError, match=f"ORDERSAGA_{name}='{value}' is not valid"):
        load(PaymentSettings)

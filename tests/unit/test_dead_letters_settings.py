"""The settings of the operations process, and the values that `ordersaga up` sets."""

import re

import pytest

from operations.settings import OperationsSettings
from operations.stack.plan import _for_console
from operations.stack.services import ServiceProgram
from shared.errors import StartError
from shared.services import CONSOLE
from shared.settings import load


def test_urls_and_hosts_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSAGA_ORDER_URL", "http://order:3008/")
    monkeypatch.setenv("ORDERSAGA_CONSOLE_HOSTS", "Ops.example., console ,")
    monkeypatch.setenv("ORDERSAGA_HTTP_NAMES", "shop.example")
    settings = load(OperationsSettings)
    assert settings.service_urls["order"] == "http://order:3008"
    assert settings.service_urls["payment"] == "http://127.0.0.1:3010"
    assert settings.console_hosts == ("ops.example", "console")
    assert settings.known_names == ("shop.example", "ops.example", "console")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ORDER_URL", "order:3008"),
        ("OPERATOR_HEADER", "X User"),
        ("HTTP_NAMES", "order:3008"),
        ("CONSOLE_HOSTS", "*"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(f"ORDERSAGA_{variable}", value)
    with pytest.raises(StartError, match=re.escape(f"ORDERSAGA_{variable}='{value}' is not valid")):
        load(OperationsSettings)


def test_the_console_acts_on_the_services_of_its_stack_unless_told_of_others() -> None:
    services = [ServiceProgram("order", 1234, {}), ServiceProgram("payment", 1235, {})]
    environment = _for_console(services, {"ORDERSAGA_PAYMENT_URL": "http://elsewhere:1"})
    assert environment == {
        "ORDERSAGA_ORDER_URL": "http://127.0.0.1:1234",
        "ORDERSAGA_PAYMENT_URL": "http://elsewhere:1",
    }
    assert ServiceProgram(CONSOLE.name, 3012, environment).prepare().argv[-1] == "operations"

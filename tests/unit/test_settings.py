"""Settings: from the environment, and one clear line for whatever is wrong there."""

from typing import Annotated, Any

import pytest
from pydantic import Field

from notification_service.settings import NotificationSettings
from payment_service.settings import PaymentSettings
from shared.errors import StartError
from shared.failpoints import ALL_POINTS, kill_at
from shared.settings import ServiceSettings, exit_with, load


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServiceSettings.model_fields | PaymentSettings.model_fields | NotificationSettings.model_fields:
        monkeypatch.delenv(f"ORDERSAGA_{name.upper()}", raising=False)


def test_everything_has_a_default() -> None:
    settings = load(PaymentSettings)
    assert settings.http_host == "127.0.0.1"
    assert settings.payment_failure_rate == 0.1


def test_settings_come_from_the_environment_and_what_is_not_ours_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSAGA_HTTP_PORT", "4711")
    monkeypatch.setenv("ORDERSAGA_PAYMENT_FAILURE_RATE", "1")
    monkeypatch.setenv("ORDERSAGA_OF_ANOTHER_SERVICE", "x")
    settings = load(PaymentSettings)
    assert (settings.http_port, settings.payment_failure_rate) == (4711, 1.0)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PAYMENT_FAILURE_RATE", "1.5", "less than or equal to 1"),
        ("PAYMENT_FAILURE_RATE", "-0.1", "greater than or equal to 0"),
        ("PAYMENT_FAILURE_RATE", "nan", "less than or equal to 1"),
        ("PAYMENT_FAILURE_RATE", "often", "valid number"),
        ("GATEWAY_TIMEOUT_SECONDS", "0", "greater than 0"),
        ("HTTP_PORT", "70000", "less than or equal to 65535"),
        ("HTTP_PORT", "http", "valid integer"),
        ("MONGODB_URL", "localhost:27017", "mongodb"),
        ("AMQP_URL", "http://localhost", "amqp://"),
        ("LOG_LEVEL", "LOUD", "'DEBUG', 'INFO'"),
        ("LOG_FORMAT", "xml", "'console' or 'json'"),
        ("DATABASE_PREFIX", "a/b", "letters, digits"),
        ("BATCH_LIMIT", "0", "greater than or equal to 1"),
        ("CRASH_AT", "nowhere", "allowed: consumer.handled"),
        ("CRASH_AT", "payment.charged#x", "#x"),
        ("CRASH_AT", "payment.charged#0", "#0"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_variable_the_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(f"ORDERSAGA_{name}", value)
    with pytest.raises(StartError) as raised:
        load(PaymentSettings)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(f"ORDERSAGA_{name}='{value}' is not valid: ")
    assert allowed in line


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSAGA_HTTP_PORT", "x")
    monkeypatch.setenv("ORDERSAGA_PAYMENT_FAILURE_RATE", "2")
    with pytest.raises(StartError, match=r"ORDERSAGA_HTTP_PORT.*; ORDERSAGA_PAYMENT_FAILURE_RATE"):
        load(PaymentSettings)


def test_a_missing_required_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Needy(ServiceSettings):
        smartvps_url: Annotated[str, Field(min_length=1)]

    with pytest.raises(StartError, match="ORDERSAGA_SMARTVPS_URL") as raised:
        load(Needy)
    assert "required" in str(raised.value)
    assert "{" not in str(raised.value)


def test_a_password_in_a_wrong_url_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSAGA_AMQP_URL", "amq://guest:s3cret@broker/")
    with pytest.raises(StartError, match=r"ORDERSAGA_AMQP_URL='amq://guest:\*\*\*@broker/'"):
        load(PaymentSettings)


def test_a_start_error_ends_the_process_with_its_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        exit_with(StartError("the one line"))
    assert ended.value.code == "the one line"


@pytest.mark.parametrize("point", ALL_POINTS)
def test_every_failpoint_can_be_asked_for(point: str) -> None:
    for setting in (point, f"{point}#3"):
        failpoint = kill_at(setting)
        for other in ALL_POINTS:
            if other != point:
                failpoint(other)


def test_the_process_is_killed_the_nth_time_it_reaches_the_point(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr("os.kill", lambda *arguments: killed.append(arguments))
    failpoint = kill_at("payment.charged#3")
    failpoint("payment.charged")
    failpoint("payment.charged")
    assert killed == []
    failpoint("payment.charged")
    assert len(killed) == 1


def test_deliveries_are_kept_as_long_as_they_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSAGA_WEBHOOK_RETENTION_DAYS", "4")
    with pytest.raises(StartError, match=r"^ORDERSAGA_WEBHOOK_RETENTION_DAYS=4 is not valid: for 4\.1 days"):
        load(NotificationSettings)
    monkeypatch.setenv("ORDERSAGA_WEBHOOK_RETRY_DELAYS", "5,300")
    assert load(NotificationSettings).webhook_retention_days == 4

"""Settings in files: ORDERSAGA_X_FILE names the file that has the value of ORDERSAGA_X."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, SecretStr

from operations.errors import UnreachableError
from operations.settings import OperationsSettings, locate_broker, locate_stack
from operations.stack.environment import process_environment, unknown_settings, with_values
from operations.stack.status import external_stack
from payment_service.settings import PaymentSettings
from provisioning_service.settings import ProvisioningSettings
from provisioning_service.simulator.settings import SimulatorSettings
from shared.errors import StartError
from shared.services import PROCESSES
from shared.setting_files import MAX_BYTES, SettingFileError, with_file_values
from shared.settings import FileSettings, load

SECRET = "sk_live_s3cret"
ALL_SETTINGS = [kind.settings for kind in PROCESSES.values()]

Written = Callable[[bytes], str]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (PaymentSettings, ProvisioningSettings, OperationsSettings, SimulatorSettings)
    for name in {name for kind in kinds for name in kind.model_fields}:
        monkeypatch.delenv(f"ORDERSAGA_{name.upper()}", raising=False)
        monkeypatch.delenv(f"ORDERSAGA_{name.upper()}_FILE", raising=False)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes a file and returns its path."""

    def write(content: bytes) -> str:
        file = tmp_path / "secret"
        file.write_bytes(content)
        return str(file)

    return write


@pytest.mark.parametrize("content", [b"sk_live_s3cret", b"sk_live_s3cret\n", b"sk_live_s3cret\r\n"])
def test_a_value_is_read_from_its_file_without_one_newline(
    monkeypatch: pytest.MonkeyPatch, written: Written, content: bytes
) -> None:
    monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY_FILE", written(content))
    key = load(PaymentSettings).stripe_api_key
    assert key is not None
    assert key.get_secret_value() == SECRET


def test_only_one_newline_is_removed(written: Written) -> None:
    path = written(b" two\n\n")
    assert with_file_values({"A_FILE": path}, ["A"])["A"] == " two\n"


def test_settings_of_every_type_can_be_in_files(monkeypatch: pytest.MonkeyPatch, written: Written) -> None:
    monkeypatch.setenv("ORDERSAGA_HTTP_PORT_FILE", written(b"4711\n"))
    assert load(PaymentSettings).http_port == 4711
    assert load(SimulatorSettings).http_port == 4711
    monkeypatch.delenv("ORDERSAGA_HTTP_PORT_FILE")
    monkeypatch.setenv("ordersaga_buy_retry_delays_file", written(b"1,2"))
    assert load(ProvisioningSettings).buy_retry_delays == (1.0, 2.0)


@pytest.mark.parametrize("kind", [PaymentSettings, SimulatorSettings])
def test_an_empty_variable_counts_as_not_set(
    monkeypatch: pytest.MonkeyPatch, written: Written, kind: type[FileSettings]
) -> None:
    monkeypatch.setenv("ORDERSAGA_LOG_LEVEL", "")
    monkeypatch.setenv("ORDERSAGA_LOG_LEVEL_FILE", written(b"ERROR"))
    monkeypatch.setenv("ORDERSAGA_HTTP_HOST_FILE", "")
    settings = load(kind)
    assert (settings.log_level, settings.http_host) == ("ERROR", "127.0.0.1")  # type: ignore[attr-defined]


def test_a_value_and_its_file_at_once_are_an_error(monkeypatch: pytest.MonkeyPatch, written: Written) -> None:
    path = written(SECRET.encode())
    monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY", SECRET)
    monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY_FILE", path)
    with pytest.raises(StartError) as raised:
        load(PaymentSettings)
    assert str(raised.value) == (
        f"ORDERSAGA_STRIPE_API_KEY and ORDERSAGA_STRIPE_API_KEY_FILE={path} are both set: remove one"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"s3cret\xff", "does not contain text in UTF-8"),
        (b"s3cret\0", "contains a null byte"),
        (b"s3cret" * MAX_BYTES, f"has more than {MAX_BYTES} bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_with_variable_and_path(
    monkeypatch: pytest.MonkeyPatch, written: Written, content: bytes, reason: str
) -> None:
    path = written(content)
    monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY_FILE", path)
    with pytest.raises(StartError) as raised:
        load(PaymentSettings)
    assert str(raised.value) == f"ORDERSAGA_STRIPE_API_KEY_FILE={path} {reason}"


def test_a_missing_file_and_a_directory_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORDERSAGA_AMQP_URL_FILE", str(tmp_path))
    monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY_FILE", str(tmp_path / "gone"))
    with pytest.raises(StartError) as raised:
        load(PaymentSettings)
    assert str(raised.value) == (
        f"ORDERSAGA_AMQP_URL_FILE={tmp_path} cannot be read: Is a directory; "
        f"ORDERSAGA_STRIPE_API_KEY_FILE={tmp_path}/gone cannot be read: No such file or directory"
    )


@pytest.mark.parametrize(
    ("variable", "content"),
    [
        ("ORDERSAGA_AMQP_URL", b"amqp://guest:s3cret@a b/"),
        ("ORDERSAGA_DATABASE_PREFIX", b"s3cret/"),
        ("ORDERSAGA_STRIPE_API_KEY", b"pk_s3cret"),
        ("ORDERSAGA_LOG_LEVEL", b"s3cret"),
    ],
)
def test_an_invalid_value_from_a_file_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, written: Written, variable: str, content: bytes
) -> None:
    path = written(content)
    monkeypatch.setenv(f"{variable}_FILE", path)
    with pytest.raises(StartError) as raised:
        load(PaymentSettings)
    assert str(raised.value).startswith(f"{variable}_FILE={path} has a value that is not valid: ")
    assert "s3cret" not in str(raised.value)


def test_a_declared_name_is_that_setting_and_not_the_file_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Certified(FileSettings):
        ca: str = "none"
        ca_file: Annotated[str, Field(min_length=1)] = "default"
        token: SecretStr | None = None

    monkeypatch.setenv("ORDERSAGA_CA_FILE", "/not/read")
    settings = load(Certified)
    assert (settings.ca, settings.ca_file) == ("none", "/not/read")


@pytest.mark.parametrize("kind", [PaymentSettings, ProvisioningSettings, OperationsSettings, SimulatorSettings])
def test_no_name_of_a_setting_is_also_the_file_of_another(kind: type[FileSettings]) -> None:
    assert not {name for name in kind.model_fields if name.removesuffix("_file") in kind.model_fields.keys() - {name}}


def test_up_passes_a_file_to_the_processes_that_declare_the_setting_and_no_value() -> None:
    environment = {"ORDERSAGA_STRIPE_API_KEY_FILE": "/k", "ORDERSAGA_STRIPE_API_KEY": SECRET, "PATH": "/bin"}
    given = {name: process_environment(kind.settings, environment) for name, kind in PROCESSES.items()}
    assert given.pop("payment") == {"ORDERSAGA_STRIPE_API_KEY_FILE": "/k", "PATH": "/bin"}
    assert all(passed_on == {"PATH": "/bin"} for passed_on in given.values())


def test_up_knows_the_files_of_all_settings() -> None:
    known = ("STRIPE_API_KEY", "AMQP_URL", "MONGODB_URL", "CREDENTIALS_KEY", "API_KEY", "CONSOLE_URL", "ORDER_URL")
    assert unknown_settings({f"ORDERSAGA_{name}_FILE": "x" for name in known}, ALL_SETTINGS) == []
    assert unknown_settings({"ORDERSAGA_DATA_DIR_FILE": "x"}, ALL_SETTINGS) == ["ORDERSAGA_DATA_DIR_FILE"]


def test_commands_read_their_servers_from_files(tmp_path: Path) -> None:
    environment = {"ORDERSAGA_DATA_DIR": str(tmp_path / "data")}
    for name, url in (("MONGODB", "mongodb://u:s3cret@db/"), ("AMQP", "amqp://b/"), ("ORDER", "https://order:1")):
        file = tmp_path / name
        file.write_text(f"{url}\n")
        environment[f"ORDERSAGA_{name}_URL_FILE"] = str(file)
    stack = locate_stack(environment=environment)
    assert locate_broker(environment=environment).url == "amqp://b/"
    assert (stack.mongodb_url, stack.amqp_url) == ("mongodb://u:s3cret@db/", "amqp://b/")
    assert stack.urls["order"] == "https://order:1"
    named = external_stack(environment)
    assert named is not None
    assert [process.name for process in named.processes] == ["mongodb", "rabbitmq", "order"]


def test_a_command_names_a_file_that_it_cannot_read(tmp_path: Path) -> None:
    environment = {"ORDERSAGA_MONGODB_URL_FILE": str(tmp_path / "gone")}
    for act in (lambda: locate_stack(environment=environment), lambda: external_stack(environment)):
        with pytest.raises(UnreachableError, match=r"ORDERSAGA_MONGODB_URL_FILE=.*gone cannot be read: No such file"):
            act()


def test_the_values_of_all_processes_are_read_together(written: Written) -> None:
    path = written(SECRET.encode())
    assert with_values({"ORDERSAGA_STRIPE_API_KEY_FILE": path})["ORDERSAGA_STRIPE_API_KEY"] == SECRET
    with pytest.raises(SettingFileError, match="both set"):
        with_values({"ORDERSAGA_SMARTVPS_PASSWORD": "x", "ORDERSAGA_SMARTVPS_PASSWORD_FILE": path})

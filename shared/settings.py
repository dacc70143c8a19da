"""The settings that all services have: environment variables with the prefix ORDERSAGA_ (docs/configuration.md)."""

import re
import sys
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared import urls
from shared.errors import StartError
from shared.failpoints import kill_at

ENV_PREFIX = "ORDERSAGA_"


def _host_names(value: object) -> object:
    """Split at commas; names are compared in lower case and without a final dot."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip().lower().removesuffix(".") for part in value.split(",") if part.strip())


def _host_name(name: str) -> str:
    if not _HOST_NAME.fullmatch(name):
        raise ValueError("host names without ports are allowed, separated by commas, such as order,shop.example")
    return name


_HOST_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,252}")
HostNames = Annotated[tuple[Annotated[str, AfterValidator(_host_name)], ...], NoDecode, BeforeValidator(_host_names)]
"""Host names, separated by commas."""


def check_database_prefix(prefix: str) -> str:
    """Return a prefix of database names unchanged. Raises ValueError for an invalid one."""
    if not _DATABASE_PREFIX.fullmatch(prefix):
        raise ValueError("1 to 32 letters, digits, _ and - of ASCII are allowed")
    return prefix


_DATABASE_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,32}")


class ServiceSettings(BaseSettings):
    """The settings of all services; each service adds its own in its `settings` module."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    mongodb_url: Annotated[str, AfterValidator(urls.check_mongodb_url)] = (
        "mongodb://127.0.0.1:27017/?replicaSet=rs0&w=majority"
    )
    mongo_driver: Literal["pymongo", "motor"] = "pymongo"
    database_prefix: Annotated[str, AfterValidator(check_database_prefix)] = "ordersaga"
    amqp_url: Annotated[str, AfterValidator(urls.check_amqp_url)] = "amqp://guest:guest@127.0.0.1:5672/"
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] = 0
    http_names: HostNames = ()
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 1000
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "console"
    tracing: Literal["off", "otlp"] = "off"
    batch_limit: Annotated[int, Field(ge=1, le=1000)] = 200
    prefetch: Annotated[int, Field(ge=1, le=2000)] = 300
    topology: Literal["declare", "check"] = "check"
    topology_check_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    database_timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    crash_at: str | None = None

    @property
    def known_names(self) -> tuple[str, ...]:
        """The host names that the process answers, besides addresses and localhost."""
        return self.http_names

    @field_validator("crash_at")
    @classmethod
    def _known_point(cls, value: str | None) -> str | None:
        kill_at(value)
        return value


AnySettings = TypeVar("AnySettings", bound=BaseSettings)


def load(settings: type[AnySettings]) -> AnySettings:
    """Read the settings from the environment.

    Raises StartError with one line that names each invalid variable, its value and what is allowed.
    """
    try:
        return settings()
    except ValidationError as error:
        raise StartError("; ".join(_explain(settings, problem) for problem in error.errors())) from None


def _explain(settings: type[BaseSettings], problem: object) -> str:
    location, value, message = problem["loc"], problem["input"], problem["msg"]  # type: ignore[index]
    message = message.removeprefix("Value error, ")
    if not location:  # about several settings: the input is all of them, secrets included
        return str(message)
    name = str(location[0])
    variable = f"{settings.model_config.get('env_prefix', '')}{name}".upper()
    if problem["type"] == "missing":  # type: ignore[index]  # the input is all other settings, secrets included
        return f"{variable} is required"
    field = settings.model_fields.get(name)
    secret = field is not None and "SecretStr" in repr(field.annotation)
    hide = urls.hide_credentials_in_value if name.endswith("url") else urls.hide_credentials
    shown = "***" if secret else repr(hide(value) if isinstance(value, str) else value)
    return f"{variable}={shown} is not valid: {message}"


def exit_with(error: StartError) -> NoReturn:
    """End the process with the error's one line on stderr and exit status 1."""
    sys.exit(str(error))

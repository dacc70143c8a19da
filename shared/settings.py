"""The settings that all services have: environment variables with the prefix ORDERSAGA_ (docs/configuration.md)."""

import ipaddress
import os
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Self, TypeVar

from limits import RateLimitItem
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from shared import urls
from shared.access.limits import Network, parse_limit
from shared.errors import StartError
from shared.failpoints import kill_at
from shared.money import to_minor_units
from shared.setting_files import SUFFIX, with_file_values
from shared.topology import DEFAULT_EVENTS_RETENTION, EVENTS_OFF, MOST_PARTITIONS, WHOLE, TopologyOptions

ENV_PREFIX = "ORDERSAGA_"


def split_seconds(example: str) -> BeforeValidator:
    """Return a validator that reads seconds separated by commas; its error shows the example."""

    def split(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            raise ValueError(f"seconds separated by commas are allowed, such as {example}") from None

    return BeforeValidator(split)


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


def words(value: object) -> object:
    """Split a text at commas; anything else is returned as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _amount(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return to_minor_units(Decimal(value))
    except ArithmeticError:
        raise ValueError("an amount such as 500 or 99.50 is allowed") from None


Amount = Annotated[int | None, NoDecode, BeforeValidator(_amount)]
"""An amount of money such as 99.50, in minor units; None if there is none."""


AuthenticationMethod = Literal["keys", "oidc", "off"]
"""By API keys, by tokens of an OpenID Connect issuer, or not at all."""


def _check_issuer(url: str) -> str:
    if url and not urls.is_unalterable(url):
        raise ValueError("a URL with https is allowed; http only for this machine")
    return url


def _limit(value: object) -> object:
    if isinstance(value, str):
        return parse_limit(value) if value.strip() else None
    return value


def _networks(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(ipaddress.ip_network(part) for part in words(value))  # type: ignore[attr-defined]
    except ValueError:
        raise ValueError("addresses and networks are allowed, separated by commas, such as 10.0.0.0/8") from None


def check_database_prefix(prefix: str) -> str:
    """Return a prefix of database names unchanged. Raises ValueError for an invalid one."""
    if not _DATABASE_PREFIX.fullmatch(prefix):
        raise ValueError("1 to 32 letters, digits, _ and - of ASCII are allowed")
    return prefix


_DATABASE_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,32}")


def read_retention(value: str) -> str:
    """Return for how long events are kept, as RabbitMQ writes it; EVENTS_OFF if they are not. Raises ValueError."""
    if value.strip() in ("", "off"):
        return EVENTS_OFF
    if not _RETENTION.fullmatch(value.strip()):
        raise ValueError("a number and Y, M, D, h, m or s is allowed, such as 7D or 12h, or off")
    return value.strip()


def read_webhooks(value: str | bool) -> bool:
    """Return whether events go to webhooks. Raises ValueError."""
    if value not in ("", "on", "off", True, False):
        raise ValueError("on and off are allowed")
    return value not in ("off", False)


def read_partitions(value: str) -> int:
    """Return into how many partitions inboxes are divided, WHOLE if they are not. Raises ValueError."""
    number = int(value) if value.isdecimal() else 0
    if not WHOLE <= number <= MOST_PARTITIONS:
        raise ValueError(f"a number from {WHOLE} to {MOST_PARTITIONS} is allowed")
    return number


_RETENTION = re.compile(r"[1-9][0-9]{0,5}[YMDhms]")


class _EnvironmentAndFiles(EnvSettingsSource):
    """The environment, with the values of the settings whose file it names (`shared.setting_files`)."""

    def __init__(self, settings: type[BaseSettings]) -> None:
        super().__init__(settings)
        prefix = str(settings.model_config.get("env_prefix", ""))
        # Pydantic looks variables up in lower case.
        given = {name.upper(): value for name, value in self.env_vars.items() if value is not None}
        complete = with_file_values(given, (f"{prefix}{name}".upper() for name in settings.model_fields))
        self.env_vars = {name.lower(): value for name, value in complete.items()}


class FileSettings(BaseSettings):
    """Settings whose values may be in files: ORDERSAGA_X_FILE names the file of ORDERSAGA_X."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, arbitrary_types_allowed=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment and the files it names, and nothing else."""
        del env_settings, dotenv_settings, file_secret_settings
        return init_settings, _EnvironmentAndFiles(settings_cls)


def _no_path(value: object) -> object:
    return None if value == "" else value


FilePath = Annotated[Path | None, BeforeValidator(_no_path)]
"""The path of a file; an empty value counts as not set."""


class ServiceSettings(FileSettings):
    """The settings of all services; each service adds its own in its `settings` module."""

    mongodb_url: Annotated[str, AfterValidator(urls.check_mongodb_url)] = (
        "mongodb://127.0.0.1:27017/?replicaSet=rs0&w=majority"
    )
    mongo_driver: Literal["pymongo", "motor"] = "pymongo"
    database_prefix: Annotated[str, AfterValidator(check_database_prefix)] = "ordersaga"
    amqp_url: Annotated[str, AfterValidator(urls.check_amqp_url)] = "amqp://guest:guest@127.0.0.1:5672/"
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] = 0
    http_names: HostNames = ()
    auth: Annotated[tuple[AuthenticationMethod, ...], Field(min_length=1), NoDecode, BeforeValidator(words)] = ("keys",)
    keys_file: FilePath = None
    oidc_issuer: Annotated[str, AfterValidator(_check_issuer)] = ""
    oidc_ca_file: Path | None = None
    oidc_audience: Annotated[str, Field(max_length=500)] = ""
    oidc_roles_claim: Annotated[str, Field(min_length=1, max_length=200)] = "roles"
    oidc_owner_claim: Annotated[str, Field(min_length=1, max_length=200)] = "sub"
    rate_limit: Annotated[RateLimitItem | None, BeforeValidator(_limit), NoDecode] = parse_limit("600/minute")
    auth_failure_limit: Annotated[RateLimitItem | None, BeforeValidator(_limit), NoDecode] = parse_limit("10/minute")
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)] = ()
    tls_cert_file: FilePath = None
    tls_key_file: FilePath = None
    tls_client_ca_file: FilePath = None
    tls_ca_file: FilePath = None
    tls_client_cert_file: FilePath = None
    tls_client_key_file: FilePath = None
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 1000
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "console"
    tracing: Literal["off", "otlp"] = "off"
    batch_limit: Annotated[int, Field(ge=1, le=1000)] = 200
    prefetch: Annotated[int, Field(ge=1, le=2000)] = 300
    breaker_batches: Annotated[int, Field(ge=0, le=1000)] = 3
    topology: Literal["declare", "check"] = "check"
    topology_check_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    partitions: Annotated[int, Field(ge=WHOLE, le=MOST_PARTITIONS)] = WHOLE
    events_retention: Annotated[str, AfterValidator(read_retention)] = DEFAULT_EVENTS_RETENTION
    webhooks: Annotated[bool, BeforeValidator(read_webhooks)] = True
    database_timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    drain_seconds: Annotated[float, Field(ge=0, le=300)] = 0.0
    ready_grace_seconds: Annotated[float, Field(ge=0, le=86_400)] = 15.0
    crash_at: str | None = None

    @model_validator(mode="after")
    def _callers_can_be_known(self) -> Self:
        if "off" in self.auth:
            if self.auth != ("off",):
                raise ValueError(f"ORDERSAGA_AUTH={','.join(self.auth)} is not valid: off stands alone")
            if self.http_host not in urls.LOOPBACK_HOSTS:
                raise ValueError(
                    f"ORDERSAGA_AUTH=off is only allowed where nobody else can connect: ORDERSAGA_HTTP_HOST is "
                    f"{self.http_host}, allowed are {', '.join(sorted(urls.LOOPBACK_HOSTS))}"
                )
        return self

    @model_validator(mode="after")
    def _tls_files_are_complete(self) -> Self:
        for certificate, key in (("tls_cert_file", "tls_key_file"), ("tls_client_cert_file", "tls_client_key_file")):
            if (getattr(self, certificate) is None) != (getattr(self, key) is None):
                names = f"{ENV_PREFIX}{certificate.upper()} and {ENV_PREFIX}{key.upper()}"
                raise ValueError(f"{names} must be set together")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError(f"with {ENV_PREFIX}TLS_CLIENT_CA_FILE, {ENV_PREFIX}TLS_CERT_FILE must be set too")
        return self

    @property
    def topology_options(self) -> TopologyOptions:
        """What the settings decide about the topology."""
        return TopologyOptions(self.events_retention, self.partitions, self.webhooks)

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

    Raises StartError with one line that names each invalid variable, its value and what is allowed. The content of a
    file is never shown.
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
    if path := _file_of(variable):
        return f"{variable}{SUFFIX}={path} has a value that is not valid: {message}"
    field = settings.model_fields.get(name)
    secret = field is not None and "SecretStr" in repr(field.annotation)
    hide = urls.hide_credentials_in_value if name.endswith("url") else urls.hide_credentials
    shown = "***" if secret else repr(hide(value) if isinstance(value, str) else value)
    return f"{variable}={shown} is not valid: {message}"


def _file_of(variable: str) -> str | None:
    """Return the path from which the variable's value was read, None if it is in the environment."""
    return os.environ.get(f"{variable}{SUFFIX}") or None


def exit_with(error: StartError) -> NoReturn:
    """End the process with the error's one line on stderr and exit status 1."""
    sys.exit(str(error))

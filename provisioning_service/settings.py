"""Settings of the provisioning service: the provider, attempts and timeouts, and the keys of the credentials."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from shared.sealing import check_keys
from shared.settings import ENV_PREFIX, ServiceSettings
from shared.urls import check_api_url

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Delays = Annotated[tuple[Annotated[float, Field(ge=0, le=86_400)], ...], NoDecode, Field(min_length=1)]
"""Seconds between attempts, separated by commas; the last delay repeats."""
Attempts = Annotated[int, Field(ge=1, le=100)]


class ProvisioningSettings(ServiceSettings):
    """Settings of the provisioning service. Without `smartvps_url` there is no provider, and every job is refused."""

    # An empty variable counts as not set: Compose passes unset variables on as empty ones.
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    smartvps_url: Annotated[str, AfterValidator(check_api_url)] | None = None
    smartvps_username: str | None = None
    smartvps_password: SecretStr | None = None
    credentials_key: SecretStr | None = None
    buy_attempts: Attempts = 3
    buy_retry_delays: Delays = (120.0, 180.0)
    buy_timeout_seconds: Seconds = 120.0
    status_attempts: Attempts = 3
    status_retry_delays: Delays = (60.0, 120.0)
    status_timeout_seconds: Seconds = 90.0
    stock_timeout_seconds: Seconds = 30.0
    lock_wait_seconds: Seconds = 30.0
    lock_attempts: Attempts = 10
    lock_lease_seconds: Seconds = 120.0
    low_ip_threshold: Annotated[int, Field(ge=0, le=1_000_000)] = 5
    jobs_at_once: Annotated[int, Field(ge=1, le=1000)] = 100

    @field_validator("buy_retry_delays", "status_retry_delays", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            raise ValueError("seconds separated by commas are allowed, such as 120,180") from None

    @field_validator("credentials_key")
    @classmethod
    def _keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_keys(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = ("smartvps_username", "smartvps_password", "credentials_key")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.smartvps_url is not None and missing:
            names = ", ".join(f"{ENV_PREFIX}{name.upper()}" for name in missing)
            raise ValueError(f"with {ENV_PREFIX}SMARTVPS_URL, {names} must be set too")
        return self

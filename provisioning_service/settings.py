"""Settings of the provisioning service: the provider, attempts and timeouts, and the keys of the credentials."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from shared.sealing import EncryptionKeys
from shared.settings import ENV_PREFIX, ServiceSettings, split_seconds
from shared.urls import check_api_url

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Delays = Annotated[
    tuple[Annotated[float, Field(ge=0, le=86_400)], ...], NoDecode, Field(min_length=1), split_seconds("120,180")
]
"""Seconds between attempts, separated by commas; the last delay repeats."""
Attempts = Annotated[int, Field(ge=1, le=100)]


class ProvisioningSettings(ServiceSettings):
    """Settings of the provisioning service. Without `smartvps_url` there is no provider, and every job is refused."""

    # An empty variable counts as not set: Compose passes unset variables on as empty ones.
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    smartvps_url: Annotated[str, AfterValidator(check_api_url)] | None = None
    smartvps_username: str | None = None
    smartvps_password: SecretStr | None = None
    credentials_key: EncryptionKeys | None = None
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

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = ("smartvps_username", "smartvps_password", "credentials_key")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.smartvps_url is not None and missing:
            names = ", ".join(f"{ENV_PREFIX}{name.upper()}" for name in missing)
            raise ValueError(f"with {ENV_PREFIX}SMARTVPS_URL, {names} must be set too")
        return self

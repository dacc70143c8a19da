"""Settings of the notification service."""

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from notification_service.delivery import MAX_TIMEOUT_SECONDS
from notification_service.endpoints import MAX_PER_OWNER
from shared.background import LONGEST_JITTER
from shared.sealing import EncryptionKeys
from shared.settings import ENV_PREFIX, ServiceSettings, split_seconds

Delays = Annotated[
    tuple[Annotated[float, Field(ge=0, le=604_800)], ...],
    NoDecode,
    Field(min_length=1, max_length=50),
    split_seconds("5,300,1800"),
]
"""Seconds between attempts, separated by commas."""


class NotificationSettings(ServiceSettings):
    """Settings of the notification service. Without `webhook_key` no endpoint can be registered."""

    # An empty variable counts as not set: Compose passes unset variables on as empty ones.
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    webhook_key: EncryptionKeys | None = None
    webhook_retry_delays: Delays = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
    webhook_timeout_seconds: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_SECONDS)] = 15.0
    webhook_allow_private: bool = False
    webhook_retention_days: Annotated[float, Field(gt=0, le=3650)] = 30.0
    webhook_attempts_at_once: Annotated[int, Field(ge=1, le=10_000)] = 1000
    webhook_attempts_per_endpoint: Annotated[int, Field(ge=1, le=100)] = 10
    webhooks_per_owner: Annotated[int, Field(ge=1, le=MAX_PER_OWNER)] = 50

    @model_validator(mode="after")
    def _keeps_what_waits(self) -> Self:
        days = LONGEST_JITTER * sum(self.webhook_retry_delays) / 86_400
        if self.webhook_retention_days < days:
            raise ValueError(
                f"ORDERSAGA_WEBHOOK_RETENTION_DAYS={self.webhook_retention_days:g} is not valid: for {days:.2g} days a "
                "delivery may be repeated (ORDERSAGA_WEBHOOK_RETRY_DELAYS), and it must be kept as long"
            )
        return self

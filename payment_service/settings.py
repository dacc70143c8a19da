"""Settings of the payment service, in addition to those of every service."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from shared.settings import ENV_PREFIX, ServiceSettings
from shared.urls import check_origin


class PaymentSettings(ServiceSettings):
    """The card gateway: its kind, its address and key, its timeout, and when it takes the money."""

    # Compose passes an unset variable on as an empty one.
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    card_gateway: Literal["simulated", "stripe"] = "simulated"
    card_capture: Literal["immediate", "on_confirm"] = "immediate"
    payment_failure_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    gateway_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    stripe_api_key: SecretStr | None = None
    stripe_api_url: Annotated[str, AfterValidator(check_origin)] = "https://api.stripe.com"

    @field_validator("stripe_api_key")
    @classmethod
    def _secret_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"(sk|rk)_[\x21-\x7e]+", value.get_secret_value()):
            raise ValueError("a secret key (sk_...) or a restricted key (rk_...) of Stripe is allowed")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.card_gateway == "stripe" and self.stripe_api_key is None:
            raise ValueError(f"with {ENV_PREFIX}CARD_GATEWAY=stripe, {ENV_PREFIX}STRIPE_API_KEY must be set too")
        return self

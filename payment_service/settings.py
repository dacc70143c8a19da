"""Settings of the payment service, besides those that every service has."""

from typing import Annotated

from pydantic import Field

from shared.settings import ServiceSettings


class PaymentSettings(ServiceSettings):
    """How the simulated gateway decides, and how long the gateway may take."""

    payment_failure_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    gateway_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0

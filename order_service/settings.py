"""Settings of the order service."""

from typing import Annotated

from pydantic import Field

from shared.settings import Amount, ServiceSettings


class OrderSettings(ServiceSettings):
    """What orders need, their time limits, and the times after which lost messages are published or sent again."""

    saga_timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300
    failed_hold_seconds: Annotated[float, Field(gt=0, le=90 * 86_400)] = 86_400
    republish_after_seconds: Annotated[float, Field(gt=0, le=3600)] = 10
    resend_after_seconds: Annotated[float, Field(gt=0, le=3600)] = 30
    require_prices: bool = True
    approval_amount: Amount = None
    sweep_interval_seconds: Annotated[float, Field(gt=0, le=60)] = 1

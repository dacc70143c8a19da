"""Settings of the order service."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from shared.settings import Amount, ServiceSettings


def _no_port(value: object) -> object:
    return None if value == "" else value


def _no_limit(value: object) -> object:
    return None if value in ("", "off") else value


class OrderSettings(ServiceSettings):
    """What orders need, their time limits, and the times after which lost messages are published or sent again."""

    saga_timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300
    failed_hold_seconds: Annotated[float, Field(gt=0, le=90 * 86_400)] = 86_400
    republish_after_seconds: Annotated[float, Field(gt=0, le=3600)] = 10
    resend_after_seconds: Annotated[float, Field(gt=0, le=3600)] = 30
    max_settle_seconds: Annotated[Annotated[float, Field(ge=1, le=3600)] | None, BeforeValidator(_no_limit)] = 30
    placement_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5
    require_prices: bool = True
    approval_amount: Amount = None
    sweep_interval_seconds: Annotated[float, Field(gt=0, le=60)] = 1
    grpc_port: Annotated[Annotated[int, Field(ge=1, le=65535)] | None, BeforeValidator(_no_port)] = None

"""Settings of the inventory service."""

from typing import Annotated

from pydantic import Field

from shared.settings import ServiceSettings


class InventorySettings(ServiceSettings):
    """The intervals at which pending moves of decided orders are cleared (`PendingMoves`)."""

    mark_flush_seconds: Annotated[float, Field(gt=0, le=10)] = 0.1
    mark_sweep_seconds: Annotated[float, Field(gt=0, le=300)] = 5.0

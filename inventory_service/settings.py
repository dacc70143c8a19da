"""Settings of the inventory service."""

from typing import Annotated

from pydantic import Field

from shared.settings import ServiceSettings


class InventorySettings(ServiceSettings):
    """The intervals of pending moves (`PendingMoves`) and of expired holds (`Holds`), and the limit of holds."""

    mark_flush_seconds: Annotated[float, Field(gt=0, le=10)] = 0.1
    mark_sweep_seconds: Annotated[float, Field(gt=0, le=300)] = 5.0
    hold_sweep_seconds: Annotated[float, Field(gt=0, le=60)] = 0.5
    max_holds_per_user: Annotated[int, Field(ge=0, le=1_000)] = 20

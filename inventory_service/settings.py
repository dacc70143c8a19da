"""Settings of the inventory service."""

from typing import Annotated

from pydantic import Field

from shared.settings import ServiceSettings


class InventorySettings(ServiceSettings):
    """How soon marks on products that are of no more use are removed."""

    mark_flush_seconds: Annotated[float, Field(gt=0, le=10)] = 0.1
    mark_sweep_seconds: Annotated[float, Field(gt=0, le=300)] = 5.0

"""The answers of the inventory service."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from shared.contracts.base import Count, Name, OrderMessage, Text, WireModel
from shared.contracts.failures import Code
from shared.contracts.orders import RefundId


class ServerSpecification(WireModel):
    """The server to provision for a `vps` product."""

    package: Name
    package_id: Name | None = None
    ram: Annotated[Count, Field(ge=1)] | None = None


class StockReserved(OrderMessage):
    """Everything that the order asks for is reserved."""

    routing_key: ClassVar[str] = "stock.reserved"

    status: Literal["SUCCESS"] = "SUCCESS"
    fulfilment: Literal["goods", "vps"] = "goods"
    provisioning: ServerSpecification | None = None
    slot: Name | None = None
    slot_visible_at: datetime | None = None
    """When the work for the slot becomes visible; absent in messages of earlier releases."""

    @model_validator(mode="after")
    def _server_is_specified(self) -> "StockReserved":
        if self.fulfilment == "vps" and self.provisioning is None:
            raise ValueError("provisioning is required when fulfilment is vps")
        return self


class StockReservationFailed(OrderMessage):
    """Nothing is held for the order; `reason` says what was missing, `code` the same for programs."""

    routing_key: ClassVar[str] = "stock.reservation_failed"

    status: Literal["FAILED"] = "FAILED"
    reason: Text
    code: Code | None = None


class StockReleased(OrderMessage):
    """Nothing is held for the order any longer, and nothing will be."""

    routing_key: ClassVar[str] = "stock.released"


class StockShipped(OrderMessage):
    """What the order held is counted as shipped."""

    routing_key: ClassVar[str] = "stock.shipped"


class StockReturned(OrderMessage):
    """The units of this refund are back in free stock."""

    routing_key: ClassVar[str] = "stock.returned"

    refund_id: RefundId

"""What the inventory service answers."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from shared.contracts.base import Count, Name, OrderMessage, Text, Wire


class ServerSpecification(Wire):
    """What to provision for a `vps` product."""

    package: Name
    package_id: Name | None = None
    ram: Annotated[Count, Field(ge=1)] | None = None


class StockReserved(OrderMessage):
    """Everything the order asks for is held for it."""

    routing_key: ClassVar[str] = "stock.reserved"

    status: Literal["SUCCESS"] = "SUCCESS"
    fulfilment: Literal["goods", "vps"] = "goods"
    provisioning: ServerSpecification | None = None
    slot: Name | None = None


class StockReservationFailed(OrderMessage):
    """Nothing is held for the order, and `reason` says what was missing."""

    routing_key: ClassVar[str] = "stock.reservation_failed"

    status: Literal["FAILED"] = "FAILED"
    reason: Text


class StockReleased(OrderMessage):
    """Nothing is held for the order any more, and nothing will be."""

    routing_key: ClassVar[str] = "stock.released"

"""Parts of answers that several routes of the operations API have."""

from datetime import datetime

from pydantic import Field

from shared.http import View


class ImpactView(View):
    """The orders that are affected; amounts by currency."""

    orders: int
    orders_by_status: dict[str, int]
    unsettled_orders: int
    customers: int
    amounts: dict[str, float]
    amounts_at_stake: dict[str, float] = Field(description="of the orders that are not settled")
    next_deadline: datetime | None = Field(description="when the first of the orders times out")
    without_order: int = Field(description="ids that the order service does not know")
    complete: bool = Field(description="false if there are more letters than were looked at")

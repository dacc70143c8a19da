"""The page of a delivery slot, for the kitchen: its orders, when each becomes visible, and which are late."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Path, Query, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.pages import Pages
from operations.console.upstream import Unavailable, path
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.contracts.orders import SLOT_ID_PATTERN

ORDERS = 100


class SlotOrder(NamedTuple):
    """An order in a slot; `late` if the slot has begun and the goods have not left."""

    order_id: str
    items: Sequence[tuple[str, int]]
    items_count: int
    visible_at: datetime
    shipped: bool
    visible: bool
    late: bool


def create_slots(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the route of a slot's page."""
    router = pages.router()

    @router.get("/slots/{slot_id}")
    @requires(Permission.ORDERS_READ)
    async def slot(
        request: Request,
        slot_id: Annotated[str, Path(pattern=f"^{SLOT_ID_PATTERN}$")],
        cursor: Annotated[str | None, Query(max_length=1000)] = None,
    ) -> Response:
        parameters: dict[str, str | int] = {"limit": ORDERS} | ({"cursor": cursor} if cursor else {})
        found = await dependencies.services.get("inventory", path("slots", slot_id, "orders"), **parameters)
        if isinstance(found, Unavailable):
            return pages.show(request, "slot.html", slot_id=slot_id, found=found)
        orders = slot_orders(found.body.get("items", ()), dependencies.clock())
        more = found.body.get("nextCursor")
        return pages.show(request, "slot.html", slot_id=slot_id, found=orders, more=more, cursor=cursor)

    return router


def slot_orders(items: Sequence[Mapping[str, Any]], now: datetime) -> list[SlotOrder]:
    """Return the rows for the orders that the inventory service lists."""
    return [_slot_order(item, now) for item in items]


def _slot_order(item: Mapping[str, Any], now: datetime) -> SlotOrder:
    visible_at, start = datetime.fromisoformat(item["visibleAt"]), datetime.fromisoformat(item["slotStart"])
    shipped = item.get("status") == "SHIPPED"
    return SlotOrder(
        str(item["orderId"]),
        [(str(line["productId"]), int(line["quantity"])) for line in item.get("items", ())],
        int(item.get("itemsCount") or 0),
        visible_at,
        shipped,
        visible=visible_at <= now,
        late=not shipped and start <= now,
    )

"""The inventory page: what is free and what is held of each product, and the load of the delivery slots."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import httpx
from fastapi import APIRouter, Query, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.pages import Pages
from operations.console.upstream import Missing

PRODUCTS = 50
SLOTS = 100


class Shelf(NamedTuple):
    """A product's stock; `free` is None where nothing is counted. The bars are drawn to `scale`."""

    product_id: str
    free: int | None
    reserved: int
    scale: int


class Slot(NamedTuple):
    """A delivery slot, and how full it is: 0 to 1. Capacity and load are amounts of money."""

    slot_id: str
    start: str
    end: str
    capacity: float
    load: float
    disabled: bool

    @property
    def share(self) -> float:
        """How much of its capacity is taken."""
        return min(1.0, self.load / self.capacity) if self.capacity else 1.0


def create_stock(desk: ConsoleDependencies, pages: Pages) -> APIRouter:
    """The inventory page."""
    router = pages.router()

    @router.get("/inventory")
    async def inventory(request: Request, cursor: Annotated[str | None, Query(max_length=1000)] = None) -> Response:
        parameters: dict[str, str | int] = {"limit": PRODUCTS} | ({"cursor": cursor} if cursor else {})
        stock, slots = await asyncio.gather(
            desk.services.get("inventory", "/inventory", **parameters),
            desk.services.get("inventory", "/slots", limit=SLOTS),
        )
        more = None if isinstance(stock, Missing) else stock.body.get("nextCursor")
        return pages.show(
            request,
            "inventory.html",
            shelves=stock if isinstance(stock, Missing) else shelves(stock.body.get("items", ())),
            more=more,
            cursor=cursor,
            # An inventory service of an earlier version has no slots, and none are shown.
            slots=slots if isinstance(slots, Missing) else _slots(slots.status, slots.body),
        )

    return router


def shelves(items: Sequence[Mapping[str, Any]]) -> list[Shelf]:
    """Read the stock that the inventory service lists."""
    scale = max([1, *((item.get("quantity") or 0) + (item.get("reserved") or 0) for item in items)])
    return [Shelf(str(item.get("productId")), item.get("quantity"), item.get("reserved") or 0, scale) for item in items]


def _slots(status: int, body: Mapping[str, Any]) -> list[Slot]:
    if status == httpx.codes.NOT_FOUND:
        return []
    return [
        Slot(
            str(item.get("slotId")),
            str(item.get("start", "")),
            str(item.get("end", "")),
            float(item.get("capacity") or 0),
            float(item.get("load") or 0),
            bool(item.get("disabled")),
        )
        for item in body.get("items", ())
    ]

"""The inventory page: free and held stock of each product, and the load of the delivery slots."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import httpx
from fastapi import APIRouter, Form, Path, Query, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.operator_actions import OperatorAction, execute
from operations.console.pages import Pages
from operations.console.upstream import ServiceResponse, Unavailable, path
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.http import not_found

PRODUCTS = 50
SLOTS = 100
ProductIdPath = Annotated[str, Path(min_length=1, max_length=128)]


class StockRow(NamedTuple):
    """A product's stock; `free` is None if its units are not counted. `scale` is the maximum of the bars."""

    product_id: str
    name: str | None
    on_sale: bool
    free: int | None
    reserved: int
    shipped: int
    scale: int

    @property
    def sale_path(self) -> str:
        """The path of the page that takes it off sale."""
        return path("products", self.product_id, "sale")


class SlotRow(NamedTuple):
    """A delivery slot; capacity and load are amounts of money."""

    slot_id: str
    start: str
    end: str
    capacity: float
    load: float
    disabled: bool

    @property
    def share(self) -> float:
        """The used share of the capacity, 0 to 1."""
        return min(1.0, self.load / self.capacity) if self.capacity else 1.0


def create_stock(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the route of the inventory page."""
    router = pages.router()

    @router.get("/inventory")
    @requires(Permission.CATALOGUE_READ)
    async def inventory(
        request: Request,
        product: Annotated[str, Query(max_length=128)] = "",
        cursor: Annotated[str | None, Query(max_length=1000)] = None,
    ) -> Response:
        stock, slots = await asyncio.gather(
            _read_stock(dependencies, product, cursor),
            dependencies.services.get("inventory", "/slots", limit=SLOTS),
        )
        more = None if isinstance(stock, Unavailable) else stock.body.get("nextCursor")
        return pages.show(
            request,
            "inventory.html",
            stock=stock if isinstance(stock, Unavailable) else stock_rows(stock.body.get("items", ())),
            more=more,
            cursor=cursor or product,
            # An inventory service of an older release has no slots.
            slots=slots if isinstance(slots, Unavailable) else _slot_rows(slots.status, slots.body),
        )

    @router.get("/products/{product_id}/sale")
    @requires(Permission.CATALOGUE_WRITE)
    async def ask(request: Request, product_id: ProductIdPath) -> Response:
        """Ask for confirmation and a reason."""
        found = await dependencies.services.get("inventory", path("products", product_id))
        if isinstance(found, Unavailable):
            return pages.show(request, "sale.html", what=product_id, is_open=True, error=found, why="")
        if not found.ok:
            raise not_found(f"Product {product_id}")
        return pages.show(request, "sale.html", what=product_id, is_open=found.body["onSale"], error=None, why="")

    @router.post("/products/{product_id}/sale")
    @requires(Permission.CATALOGUE_WRITE)
    async def switch(
        request: Request, product_id: ProductIdPath, on_sale: Annotated[bool, Form()], why: Annotated[Why, Form()]
    ) -> Response:
        """Take a product off sale, or put it back, and log it."""
        action = OperatorAction(actor(request), why, "product.sale", product_id)
        body = {"onSale": on_sale} | ({} if on_sale else {"reason": why})
        address, done = path("products", product_id), "on sale" if on_sale else "off sale"
        failed = await execute(dependencies, action, "PATCH", "inventory", address, body=body, done=done)
        if failed is None:
            return redirect("/inventory")
        return pages.show(
            request, "sale.html", failed.status, what=product_id, is_open=not on_sale, error=failed, why=why
        )

    return router


async def _read_stock(
    dependencies: ConsoleDependencies, product: str, cursor: str | None
) -> ServiceResponse | Unavailable:
    """Read a page of the stock, or that of one product, which may not exist."""
    if not product:
        parameters: dict[str, str | int] = {"limit": PRODUCTS} | ({"cursor": cursor} if cursor else {})
        return await dependencies.services.get("inventory", "/inventory", **parameters)
    found = await dependencies.services.get("inventory", path("inventory", product))
    if isinstance(found, Unavailable):
        return found
    return found._replace(body={"items": [found.body] if found.ok else []})


def stock_rows(items: Sequence[Mapping[str, Any]]) -> list[StockRow]:
    """Return the rows for the stock that the inventory service lists."""
    scale = max([1, *((item.get("quantity") or 0) + (item.get("reserved") or 0) for item in items)])
    return [
        StockRow(
            str(item.get("productId")),
            item.get("name"),
            item.get("onSale", True),
            item.get("quantity"),
            item.get("reserved") or 0,
            item.get("shipped") or 0,
            scale,
        )
        for item in items
    ]


def _slot_rows(status: int, body: Mapping[str, Any]) -> list[SlotRow]:
    if status == httpx.codes.NOT_FOUND:
        return []
    return [
        SlotRow(
            str(item.get("slotId")),
            str(item.get("start", "")),
            str(item.get("end", "")),
            float(item.get("capacity") or 0),
            float(item.get("load") or 0),
            bool(item.get("disabled")),
        )
        for item in body.get("items", ())
    ]

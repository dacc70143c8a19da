"""The inventory page, with free and held stock of each product, and its forms: restock, and off sale."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple
from uuid import uuid4

from fastapi import APIRouter, Form, Path, Query, Request, Response

from inventory_service.stock import MAX_UNITS
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import FormKey, Why, actor, redirect
from operations.console.lists import address
from operations.console.operator_actions import ActionFailed, OperatorAction
from operations.console.pages import Pages
from operations.console.stock_actions import RESTOCK, SALE, add_units, switch_sale
from operations.console.upstream import ServiceResponse, Unavailable, path
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.http import ProblemError, conflict, not_found

PRODUCTS = 50
FORM = "/products/{product_id}/restock"
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

    @property
    def restock_path(self) -> str:
        """The path of the form that adds units."""
        return path("products", self.product_id, "restock")


def create_stock(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the inventory page and of its forms."""
    router = pages.router()
    _add_restock(router, dependencies, pages)

    @router.get("/inventory")
    @requires(Permission.CATALOGUE_READ)
    async def inventory(
        request: Request,
        product: Annotated[str, Query(max_length=128)] = "",
        cursor: Annotated[str | None, Query(max_length=1000)] = None,
        repeated: bool = False,
    ) -> Response:
        stock = await _read_stock(dependencies, product, cursor)
        more = None if isinstance(stock, Unavailable) else stock.body.get("nextCursor")
        return pages.show(
            request,
            "inventory.html",
            stock=stock if isinstance(stock, Unavailable) else stock_rows(stock.body.get("items", ())),
            more=more,
            cursor=cursor or product,
            product=product,
            repeated=repeated,
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
        failed = await switch_sale(dependencies, OperatorAction(actor(request), why, SALE, product_id), on_sale=on_sale)
        if failed is None:
            return redirect("/inventory")
        return pages.show(
            request, "sale.html", failed.status, what=product_id, is_open=not on_sale, error=failed, why=why
        )

    return router


def _add_restock(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    def show(
        request: Request, stock: Mapping[str, Any], key: str, *, error: ActionFailed | None = None, **filled: Any
    ) -> Response:
        status = error.status if error else HTTPStatus.OK
        return pages.show(request, "restock.html", status, stock=stock, key=key, error=error, filled=filled)

    @router.get(FORM)
    @requires(Permission.CATALOGUE_WRITE)
    async def ask(request: Request, product_id: ProductIdPath) -> Response:
        """Ask how many units have come in, and for a reason."""
        return show(request, await _stock_of(dependencies, product_id), uuid4().hex)

    @router.post(FORM)
    @requires(Permission.CATALOGUE_WRITE)
    async def restock(
        request: Request,
        product_id: ProductIdPath,
        quantity: Annotated[str, Form(max_length=20)],
        why: Annotated[Why, Form()],
        key: FormKey,
        confirmed: Annotated[str, Form(max_length=20)] = "",
    ) -> Response:
        """Show what it comes to; once that is confirmed, add the units, once for each form, and log it."""
        stock, units = await _stock_of(dependencies, product_id), _units(quantity)
        if units is None:
            error = ActionFailed("Not done", f"units: must be a whole number from 1 to {MAX_UNITS:,}", 422)
            return show(request, stock, key, error=error, quantity=quantity, why=why)
        if confirmed != str(units):
            return show(request, stock, key, quantity=units, why=why, units=units)
        action = OperatorAction(actor(request), why, RESTOCK, product_id)
        outcome = await add_units(dependencies, action, units, key)
        if isinstance(outcome, ActionFailed):
            return show(request, stock, key, error=outcome, quantity=units, why=why, units=units)
        repeated = "1" if outcome.repeated else ""
        return redirect(address("/inventory", {"product": product_id, "repeated": repeated}))


async def _stock_of(dependencies: ConsoleDependencies, product_id: str) -> Mapping[str, Any]:
    """Return the stock of a product. Raises the problem of one that is unknown or not counted, or cannot be read."""
    found = await dependencies.services.get("inventory", path("inventory", product_id))
    if isinstance(found, Unavailable):
        raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, found.why)
    if not found.ok:
        raise not_found(f"Product {product_id}")
    if found.body.get("quantity") is None:
        raise conflict(f"The provider counts its servers: product {product_id} cannot be restocked")
    return found.body


def _units(text: str) -> int | None:
    try:
        units = int(text.strip().replace(",", ""))
    except ValueError:
        return None
    return units if 1 <= units <= MAX_UNITS else None


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

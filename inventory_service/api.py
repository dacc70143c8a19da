"""HTTP routes of the inventory service: products, stock and reservations."""

import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Response
from pydantic import Field, model_validator

from inventory_service.reservations import Reservations
from inventory_service.stock import MAX_UNITS, Description, Kind, Product
from inventory_service.stock_items import (
    REMEMBERED_RESTOCKS,
    KindConflictError,
    RestockKeyReusedError,
    StockItems,
    TooManyUnitsError,
)
from inventory_service.views import (
    ProductPage,
    ProductView,
    ReservationView,
    StockPage,
    StockView,
    show_product,
    show_reservation,
    show_stock,
)
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.contracts.base import Name, PathName, Text
from shared.contracts.orders import ProductId
from shared.http import (
    REPLAYED,
    Body,
    ProblemError,
    add_routes,
    conflict,
    invalid,
    json_response,
    key_reused,
    located,
    new_router,
    not_found,
    shown_as,
)
from shared.lean_route import LeanRoute
from shared.money import JsonMoney
from shared.openapi import documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, after_id, page_response
from shared.problems import CONFLICT, PRODUCT_KIND
from shared.validation import wrong_field

MAX_RAM = 1_000_000

# Any fixed value does: it only keeps these keys apart from others that are made in the same way.
_KEYS = uuid.UUID("6d1f2c35-58a0-4b0e-8f3e-0e2f6a1c9b7d")

ProductIdParameter = Annotated[
    ProductId, Path(description="1 to 128 characters, none a control character or a slash; `slot:` begins slots' ids")
]
OrderIdParameter = Annotated[str, Path(min_length=1, max_length=200)]
RestockKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description=f"The same key and body add once; a product remembers its last {REMEMBERED_RESTOCKS} keys, and "
        "each owner has keys of its own",
    ),
]


class ProductBody(Body):
    """What a product is; `price`, if given, is what orders must say, and `package` is what to buy for a `vps`."""

    model_config = shown_as({"kind": "goods", "name": "Margherita", "price": 19.99})

    kind: Annotated[Kind, Field(strict=False)]
    name: Name | None = None
    price: Annotated[JsonMoney, Field(ge=0)] | None = None
    package: PathName | None = None
    package_id: Name | None = None
    ram: Annotated[int, Field(ge=1, le=MAX_RAM)] | None = None


class SaleBody(Body):
    """Whether a product is on sale, and why not."""

    model_config = shown_as({"onSale": False, "reason": "Oven repair"})

    on_sale: bool
    reason: Text | None = None

    @model_validator(mode="after")
    def _reason_is_for_an_end(self) -> "SaleBody":
        if self.on_sale and self.reason is not None:
            raise wrong_field("reason", "is allowed only with onSale false")
        return self


class FreeQuantity(Body):
    """What is free to sell from now on."""

    quantity: Annotated[int, Field(ge=0, le=MAX_UNITS)]


class Delivery(Body):
    """What has come in."""

    quantity: Annotated[int, Field(ge=1, le=MAX_UNITS)]


def create_router(stock_items: StockItems, reservations: Reservations) -> APIRouter:
    """Build the routes."""
    router = APIRouter()
    add_routes(router, _product_routes(stock_items), _stock_routes(stock_items), _reservation_routes(reservations))
    return router


def _product_routes(stock_items: StockItems) -> APIRouter:
    router = new_router("products", route_class=LeanRoute)

    @router.put(
        "/products/{product_id}",
        response_model=ProductView,
        responses={201: {"model": ProductView}, **documented(PRODUCT_KIND)},
    )
    @requires(Permission.CATALOGUE_WRITE)
    async def put_product(product_id: ProductIdParameter, body: ProductBody) -> Response:
        """Create a product or describe it anew; its kind stays what it is, its stock as well."""
        try:
            product, is_new = await stock_items.put_product(product_id, _description(body))
        except KindConflictError:
            raise conflict(f"Product {product_id} exists and is not of kind {body.kind}", PRODUCT_KIND) from None
        return _put("products", product_id, show_product(product), is_new=is_new)

    @router.patch("/products/{product_id}", response_model=ProductView)
    @requires(Permission.CATALOGUE_WRITE)
    async def switch_sale(product_id: ProductIdParameter, body: SaleBody) -> Response:
        """Take a product off sale, or put it back: new orders for it are refused, orders in flight go on."""
        product = await stock_items.set_on_sale(product_id, body.on_sale, body.reason)
        if product is None:
            raise not_found(f"Product {product_id}")
        return json_response(show_product(product))

    @router.get("/products", response_model=ProductPage)
    @requires(Permission.CATALOGUE_READ)
    async def list_products(limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Products, by id."""
        return await _page(stock_items, limit, cursor, show_product)

    @router.get("/products/{product_id}", response_model=ProductView)
    @requires(Permission.CATALOGUE_READ)
    async def get_product(product_id: ProductIdParameter) -> Response:
        """One product."""
        return json_response(show_product(await _find(stock_items, product_id)))

    return router


def _stock_routes(stock_items: StockItems) -> APIRouter:
    router = new_router("inventory", route_class=LeanRoute)

    @router.put(
        "/inventory/{product_id}",
        response_model=StockView,
        responses={201: {"model": StockView}, **documented(PRODUCT_KIND)},
    )
    @requires(Permission.CATALOGUE_WRITE)
    async def set_stock(product_id: ProductIdParameter, body: FreeQuantity) -> Response:
        """Set what is free to sell; a product that is unknown is created as goods."""
        try:
            product, is_new = await stock_items.set_free(product_id, body.quantity)
        except KindConflictError:
            raise _not_counted(product_id) from None
        return _put("inventory", product_id, show_stock(product), is_new=is_new)

    @router.post(
        "/inventory/{product_id}/restock", response_model=StockView, responses=documented(PRODUCT_KIND, CONFLICT)
    )
    @requires(Permission.CATALOGUE_WRITE)
    async def restock_product(
        product_id: ProductIdParameter, body: Delivery, caller: Caller, idempotency_key: RestockKey = None
    ) -> Response:
        """Add to what is free to sell; with a key, a repeat adds nothing and answers with the stock as it is."""
        key = None if idempotency_key is None else _restock_key(caller.owner, idempotency_key)
        try:
            restocked = await stock_items.restock(product_id, body.quantity, key)
        except RestockKeyReusedError:
            raise key_reused("Idempotency-Key was used before with another quantity") from None
        except KindConflictError:
            raise _not_counted(product_id) from None
        except TooManyUnitsError:
            raise conflict(f"Product {product_id} would have more than {MAX_UNITS} units") from None
        if restocked is None:
            raise not_found(f"Product {product_id}")
        product, done_before = restocked
        return json_response(show_stock(product), headers=REPLAYED if done_before else None)

    @router.get("/inventory", response_model=StockPage)
    @requires(Permission.CATALOGUE_READ)
    async def list_stock(limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Stock of all products, by product id."""
        return await _page(stock_items, limit, cursor, show_stock)

    @router.get("/inventory/{product_id}", response_model=StockView)
    @requires(Permission.CATALOGUE_READ)
    async def get_stock(product_id: ProductIdParameter) -> Response:
        """Stock of one product."""
        return json_response(show_stock(await _find(stock_items, product_id)))

    return router


def _reservation_routes(reservations: Reservations) -> APIRouter:
    router = new_router("reservations", route_class=LeanRoute)

    @router.get("/reservations/{order_id}", response_model=ReservationView)
    @requires(Permission.ORDERS_READ)
    async def get_reservation(order_id: OrderIdParameter, caller: Caller) -> Response:
        """What became of an order's stock."""
        reservation = await reservations.find(order_id, caller.visible(Permission.ORDERS_READ))
        if reservation is None:
            raise not_found(f"Reservation of order {order_id}")
        return json_response(show_reservation(reservation))

    return router


def _description(body: ProductBody) -> Description:
    if body.kind is Kind.VPS and body.package is None:
        raise invalid(("package", "is required for kind vps: it says what to buy"))
    if body.kind is Kind.GOODS:
        given = {"package": body.package, "packageId": body.package_id, "ram": body.ram}
        misplaced = [(field, "is allowed for kind vps only") for field, value in given.items() if value is not None]
        if misplaced:
            raise invalid(*misplaced)
    return Description(body.kind, body.name, body.price, body.package, body.package_id, body.ram)


def _put(collection: str, product_id: str, shown: dict[str, Any], *, is_new: bool) -> Response:
    if is_new:
        return json_response(shown, HTTPStatus.CREATED, located(collection, product_id))
    return json_response(shown)


def _restock_key(owner: str | None, key: str) -> str:
    return uuid.uuid5(_KEYS, f"{owner or ''}\0{key}").hex


def _not_counted(product_id: str) -> ProblemError:
    return conflict(f"Product {product_id} is of kind vps: only the provider knows its stock", PRODUCT_KIND)


async def _find(stock_items: StockItems, product_id: str) -> Product:
    product = await stock_items.find_product(product_id)
    if product is None:
        raise not_found(f"Product {product_id}")
    return product


async def _page(
    stock_items: StockItems, limit: int, cursor: str | None, show: Callable[[Product], dict[str, Any]]
) -> Response:
    page = await stock_items.product_page(after=after_id(cursor), limit=limit)
    return page_response(page, show, key=lambda product: [product.id], limit=limit)

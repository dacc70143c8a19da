"""The routes about stock and delivery slots: they read and change what the inventory service owns, with a reason."""

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import Field

from inventory_service.stock import MAX_UNITS
from operations.api.routes import ACCEPTED, Accepted, Reasoned, checked, done, id_of, staff_router
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor
from operations.console.operator_actions import ActionDone, OperatorAction
from operations.console.slots import SLOT_CHANGE, change_slot, find_slot
from operations.console.stock_actions import RESTOCK, SALE, add_units, switch_sale
from operations.console.upstream import Unavailable, path
from shared import problems
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.clock import to_rfc3339
from shared.contracts.orders import SLOT_ID_PATTERN
from shared.http import ProblemError, View, invalid, json_response, not_found, shown_as
from shared.money import JsonMoney, to_json_number
from shared.openapi import documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit
from shared.validation import Moment

ProductIdPath = Annotated[str, Path(min_length=1, max_length=128)]
SlotIdPath = Annotated[str, Path(pattern=f"^{SLOT_ID_PATTERN}$", description="`slot:<unix seconds of the start>`")]
RestockKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="The same key and body add once"),
]


class ProductStockView(View):
    """How many units of a product are free, held for orders and delivered; `quantity` is null if none are counted."""

    product_id: str
    name: str | None
    on_sale: bool
    quantity: int | None
    reserved: int
    shipped: int


class ProductStockPage(View):
    """A page of products, by id."""

    items: list[ProductStockView]
    next_cursor: str | None


class DeliverySlotView(View):
    """A delivery slot; load and capacity are amounts of orders, and the capacity is of the rules or its own."""

    slot_id: str
    start: datetime
    end: datetime
    capacity: float
    load: float
    disabled: bool
    follows_rules: bool = Field(False, description="absent while the inventory service is of an earlier release")


class DeliverySlotPage(View):
    """A page of delivery slots, by their start."""

    items: list[DeliverySlotView]
    next_cursor: str | None


class UnitsIn(Reasoned):
    """Units that have come in."""

    model_config = shown_as({"quantity": 20, "reason": "delivery note 4711"})

    quantity: Annotated[int, Field(ge=1, le=MAX_UNITS)]


class Restocked(Accepted):
    """What became of a restock; `repeated` if the units had been added before, under the same key, and none now."""

    repeated: bool = Field(False, description="true if nothing was added now: it had been, under the same key")


class OnSale(Reasoned):
    """Whether a product is on sale; the reason is kept while it is not."""

    model_config = shown_as({"onSale": False, "reason": "recalled"})

    on_sale: bool


class SlotChange(Reasoned):
    """The changes to a slot; `capacity` null makes it follow the rules again."""

    model_config = shown_as({"capacity": 2500, "disabled": False, "reason": "one van is out of order"})

    capacity: Annotated[JsonMoney, Field(ge=0)] | None = None
    disabled: bool | None = None


def create_catalogue(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the routes."""
    router = staff_router("inventory")
    _add_products(router, dependencies)
    _add_slots(router, dependencies)
    return router


def _add_products(router: APIRouter, dependencies: ConsoleDependencies) -> None:
    @router.get("/products", response_model=ProductStockPage)
    @requires(Permission.CATALOGUE_READ)
    async def list_products(limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """The stock of all products, by id."""
        return json_response(await _read(dependencies, "/inventory", limit=limit, cursor=cursor))

    @router.get("/products/{product_id}", response_model=ProductStockView)
    @requires(Permission.CATALOGUE_READ)
    async def get_product(product_id: ProductIdPath) -> Response:
        """The stock of a product."""
        found = await _read(dependencies, path("inventory", product_id))
        if "productId" not in found:
            raise not_found(f"Product {product_id}")
        return json_response(found)

    @router.post(
        "/products/{product_id}/restock",
        status_code=202,
        response_model=Restocked,
        responses=ACCEPTED | documented(404, 409),
    )
    @requires(Permission.CATALOGUE_WRITE)
    async def restock_product(
        request: Request, product_id: ProductIdPath, body: UnitsIn, idempotency_key: RestockKey = None
    ) -> Response:
        """Add units to what is free to sell."""
        action = OperatorAction(actor(request), body.reason, RESTOCK, product_id)
        outcome = await add_units(dependencies, action, body.quantity, id_of(request, idempotency_key))
        checked(outcome)
        return done("products", product_id, repeated=isinstance(outcome, ActionDone) and outcome.repeated)

    @router.post(
        "/products/{product_id}/sale", status_code=202, response_model=Accepted, responses=ACCEPTED | documented(404)
    )
    @requires(Permission.CATALOGUE_WRITE)
    async def switch_sale_of_product(request: Request, product_id: ProductIdPath, body: OnSale) -> Response:
        """Take a product off sale, or put it back: new orders for it are refused, orders in flight go on."""
        action = OperatorAction(actor(request), body.reason, SALE, product_id)
        checked(await switch_sale(dependencies, action, on_sale=body.on_sale))
        return done("products", product_id)


def _add_slots(router: APIRouter, dependencies: ConsoleDependencies) -> None:
    @router.get("/slots", response_model=DeliverySlotPage)
    @requires(Permission.CATALOGUE_READ)
    async def list_delivery_slots(
        since: Annotated[Moment | None, Query(alias="from", description="Now unless given")] = None,
        until: Annotated[Moment | None, Query(alias="to", description="The horizon unless given")] = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
    ) -> Response:
        """Slots that start at `from` or later and before `to`; of those before now only the ones ever used."""
        times = {name: to_rfc3339(at) for name, at in (("from", since), ("to", until)) if at is not None}
        return json_response(await _read(dependencies, "/slots", limit=limit, cursor=cursor, **times))

    @router.get("/slots/{slot_id}", response_model=DeliverySlotView)
    @requires(Permission.CATALOGUE_READ)
    async def get_delivery_slot(slot_id: SlotIdPath) -> Response:
        """A slot; one that has passed is only known if it was ever used."""
        found = await find_slot(dependencies, slot_id)
        if isinstance(found, Unavailable):
            raise _unavailable(found)
        if found is None:
            raise not_found(f"The delivery {slot_id}")
        return json_response(found.item)

    @router.post(
        "/slots/{slot_id}/change", status_code=202, response_model=Accepted, responses=ACCEPTED | documented(404)
    )
    @requires(Permission.CATALOGUE_WRITE)
    async def change_delivery_slot(request: Request, slot_id: SlotIdPath, body: SlotChange) -> Response:
        """Change the capacity of a slot, close it or open it again; what is booked in it stays booked."""
        wanted = _change(body)
        if not wanted:
            raise invalid(("body", "must have capacity, disabled or both"))
        words = ", ".join(f"{name} {value}" for name, value in wanted.items())
        action = OperatorAction(actor(request), body.reason, SLOT_CHANGE, slot_id)
        checked(await change_slot(dependencies, action, wanted, words))
        return done("slots", slot_id)


def _change(body: SlotChange) -> dict[str, Any]:
    """Return the request to the inventory service, with what was given."""
    given: dict[str, Any] = {}
    if "capacity" in body.model_fields_set:
        given["capacity"] = None if body.capacity is None else to_json_number(body.capacity)
    if body.disabled is not None:
        given["disabled"] = body.disabled
    return given


async def _read(dependencies: ConsoleDependencies, address: str, **asked: str | int | None) -> Mapping[str, Any]:
    """Return what the inventory service answers, empty if there is none. Raises the problem if it does not answer."""
    given = {name: value for name, value in asked.items() if value is not None}
    found = await dependencies.services.get("inventory", address, **given)
    if isinstance(found, Unavailable):
        raise _unavailable(found)
    return found.body if found.ok else {}


def _unavailable(found: Unavailable) -> ProblemError:
    """Return the problem of the service: its refusal of what was asked, or that it is not available."""
    refusal = found.refusal
    # With 401 it refuses the console, which is nothing that the caller could change.
    if refusal is not None and refusal.status < 500 and refusal.status != HTTPStatus.UNAUTHORIZED:
        errors = [(str(each["field"]), str(each["message"])) for each in refusal.body.get("errors") or ()]
        return ProblemError(HTTPStatus(refusal.status), refusal.detail, errors=errors)
    return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, found.why, kind=problems.UNAVAILABLE)

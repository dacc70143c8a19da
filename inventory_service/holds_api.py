"""HTTP routes of holds."""

import hashlib
import uuid
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Path, Response
from pydantic import Field, field_validator, model_validator

from inventory_service.allocation import HoldLine
from inventory_service.holds import HoldRequest, Holds
from inventory_service.stock import HoldOutcome, Reservation, Status
from inventory_service.views import HoldView, show_hold
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.access.principal import PERSON_FIELD, Principal
from shared.contracts.base import Name, OrderId
from shared.contracts.orders import MAX_ITEMS, MAX_QUANTITY, SLOT_ID_PATTERN, ProductId
from shared.http import (
    REPLAYED,
    Body,
    ProblemError,
    conflict,
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
from shared.problems import HOLD_OVER, HOLD_REFUSED, OTHER_PERSON, TOO_MANY_HOLDS
from shared.validation import wrong_field

MAX_SECONDS = 3600

# Any fixed value does: it only keeps these keys apart from others that are made in the same way.
_KEYS = uuid.UUID("0b7c0c1e-7a55-4a55-9a1f-58c3f9d1c8a4")

HoldIdPath = Annotated[OrderId, Path()]
Seconds = Annotated[int, Field(ge=1, le=MAX_SECONDS)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key and body answer the first hold again; each owner has keys of its own",
    ),
]


class NewHoldItem(Body):
    """One line of a hold. `price`, per unit, is checked as in an order; a hold with a slot requires it."""

    product_id: ProductId
    quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)]
    price: Annotated[JsonMoney, Field(ge=0)] | None = None


class NewHold(Body):
    """What to hold, for whom and for how long."""

    model_config = shown_as({"userId": "u1", "items": [{"productId": "p1", "quantity": 1}], "ttlSeconds": 600})

    user_id: Name
    items: Annotated[list[NewHoldItem], Field(min_length=1, max_length=MAX_ITEMS)]
    slot: Annotated[str, Field(pattern=f"^(auto|{SLOT_ID_PATTERN})$")] | None = None
    ttl_seconds: Seconds

    @field_validator("items")
    @classmethod
    def _each_product_once(cls, items: list[NewHoldItem]) -> list[NewHoldItem]:
        products = [item.product_id for item in items]
        if len(set(products)) < len(products):
            twice = next(product for product in products if products.count(product) > 1)
            raise ValueError(f"product {twice} is listed twice; put its units into one line")
        return items

    @model_validator(mode="after")
    def _slot_has_prices(self) -> "NewHold":
        if self.slot is not None and any(item.price is None for item in self.items):
            raise wrong_field("items", "must have a price each if the hold has a slot: a slot counts in money")
        return self


class Extension(Body):
    """How long the hold lasts from now on."""

    model_config = shown_as({"ttlSeconds": 600})

    ttl_seconds: Seconds


def create_holds_router(holds: Holds, most_per_user: int) -> APIRouter:
    """Build the routes; no user may have more open holds than `most_per_user`."""
    router = new_router("holds", route_class=LeanRoute)

    @router.post(
        "/holds",
        status_code=HTTPStatus.CREATED,
        response_model=HoldView,
        responses=documented(HOLD_REFUSED, TOO_MANY_HOLDS, OTHER_PERSON) | {200: {"model": HoldView}},
    )
    @requires(Permission.HOLDS_WRITE)
    async def place_hold(body: NewHold, caller: Caller, idempotency_key: IdempotencyKey = None) -> Response:
        """Hold everything that is asked for, or nothing; 409 says what does not fit."""
        _check_person(body, caller)
        hold_id = uuid.uuid4().hex if idempotency_key is None else _id_of(caller.owner, idempotency_key)
        request = _request(hold_id, body, caller, keyed=idempotency_key is not None)
        if idempotency_key is not None and (earlier := await holds.find_own(hold_id, caller.owner)) is not None:
            return _answer(_same(earlier, request), HTTPStatus.OK, REPLAYED)
        placed = await holds.place_with_others(request)
        if placed is None:
            detail = f"User {body.user_id} has {most_per_user} holds: delete one, or wait until one expires"
            raise ProblemError(HTTPStatus.TOO_MANY_REQUESTS, detail, kind=TOO_MANY_HOLDS)
        return _answer(_same(placed, request), HTTPStatus.CREATED, located("holds", hold_id))

    @router.get("/holds/{hold_id}", response_model=HoldView)
    @requires(Permission.HOLDS_READ)
    async def get_hold(hold_id: HoldIdPath, caller: Caller) -> Response:
        """What is held, until when, and how the hold has ended."""
        return json_response(
            show_hold(_found(hold_id, await holds.find(hold_id, caller.visible(Permission.HOLDS_READ))))
        )

    @router.post("/holds/{hold_id}/extend", response_model=HoldView, responses=documented(HOLD_OVER))
    @requires(Permission.HOLDS_WRITE)
    async def extend_hold(hold_id: HoldIdPath, body: Extension, caller: Caller) -> Response:
        """Let the hold expire `ttlSeconds` from now; 409 if it has ended."""
        visible = caller.visible(Permission.HOLDS_WRITE)
        extended = await holds.extend(hold_id, body.ttl_seconds, visible)
        hold = _found(hold_id, await holds.find(hold_id, visible))
        if not extended:
            raise conflict(f"Hold {hold_id} is over: it is {show_hold(hold)['status']}", HOLD_OVER)
        return json_response(show_hold(hold))

    @router.delete("/holds/{hold_id}", status_code=HTTPStatus.NO_CONTENT, responses=documented(HOLD_OVER))
    @requires(Permission.HOLDS_WRITE)
    async def delete_hold(hold_id: HoldIdPath, caller: Caller) -> Response:
        """Return what is held; again, or after its expiry, to the same end. 409 if an order has taken it over."""
        hold = _found(hold_id, await holds.delete(hold_id, caller.visible(Permission.HOLDS_WRITE)))
        if hold.hold is not None and hold.hold.outcome is HoldOutcome.TAKEN:
            raise conflict(f"Hold {hold_id} belongs to order {hold.hold.order_id}: cancel the order", HOLD_OVER)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    return router


def _request(hold_id: str, body: NewHold, caller: Principal, *, keyed: bool) -> HoldRequest:
    lines = tuple(HoldLine(item.product_id, item.quantity, item.price) for item in body.items)
    fingerprint = hashlib.sha256(body.model_dump_json().encode()).hexdigest() if keyed else None
    return HoldRequest(hold_id, caller.owner, body.user_id, lines, body.slot, body.ttl_seconds, fingerprint)


def _same(hold: Reservation, request: HoldRequest) -> Reservation:
    """Return the hold; raise the 422 problem if another body made it under the same key."""
    if request.fingerprint is not None and hold.hold is not None and hold.hold.fingerprint != request.fingerprint:
        raise key_reused("Idempotency-Key was used before with another body; use a new key for a new hold")
    return hold


def _answer(hold: Reservation, status: HTTPStatus, headers: dict[str, str]) -> Response:
    if hold.hold is None or hold.status is Status.FAILED:
        detail = hold.failure_reason or "The request was interrupted, and nothing is held: use a new key"
        raise conflict(detail, HOLD_REFUSED)
    return json_response(show_hold(hold), status, headers)


def _found(hold_id: str, hold: Reservation | None) -> Reservation:
    if hold is None:
        raise not_found(f"Hold {hold_id}")
    return hold


def _id_of(owner: str | None, idempotency_key: str) -> str:
    return uuid.uuid5(_KEYS, f"{owner or ''}\0{idempotency_key}").hex


def _check_person(body: NewHold, caller: Principal) -> None:
    """Raise the 403 problem if the caller holds for one person, and this is another."""
    person = caller.visible(Permission.HOLDS_WRITE).get(PERSON_FIELD)
    if person is not None and person != body.user_id:
        detail = f"You hold for yourself only: userId is {body.user_id!r}, yours is {person!r}"
        raise ProblemError(HTTPStatus.FORBIDDEN, detail, kind=OTHER_PERSON)

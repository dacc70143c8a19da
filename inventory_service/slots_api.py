"""HTTP routes of delivery slots: rules, single slots, and assignments to orders of other systems."""

import re
from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator, Field
from pydantic.alias_generators import to_camel

from inventory_service.reservations import Reservations
from inventory_service.slot_assigner import (
    AssignmentRequest,
    NoRoom,
    NotOwn,
    OrderClosed,
    SlotAssigner,
)
from inventory_service.slots import SlotRules, Slots
from inventory_service.stock import Booking, Reservation, Status
from inventory_service.timetable import DAY_MINUTES, Rules, slot_id, start_of
from inventory_service.views import (
    AssignmentView,
    BookingPage,
    SlotPage,
    SlotRulesView,
    SlotView,
    show_assignment,
    show_in_slot,
    show_rules,
    show_slot,
)
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.clock import Clock, utc_now
from shared.contracts.base import Count, OrderId
from shared.contracts.orders import SLOT_ID_PATTERN
from shared.cursors import time_key, write_cursor
from shared.http import (
    Body,
    ProblemError,
    add_routes,
    conflict,
    invalid,
    json_response,
    new_router,
    not_found,
    shown_as,
)
from shared.lean_route import LeanRoute
from shared.money import JsonMoney
from shared.openapi import documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, after_time, page_response, read_cursor, wrong_cursor
from shared.problems import NOT_FOUND, SLOT_STATE, SLOTS_FULL
from shared.validation import Moment

MAX_HORIZON = 1000
MAX_LEAD_MINUTES = 7 * DAY_MINUTES

_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")


def _opening_time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError("must be a time of day from 00:00 to 23:59")
    return text


def _closing_time(text: str) -> str:
    if not _TIME.fullmatch(text) and text != "24:00":
        raise ValueError("must be a time of day from 00:00 to 24:00; one not after openTime is on the next day")
    return text


OpeningTime = Annotated[str, AfterValidator(_opening_time)]
ClosingTime = Annotated[str, AfterValidator(_closing_time)]


Minutes = Annotated[int, Field(ge=0, le=DAY_MINUTES)]
Capacity = Annotated[JsonMoney, Field(ge=0)]
SlotId = Annotated[str, Path(pattern=f"^{SLOT_ID_PATTERN}$", description="`slot:<unix seconds of the start>`")]
OrderIdPath = Annotated[OrderId, Path()]


class RulesBody(Body):
    """The rules of slots, times of day in UTC; what is left out stays as it is."""

    model_config = shown_as({"durationMinutes": 15, "capacity": 5000, "openTime": "08:00", "closeTime": "22:00"})

    duration_minutes: Annotated[int, Field(ge=1, le=DAY_MINUTES)] | None = None
    capacity: Capacity | None = None
    open_time: OpeningTime | None = None
    close_time: ClosingTime | None = None
    cutoff_minutes: Minutes | None = None
    lead_minutes: Annotated[int, Field(ge=0, le=MAX_LEAD_MINUTES)] | None = None
    horizon_slots: Annotated[int, Field(ge=1, le=MAX_HORIZON)] | None = None


class SlotBody(Body):
    """The changes to one slot; `capacity` null makes it follow the rules again."""

    model_config = shown_as({"capacity": 2500, "disabled": False})

    capacity: Capacity | None = None
    disabled: bool | None = None


class AssignBody(Body):
    """An order of another system that wants a slot."""

    order_id: OrderId
    order_price: Annotated[JsonMoney, Field(ge=0)]
    items_count: Annotated[Count, Field(ge=1)]


def create_slots_router(
    rules: SlotRules, slots: Slots, assigner: SlotAssigner, reservations: Reservations, clock: Clock = utc_now
) -> APIRouter:
    """Build the routes."""
    router = APIRouter()
    add_routes(router, _rules_routes(rules), _assignment_routes(assigner))
    add_routes(router, _slot_routes(slots), _booking_routes(reservations, clock))
    return router


def _rules_routes(rules: SlotRules) -> APIRouter:
    router = new_router("slots", route_class=LeanRoute)

    @router.get("/slots/config", response_model=SlotRulesView)
    @requires(Permission.CATALOGUE_READ)
    async def get_slot_rules() -> Response:
        """The rules by which there are slots."""
        return json_response(show_rules(await rules.read()))

    @router.put("/slots/config", response_model=SlotRulesView)
    @requires(Permission.CATALOGUE_WRITE)
    async def change_slot_rules(body: RulesBody) -> Response:
        """Change the rules: for every slot from now on, but not what is booked."""
        if nulls := [name for name in body.model_fields_set if getattr(body, name) is None]:
            raise invalid(*((to_camel(name), "must not be null: leave it out to keep its value") for name in nulls))
        return json_response(show_rules(await rules.change(lambda before: _changed(before, body))))

    return router


def _slot_routes(slots: Slots) -> APIRouter:
    router = new_router("slots", route_class=LeanRoute)

    @router.get("/slots", response_model=SlotPage)
    @requires(Permission.CATALOGUE_READ)
    async def list_slots(
        since: Annotated[Moment | None, Query(alias="from", description="Now unless given")] = None,
        until: Annotated[Moment | None, Query(alias="to", description="The horizon unless given")] = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
    ) -> Response:
        """Slots that start at `from` or later and before `to`; of those before now only the ones ever used."""
        if since is not None and until is not None and since > until:
            raise invalid(("to", f"{until.isoformat()} is before from, {since.isoformat()}"))
        after = _after(cursor) if cursor is not None else None
        page, last = await slots.page(since, until, after=after, limit=limit)
        following = write_cursor([slot_id(last)]) if last is not None else None
        return json_response({"items": [show_slot(slot) for slot in page], "nextCursor": following})

    @router.put("/slots/{slot_id}", response_model=SlotView)
    @requires(Permission.CATALOGUE_WRITE)
    async def change_slot(slot_id: SlotId, body: SlotBody) -> Response:
        """Change one slot; what is booked in it stays booked."""
        if not body.model_fields_set:
            raise invalid(("body", "must have capacity, disabled or both"))
        follow_rules = "capacity" in body.model_fields_set and body.capacity is None
        slot = await slots.adjust(slot_id, capacity=body.capacity, follow_rules=follow_rules, disabled=body.disabled)
        if slot is None:
            raise ProblemError(
                HTTPStatus.NOT_FOUND, f"There is no {slot_id}: it was never booked, and no slot will start then"
            )
        return json_response(show_slot(slot))

    return router


def _booking_routes(reservations: Reservations, clock: Clock) -> APIRouter:
    router = new_router("slots", route_class=LeanRoute)

    @router.get("/slots/{slot_id}/orders", response_model=BookingPage)
    @requires(Permission.ORDERS_READ)
    async def list_orders_in_slot(
        slot_id: SlotId,
        caller: Caller,
        visible: Annotated[bool, Query(description="Only orders whose work is visible by now")] = False,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
    ) -> Response:
        """Orders booked in a slot, by the time at which their work becomes visible: the list of the kitchen."""
        page = await reservations.in_slot(
            slot_id,
            caller.visible(Permission.ORDERS_READ),
            visible_until=clock() if visible else None,
            after=after_time(cursor),
            limit=limit,
        )
        return page_response(page, show_in_slot, key=_place_in_list, limit=limit)

    return router


def _place_in_list(reservation: Reservation) -> Sequence[Any]:
    if reservation.booking is None:
        raise ValueError(f"{reservation.order_id} has no slot")
    return time_key(reservation.booking.visible_at, reservation.order_id)


def _assignment_routes(assigner: SlotAssigner) -> APIRouter:
    router = new_router("slots", route_class=LeanRoute)

    @router.post(
        "/slots/assign", response_model=AssignmentView, responses=documented(SLOTS_FULL, SLOT_STATE, NOT_FOUND)
    )
    @requires(Permission.SLOTS_ASSIGN)
    async def assign_slot(body: AssignBody, caller: Caller) -> Response:
        """Give an order the earliest slot with room for its whole price; the same order gets the same one again."""
        own_only = not caller.reaches_all(Permission.SLOTS_ASSIGN)
        request = AssignmentRequest(body.order_id, body.order_price, body.items_count, caller.owner, own_only)
        answer = await assigner.assign_with_others(request)
        if isinstance(answer, Booking):
            return json_response(show_assignment(answer))
        raise _refusal(body.order_id, answer)

    @router.delete("/slots/assignments/{order_id}", status_code=HTTPStatus.NO_CONTENT, responses=documented(SLOT_STATE))
    @requires(Permission.SLOTS_ASSIGN)
    async def release_slot(order_id: OrderIdPath, caller: Caller) -> Response:
        """Give an order's slot back; again if it was given back already, to the same end."""
        if not caller.reaches_all(Permission.SLOTS_ASSIGN):
            owners = await assigner.owners([order_id])
            if owners.get(order_id) != caller.owner:
                raise not_found(f"An assignment of order {order_id}")
        if await assigner.release_with_others(order_id) is None:
            own = await assigner.own_reservation(order_id)
            if own is not None and own.booking is not None and own.status is Status.RESERVED:
                raise conflict(
                    f"Order {order_id} has {own.booking.slot_id} by its reservation: cancel the order", SLOT_STATE
                )
            raise not_found(f"An assignment of order {order_id}")
        return Response(status_code=HTTPStatus.NO_CONTENT)

    return router


def _refusal(order_id: str, answer: NoRoom | OrderClosed | NotOwn) -> ProblemError:
    if isinstance(answer, NotOwn):
        return not_found(f"Order {order_id}")
    if isinstance(answer, OrderClosed):
        return conflict(f"Order {order_id} is over: its reservation is {answer.status}", SLOT_STATE)
    return ProblemError(HTTPStatus.TOO_MANY_REQUESTS, answer.reason, kind=SLOTS_FULL)


def _changed(rules: Rules, body: RulesBody) -> Rules:
    """Apply the body to the rules; raise the 422 problem if no slot would be left."""
    try:
        return Rules(
            duration=_or(body.duration_minutes, rules.duration),
            capacity=_or(body.capacity, rules.capacity),
            opens=_or(_minute(body.open_time), rules.opens),
            closes=_or(_minute(body.close_time), rules.closes),
            cutoff=_or(body.cutoff_minutes, rules.cutoff),
            lead=_or(body.lead_minutes, rules.lead),
            horizon=_or(body.horizon_slots, rules.horizon),
        )
    except ValueError as error:
        raise invalid(("durationMinutes", str(error))) from None


def _after(cursor: str) -> datetime:
    """Read the start of the previous page's last slot; raise the 422 problem if the cursor has none."""
    start = start_of(read_cursor(cursor, (str,))[0])
    if start is None:
        raise wrong_cursor()
    return start


def _or(given: int | None, present: int) -> int:
    return present if given is None else given


def _minute(text: str | None) -> int | None:
    return None if text is None else int(text[:2]) * 60 + int(text[3:])

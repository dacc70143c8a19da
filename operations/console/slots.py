"""The pages of delivery slots: the calendar, a slot's orders for the kitchen, and the form that changes a slot."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Form, Path, Query, Request, Response

from inventory_service.timetable import Rules, start_of
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.operator_actions import ActionFailed, OperatorAction, ServiceCall, execute
from operations.console.pages import Pages
from operations.console.slot_calendar import (
    CalendarSlot,
    Wanted,
    body_of,
    calendar_of,
    changes_of,
    days_of,
    monday_of,
    offered_from_to,
    rules_of,
    slot_of,
)
from operations.console.slot_calendar import money as slot_money
from operations.console.upstream import Unavailable, path
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.clock import to_rfc3339
from shared.contracts.orders import SLOT_ID_PATTERN
from shared.http import ProblemError, invalid, not_found
from shared.money import to_json_number, to_minor_units

ORDERS = 100

MOST_OF_A_DAY = 1500
"""More slots than a day can have: the shortest takes a minute, and none overlap."""

CALENDAR_ENDS = datetime.max.replace(microsecond=0, tzinfo=UTC)
"""No slot starts in the last second of the calendar: it would have no end."""

SLOT_CHANGE = "slot.change"
SlotId = Annotated[str, Path(pattern=f"^{SLOT_ID_PATTERN}$")]


class SlotOrder(NamedTuple):
    """An order in a slot; `late` if the slot has begun and the goods have not left."""

    order_id: str
    items: Sequence[tuple[str, int]]
    items_count: int
    visible_at: datetime
    shipped: bool
    visible: bool
    late: bool


class FoundSlot(NamedTuple):
    """A slot, as the inventory service shows it too, and the rules, None if they are not known."""

    slot: CalendarSlot
    item: Mapping[str, Any]
    rules: Rules | None

    @property
    def closed(self) -> bool:
        """Whether an operator has closed it, also if it is past."""
        return bool(self.item.get("disabled"))


def create_slots(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes about slots."""
    router = pages.router()
    _add_calendar(router, dependencies, pages)
    _add_slot(router, dependencies, pages)
    _add_change(router, dependencies, pages)
    return router


def _add_calendar(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    @router.get("/slots")
    @requires(Permission.CATALOGUE_READ)
    async def calendar(request: Request, week: Annotated[str, Query(max_length=10)] = "") -> Response:
        """Show the week of a day, by default the present one."""
        now = dependencies.clock()
        monday = monday_of(_day(week) if week else now.date())
        found = await _read_week(dependencies, monday)
        return pages.show(
            request,
            "slots.html",
            found=found if isinstance(found, Unavailable) else calendar_of(monday, found),
            monday=monday,
            sunday=monday + timedelta(days=6),
            before=monday_of(monday - timedelta(days=1)),
            after=monday_of(monday + timedelta(days=7)),
            this_week=monday_of(now.date()),
            today=now.date(),
            slot_money=slot_money,
        )


def _add_slot(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    @router.get("/slots/{slot_id}")
    @requires(Permission.ORDERS_READ)
    async def slot(
        request: Request, slot_id: SlotId, cursor: Annotated[str | None, Query(max_length=1000)] = None
    ) -> Response:
        parameters: dict[str, str | int] = {"limit": ORDERS} | ({"cursor": cursor} if cursor else {})
        found, about = await asyncio.gather(
            dependencies.services.get("inventory", path("slots", slot_id, "orders"), **parameters),
            find_slot(dependencies, slot_id),
        )
        start = start_of(slot_id)
        return pages.show(
            request,
            "slot.html",
            slot_id=slot_id,
            start=start,
            about=about,
            found=found
            if isinstance(found, Unavailable)
            else slot_orders(found.body.get("items", ()), dependencies.clock()),
            more=None if isinstance(found, Unavailable) else found.body.get("nextCursor"),
            cursor=cursor,
            slot_money=slot_money,
        )


def _add_change(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    def show(request: Request, found: FoundSlot, *, error: ActionFailed | None = None, **filled: Any) -> Response:
        status = error.status if error else HTTPStatus.OK
        return pages.show(
            request, "slot_change.html", status, found=found, error=error, filled=filled, slot_money=slot_money
        )

    @router.get("/slots/{slot_id}/change")
    @requires(Permission.CATALOGUE_WRITE)
    async def ask(request: Request, slot_id: SlotId) -> Response:
        """Ask for capacity and state, and for a reason."""
        return show(request, await _slot(dependencies, slot_id))

    @router.post("/slots/{slot_id}/change")
    @requires(Permission.CATALOGUE_WRITE)
    async def change(
        request: Request,
        slot_id: SlotId,
        why: Annotated[Why, Form()],
        capacity: Annotated[str, Form(max_length=20)] = "",
        closed: Annotated[bool, Form()] = False,
        follow: Annotated[bool, Form()] = False,
        confirmed: Annotated[str, Form(max_length=300)] = "",
    ) -> Response:
        """Show what changes; once that is confirmed, and still so, change it and log it."""
        found = await _slot(dependencies, slot_id)
        filled: dict[str, Any] = {"capacity": capacity, "closed": closed, "follow": follow, "why": why, "given": True}
        try:
            wanted = Wanted(None if follow else _amount(capacity), closed)
        except ValueError as error:
            return show(request, found, error=ActionFailed("Not done", str(error), 422), **filled)
        changes = changes_of(found.slot, found.closed, wanted, found.rules)
        if not changes:
            own = "; untick the capacity of the rules to give it one of its own" if follow else ""
            same = ActionFailed("Not done", f"the slot is like this already{own}", 422)
            return show(request, found, error=same, **filled)
        summary = "; ".join(f"{each.path} {each.before} to {each.after}" for each in changes)
        if confirmed != summary:
            return show(request, found, changes=changes, summary=summary, changed=bool(confirmed), **filled)
        action = OperatorAction(actor(request), why, SLOT_CHANGE, slot_id)
        failed = await change_slot(dependencies, action, body_of(changes, wanted), summary)
        if failed is None:
            return redirect(path("slots", slot_id))
        return show(request, found, error=failed, changes=changes, summary=summary, **filled)


async def change_slot(
    dependencies: ConsoleDependencies, action: OperatorAction, body: Mapping[str, Any], done: str
) -> ActionFailed | None:
    """Change the slot that the action names, and log it as `done`; return None if that was done."""
    return await execute(
        dependencies, action, ServiceCall("PUT", "inventory", path("slots", action.subject), body), done=done
    )


async def find_slot(dependencies: ConsoleDependencies, slot_id: str) -> FoundSlot | Unavailable | None:
    """Return a slot; None if there is none, or if it has passed without ever being booked."""
    start = start_of(slot_id)
    if start is None or start >= CALENDAR_ENDS:
        return None
    # There is no route for one slot: it is the only one that starts within this second.
    period = {"from": to_rfc3339(start), "to": to_rfc3339(start + timedelta(seconds=1))}
    listed, rules = await asyncio.gather(
        dependencies.services.get("inventory", "/slots", limit=1, **period), _read_rules(dependencies)
    )
    if isinstance(listed, Unavailable):
        return listed
    items = [item for item in listed.body.get("items", ()) if item.get("slotId") == slot_id]
    if not items:
        return None
    now = dependencies.clock()
    return FoundSlot(slot_of(items[0], now, offered_from_to(rules, now)), items[0], rules)


async def _slot(dependencies: ConsoleDependencies, slot_id: str) -> FoundSlot:
    found = await find_slot(dependencies, slot_id)
    if isinstance(found, Unavailable):
        raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, found.why)
    if found is None:
        raise not_found(f"The delivery {slot_id}")
    return found


async def _read_week(dependencies: ConsoleDependencies, monday: date) -> list[CalendarSlot] | Unavailable:
    begins = days_of(monday)
    days, rules = await asyncio.gather(
        asyncio.gather(
            *(
                dependencies.services.get_list(
                    "inventory", "/slots", MOST_OF_A_DAY, **{"from": to_rfc3339(begin), "to": to_rfc3339(end)}
                )
                for begin, end in pairwise(begins)
            )
        ),
        _read_rules(dependencies),
    )
    now, slots = dependencies.clock(), []
    offered = offered_from_to(rules, now)
    for day in days:
        if isinstance(day, Unavailable):
            return day
        slots += [slot_of(item, now, offered) for item in day]
    return slots


async def _read_rules(dependencies: ConsoleDependencies) -> Rules | None:
    found = await dependencies.services.get("inventory", "/slots/config")
    return None if isinstance(found, Unavailable) else rules_of(found.body)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise invalid(("week", f"is {text!r}, must be a day such as 2026-01-31")) from None


def _amount(text: str) -> float:
    try:
        minor = to_minor_units(Decimal(text.strip().replace(",", "")))
    except (ArithmeticError, ValueError):
        minor = -1
    if minor < 0:
        raise ValueError("capacity: must be a number such as 500 or 95000.25, 0 or more")
    return float(to_json_number(minor))


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

"""The pages about orders: the search, one order with its saga, and what an operator may do to it."""

from collections.abc import Mapping
from typing import Annotated, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from operations.actions import list_actions
from operations.console.dependencies import ConsoleDependencies
from operations.console.figures import STATUSES
from operations.console.forms import OptionalName, Why, named, remember
from operations.console.operator_actions import OperatorAction, execute
from operations.console.order_search import Search, find_orders
from operations.console.pages import Pages
from operations.console.timeline import draw
from operations.console.upstream import Missing, attempt, path
from operations.timeline.records import read_records
from operations.timeline.timeline import LANES, TimelineRecords, build_timeline, open_steps
from shared.database import Document
from shared.http import conflict, not_found

Text = Annotated[str, Query(max_length=300)]


class Act(NamedTuple):
    """Something that the order service does for an operator; `warning` says what cannot be taken back."""

    name: str
    title: str
    statuses: tuple[str, ...]
    warning: str


ACTS: Mapping[str, Act] = {
    act.name: act
    for act in (
        Act(
            "cancel",
            "Cancel",
            ("PENDING", "PROVISIONING"),
            "Stock and money go back. A server that is being bought is given up when its running step ends. The reason "
            "is kept as the order's reason, which its customer may see.",
        ),
        Act("retry", "Retry", ("FAILED",), "The server is asked for once more; stock and money stay held meanwhile."),
        Act("refund", "Refund", ("FAILED",), "Stock and money go back now. The order cannot be retried afterwards."),
    )
}
"""What may be done to an order, by the name that the order service's path has for it."""


def create_orders(desk: ConsoleDependencies, pages: Pages) -> APIRouter:
    """The routes about orders."""
    router = pages.router()
    _add_search(router, desk, pages)
    _add_order(router, desk, pages)
    _add_acts(router, desk, pages)
    return router


def _add_search(router: APIRouter, desk: ConsoleDependencies, pages: Pages) -> None:
    @router.get("/orders")
    async def search(
        request: Request,
        order_id: Annotated[str, Query(alias="id", max_length=200)] = "",
        user: Text = "",
        status: Text = "",
        reason: Text = "",
        unsettled: Annotated[str, Query(alias="open", max_length=1)] = "",
        cursor: Annotated[str | None, Query(max_length=1000)] = None,
    ) -> Response:
        asked = Search(order_id.strip(), user.strip(), status.strip(), reason.strip(), bool(unsettled))
        found = await attempt(find_orders(desk.orders, asked, cursor), "MongoDB")
        if not isinstance(found, Missing) and asked.order_id in [order["_id"] for order in found.items]:
            return RedirectResponse(path("orders", asked.order_id), 303)
        more = None
        if not isinstance(found, Missing) and found.next_cursor:
            more = "/orders?" + urlencode({**asked.parameters, "cursor": found.next_cursor})
        newest = "/orders?" + urlencode(asked.parameters) if cursor else None
        return pages.show(
            request, "orders.html", search=asked, found=found, more=more, newest=newest, statuses=STATUSES
        )


def _add_order(router: APIRouter, desk: ConsoleDependencies, pages: Pages) -> None:
    async def show(request: Request, order_id: str, template: str) -> Response:
        records = await _records(desk, order_id)
        steps = build_timeline(records)
        actions = await list_actions(desk.operations, subject=order_id, limit=20)
        return pages.show(
            request,
            template,
            records=records,
            order=records.order or {},
            rows=draw(steps),
            waits=open_steps(steps),
            lanes=LANES,
            acts=_possible(records.order),
            actions=actions.items,
        )

    @router.get("/orders/{order_id}")
    async def order(request: Request, order_id: str) -> Response:
        return await show(request, order_id, "order.html")

    @router.get("/orders/{order_id}/timeline")
    async def live(request: Request, order_id: str) -> Response:
        return await show(request, order_id, "order_live.html")


def _add_acts(router: APIRouter, desk: ConsoleDependencies, pages: Pages) -> None:
    @router.get("/orders/{order_id}/do/{name}")
    async def ask(request: Request, order_id: str, name: str) -> Response:
        """Have the operator confirm, with a reason."""
        act = _act(name)
        records = await _records(desk, order_id)
        if act not in _possible(records.order):
            raise conflict(f"An order that is {(records.order or {}).get('status')} cannot be {_done(act)}")
        return pages.show(request, "order_act.html", act=act, order=records.order, why="", error=None)

    @router.post("/orders/{order_id}/do/{name}")
    async def carry_out(
        request: Request,
        order_id: str,
        name: str,
        why: Annotated[Why, Form()],
        by: Annotated[OptionalName, Form()] = "",
    ) -> Response:
        """Ask the order service, write down that and what it answered, and show the order again."""
        act = _act(name)
        operator = named(request, desk, by)
        body = {"reason": why} if name == "cancel" else None
        deed = OperatorAction(operator, why, f"order.{name}", order_id)
        trouble = await execute(desk, deed, "POST", "order", path("orders", order_id, name), body=body, done="accepted")
        if trouble is None:
            return remember(request, desk, RedirectResponse(path("orders", order_id), 303), operator)
        records = await _records(desk, order_id)
        order = records.order or {"_id": order_id}
        shown = pages.show(request, "order_act.html", trouble.status, act=act, order=order, why=why, error=trouble)
        return remember(request, desk, shown, operator)


async def _records(desk: ConsoleDependencies, order_id: str) -> TimelineRecords:
    records = await read_records(desk.client, desk.prefix, order_id)
    if not records.exist:
        raise not_found(f"Order {order_id}")
    return records


def _act(name: str) -> Act:
    if name not in ACTS:
        raise not_found(f"The action {name}")
    return ACTS[name]


def _done(act: Act) -> str:
    return {"cancel": "cancelled", "retry": "retried", "refund": "refunded"}[act.name]


def _possible(order: Document | None) -> list[Act]:
    """What may be done to the order as it is; the order service decides again when it is asked."""
    if order is None or order.get("compensating") or order.get("cancelRequested"):
        return []
    return [act for act in ACTS.values() if order.get("status") in act.statuses]

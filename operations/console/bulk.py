"""The pages of actions on many orders: the confirmation with orders, customers and amounts, and the result of each."""

from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Form, Query, Request, Response

from operations.console.bulk_executor import DEFAULT_RATE
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, redirect, signed_in
from operations.console.pages import Pages
from operations.console.upstream import path
from operations.order_actions.actions import BULK_ACTIONS, ORDER_ACTIONS, OrderAction
from operations.order_actions.bulk import BY_CONSOLE, RUNNING, BulkActions
from operations.order_actions.search import OrderSearch, query_of, search_of, total_orders, visible_to
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.database import Document
from shared.http import conflict, not_found

SHOWN = 20
"""Orders that a confirmation names."""
SHOWN_RESULTS = 500
"""Orders whose results are on a page."""

Ids = Annotated[tuple[str, ...], Query(alias="order", max_length=100)]
Selected = Annotated[str, Form(max_length=20_000)]


def create_bulk(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of actions on many orders."""
    router = pages.router()
    for action in BULK_ACTIONS:
        _add_action(router, dependencies, pages, action)
    _add_results(router, dependencies, pages)
    return router


def _add_action(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages, action: OrderAction) -> None:
    address = f"/bulk-actions/{action.name}"

    async def show(request: Request, search: OrderSearch, ids: tuple[str, ...]) -> Response:
        query = {"$and": [query_of(search), action.query]}
        totals = await total_orders(dependencies.orders, query)
        matching = await dependencies.orders.count_documents(query_of(search))
        if not totals.orders:
            raise conflict(f"None of the {matching:,} selected orders can be {action.participle}")
        orders = await dependencies.orders.find(query, _FIELDS).sort("createdAt", -1).limit(SHOWN).to_list(None)
        return pages.show(
            request,
            "bulk_action.html",
            action=action,
            totals=totals,
            left_out=matching - totals.orders,
            orders=orders,
            ids=" ".join(ids),
            search=urlencode(search.parameters),
        )

    @router.get(address)
    @requires(action.permission)
    async def ask(request: Request, caller: Caller, ids: Ids = (), matching: str = "") -> Response:
        """Show what the action is about, and ask for a reason."""
        if not ids and not matching:
            raise conflict("No order is selected: tick some, or everything that matches")
        given = dict(request.query_params)
        search = visible_to(search_of(given), caller) if matching else OrderSearch(ids=ids)
        return await show(request, search, () if matching else ids)

    @router.post(address)
    @requires(action.permission)
    async def act(
        request: Request, caller: Caller, why: Annotated[Why, Form()], ids: Selected = "", search: Selected = ""
    ) -> Response:
        """Record the action, which this or another process then takes, and show its progress."""
        named = tuple(ids.split())
        wanted = OrderSearch(ids=named) if named else visible_to(search_of(dict(parse_qsl(search))), caller)
        bulk = await BulkActions(dependencies.operations, dependencies.clock).start(
            _selected(dependencies, {"$and": [query_of(wanted), action.query]}),
            person=signed_in(request),
            why=why,
            action=action.name,
            selection={"ids": list(named), "search": search},
            rate=DEFAULT_RATE,
            via=BY_CONSOLE,
        )
        return redirect(path("bulk-actions", "results", bulk["_id"]))


def _add_results(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    async def show(request: Request, bulk_id: str, template: str) -> Response:
        records = BulkActions(dependencies.operations)
        bulk = await records.find(bulk_id)
        if bulk is None:
            raise not_found(f"The action {bulk_id} on many orders")
        return pages.show(
            request,
            template,
            bulk=bulk,
            action=ORDER_ACTIONS[bulk["action"]],
            running=bulk["status"] == RUNNING,
            outcomes=await records.outcomes(bulk_id),
            results=await records.results(bulk_id, limit=SHOWN_RESULTS),
        )

    @router.get("/bulk-actions/results/{bulk_id}")
    @requires(Permission.ORDERS_READ)
    async def results(request: Request, bulk_id: str) -> Response:
        return await show(request, bulk_id, "bulk_results.html")

    @router.get("/bulk-actions/results/{bulk_id}/progress")
    @requires(Permission.ORDERS_READ)
    async def progress(request: Request, bulk_id: str) -> Response:
        return await show(request, bulk_id, "bulk_results_live.html")


_FIELDS = {"userId": True, "totalAmount": True, "currency": True, "status": True, "failureReason": True}


async def _selected(dependencies: ConsoleDependencies, query: Document) -> AsyncIterator[Document]:
    async for order in dependencies.orders.find(query, _FIELDS).sort([("createdAt", 1), ("_id", 1)]):
        yield order

"""The pages of actions on many orders: the confirmation with orders, customers and amounts, and the result of each."""

import asyncio
from http import HTTPStatus
from typing import Annotated
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Form, Query, Request, Response

from operations.console.bulk_executor import DEFAULT_RATE
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect, signed_in
from operations.console.lists import page_links
from operations.console.pages import Pages
from operations.console.upstream import path
from operations.order_actions.actions import BULK_ACTIONS, ORDER_ACTIONS, OrderAction
from operations.order_actions.bulk import BY_CONSOLE, RUNNING, STARTING, BulkActions, new_id
from operations.order_actions.search import (
    OrderSearch,
    digest_of,
    query_for,
    query_of,
    search_of,
    select_orders,
    totals_of,
    visible_to,
)
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.database import Document
from shared.http import conflict, not_found

LIST = "/bulk-actions"
PAGE = 50
"""Actions on a page of the list."""

SHOWN = 20
"""Orders that a confirmation names."""
SHOWN_RESULTS = 500
"""Orders whose results are on a page."""

Ids = Annotated[tuple[str, ...], Query(alias="order", max_length=100)]
Selected = Annotated[str, Form(max_length=20_000)]
After = Annotated[int, Query(ge=-1, le=10**9)]
"""The position of the last order of the page before."""
Token = Annotated[str, Form(pattern="^[0-9a-f]{16}$")]


def create_bulk(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of actions on many orders."""
    router = pages.router()
    for action in BULK_ACTIONS:
        _add_action(router, dependencies, pages, action)
    _add_list(router, dependencies, pages)
    _add_results(router, dependencies, pages)
    return router


def _add_action(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages, action: OrderAction) -> None:
    address = f"/bulk-actions/{action.name}"

    async def select(search: OrderSearch) -> list[Document]:
        """Return the orders of the search for which the action is possible. Raises the 409 problem if none is."""
        selected = await select_orders(dependencies.orders, query_for(action, search))
        if not selected:
            matching = await dependencies.orders.count_documents(query_of(search))
            raise conflict(f"None of the {matching:,} selected orders can be {action.participle}")
        return selected

    async def show(
        request: Request, search: OrderSearch, selected: list[Document], *, why: str = "", changed: bool = False
    ) -> Response:
        totals = totals_of(selected)
        matching = await dependencies.orders.count_documents(query_of(search))
        found = dependencies.orders.find(query_for(action, search), _FIELDS)
        orders = await found.sort("createdAt", -1).limit(SHOWN).to_list(None)
        return pages.show(
            request,
            "bulk_action.html",
            HTTPStatus.CONFLICT if changed else HTTPStatus.OK,
            action=action,
            why=why,
            changed=changed,
            token=new_id(),
            confirmed=digest_of(selected),
            totals=totals,
            left_out=matching - totals.orders,
            orders=orders,
            ids=" ".join(search.ids),
            search=urlencode(search.parameters),
        )

    @router.get(address)
    @requires(action.permission)
    async def ask(request: Request, caller: Caller, ids: Ids = (), matching: str = "") -> Response:
        """Show what the action is about, and ask for a reason."""
        search = _search(ids, matching, dict(request.query_params), caller)
        return await show(request, search, await select(search))

    @router.post(address)
    @requires(action.permission)
    async def act(
        request: Request,
        caller: Caller,
        why: Annotated[Why, Form()],
        token: Token,
        confirmed: Annotated[str, Form(max_length=64)],
        ids: Selected = "",
        matching: Annotated[str, Form()] = "",
        search: Selected = "",
    ) -> Response:
        """Record the action, which this or another process then takes, and show its progress.

        The token of the form is the id of the action, so a form that is sent twice starts one. If other orders than
        the form said are selected by now, ask again.
        """
        records = BulkActions(dependencies.operations, dependencies.clock)
        wanted = _search(tuple(ids.split()), matching, dict(parse_qsl(search)), caller)
        if await records.find(token) is None:
            selected = await select(wanted)
            if digest_of(selected) != confirmed:
                return await show(request, wanted, selected, why=why, changed=True)
            await records.start(
                selected,
                person=signed_in(request),
                why=why,
                action=action.name,
                selection={"ids": list(wanted.ids), "search": search},
                rate=DEFAULT_RATE,
                via=BY_CONSOLE,
                bulk_id=token,
            )
        return redirect(path("bulk-actions", "results", token))

    @router.post(address + "/stop/{bulk_id}")
    @requires(action.permission)
    async def stop(request: Request, bulk_id: str, why: Annotated[Why, Form()]) -> Response:
        """Stop the action before its next order."""
        records = BulkActions(dependencies.operations, dependencies.clock)
        bulk = await records.find(bulk_id)
        if bulk is None or bulk["action"] != action.name:
            raise not_found(f"The action {bulk_id} on many orders")
        await records.stop(bulk, by=actor(request), why=why)
        return redirect(path("bulk-actions", "results", bulk_id))


def _add_list(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    @router.get(LIST)
    @requires(Permission.ORDERS_READ)
    async def past(request: Request, page: Annotated[int, Query(ge=1, le=10_000)] = 1) -> Response:
        """List the actions on many orders, the newest first, with what became of their orders."""
        records = BulkActions(dependencies.operations)
        actions, total = await asyncio.gather(records.newest(PAGE, (page - 1) * PAGE), records.count())
        outcomes = await records.outcomes_of([bulk["_id"] for bulk in actions])
        return pages.show(
            request,
            "bulk_actions.html",
            actions=[(bulk, outcomes[bulk["_id"]]) for bulk in actions],
            links=page_links(LIST, {}, page=page, size=PAGE, shown=len(actions), total=total),
        )


def _add_results(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    async def show(request: Request, bulk_id: str, template: str, after: int) -> Response:
        records = BulkActions(dependencies.operations)
        bulk = await records.find(bulk_id)
        if bulk is None:
            raise not_found(f"The action {bulk_id} on many orders")
        return pages.show(
            request,
            template,
            bulk=bulk,
            action=ORDER_ACTIONS[bulk["action"]],
            running=bulk["status"] in (STARTING, RUNNING),
            outcomes=await records.outcomes(bulk_id),
            results=await records.results(bulk_id, after=after, limit=SHOWN_RESULTS),
            after=after,
        )

    @router.get("/bulk-actions/results/{bulk_id}")
    @requires(Permission.ORDERS_READ)
    async def results(request: Request, bulk_id: str, after: After = -1) -> Response:
        return await show(request, bulk_id, "bulk_results.html", after)

    @router.get("/bulk-actions/results/{bulk_id}/progress")
    @requires(Permission.ORDERS_READ)
    async def progress(request: Request, bulk_id: str, after: After = -1) -> Response:
        return await show(request, bulk_id, "bulk_results_live.html", after)


_FIELDS = {"userId": True, "totalAmount": True, "currency": True, "status": True, "failureReason": True}


def _search(ids: tuple[str, ...], matching: str, parameters: dict[str, str], caller: Principal) -> OrderSearch:
    """Return what is selected: everything that matches, or some orders. Raises the 409 problem if nothing is."""
    if matching:
        return visible_to(search_of(parameters), caller)
    if not ids:
        raise conflict("No order is selected: tick some, or everything that matches")
    return OrderSearch(ids=ids)

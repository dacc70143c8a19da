"""The routes about actions on many orders."""

from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic import Field

from operations.api.routes import ACCEPTED, Reason, Reasoned, at, id_of, read_skip, staff_router, write_skip
from operations.console.bulk_executor import DEFAULT_RATE
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor, signed_in
from operations.order_actions.actions import BULK_ACTIONS, ORDER_ACTIONS, OrderAction
from operations.order_actions.bulk import BY_CONSOLE, BulkActions
from operations.order_actions.order_json import bulk_as_json, item_as_json, totals_as_json
from operations.order_actions.search import OrderSearch, digest_of, query_for, query_of, select_orders, totals_of
from order_service.order import Status
from shared.access.middleware import caller_of, requires
from shared.access.permissions import Permission
from shared.contracts.base import OrderId
from shared.cursors import write_cursor
from shared.database import Document
from shared.http import (
    Body,
    View,
    conflict,
    invalid,
    json_response,
    key_reused,
    not_found,
    require_permission,
    shown_as,
)
from shared.openapi import documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, read_cursor
from shared.validation import Moment

MOST_IDS = 1000

BulkKey = Annotated[
    str | None, Header(min_length=1, max_length=255, description="The same key answers the first action again")
]
Text = Annotated[str, Field(min_length=1, max_length=300)]
"""A criterion; an empty one, as from a variable that is not set, would match every order."""


class Matching(Body):
    """Which orders: those that match all that is given, or every order with `all`."""

    all: bool = False

    status: Annotated[list[Annotated[Status, Field(strict=False)]], Field(max_length=len(Status))] = Field(
        default_factory=list
    )
    reason: Annotated[Text | None, Field(description="the failure reason, or how it begins")] = None
    code: Text | None = None
    user_id: Text | None = None
    owner_id: Text | None = None
    product_id: Text | None = None
    unsettled: bool = False
    stuck: bool = Field(False, description="only orders that have waited for an answer for 5 minutes")
    since: Annotated[Moment, Field(strict=False)] | None = None
    until: Annotated[Moment, Field(strict=False)] | None = None


class NewBulkAction(Body):
    """The orders to act on, by their ids or by what they match; of those, the ones that the action is possible for."""

    model_config = shown_as({"matching": {"status": ["FAILED"], "productId": "vps1"}, "reason": "The provider is back"})

    order_ids: Annotated[list[OrderId], Field(min_length=1, max_length=MOST_IDS)] | None = None
    matching: Matching | None = None
    reason: Reason
    rate: Annotated[float, Field(ge=0.1, le=1000, description="orders per second")] = DEFAULT_RATE
    dry_run: bool = Field(False, description="only answer which orders it would be")
    expected_selection: Annotated[
        str | None, Field(max_length=64, description="`selection` of a dry run: do nothing if it is about others now")
    ] = None


class Selected(View):
    """The orders that an action is possible for; amounts by currency."""

    orders: int
    customers: int
    amounts: dict[str, float]
    left_out: int = Field(description="orders that match, and that the action is not possible for")
    selection: str = Field(description="a digest of the ids, for `expectedSelection`")
    action_id: str | None = Field(description="with an Idempotency-Key: the id of the action that it starts")


class BulkActionView(View):
    """An action on many orders, with the number of orders of each outcome."""

    id: str
    action: str
    at: datetime
    by: str
    why: str
    status: str = Field(description="starting, running, ended or stopped")
    total: int
    done: int
    waiting: int = Field(description="for a second person")
    failed: int
    open: int = Field(description="without a result yet")


class BulkActionPage(View):
    """A page of actions on many orders, and the number on all pages."""

    items: list[BulkActionView]
    next_cursor: str | None
    total: int


class ResultView(View):
    """An order of the action, and its result: null while there is none."""

    order_id: str
    user_id: str | None
    total_amount: float | None
    currency: str | None
    outcome: str | None
    detail: str | None


class ResultPage(View):
    """A page of results, in the order in which the orders were chosen."""

    items: list[ResultView]
    next_cursor: str | None


def create_bulk_actions(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the routes."""
    router = staff_router("bulk actions")
    for action in BULK_ACTIONS:
        _add_action(router, dependencies, action)
    _add_results(router, dependencies)
    return router


def _add_action(router: APIRouter, dependencies: ConsoleDependencies, action: OrderAction) -> None:
    @requires(action.permission)
    async def act(request: Request, body: NewBulkAction, idempotency_key: BulkKey = None) -> Response:
        records, search = BulkActions(dependencies.operations, dependencies.clock), _search(body, dependencies)
        bulk_id = id_of(request, idempotency_key)
        if body.dry_run:
            selected = await select_orders(dependencies.orders, query_for(action, search))
            known = {"actionId": None if idempotency_key is None else bulk_id}
            return json_response(await _selected(dependencies, search, selected) | known)
        selection = _selection(body)
        bulk = await records.find(bulk_id)
        if bulk is not None and (bulk["action"], bulk["selection"]) != (action.name, selection):
            raise key_reused("The key belongs to another action on many orders")
        # While the first request with the key records the orders, this one must not choose others.
        if bulk is None or records.is_abandoned(bulk):
            selected = await select_orders(dependencies.orders, query_for(action, search))
            _check_expected(action, body, selected)
            bulk = await records.start(
                selected,
                person=signed_in(request),
                why=body.reason,
                action=action.name,
                selection=selection,
                rate=body.rate,
                via=BY_CONSOLE,
                bulk_id=bulk_id,
            )
        shown = await _shown(records, bulk)
        return json_response(shown, HTTPStatus.ACCEPTED, at("bulk-actions", bulk["_id"]))

    act.__doc__ = (
        f"{action.title} many orders, one after another, in the background. {action.warning} "
        "With `dryRun`, answer with 200 how many orders, customers and how much money it is about, and do nothing."
    )
    router.add_api_route(
        f"/bulk-actions/{action.name}",
        act,
        name=f"{action.name}_orders",
        methods=["POST"],
        status_code=202,
        response_model=BulkActionView,
        responses=ACCEPTED | {200: {"model": Selected, "description": "With `dryRun`"}} | documented(409),
    )


def _add_results(router: APIRouter, dependencies: ConsoleDependencies) -> None:
    records = BulkActions(dependencies.operations, dependencies.clock)

    async def found(bulk_id: str) -> Document:
        bulk = await records.find(bulk_id)
        if bulk is None:
            raise not_found(f"The action {bulk_id} on many orders")
        return bulk

    @router.get("/bulk-actions", response_model=BulkActionPage)
    @requires(Permission.ORDERS_READ)
    async def list_bulk_actions(limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Actions on many orders, the newest first."""
        skip = read_skip(cursor)
        actions, total = await records.newest(limit, skip), await records.count()
        outcomes = await records.outcomes_of([bulk["_id"] for bulk in actions])
        items = [bulk_as_json(bulk, outcomes[bulk["_id"]]) for bulk in actions]
        following = write_skip(skip + len(actions), total)
        return json_response({"items": items, "nextCursor": following, "total": total})

    @router.get("/bulk-actions/{bulk_id}", response_model=BulkActionView)
    @requires(Permission.ORDERS_READ)
    async def get_bulk_action(bulk_id: str) -> Response:
        """An action on many orders, and how many of them have which outcome."""
        return json_response(await _shown(records, await found(bulk_id)))

    @router.get("/bulk-actions/{bulk_id}/results", response_model=ResultPage)
    @requires(Permission.ORDERS_READ)
    async def list_results(bulk_id: str, limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """The result of each order of an action."""
        await found(bulk_id)
        after = -1 if cursor is None else read_cursor(cursor, (int,))[0]
        items = await records.results(bulk_id, after=after, limit=limit)
        following = write_cursor([items[-1]["position"]]) if len(items) == limit else None
        return json_response({"items": [item_as_json(item) for item in items], "nextCursor": following})

    @router.post("/bulk-actions/{bulk_id}/stop", response_model=BulkActionView, responses=documented(404, 409))
    @requires(Permission.ORDERS_DECIDE)
    async def stop_bulk_action(request: Request, bulk_id: str, body: Reasoned) -> Response:
        """Stop an action before its next order; what is done stays done."""
        bulk, caller = await found(bulk_id), caller_of(request.scope)
        if caller is not None:
            require_permission(caller, ORDER_ACTIONS[bulk["action"]].permission)
        if not await records.stop(bulk, by=actor(request), why=body.reason):
            raise conflict(f"The action {bulk_id} was over already")
        return json_response(await _shown(records, await found(bulk_id)))


def _search(body: NewBulkAction, dependencies: ConsoleDependencies) -> OrderSearch:
    """Return which orders are asked for. Raises the 422 problem unless they are named in one way."""
    if (body.order_ids is None) == (body.matching is None):
        raise invalid(("orderIds", "give either orderIds or matching"))
    if body.matching is None:
        return OrderSearch(ids=tuple(dict.fromkeys(body.order_ids or ())))
    asked = body.matching
    search = OrderSearch(
        user=asked.user_id or "",
        reason=asked.reason or "",
        open=asked.unsettled,
        statuses=tuple(asked.status),
        code=asked.code or "",
        owner=asked.owner_id or "",
        product=asked.product_id or "",
        stuck_at=dependencies.clock() if asked.stuck else None,
        since=asked.since,
        until=asked.until,
    )
    if (search == OrderSearch()) != asked.all:
        raise invalid(("matching", "give what the orders must match, or all, and not both"))
    return search


def _check_expected(action: OrderAction, body: NewBulkAction, selected: Sequence[Document]) -> None:
    """Raise the 409 problem if there is nothing to do, or if these are other orders than a dry run has selected."""
    if not selected:
        raise conflict(f"None of the selected orders can be {action.participle}")
    if body.expected_selection not in (None, digest_of(selected)):
        raise conflict("The selected orders are not those that were expected: some have changed, or others match now")


def _selection(body: NewBulkAction) -> Document:
    """Return how the orders are chosen, as the record of the action keeps it."""
    return body.model_dump(mode="json", include={"order_ids", "matching"})


async def _selected(
    dependencies: ConsoleDependencies, search: OrderSearch, selected: Sequence[Document]
) -> dict[str, Any]:
    matching = await dependencies.orders.count_documents(query_of(search))
    counted = {"leftOut": matching - len(selected), "selection": digest_of(selected)}
    return totals_as_json(totals_of(selected)) | counted


async def _shown(records: BulkActions, bulk: Document) -> dict[str, Any]:
    return bulk_as_json(bulk, await records.outcomes(bulk["_id"]))

"""The command `ordersaga orders list`."""

from datetime import datetime
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from operations.commands.options import AsJson, PageCursor
from operations.commands.orders.options import (
    Code,
    Ids,
    Owner,
    Product,
    Reason,
    Since,
    StatusOption,
    Stuck,
    Unsettled,
    Until,
    User,
    build_search,
)
from operations.commands.orders.remote_desk import BY_ID, query_of_list
from operations.commands.remote.api import open_api
from operations.commands.target import chosen_target
from operations.commands.terminal import counted, foreign, open_console, print_json
from operations.order_actions.order_json import order_as_json
from operations.order_actions.search import MOST_COUNTED, OrderSearch, count_orders, find_orders
from operations.reading.connection import open_mongodb
from operations.settings import RemoteStack, Stack
from shared.http import ProblemError
from shared.services import ORDER


def list_orders(
    ids: Ids = None,
    status: StatusOption = None,
    reason: Reason = None,
    code: Code = None,
    unsettled: Unsettled = False,
    stuck: Stuck = False,
    user: User = None,
    owner: Owner = None,
    product: Product = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of orders.")] = 20,
    cursor: PageCursor = None,
    as_json_document: AsJson = False,
) -> None:
    """List orders, newest first, as the order service has recorded them.

    Exit status 0, also if the list is empty, 2 for wrong usage, 3 if a server cannot be reached.
    """
    search = build_search(locals())
    try:
        page = uvloop.run(_read(chosen_target(), search, cursor, limit))
    except ProblemError as invalid:
        raise typer.BadParameter(invalid.detail, param_hint="--cursor") from None
    if as_json_document:
        print_json(page)
    else:
        _show(page, open_console(highlight=False))


async def _read(target: Stack | RemoteStack, search: OrderSearch, cursor: str | None, limit: int) -> dict[str, Any]:
    """Return a page of orders as the operations API shows it."""
    if isinstance(target, RemoteStack):
        async with open_api(target) as api:
            asked = query_of_list(search)
            page = await api.pages_by_id("orders", search.ids, BY_ID, limit=limit, cursor=cursor, **asked)
            return {name: page[name] for name in ("items", "nextCursor", "total", "totalIsExact")}
    async with open_mongodb(target.mongodb_url, purpose="the list of orders", name="ordersaga-orders") as client:
        orders = client[ORDER.database_in(target.database_prefix)]["orders"]
        found, total = await find_orders(orders, search, cursor, limit=limit), await count_orders(orders, search)
    items = [order_as_json(order) for order in found.items]
    return {"items": items, "nextCursor": found.next_cursor, "total": total, "totalIsExact": total < MOST_COUNTED}


def _show(page: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("order", "status"):
        table.add_column(name, no_wrap=True, overflow="fold")
    table.add_column("amount", justify="right", no_wrap=True)
    for name in ("user", "placed", "reason"):
        table.add_column(name, overflow="fold")
    for order in page["items"]:
        table.add_row(
            foreign(order["orderId"]),
            foreign(order["status"]) + ("" if order["settled"] else ", open"),
            f"{order['totalAmount'] or 0:,.2f} {foreign(order['currency'] or '')}",
            foreign(order["userId"] or "—"),
            f"{datetime.fromisoformat(order['createdAt']):%Y-%m-%d %H:%M:%S}",
            foreign(order["failureReason"] or ""),
        )
    if page["items"]:
        console.print(table)
    total = counted(page["total"], "orders") + ("" if page["totalIsExact"] else " or more")
    shown = len(page["items"])
    console.print(total if shown == page["total"] else f"{shown:,} of {total}")
    if page["nextCursor"]:
        console.print(f"the next page: --cursor {page['nextCursor']}", soft_wrap=True)

"""The command `ordersaga orders list`."""

from typing import Annotated, Any, NamedTuple

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from operations.commands.orders.options import (
    AsJson,
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
from operations.commands.target import chosen_stack
from operations.commands.terminal import counted, foreign, open_console, print_json
from operations.order_actions.order_json import order_as_json
from operations.order_actions.search import MOST_COUNTED, OrderPage, OrderSearch, count_orders, find_orders
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from shared.http import ProblemError
from shared.money import to_json_number
from shared.services import ORDER


class Listed(NamedTuple):
    """A page of orders, and the number of all that match, up to MOST_COUNTED."""

    page: OrderPage
    total: int

    @property
    def is_exact(self) -> bool:
        """Return whether there are no more than the total."""
        return self.total < MOST_COUNTED


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
    cursor: Annotated[
        str | None,
        typer.Option("--cursor", help="Cursor that the previous page printed.", show_default="the first page"),
    ] = None,
    as_json_document: AsJson = False,
) -> None:
    """List orders, newest first, as the order service has recorded them.

    Exit status 0, also if the list is empty, 2 for wrong usage, 3 if a server cannot be reached.
    """
    search = build_search(locals())
    try:
        listed = uvloop.run(_read(chosen_stack(), search, cursor, limit))
    except ProblemError as invalid:
        raise typer.BadParameter(invalid.detail, param_hint="--cursor") from None
    if as_json_document:
        print_json(_as_json(listed))
    else:
        _show(listed, open_console(highlight=False))


async def _read(stack: Stack, search: OrderSearch, cursor: str | None, limit: int) -> Listed:
    async with open_mongodb(stack.mongodb_url, purpose="the list of orders", name="ordersaga-orders") as client:
        orders = client[ORDER.database_in(stack.database_prefix)]["orders"]
        return Listed(await find_orders(orders, search, cursor, limit=limit), await count_orders(orders, search))


def _as_json(listed: Listed) -> dict[str, Any]:
    return {
        "items": [order_as_json(order) for order in listed.page.items],
        "nextCursor": listed.page.next_cursor,
        "total": listed.total,
        "totalIsExact": listed.is_exact,
    }


def _show(listed: Listed, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("order", "status"):
        table.add_column(name, no_wrap=True, overflow="fold")
    table.add_column("amount", justify="right", no_wrap=True)
    for name in ("user", "placed", "reason"):
        table.add_column(name, overflow="fold")
    for order in listed.page.items:
        table.add_row(
            foreign(order["_id"]),
            foreign(order.get("status")) + ("" if order.get("settled") else ", open"),
            f"{to_json_number(order.get('totalAmount') or 0):,.2f} {foreign(order.get('currency') or '')}",
            foreign(order.get("userId") or "—"),
            f"{order['createdAt']:%Y-%m-%d %H:%M:%S}",
            foreign(order.get("failureReason") or ""),
        )
    if listed.page.items:
        console.print(table)
    total = counted(listed.total, "orders") + ("" if listed.is_exact else " or more")
    shown = len(listed.page.items)
    console.print(total if shown == listed.total else f"{shown:,} of {total}")
    if listed.page.next_cursor:
        console.print(f"the next page: --cursor {listed.page.next_cursor}", soft_wrap=True)

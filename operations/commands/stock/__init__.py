"""The commands `ordersaga stock`: list, show, restock, off-sale and on-sale."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.table import Table

from inventory_service.stock import MAX_UNITS
from operations.commands.options import AsJson, PageCursor
from operations.commands.reason import checked_reason
from operations.commands.remote.api import new_key
from operations.commands.stock.desk import StockDesk, open_desk
from operations.commands.target import chosen_target
from operations.commands.terminal import counted, foreign, open_console, print_json
from operations.errors import CommandError, UnreachableError
from operations.settings import RemoteStack, Stack

T = TypeVar("T")

ProductArgument = Annotated[str, typer.Argument(metavar="PRODUCT", help="The product's id.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
Why = Annotated[
    str | None, typer.Option("--why", "--reason", help="Reason, kept in the log.", show_default="asked for")
]

stock = typer.Typer(no_args_is_help=True)


@stock.callback()
def _group() -> None:
    """Show the stock of products, add units, take a product off sale or put it back."""


@stock.command("list")
def list_stock(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of products.")] = 100,
    cursor: PageCursor = None,
    as_json_document: AsJson = False,
) -> None:
    """List the stock of all products, by id.

    Exit status 0, also if there is no product, 2 for wrong usage, 3 if a server cannot be reached.
    """
    page = _work(chosen_target(), lambda desk: desk.page(limit, cursor))
    if as_json_document:
        print_json(page)
        return
    console = open_console(highlight=False)
    if page["items"]:
        console.print(_table(page["items"]))
    console.print(counted(len(page["items"]), "products"))
    if page["nextCursor"]:
        console.print(f"the next page: --cursor {page['nextCursor']}", soft_wrap=True)


@stock.command("show")
def show_stock(product: ProductArgument, as_json_document: AsJson = False) -> None:
    """Show the stock of a product.

    Exit status 0, 1 if there is no such product, 3 if a server cannot be reached.
    """
    found = _work(chosen_target(), lambda desk: _found(desk, product))
    if as_json_document:
        print_json(found)
    else:
        open_console(highlight=False).print(_table([found]))


@stock.command("restock")
def restock(
    product: ProductArgument,
    units: Annotated[int, typer.Argument(metavar="UNITS", min=1, max=MAX_UNITS, help="How many have come in.")],
    why: Why = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Key of an earlier call, which this one repeats.", show_default="a new one"),
    ] = None,
    yes: Yes = False,
) -> None:
    """Add units to what is free to sell.

    A call adds once, even if it is repeated because its answer was lost: such a call prints its key, and with
    `--key` the same units are not added again.

    Exit status 0 if they are added, 1 if refused or not confirmed, 2 for wrong usage, 3 if a server cannot be reached.
    """
    _check_usage(why, yes)
    target, key = chosen_target(), key or new_key()
    if not yes:
        free = _work(target, lambda desk: _found(desk, product))["quantity"]
        now = "not counted" if free is None else f"{free:,} free"
        typer.confirm(f"Add {counted(units, 'units')} to {product} (now {now})?", abort=True, err=True)
    reason = _reason(why)
    try:
        added = _work(target, lambda desk: desk.restock(product, units, reason, key))
    except UnreachableError as error:
        raise UnreachableError(f"{error}; the same command with --key {key} adds them once") from error
    if added:
        _say(f"{counted(units, 'units')} added to {product}")
    else:
        _say(f"{counted(units, 'units')} had been added to {product} before, under this key; nothing was added now")


@stock.command("off-sale")
def off_sale(product: ProductArgument, why: Why = None, yes: Yes = False) -> None:
    """Take a product off sale: new orders for it are refused, orders in flight go on.

    Exit status 0 if it is off sale, 1 if refused or not confirmed, 2 for wrong usage, 3 if a server cannot be reached.
    """
    _check_usage(why, yes)
    target = chosen_target()
    if not yes:
        typer.confirm(f"Take {product} off sale, so that new orders for it are refused?", abort=True, err=True)
    reason = _reason(why)
    _work(target, lambda desk: desk.switch_sale(product, reason, on_sale=False))
    _say(f"{product} is off sale; `ordersaga stock on-sale {product}` puts it back")


@stock.command("on-sale")
def on_sale(product: ProductArgument, why: Why = None) -> None:
    """Put a product on sale again.

    Exit status 0 if it is on sale, 1 if refused, 2 for wrong usage, 3 if a server cannot be reached.
    """
    target, reason = chosen_target(), _reason(why)
    _work(target, lambda desk: desk.switch_sale(product, reason, on_sale=True))
    _say(f"{product} is on sale")


def _check_usage(why: str | None, yes: bool) -> None:
    if why is None and yes:
        raise typer.BadParameter("required with --yes", param_hint="--why")


def _reason(why: str | None) -> str:
    return checked_reason(why if why is not None else typer.prompt("Reason", err=True))


def _work(target: Stack | RemoteStack, work: Callable[[StockDesk], Awaitable[T]]) -> T:
    async def worked() -> T:
        async with open_desk(target) as desk:
            return await work(desk)

    return uvloop.run(worked())


async def _found(desk: StockDesk, product: str) -> dict[str, Any]:
    found = await desk.find(product)
    if found is None:
        raise CommandError(f"there is no product {product}")
    return found


def _table(items: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("product", "name", "sale"):
        table.add_column(name, overflow="fold")
    for name in ("free", "reserved", "shipped"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in items:
        free = "not counted" if item["quantity"] is None else f"{item['quantity']:,}"
        sale = "off sale" if item["onSale"] is False else "on sale"
        counts = [f"{item[name] or 0:,}" for name in ("reserved", "shipped")]
        table.add_row(foreign(item["productId"]), foreign(item["name"] or "—"), sale, free, *counts)
    return table


def _say(text: str) -> None:
    open_console(highlight=False, soft_wrap=True).print(text, markup=False)

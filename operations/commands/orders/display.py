"""Shows actions on many orders: what they are about, their progress, and the result of each order."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from operations.commands.orders.desk import Progress as OnProgress
from operations.commands.terminal import counted, foreign, open_console, print_json
from operations.order_actions.bulk import DONE, FAILED, WAITING
from operations.order_actions.search import OrderTotals
from shared.money import to_json_number

STYLES: Mapping[str | None, str] = {DONE: "[green]✓[/]", WAITING: "[yellow]…[/]", FAILED: "[red]✗[/]", None: "?"}


def totals_in_words(totals: OrderTotals) -> str:
    """Return what an action is about, such as "4 orders of 3 customers, 120.00 USD"."""
    about = f"{counted(totals.orders, 'orders')} of {counted(totals.customers, 'customers')}"
    return ", ".join([about, *(f"{money(amount)} {currency}".strip() for currency, amount in totals.amounts.items())])


def money(amount: int) -> str:
    """Return minor units as an amount."""
    return f"{to_json_number(amount):,.2f}"


async def follow(bulk: dict[str, Any], run: Callable[[dict[str, Any], OnProgress], Awaitable[None]]) -> None:
    """Run an action with a progress bar, where there is a terminal."""
    console = open_console(stderr=True)
    columns = (TextColumn(bulk["action"]), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("orders", total=bulk["total"], completed=bulk["total"] - bulk["open"])
        await run(bulk, lambda number: progress.advance(task, number))


def show_results(bulk: dict[str, Any], items: list[dict[str, Any]], *, as_json_document: bool) -> None:
    """Print the result of each order, and how many there are of each outcome."""
    if as_json_document:
        print_json(bulk | {"orders": items})
        return
    console = open_console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for item in items:
        amount = item["totalAmount"]
        table.add_row(
            STYLES[item["outcome"]],
            foreign(item["orderId"]),
            f"{amount:,.2f} {foreign(item['currency'] or '')}" if amount is not None else "",
            foreign(item["userId"] or ""),
            foreign(item["detail"] or "no result yet"),
        )
    console.print(table)
    outcomes = Counter(str(item["outcome"] or "open") for item in items)
    console.print(", ".join(f"{number:,} {outcome}" for outcome, number in sorted(outcomes.items())) or "no orders")

"""The commands `ordersaga accounts trial-balance` and `accounts income`, and how their reports are shown."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from operations.accounts.reports import Income, IncomeLine, Reports, TrialBalance
from operations.commands.options import AsJson
from operations.commands.target import chosen_stack
from operations.commands.terminal import foreign, open_console, print_json
from operations.commands.times import PeriodEnd, PeriodStart, time_option
from operations.reading.chart_of_accounts import as_number, in_money
from operations.reading.connection import open_mongodb

T = TypeVar("T")


def trial_balance(
    until: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="As of this time, exclusive.", show_default="now")
    ] = None,
    as_json_document: AsJson = False,
) -> None:
    """Show the trial balance: the sums of debit and credit balances, by kind of account and currency.

    TIME is a date (2026-01-31) or a time (2026-01-31T09:30:00Z), in UTC unless it has an offset. Balances are computed
    from the postings; `accounts repair --all` compares them with the stored ones.

    Exit status 0 if debits equal credits in each currency, 1 if not, 2 for wrong usage, 3 if a server cannot be
    reached.
    """
    end = time_option(until, "--to")
    found = _report(lambda reports: reports.trial_balance(end))
    if as_json_document:
        print_json({"to": _as_text(end), **trial_balance_as_json(found)})
    else:
        show_trial_balance(found, open_console())
    raise typer.Exit(0 if found.balances else 1)


def income(
    since: PeriodStart = None,
    until: PeriodEnd = None,
    as_json_document: AsJson = False,
) -> None:
    """Show the income of a period: what was earned, less refunds and bank fees, by currency and operation.

    TIME is a date (2026-01-31) or a time (2026-01-31T09:30:00Z), in UTC unless it has an offset. It is the income of
    the books of funds: orders that are paid by card are not in them.

    Exit status 0, 2 for wrong usage, 3 if a server cannot be reached.
    """
    start, end = time_option(since, "--from"), time_option(until, "--to")
    if start is not None and end is not None and start >= end:
        raise typer.BadParameter("must be after --from", param_hint="--to")
    found = _report(lambda reports: reports.income(start, end))
    if as_json_document:
        print_json({"from": _as_text(start), "to": _as_text(end), **income_as_json(found)})
    else:
        show_income(found, open_console())


def _report(read: Callable[[Reports], Awaitable[T]]) -> T:
    async def run() -> T:
        stack = chosen_stack()
        async with open_mongodb(stack.mongodb_url, purpose="the accounts", name="ordersaga-accounts") as client:
            return await read(Reports(client, stack.database_prefix))

    return uvloop.run(run())


def _as_text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def trial_balance_as_json(found: TrialBalance) -> dict[str, Any]:
    """Return the trial balance as JSON, in major units."""
    return {
        "balances": found.balances,
        "lines": [
            line._asdict() | {"debit": as_number(line.debit), "credit": as_number(line.credit)} for line in found.lines
        ],
        "totals": {
            currency: {"debit": as_number(debit), "credit": as_number(credit)}
            for currency, (debit, credit) in found.totals().items()
        },
    }


def income_as_json(found: Income) -> dict[str, Any]:
    """Return the income as JSON, in major units, one object per currency."""
    return {
        "currencies": [
            {"currency": total.currency}
            | _amounts(total)
            | {
                "operations": [
                    {"operation": line.operation, "entries": line.entries} | _amounts(line)
                    for line in found.of(total.currency)
                ]
            }
            for total in found.totals()
        ]
    }


def _amounts(line: IncomeLine) -> dict[str, int | float | None]:
    return {"revenue": as_number(line.revenue), "fees": as_number(line.fees), "net": as_number(line.net)}


def show_trial_balance(found: TrialBalance, console: Console) -> None:
    """Print the trial balance, and whether it balances."""
    if not found.lines:
        console.print("There are no entries.", style="dim")
        return
    table = _table("accounts of", "number", "debit", "credit")
    for line in found.lines:
        amounts = (in_money(amount, line.currency) for amount in (line.debit, line.credit))
        table.add_row(foreign(line.group), f"{line.accounts:,}", *map(foreign, amounts))
    for currency, (debit, credit) in found.totals().items():
        amounts = (in_money(amount, currency) for amount in (debit, credit))
        mark = "[green]✓[/]" if debit == credit else "[red]✗[/]"
        table.add_row(f"{mark} total", "", *map(foreign, amounts), style="bold")
    console.print(table)
    if not found.balances:
        console.print("Debits and credits differ: `ordersaga audit` names the entries.", style="red")


def show_income(found: Income, console: Console) -> None:
    """Print the income by currency and operation, each currency with its total."""
    if not found.lines:
        console.print("Nothing was earned in this period.", style="dim")
        return
    table = _table("operation", "entries", "revenue", "fees", "net")
    for total in found.totals():
        for line in (*found.of(total.currency), total):
            amounts = (in_money(amount, line.currency) for amount in (line.revenue, line.fees, line.net))
            is_total = line is total
            table.add_row(
                foreign("total" if is_total else line.operation),
                f"{line.entries:,}",
                *map(foreign, amounts),
                style="bold" if is_total else None,
            )
    console.print(table)


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table

"""Shows accounts, statements and differences: tables for people, JSON for programs."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from operations.accounts.repair import Repair
from operations.accounts.statements import AccountOverview, Movement, Statement
from operations.commands.terminal import foreign
from operations.reading.balances import Balance
from operations.reading.chart_of_accounts import as_number, in_money

COMMON_FIELDS = ("_id", "kind", "currency", "balance", "status", "version", "createdAt", "updatedAt")


def show_sheet(sheet: AccountOverview, console: Console) -> None:
    """Print an account: its fields, its balance, the sum of its postings and its latest movements."""
    balance, account = sheet.balance, sheet.balance.account or {}
    rows: dict[str, object] = {"account": balance.account_id}
    if account:
        rows |= {"status": account.get("status"), "balance": in_money(account.get("balance"), balance.currency)}
    rows["postings"] = f"{in_money(balance.recomputed, balance.currency)} ({balance.postings:,} postings)"
    rows |= {name: _own_field(name, value, balance) for name, value in account.items() if name not in COMMON_FIELDS}
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(f"[dim]{foreign(name)}[/]", foreign(value))
    console.print(table)
    if not balance.agrees:
        console.print(f"[red]✗[/] {foreign(difference(balance))}", highlight=False, soft_wrap=True)
    console.print(_movements(sheet.statement))


def show_statement(statement: Statement, console: Console) -> None:
    """Print the movements between the balance before and the balance after them."""
    if statement.earlier:
        console.print("There are earlier movements in this period; increase --limit to see them.", style="dim")
    console.print(f"balance before: {foreign(in_money(statement.opening, statement.currency))}", highlight=False)
    console.print(_movements(statement))
    console.print(f"balance after: {foreign(in_money(statement.closing, statement.currency))}", highlight=False)


def show_repairs(repairs: Sequence[Repair], console: Console, *, write: bool) -> None:
    """Print each difference and its correction."""
    if not repairs:
        console.print("[green]✓[/] every balance equals the sum of its postings", highlight=False)
    for repair in repairs:
        mark = "[green]✓[/]" if repair.fixed else "[red]✗[/]"
        console.print(f"{mark} {foreign(difference(repair.balance))}", highlight=False, soft_wrap=True)
        if repair.fixed:
            console.print(f"  corrected by {foreign(' and '.join(repair.entry_ids))}", highlight=False, soft_wrap=True)
        elif repair.refused:
            console.print(f"  not corrected: {foreign(repair.refused)}", highlight=False, soft_wrap=True)
    if repairs and not write:
        console.print("Nothing was written. To correct the differences, add --write and --reason.", style="dim")


def difference(balance: Balance) -> str:
    """Describe the difference between a balance and its postings."""
    if balance.account is None:
        return f"{balance.account_id}: no account, but {balance.postings:,} postings"
    kept, posted = (in_money(a, balance.currency) for a in (balance.account.get("balance"), balance.recomputed))
    text = f"{balance.account_id}: the balance is {kept}, the sum of {balance.postings:,} postings is {posted}"
    if missing := missing_postings(balance):
        more = "1 more posting was" if missing == 1 else f"{missing:,} more postings were"
        text += f"; {more} counted but not found in the journal"
    return text


def missing_postings(balance: Balance) -> int:
    """Return how many postings the account has counted in its version beyond those in the journal."""
    version = (balance.account or {}).get("version")
    return max(0, version - balance.postings) if isinstance(version, int) else 0


def sheet_as_json(sheet: AccountOverview) -> dict[str, Any]:
    """Return the account as JSON."""
    account = sheet.balance.account or {}
    own = {name: value for name, value in account.items() if name not in COMMON_FIELDS}
    if "totalAmount" in own:
        own["totalAmount"] = as_number(own["totalAmount"])
    known = {"kind": account.get("kind"), "status": account.get("status")} if account else {"kind": "system"}
    return {
        **known,
        **own,
        **balance_as_json(sheet.balance),
        "movements": [_movement_as_json(movement) for movement in sheet.statement.movements],
    }


def balance_as_json(balance: Balance) -> dict[str, Any]:
    """Return a balance and the sum of its postings as JSON; the balance is null if there is no document."""
    kept = as_number(balance.account.get("balance")) if balance.account else None
    return {
        "account": balance.account_id,
        "currency": balance.currency,
        "balance": kept,
        "postingsBalance": as_number(balance.recomputed),
        "postings": balance.postings,
        "agrees": balance.agrees,
    }


def statement_as_json(statement: Statement) -> dict[str, Any]:
    """Return the statement as JSON."""
    return {
        "account": statement.account_id,
        "currency": statement.currency,
        "openingBalance": as_number(statement.opening),
        "closingBalance": as_number(statement.closing),
        "movements": [_movement_as_json(movement) for movement in statement.movements],
        "earlier": statement.earlier,
    }


def repair_as_json(repair: Repair) -> dict[str, Any]:
    """Return a difference and its correction as JSON."""
    known = balance_as_json(repair.balance) | {"agrees": repair.fixed}
    return {
        **known,
        "missingPostings": missing_postings(repair.balance),
        "entries": list(repair.entry_ids),
        "refused": repair.refused,
    }


def _own_field(name: str, value: object, balance: Balance) -> object:
    return in_money(value, balance.currency) if name == "totalAmount" else value


def _movements(statement: Statement) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("at")
    table.add_column("operation")
    table.add_column("amount", justify="right")
    table.add_column("balance", justify="right")
    table.add_column("entry", no_wrap=True)
    table.add_column("about")
    for movement in statement.movements:
        table.add_row(
            movement.at.isoformat(sep=" ", timespec="seconds"),
            foreign(movement.operation),
            in_money(movement.effect, ""),
            foreign(in_money(movement.balance, statement.currency)),
            foreign(movement.entry_id),
            foreign(_about(movement)),
        )
    return table


def _about(movement: Movement) -> str:
    parts = [f"{name} {value}" for name, value in movement.reference.items()]
    if movement.reverses:
        parts.append(f"reverses {movement.reverses}")
    if movement.description:
        parts.append(movement.description)
    return ", ".join(parts)


def _movement_as_json(movement: Movement) -> dict[str, Any]:
    return {
        "at": movement.at.isoformat(),
        "entry": movement.entry_id,
        "operation": movement.operation,
        "amount": as_number(movement.effect),
        "balance": as_number(movement.balance),
        "description": movement.description,
        "reference": dict(movement.reference),
        "reverses": movement.reverses,
    }

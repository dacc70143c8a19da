"""The commands `ordersaga accounts show`, `statement` and `repair`."""

import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import typer
import uvloop
from pymongo import AsyncMongoClient

from operations.accounts.correction import Keep, refusal
from operations.accounts.repair import Repair, repair
from operations.accounts.statements import AccountBooks
from operations.commands.accounts_display import (
    repair_as_json,
    sheet_as_json,
    show_repairs,
    show_sheet,
    show_statement,
    statement_as_json,
)
from operations.commands.target import chosen_stack
from operations.commands.terminal import open_console, print_error, print_json
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from shared.database import Document

LAST_MOVEMENTS = 10

Account = Annotated[str, typer.Argument(help="The account's id, such as retainer:ID, bank:ID or system:revenue:USD.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
T = TypeVar("T")

accounts = typer.Typer(no_args_is_help=True)


@accounts.command()
def show(account: Account, as_json_document: AsJson = False) -> None:
    """Show an account: its balance, what its postings come to, its status and its last movements.

    Exit status 0, 1 when there is no such account or when balance and postings differ, 3 when a server does not answer.
    """
    sheet = _read(lambda books: books.sheet(account, LAST_MOVEMENTS))
    if sheet is None:
        raise _unknown(account, as_json_document)
    if as_json_document:
        print_json(sheet_as_json(sheet))
    else:
        show_sheet(sheet, open_console())
    raise typer.Exit(0 if sheet.balance.agrees else 1)


@accounts.command()
def statement(
    account: Account,
    since: Annotated[str | None, typer.Option("--from", metavar="TIME", help="From this date or time on.")] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Before this date or time.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many movements.")] = 50,
    as_json_document: AsJson = False,
) -> None:
    """Show an account's movements, oldest first, each with the balance after it.

    TIME is a date (2026-01-31) or a time (2026-01-31T09:30:00Z), in UTC unless it says otherwise. The balances are
    added up from the postings.

    Exit status 0, 1 when there is no such account, 3 when a server does not answer.
    """
    start, end = _time(since, "--from"), _time(until, "--to")
    found = _read(lambda books: books.statement(account, start, end, limit))
    if found is None:
        raise _unknown(account, as_json_document)
    if as_json_document:
        print_json(statement_as_json(found))
    else:
        show_statement(found, open_console())


@accounts.command("repair")
def repair_balances(
    account: Annotated[str | None, typer.Argument(help="The account's id.")] = None,
    all_accounts: Annotated[bool, typer.Option("--all", help="Look at every account.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Correct what differs.")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; it is kept in the journal.")] = None,
    keep: Annotated[Keep, typer.Option("--keep", help="Which of the two is right.")] = Keep.POSTINGS,
    as_json_document: AsJson = False,
) -> None:
    """Show where a balance and its postings differ and, with --write, correct it by entries that say why.

    With --keep postings the balance becomes what its postings come to. With --keep balance it stays, and the
    difference is posted against system:suspense. Nothing that was posted is ever changed.

    Exit status 0 when nothing differs any more, 1 when something does or there is no such account, 2 for wrong usage,
    3 when a server does not answer.
    """
    if (account is None) != all_accounts:
        raise typer.BadParameter("name an account, or add --all")
    if reason is not None and not write:
        raise typer.BadParameter("a reason is for --write", param_hint="--reason")
    if write:
        reason = _reason(reason, as_json_document)
    repairs = _run(lambda stack: _repair(stack, account, keep, reason if write else None))
    if repairs is None:
        raise _unknown(str(account), as_json_document)
    if as_json_document:
        print_json({"written": write, "keep": keep, "differences": [repair_as_json(found) for found in repairs]})
    else:
        show_repairs(repairs, open_console(), write=write)
    raise typer.Exit(0 if all(found.mended for found in repairs) else 1)


async def _repair(stack: Stack, account: str | None, keep: Keep, reason: str | None) -> list[Repair] | None:
    """Find what differs and, given a reason, correct it; None if there is no such account."""
    async with _connected(stack) as client:
        books = AccountBooks(client, stack.database_prefix)
        if account is not None and not await books.exists(account):
            return None
        differing = [balance async for balance in books.differing(account)]
        if reason is None:
            return [Repair(balance, refused=refusal(balance, keep)) for balance in differing]
        repairs = [await repair(client, stack.database_prefix, b.account_id, keep, reason) for b in differing]
        return [found for found in repairs if found is not None]


def _read(read: Callable[[AccountBooks], Awaitable[T]]) -> T:
    async def run(stack: Stack) -> T:
        async with _connected(stack) as client:
            return await read(AccountBooks(client, stack.database_prefix))

    return _run(run)


def _run(work: Callable[[Stack], Awaitable[T]]) -> T:
    async def run() -> T:
        return await work(chosen_stack())

    return uvloop.run(run())


def _connected(stack: Stack) -> "contextlib.AbstractAsyncContextManager[AsyncMongoClient[Document]]":
    return open_mongodb(stack.mongodb_url, purpose="the accounts", name="ordersaga-accounts")


def _reason(given: str | None, as_json_document: bool) -> str:
    if given is None and as_json_document:
        raise typer.BadParameter("--json cannot ask: add --reason", param_hint="--reason")
    reason = (typer.prompt("Why is it corrected?", err=True) if given is None else given).strip()
    if not reason:
        raise typer.BadParameter("say why", param_hint="--reason")
    return str(reason)


def _time(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no date and no time", param_hint=option) from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _unknown(account: str, as_json_document: bool) -> typer.Exit:
    if as_json_document:
        print_json({"account": account, "found": False})
    else:
        text = f"There is no account {account}: an id is its kind and the id, such as retainer:ID or bank:ID."
        print_error(text)
    return typer.Exit(1)

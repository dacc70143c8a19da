"""The commands `ordersaga accounts show`, `statement`, `repair` and `assign`; those of reports are accounts_reports."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
import uvloop
from pymongo import AsyncMongoClient

from operations.accounts.correction import Keep, refusal
from operations.accounts.ownership import Ownership, Unowned
from operations.accounts.repair import Repair, repair
from operations.accounts.statements import AccountStatements
from operations.actions import record_action
from operations.approvals.policy import REPAIR
from operations.commands.accounts_display import (
    overview_as_json,
    repair_as_json,
    show_overview,
    show_repairs,
    show_statement,
    statement_as_json,
)
from operations.commands.accounts_reports import income, trial_balance
from operations.commands.approval import ask_for_approval, policy_of_stack
from operations.commands.names import check_name
from operations.commands.operator import current_operator
from operations.commands.options import AsJson
from operations.commands.target import chosen_stack
from operations.commands.terminal import open_console, print_error, print_json
from operations.commands.times import PeriodEnd, PeriodStart, time_option
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from shared.database import Document
from shared.printable import printable
from shared.services import CONSOLE

LAST_MOVEMENTS = 10

Account = Annotated[str, typer.Argument(help="Id of the account, such as retainer:ID, bank:ID or system:revenue:USD.")]
T = TypeVar("T")

accounts = typer.Typer(no_args_is_help=True)
accounts.command("trial-balance")(trial_balance)
accounts.command()(income)


@accounts.command()
def show(account: Account, as_json_document: AsJson = False) -> None:
    """Show an account: its status, its balance, the sum of its postings and its latest movements.

    Exit status 0 if balance and postings agree, 1 if they differ or the account does not exist, 3 if a server cannot be
    reached.
    """
    overview = _read(lambda books: books.overview(account, LAST_MOVEMENTS))
    if overview is None:
        raise _unknown(account, as_json_document)
    if as_json_document:
        print_json(overview_as_json(overview))
    else:
        show_overview(overview, open_console())
    raise typer.Exit(0 if overview.balance.agrees else 1)


@accounts.command()
def statement(
    account: Account,
    since: PeriodStart = None,
    until: PeriodEnd = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Maximum number of movements; the latest are shown.")
    ] = 50,
    as_json_document: AsJson = False,
) -> None:
    """Show the movements of an account, oldest first, each with the balance after it.

    TIME is a date (2026-01-31) or a time (2026-01-31T09:30:00Z), in UTC unless it has an offset. Balances are computed
    from the postings.

    Exit status 0, 1 if the account does not exist, 2 for wrong usage, 3 if a server cannot be reached.
    """
    start, end = time_option(since, "--from"), time_option(until, "--to")
    found = _read(lambda books: books.statement(account, start, end, limit))
    if found is None:
        raise _unknown(account, as_json_document)
    if as_json_document:
        print_json(statement_as_json(found))
    else:
        show_statement(found, open_console())


@accounts.command("repair")
def repair_balances(
    account: Annotated[str | None, typer.Argument(help="Id of the account.", show_default="none, with --all")] = None,
    all_accounts: Annotated[bool, typer.Option("--all", help="Check every account.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Correct the differences.")] = False,
    reason: Annotated[
        str | None,
        typer.Option("--reason", help="Reason for the correction, kept in the journal.", show_default="asked for"),
    ] = None,
    keep: Annotated[Keep, typer.Option("--keep", help="The side that is correct.")] = Keep.POSTINGS,
    as_json_document: AsJson = False,
) -> None:
    """Show differences between balances and postings and, with --write, correct them by journal entries.

    With --keep postings the balance is set to the sum of its postings. With --keep balance it stays, and the difference
    is posted to system:suspense. Existing postings are never changed.

    Exit status 0 if there are no differences left, 1 if there are or the account does not exist, 2 for wrong usage, 3
    if a server cannot be reached.
    """
    if (account is None) != all_accounts:
        raise typer.BadParameter("name an account or add --all")
    if reason is not None and not write:
        raise typer.BadParameter("requires --write", param_hint="--reason")
    if write:
        reason = _reason(reason, as_json_document)
    repairs = _run(lambda stack: _repair(stack, account, keep, reason if write else None))
    if repairs is None:
        raise _unknown(str(account), as_json_document)
    if as_json_document:
        print_json({"written": write, "keep": keep, "differences": [repair_as_json(found) for found in repairs]})
    else:
        show_repairs(repairs, open_console(), write=write)
    raise typer.Exit(0 if all(found.fixed for found in repairs) else 1)


@accounts.command()
def assign(
    owner: Annotated[str, typer.Option("--owner", help="The new owner, as in the API keys of the shop.")],
    client: Annotated[
        str | None, typer.Option("--client", help="Only the records of this client.", show_default="all, with --all")
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="The records of all clients.")] = False,
    why: Annotated[str, typer.Option("--why", help="Reason, kept in the log of actions.", show_default="none")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json_document: AsJson = False,
) -> None:
    """Give retainers, invoices and payments outside of orders that have no owner to an owner.

    Those from before an upgrade to API keys have none: they pay no order of a shop, and only staff see them. Records
    that have an owner keep it.

    Exit status 0 when done, 1 if there are no such records or it was not confirmed, 2 for wrong usage, 3 if a server
    cannot be reached.
    """
    if (client is None) != everyone:
        raise typer.BadParameter("name a --client or add --all")
    if as_json_document and not yes:
        raise typer.BadParameter("--json does not prompt: add --yes")
    check_name("--owner", owner)
    assigned = _run(lambda stack: _assign(stack, owner, client, why, yes))
    if as_json_document:
        print_json({"owner": owner, "client": client, "assigned": assigned._asdict()})
    elif any(assigned):
        typer.echo(f"{assigned.in_words()} belong to {printable(owner)} now")
    else:
        print_error("There are no records without an owner.")
    raise typer.Exit(0 if any(assigned) else 1)


async def _assign(stack: Stack, owner: str, client_id: str | None, why: str, yes: bool) -> Unowned:
    async with _connected(stack.url_for_changes) as client:
        ownership = Ownership(client, stack.database_prefix, client_id)
        found = await ownership.count()
        if any(found) and not yes:
            typer.confirm(f"Give {found.in_words()} to {printable(owner)}?", abort=True, err=True)
        assigned = await ownership.assign(owner)
        if any(assigned):
            await record_action(
                client[CONSOLE.database_in(stack.database_prefix)],
                by=current_operator(),
                why=why,
                action="accounts.assign",
                subject=client_id or "all clients",
                outcome=f"{assigned.in_words()} given to {owner}",
            )
        return assigned


async def _repair(stack: Stack, account: str | None, keep: Keep, reason: str | None) -> list[Repair] | None:
    """Find differences and, given a reason, correct them; return None if the account does not exist."""
    async with _connected(stack.mongodb_url if reason is None else stack.url_for_changes) as client:
        books = AccountStatements(client, stack.database_prefix)
        if account is not None and not await books.exists(account):
            return None
        differing = [balance async for balance in books.differing(account)]
        if reason is None:
            return [Repair(balance, refused=refusal(balance, keep)) for balance in differing]
        database = client[CONSOLE.database_in(stack.database_prefix)]
        if differing and (await policy_of_stack(database)).needs(REPAIR):
            parameters = {"account": account, "keep": str(keep)}
            await ask_for_approval(stack, database, REPAIR, account or "all accounts", reason, parameters)
        repairs = [await repair(client, stack.database_prefix, b.account_id, keep, reason) for b in differing]
        return [found for found in repairs if found is not None]


def _read(read: Callable[[AccountStatements], Awaitable[T]]) -> T:
    async def run(stack: Stack) -> T:
        async with _connected(stack.mongodb_url) as client:
            return await read(AccountStatements(client, stack.database_prefix))

    return _run(run)


def _run(work: Callable[[Stack], Awaitable[T]]) -> T:
    async def run() -> T:
        return await work(chosen_stack())

    return uvloop.run(run())


def _connected(url: str) -> "contextlib.AbstractAsyncContextManager[AsyncMongoClient[Document]]":
    return open_mongodb(url, purpose="the accounts", name="ordersaga-accounts")


def _reason(given: str | None, as_json_document: bool) -> str:
    if given is None and as_json_document:
        raise typer.BadParameter("--json does not prompt: add --reason", param_hint="--reason")
    reason = (typer.prompt("Reason for the correction", err=True) if given is None else given).strip()
    if not reason:
        raise typer.BadParameter("must not be empty", param_hint="--reason")
    return str(reason)


def _unknown(account: str, as_json_document: bool) -> typer.Exit:
    if as_json_document:
        print_json({"account": account, "found": False})
    else:
        print_error(
            f"There is no account {account}. Account ids have the form kind:id, such as retainer:ID or bank:ID."
        )
    return typer.Exit(1)

"""The command `ordersaga erase`."""

from typing import Annotated
from urllib.parse import quote

import httpx
import typer
import uvloop

from operations.actions import record_action
from operations.commands.names import check_name
from operations.commands.operator import current_operator
from operations.commands.permission import NotPermittedError
from operations.commands.target import chosen_stack
from operations.commands.terminal import counted, print_error, print_json
from operations.dead_letters.connection import connect
from operations.dead_letters.records import LetterRecords
from operations.errors import UnreachableError
from operations.reading.archived_totals import ArchivedTotals
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from shared.printable import printable
from shared.services import ORDER
from shared.tls import client_context

TIMEOUT_SECONDS = 120.0


def erase(
    user: Annotated[str, typer.Option("--user", help="The userId of the person's orders.")],
    why: Annotated[str, typer.Option("--why", help="Reason, kept in the log of actions.", show_default="none")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Erase name, e-mail, phone, address, instructions and notes from all orders and dead letters of a user.

    Amounts, items, payments and the user's id stay, so the books and the audit are unchanged. The order service must
    run, and the key needs personal:erase. What was erased comes back with a backup from before: erase again then.
    Files of `ordersaga archive` are not reached, and the command says whether there may be any.

    Exit status 0 when done, also if there was nothing to erase, 1 if it was refused or not confirmed, 2 for wrong
    usage, 3 if a server cannot be reached.
    """
    check_name("--user", user)
    if as_json_document and not yes:
        raise typer.BadParameter("--json does not prompt: add --yes")
    if not yes:
        typer.confirm(f"Erase what is known about the person {printable(user)}?", abort=True, err=True)
    try:
        orders, letters, archived = uvloop.run(_erase(chosen_stack(), user, why))
    except NotPermittedError as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    if as_json_document:
        figures = {"orders": orders, "deadLetters": letters, "archiveFilesWithPersonalData": archived}
        print_json({"userId": user} | figures)
        return
    erased = f"{counted(orders, 'orders')} and {counted(letters, 'dead letters')}"
    typer.echo(f"Erased from {erased} of {printable(user)}.")
    if archived:
        typer.echo(
            f"At most {counted(archived, 'files')} of archives have personal data, of all users. This command does "
            "not reach them: look for the user there, see docs/retention.md."
        )


async def _erase(stack: Stack, user: str, why: str) -> tuple[int, int, int]:
    """Erase from orders, then from dead letters; both may be repeated.

    Return how many of each said anything, and how many files of archives have personal data of any user.
    """
    orders = await _erase_from_orders(stack, user)
    async with connect(stack) as connection:
        letters = await LetterRecords(connection.database).erase_person(user)
        outcome = f"erased from {orders} orders and {letters} dead letters"
        await record_action(
            connection.database,
            by=current_operator(),
            why=why,
            action="personal-data.erase",
            subject=user,
            outcome=outcome,
        )
    return orders, letters, await _count_files(stack)


async def _count_files(stack: Stack) -> int:
    async with open_mongodb(stack.mongodb_url, purpose="the totals of archives", name="ordersaga-erase") as client:
        return await ArchivedTotals(client, stack.database_prefix).personal_files()


async def _erase_from_orders(stack: Stack, user: str) -> int:
    """Have the order service erase. Raises NotPermittedError if it refuses, UnreachableError if it does not answer."""
    url = stack.urls.get(ORDER.name)
    if url is None:
        raise UnreachableError("the order service must run: it erases from its own records")
    path = f"{url.rstrip('/')}/users/{quote(user, safe='')}/personal-data"
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False, verify=client_context()) as client:
        try:
            answer = await client.delete(path, headers=stack.headers)
            body = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise UnreachableError(f"the order service does not answer at {url}: {error}") from error
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise NotPermittedError(f"erasing needs the permission personal:erase: {body.get('detail')}")
    if answer.is_error:
        raise UnreachableError(f"the order service did not erase: {body.get('detail')}")
    return int(body["orders"])

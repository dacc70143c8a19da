"""The command `ordersaga cleanup`."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from operations.cleanup.age import read_age
from operations.cleanup.deletion import CleanupResult, clean_up
from operations.commands.target import chosen_stack
from operations.commands.terminal import foreign, open_console, print_error, print_json
from operations.dead_letters.lookup import DeadLetterLookup
from operations.reading.broker import count_messages
from operations.reading.connection import open_mongodb
from operations.reading.order_collections import KINDS
from operations.settings import Stack
from shared.topology import DEAD_LETTERS


def cleanup(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Minimum age of a finished order, such as 30d.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    ignore_dead_letters: Annotated[
        bool, typer.Option("--ignore-dead-letters", help="Delete even if there are dead letters.")
    ] = False,
) -> None:
    """Delete the records of orders that were cancelled and settled long ago: order, reservation, payment, charge, job.

    Successful and FAILED orders are never deleted. AGE is a whole number followed by s, m, h, d or w, and at least a
    day. It must exceed the time that any message may wait: a message for a deleted order would find no trace of the
    order, and an `order.created` would reserve and charge again. So the cleanup refuses to run while there are dead
    letters.

    Exit status 0 when done, 1 if refused or not confirmed, 2 for wrong usage, 3 if a server cannot be reached.
    """
    before = datetime.now(UTC) - _age(older_than)
    if as_json_document and not (yes or dry_run):
        raise typer.BadParameter("--json does not prompt: add --yes or --dry-run")
    stack = chosen_stack()
    console = open_console(stderr=as_json_document)
    # A dry run deletes nothing, so dead letters do not matter.
    if not (ignore_dead_letters or dry_run) and (reason := uvloop.run(refusal(stack))):
        _refuse(reason, as_json_document)
    outcome = _run(stack, before, console, delete=yes and not dry_run)
    if not (dry_run or yes) and outcome.found["orders"]:
        show(outcome, console, before, deleted=False)
        if not typer.confirm("Delete these?"):
            raise typer.Exit(1)
        outcome = _run(stack, before, console, delete=True)
    if as_json_document:
        figures = {"dryRun": dry_run, "before": before.isoformat(timespec="seconds")}
        print_json(figures | outcome.as_json())
    else:
        show(outcome, console, before, deleted=not dry_run)


async def refusal(stack: Stack) -> str | None:
    """Return the reason for which nothing may be deleted now, None if there is none. Raises UnreachableError."""
    letters = ((await count_messages(stack.amqp_url, [DEAD_LETTERS]))[DEAD_LETTERS] or 0) + await _recorded(stack)
    if not letters:
        return None
    return (
        f"there {'is 1 dead letter' if letters == 1 else f'are {letters} dead letters'}. Replayed after the cleanup, a "
        "letter would not find the records of its order. Replay or discard first, or add --ignore-dead-letters."
    )


async def _recorded(stack: Stack) -> int:
    """Count the recorded dead letters that may still be replayed or are being replayed."""
    async with open_mongodb(stack.mongodb_url, purpose="the cleanup", name="ordersaga-cleanup") as client:
        return await DeadLetterLookup(client, stack.database_prefix).count_open()


def show(outcome: CleanupResult, console: Console, before: datetime, *, deleted: bool) -> None:
    """Print the number of records of each kind that were or would be deleted, and the orders that are kept."""
    figures = outcome.deleted if deleted else outcome.found
    since = before.isoformat(timespec="minutes")
    if not outcome.found["orders"]:
        console.print(f"Nothing to delete: no order that was cancelled and settled before {since} can be deleted.")
    else:
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right")
        for kind in KINDS:
            table.add_row(f"{figures[kind]:,}", kind)
        console.print(f"{'Deleted' if deleted else 'Would delete'}, of orders cancelled and settled before {since}:")
        console.print(table)
    for reason, number in sorted(outcome.kept.items()):
        console.print(f"kept {number:,} orders: {foreign(reason)}", style="dim", highlight=False)


def _age(text: str) -> timedelta:
    try:
        return read_age(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--older-than") from error


def _refuse(reason: str, as_json_document: bool) -> None:
    if as_json_document:
        print_json({"refused": reason})
    else:
        print_error(f"Nothing was deleted: {reason}")
    raise typer.Exit(1)


def _run(stack: Stack, before: datetime, console: Console, *, delete: bool) -> CleanupResult:
    verb = "deleting" if delete else "checking"
    columns = (SpinnerColumn(), TextColumn(f"{verb}, {{task.completed:,}} orders"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(verb, total=None)
        return uvloop.run(
            clean_up(
                stack.url_for_changes,
                stack.database_prefix,
                before,
                delete=delete,
                on_progress=lambda orders: progress.advance(task, orders),
            )
        )

"""The command `ordersaga cleanup`."""

from datetime import UTC, datetime
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from operations.cleanup.deletion import CLEANED_KINDS, CleanupResult, clean_up
from operations.commands.removal import IGNORE_DEAD_LETTERS, age_of, refusal, refuse
from operations.commands.target import chosen_stack
from operations.commands.terminal import counted, foreign, open_console, print_json
from operations.settings import Stack


def cleanup(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Minimum age of a finished order, such as 30d.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    ignore_dead_letters: Annotated[bool, typer.Option("--ignore-dead-letters", help=IGNORE_DEAD_LETTERS)] = False,
) -> None:
    """Delete the records of orders that were cancelled and settled long ago: order, reservation, payment, charge, job.

    Holds that ended before that time go too, and the stored answers to requests with an Idempotency-Key: such a request
    is done again if it is repeated later. Successful and FAILED orders are never deleted. AGE is a whole number
    followed by s, m, h, d or w, and at least a day. It must exceed the time that any message may wait: a message for a
    deleted order would find no trace of the order, and an `order.created` would reserve and charge again. So the
    cleanup refuses to run while there are dead letters.

    Exit status 0 when done, 1 if refused or not confirmed, 2 for wrong usage, 3 if a server cannot be reached.
    """
    before = datetime.now(UTC) - age_of(older_than)
    if as_json_document and not (yes or dry_run):
        raise typer.BadParameter("--json does not prompt: add --yes or --dry-run")
    stack = chosen_stack()
    console = open_console(stderr=as_json_document)
    # A dry run deletes nothing, so dead letters do not matter.
    if not (ignore_dead_letters or dry_run) and (reason := uvloop.run(refusal(stack))):
        refuse(reason, as_json_document=as_json_document)
    outcome = _run(stack, before, console, delete=yes and not dry_run)
    if not (dry_run or yes) and any(outcome.found.values()):
        show(outcome, console, before, deleted=False)
        if not typer.confirm("Delete these?"):
            raise typer.Exit(1)
        outcome = _run(stack, before, console, delete=True)
    if as_json_document:
        figures = {"dryRun": dry_run, "before": before.isoformat(timespec="seconds")}
        print_json(figures | outcome.as_json())
    else:
        show(outcome, console, before, deleted=not dry_run)


def show(outcome: CleanupResult, console: Console, before: datetime, *, deleted: bool) -> None:
    """Print the number of records of each kind that were or would be deleted, and of the orders that are kept."""
    figures = outcome.deleted if deleted else outcome.found
    since = before.isoformat(timespec="minutes")
    if not any(outcome.found.values()):
        console.print(f"Nothing to delete: no order that was cancelled and settled before {since} can be deleted.")
    else:
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right")
        for kind in CLEANED_KINDS:
            table.add_row(*counted(figures[kind], kind).split())
        verb = "Deleted" if deleted else "Would delete"
        console.print(f"{verb}, of orders cancelled and settled, and holds ended, before {since}:")
        console.print(table)
    for reason, number in sorted(outcome.kept.items()):
        console.print(f"kept {counted(number, 'orders')}: {foreign(reason)}", style="dim", highlight=False)
    for reason, number in outcome.failed.most_common():
        console.print(f"kept {counted(number, 'FAILED orders')}: {foreign(reason)}", style="dim", highlight=False)


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

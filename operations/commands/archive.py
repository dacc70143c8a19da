"""The command `ordersaga archive`."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from operations.actions import record_action
from operations.archive.archiving import ArchivePlan, ArchiveResult, archive_orders, find_archivable
from operations.archive.files import ArchiveError, verify_archive
from operations.commands.operator import current_operator
from operations.commands.removal import age_of, refusal, refuse
from operations.commands.target import chosen_stack
from operations.commands.terminal import foreign, open_console, print_error, print_json
from operations.reading.archived import ARCHIVE_ACTION
from operations.reading.connection import open_mongodb
from operations.removal.orders import REMOVED_KINDS
from operations.settings import Stack
from shared.failpoints import kill_at
from shared.services import CONSOLE


def archive(
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Minimum age of a finished order, such as 90d.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Directory of the archive; it is created if missing.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option("--verify", metavar="DIR", help="Only check the files of this archive.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be archived.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    without_personal_data: Annotated[
        bool, typer.Option("--without-personal-data", help="Leave out names, addresses, notes: they are deleted.")
    ] = False,
    ignore_dead_letters: Annotated[
        bool, typer.Option("--ignore-dead-letters", help="Run even if there are dead letters; their orders stay.")
    ] = False,
) -> None:
    """Move orders that settled long ago as CONFIRMED, COMPLETED or CANCELLED into files, with all their records.

    Every file is read back and verified, and only then its orders are deleted; their stock, money and addresses stay in
    the books. FAILED orders stay, and orders about which anything is open. A run that was killed is simply repeated.
    AGE is a whole number followed by s, m, h, d or w, and at least a day. `--verify DIR` checks an archive later.

    Exit status 0 when done, 1 if refused, not confirmed, or the archive cannot be written or is damaged, 2 for wrong
    usage, 3 if a server cannot be reached.
    """
    if verify is not None:
        if older_than is not None or to is not None:
            raise typer.BadParameter("--verify takes no --older-than and no --to")
        _verify(verify, as_json_document)
        return
    if older_than is None or to is None:
        raise typer.BadParameter("--older-than and --to are needed, or --verify")
    plan = ArchivePlan(datetime.now(UTC) - age_of(older_than), personal_data=not without_personal_data)
    if as_json_document and not (yes or dry_run):
        raise typer.BadParameter("--json does not prompt: add --yes or --dry-run")
    stack = chosen_stack()
    console = open_console(stderr=as_json_document)
    if not (ignore_dead_letters or dry_run) and (reason := uvloop.run(refusal(stack))):
        refuse(reason, as_json_document=as_json_document)
    if dry_run or not yes:
        found = _find(stack, plan, console)
        if dry_run or not found.found["orders"]:
            _report(found, console, plan, to, as_json_document=as_json_document, dry_run=dry_run)
            return
        _show(found, console, plan, to)
        if not typer.confirm("Archive these, and delete them from the databases?"):
            raise typer.Exit(1)
    try:
        done = _run(stack, plan, to, console)
    except ArchiveError as error:
        print_error(f"{error}. Orders that are not in a verified file were not deleted.")
        raise typer.Exit(1) from None
    _report(done, console, plan, to, as_json_document=as_json_document, dry_run=False)


def _find(stack: Stack, plan: ArchivePlan, console: Console) -> ArchiveResult:
    with _progress(console, "checking") as progress:
        task = progress.add_task("checking", total=None)
        return uvloop.run(
            find_archivable(
                stack.url_for_changes,
                stack.database_prefix,
                plan,
                on_progress=lambda orders: progress.advance(task, orders),
            )
        )


def _run(stack: Stack, plan: ArchivePlan, to: Path, console: Console) -> ArchiveResult:
    with _progress(console, "archiving") as progress:
        task = progress.add_task("archiving", total=None)
        return uvloop.run(
            archive_orders(
                stack.url_for_changes,
                stack.database_prefix,
                to.resolve(),
                plan,
                on_progress=lambda orders: progress.advance(task, orders),
                on_verified=lambda path, orders: _record(stack, path, orders),
                failpoint=kill_at(os.environ.get("ORDERSAGA_CRASH_AT")),
            )
        )


async def _record(stack: Stack, path: Path, orders: int) -> None:
    """Write down in the log of actions that orders are about to leave the databases, and where they are."""
    async with open_mongodb(stack.url_for_changes, purpose="the log of actions", name="ordersaga-archive") as client:
        await record_action(
            client[CONSOLE.database_in(stack.database_prefix)],
            by=current_operator(),
            why="",
            action=ARCHIVE_ACTION,
            subject=str(path),
            outcome=f"{orders} orders written and verified, deleted next",
        )


def _progress(console: Console, verb: str) -> Progress:
    columns = (SpinnerColumn(), TextColumn(f"{verb}, {{task.completed:,}} orders"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _report(
    result: ArchiveResult, console: Console, plan: ArchivePlan, to: Path, *, as_json_document: bool, dry_run: bool
) -> None:
    if as_json_document:
        figures = {
            "dryRun": dry_run,
            "before": plan.before.isoformat(timespec="seconds"),
            "directory": str(to),
            "personalData": plan.personal_data,
        }
        print_json(figures | result.as_json())
    else:
        _show(result, console, plan, to)


def _show(result: ArchiveResult, console: Console, plan: ArchivePlan, to: Path) -> None:
    """Print the number of records of each kind that were or would be archived, and the orders that are kept."""
    before, done = plan.before.isoformat(timespec="minutes"), bool(result.files)
    if not result.found["orders"]:
        console.print(f"Nothing to archive: no order that settled before {before} can be archived.")
    else:
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right")
        figures = result.deleted if done else result.found
        for kind in REMOVED_KINDS:
            table.add_row(f"{figures[kind]:,}", kind)
        verb = f"Archived in {len(result.files):,} files and deleted" if done else "Would archive and delete"
        console.print(f"{verb}, of orders settled before {before}, to {foreign(to)}:", highlight=False)
        console.print(table)
        by_status = ", ".join(f"{number:,} {status}" for status, number in result.statuses.items())
        console.print(f"The orders: {by_status}.", highlight=False)
    for note in result.notes:
        console.print(foreign(note), style="dim", highlight=False)
    for reason, number in sorted(result.kept.items()):
        console.print(f"kept {number:,} orders: {foreign(reason)}", style="dim", highlight=False)


def _verify(directory: Path, as_json_document: bool) -> None:
    try:
        found = verify_archive(directory)
    except ArchiveError as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    if as_json_document:
        print_json(
            {
                "ok": not found.problems,
                "files": found.files,
                "orders": found.orders,
                "problems": found.problems,
                "notes": found.notes,
            }
        )
    else:
        console = open_console()
        console.print(f"{found.files:,} files with {found.orders:,} orders are right.", highlight=False)
        for note in found.notes:
            console.print(foreign(note), style="dim", highlight=False)
        for problem in found.problems:
            console.print(f"[red]✗[/] {foreign(problem)}", highlight=False)
    if found.problems:
        raise typer.Exit(1)

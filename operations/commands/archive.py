"""The command `ordersaga archive`."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from operations.actions import record_action
from operations.archive.archiving import (
    ArchivePlan,
    ArchiveResult,
    VerifiedFile,
    archive_orders,
    find_archivable,
)
from operations.archive.files import Verification, directory_of, verify_archive
from operations.archive.filesystems import allow_any, check_lasting
from operations.commands.failures import errors_shown, status_of
from operations.commands.operator import current_operator
from operations.commands.removal import IGNORE_DEAD_LETTERS, age_of, refusal, refuse
from operations.commands.target import chosen_stack
from operations.commands.terminal import counted, foreign, open_console, print_error, print_json
from operations.errors import CommandError
from operations.reading.archived import ARCHIVE_ACTION
from operations.reading.connection import open_mongodb
from operations.removal.orders import REMOVED_KINDS
from operations.settings import Stack
from shared.failpoints import kill_at
from shared.services import CONSOLE


def archive(
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Minimum age of a finished order, such as 90d.",
            show_default="needed to archive",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="DIR",
            help="Directory of the archive; it is created if missing.",
            show_default="needed to archive",
        ),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option("--verify", metavar="DIR", help="Only check the files of this archive.", show_default="no check"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be archived.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    without_personal_data: Annotated[
        bool, typer.Option("--without-personal-data", help="Leave out names, addresses, notes: they are deleted.")
    ] = False,
    ignore_dead_letters: Annotated[bool, typer.Option("--ignore-dead-letters", help=IGNORE_DEAD_LETTERS)] = False,
    allow_volatile: Annotated[
        bool, typer.Option("--allow-volatile", help="Accept a directory in memory or in the layer of a container.")
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
        others = (older_than, to, dry_run, yes, without_personal_data, ignore_dead_letters, allow_volatile)
        if any(others):
            raise typer.BadParameter("--verify takes no other option than --json")
        with errors_shown(as_json_document=as_json_document):
            _report_verification(verify_archive(verify), as_json_document=as_json_document)
        return
    if older_than is None or to is None:
        raise typer.BadParameter("--older-than and --to are needed, or --verify")
    plan = ArchivePlan(datetime.now(UTC) - age_of(older_than), personal_data=not without_personal_data)
    if as_json_document and not (yes or dry_run):
        raise typer.BadParameter("--json does not prompt: add --yes or --dry-run")
    console = open_console(stderr=as_json_document)
    with errors_shown(as_json_document=as_json_document):
        directory, stack = directory_of(to), chosen_stack()
        if not dry_run and not allow_volatile:
            check_lasting(directory)
        report = _Report(console, plan, directory, as_json_document=as_json_document, dry_run=dry_run)
        if not (ignore_dead_letters or dry_run) and (reason := uvloop.run(refusal(stack))):
            refuse(reason, as_json_document=as_json_document)
        if dry_run or not yes:
            found = _find(stack, plan, console)
            report.show(found, done=False)
            if dry_run or not found.found["orders"]:
                return
            if not typer.confirm("Archive these, and delete them from the databases?"):
                raise typer.Exit(1)
    _run(stack, plan, report, allow_volatile=allow_volatile)


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


def _run(stack: Stack, plan: ArchivePlan, report: "_Report", *, allow_volatile: bool) -> None:
    """Archive, and report what was done; if it failed half way, that and the error."""
    result, failed = ArchiveResult(), None
    with _progress(report.console, "archiving") as progress:
        task = progress.add_task("archiving", total=None)
        try:
            uvloop.run(
                archive_orders(
                    stack.url_for_changes,
                    stack.database_prefix,
                    report.directory,
                    plan,
                    result=result,
                    check=allow_any if allow_volatile else check_lasting,
                    on_progress=lambda orders: progress.advance(task, orders),
                    on_verified=lambda file: _record(stack, file),
                    failpoint=kill_at(os.environ.get("ORDERSAGA_CRASH_AT")),
                )
            )
        except CommandError as error:
            failed = error
    report.show(result, done=True, failed=failed)
    if failed is not None:
        raise typer.Exit(status_of(failed))


async def _record(stack: Stack, file: VerifiedFile) -> None:
    """Write down in the log of actions that orders are about to leave the databases, and where they are."""
    async with open_mongodb(stack.url_for_changes, purpose="the log of actions", name="ordersaga-archive") as client:
        await record_action(
            client[CONSOLE.database_in(stack.database_prefix)],
            by=current_operator(),
            why="",
            action=ARCHIVE_ACTION,
            subject=str(file.path),
            outcome=f"{counted(file.orders, 'orders')} written and verified, deleted next; sha256 {file.sha256}",
        )


def _progress(console: Console, verb: str) -> Progress:
    columns = (SpinnerColumn(), TextColumn(f"{verb}, {{task.completed:,}} orders"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@dataclass(frozen=True, slots=True)
class _Report:
    """Shows results as text or as one JSON document."""

    console: Console
    plan: ArchivePlan
    directory: Path
    as_json_document: bool
    dry_run: bool

    def show(self, result: ArchiveResult, *, done: bool, failed: CommandError | None = None) -> None:
        """Show what was done, or would be, and the error that ended it."""
        if self.as_json_document:
            print_json(self._figures() | result.as_json() | ({"error": str(failed)} if failed else {}))
            return
        if failed is None or any(result.deleted.values()):
            self._show_records(result, done=done)
        for note in result.notes:
            self.console.print(foreign(note), style="dim", highlight=False)
        for reason, number in sorted(result.kept.items()):
            self.console.print(f"kept {counted(number, 'orders')}: {foreign(reason)}", style="dim", highlight=False)
        if failed is not None:
            print_error(f"{failed}. Orders that are not in a verified file were not deleted.")

    def _figures(self) -> dict[str, Any]:
        return {
            "dryRun": self.dry_run,
            "before": self.plan.before.isoformat(timespec="seconds"),
            "directory": str(self.directory),
            "personalData": self.plan.personal_data,
        }

    def _show_records(self, result: ArchiveResult, *, done: bool) -> None:
        before = self.plan.before.isoformat(timespec="minutes")
        if not result.found["orders"]:
            self.console.print(f"Nothing to archive: no order that settled before {before} can be archived.")
            return
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right")
        figures = result.deleted if done else result.found
        for kind in REMOVED_KINDS:
            table.add_row(*counted(figures[kind], kind).split())
        verb = f"Archived in {counted(len(result.files), 'files')} and deleted" if done else "Would archive and delete"
        text = f"{verb}, of orders settled before {before}, to {foreign(self.directory)}:"
        self.console.print(text, highlight=False)
        self.console.print(table)
        by_status = ", ".join(f"{number:,} {status}" for status, number in result.statuses.items())
        self.console.print(f"The orders: {by_status}.", highlight=False)


def _report_verification(found: Verification, *, as_json_document: bool) -> None:
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
        if found.files:
            verb = "is" if found.files == 1 else "are"
            text = f"{counted(found.files, 'files')} with {counted(found.orders, 'orders')} {verb} right."
            console.print(text, highlight=False)
        for note in found.notes:
            console.print(foreign(note), style="dim", highlight=False)
        for problem in found.problems:
            console.print(f"[red]✗[/] {foreign(problem)}", highlight=False)
    if found.problems:
        raise typer.Exit(1)

"""The commands `ordersaga backup` and `ordersaga restore`."""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from operations.archive.filesystems import MOUNTS, VOLATILE, volatile_filesystem
from operations.backup.checking import open_backup, verify_backup
from operations.backup.manifest import Manifest, Verdict
from operations.backup.outside import OutsideSince, find_since, note_for_sale
from operations.backup.restoring import (
    AUDIT,
    RECOVER,
    START,
    RestoreResult,
    check_target,
    read_backup,
    records_are_restored,
)
from operations.backup.restoring import restore as restore_records
from operations.backup.taking import take_backup
from operations.commands.failures import errors_shown
from operations.commands.operator import current_operator
from operations.commands.recover import show as show_recovery
from operations.commands.target import chosen_stack
from operations.commands.terminal import counted, foreign, open_console, print_json
from operations.errors import UnreachableError
from operations.recovery import RecoveryReport, recover
from operations.settings import Stack
from shared.errors import StartError
from shared.printable import printable

KEPT_APART = (
    "Not in the backup, keep them apart from it: the encryption keys (ORDERSAGA_CREDENTIALS_KEY, "
    "ORDERSAGA_WEBHOOK_KEY, or credentials.key and secrets/ in the data directory), without which no credentials "
    "of servers and no webhook can be used; the file of the API keys; the passwords of users; the configuration."
)
EVENTS_BEFORE = timedelta(minutes=10)
"""Events of this time before the backup are published again: some may have been on the broker only."""
LOST = "Orders and changes after that moment are not known here; docs/backup.md says what to look at."

Advance = Callable[[int], None]


def backup(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory of the backup: missing, or empty.", show_default=False)
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Only check the files of the backup in DIR.")] = False,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Copy all records of the stack, as they are at one moment, into a directory. Orders may be in flight meanwhile.

    The layout is mongodump's, compressed, with a manifest of counts, hashes, versions and the result of an audit. While
    it is written the directory is called DIR.partial. What is encrypted stays so: keep the keys elsewhere.

    Exit status 0 when done, also if the audit found violations, 1 if the backup failed or is damaged, 2 for a directory
    that is not empty, 3 if a server cannot be reached.
    """
    console = open_console(stderr=as_json_document)
    with errors_shown(as_json_document=as_json_document):
        if verify:
            manifest = open_backup(directory)
            with _progress(console, "checking") as advance:
                verify_backup(directory, manifest, advance)
        else:
            stack = chosen_stack()
            with _progress(console, "copying") as advance:
                manifest = uvloop.run(_take(stack, directory, advance))
    if as_json_document:
        print_json({"directory": str(directory.resolve()), "notInBackup": KEPT_APART} | _summary(manifest))
    else:
        _show_backup(console, directory.resolve(), manifest, verb="is complete and undamaged" if verify else "is done")


async def _take(stack: Stack, directory: Path, advance: Advance) -> Manifest:
    outside = await note_for_sale(stack, os.environ)
    return await take_backup(stack, directory, outside=outside, on_progress=advance)


def _summary(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest without the list of its files, and with totals."""
    known = manifest.as_json()
    del known["files"], known["outside"]
    return known | {"documents": manifest.documents, "bytes": manifest.size, "files": len(manifest.files)}


def _show_backup(console: Console, directory: Path, manifest: Manifest, *, verb: str) -> None:
    stored = sum(file.size for file in manifest.files)
    seconds = (manifest.copied_at - manifest.began_at).total_seconds()
    console.print(
        f"The backup in {foreign(directory)} {verb}: {counted(manifest.documents, 'records')} as of "
        f"{manifest.cluster_time.at:%Y-%m-%d %H:%M:%S} UTC, {manifest.size / 1e6:,.1f} MB in {stored / 1e6:,.1f} MB "
        f"of {counted(len(manifest.files), 'files')}, copied in {seconds:.1f} s.",
        highlight=False,
    )
    _show_verdict(console, manifest.audit)
    for name in manifest.left_out:
        console.print(f"not in the backup: {foreign(name)}", style="dim", highlight=False)
    if kind := _volatile(directory):
        console.print(f"[yellow]{foreign(directory)} is on {kind} ({VOLATILE[kind]}): copy it to a disk.[/]")
    console.print(KEPT_APART, style="dim", highlight=False)


def _show_verdict(console: Console, verdict: Verdict) -> None:
    if verdict.ok is None:
        console.print(f"[yellow]No audit: {foreign(verdict.reason or '')}[/]", highlight=False)
    elif verdict.ok:
        console.print("[green]✓[/] The audit found no violation.", highlight=False)
    else:
        console.print(f"[red]✗ The audit found {counted(len(verdict.violations), 'violations')}:[/]", highlight=False)
        for violation in verdict.violations:
            console.print(f"[red]✗[/] {foreign(violation)}", highlight=False)


def _volatile(directory: Path) -> str | None:
    return volatile_filesystem(directory, MOUNTS.read_text()) if MOUNTS.exists() else None


def restore(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Directory of the backup.", exists=True, file_okay=False, show_default=False
        ),
    ],
    why: Annotated[str, typer.Option("--why", help="Reason, kept in the log of actions.", show_default="none")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write the records of a backup into an empty stack whose services do not run, such as `ordersaga up --only ''`.

    The files are verified first and the databases afterwards, byte by byte. Then the audit judges the records,
    servers and charges that belong to no order here are listed, and what unsettled orders wait for is sent again, as
    `ordersaga recover` does. Start the services next.

    Exit status 0 when done, 1 if the backup is damaged or does not fit, the stack is not empty or not idle, the audit
    found violations, or it was not confirmed, 2 for wrong usage, 3 if a server cannot be reached.
    """
    if as_json_document and not yes:
        raise typer.BadParameter("--json does not prompt: add --yes")
    directory, console = directory.resolve(), open_console(stderr=as_json_document)
    with errors_shown(as_json_document=as_json_document):
        stack = chosen_stack()
        with _progress(console, "checking") as advance:
            manifest = read_backup(directory, stack.database_prefix, advance)
        uvloop.run(check_target(stack))
        if not yes:
            what = f"{counted(manifest.documents, 'records')} as of {manifest.cluster_time.at:%Y-%m-%d %H:%M:%S} UTC"
            typer.confirm(f"Restore {what} into {printable(stack.describe())}?", abort=True, err=True)
        with _progress(console, "writing and comparing") as advance:
            done = uvloop.run(_restore(stack, directory, manifest, why, advance))
    if as_json_document:
        print_json({"directory": str(directory)} | done.as_json())
    else:
        _show_restored(console, done)
    raise typer.Exit(0 if done.result.ok else 1)


class _Done(NamedTuple):
    """What a restore did, what it found outside, and what was sent again; None if nothing was."""

    result: RestoreResult
    outside: OutsideSince
    recovery: RecoveryReport | None

    @property
    def notes(self) -> list[str]:
        """What an operator should know."""
        return [*self.result.notes, *self.outside.notes]

    @property
    def next(self) -> list[str]:
        """What is left to do."""
        return [START, *(() if self.recovery else (RECOVER,)), AUDIT]

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON document shows it."""
        charges = [{"orderId": charge.key, "chargeId": charge.charge_id} for charge in self.outside.charges]
        found = {"unknownServers": self.outside.servers, "unknownCharges": charges, "notes": self.notes}
        sent = self.recovery.as_json() if self.recovery else None
        return self.result.as_json() | found | {"recovery": sent, "next": self.next}


async def _restore(stack: Stack, directory: Path, manifest: Manifest, why: str, advance: Advance) -> _Done:
    result = await restore_records(stack, directory, manifest, by=current_operator(), why=why, on_progress=advance)
    with records_are_restored("the search for servers and charges since then"):
        outside = await find_since(stack, manifest, os.environ)
    with records_are_restored("the recovery"):
        # An operator should see violations before messages about them are sent.
        return _Done(result, outside, await _recover(stack, result, why) if result.ok else None)


async def _recover(stack: Stack, result: RestoreResult, why: str) -> RecoveryReport | None:
    """Send what orders wait for again; return None, and note why, if the broker does not let us."""
    since = result.manifest.cluster_time.at - EVENTS_BEFORE
    try:
        return await recover(stack, by=current_operator(), why=why, since=since)
    except (UnreachableError, StartError) as error:
        result.notes.append(f"nothing was sent again: {error}")
        return None


def _show_restored(console: Console, done: _Done) -> None:
    result, manifest = done.result, done.result.manifest
    console.print(
        f"Restored {counted(manifest.documents, 'records')} as of {manifest.cluster_time.at:%Y-%m-%d %H:%M:%S} UTC; "
        f"{counted(len(manifest.collections), 'collections')} compared with the backup.",
        highlight=False,
    )
    for name, number in result.expired.items():
        console.print(f"{number:,} of {foreign(name)} had expired", style="dim", highlight=False)
    for note in done.notes:
        console.print(foreign(note), style="dim", highlight=False)
    for violation in result.violations:
        console.print(f"[red]✗[/] {foreign(violation)}", highlight=False)
    if result.ok:
        console.print("[green]✓[/] The audit found no violation in the records.", highlight=False)
    _show_unknown(console, done.outside)
    if done.recovery:
        show_recovery(done.recovery, console, done=True)
    console.print(LOST, highlight=False)
    console.print("Next:", highlight=False)
    for number, step in enumerate(done.next, 1):
        console.print(f"  {number}. {step}", markup=False, highlight=False)


def _show_unknown(console: Console, outside: OutsideSince) -> None:
    if outside.servers:
        console.print("[yellow]Servers that were bought since the backup, and belong to no order:[/]")
        for server in outside.servers:
            console.print(f"  {foreign(server)}", highlight=False)
    if outside.charges:
        console.print("[yellow]Charges since the backup, of orders that are not known here; refund them:[/]")
        for charge in outside.charges:
            console.print(f"  {foreign(charge.charge_id)} of order {foreign(charge.key)}", highlight=False)


@contextlib.contextmanager
def _progress(console: Console, verb: str) -> Iterator[Advance]:
    columns = (SpinnerColumn(), TextColumn(f"{verb}, {{task.completed:,}} records"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(verb, total=None)
        yield lambda records: progress.advance(task, records)

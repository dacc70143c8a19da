"""The command `ordersaga migrate`."""

import os
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from operations.commands.failures import errors_shown
from operations.commands.operator import current_operator
from operations.commands.target import DataDirectory, chosen_stack
from operations.commands.terminal import counted, foreign, open_console, print_error, print_json
from operations.migration import MigrationReport, QueueState, preview
from operations.migration import migrate as run_migration
from operations.settings import Stack
from shared import topology
from shared.errors import StartError
from shared.failpoints import kill_at


def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what differs, and how.")] = False,
    data_dir: DataDirectory = None,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Replace the queues that were declared with other arguments than this release declares, while services run.

    RabbitMQ does not change the arguments of a queue. So the messages that wait are moved to a second queue, which gets
    the new ones meanwhile; the queue is deleted and declared again, and they are moved back. Dead letters are recorded.
    At the end, what unsettled orders wait for is sent again, as by `ordersaga recover`. Nothing is lost, and what comes
    twice changes nothing; a run that was interrupted is simply repeated. Orders pause for some seconds.
    ORDERSAGA_AMQP_URL, if set, must have a user who may declare and publish everything (deployer).

    Exit status 0 when all queues are as this release declares them (or would be), 3 if a server cannot be reached: run
    it again then. 1 with nothing changed if another migration runs, an exchange differs, a restore is not finished or
    the user may not do that; 1 at the end if a running older release has declared a queue in its own form again, or if
    something could not be sent again.
    """
    with errors_shown(as_json_document=as_json_document):
        stack = chosen_stack(data_dir)
        try:
            report = _run(stack, dry_run=dry_run)
        except StartError as error:
            print_error(str(error))
            raise typer.Exit(1) from None
    if as_json_document:
        print_json({"dryRun": dry_run} | report.as_json())
    else:
        show(report, open_console(highlight=False, soft_wrap=True), done=not dry_run)
    if not report.ok:
        raise typer.Exit(1)


def _run(stack: Stack, *, dry_run: bool) -> MigrationReport:
    if dry_run:
        return uvloop.run(preview(stack))
    failpoint = kill_at(os.environ.get("ORDERSAGA_CRASH_AT"))
    return uvloop.run(run_migration(stack, by=current_operator(), failpoint=failpoint))


def show(report: MigrationReport, console: Console, *, done: bool) -> None:
    """Print what differs and what was done about it."""
    for name, words in report.found.exchanges.items():
        console.print(f"[red]✗[/] exchange {name}: {foreign(words)}")
    for state in report.found.queues:
        _show_queue(state, report, console, done=done)
    if report.found.event_stream:
        console.print(f"{foreign(report.found.event_stream)}; it is left as it is")
    if report.recovery is not None:
        console.print(f"Sent again, from the records: {report.recovery.in_words()}")
        if not report.recovery.ok:
            console.print("[red]✗[/] some orders could not be sent again: `ordersaga recover` names them")
    if not report.found.queues:
        console.print(f"The {len(topology.queues())} queues are as this release declares them")


def _show_queue(state: QueueState, report: MigrationReport, console: Console, *, done: bool) -> None:
    name = state.queue.name
    for words in state.differences:
        console.print(f"{name}: {foreign(words)}")
    if state.unfinished:
        console.print(f"{name}: a migration of it was interrupted")
    if not done:
        return
    if name in report.still_differing:
        reason = foreign(report.still_differing[name])
        console.print(
            f"[red]✗[/] {name}: still declared by a running older release ({reason}): upgrade all services first, and "
            "run this again. Its messages are kept"
        )
        return
    kind, what = ("dead letters", "recorded") if name == topology.DEAD_LETTERS else ("messages", "moved")
    console.print(f"{name}: replaced, {counted(report.moved.get(name, 0), kind)} {what}")

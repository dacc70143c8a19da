"""The command `ordersaga recover`."""

from collections import Counter
from datetime import datetime
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from operations.commands.operator import current_operator
from operations.commands.target import chosen_stack
from operations.commands.terminal import counted, foreign, open_console, print_error, print_json
from operations.dead_letters.times import read_time
from operations.recovery import DEFAULT_RATE, RecoveryReport, preview
from operations.recovery import recover as run_recovery
from operations.settings import Stack
from shared.clock import utc_now
from shared.errors import StartError

WHY = "the broker lost its messages"


def recover(
    since: Annotated[
        str,
        typer.Option("--since", metavar="TIME", help="Publish events since then again: 2026-01-31T09:30:00Z or 2h."),
    ] = "1h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be published.")] = False,
    rate: Annotated[float, typer.Option("--rate", min=0.1, max=100_000, help="Orders per second.")] = DEFAULT_RATE,
    why: Annotated[str, typer.Option("--why", help="Reason, kept in the log of actions.")] = WHY,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Publish again what the records say is pending: after RabbitMQ has lost its messages, its queues or all its data.

    Declares exchanges and queues that are missing. Then sends every unsettled order's commands again; each service
    answers from its own records. Then publishes the events since a time again: webhooks and readers of the stream know
    those that they have. Nothing takes effect twice, so it may be repeated, and interrupted. ORDERSAGA_AMQP_URL, if
    set, must have a user who may declare and publish everything (deployer).

    Exit status 0 when all is published, 1 if the user may not do that or an order cannot be put into messages, 2 for
    wrong usage, 3 if a server cannot be reached: run it again then.
    """
    moment = _read_since(since)
    stack = chosen_stack()
    console = open_console(stderr=as_json_document)
    try:
        report = _run(stack, console, moment, dry_run=dry_run, rate=rate, why=why)
    except StartError as error:
        print_error(f"Nothing was published: {error}")
        raise typer.Exit(1) from None
    if as_json_document:
        print_json({"dryRun": dry_run} | report.as_json())
    else:
        show(report, console, done=not dry_run)
    if not report.ok:
        raise typer.Exit(1)


def show(report: RecoveryReport, console: Console, *, done: bool) -> None:
    """Print what was published, or would be, and what is left to others."""
    if report.missing:
        was = "exchange or queue was" if len(report.missing) == 1 else "exchanges and queues were"
        _say(console, f"{len(report.missing)} {was} missing, and {'declared' if done else 'would be declared'}")
    sent, published = ("Sent", "Published") if done else ("Would send", "Would publish")
    _say_counts(console, f"{sent} again, for {counted(report.orders, 'orders')} that wait for answers", report.commands)
    _say_counts(console, f"{published} again, since {report.since.isoformat(timespec='seconds')}", report.events)
    _say_counts(console, "Continued by their services", Counter(report.continuing))
    if report.overdue:
        them = "it" if report.overdue == 1 else "them"
        _say(console, f"{counted(report.overdue, 'orders')} past the deadline: the order service cancels {them}")
    if report.held:
        wait = "waits" if report.held == 1 else "wait"
        _say(console, f"{counted(report.held, 'FAILED orders')} {wait} for a decision, or for the end of the hold")
    if report.letters_without_outcome:
        letters = counted(report.letters_without_outcome, "replayed dead letters")
        have = "has" if report.letters_without_outcome == 1 else "have"
        _say(console, f"{letters} {have} no outcome: see `ordersaga dead-letters list --status pending`")
    if report.newer:
        orders = counted(report.newer, "orders")
        console.print(f"[red]✗[/] {orders} of a newer release: run its `ordersaga recover`, too", highlight=False)
    for order_id in report.unsendable:
        console.print(f"[red]✗[/] order {foreign(order_id)} cannot be put into messages", highlight=False)
    if done:
        _say(console, "Once the orders have settled, `ordersaga audit` checks the books.")


def _say_counts(console: Console, title: str, counts: Counter[str]) -> None:
    counts = +counts
    _say(console, f"{title}: {counts.total():,}")
    for kind, number in sorted(counts.items()):
        _say(console, f"{number:8,} {kind}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _read_since(text: str) -> datetime:
    try:
        return read_time(text, utc_now())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from error


def _run(stack: Stack, console: Console, since: datetime, *, dry_run: bool, rate: float, why: str) -> RecoveryReport:
    verb = "counting" if dry_run else "publishing"
    columns = (SpinnerColumn(), TextColumn(f"{verb}, {{task.completed:,}} orders"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(verb, total=None)

        def advance(orders: int) -> None:
            progress.advance(task, orders)

        if dry_run:
            return uvloop.run(preview(stack, since=since, on_progress=advance))
        return uvloop.run(
            run_recovery(stack, by=current_operator(), why=why, since=since, rate=rate, on_progress=advance)
        )

"""The command `ordersaga audit`."""

from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from operations.audit.auditing import audit as run_audit
from operations.audit.report import INVARIANTS, Report
from operations.commands.target import chosen_stack
from operations.commands.terminal import foreign, open_console, print_json
from operations.settings import Stack

RECORDS_IN_WORDS = {"fundPayments": "payments outside of orders"}


def audit(
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check the books of all services: every order and every product, also while orders are under way.

    Exit status 0 when they balance, 1 when something is wrong (each thing is listed), 3 when a server does not answer.
    """
    stack = chosen_stack()
    if as_json_document:
        report = uvloop.run(run_audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix))
        print_json({"stack": stack.as_json(), **report.as_json()})
    else:
        console = open_console()
        report = uvloop.run(audit_with_progress(stack, console))
        show(report, console)
    raise typer.Exit(0 if report.ok else 1)


async def audit_with_progress(stack: Stack, console: Console) -> Report:
    """Audit the stack, and show on a terminal how far it has come."""
    columns = (SpinnerColumn(), TextColumn("auditing, {task.completed:,} orders"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("audit", total=None)
        return await run_audit(
            stack.mongodb_url,
            stack.amqp_url,
            stack.database_prefix,
            on_progress=lambda judged: progress.advance(task, judged),
        )


def show(report: Report, console: Console) -> None:
    """Print the verdict on each invariant, then each violation, then what else there is to know."""
    console.print(verdicts(report))
    for violation in report.violations:
        console.print(f"[red]✗[/] {foreign(violation.describe())}", highlight=False, soft_wrap=True)
    if report.unlisted:
        console.print(f"[red]and {report.unlisted} more, not listed[/]", highlight=False)
    console.print(_information(report), highlight=False, style="dim")


def verdicts(report: Report) -> Table:
    """Return a line for each invariant: whether it holds, and over how many records."""
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column()
    for number, invariant in INVARIANTS.items():
        wrong = len(report.of_invariant(number))
        over = ", ".join(f"{report.checked[name]:,} {RECORDS_IN_WORDS.get(name, name)}" for name in invariant.records)
        tick, found = ("[red]✗[/]", f"[red]{wrong:,} wrong[/]") if wrong else ("[green]✓[/]", f"[dim]{over}[/]")
        table.add_row(tick, f"{number}. {invariant.title}", found)
    return table


def _information(report: Report) -> str:
    known = report.information
    booked = f", {known['bookedInSlots']:,} booked in {slots:,} slots" if (slots := report.checked["slots"]) else ""
    returned = f", {unknown:,} unknown orders, returned" if (unknown := known["unknownOrdersReturned"]) else ""
    queued, waiting = (sum(count or 0 for count in known[name].values()) for name in ("inboxes", "waitingForRetry"))
    return (
        f"{known['inFlight']:,} orders in flight, {queued:,} messages queued, {waiting:,} waiting for their retry, "
        f"{known['deadLetters']:,} dead letters{booked}{returned}"
    )

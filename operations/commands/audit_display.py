"""Shows the progress and the result of an audit."""

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from operations.audit import Report, audit
from operations.audit.report import INVARIANTS, RECORD_NAMES
from operations.commands.terminal import foreign
from operations.settings import Stack


async def audit_with_progress(stack: Stack, console: Console) -> Report:
    """Audit the stack with a progress display if the console is a terminal."""
    columns = (SpinnerColumn(), TextColumn("auditing, {task.completed:,} orders"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("audit", total=None)
        return await audit(
            stack.mongodb_url,
            stack.amqp_url,
            stack.database_prefix,
            on_progress=lambda checked: progress.advance(task, checked),
        )


def show(report: Report, console: Console) -> None:
    """Print the result for each invariant, the violations, and figures about the stack."""
    console.print(result_table(report))
    for violation in report.violations:
        console.print(f"[red]✗[/] {foreign(violation.describe())}", highlight=False, soft_wrap=True)
        more = f"See {violation.remedy.page}." if violation.command is None else f"Run: {violation.command}"
        console.print(f"  [dim]{foreign(violation.remedy.text)} {foreign(more)}[/]", highlight=False, soft_wrap=True)
    if report.unlisted:
        console.print(f"[red]and {report.unlisted} more, not listed[/]", highlight=False)
    console.print(_information(report), highlight=False, style="dim")


def result_table(report: Report) -> Table:
    """Return a table with the result for each invariant and the number of records that were checked."""
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column()
    for number, invariant in INVARIANTS.items():
        violations = len(report.of_invariant(number))
        checked = ", ".join(f"{report.checked[name]:,} {RECORD_NAMES.get(name, name)}" for name in invariant.records)
        mark, result = (
            ("[red]✗[/]", f"[red]{violations:,} wrong[/]") if violations else ("[green]✓[/]", f"[dim]{checked}[/]")
        )
        table.add_row(mark, f"{number}. {invariant.title}", result)
    return table


def _information(report: Report) -> str:
    known = report.information
    booked = f", {known['bookedInSlots']:,} booked in {slots:,} slots" if (slots := report.checked["slots"]) else ""
    returned = f", {unknown:,} unknown orders released" if (unknown := known["unknownOrdersReturned"]) else ""
    paused = f", {waiting:,} orders wait for a paused service" if (waiting := known.get("waitingForPaused")) else ""
    queued, retries = (sum(count or 0 for count in known[name].values()) for name in ("inboxes", "waitingForRetry"))
    return (
        f"{known['inFlight']:,} orders in flight, {queued:,} messages queued, {retries:,} waiting for a retry, "
        f"{known['deadLetters']:,} dead letters{paused}{booked}{returned}"
    )

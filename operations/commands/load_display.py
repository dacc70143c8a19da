"""Shows the progress and the result of a load test."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from operations.load import LoadPlan, LoadProgress, LoadReport, run_load
from operations.settings import Stack
from shared.printable import printable

REFRESH_SECONDS = 0.2


async def load_with_progress(stack: Stack, plan: LoadPlan, console: Console) -> LoadReport:
    """Run the load test with a progress bar if the console is a terminal."""
    load_progress = LoadProgress()
    async with _progress_bar(load_progress, plan, console):
        return await run_load(stack, plan, load_progress)


@contextlib.asynccontextmanager
async def _progress_bar(load_progress: LoadProgress, plan: LoadPlan, console: Console) -> AsyncIterator[None]:
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, auto_refresh=False) as progress:
        task = progress.add_task(load_progress.phase, total=plan.orders)

        async def refresh() -> None:
            while True:
                progress.update(task, description=load_progress.phase, completed=load_progress.done, refresh=True)
                await asyncio.sleep(REFRESH_SECONDS)

        refreshing = asyncio.create_task(refresh())
        try:
            yield
        finally:
            refreshing.cancel()
            progress.update(task, description="placed", completed=load_progress.done, refresh=True)


def show(report: LoadReport, console: Console) -> None:
    """Print the result of a load test without its audit."""
    rate = f"[bold]{report.orders_per_second:,.0f} orders/s[/]"
    console.print(
        f"{rate}: {report.recorded - report.unsettled:,} of {report.placed:,} orders settled in {report.seconds:.2f} s",
        highlight=False,
    )
    console.print(_counts("final status", report.statuses), highlight=False, markup=False)
    if (slots := report.slots) is not None:
        refused = f"; {slots.refused:,} orders were refused because all slots are full" if slots.refused else ""
        console.print(f"delivery slots: {slots.slots:,}, for {slots.orders:,} orders{refused}", highlight=False)
    if report.refused:
        console.print(f"refused: {report.refused:,} orders, as too many were in progress", highlight=False)
    for title, counts in (("failure reasons", report.reasons), ("errors", report.errors)):
        if counts:
            console.print(_counts(title, counts), highlight=False, markup=False)
    console.print(_latencies(report), _cost(report))
    if not report.complete:
        console.print(_incomplete(report), style="red", highlight=False)
    if not report.audited_what_was_placed:
        console.print(_audited_elsewhere(report), style="red", highlight=False, markup=False, soft_wrap=True)


def _counts(title: str, counts: Mapping[str, int]) -> str:
    return f"{title}: " + ", ".join(f"{printable(name)} {count:,}" for name, count in counts.items())


def _latencies(report: LoadReport) -> Table:
    titles = {"post": "answer to the POST", "final": "final status", "settled": "settled"}
    table = Table("ms until", "p50", "p90", "p99", "max", show_edge=False)
    for name, percentiles in report.latencies_ms.items():
        table.add_row(titles[name], *(f"{value:,.1f}" for value in percentiles.values()))
    return table


def _cost(report: LoadReport) -> Table:
    table = Table("process", "CPU s", "CPU ms/order", "RSS MiB", show_edge=False)
    for name, cost in report.cost.items():
        per_order = f"{report.cpu_ms_per_order(cost):.2f}"
        table.add_row(name, f"{cost.cpu_seconds:.1f}", per_order, f"{cost.rss_bytes / 2**20:.0f}")
    total = sum(cost.cpu_seconds for cost in report.cost.values())
    table.add_row("all", f"{total:.1f}", f"{1000 * total / max(1, report.recorded):.2f}", "")
    return table


def _incomplete(report: LoadReport) -> str:
    return (
        f"{report.accepted} orders were accepted and {report.in_doubt} were not answered; "
        f"{report.recorded} are recorded, of which {report.unsettled} are not settled"
    )


def _audited_elsewhere(report: LoadReport) -> str:
    if report.audited:
        return f"The audit judged only {report.audited} of the {max(report.accepted, report.recorded)} orders"
    return (
        f"The audit covered another stack: {report.audited} of the {report.recorded} orders are in "
        f"{report.audited_in}. Name the stack that takes the orders with ORDERSAGA_DATA_DIR, or with "
        "ORDERSAGA_MONGODB_URL, ORDERSAGA_AMQP_URL and ORDERSAGA_DATABASE_PREFIX"
    )

"""The command `ordersaga load`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from operations.commands.audit import show as show_audit
from operations.commands.target import chosen_stack
from operations.commands.terminal import open_console, print_json
from operations.load.plan import Plan
from operations.load.report import LoadReport
from operations.load.running import Watch, run_load
from operations.settings import Stack
from shared.printable import printable
from shared.urls import hide_credentials

REFRESH_SECONDS = 0.2


def load(
    orders: Annotated[int, typer.Option(min=1, help="Orders to place.")] = 1000,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Orders a second.", show_default="as fast as they are answered")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=2000, help="Connections.")] = 32,
    products: Annotated[int, typer.Option(min=1, max=10_000, help="Products to spread the orders over.")] = 10,
    lines: Annotated[int, typer.Option(min=1, max=100, help="Products an order.")] = 1,
    payment_token: Annotated[str, typer.Option(help="The card that pays.")] = "tok_ok",  # noqa: S107
    slots: Annotated[bool, typer.Option("--slots", help="Order for the earliest delivery slot with room.")] = False,
    seed: Annotated[int, typer.Option(help="Which orders: the same seed makes the same ones.")] = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that orders may take after the last answer.")] = 120,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Place orders on a running stack as fast as it takes them, or at a rate, wait for their end, and audit.

    Exit status 0 when every accepted order has settled and the books that it is in balance, else 1, 3 when a server
    does not answer.
    """
    try:
        plan = Plan(orders, rate, concurrency, products, lines, payment_token, seed, timeout, slots)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--lines") from None
    stack = chosen_stack()
    typer.echo(f"orders go to {hide_credentials(stack.urls['order'])}", err=True)
    if as_json_document:
        report = uvloop.run(run_load(stack, plan))
        print_json({"stack": stack.as_json(), **report.as_json()})
    else:
        console = open_console()
        report = uvloop.run(load_with_progress(stack, plan, console))
        show(report, console)
        show_audit(report.audit, console)
    raise typer.Exit(0 if report.ok else 1)


async def load_with_progress(stack: Stack, plan: Plan, console: Console) -> LoadReport:
    """Carry out the plan and show, on a terminal, how far it is."""
    watch = Watch()
    async with _progress_bar(watch, plan, console):
        return await run_load(stack, plan, watch)


@contextlib.asynccontextmanager
async def _progress_bar(watch: Watch, plan: Plan, console: Console) -> AsyncIterator[None]:
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, auto_refresh=False) as progress:
        task = progress.add_task(watch.phase, total=plan.orders)

        async def keep_showing() -> None:
            while True:
                progress.update(task, description=watch.phase, completed=watch.done, refresh=True)
                await asyncio.sleep(REFRESH_SECONDS)

        showing = asyncio.create_task(keep_showing())
        try:
            yield
        finally:
            showing.cancel()
            progress.update(task, description="placed", completed=watch.done, refresh=True)


def show(report: LoadReport, console: Console) -> None:
    """Print what came of the load test, without the audit."""
    rate = f"[bold]{report.orders_per_second:,.0f} orders/s[/]"
    console.print(
        f"{rate}: {report.recorded - report.unsettled:,} of {report.placed:,} orders settled in {report.seconds:.2f} s",
        highlight=False,
    )
    console.print(_counts("ended as", report.statuses), highlight=False)
    if (found := report.slots) is not None:
        refused = f"; {found.refused:,} orders were refused, as all are full" if found.refused else ""
        console.print(f"delivery slots: {found.slots:,}, for {found.orders:,} orders{refused}", highlight=False)
    for title, counts in (("because of", report.reasons), ("errors", report.errors)):
        if counts:
            console.print(_counts(title, counts), highlight=False, markup=False)
    console.print(_latencies(report), _cost(report))
    if not report.complete:
        console.print(_what_is_missing(report), style="red", highlight=False)
    if not report.audited_what_was_placed:
        console.print(_what_was_audited(report), style="red", highlight=False, markup=False, soft_wrap=True)


def _counts(title: str, counts: object) -> str:
    assert isinstance(counts, dict)  # noqa: S101 - as LoadReport has them
    return f"{title}: " + ", ".join(f"{printable(str(name))} {count:,}" for name, count in counts.items())


def _latencies(report: LoadReport) -> Table:
    titles = {"post": "answer to the POST", "final": "final status", "settled": "settled"}
    table = Table("ms to", "p50", "p90", "p99", "max", show_edge=False)
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


def _what_was_audited(report: LoadReport) -> str:
    return (
        f"The audit was of another stack: {report.audited} of the {report.recorded} orders are in {report.audited_in}. "
        "Name the stack that takes the orders: ORDERSAGA_DATA_DIR, or ORDERSAGA_MONGODB_URL, ORDERSAGA_AMQP_URL and "
        "ORDERSAGA_DATABASE_PREFIX"
    )


def _what_is_missing(report: LoadReport) -> str:
    return (
        f"{report.accepted} orders were accepted and {report.in_doubt} not answered; "
        f"{report.recorded} are recorded, of which {report.unsettled} are not settled"
    )

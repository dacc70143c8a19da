"""The command `ordersaga load`."""

from typing import Annotated

import typer
import uvloop

from operations.commands.audit_display import show as show_audit
from operations.commands.load_display import load_with_progress, show
from operations.commands.target import chosen_stack
from operations.commands.terminal import open_console, print_json
from operations.load import LoadPlan, run_load
from shared.urls import hide_credentials


def load(
    orders: Annotated[int, typer.Option(min=1, help="Number of orders.")] = 1000,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Orders per second.", show_default="as fast as they are answered")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=2000, help="Number of connections.")] = 32,
    products: Annotated[int, typer.Option(min=1, max=10_000, help="Number of products that are ordered.")] = 10,
    lines: Annotated[int, typer.Option(min=1, max=100, help="Products per order.")] = 1,
    payment_token: Annotated[str, typer.Option(help="Card to pay with.")] = "tok_ok",  # noqa: S107
    slots: Annotated[bool, typer.Option("--slots", help="Order for the earliest delivery slot with room.")] = False,
    details: Annotated[
        bool, typer.Option("--details", help="Give each order a customer, an address, options and a discount.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the generator; the same seed generates the same orders.")] = 0,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that orders may take to settle after the last answer.")
    ] = 120,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds for which an order is tried again that is refused for the moment.")
    ] = 30,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Place orders on a running stack, wait until all are settled, and report throughput, latency, cost and an audit.

    Exit status 0 if every accepted order is settled and the books of the stack balance, 1 if not, 2 for wrong usage, 3
    if a server cannot be reached.
    """
    try:
        plan = LoadPlan(
            orders, rate, concurrency, products, lines, payment_token, seed, timeout, slots, details, patience
        )
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

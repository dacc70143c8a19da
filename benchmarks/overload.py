"""Offer a stack twice what it can do, and kill a service meanwhile: `make overload`.

    .venv/bin/python -m benchmarks.overload [--seconds 180] [--limit 2] [--kill inventory]

Starts a stack of its own in a temporary directory, where new orders have to settle within `--limit` seconds. It places
orders as fast as they are answered, which gives the maximum; then twice as many per second, at fixed times, and nothing
that is refused is tried again. In the middle, one service is killed with SIGKILL and started again by the stack.

The table has the two loads beside each other. Exit status 1 if an accepted order is lost, not settled or timed out, if
the books do not balance, or if nothing was refused. Whether the times are reached depends on the machine as well, so
they are printed and decide nothing.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.failover import own_stack
from operations.load import LoadPlan, LoadReport, run_load
from operations.settings import Stack, locate_stack
from operations.stack.layout import Layout
from operations.stack.processes import find
from operations.stack.state import read_state

OFFSET = 6500
WARM_ORDERS = 500
CONCURRENCY = 64
OFFERED = 2.0
"""How many times the maximum is offered."""
MOST_CONNECTIONS = 256
TIMED_OUT = "Timed out"
"""The beginning of the failure reason of an order that the saga gave up."""

_console = Console(stderr=True)


async def measure(stack: Stack, directory: Path, options: argparse.Namespace) -> tuple[LoadReport, LoadReport]:
    """Return the reports of the load at the maximum and of the overload."""
    await run_load(stack, LoadPlan(WARM_ORDERS, concurrency=CONCURRENCY))
    maximum = await run_load(stack, LoadPlan(options.orders, concurrency=CONCURRENCY))
    rate = OFFERED * maximum.orders_per_second
    _console.print(f"maximum: {maximum.orders_per_second:.0f} orders/s; offering {rate:.0f}", highlight=False)
    plan = LoadPlan(max(1, int(rate * options.seconds)), rate, MOST_CONNECTIONS, patience=0)
    killing = asyncio.create_task(kill_later(directory, options.kill, options.seconds / 2))
    try:
        return maximum, await run_load(stack, plan)
    finally:
        killing.cancel()


async def kill_later(directory: Path, name: str, seconds: float) -> None:
    """Kill a process of the stack after some seconds."""
    await asyncio.sleep(seconds)
    [state] = [each for each in read_state(Layout(directory)).processes if each.name == name]
    process = find(state.identity) if state.identity else None
    if process is not None:
        process.kill()
        _console.print(f"killed {name}")


def broken(report: LoadReport) -> list[str]:
    """Return the invariants that do not hold after the overload."""
    timed_out = sum(count for reason, count in report.reasons.items() if reason.startswith(TIMED_OUT))
    rules = {
        "accepted orders are lost or not settled": not report.complete,
        f"{timed_out} accepted orders timed out": timed_out > 0,
        "the books do not balance": not (report.audit.ok and report.audited_what_was_placed),
        "nothing was refused: this was no overload": report.refused == 0,
    }
    return [rule for rule, is_broken in rules.items() if is_broken]


def row(report: LoadReport) -> dict[str, Any]:
    """Return what the table shows of a load."""
    settled = report.latencies_ms["settled"]
    return {
        "offered": report.placed,
        "accepted": report.accepted,
        "refused": report.refused,
        "in doubt": report.in_doubt,
        "settled per second": round(report.orders_per_second, 1),
        "settled after p50 (s)": settled["p50"] / 1000,
        "settled after p99 (s)": settled["p99"] / 1000,
        "settled after at most (s)": settled["max"] / 1000,
    }


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the loads beside each other."""
    table = Table("", *rows, show_edge=False)
    for name in next(iter(rows.values())):
        table.add_row(name, *(f"{each[name]:,}" for each in rows.values()))
    Console().print(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180, help="how long twice the maximum is offered")
    parser.add_argument("--limit", type=float, default=2, help="seconds within which orders have to settle")
    parser.add_argument("--orders", type=int, default=5000, help="orders of the load that gives the maximum")
    parser.add_argument("--kill", default="inventory", help="the process that is killed in the middle")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    settings = {"ORDERSAGA_MAX_SETTLE_SECONDS": f"{options.limit:g}"}
    with own_stack(offset=OFFSET, settings=settings) as directory:
        maximum, overload = uvloop.run(measure(locate_stack(directory), directory, options))
    rows = {"at the maximum": row(maximum), f"{OFFERED:g} times the maximum": row(overload)}
    failed = broken(overload)
    if options.json:
        print(json.dumps({"loads": rows, "broken": failed}))
    else:
        show(rows)
        share = overload.orders_per_second / maximum.orders_per_second if maximum.orders_per_second else 0.0
        print(f"throughput: {share:.0%} of the maximum; audit: {'clean' if overload.audit.ok else 'violations'}")
        print("\n".join(failed) or "no accepted order was lost, late beyond the saga's time-out, or left unsettled")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

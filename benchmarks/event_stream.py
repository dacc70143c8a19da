"""The cost of the event stream: the same load with the stream bound and not bound, in turn, on a running stack.

    python -m benchmarks.event_stream [--orders 1000] [--pairs 3] [--rate 40]

The stack is the one that commands find. Its stream is bound again at the end. Each pair of rounds begins with the other
of the two, so that a machine which slows down meanwhile does not decide.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence

import uvloop
from rich.console import Console
from rich.table import Table

from operations.load import LoadPlan, LoadReport, run_load
from operations.settings import Stack, locate_stack
from shared.bus.amqp.connecting import connect
from shared.bus.declaring import declare_event_stream
from shared.topology import EVENTS_OFF

OFF, ON = "off", "on"


async def measure(stack: Stack, plan: LoadPlan, pairs: int) -> dict[str, list[LoadReport]]:
    """Run the load so many times with the stream on, and as often with it off."""
    reports: dict[str, list[LoadReport]] = {OFF: [], ON: []}
    async with await connect(stack.amqp_url) as connection:
        try:
            for pair in range(pairs):
                for state in (OFF, ON) if pair % 2 == 0 else (ON, OFF):
                    await declare_event_stream(connection, stack.events_retention if state == ON else EVENTS_OFF)
                    reports[state].append(await run_load(stack, plan))
        finally:
            await declare_event_stream(connection, stack.events_retention)
    return reports


def figures(report: LoadReport) -> dict[str, float]:
    """Return what is compared, per order."""
    cpu = {name: report.cpu_ms_per_order(cost) for name, cost in report.cost.items()}
    return {
        "CPU ms, all processes": sum(cpu.values()) - cpu["load"],
        "CPU ms, RabbitMQ": cpu.get("rabbitmq", float("nan")),
        "CPU ms, order service": cpu.get("order", float("nan")),
        "ms to settled, median": report.latencies_ms["settled"]["p50"],
        "ms to settled, 99th percentile": report.latencies_ms["settled"]["p99"],
    }


def show(reports: Mapping[str, Sequence[LoadReport]]) -> None:
    """Print the medians of the rounds and their ratio."""
    median = {
        state: {name: statistics.median(figures(report)[name] for report in rounds) for name in figures(rounds[0])}
        for state, rounds in reports.items()
    }
    table = Table("per order", "off", "on", "ratio")
    for name, without in median[OFF].items():
        table.add_row(name, f"{without:.2f}", f"{median[ON][name]:.2f}", f"{median[ON][name] / without:.2f}")
    Console().print(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rate", type=float, help="orders per second; without it, as fast as they are answered")
    options = parser.parse_args()
    stack = locate_stack()
    if not stack.events_retention:
        raise SystemExit("the stack keeps no events: start it without ORDERSAGA_EVENTS_RETENTION=off")
    reports = uvloop.run(measure(stack, LoadPlan(options.orders, options.rate), options.pairs))
    show(reports)


if __name__ == "__main__":
    main()

"""What events cost per order: the same load on a running stack with the event stream and the inbox of the notification
service bound or not, in turn.

    python -m benchmarks.event_stream [--orders 1000] [--rounds 3] [--rate 40]

The stack is the one that commands find; start it with ORDERSAGA_TOPOLOGY_CHECK_SECONDS=3600, so that no service binds
what a round has unbound. Everything is bound again at the end. Each round begins with another of the four cases, so
that a machine which slows down meanwhile does not decide. No endpoint of webhooks should be registered: it would hear
of the orders of some rounds, and add the cost of sending.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import uvloop
from aio_pika.abc import AbstractConnection
from rich.console import Console
from rich.table import Table

from operations.load import LoadPlan, LoadReport, run_load
from operations.load.cost import cost_between, measure_usage
from operations.settings import Stack, locate_stack
from shared import topology
from shared.bus.amqp.connecting import connect
from shared.bus.declaring import declare_event_stream
from tests.support.eventually import eventually

NOTIFICATION = "notification"


@dataclass(frozen=True)
class Case:
    """What receives events."""

    name: str
    stream: bool
    inbox: bool


CASES = (
    Case("neither", stream=False, inbox=False),
    Case("stream", stream=True, inbox=False),
    Case("inbox", stream=False, inbox=True),
    Case("both", stream=True, inbox=True),
)
Figures = Mapping[str, float]


async def measure(stack: Stack, plan: LoadPlan, rounds: int) -> dict[Case, list[Figures]]:
    """Run the load so many times in each case."""
    found: dict[Case, list[Figures]] = {case: [] for case in CASES}
    async with await connect(stack.amqp_url) as connection:
        try:
            for case in in_turn(rounds):
                await bind(connection, stack, case)
                found[case].append(await measure_once(connection, stack, plan))
        finally:
            await bind(connection, stack, CASES[-1])
    return found


def in_turn(rounds: int) -> Iterator[Case]:
    """Yield all cases in each round, each time from another one on."""
    for number in range(rounds):
        start = number % len(CASES)
        yield from CASES[start:] + CASES[:start]


async def bind(connection: AbstractConnection, stack: Stack, case: Case) -> None:
    """Bind the stream and the inbox, or remove their bindings to the exchange of events."""
    await declare_event_stream(
        connection, stack.topology_options.events_retention if case.stream else topology.EVENTS_OFF
    )
    [inbox] = [queue for queue in topology.queues() if queue.name == topology.NOTIFICATION_INBOX]
    async with connection.channel() as channel:
        queue = await channel.get_queue(inbox.name, ensure=False)
        for exchange, routing_key in inbox.bindings:
            if exchange == topology.EXCHANGE:
                await (queue.bind if case.inbox else queue.unbind)(exchange, routing_key)


async def measure_once(connection: AbstractConnection, stack: Stack, plan: LoadPlan) -> Figures:
    """Run the load once, until the notification service has taken all events."""
    before = measure_usage(stack.data_dir)
    report = await run_load(stack, plan)
    if not report.ok:
        raise SystemExit(f"the load failed: {report.as_json()}")

    async def is_empty() -> bool:
        async with connection.channel() as channel:
            answer = await channel.declare_queue(topology.NOTIFICATION_INBOX, passive=True)
            return answer.declaration_result.message_count == 0

    await eventually(is_empty, within=60)
    after = cost_between(before, measure_usage(stack.data_dir))
    return figures(report, 1000 * after[NOTIFICATION].cpu_seconds / report.recorded)


def figures(report: LoadReport, notification_ms: float) -> dict[str, float]:
    """Return what is compared, per order; the notification service may end later than the orders are settled."""
    cpu = {name: report.cpu_ms_per_order(cost) for name, cost in report.cost.items()} | {NOTIFICATION: notification_ms}
    of_saga = [cpu.get(name, float("nan")) for name in ("order", "inventory", "payment")]
    return {
        "CPU ms, all processes": sum(cpu.values()) - cpu["load"],
        "CPU ms, RabbitMQ": cpu.get("rabbitmq", float("nan")),
        "CPU ms, order, inventory and payment": sum(of_saga),
        "CPU ms, notification": notification_ms,
        "CPU ms, MongoDB": cpu.get("mongodb", float("nan")),
        "ms to settled, median": report.latencies_ms["settled"]["p50"],
    }


def show(found: Mapping[Case, Sequence[Figures]]) -> None:
    """Print the medians of the rounds, and of what each case takes more than `neither` within a round."""
    without, *others = CASES
    table = Table("per order", without.name, *(case.name for case in others))
    for name in found[without][0]:
        values = {case: [each[name] for each in rounds] for case, rounds in found.items()}
        cells = [f"{statistics.median(values[without]):.2f}"]
        for case in others:
            more = [value - base for value, base in zip(values[case], values[without], strict=True)]
            cells.append(f"{statistics.median(values[case]):.2f} ({statistics.median(more):+.2f})")
        table.add_row(name, *cells)
    Console(width=120).print(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, help="orders per second; without it, as fast as they are answered")
    options = parser.parse_args()
    stack = locate_stack()
    if not stack.topology_options.events_retention:
        raise SystemExit("the stack keeps no events: start it without ORDERSAGA_EVENTS_RETENTION=off")
    if not stack.topology_options.webhooks:
        raise SystemExit("webhooks are off: start the stack without ORDERSAGA_WEBHOOKS=off")
    show(uvloop.run(measure(stack, LoadPlan(options.orders, options.rate), options.rounds)))


if __name__ == "__main__":
    main()

"""What an order costs on single servers, on a cluster, and on a cluster with two processes of each service.

    .venv/bin/python -m benchmarks.cluster_cost [--orders 2000] [--rounds 3]

Starts stacks of its own with `ordersaga up` in temporary directories. Orders are placed as `ordersaga load` does, as
fast as they are answered; with two processes, half of the clients use each. The ways on the cluster take turns, after
orders that are not counted. The table has the medians over the rounds: orders settled per second, the CPU time per
order of each service and server, over all of its processes, and the messages per batch of each inbox. `idle` is what
all of them use without orders, in percent of a core.
"""

import argparse
import asyncio
import json
import re
import secrets
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.failover import own_stack
from chaos.further_processes import FurtherProcess, further_processes
from operations.load import LoadPlan
from operations.load.cost import Usage, cost_between, measure_usage, usage_of
from operations.load.outcomes import PlacedOrders
from operations.load.placer import OrderPlacer
from operations.settings import Stack, locate_stack
from operations.stack.processes import find
from shared.services import INVENTORY, NOTIFICATION, ORDER, PAYMENT

OFFSET = 6000
DOUBLED = (ORDER.name, INVENTORY.name, PAYMENT.name, NOTIFICATION.name)
"""The services that take part in an order for goods."""
SETTLED_WITHIN = 120.0

IDLE_SECONDS = 3.0
_BATCHES = re.compile(r"^ordersaga_batch_messages_(sum|count)\{[^}]*\} (\S+)$", re.MULTILINE)

_console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Round:
    """One load: orders settled per second, milliseconds of CPU per order by service or server, messages per batch."""

    way: str
    rate: float
    cpu: Mapping[str, float]
    batches: Mapping[str, float]
    idle: float


class Loads:
    """Loads one stack, with all of the processes of its services."""

    def __init__(self, session: aiohttp.ClientSession, stack: Stack, further: Mapping[str, FurtherProcess]) -> None:
        self._session = session
        self._stack = stack
        self._further = further

    async def run(self, way: str, orders: int, concurrency: int) -> Round:
        """Place orders, and wait until they are settled."""
        load_id = f"load-{secrets.token_hex(4)}"
        urls = [self._stack.urls["order"]]
        urls += [str(each.state.url) for name, each in self._further.items() if name.startswith(ORDER.name)]
        plan = LoadPlan(orders // len(urls), concurrency=concurrency // len(urls))
        for product in plan.product_ids(load_id):
            url = f"{self._stack.urls['inventory']}/inventory/{product}"
            async with self._session.put(url, json={"quantity": orders}) as answer:
                answer.raise_for_status()
        placers = [OrderPlacer(plan, url, plan.bodies(load_id), self._stack.headers) for url in urls]
        idle = await self._idle()
        before, batches_before = self._usage(), await self._batches()
        await asyncio.gather(*(placer.run() for placer in placers))
        placed = PlacedOrders(self._session, urls[0], load_id)
        if not await placed.wait_until_settled(SETTLED_WITHIN):
            raise SystemExit(f"orders are not settled after {SETTLED_WITHIN:g} s")
        costs = cost_between(before, self._usage())
        outcomes = await placed.outcomes()
        cpu = defaultdict[str, float](float)
        for name, cost in costs.items():
            cpu[re.sub(r"-\d$", "", name)] += 1000 * cost.cpu_seconds / outcomes.orders
        batches = {
            name: (messages - batches_before[name][0]) / max(1, count - batches_before[name][1])
            for name, (messages, count) in (await self._batches()).items()
        }
        return Round(way, outcomes.orders / outcomes.seconds, cpu, batches, idle)

    async def _idle(self) -> float:
        """Return the CPU time that all processes use without orders, in percent of a core."""
        before = self._usage()
        await asyncio.sleep(IDLE_SECONDS)
        costs = cost_between(before, self._usage())
        return 100 * sum(cost.cpu_seconds for cost in costs.values()) / IDLE_SECONDS

    async def _batches(self) -> dict[str, tuple[float, float]]:
        """Return the messages and the batches that each inbox has had, over all processes of the service."""
        found = {}
        for service in DOUBLED:
            urls = [self._stack.urls[service]]
            urls += [str(each.state.url) for name, each in self._further.items() if name.startswith(service)]
            sums = Counter[str]()
            for url in urls:
                async with self._session.get(f"{url}/metrics") as answer:
                    answer.raise_for_status()
                    sums.update({each[1]: int(float(each[2])) for each in _BATCHES.finditer(await answer.text())})
            found[f"{service}.inbox"] = (float(sums["sum"]), float(sums["count"]))
        return found

    def _usage(self) -> dict[str, Usage]:
        usage = measure_usage(self._stack.data_dir)
        for name, further in self._further.items():
            process = find(identity) if (identity := further.state.identity) else None
            if process is not None:
                usage[name] = usage_of(process)
        return usage


async def measure(directory: Path, title: str, processes: Sequence[int], options: argparse.Namespace) -> list[Round]:
    """Load a stack with each of these numbers of processes in turn."""
    stack = locate_stack(directory)
    rounds = []
    async with aiohttp.ClientSession(headers=stack.headers, timeout=aiohttp.ClientTimeout(total=60)) as session:
        for turn in range(options.rounds + 1):
            for number in processes:
                async with further_processes(directory, number, DOUBLED) as further:
                    way = f"{title}, {number} process{'es' if number > 1 else ''} each"
                    done = await Loads(session, stack, further).run(way, options.orders, options.concurrency)
                if turn > 0:  # the first ones warm up
                    rounds.append(done)
                    _console.print(f"{way}: {done.rate:.0f} orders/s, {sum(done.cpu.values()):.2f} ms", highlight=False)
    return rounds


def medians(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Return the medians of each way."""
    ways = dict.fromkeys(each.way for each in rounds)
    return [_medians(way, [each for each in rounds if each.way == way]) for way in ways]


def _medians(way: str, rounds: Sequence[Round]) -> dict[str, Any]:
    def of_each(kind: Callable[[Round], Mapping[str, float]], digits: int) -> dict[str, float]:
        return {name: round(statistics.median(kind(each)[name] for each in rounds), digits) for name in kind(rounds[0])}

    return {
        "way": way,
        "ordersPerSecond": round(statistics.median(each.rate for each in rounds), 1),
        "cpuMsPerOrder": round(statistics.median(sum(each.cpu.values()) for each in rounds), 2),
        "cpuMsPerOrderOf": of_each(lambda each: each.cpu, 3),
        "messagesPerBatch": of_each(lambda each: each.batches, 1),
        "idlePercent": round(statistics.median(each.idle for each in rounds), 1),
    }


def show(report: Sequence[Mapping[str, Any]]) -> None:
    """Print the medians as a table."""
    table = Table("", *(line["way"] for line in report))
    table.add_row("orders/s", *(f"{line['ordersPerSecond']:.0f}" for line in report))
    table.add_row("CPU ms per order", *(f"{line['cpuMsPerOrder']:.2f}" for line in report))
    costs, batches = report[-1]["cpuMsPerOrderOf"], report[-1]["messagesPerBatch"]
    for name in sorted(costs, key=costs.__getitem__, reverse=True):
        table.add_row(f"… {name}", *(f"{line['cpuMsPerOrderOf'][name]:.2f}" for line in report))
    for name in batches:
        table.add_row(f"messages per batch of {name}", *(f"{line['messagesPerBatch'][name]:.1f}" for line in report))
    table.add_row("idle, % of a core", *(f"{line['idlePercent']:.0f}" for line in report))
    Console(width=120).print(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=64, help="number of connections")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    began = time.monotonic()
    with own_stack(offset=OFFSET) as directory:
        rounds = uvloop.run(measure(directory, "1+1", [1], options))
    with own_stack("--cluster", offset=OFFSET) as directory:
        rounds += uvloop.run(measure(directory, "3+3", [1, 2], options))
    report = medians(rounds)
    print(json.dumps(report, indent=2)) if options.json else show(report)
    _console.print(f"{time.monotonic() - began:.0f} s", highlight=False)


if __name__ == "__main__":
    main()

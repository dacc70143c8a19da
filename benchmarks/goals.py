"""The goals for speed, measured in one run: a table with the goal and the committed figure beside what is measured now.

    python -m benchmarks.goals [--orders 5000] [--only NAMES] [--many 1000000] [--partitions 1] [--save] [--json]

Starts a stack of its own with `ordersaga up` in a temporary directory and loads it. Figures depend on the machine, and
on what else runs there, so the table has the ratio to the committed figure as well; compare two states of the code on
one machine, in turns. `--many` places that many orders and compares what an order costs before and after; without it,
that row is left out. With `--partitions`, inboxes are divided: the rows of `processes` are then against one process
with as many partitions, and stderr says what each number of processes has reached. `--save` writes
benchmarks/goals.json: commit it with a change that affects speed.
"""

import argparse
import asyncio
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import stock
from benchmarks.failover import own_stack
from chaos.further_processes import FurtherProcess, further_processes
from operations.load import LoadPlan, run_load
from operations.load.connection import Connection
from operations.load.cost import GENERATOR, Usage, cost_between, measure_usage, usage_of
from operations.load.outcomes import PlacedOrders
from operations.load.placer import OrderPlacer
from operations.load.run import create_products
from operations.settings import Stack, locate_stack
from operations.stack.layout import PARTITIONS_VARIABLE
from shared.services import INVENTORY, ORDER, PAYMENT
from tests.support.stack_users import mongodb_url_of

OFFSET = 5700
SERVICES = (ORDER.name, INVENTORY.name, PAYMENT.name)
FILE = Path(__file__).with_suffix(".json")
PROCESS_COUNTS = (1, 2, 4, 8)
CLIENTS, CLIENT_SECONDS, ANSWER_SECONDS = 200, 10.0, 60.0
SHARED_AFTER = 1.5
"""Seconds until a process that has got its first partitions leaves those that others are to have."""
WORKERS, BATCH = (1, 4), 200
SETTLED_WITHIN = 600.0


class Goal(NamedTuple):
    """A figure to reach: its unit, its limit, and whether the limit is a minimum or a maximum."""

    what: str
    unit: str
    limit: float
    is_least: bool = False

    def is_reached_by(self, figure: float) -> bool:
        """Return whether a figure is on the right side of the limit."""
        return figure >= self.limit if self.is_least else figure <= self.limit


GOALS: Mapping[str, Goal] = {
    "cpu": Goal("CPU per order, two lines over 100 products", "ms", 1.1),
    "rate": Goal("orders per second, the same", "/s", 1500, is_least=True),
    "alone-p50": Goal("one order alone, POST to settled, p50", "ms", 8),
    "alone-p99": Goal("one order alone, POST to settled, p99", "ms", 12),
    "steady-p50": Goal("at 400 orders per second, p50", "ms", 20),
    "steady-p99": Goal("at 400 orders per second, p99", "ms", 60),
    "account": Goal(f"one account, {CLIENTS} clients", "/s", 2000, is_least=True),
    **{
        f"processes-{count}-cpu": Goal(f"{count} processes per service: CPU per order against 1", "times", 1.1)
        for count in PROCESS_COUNTS[1:]
    },
    **{
        f"processes-{count}-rate": Goal(
            f"{count} processes per service: orders per second against 1", "times", 1.0, True
        )
        for count in PROCESS_COUNTS[1:]
    },
    "hot-product": Goal(f"a hot product, {WORKERS[1]} workers against {WORKERS[0]}", "times", 1.0, is_least=True),
    "many": Goal("CPU per order after many orders against the first", "times", 1.05),
}

Figures = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """The stack under load, and how much load."""

    stack: Stack
    directory: Path
    session: aiohttp.ClientSession
    plan: LoadPlan
    many: int

    async def load(self, plan: LoadPlan, further: Mapping[str, FurtherProcess] = {}) -> tuple[float, float]:
        """Place orders at all processes of the order service; return orders per second and CPU ms per order."""
        load_id = f"load-{secrets.token_hex(4)}"
        await create_products(self.session, self.stack.urls[INVENTORY.name], plan, load_id)
        others = (process.state.url for name, process in further.items() if name.startswith(f"{ORDER.name}-"))
        urls = [self.stack.urls[ORDER.name], *(url for url in others if url is not None)]
        share = replace(plan, orders=plan.orders // len(urls), concurrency=max(1, plan.concurrency // len(urls)))
        placers = [OrderPlacer(share, url, plan.bodies(load_id), self.stack.headers) for url in urls]
        placed = PlacedOrders(self.session, urls[0], load_id)
        before = self._usage(further)
        await asyncio.gather(*(placer.run() for placer in placers))
        await placed.wait_until_settled(SETTLED_WITHIN)
        costs = cost_between(before, self._usage(further))
        outcomes = await placed.outcomes()
        wanted = share.orders * len(urls)
        if outcomes.orders != wanted or outcomes.unsettled:
            raise SystemExit(f"{outcomes.orders} orders rather than {wanted}, {outcomes.unsettled} are not settled")
        return wanted / outcomes.seconds, 1000 * sum(cost.cpu_seconds for cost in costs.values()) / wanted

    def _usage(self, further: Mapping[str, FurtherProcess]) -> dict[str, Usage]:
        """Measure the services and the servers, without this program."""
        measured = measure_usage(self.directory)
        del measured[GENERATOR]
        pids = {name: identity.pid for name, each in further.items() if (identity := each.state.identity)}
        return measured | {name: usage_of(psutil.Process(pid)) for name, pid in pids.items()}


async def full_speed(bench: Bench) -> Figures:
    """Place orders as fast as they are answered."""
    rate, cpu = await bench.load(bench.plan)
    return {"cpu": cpu, "rate": rate}


async def alone(bench: Bench) -> Figures:
    """Place one order after the other, each when the last has long been settled."""
    return await _latencies(bench, "alone", LoadPlan(100, rate=5))


async def steady(bench: Bench) -> Figures:
    """Place 400 orders per second for ten seconds."""
    return await _latencies(bench, "steady", LoadPlan(4000, rate=400, concurrency=200))


async def _latencies(bench: Bench, name: str, plan: LoadPlan) -> Figures:
    report = await run_load(bench.stack, plan)
    if not report.ok:
        raise SystemExit(f"the load failed: {report.as_json()}")
    settled = report.latencies_ms["settled"]
    return {f"{name}-p50": settled["p50"], f"{name}-p99": settled["p99"]}


async def one_account(bench: Bench) -> Figures:
    """Let many clients take from one retainer, each again as soon as it is answered."""
    url = bench.stack.urls[PAYMENT.name]
    body = {"clientId": "c1", "retainerType": "prepaid", "initialAmount": 10**9}
    async with bench.session.post(f"{url}/api/retainers", json=body) as answer:
        answer.raise_for_status()
        path = f"/api/retainers/{(await answer.json())['retainer']['_id']}/consume"
    until = time.perf_counter() + CLIENT_SECONDS
    granted = await asyncio.gather(*(_consume(url, path, bench.stack.headers, until) for _ in range(CLIENTS)))
    return {"account": sum(granted) / (CLIENT_SECONDS + time.perf_counter() - until)}


async def _consume(url: str, path: str, headers: Mapping[str, str], until: float) -> int:
    connection, granted = Connection(url, path, headers), 0
    try:
        while time.perf_counter() < until:
            status = (await connection.post(orjson.dumps({"amount": 0.01}), ANSWER_SECONDS)).status
            if status not in (200, 201):
                raise SystemExit(f"a consumption was answered with {status}")
            granted += 1
    finally:
        connection.close()
    return granted


async def processes(bench: Bench) -> Figures:
    """Place the same orders with one process of each service, and with several."""
    found: dict[int, tuple[float, float]] = {}
    for count in PROCESS_COUNTS:
        async with AsyncExitStack() as running:
            further: Mapping[str, FurtherProcess] = {}
            if count > 1:
                further = await running.enter_async_context(further_processes(bench.directory, count, SERVICES))
            for _ in range(count + 1):  # not counted: with every message, one more process gets its partitions
                await bench.load(replace(bench.plan, orders=160), further)
                await asyncio.sleep(SHARED_AFTER)
            found[count] = await bench.load(bench.plan, further)
            sys.stderr.write(
                f"{count} processes: {found[count][0]:.0f} orders/s, {found[count][1]:.2f} ms of CPU each\n"
            )
    rate, cpu = found[1]
    return {f"processes-{count}-rate": found[count][0] / rate for count in PROCESS_COUNTS[1:]} | {
        f"processes-{count}-cpu": found[count][1] / cpu for count in PROCESS_COUNTS[1:]
    }


async def hot_product(bench: Bench) -> Figures:
    """Reserve one product in one worker process, and in several."""
    url = mongodb_url_of(bench.directory)
    rates = [
        (await asyncio.to_thread(stock.measure, url, "pending moves", workers, BATCH, 4 * bench.plan.orders)).per_second
        for workers in WORKERS
    ]
    return {"hot-product": rates[1] / rates[0]}


async def many_orders(bench: Bench) -> Figures:
    """Compare what an order costs before and after many orders."""
    first = (await bench.load(bench.plan))[1]
    await bench.load(replace(bench.plan, orders=bench.many))
    return {"many": (await bench.load(bench.plan))[1] / first}


MEASUREMENTS: Mapping[str, Callable[[Bench], Awaitable[Figures]]] = {
    "full": full_speed,
    "alone": alone,
    "steady": steady,
    "account": one_account,
    "processes": processes,
    "hot": hot_product,
    "many": many_orders,
}


async def measure(directory: Path, names: Sequence[str], orders: int, many: int) -> Figures:
    """Measure on the running stack in a directory; return the figures by the names of their goals."""
    stack = locate_stack(directory)
    plan = LoadPlan(orders, None, concurrency=64, products=100, lines=2)
    found: Figures = {}
    async with aiohttp.ClientSession(headers=stack.headers) as session:
        bench = Bench(stack, directory, session, plan, many)
        await bench.load(replace(plan, orders=300))  # not counted: connections, caches
        for name in names:
            found |= await MEASUREMENTS[name](bench)
    return found


def described(figures: Figures) -> dict[str, Any]:
    """Return the figures with what they depend on: the commit, the machine, and how busy it was."""
    describe = ("git", "describe", "--always", "--dirty")
    return {
        "commit": subprocess.run(describe, cwd=FILE.parent, capture_output=True, text=True, check=True).stdout.strip(),
        "at": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "load": round(os.getloadavg()[1], 1),
        "figures": {name: round(figure, 3) for name, figure in figures.items()},
    }


def table_of(now: Mapping[str, Any], committed: Mapping[str, Any]) -> Table:
    """Return the table: for each goal that was measured, its limit, the committed figure and the present one."""
    table = Table("", "goal", committed.get("commit", "committed"), "now", "now / committed", "")
    for name, figure in now["figures"].items():
        goal, before = GOALS[name], committed.get("figures", {}).get(name)
        table.add_row(
            goal.what,
            f"{'≥' if goal.is_least else '≤'} {goal.limit:g} {goal.unit}",
            "-" if before is None else f"{before:.4g}",
            f"{figure:.4g}",
            "-" if not before else f"{figure / before:.2f}",
            "reached" if goal.is_reached_by(figure) else "",
        )
    before_at = f"; the committed figures at {committed['load']}" if committed else ""
    table.caption = f"{now['cores']} cores at a load of {now['load']}{before_at}"
    return table


def chosen(text: str) -> Sequence[str]:
    """Read the names of measurements."""
    names = text.split(",")
    if unknown := [name for name in names if name not in MEASUREMENTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(MEASUREMENTS)}")
    return names


def main() -> None:
    """Measure, show the table, and save the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=5000, help="orders of a load at full speed")
    parser.add_argument("--only", type=chosen, default=[name for name in MEASUREMENTS if name != "many"])
    parser.add_argument("--many", type=int, default=0, help="orders before an order's cost is measured again")
    parser.add_argument("--partitions", type=int, default=1, help="partitions of each inbox")
    parser.add_argument("--save", action="store_true", help=f"write {FILE.name}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    names = [*options.only, "many"] if options.many and "many" not in options.only else options.only
    committed = json.loads(FILE.read_text()) if FILE.exists() else {}
    settings = {PARTITIONS_VARIABLE: str(options.partitions)}
    with own_stack("--only", ",".join(SERVICES), offset=OFFSET, settings=settings) as directory:
        now = described(uvloop.run(measure(directory, names, options.orders, options.many or 100_000)))
    print(json.dumps(now, indent=2)) if options.json else Console().print(table_of(now, committed))
    if options.save:
        kept = {**committed.get("figures", {}), **now["figures"]}
        FILE.write_text(json.dumps({**now, "figures": kept}, indent=2) + "\n")


if __name__ == "__main__":
    main()

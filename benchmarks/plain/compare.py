"""Compares this system with the plain implementation: the same orders over the same servers, in turns.

    python -m benchmarks.plain.compare [--orders 2000] [--concurrency 64] [--products 100] [--lines 2] [--rounds 3]

Starts a stack of its own with `ordersaga up` in a temporary directory, and the plain services beside it. Both are given
the same orders, as fast as they are answered, after some that are not counted; which one begins changes each round. The
table has the medians over the rounds: orders per second from the first POST to the last order that is final and
settled, and the CPU time per order of the services and of both servers. The stack that is not loaded runs idle; what it
uses is counted nowhere but at the servers.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import uvloop
from pymongo import AsyncMongoClient
from rich.console import Console
from rich.table import Table

from benchmarks.failover import own_stack
from operations.load import LoadPlan
from operations.load.cost import Usage, cost_between, measure_usage, usage_of
from operations.load.outcomes import PlacedOrders
from operations.load.placer import OrderPlacer
from operations.load.run import create_products
from operations.settings import Stack, locate_stack
from shared.database import Document
from shared.services import INVENTORY, ORDER, PAYMENT
from tests.support.stack_users import mongodb_url_of

OFFSET = 5600
OURS, PLAIN = "ordersaga", "plain"
SERVICES = (ORDER.name, INVENTORY.name, PAYMENT.name)
SERVERS = ("mongodb", "rabbitmq")
PREFIX = "plain"
PORTS_APART = 60
WARM_UP = 300
READY_WITHIN, SETTLED_WITHIN = 60.0, 300.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Round:
    """What one load came to: orders per second, and milliseconds of CPU per order of each process."""

    rate: float
    cpu: dict[str, float]

    @property
    def total(self) -> float:
        """Milliseconds of CPU per order of all services and servers."""
        return sum(self.cpu.values())


class Ours:
    """The stack under test."""

    def __init__(self, session: aiohttp.ClientSession, stack: Stack) -> None:
        self._session = session
        self.urls = stack.urls
        self.headers = stack.headers
        self._data_dir = stack.data_dir

    def usage(self) -> dict[str, Usage]:
        """Measure what its services and the servers have used."""
        measured = measure_usage(self._data_dir)
        return {name: measured[name] for name in (*SERVICES, *SERVERS)}

    async def seconds(self, load_id: str, _orders: int) -> float:
        """Wait until the orders are settled; return the time from the first to the last."""
        placed = PlacedOrders(self._session, self.urls[ORDER.name], load_id)
        if not await placed.wait_until_settled(SETTLED_WITHIN):
            raise SystemExit(f"orders are not settled after {SETTLED_WITHIN:g} s")
        return (await placed.outcomes()).seconds


class Plain:
    """The plain services, over the same servers."""

    def __init__(self, stack: Stack, client: "AsyncMongoClient[Document]", processes: dict[str, int]) -> None:
        self.urls = {name: f"http://127.0.0.1:{_plain_port(stack, name)}" for name in SERVICES}
        self.headers: dict[str, str] = {}
        self._data_dir = stack.data_dir
        self._processes = processes
        self._orders = client[f"{PREFIX}_order"].orders

    def usage(self) -> dict[str, Usage]:
        """Measure what its services and the servers have used."""
        measured = measure_usage(self._data_dir)
        own = {name: usage_of(psutil.Process(pid)) for name, pid in self._processes.items()}
        return own | {name: measured[name] for name in SERVERS}

    async def seconds(self, load_id: str, orders: int) -> float:
        """Wait until the orders are final; return the time from the first to the last."""
        deadline = time.monotonic() + SETTLED_WITHIN
        final = {"body.userId": load_id, "status": "CONFIRMED"}
        while await self._orders.count_documents(final) < orders:
            if time.monotonic() > deadline:
                raise SystemExit(f"plain orders are not final after {SETTLED_WITHIN:g} s")
            await asyncio.sleep(POLL_SECONDS)
        times = {"_id": None, "first": {"$min": "$createdAt"}, "last": {"$max": "$updatedAt"}}
        found = await (await self._orders.aggregate([{"$match": final}, {"$group": times}])).to_list()
        return float((found[0]["last"] - found[0]["first"]).total_seconds())


def _plain_port(stack: Stack, service: str) -> int:
    return int(stack.urls[service].rpartition(":")[2]) + PORTS_APART


@contextlib.asynccontextmanager
async def plain_services(stack: Stack, directory: Path) -> AsyncIterator[Plain]:
    """Run the plain services until the end of the block."""
    mongodb_url = mongodb_url_of(directory)
    environment = os.environ | {
        "PLAIN_MONGODB_URL": mongodb_url,
        "PLAIN_AMQP_URL": stack.amqp_url,
        "PLAIN_DATABASE_PREFIX": PREFIX,
    }
    with contextlib.ExitStack() as running:
        processes = {}
        for name in SERVICES:
            own = environment | {"PLAIN_PORT": str(_plain_port(stack, name))}
            processes[name] = running.enter_context(_process(name, own)).pid
        async with AsyncMongoClient[Document](mongodb_url, tz_aware=True) as client:
            # What a poll asks for; ours has an index for its own question, too.
            await client[f"{PREFIX}_order"].orders.create_index([("body.userId", 1), ("status", 1)])
            plain = Plain(stack, client, processes)
            await _ready(plain.urls.values())
            yield plain


@contextlib.contextmanager
def _process(name: str, environment: dict[str, str]) -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen([sys.executable, "-m", f"benchmarks.plain.{name}"], env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def _ready(urls: Iterable[str]) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(READY_WITHIN):
        for url in urls:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/openapi.json"):
                        break
                await asyncio.sleep(POLL_SECONDS)


async def load(way: Ours | Plain, session: aiohttp.ClientSession, plan: LoadPlan) -> Round:
    """Place the orders of a plan, and wait for their end."""
    load_id = f"load-{secrets.token_hex(4)}"
    await create_products(session, way.urls[INVENTORY.name], plan, load_id)
    placer = OrderPlacer(plan, way.urls[ORDER.name], plan.bodies(load_id), way.headers)
    before = way.usage()
    await placer.run()
    if placer.accepted != plan.orders:
        raise SystemExit(f"only {placer.accepted} of {plan.orders} orders were accepted: {dict(placer.errors)}")
    seconds = await way.seconds(load_id, plan.orders)
    costs = cost_between(before, way.usage())
    return Round(plan.orders / seconds, {name: 1000 * cost.cpu_seconds / plan.orders for name, cost in costs.items()})


async def compare(stack: Stack, directory: Path, plan: LoadPlan, rounds: int) -> dict[str, list[Round]]:
    """Load both in turns; return the rounds of each."""
    found: dict[str, list[Round]] = {OURS: [], PLAIN: []}
    async with aiohttp.ClientSession(headers=stack.headers) as session, plain_services(stack, directory) as plain:
        ways: dict[str, Ours | Plain] = {OURS: Ours(session, stack), PLAIN: plain}
        warm_up = LoadPlan(WARM_UP, None, plan.concurrency, plan.products, plan.lines)
        for way in ways.values():
            await load(way, session, warm_up)
        for number in range(rounds):
            for name in (OURS, PLAIN) if number % 2 == 0 else (PLAIN, OURS):
                found[name].append(await load(ways[name], session, plan))
    return found


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    """Return the medians over rounds, by name."""
    names = ("orders/s", "CPU ms per order", *rounds[0].cpu)
    figures = [{"orders/s": each.rate, "CPU ms per order": each.total, **each.cpu} for each in rounds]
    return {name: statistics.median(figure[name] for figure in figures) for name in names}


def show(found: dict[str, dict[str, float]]) -> None:
    """Print a table: one line per figure, with the ratio of the two."""
    table = Table("", OURS, PLAIN, "ratio", title="medians")
    for name, ours in found[OURS].items():
        plain = found[PLAIN][name]
        ratio = ours / plain if name == "orders/s" else plain / ours
        table.add_row(name, f"{ours:.2f}", f"{plain:.2f}", f"{ratio:.1f}")
    Console().print(table)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--products", type=int, default=100)
    parser.add_argument("--lines", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    plan = LoadPlan(options.orders, None, options.concurrency, options.products, options.lines)
    with own_stack(offset=OFFSET) as directory:
        rounds = uvloop.run(compare(locate_stack(directory), directory, plan, options.rounds))
    found = {name: medians(each) for name, each in rounds.items()}
    print(json.dumps(found, indent=2)) if options.json else show(found)


if __name__ == "__main__":
    main()

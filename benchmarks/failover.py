"""Measures what clients see of the loss of a broker node, of the primary or of a service.

    .venv/bin/python -m benchmarks.failover
    .venv/bin/python -m benchmarks.failover --faults node-killed,primary-killed --rate 50 --json

Starts a stack of its own with `ordersaga up --cluster` in a temporary directory. Orders are placed at a steady rate;
a client repeats an order, under the same idempotency key, until it is accepted. One fault after the other is applied
meanwhile: see `benchmarks.failover_faults`. Each line of the table is about the orders that were due from the moment of
a fault until the end of its consequences, and shows

    gap       the longest time without a 202
    POST      from the moment when an order was due to its 202, over all attempts
    settled   from the moment when an order was due until everything about it is settled
    503, ...  the answers and failures that clients had to repeat

Exit status 1 if an accepted order is lost or not settled, or if the books of the stack do not balance.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.failover_faults import FAULTS, Fault
from chaos.stack import ChaosStack
from operations.audit import audit
from operations.reading.connection import open_mongodb
from operations.settings import Stack, locate_stack
from shared.services import ORDER

OFFSET = 4000
"""Added to all ports, so that the stack runs beside another one."""
BEFORE_SECONDS, AFTER_SECONDS = 3.0, 10.0
"""How long orders are placed before a fault and after it."""
SETTLED_WITHIN = 120.0
GIVE_UP_SECONDS = 60.0
PAUSE_SECONDS = 0.1
"""The pause of a client before it repeats an order."""
PRODUCT = "failover"

_console = Console(stderr=True)


@dataclass(slots=True)
class Placed:
    """An order: when it was due, when it was accepted, and under which id. Times are in Unix seconds."""

    due_at: float
    accepted_at: float | None = None
    order_id: str | None = None


@dataclass(slots=True)
class Window:
    """The orders that clients have placed around one fault, and what came instead of a 202."""

    fault: Fault
    orders: list[Placed] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    from_: float = 0.0
    until: float = 0.0


BODY = {
    "userId": PRODUCT,
    "items": [{"productId": PRODUCT, "quantity": 1, "price": 10}],
    "totalAmount": 10,
    "payment": {"token": "tok_ok"},
}


class Clients:
    """Place orders at a steady rate, each repeated until it is accepted."""

    def __init__(self, session: aiohttp.ClientSession, url: str, rate: float, answer_within: float) -> None:
        self._session = session
        self._url = f"{url}/orders"
        self._rate = rate
        self._timeout = aiohttp.ClientTimeout(total=answer_within)
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def placing(self, placed: Window) -> AsyncIterator[None]:
        """Place orders as long as the context lasts, and wait for their answers."""
        source = asyncio.create_task(self._place_all(placed))
        try:
            yield
        finally:
            source.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _place_all(self, placed: Window) -> None:
        began = time.time()
        for number in range(sys.maxsize):
            order = Placed(began + number / self._rate)
            await asyncio.sleep(max(0.0, order.due_at - time.time()))
            placed.orders.append(order)
            task = asyncio.create_task(self._place(order, f"{began}-{number}", placed.refusals))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _place(self, order: Placed, key: str, refusals: Counter[str]) -> None:
        while time.time() < order.due_at + GIVE_UP_SECONDS:
            try:
                async with self._session.post(
                    self._url, json=BODY, headers={"Idempotency-Key": key}, timeout=self._timeout
                ) as answer:
                    if answer.status == 202:
                        order.order_id = (await answer.json())["orderId"]
                        order.accepted_at = time.time()
                        return
                    refusals[str(answer.status)] += 1
            except TimeoutError:
                refusals["no answer in time"] += 1
            except aiohttp.ClientError as error:
                refusals[type(error).__name__] += 1
            await asyncio.sleep(PAUSE_SECONDS)
        refusals["given up"] += 1


class Records:
    """The orders as the order service has stored them."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    async def wait_until_settled(self) -> bool:
        """Wait until all orders are settled; return False if that takes too long."""
        deadline = time.monotonic() + SETTLED_WITHIN
        async with self._orders() as orders:
            while await orders.count_documents({"userId": PRODUCT, "settled": False}, limit=1):
                if time.monotonic() > deadline:
                    return False
                await asyncio.sleep(0.5)
        return True

    async def settled_at(self) -> dict[str, float | None]:
        """Return when each order was settled, in Unix seconds; None if it is not."""
        fields = {"updatedAt": 1, "settled": 1}
        async with self._orders() as orders:
            return {
                order["_id"]: order["updatedAt"].timestamp() if order["settled"] else None
                async for order in orders.find({"userId": PRODUCT}, fields)
            }

    @contextlib.asynccontextmanager
    async def _orders(self) -> AsyncIterator[Any]:
        async with open_mongodb(self._stack.mongodb_url, purpose="the benchmark", name="failover") as client:
            yield client[ORDER.database_in(self._stack.database_prefix)].orders


async def measure(
    stack: Stack, directory: Path, faults: Sequence[Fault], rate: float, answer_within: float
) -> dict[str, Any]:
    """Apply the faults one after the other under load; return the report."""
    cluster, records = ChaosStack(directory), Records(stack)
    connector = aiohttp.TCPConnector(limit=0)
    windows = []
    async with aiohttp.ClientSession(headers=stack.headers, connector=connector) as session:
        await _create_product(session, stack.urls["inventory"])
        clients = Clients(session, stack.urls["order"], rate, answer_within)
        for fault in faults:
            await cluster.whole()
            if fault.prepare is not None:
                await fault.prepare(cluster)
            window = Window(fault)
            async with clients.placing(window):
                await asyncio.sleep(BEFORE_SECONDS)
                window.from_ = time.time()
                _console.print(f"{datetime.now(UTC):%H:%M:%S} {fault.title}")
                await fault.act(cluster)
                await asyncio.sleep(AFTER_SECONDS)
                window.until = time.time()
            if not await records.wait_until_settled():
                _console.print(f"orders are not settled after {SETTLED_WITHIN:g} s")
            windows.append(window)
            if fault.repair is not None:
                await fault.repair(cluster)
    settled = await records.settled_at()
    books = await audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix)
    accepted = [order.order_id for window in windows for order in window.orders if order.order_id is not None]
    return {
        "rate": rate,
        "faults": [row(window, settled) for window in windows],
        "accepted": len(accepted),
        "lost": sum(order_id not in settled for order_id in accepted),
        "unsettled": sum(settled.get(order_id) is None for order_id in accepted),
        "audit": books.as_json(),
    }


async def _create_product(session: aiohttp.ClientSession, inventory_url: str) -> None:
    async with session.put(f"{inventory_url}/inventory/{PRODUCT}", json={"quantity": 10_000_000}) as answer:
        answer.raise_for_status()


def row(window: Window, settled: dict[str, float | None]) -> dict[str, Any]:
    """Return one line of the report; times are in seconds."""
    hit = [order for order in window.orders if order.due_at >= window.from_]
    accepted = sorted(order.accepted_at for order in window.orders if order.accepted_at is not None)
    times = [window.from_, *(at for at in accepted if at >= window.from_)]
    ends = [(order.due_at, settled.get(order.order_id)) for order in hit if order.order_id is not None]
    return {
        "fault": window.fault.name,
        "title": window.fault.title,
        "seconds": round(window.until - window.from_, 1),
        "orders": len(hit),
        "gap": round(max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0), 2),
        "post": percentiles([order.accepted_at - order.due_at for order in hit if order.accepted_at is not None]),
        "settled": percentiles([at - due_at for due_at, at in ends if at is not None]),
        "refusals": dict(window.refusals.most_common()),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the maximum."""
    ordered = sorted(values) or [0.0]
    places = {"p50": len(ordered) // 2, "p99": int(len(ordered) * 0.99), "max": len(ordered) - 1}
    return {name: round(ordered[place], 3) for name, place in places.items()}


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    table = Table(title=f"{report['rate']:g} orders/s; seconds")
    for column in ("fault", "gap", "POST p50 / p99 / max", "settled p50 / p99 / max", "repeated by clients"):
        table.add_column(column)
    for line in report["faults"]:
        spans = [
            " / ".join(f"{line[span][name]:.2f}" for name in ("p50", "p99", "max")) for span in ("post", "settled")
        ]
        refusals = ", ".join(f"{count} x {what}" for what, count in line["refusals"].items()) or "-"
        table.add_row(line["title"], f"{line['gap']:.2f}", *spans, refusals)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    books = "the books balance" if report["audit"]["ok"] else f"violations: {report['audit']['violations'][:3]}"
    console.print(f"{report['accepted']} accepted, {report['lost']} lost, {report['unsettled']} not settled; {books}")


@contextlib.contextmanager
def own_stack(*options: str, offset: int = OFFSET, settings: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Start a stack in a temporary directory with these options of `up`, and end it; `offset` is added to all ports."""
    command = str(Path(sys.executable).with_name("ordersaga"))
    with tempfile.TemporaryDirectory(prefix="ordersaga-failover-") as temporary:
        directory = Path(temporary) / "stack"
        os.environ |= {"ORDERSAGA_DATA_DIR": str(directory), "XDG_STATE_HOME": f"{temporary}/state", **(settings or {})}
        up = [command, "up", *options, "--detach", "--port-offset", str(offset)]
        try:
            subprocess.run(up, check=True, stdout=sys.stderr)
            yield directory
        finally:
            subprocess.run([command, "down"], check=False, stdout=sys.stderr)


def chosen(names: str) -> Sequence[Fault]:
    """Return the faults of these names; all for an empty string."""
    wanted = [name for name in names.split(",") if name]
    known = {fault.name: fault for fault in FAULTS}
    if unknown := [name for name in wanted if name not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return [known[name] for name in wanted] or FAULTS


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=chosen, default=FAULTS, help="names of faults, with commas")
    parser.add_argument("--rate", type=float, default=50, help="orders per second")
    parser.add_argument("--timeout", type=float, default=10, help="seconds that a client waits for an answer")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    with own_stack("--cluster") as directory:
        report = uvloop.run(measure(locate_stack(directory), directory, options.faults, options.rate, options.timeout))
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    sys.exit(0 if report["audit"]["ok"] and not report["unsettled"] else 1)


if __name__ == "__main__":
    main()

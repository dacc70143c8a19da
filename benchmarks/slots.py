"""Measure the cost of delivery slots: reserve orders for one hot product with and without a slot, over several workers.

    python -m benchmarks.slots "mongodb://127.0.0.1:27017/?replicaSet=rs0" [--orders 4000] [--workers 1,2,4]

Every worker is a process that reserves its own orders in batches. All orders ask for units of one product, and with
slots for the earliest slot with room, so all workers compete for the same two documents. `none`: orders without a slot;
`room`: slots take all orders; `full`: a slot takes 50 orders, and the horizon of 100 slots fills up. The table shows
orders decided per second over all workers, how many writes a batch lost to other workers, the time of a batch from its
first read to its last record, and CPU time per order in the workers. The benchmark uses a separate database and drops
it at the end.
"""

import argparse
import asyncio
import multiprocessing
import secrets
import statistics
import time
from dataclasses import dataclass
from itertools import product
from multiprocessing.synchronize import Barrier
from typing import Any

import uvloop
from prometheus_client import REGISTRY
from rich.console import Console
from rich.table import Table

from inventory_service.pending_moves import PendingMoves
from inventory_service.reservation_processor import ReservationProcessor
from inventory_service.reservations import Reservations
from inventory_service.schema import SCHEMA
from inventory_service.slots import SlotRules
from inventory_service.stock_items import StockItems
from inventory_service.timetable import Rules
from shared import database, schema
from shared.clock import utc_now
from shared.contracts import OrderCreated
from shared.database import Database
from shared.failure_points import nothing_fails
from shared.settings import ServiceSettings

NAME = "ordersaga_benchmark_slots"
HOT = "hot"
PLENTY = 10**9
PRICE = 10
ORDERS_TO_A_SLOT = 50
MIN_BATCHES = 20
RULES = {
    "none": Rules(),
    "room": Rules(capacity=PLENTY * PRICE),
    "full": Rules(capacity=ORDERS_TO_A_SLOT * PRICE * 100),
}


@dataclass(frozen=True, slots=True)
class Share:
    """The work of one worker: wall-clock times, the seconds of each batch, lost writes."""

    started: float
    ended: float
    batches: list[float]
    orders: int
    lost: float
    cpu: float


def an_order(way: str) -> OrderCreated:
    """Build an order for one unit of the hot product, with the earliest slot unless the way is `none`."""
    order_id = secrets.token_hex(16)
    item = b'{"productId":"%s","quantity":1,"price":%d}' % (HOT.encode(), PRICE)
    delivery = b"{}" if way == "none" else b'{"slot":"auto"}'
    body = b'{"orderId":"%s","userId":"u","items":[%s],"totalAmount":%d,"delivery":%s}'
    return OrderCreated.model_validate_json(body % (order_id.encode(), item, PRICE, delivery))


def connected(url: str) -> Database:
    """Connect to the benchmark's database."""
    found: Database = database.client(ServiceSettings(mongodb_url=url, database_timeout_seconds=100))[NAME]
    return found


async def prepare(url: str, way: str) -> None:
    """Create one product with plenty of stock and the rules, and no reservations."""
    db = connected(url)
    await db.client.drop_database(NAME)
    await schema.prepare(db, SCHEMA)
    await StockItems(db, utc_now).set_free(HOT, PLENTY)
    await SlotRules(db, utc_now).write(RULES[way])


async def work(url: str, way: str, batches: int, size: int, barrier: Barrier) -> Share:
    """Reserve the batches as one worker."""
    db = connected(url)
    stock_items, reservations = StockItems(db, utc_now), Reservations(db, utc_now)
    pending_moves = PendingMoves(stock_items, reservations, utc_now, idle=0.1, sweep_interval=5)
    processor = ReservationProcessor(
        stock_items, reservations, SlotRules(db, utc_now), pending_moves, utc_now, nothing_fails
    )
    queue = [[an_order(way) for _ in range(size)] for _ in range(batches)]
    await processor.reserve([an_order(way)])
    flushing = asyncio.create_task(pending_moves.flush())
    lost, took = conflicts(), []
    await asyncio.to_thread(barrier.wait)
    started, cpu = time.time(), time.process_time()
    for batch in queue:
        before = time.perf_counter()
        await processor.reserve(batch)
        took.append(time.perf_counter() - before)
    share = Share(started, time.time(), took, batches * size, conflicts() - lost, time.process_time() - cpu)
    flushing.cancel()
    return share


def conflicts() -> float:
    """Return how many writes this process has lost because another one had changed the document."""
    return REGISTRY.get_sample_value("inventory_conflicts_total") or 0


def run_worker(url: str, way: str, batches: int, size: int, barrier: Barrier, shares: Any) -> None:
    """Run a worker process."""
    shares.put(uvloop.run(work(url, way, batches, size, barrier)))


def measure(url: str, workers: int, size: int, way: str, orders: int) -> tuple[str, ...]:
    """Run one setting; return the cells of its row."""
    uvloop.run(prepare(url, way))
    spawn = multiprocessing.get_context("spawn")
    batches = max(MIN_BATCHES, orders // (workers * size))
    barrier, shares = spawn.Barrier(workers), spawn.Queue()
    arguments = (url, way, batches, size, barrier, shares)
    processes = [spawn.Process(target=run_worker, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    done: list[Share] = [shares.get() for _ in processes]
    for process in processes:
        process.join()
    elapsed = max(share.ended for share in done) - min(share.started for share in done)
    percentiles = statistics.quantiles([1000 * took for share in done for took in share.batches], n=100)
    lost = sum(share.lost for share in done) / (workers * batches)
    total = sum(share.orders for share in done)
    cpu = 1e6 * sum(share.cpu for share in done) / total
    return f"{total / elapsed:,.0f}", f"{lost:.2f}", f"{percentiles[49]:.1f}", f"{percentiles[98]:.1f}", f"{cpu:,.0f}"


def numbers(text: str) -> list[int]:
    """Read a list like 1,50,200."""
    return [int(part) for part in text.split(",")]


async def drop(url: str) -> None:
    """Drop the benchmark's database."""
    await connected(url).client.drop_database(NAME)


def main() -> None:
    """Measure every setting and show the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--orders", type=int, default=4000, help="orders per setting, fewer in small batches")
    parser.add_argument("--workers", type=numbers, default=[1, 2, 4])
    parser.add_argument("--batches", type=numbers, default=[1, 50, 200])
    arguments = parser.parse_args()
    table = Table("workers", "batch", "slots", "orders/s", "lost", "p50 ms", "p99 ms", "worker µs")
    for workers, size, way in product(arguments.workers, arguments.batches, RULES):
        orders = arguments.orders if size > 1 else max(100, arguments.orders // 10)
        table.add_row(str(workers), str(size), way, *measure(arguments.url, workers, size, way, orders))
    Console().print(table)
    uvloop.run(drop(arguments.url))


if __name__ == "__main__":
    main()

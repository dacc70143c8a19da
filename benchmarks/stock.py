"""Compare moving stock with pending moves (inventory_service/stock.py) and in multi-document transactions.

    python -m benchmarks.stock "mongodb://127.0.0.1:27017/?replicaSet=rs0" [--orders 4000] [--no-recovery]

Several worker processes reserve orders for one hot product, in batches. Both ways read the reservations, decide the
whole batch, change the quantity and insert the reservations. The table shows reservations per second over all workers,
how many attempts a batch lost against other workers, and CPU time per reservation in the workers and in mongod. Then
one worker is killed with SIGKILL after it has changed the quantity, and the time is measured until another one has
reserved the same order and a new one. The benchmark uses a separate database and drops it at the end.
"""

import argparse
import asyncio
import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import psutil
import uvloop
from prometheus_client import REGISTRY
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.table import Table

from inventory_service.pending_moves import PendingMoves
from inventory_service.reservation_processor import ReservationProcessor
from inventory_service.reservations import Reservations
from inventory_service.slots import SlotRules
from inventory_service.stock import Reservation, ReservationLine, Status
from inventory_service.stock_items import StockItems
from shared import database
from shared.clock import utc_now
from shared.contracts import OrderCreated
from shared.database import Database
from shared.failpoints import STOCK_MOVED, Failpoint, nothing_fails
from shared.settings import ServiceSettings

NAME = "ordersaga_benchmark_stock"
HOT = "hot"
PLENTY = 10**9
MIN_BATCHES = 10
RECOVERY_LIMIT_SECONDS = 120


class Way(Protocol):
    """A way to reserve stock."""

    lost: float
    """Attempts lost against other workers."""

    async def reserve(self, orders: Sequence[OrderCreated]) -> None:
        """Reserve for all orders."""


@dataclass(frozen=True, slots=True)
class Share:
    """The work of one worker."""

    started: float
    ended: float
    cpu: float
    orders: int
    lost: float


def an_order() -> OrderCreated:
    """Build an order for one unit of the hot product."""
    order_id = secrets.token_hex(16)
    item = b'{"productId":"%s","quantity":1,"price":10}' % HOT.encode()
    body = b'{"orderId":"%s","userId":"u","items":[%s],"totalAmount":10}' % (order_id.encode(), item)
    return OrderCreated.model_validate_json(body)


class WithPendingMoves:
    """The way of the inventory service."""

    def __init__(self, db: Database, failpoint: Failpoint) -> None:
        stock_items, reservations = StockItems(db, utc_now), Reservations(db, utc_now)
        self.pending_moves = PendingMoves(stock_items, reservations, utc_now, idle=0.1, sweep_interval=5)
        self._processor = ReservationProcessor(
            stock_items, reservations, SlotRules(db, utc_now), self.pending_moves, utc_now, failpoint
        )
        self.lost: float = 0

    async def reserve(self, orders: Sequence[OrderCreated]) -> None:
        """Reserve for all orders."""
        await self._processor.reserve(orders)
        self.lost = REGISTRY.get_sample_value("inventory_conflicts_total") or 0


class WithTransactions:
    """One transaction per batch: the guarded quantity and all its reservations."""

    def __init__(self, db: Database, failpoint: Failpoint) -> None:
        self._db = db
        self._products, self._reservations = db["products"], Reservations(db, utc_now)
        self._failpoint = failpoint
        self.lost: float = 0

    async def reserve(self, orders: Sequence[OrderCreated]) -> None:
        """Reserve for all orders; repeat until no other worker interferes."""
        while True:
            try:
                await self._attempt(orders)
            except PyMongoError as error:
                if not error.has_error_label("TransientTransactionError"):
                    raise
                self.lost += 1
            else:
                return

    async def _attempt(self, orders: Sequence[OrderCreated]) -> None:
        ids = [order.order_id for order in orders]
        async with self._db.client.start_session() as session, await session.start_transaction():
            found = self._db["reservations"].find({"_id": {"$in": ids}}, session=session)
            existing = {document["_id"] async for document in found}
            new = [order for order in orders if order.order_id not in existing]
            if not new:
                return
            await self._products.find_one_and_update(
                {"_id": HOT, "quantity": {"$gte": len(new)}}, {"$inc": {"quantity": -len(new)}}, session=session
            )
            self._failpoint(STOCK_MOVED)
            await self._db["reservations"].insert_many([_document(order) for order in new], session=session)


def _document(order: OrderCreated) -> dict[str, Any]:
    lines = [ReservationLine(item.product_id, item.quantity, item.price) for item in order.items]
    reservation = Reservation(order.order_id, Status.RESERVED, utc_now(), utc_now(), tuple(lines))
    items = [
        {"productId": line.product_id, "quantity": line.quantity, "price": line.price} for line in reservation.items
    ]
    return {"_id": order.order_id, "status": reservation.status, "items": items, "createdAt": reservation.created_at}


WAYS: dict[str, Callable[[Database, Failpoint], Way]] = {
    "pending moves": WithPendingMoves,
    "transactions": WithTransactions,
}


async def connected(url: str) -> Database:
    """Connect to the benchmark's database."""
    db: Database = database.client(ServiceSettings(mongodb_url=url, database_timeout_seconds=100))[NAME]
    await db.command("ping")
    return db


async def prepare(url: str) -> None:
    """Create one product with plenty of stock, and no reservations."""
    db = await connected(url)
    await db.client.drop_database(NAME)
    await StockItems(db, utc_now).set_free(HOT, PLENTY)
    await db.create_collection("reservations")


async def work(url: str, way: str, batches: int, size: int, barrier: Barrier) -> Share:
    """Reserve the batches as one worker."""
    worker = WAYS[way](await connected(url), nothing_fails)
    queue = [[an_order() for _ in range(size)] for _ in range(batches)]
    await worker.reserve([an_order()])
    flushing = asyncio.create_task(worker.pending_moves.flush()) if isinstance(worker, WithPendingMoves) else None
    lost = worker.lost
    await asyncio.to_thread(barrier.wait)
    started, cpu = time.time(), time.process_time()
    for batch in queue:
        await worker.reserve(batch)
    share = Share(started, time.time(), time.process_time() - cpu, batches * size, worker.lost - lost)
    if flushing is not None:
        flushing.cancel()
    return share


def run_worker(url: str, way: str, batches: int, size: int, barrier: Barrier, shares: Any) -> None:
    """Run a worker process."""
    shares.put(uvloop.run(work(url, way, batches, size, barrier)))


def mongod_cpu(url: str) -> float:
    """Return the CPU seconds used by the mongod behind the URL, if it runs on this machine."""
    port = urlsplit(url.partition(",")[0]).port or 27017
    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        if listens and connection.pid:
            times = psutil.Process(connection.pid).cpu_times()
            return float(times.user + times.system)
    return float("nan")


class Measured(NamedTuple):
    """What one setting came to; `lost` is per batch, both CPU times in microseconds per reservation."""

    per_second: float
    lost: float
    worker_cpu: float
    mongod_cpu: float


def measure(url: str, way: str, workers: int, size: int, orders: int) -> Measured:
    """Run one setting."""
    uvloop.run(prepare(url))
    spawn = multiprocessing.get_context("spawn")
    batches = max(MIN_BATCHES, orders // (workers * size))
    barrier, shares = spawn.Barrier(workers), spawn.Queue()
    arguments = (url, way, batches, size, barrier, shares)
    processes = [spawn.Process(target=run_worker, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    before = mongod_cpu(url)
    done: list[Share] = [shares.get() for _ in processes]
    mongod = mongod_cpu(url) - before
    for process in processes:
        process.join()
    total = sum(share.orders for share in done)
    elapsed = max(share.ended for share in done) - min(share.started for share in done)
    lost = sum(share.lost for share in done) / (workers * batches)
    cpu = 1e6 * sum(share.cpu for share in done) / total
    return Measured(total / elapsed, lost, cpu, 1e6 * mongod / total)


def die(point: str) -> None:
    """Kill this process, as a crash does."""
    if point == STOCK_MOVED:
        os.kill(os.getpid(), signal.SIGKILL)


async def reserve_once(url: str, way: str, order: OrderCreated, failpoint: Failpoint) -> None:
    """Reserve one order."""
    await WAYS[way](await connected(url), failpoint).reserve([order])


def run_doomed(url: str, way: str, order: OrderCreated) -> None:
    """Run a worker process that dies after it has moved stock."""
    uvloop.run(reserve_once(url, way, order, die))


async def recover(url: str, way: str, order: OrderCreated) -> float:
    """Return the seconds from the death until another worker has reserved the order and a new one."""
    started = time.perf_counter()
    async with asyncio.timeout(RECOVERY_LIMIT_SECONDS):
        await reserve_once(url, way, order, nothing_fails)
        await reserve_once(url, way, an_order(), nothing_fails)
    return time.perf_counter() - started


def measure_recovery(url: str, way: str) -> float:
    """Kill a worker in the middle and let another one take over."""
    uvloop.run(prepare(url))
    order = an_order()
    doomed = multiprocessing.get_context("spawn").Process(target=run_doomed, args=(url, way, order))
    doomed.start()
    doomed.join()
    return uvloop.run(recover(url, way, order))


def numbers(text: str) -> list[int]:
    """Read a list like 1,50,200."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Measure every setting and show the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--orders", type=int, default=4000, help="reservations per setting, fewer in small batches")
    parser.add_argument("--workers", type=numbers, default=[1, 2, 4])
    parser.add_argument("--batches", type=numbers, default=[1, 50, 200])
    parser.add_argument("--no-recovery", action="store_true")
    arguments = parser.parse_args()
    console = Console()
    table = Table("workers", "batch", "way", "per second", "lost", "worker µs", "mongod µs")
    for workers, size, way in product(arguments.workers, arguments.batches, WAYS):
        orders = arguments.orders if size > 1 else max(100, arguments.orders // 10)
        found = measure(arguments.url, way, workers, size, orders)
        cells = (
            f"{found.per_second:,.0f}",
            f"{found.lost:.2f}",
            f"{found.worker_cpu:,.0f}",
            f"{found.mongod_cpu:,.0f}",
        )
        table.add_row(str(workers), str(size), way, *cells)
    console.print(table)
    if not arguments.no_recovery:
        for way in WAYS:
            console.print(
                f"{way}: {measure_recovery(arguments.url, way):.2f} s from a worker's death to the next order"
            )
    uvloop.run(drop(arguments.url))


async def drop(url: str) -> None:
    """Drop the benchmark's database."""
    await (await connected(url)).client.drop_database(NAME)


if __name__ == "__main__":
    main()

"""What an order leaves behind and holds open: records, disk, connections, and the broker's memory for waiting messages.

    python -m benchmarks.capacity [--orders 10000] [--messages 50000]

The stack is the one that commands find; `ordersaga up` must have started it. Orders are placed as
`ordersaga load --lines 2 --products 100` does. The sizes come from MongoDB after a checkpoint, so all is on disk.
Connections are counted every half second. The messages wait in a queue of their own, which has the arguments of an
inbox and no consumer; it is deleted at the end.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from operator import sub
from pathlib import Path
from typing import Any, NamedTuple

import aio_pika
import psutil
import uvloop
from pymongo import AsyncMongoClient
from rich.console import Console
from rich.table import Table

from operations.load import LoadPlan, run_load
from operations.load.cost import measure_usage
from operations.settings import Stack, locate_stack
from operations.stack.layout import Layout
from operations.stack.state import read_state
from shared import topology
from shared.bus.amqp.connecting import connect
from shared.database import Document
from tests.support.stack_users import mongodb_url_of

BROKER = "rabbitmq"
DATABASE = "mongodb"
MESSAGE_BYTES = 1000
"""About an `order.created` with two lines."""
_PUBLISHED_AT_ONCE = 500


class Size(NamedTuple):
    """A collection's documents, their bytes in memory, and the bytes on disk of documents and indexes."""

    documents: int
    bson: int
    data: int
    indexes: int


NOTHING = Size(0, 0, 0, 0)


async def collection_sizes(stack: Stack, data_dir: Path) -> dict[str, Size]:
    """Return the size of each collection of the stack, by `database.collection`."""
    sizes = {}
    async with AsyncMongoClient[Document](mongodb_url_of(data_dir)) as client:
        await client.admin.command("fsync")
        for name in await client.list_database_names():
            if not name.startswith(f"{stack.database_prefix}_"):
                continue
            for collection in await client[name].list_collection_names(filter={"type": "collection"}):
                [stats] = await (
                    await client[name][collection].aggregate([{"$collStats": {"storageStats": {}}}])
                ).to_list()
                found = stats["storageStats"]
                sizes[f"{name}.{collection}"] = Size(
                    found["count"], found["size"], found["storageSize"], found["totalIndexSize"]
                )
    return sizes


def connections_now(data_dir: Path) -> Counter[tuple[str, str]]:
    """Count the connections of each process of the stack to MongoDB and to RabbitMQ."""
    processes = {each.identity.pid: each.name for each in read_state(Layout(data_dir)).processes if each.identity}
    sockets = [(each, processes[each.pid]) for each in psutil.net_connections("tcp") if each.pid in processes]
    servers = {
        _port(socket.laddr): process
        for socket, process in sockets
        if socket.status == psutil.CONN_LISTEN and process in (BROKER, DATABASE)
    }
    return Counter(
        (process, servers[_port(socket.raddr)])
        for socket, process in sockets
        if socket.status == psutil.CONN_ESTABLISHED and _port(socket.raddr) in servers
    )


def _port(address: Sequence[Any]) -> int:
    return int(address[1]) if address else 0


@asynccontextmanager
async def most_connections(data_dir: Path) -> AsyncIterator[dict[tuple[str, str], int]]:
    """Yield the largest number of connections of each process to each server, counted until the end of the block."""
    most: dict[tuple[str, str], int] = {}

    async def watch() -> None:
        while True:
            for pair, number in connections_now(data_dir).items():
                most[pair] = max(most.get(pair, 0), number)
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    try:
        yield most
    finally:
        watching.cancel()


async def memory_of_waiting_messages(stack: Stack, messages: int) -> tuple[int, int]:
    """Return the broker's resident memory before and while so many messages wait in a queue, in bytes."""
    [inbox] = [queue for queue in topology.queues() if queue.name == topology.INVENTORY_INBOX]
    before = measure_usage(stack.data_dir)[BROKER].rss_bytes
    async with await connect(stack.amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("ordersaga.capacity", durable=True, arguments=inbox.arguments)
        try:
            message = aio_pika.Message(b"x" * MESSAGE_BYTES, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            for _ in range(messages // _PUBLISHED_AT_ONCE):
                await asyncio.gather(
                    *(channel.default_exchange.publish(message, queue.name) for _ in range(_PUBLISHED_AT_ONCE))
                )
            return before, measure_usage(stack.data_dir)[BROKER].rss_bytes
        finally:
            await queue.delete(if_unused=False, if_empty=False)


def show_sizes(before: Mapping[str, Size], after: Mapping[str, Size], orders: int) -> None:
    """Print what each collection has grown by, per order."""
    table = Table("collection", "records", "BSON bytes", "bytes on disk", "of that, indexes", title="per order")
    grown = {name: Size(*map(sub, size, before.get(name, NOTHING))) for name, size in after.items()}
    for name, size in sorted(grown.items(), key=lambda each: -each[1].bson):
        if size.documents / orders >= 0.01:
            table.add_row(name, *_per_order(size, orders))
    table.add_row("all", *_per_order(Size(*map(sum, zip(*grown.values(), strict=True))), orders))
    Console(width=120).print(table)


def _per_order(size: Size, orders: int) -> tuple[str, ...]:
    on_disk = size.data + size.indexes
    return (
        f"{size.documents / orders:.2f}",
        *(f"{each / orders:,.0f}" for each in (size.bson, on_disk, size.indexes)),
    )


def show_connections(most: Mapping[tuple[str, str], int]) -> None:
    """Print the most connections of each process to each server."""
    table = Table("process", DATABASE, BROKER, title="connections at most")
    for process in sorted({process for process, _ in most}):
        table.add_row(process, *(str(most.get((process, server), 0)) for server in (DATABASE, BROKER)))
    Console(width=120).print(table)


async def measure(stack: Stack, data_dir: Path, orders: int, messages: int) -> None:
    """Measure and print everything."""
    before = await collection_sizes(stack, data_dir)
    async with most_connections(data_dir) as most:
        report = await run_load(stack, LoadPlan(orders, concurrency=64, products=100, lines=2))
    if not report.ok:
        raise SystemExit(f"the load failed: {report.as_json()}")
    show_sizes(before, await collection_sizes(stack, data_dir), orders)
    show_connections(most)
    empty, filled = await memory_of_waiting_messages(stack, messages)
    mebibytes = (filled - empty) / 2**20
    print(f"RabbitMQ: {mebibytes:.0f} MiB more for {messages:,} waiting messages of {MESSAGE_BYTES} bytes")
    print(f"          {mebibytes * 10_000 / messages:.1f} MiB for 10,000 of them")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=50_000)
    options = parser.parse_args()
    stack = locate_stack()
    if stack.data_dir is None:
        raise SystemExit("the servers of the stack must be those of `ordersaga up`")
    uvloop.run(measure(stack, stack.data_dir, options.orders, options.messages))


if __name__ == "__main__":
    main()

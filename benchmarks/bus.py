"""The cost of one message on the bus: CPU time in the client and in the broker, per publish, delivery and handling.

    python -m benchmarks.bus amqp://guest:guest@127.0.0.1:5672/benchmark [--messages 20000] [--batches 1,10,100,300]

The virtual host must exist and may be written to; its payment.inbox and order.inbox are emptied. For each batch size
the same messages are published (all of a batch at once, then their confirmations awaited) and consumed (acknowledged
batch by batch), first through aio-pika's own message objects, then through RabbitBus, which reads and writes message
frames itself. "handle" is all that a service does with a message around its own work: receive it, read it, publish an
answer, acknowledge it.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from shared import topology
from shared.bus import Envelope
from shared.bus.consumer import Consumer
from shared.bus.publisher import envelope
from shared.bus.rabbitmq import RabbitBus
from shared.contracts import PaymentRefunded, RefundPayment

QUEUE = topology.PAYMENT_INBOX


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU and elapsed time of one measured run, in microseconds per message."""

    client: float
    broker: float
    elapsed: float


def broker_process(url: str) -> psutil.Process | None:
    """The process that listens at the broker's port, if it runs on this machine."""
    port = urlsplit(url).port or 5672
    for connection in psutil.net_connections("tcp"):
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
            and connection.pid
        ):
            return psutil.Process(connection.pid)
    return None


def cpu_seconds(process: psutil.Process | None) -> float:
    """User and system time of `process` so far."""
    if process is None:
        return float("nan")
    times = process.cpu_times()
    return times.user + times.system


async def measured(work: Callable[[], Awaitable[None]], messages: int, broker: psutil.Process | None) -> Cost:
    """Run `work` and return the cost of each of `messages`."""
    client, server, start = time.process_time(), cpu_seconds(broker), time.perf_counter()
    await work()
    elapsed = time.perf_counter() - start
    used = time.process_time() - client, cpu_seconds(broker) - server, elapsed
    return Cost(*(seconds * 1e6 / messages for seconds in used))


class PlainClient:
    """The same work through aio-pika's message objects: one publish call and one callback task per message."""

    def __init__(self, url: str) -> None:
        self._url = url

    @asynccontextmanager
    async def opened(self) -> Any:
        """Connected while in this context."""
        async with await aio_pika.connect(self._url) as connection:
            self._channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            self._consuming = await connection.channel()
            await self._consuming.set_qos(prefetch_count=300)
            self._exchange = await self._channel.get_exchange(topology.EXCHANGE)
            yield

    async def publish(self, batches: list[list[Envelope]]) -> None:
        """Publish batch after batch."""
        for batch in batches:
            await asyncio.gather(*(self._publish(one) for one in batch))

    async def _publish(self, one: Envelope) -> None:
        message = aio_pika.Message(
            one.body,
            content_type="application/json",
            delivery_mode=2,
            correlation_id=one.correlation_id,
            message_id=one.message_id,
            type=one.type,
            timestamp=time.time(),
        )
        await self._exchange.publish(message, one.routing_key, mandatory=True, timeout=10)

    async def consume(self, total: int, batch: int) -> None:
        """Consume `total` messages, acknowledging once per batch."""
        done = asyncio.Event()
        seen = 0

        async def callback(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            nonlocal seen
            seen += 1
            if seen % batch == 0 or seen == total:
                await message.ack(multiple=True)
            if seen == total:
                done.set()

        queue = await self._consuming.get_queue(QUEUE, ensure=False)
        tag = await queue.consume(callback)
        await done.wait()
        await queue.cancel(tag)


class BusClient:
    """The same work through RabbitBus, as in the services."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._publishing = RabbitBus(url, name="benchmark")
        self._consuming = RabbitBus(url, name="benchmark")

    @asynccontextmanager
    async def opened(self) -> Any:
        """Connected while in this context."""
        await self._publishing.start(None)
        await self._consuming.start(QUEUE)
        try:
            yield
        finally:
            await self._publishing.close()
            await self._consuming.close()

    async def publish(self, batches: list[list[Envelope]]) -> None:
        """Publish batch after batch."""
        for batch in batches:
            await self._publishing.publish(batch)

    async def consume(self, total: int, batch: int) -> None:
        """Consume `total` messages, acknowledging once per batch."""
        seen = 0
        while seen < total:
            deliveries = await self._consuming.receive(batch)
            seen += len(deliveries)
            await self._consuming.acknowledge(deliveries)

    async def handle(self, total: int, batch: int) -> None:
        """Answer `total` messages, as a service does."""
        done = asyncio.Event()
        seen = 0

        async def answer(messages: Sequence[RefundPayment]) -> list[PaymentRefunded]:
            nonlocal seen
            seen += len(messages)
            if seen == total:
                done.set()
            return [PaymentRefunded(order_id=message.order_id, status="REFUNDED") for message in messages]

        consumer = Consumer(self._consuming, QUEUE, {RefundPayment: answer}, batch_limit=batch)
        running = asyncio.create_task(consumer.run())
        await done.wait()
        await consumer.stop()
        await running


def batches_of(size: int, messages: int) -> list[list[Envelope]]:
    """Envelopes of a usual size, in batches."""
    ids = iter(range(messages))
    return [
        [envelope(RefundPayment(order_id=f"order-{number:032d}", reason="benchmark")) for number in chunk]
        for chunk in iter(lambda: [number for _, number in zip(range(size), ids, strict=False)], [])
    ]


async def compare(url: str, messages: int, sizes: list[int]) -> Table:
    """Measure both clients at each batch size."""
    table = Table("client", "batch", "step", "client µs", "broker µs", "elapsed µs", title="per message")
    broker = broker_process(url)
    setup = RabbitBus(url, name="benchmark")
    await setup.start(None)
    await setup.close()
    for size in sizes:
        count = messages if size > 1 else messages // 10
        for client, step in ((PlainClient(url), "consume"), (BusClient(url), "consume"), (BusClient(url), "handle")):
            await empty_queues(url)
            batches = batches_of(size, count)
            async with client.opened():
                published = await measured(partial(client.publish, batches), count, broker)
                taken = await measured(partial(getattr(client, step), count, size), count, broker)
            if step == "consume":
                table.add_row(type(client).__name__, str(size), "publish", *figures(published))
            table.add_row(type(client).__name__, str(size), step, *figures(taken))
    return table


def figures(cost: Cost) -> list[str]:
    """The cost as cells of the table."""
    return [f"{figure:.0f}" for figure in (cost.client, cost.broker, cost.elapsed)]


async def empty_queues(url: str) -> None:
    """Empty the queues that are written to."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for name in (QUEUE, topology.ORDER_INBOX):
            queue = await channel.get_queue(name)
            await queue.purge()


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--batches", default="1,10,100,300")
    options = parser.parse_args()
    sizes = [int(size) for size in options.batches.split(",")]
    Console(width=100).print(uvloop.run(compare(options.url, options.messages, sizes)))


if __name__ == "__main__":
    main()

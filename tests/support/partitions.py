"""Buses that share the partitions of an inbox, as the processes of a service do, and what each of them got."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aio_pika
import pytest

from operations.stack.broker_topology import apply_topology
from shared import topology
from shared.bus import Delivery
from shared.bus.publisher import envelope
from shared.bus.rabbitmq import RabbitBus
from shared.contracts import RefundPayment
from shared.errors import StartError
from tests.support.eventually import eventually

OFTEN = 0.2
MOST = 4
"""The most partitions that a test has."""


async def declare_partitions(url: str, partitions: int = MOST) -> None:
    """Declare the topology with partitions; skip the test on a broker that was given and lacks the plugin."""
    try:
        await apply_topology(url, topology.TopologyOptions(partitions=partitions))
    except StartError as error:
        pytest.skip(str(error))


async def delete_partitions(url: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        for inbox in topology.PARTITIONED:
            for queue in topology.partitions_of(inbox, MOST):
                await channel.queue_delete(queue)
            await channel.exchange_delete(topology.partitions_exchange(inbox))


@contextlib.asynccontextmanager
async def undivided(url: str) -> AsyncIterator[str]:
    """Let a test begin with undivided inboxes, and delete the partitions that it leaves."""
    await apply_topology(url)
    yield url
    await delete_partitions(url)


async def purge_inboxes(url: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        for inbox in topology.PARTITIONED:
            for name in (inbox, *topology.partitions_of(inbox, MOST)):
                await (await channel.get_queue(name, ensure=False)).purge()


class Worker:
    """A process of a service, as far as the broker knows: it takes batches and acknowledges them."""

    def __init__(self, url: str, partitions: int = MOST, **options: Any) -> None:
        usual: dict[str, Any] = {"topology_mode": "trust", "check_every": OFTEN}
        divided = topology.TopologyOptions(partitions=partitions)
        self.bus = RabbitBus(url, topology_options=divided, **(usual | options))
        self.deliveries: list[Delivery] = []
        self.holds_next = False
        """Whether it keeps the next batch in its hands."""
        self.held: Sequence[Delivery] = ()
        self._working: asyncio.Task[None] | None = None

    @property
    def active(self) -> frozenset[str]:
        """The partitions that it is the one to work on."""
        return self.bus._link._subscriptions.active if self.bus._link else frozenset()

    @property
    def buffered(self) -> int:
        """The number of messages that have come and are not taken yet."""
        return len(self.bus._link.deliveries) if self.bus._link else 0

    @property
    def orders(self) -> list[str]:
        """The orders of its messages, in the order in which they came."""
        return [str(delivery.correlation_id) for delivery in self.deliveries]

    async def start(self, inbox: str) -> None:
        await self.bus.start(inbox)
        self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while batch := await self.bus.receive(50):
            if self.holds_next:
                self.held = batch
                return
            self.deliveries += batch
            await self.bus.acknowledge(batch)

    def stop_working(self) -> None:
        """Take no more batches: the test does."""
        assert self._working is not None
        self._working.cancel()

    async def kill(self) -> None:
        """End it as `kill -9` does: the kernel closes its connection, and nothing else happens."""
        assert self.bus._link is not None
        assert self.bus._supervisor is not None
        self.bus._supervisor.cancel()
        self.bus._link._transport._writer.transport.abort()  # type: ignore[union-attr]
        await self.close()

    async def close(self) -> None:
        if self._working is not None:
            self._working.cancel()
        await self.bus.close()


class Workers:
    """Workers of one inbox, and a publisher."""

    def __init__(self, url: str, inbox: str = topology.PAYMENT_INBOX) -> None:
        self._url, self._inbox = url, inbox
        self._all: list[Worker] = []
        self.publisher = RabbitBus(url, topology_mode="trust")

    @property
    def orders(self) -> set[str]:
        """The orders about which any of them has had a message."""
        return {order for worker in self._all for order in worker.orders}

    async def start(self, count: int = 1, **options: Any) -> list[Worker]:
        started = [Worker(self._url, **options) for _ in range(count)]
        self._all += started
        for worker in started:
            await worker.start(self._inbox)
        return started

    async def send(self, orders: Sequence[str]) -> None:
        """Send a message about each order, as a service does."""
        await self.publisher.publish([envelope(RefundPayment(order_id=order)) for order in orders])

    async def received(self, count: int) -> None:
        await eventually(
            lambda: sum(len(worker.deliveries) for worker in self._all) >= count, 60, f"{count} messages to arrive"
        )

    async def share(self, *workers: Worker, partitions: int = MOST) -> None:
        """Send messages to all partitions until these workers share them evenly."""

        async def is_even() -> bool:
            await self.send([f"warm-{number}" for number in range(40)])
            shares = [len(worker.active) for worker in workers]
            return sum(shares) == partitions and max(shares) - min(shares) <= 1

        await eventually(is_even, 60, "the workers to have equal shares")
        await self.quiet()

    async def quiet(self) -> None:
        """Wait until nothing waits any more, and forget what came."""

        async def is_empty() -> bool:
            async with await aio_pika.connect(self._url) as connection, connection.channel() as channel:
                names = (self._inbox, *topology.partitions_of(self._inbox, MOST))
                counts = [(await channel.get_queue(name)).declaration_result.message_count for name in names]
            return not any(counts) and not any(worker.buffered for worker in self._all)

        await eventually(is_empty, 60, "the queues to be empty")
        for worker in self._all:
            worker.deliveries.clear()

    async def close(self) -> None:
        for worker in self._all:
            await worker.close()
        await self.publisher.close()


@contextlib.asynccontextmanager
async def open_workers(url: str, inbox: str = topology.PAYMENT_INBOX) -> AsyncIterator[Workers]:
    workers = Workers(url, inbox)
    await workers.publisher.start(None)
    try:
        yield workers
    finally:
        await workers.close()


def workers_of_orders(workers: Sequence[Worker]) -> dict[str, set[int]]:
    """Return for each order the workers that got messages about it."""
    found = defaultdict(set)
    for number, worker in enumerate(workers):
        for order in worker.orders:
            found[order].add(number)
    return found

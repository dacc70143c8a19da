"""Both buses behind one harness, so that one suite runs over each: reading queues and injecting faults."""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aio_pika

from shared import topology
from shared.bus import Bus, Envelope
from shared.bus.amqp.link import TopologyMode
from shared.bus.memory import MemoryBroker, MemoryBus
from shared.bus.rabbitmq import RabbitBus
from tests.support.eventually import NotWithinError

SHORT_LADDER = (
    topology.RetryDelay("50ms", 50),
    topology.RetryDelay("100ms", 100),
    topology.RetryDelay("150ms", 150),
)
QUEUES = tuple(queue.name for queue in topology.queues(SHORT_LADDER))


@dataclass(frozen=True)
class Seen:
    """A message as it was found in a queue."""

    body: bytes
    routing_key: str
    type: str | None
    correlation_id: str | None
    message_id: str | None
    headers: dict[str, Any]


class Harness(ABC):
    """One broker for one test, and everything that a test does to it."""

    def __init__(self) -> None:
        self._buses: list[Bus] = []

    async def bus(self, queue: str | None = None, **options: Any) -> Bus:
        """A started bus, closed when the test ends."""
        bus = self._new_bus(**options)
        self._buses.append(bus)
        await bus.start(queue)
        return bus

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close()

    async def take_from(self, queue: str, expected: int, within: float = 60.0) -> list[Seen]:
        """Take the expected number of messages out of `queue`; fail if it holds more."""
        found: list[Seen] = []
        deadline = time.monotonic() + within
        while len(found) < expected:
            if time.monotonic() > deadline:
                raise NotWithinError(f"{len(found)} of {expected} messages in {queue} after {within} s")
            found += await self._take_now(queue)
            await self.pass_time(0.01)
        found += await self._take_now(queue)
        assert len(found) == expected
        return found

    @abstractmethod
    def _new_bus(self, **options: Any) -> Bus: ...

    @abstractmethod
    async def _take_now(self, queue: str) -> list[Seen]: ...

    @abstractmethod
    def arrived(self, bus: Bus) -> int:
        """Return the number of messages that `receive` of this bus would get now."""

    @abstractmethod
    def now(self) -> float:
        """The broker's time, in seconds."""

    @abstractmethod
    async def pass_time(self, seconds: float) -> None:
        """Let the broker's time pass."""

    @abstractmethod
    async def drop_connections(self) -> None:
        """Break the connection of every bus without closing it properly."""

    @abstractmethod
    async def delete_queue(self, queue: str) -> None: ...

    @abstractmethod
    async def send_raw(self, envelope: Envelope) -> None:
        """Publish as some other program would."""


class MemoryHarness(Harness):
    """MemoryBroker, whose clock runs while a test waits."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = MemoryBroker(ladder=SHORT_LADDER)

    def _new_bus(self, **options: Any) -> Bus:
        return MemoryBus(self.broker, **{name: options[name] for name in options if name == "prefetch"})

    async def _take_now(self, queue: str) -> list[Seen]:
        taken = self.broker.take(queue, 1_000_000)
        return [
            Seen(m.body, m.routing_key, m.type, m.correlation_id, m.message_id, dict(m.headers))
            for m in (stored.envelope for stored in taken)
        ]

    def arrived(self, bus: Bus) -> int:
        assert isinstance(bus, MemoryBus)
        return len(self.broker.contents(bus._queue or ""))

    def now(self) -> float:
        return self.broker.now

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.broker.advance(seconds)

    async def drop_connections(self) -> None:
        self.broker.drop_connections()

    async def delete_queue(self, queue: str) -> None:
        self.broker.delete_queue(queue)

    async def send_raw(self, envelope: Envelope) -> None:
        self.broker.publish(envelope)


class RabbitHarness(Harness):
    """RabbitMQ, inspected through a separate connection of the test."""

    def __init__(self, url: str, channel: aio_pika.abc.AbstractChannel, mode: TopologyMode) -> None:
        super().__init__()
        self.url = url
        self._channel = channel
        self._mode = mode

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, mode: TopologyMode = "trust") -> AsyncIterator["RabbitHarness"]:
        """Connect, and start from empty queues. The first bus declares them; `mode` is that of all others."""
        async with await aio_pika.connect(url) as connection, connection.channel() as channel:
            harness = cls(url, channel, mode)
            await harness.bus(topology_mode="declare")
            await harness._empty()
            try:
                yield harness
            finally:
                await harness.close()
                await harness._empty()

    def _new_bus(self, **options: Any) -> Bus:
        return RabbitBus(self.url, **({"ladder": SHORT_LADDER, "topology_mode": self._mode} | options))

    async def _empty(self) -> None:
        for name in QUEUES:
            queue = await self._channel.get_queue(name, ensure=False)
            await queue.purge()

    async def _take_now(self, queue: str) -> list[Seen]:
        found = []
        source = await self._channel.get_queue(queue, ensure=False)
        while (m := await source.get(no_ack=True, fail=False)) is not None:
            found.append(Seen(m.body, m.routing_key or "", m.type, m.correlation_id, m.message_id, dict(m.headers)))
        return found

    def arrived(self, bus: Bus) -> int:
        assert isinstance(bus, RabbitBus)
        return len(bus._link.deliveries) if bus._link else 0

    def now(self) -> float:
        return time.monotonic()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def drop_connections(self) -> None:
        for bus in self._buses:
            link = getattr(bus, "_link", None)
            if link is not None:
                link._transport._writer.transport.abort()

    async def delete_queue(self, queue: str) -> None:
        await self._channel.queue_delete(queue)

    async def send_raw(self, envelope: Envelope) -> None:
        exchange = await self._channel.get_exchange(envelope.exchange, ensure=False)
        if envelope.exchange == "":
            exchange = self._channel.default_exchange
        message = aio_pika.Message(
            envelope.body,
            type=envelope.type or None,
            correlation_id=envelope.correlation_id or None,
            message_id=envelope.message_id or None,
            headers=dict(envelope.headers),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await exchange.publish(message, envelope.routing_key, mandatory=False)


@contextlib.asynccontextmanager
async def open_harness(kind: str, amqp_url: str, mode: TopologyMode = "trust") -> AsyncIterator[Harness]:
    """The harness over `kind`: "memory" or "rabbitmq"."""
    if kind == "memory":
        memory = MemoryHarness()
        yield memory
        await memory.close()
    else:
        async with RabbitHarness.open(amqp_url, mode) as rabbit:
            yield rabbit


def raw(body: bytes, queue: str, **properties: Any) -> Envelope:
    """A publication straight into `queue`, with nothing but what is given."""
    given = {"type": "", "correlation_id": "", "message_id": ""} | properties
    return Envelope(body=body, exchange="", routing_key=queue, **given)


async def take_batch(bus: Bus, count: int, within: float = 60.0) -> list[Any]:
    """Receive until there are `count` deliveries."""
    found: list[Any] = []
    async with asyncio.timeout(within):
        while len(found) < count:
            found += await bus.receive(count - len(found))
    return found


def bodies(messages: Sequence[Any]) -> list[bytes]:
    return [message.body for message in messages]

"""The bus in memory, with RabbitMQ's guarantees, on a clock that tests advance and with faults from a seed.

`MemoryBroker` has the queues, bindings, retry delays, delivery counts and dead letters that shared.topology declares;
any number of `MemoryBus`es connect to it. The same seed and the same calls produce the same faults.
"""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from shared import topology
from shared.bus import Delivery, Envelope
from shared.bus.amqp.confirms import UnroutableError
from shared.errors import BusUnavailableError


@dataclass(frozen=True, slots=True)
class Faults:
    """The probability of each fault; `longest_delay` is in seconds of the broker's clock."""

    duplicate: float = 0.0
    """A publication arrives twice."""
    reorder: float = 0.0
    """A publication overtakes others in its queue."""
    delay: float = 0.0
    """A publication arrives late, by up to `longest_delay`."""
    longest_delay: float = 5.0
    disconnect: float = 0.0
    """A call finds its connection lost: before, during or after its work."""


@dataclass(slots=True)
class _Stored:
    """A message in a queue, and how often it has returned."""

    envelope: Envelope
    returns: int = 0


@dataclass(frozen=True, slots=True)
class _Receipt:
    """The acknowledgement of a delivery, valid on its connection only."""

    connection: int
    tag: int


@dataclass(order=True, slots=True)
class _Due:
    """An action at a time of the broker's clock; simultaneous actions happen in the order of planning."""

    at: float
    number: int
    act: Callable[[], None] = field(compare=False)


class MemoryBroker:
    """The queues and bindings of all connected buses; `now` is its clock, in seconds."""

    def __init__(
        self,
        seed: int = 0,
        *,
        faults: Faults = Faults(),
        ladder: Sequence[topology.RetryDelay] = topology.RETRY_LADDER,
        delivery_limit: int = topology.DELIVERY_LIMIT,
    ) -> None:
        self.now = 0.0
        self.faults = faults
        self.running = True
        self._random = random.Random(seed)  # noqa: S311 - faults, not secrets
        self._delivery_limit = delivery_limit
        self._ladder = tuple(ladder)
        self._delays = {
            delay.queue_of(inbox): delay.milliseconds / 1000 for inbox in topology.INBOXES for delay in ladder
        }
        self._queues: dict[str, deque[_Stored]] = {}
        self._bindings: set[tuple[str, str, str]] = set()
        self._planned: list[_Due] = []
        self._numbers = count()
        self._buses: list[MemoryBus] = []
        self.declare()

    def declare(self) -> None:
        """Declare the missing parts of the topology."""
        for queue in topology.queues(self._ladder):
            self.declare_queue(queue)

    def declare_queue(self, queue: topology.Queue) -> None:
        """Declare one queue with its bindings; the routing key `#` matches everything."""
        self._queues.setdefault(queue.name, deque())
        self._bindings |= {(exchange, routing_key, queue.name) for exchange, routing_key in queue.bindings}

    def delete_queue(self, name: str) -> None:
        """Delete a queue with its bindings and messages."""
        del self._queues[name]
        self._bindings = {binding for binding in self._bindings if binding[2] != name}

    def contents(self, queue: str) -> list[Envelope]:
        """Return the messages in `queue`, without the unacknowledged ones."""
        return [stored.envelope for stored in self._queues[queue]]

    def depth(self, inboxes: Iterable[str] = topology.INBOXES) -> int:
        """Count the messages in inboxes, on their way to one, or unacknowledged: 0 if nothing more will happen."""
        waiting = sum(len(self._queues.get(name, ())) for name in inboxes)
        return waiting + len(self._planned) + sum(len(bus.unacknowledged) for bus in self._buses)

    def advance(self, seconds: float) -> None:
        """Advance the clock, and run the actions that are due by then."""
        until = self.now + seconds
        while self._planned and self._planned[0].at <= until:
            due = heapq.heappop(self._planned)
            self.now = due.at
            due.act()
        self.now = until

    def advance_to_next(self) -> bool:
        """Advance the clock to the next action; return False if there is none."""
        if not self._planned:
            return False
        self.advance(max(0.0, self._planned[0].at - self.now))
        return True

    def lose_data(self) -> None:
        """Lose all messages and connections, like a broker that restarts with empty disks."""
        for queue in self._queues.values():
            queue.clear()
        self._planned.clear()
        for bus in self._buses:
            bus.unacknowledged.clear()
        self.drop_connections()

    def stop(self) -> None:
        """Stop the broker: all connections are lost, and none can be opened until `start`."""
        self.running = False
        self.drop_connections()

    def start(self) -> None:
        """Start the broker again, with the contents of its queues."""
        self.running = True
        self._wake()

    def drop_connections(self) -> None:
        """Lose all connections; each bus gets a new one at once unless the broker is stopped."""
        for bus in self._buses:
            bus.drop()

    def connect(self, bus: "MemoryBus") -> None:
        """Register a bus as connected."""
        if bus not in self._buses:
            self._buses.append(bus)

    def happens(self, probability: float) -> bool:
        """Return whether a fault of this probability happens now."""
        return probability > 0 and self._random.random() < probability

    def some_of(self, envelopes: Sequence[Envelope]) -> Sequence[Envelope]:
        """Return the first few envelopes, those that a lost connection has still carried."""
        return envelopes[: self._random.randint(0, len(envelopes))]

    def publish(self, envelope: Envelope) -> None:
        """Route a publication, with faults. Raises UnroutableError if it is mandatory and no queue accepts it."""
        queues = self._route(envelope)
        if not queues and envelope.exchange in self._delays:  # its alternate exchange
            queues = self._route(replace(envelope, exchange=topology.DEAD_LETTERS))
        if not queues and envelope.mandatory:
            self.declare()
            raise UnroutableError(f"no queue takes {envelope.routing_key!r} from exchange {envelope.exchange!r}")
        for queue in queues:
            for _ in range(2 if self.happens(self.faults.duplicate) else 1):
                self._arrive(queue, envelope)

    def take(self, queue: str, limit: int) -> list[_Stored]:
        """Take up to `limit` messages from the head of `queue`."""
        waiting = self._queues.setdefault(queue, deque())
        return [waiting.popleft() for _ in range(min(limit, len(waiting)))]

    def put_back(self, queue: str, returned: Sequence[_Stored]) -> None:
        """Return messages to the head of `queue` in their order; those over the delivery limit become dead letters."""
        kept = []
        for stored in returned:
            stored.returns += 1
            if stored.returns > self._delivery_limit:
                dead = _dead(stored.envelope, queue, "delivery_limit")
                self.publish(replace(dead, exchange=topology.DEAD_LETTERS))
            else:
                kept.append(stored)
        self._queues.setdefault(queue, deque()).extendleft(reversed(kept))
        self._wake(queue)

    def _route(self, envelope: Envelope) -> list[str]:
        if envelope.exchange == "":
            return [envelope.routing_key] if envelope.routing_key in self._queues else []
        fanout = envelope.exchange == topology.DEAD_LETTERS or envelope.exchange in self._delays
        return sorted(
            queue
            for exchange, routing_key, queue in self._bindings
            if exchange == envelope.exchange and (fanout or routing_key in (envelope.routing_key, "#"))
        )

    def _arrive(self, queue: str, envelope: Envelope) -> None:
        if queue in self._delays:
            self._plan(self._delays[queue], lambda: self._return(envelope, queue))
        elif self.happens(self.faults.delay):
            delay = self._random.uniform(0, self.faults.longest_delay)
            self._plan(delay, lambda: self._enqueue(queue, envelope))
        else:
            self._enqueue(queue, envelope)

    def _return(self, envelope: Envelope, retry_queue: str) -> None:
        inbox = topology.inbox_of_retry(retry_queue) or envelope.routing_key
        returning = replace(envelope, exchange=topology.INBOX_EXCHANGE, routing_key=inbox)
        if inboxes := self._route(returning):
            for inbox in inboxes:
                self._enqueue(inbox, returning)
        else:
            self._enqueue(topology.DEAD_LETTERS, _dead(returning, retry_queue, "expired"))

    def _plan(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._planned, _Due(self.now + seconds, next(self._numbers), act))

    def _enqueue(self, queue: str, envelope: Envelope) -> None:
        waiting = self._queues.setdefault(queue, deque())
        position = self._random.randint(0, len(waiting)) if self.happens(self.faults.reorder) else len(waiting)
        waiting.insert(position, _Stored(envelope))
        self._wake(queue)

    def _wake(self, queue: str | None = None) -> None:
        """Let the buses look for messages: all of them, or those that consume a queue."""
        for bus in self._buses:
            if queue is None or bus.consumes(queue):
                bus.wake()


class MemoryBus:
    """A `Bus` over a MemoryBroker, as one connection to it."""

    def __init__(self, broker: MemoryBroker, *, prefetch: int = 300) -> None:
        self.unacknowledged: dict[int, _Stored] = {}
        self._broker = broker
        self._prefetch = prefetch
        self._intake: int | None = None
        self._queue: str | None = None
        self._connection = 0
        self._tags = count(1)
        self._news = asyncio.Event()
        self._receiving = True
        self._open = False

    @property
    def user(self) -> str:
        return "guest"

    @property
    def can_publish(self) -> bool:
        return self.unhealthy_reason is None

    @property
    def unhealthy_reason(self) -> str | None:
        if not self._open:
            return "memory broker: not connected"
        return None if self._broker.running else "memory broker: stopped"

    async def start(self, queue: str | None) -> None:
        self._queue = queue
        self._open = True
        self._broker.connect(self)
        while not self._broker.running:
            await self._next_news()
        self._broker.declare()

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        await asyncio.sleep(0)
        if self.unhealthy_reason is not None:
            raise BusUnavailableError(self.unhealthy_reason)
        if self._broker.happens(self._broker.faults.disconnect):
            self._publish_all(self._broker.some_of(envelopes))
            self.drop()
            raise BusUnavailableError("memory broker: the connection was lost before all was confirmed")
        self._publish_all(envelopes)

    def _publish_all(self, envelopes: Sequence[Envelope]) -> None:
        unroutable: UnroutableError | None = None
        for envelope in envelopes:
            try:
                self._broker.publish(envelope)
            except UnroutableError as error:
                unroutable = unroutable or error
        if unroutable is not None:
            raise unroutable

    async def receive(self, limit: int) -> Sequence[Delivery]:
        await asyncio.sleep(0)
        while self._receiving:
            if self._open and self._broker.running:
                most = self._prefetch if self._intake is None else self._intake
                room = max(0, min(limit, most - len(self.unacknowledged)))
                taken = self._broker.take(self._queue or "", room)
                if taken:
                    return [self._delivery(stored) for stored in taken]
            await self._next_news()
        return ()

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        await asyncio.sleep(0)
        if self._broker.happens(self._broker.faults.disconnect):
            self.drop()
        if self.still_owns(deliveries):
            self._release(deliveries)

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        await asyncio.sleep(0)
        if self.still_owns(deliveries):
            self._broker.put_back(self._queue or "", self._release(deliveries))

    def still_owns(self, deliveries: Sequence[Delivery]) -> bool:
        return bool(deliveries) and deliveries[-1].receipt.connection == self._connection and self._open

    async def limit_intake(self, most: int | None) -> None:
        await asyncio.sleep(0)
        self._intake = most
        self.wake()

    async def stop_receiving(self) -> None:
        self._receiving = False
        self.wake()

    async def close(self) -> None:
        await self.stop_receiving()
        self._open = False
        self.drop()

    def drop(self) -> None:
        """Lose the connection and open a new one; unacknowledged messages are redelivered."""
        self._connection += 1
        returned = list(self.unacknowledged.values())
        self.unacknowledged.clear()
        if returned:
            self._broker.put_back(self._queue or "", returned)

    def consumes(self, queue: str) -> bool:
        """Return whether its messages come from this queue."""
        return self._queue == queue

    def wake(self) -> None:
        """Check the broker again, after a change."""
        self._news.set()

    async def _next_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _release(self, deliveries: Sequence[Delivery]) -> list[_Stored]:
        return [self.unacknowledged.pop(delivery.receipt.tag) for delivery in deliveries]

    def _delivery(self, stored: _Stored) -> Delivery:
        tag = next(self._tags)
        self.unacknowledged[tag] = stored
        sent = stored.envelope
        headers = dict(sent.headers) | ({"x-delivery-count": stored.returns} if stored.returns else {})
        return Delivery(
            body=sent.body,
            queue=self._queue or "",
            exchange=sent.exchange,
            routing_key=sent.routing_key,
            type=sent.type or None,
            correlation_id=sent.correlation_id or None,
            message_id=sent.message_id or None,
            redelivered=stored.returns > 0,
            headers=headers,
            receipt=_Receipt(self._connection, tag),
        )


def _dead(envelope: Envelope, queue: str, reason: str) -> Envelope:
    death = {"queue": queue, "reason": reason, "exchange": envelope.exchange, "routing-keys": [envelope.routing_key]}
    headers = dict(envelope.headers) | {"x-first-death-queue": queue, "x-first-death-reason": reason}
    headers["x-death"] = [death, *headers.get("x-death", ())]
    return replace(envelope, headers=headers)

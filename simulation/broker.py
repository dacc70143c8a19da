"""The broker of a world: the one in memory on the virtual clock, with the faults of the plan."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import replace

from shared import topology
from shared.bus import Delivery, Envelope
from shared.bus.memory import MemoryBroker, MemoryBus
from shared.errors import BusUnavailableError
from simulation import plan
from simulation.faults import Injector, Reach, pass_through
from simulation.loop import Life
from simulation.operators import spoiled
from simulation.trace import Trace

_LATENCY = 0.003
"""Of a publication with its confirm, in seconds."""


class SimulatedBroker(MemoryBroker):
    """A broker whose clock is that of the loop."""

    def __init__(self, injector: Injector, trace: Trace) -> None:
        super().__init__()
        self.injector = injector
        self.trace = trace
        self.published: set[tuple[str, str]] = set()
        """The types of messages that have reached a queue, each with its order."""
        self.originals: dict[str, bytes] = {}
        """The bodies of the messages that were spoiled, by the ids of the messages."""

    def forget(self, bus: MemoryBus) -> None:
        """Let go of a connection whose process has ended; what it has not acknowledged is redelivered."""
        if bus in self._buses:
            self._buses.remove(bus)
        bus.drop()

    def dead_letters(self) -> list[Envelope]:
        """Take all dead letters off their queue."""
        return [stored.envelope for stored in self.take(topology.DEAD_LETTERS, 10_000)]

    def _plan(self, seconds: float, act: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.now = max(self.now, loop.time())
        super()._plan(seconds, act)
        loop.call_later(seconds, self._catch_up, context=Context())  # of the world: no process must end it

    def _catch_up(self) -> None:
        self.advance(max(0.0, asyncio.get_running_loop().time() - self.now))

    def _arrive(self, queue: str, envelope: Envelope) -> None:
        service = queue.partition(".")[0]
        self.published.add((envelope.type, envelope.correlation_id))
        if queue not in topology.INBOXES:
            super()._arrive(queue, envelope)
            return
        if envelope.message_id and self.injector.chance(plan.SPOIL, service):
            self.originals[envelope.message_id] = envelope.body
            envelope = replace(envelope, body=spoiled(envelope))
        if fault := self.injector.chance(plan.DUPLICATE, service):
            self._plan(fault.seconds, lambda: self._enqueue(queue, envelope))
        if fault := self.injector.chance(plan.DELAY, service):
            self._plan(fault.seconds, lambda: self._enqueue(queue, envelope))
        elif self.injector.chance(plan.OVERTAKE, service):
            self._enqueue(queue, envelope)
            self._queues[queue].rotate(1)
        else:
            super()._arrive(queue, envelope)


class SimulatedBus(MemoryBus):
    """The connection of one life of a process."""

    def __init__(self, broker: SimulatedBroker, life: Life, reach: Reach) -> None:
        super().__init__(broker)
        self._reach = reach
        self._faults = broker.injector
        self._trace = broker.trace
        self._simulated = broker
        self._life = life

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Publish after a moment; with a fault, only some of them arrive, and the connection is lost."""
        self._trace.note("publish " + ", ".join(f"{one.type}({one.correlation_id[:6]})" for one in envelopes))
        await asyncio.sleep(_LATENCY)
        await pass_through(self._life, self._reach(self._life, plan.BEFORE_PUBLICATION))
        if self._faults.chance(plan.HALF_PUBLISHED, self._life.process):
            arrived = envelopes[: (len(envelopes) + 1) // 2]
            await super().publish(arrived)
            self.drop()
            raise BusUnavailableError("the connection was lost before all was confirmed")
        await super().publish(envelopes)
        await pass_through(self._life, self._reach(self._life, plan.AFTER_PUBLICATION))

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Return what there is, after a moment."""
        deliveries = await super().receive(limit)
        if deliveries:
            named = ", ".join(f"{one.type}({(one.correlation_id or '')[:6]})" for one in deliveries)
            self._trace.note(f"receive {named}")
            await asyncio.sleep(_LATENCY)
        return deliveries

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge after a moment; with a fault, the connection is lost on the way."""
        await asyncio.sleep(_LATENCY)
        if self._faults.chance(plan.CUT, self._life.process):
            self.drop()
        await super().acknowledge(deliveries)

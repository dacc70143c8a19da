"""The bus: what services say to each other, behind one small interface with two implementations.

`Bus` is the transport: `RabbitBus` (shared.bus.rabbitmq) for real, `MemoryBus` (shared.bus.memory) for the
deterministic simulation of faults; both pass tests/integration/test_bus_contract.py. What every consumer needs around
its handlers (batches, splitting, retries, dead letters, pausing, draining) is written once over it, in
shared.bus.consumer.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.contracts import Message

Handler = Callable[[Sequence[Any]], Awaitable[Sequence[Message]]]
"""Takes the messages of one batch that are its own, writes the outcome durably, returns what is to be sent.

It must be idempotent: a batch may come again, whole or in parts, after any write of it.
"""

Handlers = Mapping[type[Message], Handler]
"""Which handler takes which message; types with the same handler reach it together, in their order of arrival."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One publication: a body and where it goes."""

    body: bytes
    exchange: str
    routing_key: str
    type: str
    correlation_id: str
    message_id: str
    mandatory: bool = True
    headers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as it came from a queue; `receipt` is the transport's own, for `acknowledge`."""

    body: bytes
    queue: str
    exchange: str
    routing_key: str
    type: str | None
    correlation_id: str | None
    message_id: str | None
    redelivered: bool
    headers: Mapping[str, Any]
    receipt: Any


class Bus(Protocol):
    """A connection to the broker that mends itself: it connects again, declares the topology and consumes on."""

    async def start(self, queue: str | None) -> None:
        """Connect, declare the topology, and consume from `queue` (None: only publish).

        Waits until the broker is there. Raises StartError for what waiting does not mend.
        """

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Return once the broker has confirmed every envelope.

        Raises BusUnavailableError if it is not connected, has blocked publishing, does not confirm in time, or returns
        a mandatory one as unroutable; some of the envelopes may have been published then.
        """

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait for at least one delivery and return what is there now, at most `limit`, in order of arrival."""

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Tell the broker that these, a batch as `receive` returned it, are done.

        Deliveries of a connection that is gone are passed over: the broker delivers them again.
        """

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Hand these, a batch as `receive` returned it, back unhandled: the broker delivers them again, counting it."""

    def still_owns(self, deliveries: Sequence[Delivery]) -> bool:
        """Whether these can still be acknowledged: the connection that they came by is still the current one."""

    async def stop_receiving(self) -> None:
        """Take no more: `receive` returns an empty sequence from now on, also to who waits; acknowledging goes on."""

    async def close(self) -> None:
        """Close the connection; what was not acknowledged is delivered again."""

    @property
    def unhealthy_reason(self) -> str | None:
        """Return None while all is well, else what is wrong with the connection, broker or topology, in a few words."""

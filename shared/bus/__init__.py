"""The bus carries the messages between services, behind one small interface with two implementations.

`Bus` is the transport: `RabbitBus` (shared.bus.rabbitmq) in production, `MemoryBus` (shared.bus.memory) for the
deterministic simulation of faults. Both pass tests/integration/test_bus_contract.py. Everything that consumers need
around their handlers (batches, splitting, retries, dead letters, pausing, draining) is in shared.bus.consumer.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.contracts import Message

Handler = Callable[[Sequence[Any]], Awaitable[Sequence[Message]]]
"""Handles its messages of one batch: writes the outcome durably and returns the messages to send.

It must be idempotent: a batch may be redelivered, whole or in parts, after any of its writes.
"""

Handlers = Mapping[type[Message], Handler]
"""The handler of each message type. A handler of several types gets their messages together, in order of arrival."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A publication: a body and its destination."""

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
    """A message as it came from a queue; `receipt` belongs to the transport, for `acknowledge`."""

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
    user_id: str | None = None
    """The sender's user, which the broker has verified; None if the sender did not say."""


class Bus(Protocol):
    """A connection to the broker that repairs itself: it reconnects, verifies the topology and continues to consume."""

    async def start(self, queue: str | None) -> None:
        """Connect, declare or check the topology, and consume from `queue` (None: only publish).

        Waits until the broker is available and has the topology. Raises StartError where waiting does not help.
        """

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Return once the broker has confirmed every envelope.

        Raises BusUnavailableError if the broker is not connected, has blocked publishing, does not confirm in time, or
        returns a mandatory message as unroutable. Some of the envelopes may have been published anyway.
        """

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait for at least one delivery and return all available ones, at most `limit`, in order of arrival."""

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge a batch that `receive` returned.

        Deliveries of a lost connection are ignored: the broker redelivers them.
        """

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Return a batch of `receive` unhandled: the broker redelivers it, and counts that."""

    def still_owns(self, deliveries: Sequence[Delivery]) -> bool:
        """Return True if these can still be acknowledged: their connection is still the current one."""

    async def limit_intake(self, most: int | None) -> None:
        """Let the broker send at most this many unacknowledged messages, on all later connections as well.

        None is the usual number. With 0 nothing is consumed: `receive` waits, and what it has not returned yet goes
        back to the queue. A batch in hand can be finished.
        """

    async def stop_receiving(self) -> None:
        """Stop receiving: `receive` returns an empty sequence, also to waiting callers. Acknowledging still works."""

    async def close(self) -> None:
        """Close the connection; the broker redelivers what was not acknowledged."""

    @property
    def user(self) -> str:
        """The broker's user that it sends as."""

    @property
    def can_publish(self) -> bool:
        """Whether the broker takes messages now, as far as is known."""

    @property
    def unhealthy_reason(self) -> str | None:
        """The problem with the connection, broker or topology, in a few words; None if there is none."""

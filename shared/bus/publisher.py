"""Turns messages into publications: services send everything through `Publisher.send`."""

from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from shared import topology, tracing
from shared.bus import Bus, Envelope
from shared.bus.metrics import CONFIRM_SECONDS, PUBLISH_FAILURES, PUBLISHED, type_label
from shared.contracts import Message

NO_TRACES: Mapping[str, str | None] = MappingProxyType({})


def envelope(message: Message, headers: Mapping[str, Any] = MappingProxyType({})) -> Envelope:
    """Address a message according to its contract, with a new message id and the order id as correlation id.

    What a partitioned inbox is divided by goes with it, whether or not one is: the sender does not know.
    """
    if (key := message.partition_key) is not None:
        headers = {**headers, topology.PARTITION_KEY: key}
    return Envelope(
        body=message.to_json(),
        exchange=topology.EXCHANGE,
        routing_key=message.routing_key,
        type=message.routing_key,
        correlation_id=message.correlation_id,
        message_id=uuid4().hex,
        mandatory=message.mandatory,
        headers=headers,
    )


class Publisher:
    """Sends messages; a call returns once the broker has confirmed them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @property
    def can_publish(self) -> bool:
        """Whether the broker takes messages now, as far as is known.

        Work that other processes may do as well is left to them meanwhile: whoever claims it and cannot tell anybody
        about it holds it up.
        """
        return self._bus.can_publish

    async def send(self, messages: Sequence[Message], traceparents: Mapping[str, str | None] = NO_TRACES) -> None:
        """Publish all messages concurrently, each in the trace of its subject if `traceparents` has one.

        Raises BusUnavailableError unless all of them are confirmed. Sending all of them again is harmless, because
        receivers are idempotent by the order id.
        """
        await self.publish(
            [envelope(message, tracing.headers(traceparents.get(message.correlation_id))) for message in messages]
        )

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Publish addressed envelopes (retries, dead letters). Raises the same errors as `send`."""
        if not envelopes:
            return
        failures = PUBLISH_FAILURES.count_exceptions()
        with CONFIRM_SECONDS.time(), failures, tracing.publishing(envelopes) as outgoing:
            await self._bus.publish(outgoing)
        for type_, count in Tally(type_label(one.type) for one in envelopes).items():
            PUBLISHED.labels(type_).inc(count)

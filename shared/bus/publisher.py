"""From messages to publications: everything a service says goes out through `Publisher.send`."""

from collections import Counter as Tally
from collections.abc import Sequence
from uuid import uuid4

from prometheus_client import Counter, Histogram

from shared import topology
from shared.bus import Bus, Envelope
from shared.contracts import BY_ROUTING_KEY, Message

PUBLISHED = Counter("ordersaga_messages_published_total", "Messages that the broker has confirmed.", ["type"])
CONFIRM_SECONDS = Histogram(
    "ordersaga_publish_confirm_seconds",
    "From handing a batch of messages to the broker until it has confirmed the last of them.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def envelope(message: Message) -> Envelope:
    """Address `message` by its contract, with a new message id and the order id as correlation id."""
    return Envelope(
        body=message.to_json(),
        exchange=topology.EXCHANGE,
        routing_key=message.routing_key,
        type=message.routing_key,
        correlation_id=message.correlation_id,
        message_id=uuid4().hex,
        mandatory=message.mandatory,
    )


def type_label(type_: str) -> str:
    """A message type as the label of a metric: what a sender invents must not become a time series of its own."""
    return type_ if type_ in BY_ROUTING_KEY else "unknown"


class Publisher:
    """Sends messages and returns once the broker has them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def send(self, messages: Sequence[Message]) -> None:
        """Publish all, concurrently.

        Raises BusUnavailableError if not every one is known to be published; sending all again is then harmless,
        as every receiver is idempotent by the order id.
        """
        await self.publish([envelope(message) for message in messages])

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Publish what is already addressed (a retry, a dead letter); raises as `send` does."""
        if not envelopes:
            return
        with CONFIRM_SECONDS.time():
            await self._bus.publish(envelopes)
        for type_, count in Tally(type_label(one.type) for one in envelopes).items():
            PUBLISHED.labels(type_).inc(count)

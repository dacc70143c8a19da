"""What is counted of messages, by queue and type; a type that is in no contract is counted as `unknown`."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from shared.contracts import BY_ROUTING_KEY, Message
from shared.topology import RetryDelay

BATCH_SIZE = Histogram(
    "ordersaga_batch_messages",
    "Messages per batch that a consumer took.",
    ["queue"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
)
HANDLING_SECONDS = Histogram(
    "ordersaga_handling_seconds",
    "One call of a handler with all messages of a batch that are its own; type is mixed where they are of several.",
    ["queue", "type", "outcome"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
HANDLED_MESSAGES = Counter("ordersaga_messages_handled_total", "Messages that were handled.", ["queue", "type"])
RETRIED = Counter("ordersaga_messages_retried_total", "Messages sent up the retry ladder.", ["queue", "type"])
RETRIES_SENT = Counter("ordersaga_retries_sent_total", "Messages sent to a queue of the retry ladder.", ["level"])
RETRIES_RETURNED = Counter(
    "ordersaga_retries_returned_total", "Messages that came back from a queue of the retry ladder.", ["level"]
)
DEAD_LETTERED = Counter("ordersaga_messages_dead_lettered_total", "Messages dead-lettered.", ["queue", "type"])
PAUSES = Counter("ordersaga_consumer_pauses_total", "Times a consumer waited for a server that was away.", ["queue"])
CONSUMER_UP = Gauge(
    "ordersaga_consumer_up",
    "1 while the consumer is connected and finishes its batches; ordersaga_ready says whether MongoDB answers.",
    ["queue"],
)
PUBLISHED = Counter("ordersaga_messages_published_total", "Messages that the broker has confirmed.", ["type"])
CONFIRM_SECONDS = Histogram(
    "ordersaga_publish_confirm_seconds",
    "From handing a batch of messages to the broker until it has confirmed the last of them, or that has failed.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
PUBLISH_FAILURES = Counter(
    "ordersaga_publish_failures_total", "Batches of messages that the broker did not confirm as a whole."
)

_MIXED = "mixed"
_UNKNOWN = "unknown"


def type_label(type_: str) -> str:
    """A message type as the label of a metric: what a sender invents must not become a time series of its own."""
    return type_ if type_ in BY_ROUTING_KEY else _UNKNOWN


def prepare(queue: str, types: Iterable[type[Message]], ladder: Iterable[RetryDelay]) -> None:
    """Have a queue's series start at zero: Prometheus sees no increase in a series that begins with its first count."""
    PAUSES.labels(queue)
    for level in ladder:
        RETRIES_SENT.labels(level.name)
        RETRIES_RETURNED.labels(level.name)
    for type_ in (*(message.routing_key for message in types), _UNKNOWN):
        for counter in (HANDLED_MESSAGES, RETRIED, DEAD_LETTERED):
            counter.labels(queue, type_)


@contextmanager
def handling(queue: str, messages: Sequence[Message]) -> Iterator[None]:
    """Measure one call of a handler, whatever comes of it."""
    started = time.perf_counter()
    outcome = "failed"
    try:
        yield
        outcome = "handled"
    finally:
        types = {message.routing_key for message in messages}
        type_ = types.pop() if len(types) == 1 else _MIXED
        HANDLING_SECONDS.labels(queue, type_, outcome).observe(time.perf_counter() - started)

"""The metrics of messages, by queue and type; a type without a contract counts as `unknown`."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from shared.contracts import BY_ROUTING_KEY, Message
from shared.topology import RetryDelay, retry_queues

BATCH_SIZE = Histogram(
    "ordersaga_batch_messages",
    "Messages per batch of a consumer",
    ["queue"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
)
HANDLING_SECONDS = Histogram(
    "ordersaga_handling_seconds",
    "One call of a handler with all its messages of a batch; the type is mixed if they have several",
    ["queue", "type", "outcome"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
HANDLED_MESSAGES = Counter("ordersaga_messages_handled_total", "Messages handled", ["queue", "type"])
RETRIED = Counter("ordersaga_messages_retried_total", "Messages sent up the retry ladder", ["queue", "type"])
RETRIES_SENT = Counter("ordersaga_retries_sent_total", "Messages sent to a queue of the retry ladder", ["level"])
RETRIES_RETURNED = Counter(
    "ordersaga_retries_returned_total", "Messages returned from a queue of the retry ladder", ["level"]
)
DEAD_LETTERED = Counter("ordersaga_messages_dead_lettered_total", "Messages dead-lettered", ["queue", "type"])
PAUSES = Counter("ordersaga_consumer_pauses_total", "Times a consumer waited for a server that was away", ["queue"])
CONSUMER_PAUSED = Gauge("ordersaga_consumer_paused", "1 while an operator has paused the consumption", ["queue"])
BREAKER_OPEN = Gauge(
    "ordersaga_consumer_breaker_open", "1 while the consumer only tests single messages, as all failed", ["queue"]
)
BREAKER_OPENED = Counter("ordersaga_consumer_breaker_opened_total", "Times that the breaker opened", ["queue"])
BREAKER_TESTS = Counter(
    "ordersaga_consumer_breaker_tests_total", "Messages that tested an open breaker, by outcome", ["queue", "outcome"]
)
CONSUMER_UP = Gauge(
    "ordersaga_consumer_up",
    "1 while the consumer is connected and finishes its batches; for MongoDB see ordersaga_ready",
    ["queue"],
)
PUBLISHED = Counter("ordersaga_messages_published_total", "Messages confirmed by the broker", ["type"])
CONFIRM_SECONDS = Histogram(
    "ordersaga_publish_confirm_seconds",
    "Time from writing a batch of messages to the last confirm, or to the failure",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
PUBLISH_FAILURES = Counter(
    "ordersaga_publish_failures_total", "Batches of messages that the broker did not confirm completely"
)

SUCCEEDED, FAILED = "handled", "failed"
_MIXED = "mixed"
_UNKNOWN = "unknown"


def type_label(type_: str) -> str:
    """Return the label of a message type: types that a sender invents must not create time series."""
    return type_ if type_ in BY_ROUTING_KEY else _UNKNOWN


def prepare(queue: str, types: Iterable[type[Message]], ladder: Iterable[RetryDelay]) -> None:
    """Start a queue's series at zero: Prometheus sees no increase in a series that begins with its first count."""
    BREAKER_OPEN.labels(queue).set(0)
    _start_counters(queue, tuple(message.routing_key for message in types), tuple(ladder))


@cache
def _start_counters(queue: str, types: tuple[str, ...], ladder: tuple[RetryDelay, ...]) -> None:
    PAUSES.labels(queue)
    BREAKER_OPENED.labels(queue)
    for outcome in (SUCCEEDED, FAILED):
        BREAKER_TESTS.labels(queue, outcome)
    for level in retry_queues(queue, ladder):
        RETRIES_SENT.labels(level)
        RETRIES_RETURNED.labels(level)
    for type_ in (*types, _UNKNOWN):
        for counter in (HANDLED_MESSAGES, RETRIED, DEAD_LETTERED):
            counter.labels(queue, type_)


@contextmanager
def handling(queue: str, messages: Sequence[Message]) -> Iterator[None]:
    """Measure one call of a handler, whatever its outcome."""
    started = time.perf_counter()
    outcome = FAILED
    try:
        yield
        outcome = SUCCEEDED
    finally:
        types = {message.routing_key for message in messages}
        type_ = types.pop() if len(types) == 1 else _MIXED
        HANDLING_SECONDS.labels(queue, type_, outcome).observe(time.perf_counter() - started)

"""Turns a message that could not be handled into its next retry or its dead letter. Pure functions.

Both keep the body unchanged. Attempts are counted in our own header `x-attempts`; an invalid count is taken as zero, so
a hostile header causes a few more retries at most.
"""

import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from shared import topology
from shared.bus import Delivery, Envelope
from shared.bus.reading import type_name
from shared.errors import NewerOrderError, NewerReleaseError, PoisonError

ATTEMPTS = "x-attempts"
WAITS = "x-waits"
"""How often the message has waited for a newer process, which does not count as an attempt."""
FIRST_FAILED_AT = "x-first-failed-at"
ROUTING_KEY = "x-routing-key"
"""The message type, which only operations reads, to show it. Consumers never trust a header."""
HEADERS_LEFT_OUT = "x-headers-left-out"
QUEUE = "x-queue"
ERROR_TYPE = "x-error-type"
ERROR_MESSAGE = "x-error-message"
TRACEBACK = "x-traceback"
FAILED_AT = "x-failed-at"
RETRY_LEVEL = "x-retry-level"
"""On a retry: the queue in which it waits."""
REPLAY_OF = "x-replay-of"
"""On a replayed dead letter: the id of its record."""

# All headers and properties of a message must fit into one AMQP frame, by default 128 KiB.
_MAX_HEADER_BYTES = 64 * 1024
_MAX_OWN_TEXT = 4 * 1024
_MAX_TRACEBACK = 16 * 1024

NEWER_ORDER_WAITS = 30
"""The most waits of a message whose order only a newer process can decide about: with the usual ladder, an hour."""

COPIES = frozenset({"CC", "BCC"})
"""Routing keys for copies, which the broker would send: what is sent again goes to one place only."""

COUNTED_BY_BROKER = frozenset({"x-delivery-count", "x-acquired-count"})
"""Headers that differ between deliveries of one message."""

BROKERS_OWN = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
"""The broker sets these; on a republished message they would describe the history of another one."""


def failed_attempts(headers: Mapping[str, Any]) -> int:
    """Return how often the message has failed before, according to its header."""
    return _count(headers, ATTEMPTS)


def waits(headers: Mapping[str, Any]) -> int:
    """Return how often the message has waited for a newer process, according to its header."""
    return _count(headers, WAITS)


def _count(headers: Mapping[str, Any], name: str) -> int:
    value = headers.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def returned_from(delivery: Delivery, ladder: Sequence[topology.RetryDelay]) -> str | None:
    """Return the retry queue that a retried message comes from, according to its header, or None."""
    if delivery.exchange != topology.INBOX_EXCHANGE:
        return None
    named = delivery.headers.get(RETRY_LEVEL)
    return next((name for name in topology.retry_queues(delivery.queue, tuple(ladder)) if name == named), None)


def next_level(
    delivery: Delivery, error: Exception, ladder: Sequence[topology.RetryDelay]
) -> topology.RetryDelay | None:
    """Return the level on which a message waits for its next attempt; None if it becomes a dead letter.

    What a newer release may know waits on the slowest level each time, for an upgrade of this process. A message whose
    order began under a newer saga climbs the ladder, as a newer process may be the next to take it, and stays on the
    slowest level, until it has waited NEWER_ORDER_WAITS times.
    """
    attempts, waited = failed_attempts(delivery.headers), waits(delivery.headers)
    match error:
        case PoisonError():
            return None
        case NewerOrderError():
            return ladder[min(waited, len(ladder) - 1)] if waited < NEWER_ORDER_WAITS else None
        case _ if attempts >= len(ladder):
            return None
        case NewerReleaseError():
            return ladder[-1]
        case _:
            return ladder[attempts]


def after_failure(
    delivery: Delivery, error: Exception, now: datetime, ladder: Sequence[topology.RetryDelay] = topology.RETRY_LADDER
) -> Envelope:
    """Return the next retry of a message that failed, or its dead letter if there is none, see `next_level`."""
    delay = next_level(delivery, error, ladder)
    if delay is None:
        return dead_letter(delivery, error, now)
    level = delay.queue_of(delivery.queue)
    headers = {name: value for name, value in delivery.headers.items() if not name.startswith(BROKERS_OWN)}
    counted = WAITS if isinstance(error, NewerOrderError) else ATTEMPTS
    own = {
        counted: _count(delivery.headers, counted) + 1,
        FIRST_FAILED_AT: _first_failed_at(delivery, now),
        ROUTING_KEY: fitting_text(type_name(delivery)),
        RETRY_LEVEL: level,
    }
    return _republished(delivery, level, fitting_text(type_name(delivery)), headers, own)


def dead_letter(delivery: Delivery, error: Exception, now: datetime) -> Envelope:
    """Return the dead letter of a message, with everything that an operator needs to understand, edit and replay it."""
    own = {
        QUEUE: delivery.queue,
        ERROR_TYPE: type(error).__name__,
        ERROR_MESSAGE: _shortened(str(error), _MAX_OWN_TEXT),
        TRACEBACK: traceback_text(error),
        ATTEMPTS: failed_attempts(delivery.headers) + 1,
        FIRST_FAILED_AT: _first_failed_at(delivery, now),
        FAILED_AT: _rfc3339(now),
        ROUTING_KEY: fitting_text(type_name(delivery)),
    }
    return _republished(delivery, topology.DEAD_LETTERS, fitting_text(type_name(delivery)), delivery.headers, own)


def _republished(
    delivery: Delivery, exchange: str, routing_key: str, headers: Mapping[str, Any], own: Mapping[str, Any]
) -> Envelope:
    return Envelope(
        body=delivery.body,
        exchange=exchange,
        routing_key=routing_key,
        type=fitting_text(type_name(delivery)),
        correlation_id=fitting_text(delivery.correlation_id or ""),
        message_id=fitting_text(delivery.message_id or uuid4().hex),
        mandatory=True,
        headers=fitting({name: value for name, value in headers.items() if name not in own}) | dict(own),
    )


def fitting(headers: Mapping[str, Any], budget: int = _MAX_HEADER_BYTES) -> dict[str, Any]:
    """Return the headers that fit into `budget` bytes, smallest first, and a header with the number left out."""
    kept: dict[str, Any] = {}
    for name, value in sorted(headers.items(), key=lambda item: _encoded_size(*item)):
        budget -= _encoded_size(name, value)
        if budget < 0:
            return kept | {HEADERS_LEFT_OUT: len(headers) - len(kept)}
        kept[name] = value
    return kept


def _encoded_size(name: str, value: Any) -> int:
    """Return the approximate size of the header in a frame, never too small."""
    return 4 * len(name) + _value_size(value) + 2


def _value_size(value: Any) -> int:
    match value:
        case str():
            return len(value.encode("utf-8", "backslashreplace")) + 5
        case bytes() | bytearray():
            return len(value) + 5
        case dict():
            return 5 + sum(_encoded_size(name, item) for name, item in value.items())
        case list():
            return 5 + sum(_value_size(item) for item in value)
    return 16


def fitting_text(text: str) -> str:
    """Cut a text to a short string of the protocol; only escaped text that was not UTF-8 can be too long."""
    return text.encode("utf-8", "backslashreplace")[:255].decode("utf-8", "ignore")


def _first_failed_at(delivery: Delivery, now: datetime) -> str:
    first = delivery.headers.get(FIRST_FAILED_AT)
    return first if isinstance(first, str) and len(first) <= 40 else _rfc3339(now)


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def traceback_text(error: BaseException) -> str:
    """Return the traceback with a bounded length: an exception may contain whole documents."""
    return _shortened("".join(traceback.format_exception(error, limit=-20)), _MAX_TRACEBACK)


def _shortened(text: str, limit: int) -> str:
    """Return the beginning and the end of a text of more than `limit` bytes, any other text unchanged."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= limit:
        return text
    half = limit // 2
    return f"{encoded[:half].decode('utf-8', 'ignore')} (…) {encoded[-half:].decode('utf-8', 'ignore')}"

"""What becomes of a message that could not be handled: its next level of the retry ladder, or its dead letter. Pure.

Both keep the body as it was. The attempts are counted in a header of our own, `x-attempts`; a header that does not hold
a sensible count is taken as none, so a hostile one costs at most some retries.
"""

import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from shared import topology
from shared.bus import Delivery, Envelope
from shared.bus.reading import type_name
from shared.errors import UnknownTypeError

ATTEMPTS = "x-attempts"
FIRST_FAILED_AT = "x-first-failed-at"
ROUTING_KEY = "x-routing-key"
"""The message type; read by operations alone, for people. Consumers never trust a header."""
HEADERS_LEFT_OUT = "x-headers-left-out"
QUEUE = "x-queue"
ERROR_TYPE = "x-error-type"
ERROR_MESSAGE = "x-error-message"
TRACEBACK = "x-traceback"
FAILED_AT = "x-failed-at"
RETRY_LEVEL = "x-retry-level"
"""On a retry: the level of the ladder that it was sent to."""
REPLAY_OF = "x-replay-of"
"""On a dead letter that an operator has sent again: the id of its record."""

# One frame of AMQP has 128 KiB by default and holds all headers and properties of a message.
_MAX_HEADER_BYTES = 64 * 1024
_MAX_OWN_TEXT = 4 * 1024
_MAX_TRACEBACK = 16 * 1024

BROKERS_OWN = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
"""The broker writes these; republished they would be the past of another message."""


def failed_attempts(headers: Mapping[str, Any]) -> int:
    """How often the message has failed before, by its own header."""
    value = headers.get(ATTEMPTS)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def returned_from(delivery: Delivery, ladder: Sequence[topology.RetryDelay]) -> str | None:
    """Return the level of the ladder that the message came back from, by its own header; None if it is no retry."""
    if delivery.exchange != topology.INBOX_EXCHANGE:
        return None
    named = delivery.headers.get(RETRY_LEVEL)
    return next((level.name for level in ladder if level.name == named), None)


def after_failure(
    delivery: Delivery, error: Exception, now: datetime, ladder: Sequence[topology.RetryDelay] = topology.RETRY_LADDER
) -> Envelope:
    """The next retry of a message that failed unexpectedly, or its dead letter when the ladder is at its end.

    A message of an unknown type waits on the slowest level each time: it waits for an upgrade of this process.
    """
    attempts = failed_attempts(delivery.headers)
    if attempts >= len(ladder):
        return dead_letter(delivery, error, now)
    level = ladder[-1 if isinstance(error, UnknownTypeError) else attempts]
    headers = {name: value for name, value in delivery.headers.items() if not name.startswith(BROKERS_OWN)}
    own = {
        ATTEMPTS: attempts + 1,
        FIRST_FAILED_AT: _first_failed_at(delivery, now),
        ROUTING_KEY: _short(type_name(delivery)),
        RETRY_LEVEL: level.name,
    }
    # The routing key of a retry is the queue that it returns to.
    return _republished(delivery, level.name, delivery.queue, headers, own)


def dead_letter(delivery: Delivery, error: Exception, now: datetime) -> Envelope:
    """The dead letter of a message: all that an operator needs to understand, edit and replay it."""
    own = {
        QUEUE: delivery.queue,
        ERROR_TYPE: type(error).__name__,
        ERROR_MESSAGE: _shortened(str(error), _MAX_OWN_TEXT),
        TRACEBACK: traceback_text(error),
        ATTEMPTS: failed_attempts(delivery.headers) + 1,
        FIRST_FAILED_AT: _first_failed_at(delivery, now),
        FAILED_AT: _rfc3339(now),
        ROUTING_KEY: _short(type_name(delivery)),
    }
    return _republished(delivery, topology.DEAD_LETTERS, _short(type_name(delivery)), delivery.headers, own)


def _republished(
    delivery: Delivery, exchange: str, routing_key: str, headers: Mapping[str, Any], own: Mapping[str, Any]
) -> Envelope:
    return Envelope(
        body=delivery.body,
        exchange=exchange,
        routing_key=routing_key,
        type=_short(type_name(delivery)),
        correlation_id=_short(delivery.correlation_id or ""),
        message_id=_short(delivery.message_id or uuid4().hex),
        mandatory=True,
        headers=fitting({name: value for name, value in headers.items() if name not in own}) | dict(own),
    )


def fitting(headers: Mapping[str, Any], budget: int = _MAX_HEADER_BYTES) -> dict[str, Any]:
    """The headers that fit into `budget` bytes, small ones first; how many did not is a header of its own."""
    kept: dict[str, Any] = {}
    for name, value in sorted(headers.items(), key=lambda item: _encoded_size(*item)):
        budget -= _encoded_size(name, value)
        if budget < 0:
            return kept | {HEADERS_LEFT_OUT: len(headers) - len(kept)}
        kept[name] = value
    return kept


def _encoded_size(name: str, value: Any) -> int:
    """About what the header takes in a frame, never less."""
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


def _short(text: str) -> str:
    """What fits into a short string of the protocol; only what was not UTF-8 can be longer, written as escapes."""
    return text.encode("utf-8", "backslashreplace")[:255].decode("utf-8", "ignore")


def _first_failed_at(delivery: Delivery, now: datetime) -> str:
    first = delivery.headers.get(FIRST_FAILED_AT)
    return first if isinstance(first, str) and len(first) <= 40 else _rfc3339(now)


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def traceback_text(error: BaseException) -> str:
    """The traceback, bounded in length: an exception may carry whole documents in its message."""
    return _shortened("".join(traceback.format_exception(error, limit=-20)), _MAX_TRACEBACK)


def _shortened(text: str, limit: int) -> str:
    """Both ends of a text that takes more than `limit` bytes: where it comes from, and what it comes to."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= limit:
        return text
    half = limit // 2
    return f"{encoded[:half].decode('utf-8', 'ignore')} (…) {encoded[-half:].decode('utf-8', 'ignore')}"

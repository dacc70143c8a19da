"""From a delivery of the dead-letter queue to its record, and from the record to the message that replays it. Pure.

A letter is a failed message with all its replays. Nothing in a delivery is trusted: its headers may be missing, of the
wrong type or forged, its body may be anything.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from bson.int64 import Int64

from operations.dead_letters.fingerprint import fingerprint
from operations.dead_letters.masking import searchable
from operations.dead_letters.status import DEAD
from shared.broker_rights import RIGHTS, could_have_sent
from shared.bus import Delivery, Envelope
from shared.bus.failures import (
    ATTEMPTS,
    BROKERS_OWN,
    COPIES,
    COUNTED_BY_BROKER,
    ERROR_MESSAGE,
    ERROR_TYPE,
    FAILED_AT,
    FIRST_FAILED_AT,
    HEADERS_LEFT_OUT,
    QUEUE,
    REPLAY_OF,
    RETRY_LEVEL,
    ROUTING_KEY,
    TRACEBACK,
    WAITS,
    failed_attempts,
    fitting,
    fitting_text,
)
from shared.bus.patterns import pattern
from shared.bus.reading import MAX_BODY_BYTES, type_name
from shared.database import Document
from shared.topology import INBOX_EXCHANGE, INBOXES, inbox_of, inbox_of_retry

LARGEST_INLINE = 1024 * 1024
"""Bytes of a body that fits into the letter; a bigger one is stored separately, in pieces."""

MOST_SHOWN = 8 * 1024
"""Characters of a body that are stored as text, for display and search."""

MOST_WORDS = 80
LONGEST_WORD = 64

MOST_ATTEMPTS = 1_000_000
"""More than any retry ladder makes. Headers may be forged, and the sum over all replays must fit into 64 bits."""

NO_ERROR = "NoError"
DELIVERY_LIMIT = "DeliveryLimit"
UNROUTABLE = "Unroutable"

_OWN = frozenset(
    {ATTEMPTS, ERROR_MESSAGE, ERROR_TYPE, FAILED_AT, FIRST_FAILED_AT, HEADERS_LEFT_OUT, QUEUE, RETRY_LEVEL, WAITS}
    | {ROUTING_KEY, TRACEBACK}
)
"""Headers about the failure; the record has them as fields, and a replay starts without them."""

_WORD = re.compile(r"[^\W_](?:[\w-]*[^\W_])?")
_PARTS = re.compile(r"[-_]")
_ORDER_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ErrorInfo(NamedTuple):
    """The error of a failed message."""

    type: str
    message: str
    traceback: str

    def as_document(self) -> Document:
        """Return the error as a record stores it."""
        return self._asdict()


class Failure(NamedTuple):
    """The facts about a failed message, as read from its delivery on the dead-letter queue."""

    queue: str
    routing_key: str
    message_id: str
    order_id: str
    error: ErrorInfo
    attempts: int
    first_failed_at: datetime
    failed_at: datetime
    replay_of: str | None
    user: str | None = None
    """The sender's user, as the broker has verified it."""
    foreign: bool = False
    """Its sender has no right with which such a message gets into that inbox; see `is_foreign`."""

    @property
    def service(self) -> str:
        """The service that owns the inbox the message comes from."""
        return service_of(self.queue)

    @property
    def pattern(self) -> str:
        """The error message without the parts that differ between failures of one cause."""
        return pattern(self.error.message, (self.order_id, self.message_id))

    @property
    def fingerprint(self) -> str:
        """The id of its group."""
        return fingerprint(self.queue, self.routing_key, self.error.type, self.pattern)


def service_of(queue: str) -> str:
    """Return the service that owns an inbox, "unknown" for any other queue."""
    return queue.partition(".")[0] if queue in INBOXES else "unknown"


def read_failure(delivery: Delivery, now: datetime, taken_by: str | None = None) -> Failure:
    """Read the failure from a delivery, with defaults for what is missing. Never raises.

    `taken_by` is the user of the connection that it came over; without it, no letter counts as foreign.
    """
    failure = _as_claimed(delivery, now)
    return failure if taken_by is None else failure._replace(foreign=is_foreign(failure, taken_by))


def is_foreign(failure: Failure, taken_by: str) -> bool:
    """Return whether a replay would do for the letter's sender what it has no right to do itself.

    Everyone may send dead letters, and what they say about where they come from is only a claim; so is the header of
    the broker that says it. A letter that was sent as the very user that takes it is not foreign: with one user for
    all, the rights are not divided. With divided rights, a sender that does not say who it is, is foreign.
    """
    if failure.user == taken_by:
        return False
    if failure.user is None:
        return taken_by in RIGHTS
    return not could_have_sent(failure.user, failure.routing_key, failure.queue)


def _as_claimed(delivery: Delivery, now: datetime) -> Failure:
    """Read the failure as its headers have it."""
    headers = delivery.headers
    death = _first_death(headers)
    waiting = inbox_of_retry(delivery.exchange)  # set if the retry queue was missing at that moment
    unroutable = delivery.exchange == INBOX_EXCHANGE or waiting is not None
    if delivery.exchange == INBOX_EXCHANGE and delivery.routing_key in INBOXES:  # the inbox was missing
        queue = delivery.routing_key
    else:
        queue = waiting or _text(headers.get(QUEUE)) or inbox_of(_text(death.get("queue")))
    # Our header counts only if our consumer wrote it: what the broker dead-letters has the headers of its sender.
    by_broker = unroutable or death.get("reason") == "delivery_limit"
    routing_key = ("" if by_broker else _text(headers.get(ROUTING_KEY))) or type_name(delivery)
    if routing_key in ("", queue):  # back from a retry, or published straight to the queue
        routing_key = delivery.type or routing_key
    failed_at = min(_time(headers.get(FAILED_AT)) or _time(death.get("time")) or now, now)
    return Failure(
        queue=clean(queue[:255]),
        routing_key=clean(routing_key[:255]),
        message_id=clean(delivery.message_id or ""),
        order_id=_order_id(delivery),
        error=_unroutable(delivery) if unroutable else _error(headers, death),
        attempts=min(max(1, failed_attempts(headers)), MOST_ATTEMPTS),
        first_failed_at=min(_time(headers.get(FIRST_FAILED_AT)) or failed_at, failed_at),
        failed_at=failed_at,
        replay_of=_text(headers.get(REPLAY_OF)) or None,
        user=delivery.user_id,
    )


def without_headers(delivery: Delivery) -> Delivery:
    """Return the delivery with only its failure headers, as text."""
    kept = {name: clean(str(value)) for name, value in delivery.headers.items() if name in _OWN}
    return replace(delivery, headers=kept)


def identity(delivery: Delivery, failure: Failure) -> str:
    """Return an id that is stable across deliveries of a failed message, and unique among messages.

    The message id is not enough: one publication may fail in several queues, and senders may reuse an id. A message
    without an id is identified by all of its content; `LetterRecords` tells identical ones apart.
    """
    digest = hashlib.sha256()
    parts: list[bytes] = [failure.queue.encode(), failure.routing_key.encode(), failure.message_id.encode()]
    if failure.foreign:  # so that nobody else's copy of a message passes for the letter of its consumer
        parts.append(f"foreign: {failure.user}".encode("utf-8", "backslashreplace"))
    if not failure.message_id:
        parts.append(orjson.dumps(_comparable(delivery.headers), option=orjson.OPT_SORT_KEYS, default=repr))
    for part in (*parts, delivery.body):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:32]


def record_of(letter_id: str, delivery: Delivery, failure: Failure, now: datetime) -> Document:
    """Return the record of a new letter."""
    text = body_text(delivery.body)
    inline = len(delivery.body) <= LARGEST_INLINE
    return {
        "_id": letter_id,
        "status": DEAD,
        "queue": failure.queue,
        "routingKey": failure.routing_key,
        "type": clean(delivery.type) if delivery.type else None,
        "messageId": failure.message_id,
        "correlationId": clean(delivery.correlation_id) if delivery.correlation_id else None,
        "orderId": failure.order_id or None,
        "user": clean(failure.user) if failure.user else None,
        "foreign": failure.foreign,
        "service": failure.service,
        "body": delivery.body if inline else None,
        "size": len(delivery.body),
        "bodyText": text,
        "contentType": content_type(delivery.body),
        "headers": storable({name: value for name, value in delivery.headers.items() if name not in _OWN}),
        "words": words_of(
            failure.order_id, failure.message_id, failure.error.type, failure.error.message, delivery.body
        ),
        "wordsMasked": True,
        "receivedAt": now,
        "firstFailedAt": failure.first_failed_at,
        "replays": [],
        "edits": [],
        "discarded": None,
        "changes": 0,
    } | failed_fields(failure)


def failed_fields(failure: Failure) -> Document:
    """Return the fields of a record that describe its last failure."""
    return {
        "error": failure.error.as_document(),
        "fingerprint": failure.fingerprint,
        "attempts": failure.attempts,
        "lastFailedAt": failure.failed_at,
    }


def type_of(letter: Document) -> str:
    """Return the message type of a replay: as for consumers, the routing key takes precedence over `type`."""
    return letter["routingKey"] or letter["type"] or ""


def current_body(letter: Document) -> bytes:
    """Return the body that a replay sends: the last edit, or else the original."""
    return bytes(letter["edits"][-1]["body"] if letter["edits"] else letter["body"])


def replay_envelope(letter: Document, message_id: str, body: bytes) -> Envelope:
    """Return the message that replays the letter: to the inbox that it failed in, without traces of the failure.

    Raises ValueError for a body that is too big for consumers, and perhaps for the broker.
    """
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"the body has {len(body)} bytes, the maximum is {MAX_BODY_BYTES}: edit it")
    kept = _named_to_fit(
        {name: value for name, value in letter["headers"].items() if not _is_about_failure(name) and name not in COPIES}
    )
    # The replay's routing key is the inbox; if it fails again, this header still has the original key.
    own = {REPLAY_OF: letter["_id"], ROUTING_KEY: letter["routingKey"]}
    return Envelope(
        body=body,
        exchange="",
        routing_key=letter["queue"],
        type=fitting_text(type_of(letter)),
        correlation_id=fitting_text(letter["correlationId"] or letter["orderId"] or ""),
        message_id=message_id,
        mandatory=True,
        headers=fitting({name: value for name, value in kept.items() if name not in own}) | own,
    )


def replay_message_id(replay_id: str, letter_id: str) -> str:
    """Return the message id for a letter in a replay, the same however often the letter is sent."""
    return hashlib.sha256(f"{replay_id}/{letter_id}".encode()).hexdigest()[:32]


def why_foreign(letter: Document) -> str | None:
    """Return why a letter is foreign, None if it is not."""
    if not letter.get("foreign"):
        return None
    if letter["user"] is None:
        return "it does not say who sent it, as messages of an earlier release do not"
    return f"it was sent as {letter['user']}, who has no right to send {letter['routingKey']} to {letter['queue']}"


def why_not_replayable(letter: Document) -> str | None:
    """Return why a letter cannot be sent back to where it came from, None if it can."""
    if letter["queue"] in INBOXES:
        return None
    if not letter["queue"]:
        return "the queue that it came from is unknown, and not the inbox of a service"
    return f"it came from {letter['queue']}, which is not the inbox of a service"


def content_type(body: bytes) -> str:
    """Detect the content type of a body."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return "text/plain" if _is_text(body) else "application/octet-stream"
    return "application/json"


def body_text(body: bytes) -> str:
    """Return the beginning of a body as text that MongoDB can store."""
    return clean(body[: 4 * MOST_SHOWN].decode("utf-8", "replace"))[:MOST_SHOWN]


def words_of(order_id: str, message_id: str, error_type: str, error_message: str, body: bytes | None) -> list[str]:
    """Return the words to find a letter by: those of its ids and error first, then those of its body.

    What is hidden has none, and a body of more than MAX_BODY_BYTES (or None) has none at all.
    """
    text, message = searchable(body if body is not None and len(body) <= MAX_BODY_BYTES else b"", error_message)
    sources = (order_id, message_id, error_type, message, text[:MOST_SHOWN])
    found: dict[str, None] = {}
    for source in sources:
        for word in words(source):
            if len(found) >= MOST_WORDS:
                return list(found)
            found.setdefault(word)
    return list(found)


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; an id with hyphens counts as a whole and in its parts."""
    found: dict[str, None] = {}
    for match in _WORD.finditer(text.lower()):
        word = match.group()
        found.setdefault(word[:LONGEST_WORD])
        for part in _PARTS.split(word):
            if part:
                found.setdefault(part[:LONGEST_WORD])
    return list(found)


def clean(text: str) -> str:
    """Escape what a database or a terminal cannot take: NUL and lone surrogates."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def storable(value: Any) -> Any:
    """Convert a header's value to one that MongoDB can store."""
    match value:
        case bool() | float() | None:
            return value
        case int():
            return Int64(value) if -(2**63) <= value < 2**63 else str(value)
        case str():
            return clean(value)
        case bytes() | bytearray():
            return bytes(value)
        case datetime():
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        case Mapping():
            return {clean(str(name)): storable(item) for name, item in value.items()}
        case list() | tuple():
            return [storable(item) for item in value]
    return clean(str(value))


def _unroutable(delivery: Delivery) -> ErrorInfo:
    if delivery.exchange != INBOX_EXCHANGE:
        missing = f"sent to the retry queue {clean(delivery.exchange)!r}, but there is no such queue"
    else:
        missing = f"returned from a retry to {clean(delivery.routing_key[:255])!r}, but there is no such inbox"
    return ErrorInfo(UNROUTABLE, missing, "")


def _error(headers: Mapping[str, Any], death: Mapping[str, Any]) -> ErrorInfo:
    type_, message = _text(headers.get(ERROR_TYPE)), _text(headers.get(ERROR_MESSAGE))
    if type_ or message:
        traceback = _text(headers.get(TRACEBACK))
        return ErrorInfo(clean(type_[:200]) or NO_ERROR, clean(message[: 4 * 1024]), clean(traceback[: 64 * 1024]))
    reason = _text(death.get("reason"))
    if reason == "delivery_limit":
        message = "reached the delivery limit: each time its consumer ended before it had finished"
        return ErrorInfo(DELIVERY_LIMIT, message, "")
    if reason:
        return ErrorInfo(NO_ERROR, f"dead-lettered by the broker: {clean(reason[:200])}", "")
    return ErrorInfo(NO_ERROR, "dead-lettered without any information about the error", "")


def _first_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the newest entry of the header that the broker adds when it dead-letters a message itself."""
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping):
        return deaths[0]
    return {}


def _order_id(delivery: Delivery) -> str:
    """Return the order id from the body, where receivers read it, or else from the correlation id."""
    try:
        body = orjson.loads(delivery.body) if len(delivery.body) <= LARGEST_INLINE else None
    except orjson.JSONDecodeError:
        body = None
    given = body.get("orderId") if isinstance(body, dict) else None
    for candidate in (given, delivery.correlation_id):
        if isinstance(candidate, str) and _ORDER_ID.fullmatch(candidate):
            return candidate
    return ""


def _comparable(headers: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers without those that the broker changes with every delivery."""
    return {clean(name): repr(value) for name, value in headers.items() if name not in COUNTED_BY_BROKER}


def _is_about_failure(name: str) -> bool:
    return name in _OWN or name.startswith(BROKERS_OWN)


def _named_to_fit(value: Any) -> Any:
    """Cut the names in a header's value, or in all headers: escaping may have made one too long."""
    match value:
        case Mapping():
            return {fitting_text(name): _named_to_fit(item) for name, item in value.items()}
        case list():
            return [_named_to_fit(item) for item in value]
    return value


def _text(value: object) -> str:
    match value:
        case str():
            return value
        case bytes() | bytearray():
            return bytes(value).decode("utf-8", "backslashreplace")
    return ""


def _is_text(body: bytes) -> bool:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t" for character in text[:MOST_SHOWN])


def _time(value: object) -> datetime | None:
    """Read a time to the millisecond, the precision of MongoDB; return None for anything else."""
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(_text(value))
        found = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return found.replace(microsecond=found.microsecond // 1000 * 1000)

"""The part of AMQP 0-9-1 that carries messages: publish, deliver, return and confirm frames as bytes. Pure.

Why messages are encoded and decoded here and not by aio-pika is said in shared.bus.amqp. The layout of frames is in
sections 2.3 and 4.2 of https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, that of field tables in RabbitMQ's
errata to it.
"""

import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from pamqp import decode

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_HEAD = struct.Struct(">BHI")
"""Type, channel and size of the payload; the end octet follows the payload."""
FRAME_OVERHEAD = FRAME_HEAD.size + 1
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"

_END = b"\xce"
_BASIC = 60
_PUBLISH = struct.pack(">HHH", _BASIC, 40, 0)
DELIVER = struct.pack(">HH", _BASIC, 60)
RETURN = struct.pack(">HH", _BASIC, 50)
ACK = struct.pack(">HH", _BASIC, 80)
NACK = struct.pack(">HH", _BASIC, 120)
CLOSE_CONNECTION = struct.pack(">HH", 10, 50)
BLOCKED = struct.pack(">HH", 10, 60)
UNBLOCKED = struct.pack(">HH", 10, 61)

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE, _PRIORITY = (1 << bit for bit in (15, 14, 13, 12, 11))
_CORRELATION_ID, _REPLY_TO, _EXPIRATION, _MESSAGE_ID, _TIMESTAMP = (1 << bit for bit in (10, 9, 8, 7, 6))
_TYPE, _USER_ID = 1 << 5, 1 << 4

_CONTENT_HEADER = struct.Struct(">HxxQH")
_TAG_AND_BITS = struct.Struct(">4xQB")
_U64 = struct.Struct(">Q")
_LONG = struct.Struct(">I")

_JSON_TYPE = b"\x10application/json"
_PERSISTENT = b"\x02"
_MOST_NESTED = 20

UNREADABLE_HEADERS = "x-unreadable-headers"
"""The name under which headers that cannot be decoded, or not be encoded again, are kept as bytes."""


@dataclass(slots=True)
class Properties:
    """The properties of a content header that we use."""

    type: str | None = None
    correlation_id: str | None = None
    message_id: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    user_id: str | None = None
    """The sender's user: the broker refuses a message with another than that of the connection."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Basic.Deliver: a message for a consumer."""

    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    consumer: bytes = b""
    """The tag of the consumer."""


@dataclass(frozen=True, slots=True)
class Return:
    """Basic.Return: a mandatory message that reached no queue."""

    code: int
    reason: str
    exchange: str
    routing_key: str


def publication(
    channel: int,
    exchange: str,
    routing_key: str,
    mandatory: bool,
    properties: Properties,
    timestamp: int,
    body: bytes,
    max_frame: int,
) -> bytes:
    """Encode one persistent JSON message as frames; `timestamp` is in Unix seconds.

    Raises ValueError if a name is longer than 255 bytes or the headers do not fit into a frame of `max_frame` bytes.
    """
    header = _content_header(properties, timestamp, len(body))
    if len(header) + FRAME_OVERHEAD > max_frame:
        raise ValueError(f"headers of {len(header)} bytes do not fit into a frame of {max_frame}")
    parts = [_publish_method(channel, exchange, routing_key, mandatory), _frame(HEADER, channel, header)]
    most = max_frame - FRAME_OVERHEAD
    parts += [_frame(BODY, channel, body[at : at + most]) for at in range(0, len(body), most)]
    return b"".join(parts)


def acknowledgement(channel: int, tag: int) -> bytes:
    """Encode Basic.Ack of all deliveries up to `tag`."""
    return _frame(METHOD, channel, ACK + _U64.pack(tag) + b"\x01")


def refusal(channel: int, tag: int) -> bytes:
    """Encode Basic.Nack of all deliveries up to `tag`, with redelivery."""
    return _frame(METHOD, channel, NACK + _U64.pack(tag) + b"\x03")


def refusal_of_one(channel: int, tag: int) -> bytes:
    """Encode Basic.Nack of one delivery, with redelivery."""
    return _frame(METHOD, channel, NACK + _U64.pack(tag) + b"\x02")


def read_confirm(payload: bytes) -> tuple[int, bool]:
    """Decode Basic.Ack or Basic.Nack: the tag, and whether it includes all tags up to it."""
    tag, bits = _TAG_AND_BITS.unpack_from(payload)
    return tag, bool(bits & 1)


def read_deliver(payload: bytes) -> Deliver:
    """Decode Basic.Deliver."""
    at = 5 + payload[4]
    consumer = payload[5:at]
    tag, redelivered = struct.unpack_from(">QB", payload, at)
    exchange, at = _read_short(payload, at + 9)
    routing_key, _ = _read_short(payload, at)
    return Deliver(tag, bool(redelivered & 1), exchange, routing_key, consumer)


def read_return(payload: bytes) -> Return:
    """Decode Basic.Return."""
    (code,) = struct.unpack_from(">H", payload, 4)
    reason, at = _read_short(payload, 6)
    exchange, at = _read_short(payload, at)
    routing_key, _ = _read_short(payload, at)
    return Return(code, reason, exchange, routing_key)


def read_close(payload: bytes) -> str:
    """Decode the broker's reason for closing the connection."""
    return _read_short(payload, 6)[0]


def read_blocked(payload: bytes) -> str:
    """Decode the broker's reason for blocking the connection."""
    return _read_short(payload, 4)[0]


def read_content_header(payload: bytes) -> tuple[int, Properties]:
    """Decode the size of the body and the properties; unreadable properties are left out without an error."""
    _, size, flags = _CONTENT_HEADER.unpack_from(payload)
    properties = Properties()
    with suppress(IndexError, struct.error):  # truncated: the message is judged by its body alone
        _read_properties(payload, flags, properties)
    return size, properties


def _read_properties(payload: bytes, flags: int, properties: Properties) -> None:
    at = _CONTENT_HEADER.size
    if flags & _CONTENT_TYPE:
        at += 1 + payload[at]
    at = _behind_short(payload, at, flags & _CONTENT_ENCODING)
    if flags & _HEADERS:
        (size,) = _LONG.unpack_from(payload, at)
        properties.headers = read_headers(payload[at : at + 4 + size])
        at += 4 + size
    at += bool(flags & _DELIVERY_MODE) + bool(flags & _PRIORITY)
    if flags & _CORRELATION_ID:
        properties.correlation_id, at = _read_short(payload, at)
    at = _behind_short(payload, at, flags & _REPLY_TO)
    at = _behind_short(payload, at, flags & _EXPIRATION)
    if flags & _MESSAGE_ID:
        properties.message_id, at = _read_short(payload, at)
    if flags & _TIMESTAMP:
        at += 8
    if flags & _TYPE:
        properties.type, at = _read_short(payload, at)
    if flags & _USER_ID:
        properties.user_id, at = _read_short(payload, at)


def _behind_short(payload: bytes, at: int, present: int) -> int:
    """Return where the next property begins, after a short string that may be present."""
    return at + 1 + payload[at] if present else at


def _read_short(payload: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + payload[at]
    return payload[at + 1 : end].decode("utf-8", "backslashreplace"), end


def read_headers(table: bytes) -> dict[str, Any]:
    """Decode a field table; one that `write_headers` could not encode again is returned as its bytes."""
    try:
        _, headers = decode.field_table(table)
        if _is_flat_enough(headers, _MOST_NESTED):
            write_headers(headers)
            return headers
    except (ValueError, TypeError, ArithmeticError, LookupError, struct.error, OSError, RecursionError):
        pass  # the message is delivered even if a hostile table breaks the decoder
    return {UNREADABLE_HEADERS: bytearray(table)}


def write_headers(headers: Mapping[str, Any]) -> bytes:
    """Encode a field table. Raises ValueError if a name is longer than 255 bytes."""
    content = b"".join(_short(name) + _value(value) for name, value in headers.items())
    return _LONG.pack(len(content)) + content


def _is_flat_enough(value: object, levels: int) -> bool:
    match value:
        case dict():
            return levels > 0 and all(_is_flat_enough(item, levels - 1) for item in value.values())
        case list():
            return levels > 0 and all(_is_flat_enough(item, levels - 1) for item in value)
    return True


def _value(value: object) -> bytes:
    match value:
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int() if -(2**63) <= value < 2**63:
            return b"l" + struct.pack(">q", value)
        case float():
            return b"d" + struct.pack(">d", value)
        case bytearray():
            return b"x" + _LONG.pack(len(value)) + value
        case bytes():
            return b"S" + _LONG.pack(len(value)) + value
        case datetime():
            return b"T" + struct.pack(">q", int(value.timestamp()))
        case None:
            return b"V"
        case dict():
            return b"F" + write_headers(value)
        case list():
            items = b"".join(_value(item) for item in value)
            return b"A" + _LONG.pack(len(items)) + items
    return _value(str(value).encode("utf-8", "backslashreplace"))


def _content_header(properties: Properties, timestamp: int, body_size: int) -> bytes:
    flags = _CONTENT_TYPE | _DELIVERY_MODE | _MESSAGE_ID | _TIMESTAMP | _TYPE
    parts = [_JSON_TYPE]
    if properties.headers:
        flags |= _HEADERS
        parts.append(write_headers(properties.headers))
    parts.append(_PERSISTENT)
    if properties.correlation_id:
        flags |= _CORRELATION_ID
        parts.append(_short(properties.correlation_id))
    parts += (_short(properties.message_id or ""), _U64.pack(timestamp), _short(properties.type or ""))
    if properties.user_id:
        flags |= _USER_ID
        parts.append(_short(properties.user_id))
    return _CONTENT_HEADER.pack(_BASIC, body_size, flags) + b"".join(parts)


@lru_cache(maxsize=256)
def _publish_method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    payload = _PUBLISH + _short(exchange) + _short(routing_key) + bytes([mandatory])
    return _frame(METHOD, channel, payload)


def _short(text: str) -> bytes:
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) > 255:
        raise ValueError(f"longer than 255 bytes: {text[:40]!r}…")
    return bytes((len(encoded),)) + encoded


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return FRAME_HEAD.pack(kind, channel, len(payload)) + payload + _END

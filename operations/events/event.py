"""One event of the stream as people and files get it, and the selection of some. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import orjson

from operations.dead_letters.masking import mask_body, mask_value


@dataclass(frozen=True, slots=True)
class Event:
    """An event, with its place in the stream; `data` is its body without what is hidden (payment tokens and so on).

    Of a body that is not a JSON object, or is nested too deeply, `data` is the length and the hash.
    """

    offset: int
    type: str
    at: datetime | None
    order_id: str | None
    message_id: str | None
    data: Any

    @property
    def is_unreadable(self) -> bool:
        """Return whether `data` has the length and the hash of the body instead of the body."""
        return isinstance(self.data, str)

    def as_json(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {
            "offset": self.offset,
            "type": self.type,
            "at": _text(self.at),
            "orderId": self.order_id,
            "messageId": self.message_id,
            "data": self.data,
        }


def read_event(offset: int, type_: str, at: datetime | None, message_id: str | None, body: bytes) -> Event:
    """Read an event of any content."""
    order_id = None
    try:
        content = orjson.loads(body)
        order_id = content.get("orderId")
        data = mask_value(content)
    except (orjson.JSONDecodeError, AttributeError, RecursionError):
        data = mask_body(body).decode()
    return Event(offset, type_, at, order_id if isinstance(order_id, str) else None, message_id, data)


@dataclass(frozen=True, slots=True)
class Selection:
    """Some events: of these types, which may have wildcards (`order.*`), of one order, since a time, from an offset."""

    types: tuple[str, ...] = ()
    order_id: str | None = None
    since: datetime | None = None
    offset: int = 0

    def selects(self, event: Event) -> bool:
        """Return whether the event is one of them."""
        if self.types and not any(fnmatchcase(event.type, pattern) for pattern in self.types):
            return False
        if self.order_id is not None and event.order_id != self.order_id:
            return False
        if event.offset < self.offset:
            return False
        # Events have whole seconds.
        return self.since is None or event.at is None or event.at >= self.since.replace(microsecond=0)


SHOWN = ("userId", "totalAmount", "amount", "currency", "refundId", "reason", "package", "ipv4")
"""The fields that a line for people has, where the event has them."""


def summary(event: Event) -> str:
    """Return what the event is about in one line, for people."""
    if not isinstance(event.data, Mapping):
        return str(event.data)
    return ", ".join(f"{name} {event.data[name]}" for name in SHOWN if event.data.get(name) is not None)


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")

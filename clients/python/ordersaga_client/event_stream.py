"""Server-sent events of one order, without any I/O: parses a stream, and decides when to open it again.

https://html.spec.whatwg.org/multipage/server-sent-events.html has the format.
"""

import json
from collections.abc import Iterator
from typing import Any

from ordersaga_client.errors import UnreadableAnswerError
from ordersaga_client.models import OrderEvent

SETTLED = "settled"
"""The event that ends an order's stream."""
RECONNECT_SECONDS = 1.0
"""The pause before a stream is opened again that has ended without an event, unless the service names another."""


class Following:
    """The events of one order over several streams, each of which continues where the one before has ended."""

    def __init__(self, after: str | None = None) -> None:
        self.last_id = after
        self.ended = False
        self._pause = RECONNECT_SECONDS
        self._progress = False
        self._line = b""
        self._fields: dict[str, list[str]] = {}

    def opened(self) -> None:
        """Begin a stream: an event of which only a part has come is sent again."""
        self._progress = False
        self._line = b""
        self._fields = {}

    def take(self, piece: bytes) -> Iterator[OrderEvent]:
        """Take the next piece of a stream; yields the events that it completes.

        Lines end with a line feed alone, not with what Unicode calls a line separator, which a message may contain.
        """
        *lines, self._line = (self._line + piece).split(b"\n")
        for line in lines:
            if event := self._take_line(line.removesuffix(b"\r").decode(errors="replace")):
                yield event

    def _take_line(self, line: str) -> OrderEvent | None:
        if line:
            self._take_field(line)
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        event = self._event(fields)
        self._progress = True
        self.last_id = event.event_id
        self.ended = event.event == SETTLED
        return event

    def pause(self) -> float:
        """Return how long to wait, in seconds, before the stream is opened again."""
        return 0.0 if self._progress else self._pause

    def _take_field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "retry" and value.isdecimal():
            self._pause = int(value) / 1000
        elif name in {"id", "event", "data"}:  # a comment has no name
            self._fields.setdefault(name, []).append(value)

    def _event(self, fields: dict[str, list[str]]) -> OrderEvent:
        text = "\n".join(fields["data"])
        try:
            data: Any = json.loads(text)
            named = {
                "eventId": fields.get("id", [self.last_id or ""])[-1],
                "event": fields.get("event", ["message"])[-1],
            }
            return OrderEvent.model_validate({**data, **named})
        except (TypeError, ValueError) as error:
            raise UnreadableAnswerError(f"an event has data that cannot be read: {text[:200]}") from error

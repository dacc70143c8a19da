"""Writes the state and the events of a supervisor, even if the disk is full for a while."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from datetime import datetime

from operations.stack.layout import Layout
from operations.stack.state import State, write_state

RETRY_SECONDS = 1.0
MOST_WAITING_EVENTS = 1000


class StateWriter:
    """Writes states and events; no method raises OSError.

    If writing fails, `retry` writes the latest state and all events later, in order and with their time. A failure to
    write the state is an event as well.
    """

    def __init__(self, layout: Layout, on_change: Callable[[State], None], on_event: Callable[[str], None]) -> None:
        self._layout = layout
        self._on_change = on_change
        self._on_event = on_event
        self._unwritten: State | None = None
        self._failing = False
        self._events: deque[tuple[datetime, str]] = deque(maxlen=MOST_WAITING_EVENTS)

    def write(self, state: State) -> None:
        """Write the state and pass it on."""
        self._unwritten = state
        self._write_pending()
        with contextlib.suppress(OSError):  # a closed terminal
            self._on_change(state)

    def add_event(self, text: str) -> None:
        """Write an event."""
        self._events.append((datetime.now().astimezone(), text))
        self._write_pending()

    async def retry(self) -> None:
        """Write periodically what could not be written before; runs until cancelled."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            self._write_pending()

    def _write_pending(self) -> None:
        self._write_state()
        # An event leaves the queue only after it was written.
        with contextlib.suppress(OSError):
            while self._events:
                self._on_event(_dated(*self._events[0]))
                self._events.popleft()

    def _write_state(self) -> None:
        if self._unwritten is None:
            return
        now = datetime.now().astimezone()
        try:
            write_state(self._layout, self._unwritten)
        except OSError as error:
            if not self._failing:
                reason = error.strerror or str(error)
                self._events.append(
                    (now, f"{self._layout.state_file} cannot be written ({reason}): retried every second")
                )
            self._failing = True
            return
        self._unwritten = None
        if self._failing:
            self._failing = False
            self._events.append((now, f"{self._layout.state_file} can be written again"))


def _dated(at: datetime, text: str) -> str:
    late = (datetime.now().astimezone() - at).total_seconds() > RETRY_SECONDS / 2
    return f"{text} (at {at:%H:%M:%S})" if late else text

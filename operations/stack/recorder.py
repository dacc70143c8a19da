"""What a supervisor writes: its state and its events. A disk that is full must not end the supervision."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from datetime import datetime

from operations.stack.layout import Layout
from operations.stack.state import State, write_state

RETRY_SECONDS = 1.0
MOST_WAITING_EVENTS = 1000


class Recorder:
    """Writes states and events; none of its methods raises OSError.

    What cannot be written is written later, while `retry` runs: of the states the last one, of the events all in
    their order, each with the time that it happened. That the state could not be written is an event itself.
    """

    def __init__(self, layout: Layout, on_change: Callable[[State], None], on_event: Callable[[str], None]) -> None:
        self._layout = layout
        self._on_change = on_change
        self._on_event = on_event
        self._unwritten: State | None = None
        self._failing = False
        self._events: deque[tuple[datetime, str]] = deque(maxlen=MOST_WAITING_EVENTS)

    def record(self, state: State) -> None:
        """Write the state and show it."""
        self._unwritten = state
        self._catch_up()
        with contextlib.suppress(OSError):  # a terminal that is gone
            self._on_change(state)

    def say(self, text: str) -> None:
        """Report an event."""
        self._events.append((datetime.now().astimezone(), text))
        self._catch_up()

    async def retry(self) -> None:
        """Write what could not be written before, until cancelled."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            self._catch_up()

    def _catch_up(self) -> None:
        self._write_state()
        # An event leaves the queue when it is written.
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
                    (now, f"{self._layout.state_file} cannot be written ({reason}): tried every second")
                )
            self._failing = True
            return
        self._unwritten = None
        if self._failing:
            self._failing = False
            self._events.append((now, f"{self._layout.state_file} is written again"))


def _dated(at: datetime, text: str) -> str:
    late = (datetime.now().astimezone() - at).total_seconds() > RETRY_SECONDS / 2
    return f"{text} (at {at:%H:%M:%S})" if late else text

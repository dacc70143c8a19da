"""How late the event loop is: everything that a process does waits at least so long for its turn."""

import asyncio
import time

from prometheus_client import Histogram

INTERVAL_SECONDS = 0.5

_lag = Histogram(
    "event_loop_lag_seconds",
    "How much later than asked for a task was woken, looked at twice a second",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


async def watch_event_loop() -> None:
    """Measure until cancelled."""
    while True:
        asked = time.monotonic() + INTERVAL_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)
        _lag.observe(max(0.0, time.monotonic() - asked))

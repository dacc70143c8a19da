"""The lag of the event loop: every task of the process waits at least this long for its turn."""

import asyncio
import time

from prometheus_client import Histogram

INTERVAL_SECONDS = 0.5

_lag = Histogram(
    "event_loop_lag_seconds",
    "How much later than planned a task was woken, measured twice per second",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


async def watch_event_loop() -> None:
    """Measure until cancelled."""
    while True:
        due = time.monotonic() + INTERVAL_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)
        _lag.observe(max(0.0, time.monotonic() - due))

"""Logs waits that last long while they last."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog

LOGGED_AT_SECONDS = (5, 30)
"""The lengths of a wait at which a line is logged."""

_log = structlog.get_logger(__name__)


@contextmanager
def slow_waits_logged(line: str, **fields: Any) -> Iterator[Callable[[], None]]:
    """Log this line as a warning, with the fields, when the wait in this context has lasted 5 s, and again at 30 s.

    The context gets a function that ends the wait before the context ends.
    """
    loop = asyncio.get_running_loop()
    timers = [
        loop.call_later(seconds, partial(_log.warning, line, waited_seconds=seconds, **fields))
        for seconds in LOGGED_AT_SECONDS
    ]

    def end_wait() -> None:
        for timer in timers:
            timer.cancel()

    try:
        yield end_wait
    finally:
        end_wait()

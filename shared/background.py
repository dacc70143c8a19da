"""The loop behind all background work, and the one rule for what goes wrong in it.

    what the work raises                  what is logged
    ────────────────────────────────────  ──────────────────────────────────────────────────────────────
    a transient error                     one warning when it begins, one line when it is over
    anything else (a missing permission,  one error with its traceback, one line when it is over
    a refused login, a defect)

Each error is logged once; again only when its type or text changes, or when it returns after the work has succeeded.
In both cases the loop waits and tries again: only a cancellation ends it.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from shared import database
from shared.bus.backoff import Backoff
from shared.bus.failures import traceback_text
from shared.errors import TransientError

Work = Callable[[], Awaitable[bool | None]]
"""One run of the work. True means that there is more to do, so the next run follows at once."""

Interval = float | Callable[[], float]
"""Seconds between two runs, or a function that returns them."""

_LONGEST_RETRY_SECONDS = 2.0
_REMEMBERED_ERRORS = 10
"""Errors that alternate are logged once each, too."""

_log = structlog.get_logger(__name__)


async def run_periodically(work: Work, *, every: Interval, name: str, wake: asyncio.Event | None = None) -> None:
    """Run the work at once, then again after each interval until cancelled, whatever it raises.

    `wake` ends an interval early; it is cleared before each run. After an error the loop waits for a growing time that
    nothing ends early: from 0.1 s up to the interval, or 2 s where that is shorter.
    """
    errors, backoff = ErrorLog(name), Backoff(longest=max(_seconds(every), _LONGEST_RETRY_SECONDS))
    # A driver may swallow a cancellation that arrives in the middle of a reply.
    while not _is_cancelled():
        if wake is not None:
            wake.clear()
        try:
            more = await work()
        except (Exception, asyncio.CancelledError) as error:
            # A driver may also let its own cancellation escape, which must not end the loop.
            if _is_cancelled():
                raise
            errors.failed(error)
            await asyncio.sleep(jitter(backoff.next()))
        else:
            errors.succeeded()
            backoff.reset()
            await _pause(0 if more else _seconds(every), wake)


LONGEST_JITTER = 1.3
"""How many times as long as planned a pause with jitter may be."""


def jitter(seconds: float) -> float:
    """Return 70 to 130 % of a time, so that processes that started together do not stay in step."""
    return seconds * random.uniform(0.7, LONGEST_JITTER)  # noqa: S311 - no secret


class ErrorLog:
    """Logs the errors of work that is repeated: each once, until the work succeeds again."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._logged: deque[str] = deque(maxlen=_REMEMBERED_ERRORS)

    def failed(self, error: BaseException, **context: str) -> None:
        """Log the error unless it is known; `context` is logged with it."""
        # Not the whole text: a server's answers contain its cluster time, so no two of them are the same.
        text = f"{type(error).__name__}: {database.first_line(error)}"
        if text in self._logged:
            return
        self._logged.append(text)
        if _is_transient(error):
            _log.warning("background work waits for a server", work=self._work, error=text, **context)
        else:
            trace = traceback_text(error)  # bounded: an error may contain whole documents
            _log.error("background work failed", work=self._work, error=text, exception=trace, **context)

    def succeeded(self) -> None:
        """Note that the work has succeeded, and log it if it failed before."""
        if self._logged:
            _log.info("background work succeeds again", work=self._work)
            self._logged.clear()


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, TransientError | TimeoutError):
        return True
    return isinstance(error, Exception) and isinstance(database.translate_error(error), TransientError)


def _seconds(every: Interval) -> float:
    return every() if callable(every) else every


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _pause(seconds: float, wake: asyncio.Event | None) -> None:
    """Wait, at least until every other task has had its turn."""
    await asyncio.sleep(0)
    if wake is None:
        await asyncio.sleep(seconds)
    else:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await wake.wait()

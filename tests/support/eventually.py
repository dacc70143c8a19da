"""Waiting for a condition with a deadline, in place of sleeping for a time that is hoped to be enough."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.1


class NotWithinError(AssertionError):
    """The condition did not hold in time."""


@overload
async def eventually(condition: Callable[[], Awaitable[T]], within: float = ..., message: str = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], within: float = ..., message: str = ...) -> T: ...
async def eventually(condition: Callable[[], Any], within: float = 60.0, message: str = "the condition to hold") -> Any:
    """Return the condition's value as soon as it is true (in Python's sense).

    The condition is a function, sync or async; an exception from it counts as "not yet". After `within` seconds
    NotWithinError says what it returned or raised last.
    """
    deadline = time.monotonic() + within
    pause = FIRST_PAUSE_SECONDS
    while True:
        value, failure = await _attempt(condition)
        if failure is None and value:
            return value
        if time.monotonic() > deadline:
            last = f"it raised {failure!r}" if failure is not None else f"it was {value!r}"
            raise NotWithinError(f"waited {within} s for {message}; at last {last}") from failure
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


async def _attempt(condition: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
    except Exception as failure:  # noqa: BLE001 - reported if it is still raised at the deadline
        return None, failure
    return value, None

"""Ending the tasks that tests have started."""

import asyncio
from collections.abc import Collection
from typing import Any

DEADLINE_SECONDS = 60


async def end_tasks(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel until all have ended: what they wait for may swallow a cancellation, or may have to tidy up.

    A task that is left behind logs into the output of later tests. Raises TimeoutError if one does not end.
    """
    pending: Collection[asyncio.Task[Any]] = tasks
    async with asyncio.timeout(DEADLINE_SECONDS):
        while pending:
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.1)
    for task in tasks:
        task.cancelled() or task.exception()

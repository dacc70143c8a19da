"""Ending the tasks that tests have started."""

import asyncio
from collections.abc import Collection
from typing import Any


async def end_tasks(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel until all have ended: the driver swallows a cancellation that meets it in the middle of a reply.

    A task that is left behind logs into the output of later tests.
    """
    pending: Collection[asyncio.Task[Any]] = tasks
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
    for task in tasks:
        task.cancelled() or task.exception()

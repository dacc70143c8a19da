"""Group commit: concurrent calls that need one write each share one bulk write. No call waits for others to join."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from shared.errors import TransientError

Item = TypeVar("Item")
Result = TypeVar("Result")


class NotStartedError(TransientError):
    """A write has not been sent in time, and will not be."""

    for_clients = "The database (MongoDB) does not answer at the moment; nothing was stored, try again"


class GroupCommit(Generic[Item, Result]):
    """Runs `work` on everything that was submitted during its previous run.

    The first call starts a run at once; calls that arrive during the run form the next group. So groups grow with the
    load, and without load they add no latency. `work` returns one result per item, in order. If it raises, every
    caller of the group gets the exception.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], *, limit: int) -> None:
        self._work = work
        self._limit = limit
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def submit(self, item: Item, *, start_within: float | None = None) -> Result:
        """Process the item in the next group and return its result.

        Raises NotStartedError if the previous groups take longer than `start_within` seconds.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if self._runner is None:
            self._start()
        if start_within is None:
            return await future
        timer = loop.call_later(start_within, self._withdraw, future)
        try:
            return await future
        finally:
            timer.cancel()

    async def drain(self) -> None:
        """Wait until everything that was submitted has been processed."""
        while self._runner is not None:
            await asyncio.wait({self._runner})

    def _start(self) -> None:
        # In a separate context: the run serves all callers, so the log context of the first must not stick to it.
        self._runner = asyncio.create_task(self._run(), context=Context())

    def _withdraw(self, future: "asyncio.Future[Result]") -> None:
        """Refuse an item that still waits; one that is being processed stays."""
        for place, (_, waiting) in enumerate(self._waiting):
            if waiting is future:
                del self._waiting[place]
                if not future.done():
                    future.set_exception(NotStartedError("the previous writes take too long"))
                return

    async def _run(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
                await self._do(group)
        finally:
            self._runner = None
            if any(not future.done() for _, future in self._waiting):  # a run was cancelled, and others still wait
                self._start()

    async def _do(self, group: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._work([item for item, _ in group])
            answered = list(zip(group, results, strict=True))
        except BaseException as error:
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        for (_, future), result in answered:
            if not future.done():
                future.set_result(result)

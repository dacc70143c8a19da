"""Group commit: concurrent calls that each want one write share one bulk write, without waiting for company."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Runs `work` over everything that was submitted while its last run was busy.

    A call alone starts at once; calls that arrive during a run form the next group, so groups grow with the load and
    add no latency without it. `work` returns one result per item, in order; what it raises, every caller of the group
    gets.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], *, limit: int) -> None:
        self._work = work
        self._limit = limit
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Have the item done with whatever else is there, and return its result."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._runner is None:
            # In a context of its own: it works for all who come, and not on account of who came first.
            self._runner = asyncio.create_task(self._run(), context=Context())
        return await future

    async def drain(self) -> None:
        """Wait until everything that was submitted is done."""
        while self._runner is not None:
            await asyncio.wait({self._runner})

    async def _run(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
                await self._do(group)
        finally:
            self._runner = None

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

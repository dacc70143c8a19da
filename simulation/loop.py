"""An event loop on a virtual clock: time passes only when all wait, and then at once. It has no I/O and no threads.

Every callback belongs to a life of a process, or to the world around them. The callbacks of a life that has ended never
run again, as those of a process that was killed; those of a life that is stalled run when it goes on.
"""

import asyncio
import heapq
import inspect
import warnings
from collections import deque
from collections.abc import Collection, Coroutine, Iterator, Mapping
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import Any, NoReturn

LIFE: ContextVar["Life | None"] = ContextVar("LIFE", default=None)
"""The life of a process whose code runs; None for the world around the processes."""


MOST_ROUNDS = 100_000
"""How often the loop may run what is ready before time has to pass."""

MOST_WAITS_AT_THE_END = 100
"""How often a coroutine that is closed may wait in its `finally` blocks."""


class StuckError(Exception):
    """Nothing is left that could ever happen, or what happens lets no time pass, and the work is not done."""


class Life:
    """One life of a process, from its start to its crash."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.ended = False
        self.stalled = False
        self.serves = False
        """Whether it takes requests: not before its parts are assembled."""
        self.clock_offset = 0.0
        """How far the process's clock is ahead, in seconds."""
        self.held: deque[asyncio.Handle] = deque()
        """What would have run while it was stalled."""
        self.context = copy_context()
        self.context.run(LIFE.set, self)

    @property
    def halted(self) -> bool:
        """Whether none of its code runs now."""
        return self.ended or self.stalled

    def start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run some work as a part of this life."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())


async def never() -> NoReturn:
    """Wait for what never comes: the life of the caller has ended."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("what has ended goes on")


class _Task(asyncio.Task[Any]):
    """A task whose hash is its number: the order of a set of tasks must not depend on addresses in memory."""

    def __init__(self, number: int, work: Any, **options: Any) -> None:
        self.number = number
        super().__init__(work, **options)
        own = options.get("context")
        self.life: Life | None = own[LIFE] if own is not None and LIFE in own else LIFE.get()
        self._log_destroy_pending = False

    def __hash__(self) -> int:
        return self.number


class _Callback(asyncio.TimerHandle):
    """A planned call, without what asyncio's own handles keep for their debug mode: a run makes thousands."""

    __slots__ = ()

    _args: Any
    _callback: Any
    _context: Any

    def __init__(self, callback: Any, args: tuple[Any, ...], context: Context | None, when: float = 0.0) -> None:
        self._callback = callback
        self._args = args
        self._context = copy_context() if context is None else context
        self._when = when
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None

    def __repr__(self) -> str:
        return f"<call of {self._callback} {self._args}>"


class SimulatedLoop(asyncio.BaseEventLoop):
    """The loop of one world."""

    # Attributes of asyncio's own loop, which are the same in all versions of Python that are supported.
    _ready: deque[Any]
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._rounds = 0
        self._numbers = count()
        self._timers: list[tuple[float, int, Any]] = []
        self._made: list[_Task] = []
        self._failed: list[str] = []
        self._lost: list[Any] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note_failure)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def go_on(self, life: Life) -> None:
        """End the stall of a life: what waited for it runs now."""
        life.stalled = False
        self._ready.extend(life.held)
        life.held.clear()

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        """Plan a callback for the next round."""
        handle = _Callback(callback, args, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Plan a callback for the time after a delay."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Plan a callback; of those for the same moment, the one that was planned first runs first."""
        timer = _Callback(callback, args, context, when)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        """Do as `call_soon`: there is one thread."""
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> NoReturn:  # type: ignore[override]
        """Refuse: a thread would run whenever it likes."""
        raise RuntimeError(f"the simulation has no threads: {func} of {executor} {args}")

    def failures(self, apart_from: Collection[asyncio.Task[Any]] = ()) -> Iterator[str]:
        """Yield the errors that nobody has seen: those of callbacks, and those of tasks that nobody waits for."""
        yield from self._failed
        for task in self._made:
            if task in apart_from or not task.done() or task.cancelled() or not task._log_traceback:
                continue
            if task.life is None or not task.life.ended:
                name = getattr(task.get_coro(), "__qualname__", "")
                yield f"a task failed: {task.exception()!r} in {name}"

    def _note_failure(self, _loop: Any, context: Mapping[str, Any]) -> None:
        """Note the error of a callback; those of tasks are found by `failures`."""
        if (error := context.get("exception")) is not None and "future" not in context:
            self._failed.append(f"a callback failed: {error!r}")

    def bury(self) -> None:
        """Close what never ended; only when the trace is complete, because `finally` blocks run."""
        asyncio._set_running_loop(self)  # for the tasks that they make, which are closed as well
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # some have never begun
                for task in self._made:
                    if not task.done():
                        _close(task.get_coro())
        finally:
            asyncio._set_running_loop(None)
        self._made.clear()
        self._lost.clear()
        self._ready.clear()
        self._timers.clear()

    def _make_task(self, _loop: Any, work: Any, context: Context | None = None, **options: Any) -> Any:
        """Make a task that belongs to the life that makes it, also if it has a context of its own."""
        if context is not None and LIFE not in context:
            context.run(LIFE.set, LIFE.get())
        task = _Task(next(self._numbers), work, loop=self, context=context, **options)
        self._made.append(task)
        return task

    def _run_once(self) -> None:
        """Run one round after the other until the loop is stopped: a round is what is ready when it begins."""
        ready = self._ready
        while True:
            self._let_time_pass()
            for _ in range(len(ready)):
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                life = handle._context.get(LIFE)
                if life is None or not (life.ended or life.stalled):
                    self._run(handle)
                elif life.ended:
                    self._lost.append(handle)  # kept: what is destroyed may run code
                else:
                    life.held.append(handle)
            if self._stopping:
                return

    def _run(self, handle: Any) -> None:
        try:
            handle._context.run(handle._callback, *handle._args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as asyncio's own handles do
            self.call_exception_handler({"message": f"a callback failed: {handle!r}", "exception": error})

    def _let_time_pass(self) -> None:
        timers, ready = self._timers, self._ready
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not ready and not self._stopping:
            if not timers:
                raise StuckError("nothing is left to happen")
            self._now, self._rounds = max(self._now, timers[0][0]), 0
        self._rounds += 1
        if self._rounds > MOST_ROUNDS:
            raise StuckError("what happens lets no time pass")
        while timers and timers[0][0] <= self._now:
            ready.append(heapq.heappop(timers)[2])

    def _process_events(self, event_list: Any) -> None:
        """Have no events of any I/O."""


def _close(work: Any) -> None:
    """Close a coroutine, also if its `finally` blocks wait for something, which ends them there."""
    for _ in range(MOST_WAITS_AT_THE_END):
        # Errors no longer matter to anyone; a RuntimeError means that it waits again instead of ending.
        with suppress(BaseException):
            work.close()
        if _is_closed(work):
            return


def _is_closed(work: Any) -> bool:
    """Return whether a task's work has ended; a task may also have been made from an awaitable's generator."""
    if inspect.iscoroutine(work):
        return inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
    return inspect.getgeneratorstate(work) == inspect.GEN_CLOSED

"""An event loop whose time passes only by waiting, and then at once, for code that has timers and no I/O."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: _VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.now += max(timeout or 0.0, 0.0)
        return super().select(0)


def run_in_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    """Run `work`; its timers fire in order, however long they are and however busy the machine is."""
    with asyncio.Runner(loop_factory=_VirtualTimeLoop) as runner:
        runner.run(work)

"""Lets the faults of a plan happen: each once, at the chance that it waits for."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from simulation import plan
from simulation.loop import Life, never
from simulation.plan import Fault
from simulation.trace import Trace

STRIKES = frozenset({plan.CRASH, plan.STALL, plan.ELECT, plan.POWER_CUT, plan.NODE_LOSS})
"""The kinds of faults that hit a process, or its surroundings, when it reaches a place; or at their time, without."""


@dataclass(slots=True)
class _Armed:
    """A fault that waits for its chance."""

    fault: Fault
    chances_left: int


Reach = Callable[..., bool]
"""Called with a life and the places that it has reached: a fault may hit it there. Returns whether one did."""


async def pass_through(life: Life, is_hit: bool) -> None:
    """Go on after a place unless a fault has ended the life there, and when it goes on if it stalls."""
    if life.ended:
        await never()
    if is_hit and life.stalled:
        await asyncio.sleep(0)


class Injector:
    """The faults of one world that have not happened yet, and those that have."""

    def __init__(self, faults: Iterable[Fault], trace: Trace, now: Callable[[], float]) -> None:
        self._trace = trace
        self._now = now
        self._armed: dict[tuple[str, str], list[_Armed]] = defaultdict(list)
        self._placed: dict[str, list[_Armed]] = defaultdict(list)
        for fault in faults:
            armed = _Armed(fault, fault.skip)
            if fault.kind in STRIKES and fault.place:
                self._placed[fault.target].append(armed)
            else:
                self._armed[fault.kind, fault.target].append(armed)
        self.happened: list[Fault] = []

    def chance(self, kind: str, target: str, *places: str) -> Fault | None:
        """Return the fault that happens to the target at this chance; for most chances there is none."""
        waiting = self._armed.get((kind, target))
        return self._first(waiting, places) if waiting else None

    def strike(self, process: str, *places: str) -> Fault | None:
        """Return the fault that hits a process, or its service, at one of these places; mostly there is none."""
        for target in (process, process.partition("-")[0]):
            waiting = self._placed.get(target)
            if waiting and (fault := self._first(waiting, places)) is not None:
                return fault
        return None

    def _first(self, waiting: list[_Armed], places: Sequence[str]) -> Fault | None:
        for armed in waiting:
            if armed.fault.at > self._now() or (places and armed.fault.place not in places):
                continue
            if armed.chances_left > 0:
                armed.chances_left -= 1
                continue
            waiting.remove(armed)
            self.note(armed.fault)
            return armed.fault
        return None

    def note(self, fault: Fault) -> None:
        """Note that a fault happens now."""
        self.happened.append(fault)
        self._trace.note(f"*** {fault}", process=fault.target)

    def stop(self) -> None:
        """Let no fault happen any more."""
        self._armed.clear()
        self._placed.clear()

"""Lets the faults of a plan happen: each once, at the chance that it waits for."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from simulation.plan import Fault
from simulation.trace import Trace


@dataclass(slots=True)
class _Armed:
    """A fault that waits for its chance."""

    fault: Fault
    chances_left: int


class Injector:
    """The faults of one world that have not happened yet, and those that have."""

    def __init__(self, faults: Iterable[Fault], trace: Trace, now: Callable[[], float]) -> None:
        self._trace = trace
        self._now = now
        self._armed: dict[tuple[str, str], list[_Armed]] = defaultdict(list)
        for fault in faults:
            self._armed[fault.kind, fault.target].append(_Armed(fault, fault.skip))
        self.happened: list[Fault] = []

    def chance(self, kind: str, target: str, *places: str) -> Fault | None:
        """Return the fault that happens to the target at this chance; for most chances there is none."""
        if (kind, target) not in self._armed:
            return None
        waiting = self._armed[kind, target]
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

"""The databases of a world: in memory, with the latency and the faults of a network before and after every step."""

import asyncio
import random
from collections.abc import Callable, Mapping

from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

from simulation import plan
from simulation.faults import Injector
from simulation.loop import LIFE, Life, never
from simulation.trace import Trace

_READS = frozenset({"find", "find_one", "aggregate", "count_documents", "distinct", "command"})
_ANSWER, _NEXT = ":answer", ":next"


class DatabaseSteps:
    """What happens around each step of a process at a database: time passes, or a fault happens."""

    def __init__(self, seed: int, injector: Injector, trace: Trace, crash: Callable[[Life], None]) -> None:
        self._injector = injector
        self._trace = trace
        self._crash = crash
        self._chances: Mapping[str, random.Random] = {
            process: random.Random(f"{seed}/latency/{process}") for process in plan.PROCESSES
        }
        self._away: dict[str, float] = {}

    async def step(self, operation: str, collection: str) -> None:
        """Take part in a step of the process that runs: a request, its answer, or a moment within a bulk of writes."""
        life = LIFE.get()
        if life is None:
            return
        if life.ended:
            await never()
        if operation.endswith(_ANSWER):
            await self._answer(life, operation.removesuffix(_ANSWER), collection)
        else:
            await self._request(life, operation.removesuffix(_NEXT), collection)

    async def _request(self, life: Life, operation: str, collection: str) -> None:
        """Let the request travel. Raises an error of the driver where a fault keeps it from arriving."""
        self._trace.note(f"{operation} {collection}")
        await asyncio.sleep(self._latency(life.process))
        places = (plan.BEFORE_STEP,) if operation in _READS else (plan.BEFORE_STEP, plan.BEFORE_WRITE)
        if self._injector.chance(plan.CRASH, life.process, *places):
            self._crash(life)
            await never()
        now = asyncio.get_running_loop().time()
        if fault := self._injector.chance(plan.REFUSE, life.process):
            self._away[life.process] = now + fault.seconds
            raise ServerSelectionTimeoutError("no server could be found")
        if self._away.get(life.process, 0) > now:
            raise ServerSelectionTimeoutError("no server can be found yet")

    async def _answer(self, life: Life, operation: str, collection: str) -> None:
        """Let the answer travel. Raises an error of the driver where a fault loses it."""
        places = (plan.AFTER_STEP,) if operation in _READS else (plan.AFTER_STEP, plan.AFTER_WRITE)
        if self._injector.chance(plan.CRASH, life.process, *places):
            self._crash(life)
            await never()
        if self._injector.chance(plan.LOSE_ANSWER, life.process):
            raise AutoReconnect(f"the connection was lost before {operation} of {collection} was answered")

    def _latency(self, process: str) -> float:
        chance = self._chances[process]
        return chance.uniform(0.0005, 0.006) if chance.random() < 0.98 else chance.uniform(0.05, 0.5)

"""The databases of a world: in memory, with the latency and the faults of a network before and after every step."""

import asyncio
import random
from collections.abc import Callable, Mapping

from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

from simulation import plan
from simulation.faults import Injector, Reach, pass_through
from simulation.loop import LIFE, Life, never
from simulation.trace import Trace

_READS = frozenset({"find", "find_one", "aggregate", "count_documents", "distinct", "command"})
_ANSWER, _NEXT = ":answer", ":next"
_BEFORE_READ = (plan.BEFORE_STEP,)
_BEFORE_WRITE = (plan.BEFORE_STEP, plan.BEFORE_WRITE, plan.DURING_WRITE)
_AFTER_READ = (plan.AFTER_STEP,)
_AFTER_UNCONFIRMED_READ = (plan.AFTER_STEP, plan.AFTER_UNCONFIRMED_READ)
_AFTER_WRITE = (plan.AFTER_STEP, plan.AFTER_WRITE)


def _travel(seconds: float) -> "asyncio.Future[None]":
    """Return a future that is done after these seconds: `asyncio.sleep` without a coroutine for each step."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[None] = loop.create_future()
    loop.call_later(seconds, _arrive, arrived)
    return arrived


def _arrive(arrived: "asyncio.Future[None]") -> None:
    if not arrived.done():
        arrived.set_result(None)


class DatabaseSteps:
    """What happens around each step of a process at a database: time passes, or a fault happens."""

    def __init__(
        self, seed: int, injector: Injector, trace: Trace, reach: Reach, has_unconfirmed: Callable[[str, str], bool]
    ) -> None:
        self._injector = injector
        self._trace = trace
        self._reach = reach
        self._has_unconfirmed = has_unconfirmed
        self._chances: Mapping[str, random.Random] = {
            process: random.Random(f"{seed}/latency/{process}") for process in plan.PROCESSES
        }
        self._slow = plan.focus_of(seed).slow
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
        await _travel(self._latency(life.process))
        await pass_through(life, self._reach(life, *(_BEFORE_READ if operation in _READS else _BEFORE_WRITE)))
        now = asyncio.get_running_loop().time()
        if fault := self._injector.chance(plan.REFUSE, life.process):
            self._away[life.process] = now + fault.seconds
            raise ServerSelectionTimeoutError("no server could be found")
        if self._away.get(life.process, 0) > now:
            raise ServerSelectionTimeoutError("no server can be found yet")

    async def _answer(self, life: Life, operation: str, collection: str) -> None:
        """Let the answer travel. Raises an error of the driver where a fault loses it."""
        places: tuple[str, ...] = _AFTER_WRITE
        if operation in _READS:
            places = _AFTER_UNCONFIRMED_READ if self._has_unconfirmed(life.process, collection) else _AFTER_READ
        await pass_through(life, self._reach(life, *places))
        if self._injector.chance(plan.LOSE_ANSWER, life.process):
            raise AutoReconnect(f"the connection was lost before {operation} of {collection} was answered")

    def _latency(self, process: str) -> float:
        chance = self._chances[process]
        return chance.uniform(0.0005, 0.006) if chance.random() >= self._slow else chance.uniform(0.05, 0.5)

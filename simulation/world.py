"""One world: it runs a plan to its end and judges the books."""

import asyncio
import gc
import hashlib
import random
import traceback
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from pymongo import IndexModel
from pymongo.errors import PyMongoError

import inventory_service.schema
import order_service.schema
import payment_service.schema
import provisioning_service.schema
from inventory_service import hold_limits
from shared.bus import Envelope
from shared.bus.failures import ERROR_MESSAGE, ERROR_TYPE
from shared.database import Document, is_transient
from shared.errors import BusUnavailableError, DatabaseUnavailableError, TransientError
from shared.memory_database import MemoryDatabase
from shared.pausing.records import PauseRecords
from shared.schema import CollectionSchema, prepare
from shared.services import SERVICES
from simulation import books, plan
from simulation.broker import SimulatedBroker
from simulation.coverage import Met, observed
from simulation.database import DatabaseSteps
from simulation.entropy import BEGINNING, seeded
from simulation.faults import Injector
from simulation.logs import logging_to
from simulation.loop import Life, SimulatedLoop, StuckError
from simulation.operators import Operators
from simulation.people import Person, Shop, UnexpectedAnswerError, live_through, open_shop
from simulation.plan import PROCESSES, Fault, Plan
from simulation.processes import SimulatedProcess, applications, patched
from simulation.provider import ProviderSite
from simulation.trace import Trace

FAULTS_UNTIL = 32.0
"""When faults stop, in virtual seconds."""
SETTLED_WITHIN = 300.0
"""How long everything may take to settle after that; the retry ladder alone takes more than two minutes."""
REPLAYS = 3
"""How often dead letters are replayed at the end; what is one after that is a finding."""
_LOOK_EVERY = 2.0
_WRITTEN_AFTER = 0.0005
"""From the arrival of a write to an election: less than a majority needs to confirm it."""
_PAUSE = 0.5
_PATIENCE = timedelta(minutes=15)
"""Far beyond all that the audit waits for: what is not done at the end counts as overdue."""

KEPT_SECONDS, _EXPIRE_EVERY = 12.0, 3.0
"""How long lists of holds are kept, longer than any hold as in production, and how often what has expired is deleted.
"""

_INBOXES = tuple(SERVICES[service].inbox for service in plan.SERVICES)


def _expiring(schema: CollectionSchema) -> CollectionSchema:
    """Return a schema whose documents expire within the time of a run."""
    indexes = [
        IndexModel(list(index.document["key"].items()), name=index.document["name"], expireAfterSeconds=KEPT_SECONDS)
        for index in schema.indexes
    ]
    return replace(schema, indexes=indexes)


SCHEMAS = {
    "order": order_service.schema.SCHEMA,
    "inventory": {**inventory_service.schema.SCHEMA, hold_limits.COLLECTION: _expiring(hold_limits.SCHEMA)},
    "payment": payment_service.schema.SCHEMA,
    "provisioning": provisioning_service.schema.SCHEMA,
}


@dataclass(frozen=True)
class Outcome:
    """What has become of a plan."""

    plan: Plan
    sha256: str
    violations: tuple[str, ...]
    trace: Sequence[str]
    happened: Sequence[Fault]
    crashes: int
    virtual_seconds: float
    met: Met = field(default_factory=Met)
    statuses: Mapping[str, int] = field(default_factory=dict)


def run(of: Plan, until: int | None = None) -> Outcome:
    """Run a plan; at the step with the number `until`, stop in the debugger."""
    applications()  # made before time and chance are replaced
    with _garbage_kept():
        return _run(of, until)


def _run(of: Plan, until: int | None) -> Outcome:
    """Run a plan; nothing but the outcome refers to its world any more afterwards."""
    loop = SimulatedLoop()
    trace = Trace(loop.time, until)
    try:
        with seeded(of.seed, loop), patched(), logging_to(trace) as logs, observed(met := Met()):
            world = World(of, loop, trace, met)
            violations = _judged(world, loop)
            outcome = world.outcome([*world.defects(), *logs.defects, *violations])
            loop.bury()
        return outcome
    finally:
        loop.close()


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Collect no garbage until the context ends: what is collected may run code, and when is up to chance.

    Then only what has come up meanwhile is collected. To look through all that was there before takes longer. What of
    it has never begun or ended is no mistake: it belonged to processes that were killed.
    """
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
        gc.unfreeze()
        gc.enable()


def _judged(world: "World", loop: SimulatedLoop) -> list[str]:
    """Run a world to its end; return what is violated then, or why there is no end."""
    try:
        return loop.run_until_complete(world.run())
    except StuckError as error:
        return [f"stuck: {error}"]
    except Exception as error:  # noqa: BLE001 - whatever fails here must name its seed
        where = traceback.extract_tb(error.__traceback__)[-1]
        return [f"the simulation failed: {error!r} in {where.filename}, line {where.lineno}"]


class World:
    """Everything that there is while a plan runs."""

    def __init__(self, of: Plan, loop: SimulatedLoop, trace: Trace, met: Met) -> None:
        self._plan = of
        self._loop = loop
        self._trace = trace
        self._injector = Injector(of.faults, trace, loop.time)
        self._broker = SimulatedBroker(self._injector, trace)
        self._site = ProviderSite(self._injector, trace)
        self._met = met
        trace.world = self
        self._shop = Shop()
        self._stories: list[asyncio.Task[Any]] = []
        self._crashes = 0
        self._statuses: Counter[str] = Counter()
        self._replays_left = REPLAYS
        self._operators = Operators()
        self._poisoned: list[Envelope] = []
        """The dead letters that only a defect of a service explains."""
        self._lags = random.Random(f"{of.seed}/lag")
        self._steps = DatabaseSteps(of.seed, self._injector, trace, self._reach, self._has_unconfirmed)
        self._databases = {
            service: MemoryDatabase(service, clock=self._now, replication_lag=self._lag) for service in plan.SERVICES
        }
        self._processes = {name: self._process(name) for name in PROCESSES}
        self._by_service = {
            service: [self._processes[f"{service}-{number}"] for number in (1, 2)] for service in plan.SERVICES
        }

    def _process(self, name: str) -> SimulatedProcess:
        return SimulatedProcess(
            name,
            self._databases[name.partition("-")[0]].connected(self._steps.step).as_database(),
            self._broker,
            self._site,
            self._injector,
            self._trace,
            self._met,
            self._reach,
            self._plan,
        )

    async def run(self) -> list[str]:
        """Run the plan and return the violated invariants."""
        await self._begin()
        self._stories = [
            asyncio.create_task(live_through(story, self._person(f"client-{story.number}"), self._shop))
            for story in self._plan.stories
        ]
        for fault in self._plan.faults:
            if fault.kind in self._timed and not fault.place:
                self._loop.call_at(self._loop.time() + fault.at, self._happen, fault)
        await asyncio.sleep(FAULTS_UNTIL)
        self._end_faults()
        return await self._settle()

    def documents(self, service: str, collection: str) -> list[Document]:
        """Return all documents of a collection as they are now."""
        return self._databases[service].documents(collection)

    def outcome(self, violations: Sequence[str]) -> Outcome:
        """Return what has become of the plan."""
        return Outcome(
            self._plan,
            self._trace.sha256,
            tuple(violations),
            self._trace.lines,
            self._injector.happened,
            sum(process.crashes for process in self._processes.values()),
            self._loop.time(),
            self._met,
            self._statuses,
        )

    async def _begin(self) -> None:
        for service, schemas in SCHEMAS.items():
            await prepare(self._databases[service].as_database(), schemas)
        self._delete_expired()
        for process in self._processes.values():
            process.start()
        self._shop = await open_shop(self._person("operator"))

    def _delete_expired(self) -> None:
        """Delete what has expired, from now on again and again."""
        if deleted := self._databases["inventory"].delete_expired():
            self._trace.note(f"{deleted} documents have expired", process="inventory")
        self._loop.call_later(_EXPIRE_EVERY, self._delete_expired)

    def _person(self, name: str) -> Person:
        return Person(name, self._plan.seed, self._by_service, self._trace)

    def _lag(self) -> float:
        return self._lags.uniform(0.001, 0.02)

    # --- Faults at their time. ---

    @property
    def _timed(self) -> Mapping[str, Any]:
        return {
            plan.STALL: self._stall,
            plan.JUMP: self._jump,
            plan.LOSE_MESSAGES: self._lose_messages,
            plan.PAUSE: self._pause,
            plan.REPLAY: self._replay,
            plan.ELECT: self._elect,
        }

    def _happen(self, fault: Fault) -> None:
        self._injector.note(fault)
        self._timed[fault.kind](fault)

    def _stall(self, fault: Fault) -> None:
        life = self._processes[fault.target].life
        if life is not None:
            self._stall_life(life, fault)

    def _stall_life(self, life: Life, fault: Fault) -> None:
        if not life.stalled:
            life.stalled = True
            self._loop.call_later(fault.seconds, self._loop.go_on, life, context=Context())

    def _jump(self, fault: Fault) -> None:
        self._processes[fault.target].jump(fault.seconds)

    def _lose_messages(self, _fault: Fault) -> None:
        self._broker.lose_data()

    def _elect(self, fault: Fault) -> None:
        taken_back = self._databases[fault.target].elect(unknown=fault.unknown)
        self._trace.note(f"the new primary takes back {taken_back} changes", process=fault.target)

    def _pause(self, fault: Fault) -> None:
        self._loop.create_task(self._pause_for_a_while(fault.target, fault.seconds))

    async def _pause_for_a_while(self, service: str, seconds: float) -> None:
        records = PauseRecords(self._databases[service].as_database())
        name = SERVICES[service].name
        await _until_done(lambda: records.begin(name, self._now(), by="operator", reason="a test", until=None))
        await asyncio.sleep(seconds)
        await _until_done(lambda: records.end(name, self._now()))

    def _replay(self, _fault: Fault) -> None:
        self._replay_dead_letters()

    def _replay_dead_letters(self) -> int:
        """Send every dead letter to its inbox again, as an operator does, if need be after an edit."""
        letters = self._broker.dead_letters()
        originals = self._broker.originals
        self._poisoned += (each for each in letters if is_poisoned(each) and each.message_id not in originals)
        for letter in letters:
            how = "edit and replay" if letter.message_id in originals else "replay"
            self._trace.note(f"{how} {letter.type}({letter.correlation_id[:6]})", process="operator")
            self._broker.publish(self._operators.replay(letter, originals, self._now()))
        return len(letters)

    # --- Faults at a place. ---

    def _reach(self, life: Life, *places: str) -> bool:
        """Let a fault hit a process at the places that it has reached; return whether one did."""
        fault = self._injector.strike(life.process, *places)
        if fault is None:
            return False
        self._strikes[fault.kind](life, fault)
        return True

    @property
    def _strikes(self) -> Mapping[str, Callable[[Life, Fault], None]]:
        return {
            plan.CRASH: self._crash,
            plan.STALL: self._stall_life,
            plan.ELECT: self._elect_at_place,
            plan.POWER_CUT: self._cut_power,
            plan.NODE_LOSS: self._lose_node,
        }

    def _crash(self, life: Life, _fault: Fault) -> None:
        process = self._processes[life.process]
        if process.life is life:
            process.crash()

    def _elect_at_place(self, _life: Life, fault: Fault) -> None:
        self._at_place(fault, lambda: self._elect(fault))

    def _lose_node(self, life: Life, fault: Fault) -> None:
        """Lose the machine that runs the primary and the other process of the service."""
        service = life.process.partition("-")[0]
        (other,) = (process for process in self._by_service[service] if process.name != life.process)

        def lose() -> None:
            other.crash()
            self._elect(replace(fault, target=service))

        self._at_place(fault, lose)

    def _at_place(self, fault: Fault, act: Callable[[], None]) -> None:
        """Act at once, or as soon as the write has changed the primary, and before a majority confirms that."""
        after = _WRITTEN_AFTER if fault.place == plan.DURING_WRITE else 0.0
        self._loop.call_later(after, act, context=Context())

    def _cut_power(self, _life: Life, fault: Fault) -> None:
        """End both processes of a service, and let the broker lose its messages."""
        for process in self._by_service[fault.target]:
            process.crash()
        self._broker.lose_data()

    def _has_unconfirmed(self, process: str, collection: str) -> bool:
        return self._databases[process.partition("-")[0]].has_unconfirmed(collection)

    # --- The end. ---

    def _end_faults(self) -> None:
        self._injector.stop()
        for process in self._processes.values():
            process.jump(0.0)
            if process.life is not None and process.life.stalled:
                self._loop.go_on(process.life)
        if self._has_lost_messages:
            self._broker.lose_data()

    async def _settle(self) -> list[str]:
        deadline = self._loop.time() + SETTLED_WITHIN
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            found = books.read_books(self._databases)
            left = [*self._unfinished(), *found.unsettled(self._shop)]
            if not left or self._loop.time() > deadline:
                break
        self._statuses = Counter(str(order["status"]) for order in found.orders.values())
        self._trace.note(f"the books at the end: {hashlib.sha256(repr(found).encode()).hexdigest()}")
        if left:
            return [f"not settled: {each}" for each in left]
        news = books.News(self._broker.published, is_complete=not self._has_lost_messages)
        return books.judge(found, self._shop, self._site, self._now() + _PATIENCE, news)

    def defects(self) -> Iterator[str]:
        """Yield what must not happen whatever the books say at the end."""
        yield from self._failed_stories()
        yield from self._dead_letters()
        for process in self._processes.values():
            yield from process.defects
        yield from self._loop.failures(apart_from=self._stories)

    @property
    def _has_lost_messages(self) -> bool:
        return any(fault.kind in (plan.LOSE_MESSAGES, plan.POWER_CUT) for fault in self._injector.happened)

    def _unfinished(self) -> Iterator[str]:
        if self._replays_left and self._replay_dead_letters():
            self._replays_left -= 1
        if running := sum(not story.done() for story in self._stories):
            yield f"{running} clients still wait for answers"
        if waiting := self._broker.depth(_INBOXES):
            yield f"{waiting} messages are on their way"

    def _dead_letters(self) -> Iterator[str]:
        for letter in self._poisoned:
            yield f"poisoned: {_about(letter)}"
        for letter in self._broker.dead_letters():
            yield f"dead letter: {_about(letter)}"

    def _failed_stories(self) -> Iterator[str]:
        for story in self._stories:
            if story.done() and (error := story.exception()) is not None:
                known = isinstance(error, UnexpectedAnswerError)
                yield f"unexpected answer: {error}" if known else f"a client failed: {error!r}"

    def _now(self) -> datetime:
        return BEGINNING + timedelta(seconds=self._loop.time())


async def _until_done(call: Callable[[], Awaitable[Any]]) -> None:
    """Do what an operator does, again while the database is away."""
    while True:
        try:
            await call()
        except PyMongoError as error:
            if not is_transient(error):
                raise
            await asyncio.sleep(_PAUSE)
        else:
            return


def is_poisoned(letter: Envelope) -> bool:
    """Return whether a handler has failed at the message for good, though nothing that it needs was away."""
    error = letter.headers.get(ERROR_TYPE)
    return error is not None and error not in _TRANSIENT  # without an error, it was delivered too often


_TRANSIENT = {error.__name__ for error in (TransientError, DatabaseUnavailableError, BusUnavailableError)}


def _about(letter: Envelope) -> str:
    reason = letter.headers.get(ERROR_TYPE) or letter.headers.get("x-first-death-reason")
    text = str(letter.headers.get(ERROR_MESSAGE, ""))[:200]
    return f"{letter.type} of order {letter.correlation_id}: {reason} {text}".rstrip()

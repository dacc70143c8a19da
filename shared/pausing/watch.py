"""Follows the pauses of the own inbox in every process of a service, and tells the order service about them.

The record is read every second, which costs messages nothing. While MongoDB is away, the process keeps its last state.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta

import pymongo
import structlog

from shared.background import ErrorLog, run_periodically
from shared.bus.metrics import CONSUMER_PAUSED
from shared.bus.publisher import Publisher
from shared.clock import Clock, utc_now
from shared.pausing.pause import Pause, PauseShown, running
from shared.pausing.records import PauseRecord, PauseRecords
from shared.services import ANSWERING, Service

LOOK_SECONDS = 1.0
"""How long a change may stay unknown to a process, besides the time to read it."""
READ_SECONDS = 2.0
ANNOUNCE_EVERY = timedelta(minutes=1)
"""How often a pause is told again: the broker may have lost what it confirmed."""
ANNOUNCED_FOR = timedelta(hours=1)
"""How long after its end it is still told."""

FOLLOW, ANNOUNCE = "follow", "announce"

_log = structlog.get_logger(__name__)


class PauseWatch:
    """Pauses and resumes the consumer of this process as the record says."""

    def __init__(
        self,
        service: Service,
        records: PauseRecords,
        set_paused: Callable[[bool], Awaitable[None]],
        publisher: Publisher,
        clock: Clock = utc_now,
    ) -> None:
        self.known = asyncio.Event()
        """Set once the record was read: a process that starts during a pause must not consume before."""
        self._service = service
        self._records = records
        self._set_paused = set_paused
        self._publisher = publisher
        self._clock = clock
        self._pause: Pause | None = None
        self._followed: Pause | None = None
        self._errors = {name: ErrorLog(f"{name} pauses") for name in (FOLLOW, ANNOUNCE)}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        CONSUMER_PAUSED.labels(service.inbox).set(0)

    @property
    def shown(self) -> PauseShown | None:
        """The pause that is running, as far as this process knows."""
        return PauseShown(self._pause.since, self._pause.until) if self._pause else None

    async def run(self) -> None:
        """Follow the record until cancelled."""
        try:
            await run_periodically(self.look, every=LOOK_SECONDS, name="watching for pauses")
        finally:
            for task in self._tasks.values():
                task.cancel()

    async def look(self) -> None:
        """Read the record once, and begin what follows from it: the broker may need its time for each."""
        with pymongo.timeout(READ_SECONDS):
            record = await self._records.find(self._service.name)
        now = self._clock()
        self._pause = running(record.pauses, now) if record else None
        CONSUMER_PAUSED.labels(self._service.inbox).set(float(self._pause is not None))
        if self._pause != self._followed or not self.known.is_set():
            self._begin(FOLLOW, self._follow)
        if record is not None and self._service in ANSWERING and must_announce(record, now):
            self._begin(ANNOUNCE, lambda: self._announce(record, now))

    def _begin(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Begin some work unless it is under way; the next look begins it again if it fails."""
        if name in self._tasks and not self._tasks[name].done():
            return
        task = self._tasks[name] = asyncio.create_task(work(), name=f"{name} pauses")
        task.add_done_callback(lambda done: self._ended(name, done))

    def _ended(self, name: str, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._errors[name].failed(error)
        else:
            self._errors[name].succeeded()

    async def _follow(self) -> None:
        before, pause = self._followed, self._pause
        await self._set_paused(pause is not None)
        self._followed = pause
        self.known.set()
        if pause is None and before is not None:
            _log.warning("consumption resumed", inbox=self._service.inbox, paused_since=before.since)
        elif pause is not None:
            _log.warning("consumption paused", inbox=self._service.inbox, since=pause.since, until=pause.until)

    async def _announce(self, record: PauseRecord, now: datetime) -> None:
        """Tell the order service; without the broker that waits, as do all other messages."""
        if self._publisher.can_publish:
            await self._publisher.send([record.message()])
            await self._records.note_announced(record, now)


def must_announce(record: PauseRecord, now: datetime) -> bool:
    """Return whether the order service must be told of a record now: a new one at once, then every minute. Pure."""
    if record.announced_at is None:
        return True
    end = record.pauses[-1].end if record.pauses else None
    over = end is not None and now - end > ANNOUNCED_FOR
    return not over and now - record.announced_at >= ANNOUNCE_EVERY

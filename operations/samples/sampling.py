"""Takes samples of the stack. Several processes may do so at once; each minute is recorded once."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import pymongo
import structlog
from pymongo.errors import PyMongoError

from operations.dead_letters.schema import LETTERS
from operations.dead_letters.status import DEAD
from operations.samples.counting import MOST_FOLLOWED, Counted, count_orders, open_before
from operations.samples.records import SampleRecords, SampleState
from operations.samples.sample import (
    MARGIN,
    MINUTE,
    Levels,
    QueueAge,
    Window,
    next_window,
    oldest_queue,
    sample_of,
    samples_of,
)
from shared.background import jitter, run_periodically
from shared.clock import Clock, utc_now
from shared.database import Collection, Database
from shared.failpoints import Failpoint, nothing_fails
from shared.topology import INBOXES

LOOK_SECONDS = 15.0

COUNT_SECONDS = 20.0
"""The time limit for a window. One that takes longer is left out, so the next ones do not pile up behind it."""

QueueAges = Callable[[], Mapping[str, QueueAge]]
"""Returns for how long each queue has had messages; nothing if the broker did not answer lately."""

_log = structlog.get_logger(__name__)


class Sampler:
    """Takes the samples of one stack."""

    def __init__(
        self,
        database: Database,
        orders: Collection,
        queue_ages: QueueAges,
        clock: Clock = utc_now,
        failpoint: Failpoint = nothing_fails,
    ) -> None:
        """Sample the orders of the order service, and the rest from the database of operations."""
        self._records = SampleRecords(database, failpoint)
        self._letters = database[LETTERS]
        self._orders = orders
        self._queue_ages = queue_ages
        self._clock = clock

    async def run(self) -> None:
        """Take samples until cancelled; processes that began together do not stay in step."""
        await run_periodically(self.look, every=lambda: jitter(LOOK_SECONDS), name="taking samples")

    async def look(self) -> bool:
        """Record the minutes that are over, if no process has; return whether there are more."""
        state = await self._records.state()
        window = next_window(state.until if state else None, self._clock())
        if window is None:
            return False
        if state is not None:
            await self._records.copy(state)
        followed, incomplete_until = await self._followed(state, window)
        counted = await self._count(window, followed)
        if counted is None:
            # What ended in the window is unknown: from its end on, the orders that are open now are followed.
            incomplete_until = self._clock()
            after = SampleState(window.until, await open_before(self._orders, window.until), (), incomplete_until)
            return await self._records.move_on(state, after)
        complete = len(followed) < MOST_FOLLOWED
        levels = await self._levels(window, state)
        samples = samples_of(
            window, counted.accepted, counted.ended, levels, complete=complete, incomplete_until=incomplete_until
        )
        documents = [sample.as_document() for sample in samples]
        return await self._records.move_on(state, SampleState(window.until, counted.open, documents, incomplete_until))

    async def _followed(self, state: SampleState | None, window: Window) -> tuple[Sequence[str], datetime | None]:
        """Return the orders that were open at the beginning of a window, and until when they are not all known.

        After a gap, only those are known that are open now: of the others, nobody knows the ids.
        """
        if state is None:
            return await open_before(self._orders, window.since), None
        if state.until < window.since:
            now = self._clock()
            return await open_before(self._orders, window.since), now
        return state.open, state.incomplete_until

    async def _count(self, window: Window, followed: Sequence[str]) -> Counted | None:
        """Return the orders of a window; None if there are too many to count in time."""
        try:
            with pymongo.timeout(COUNT_SECONDS):
                return await count_orders(self._orders, window, followed)
        except PyMongoError as error:
            if not error.timeout:
                raise
            _log.warning("a window has too many orders to count in time", since=window.since, until=window.until)
            return None

    async def _levels(self, window: Window, state: SampleState | None) -> Levels:
        """Return what is now; nothing for a window of the past."""
        if self._clock() - window.until > MARGIN + MINUTE:
            return Levels()
        letters = await self._letters.count_documents({"status": DEAD})
        ages = {name: age for name, age in self._queue_ages().items() if name in INBOXES}
        before = sample_of(state.newest[-1]) if state and state.newest else None
        return oldest_queue(ages, before, window.until)._replace(dead_letters=letters)

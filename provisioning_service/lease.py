"""What a worker holds while it carries a job: the claim on the job and, until it has bought, the package's lock.

Both are leases that are renewed while the work goes on. Whoever was away for longer than a lease (stopped, starved,
cut off) finds out before it buys: by the clock right before the request leaves, by the token when it asks the database.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar

import structlog

from provisioning_service.job import Job
from provisioning_service.jobs import ClaimLostError, Jobs
from provisioning_service.locks import Lock, Locks
from provisioning_service.outbox import Outbox
from shared import database
from shared.bus.backoff import Backoff
from shared.clock import Clock

RENEWALS_PER_LEASE = 3
RELEASE_TIMEOUT_SECONDS = 1.0

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class LeaseLostError(Exception):
    """The lock, or the claim, is not surely held any more: nothing may be bought."""


class JobLease:
    """One claimed job in the hands of this process; as a context it renews the leases, and releases the lock."""

    def __init__(
        self,
        job: Job,
        lock: Lock | None,
        *,
        jobs: Jobs,
        locks: Locks,
        outbox: Outbox,
        clock: Clock,
        lease: timedelta,
    ) -> None:
        self.job = job
        self._lock = lock
        self._jobs = jobs
        self._locks = locks
        self._outbox = outbox
        self._clock = clock
        self._lease = lease
        self._until = clock() + lease
        self._lost = False
        self._ended = False
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to renew."""
        self._renewing = asyncio.create_task(self._renew(), name=f"renew {self.job.order_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the renewal; give back what is still held, once: where that fails, the leases run out by themselves.

        A crash, also a simulated one, gives nothing back.
        """
        self._ended = True
        while self._renewing is not None and not self._renewing.done():
            # Once may not be enough: the driver lets a cancellation go by that meets it in the middle of a reply.
            self._renewing.cancel()
            await asyncio.wait({self._renewing}, timeout=0.1)
        if error is not None and not isinstance(error, Exception | asyncio.CancelledError):
            return
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_SECONDS):
                if error is not None:
                    await self._jobs.requeue(self.job, self._clock())
                if (lock := self._take_lock()) is not None:
                    await self._locks.release(lock)
        except Exception as failure:  # noqa: BLE001 - nothing may keep a process from its end
            _log.warning("a job is not given back", order_id=self.job.order_id, error=str(failure)[:200])

    def ensure_held(self) -> None:
        """Raise LeaseLostError unless everything is still held for sure; asks nobody but the clock."""
        if self._lost or self._clock() >= self._until:
            raise LeaseLostError(f"the leases of order {self.job.order_id} are over")

    async def report_progress(self) -> None:
        """Tell those in line that the holder gets on; raises LeaseLostError if the lock is held by somebody else."""
        lock, now = self._lock, self._clock()
        if lock is not None and not await retry_until_available(
            lambda: self._locks.renew(lock, now, self._lease, progress=True)
        ):
            self._lost = True
        self.ensure_held()

    async def record(self, after: Job, *, unless_cancelled: bool = False) -> Job:
        """Store the job's step, however long the database is away, and have what it says published.

        Raises ClaimLostError if another worker has taken the job over.
        """
        before = self.job
        self.job = await retry_until_available(
            lambda: self._jobs.record(before, after, unless_cancelled=unless_cancelled)
        )
        self._outbox.post(self.job)
        return self.job

    async def release_lock(self) -> None:
        """Free the package for the next in line."""
        if (lock := self._take_lock()) is not None:
            await retry_until_available(lambda: self._locks.release(lock))

    def _take_lock(self) -> Lock | None:
        lock, self._lock = self._lock, None
        return lock

    async def _renew(self) -> None:
        pause = self._lease.total_seconds() / RENEWALS_PER_LEASE
        while not self._lost and not self._ended:
            await asyncio.sleep(pause)
            now = self._clock()
            try:
                if not await self._renew_both():
                    self._lost = True
                    _log.warning("lease lost", order_id=self.job.order_id)
                    return
            except Exception as error:  # noqa: BLE001 - the leases stand until they run out; the next renewal may succeed
                _log.warning("leases could not be renewed", order_id=self.job.order_id, error=str(error)[:200])
            else:
                self._until = now + self._lease

    async def _renew_both(self) -> bool:
        now, lock = self._clock(), self._lock
        if lock is not None and not await self._locks.renew(lock, now, self._lease) and self._lock is not None:
            return False
        return await self._jobs.renew(self.job, now + self._lease) or self.job.ended


async def retry_until_available(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the database answers; what has been done at the provider must not be forgotten for an outage."""
    backoff = Backoff()
    while True:
        try:
            return await call()
        except ClaimLostError:
            raise
        except Exception as error:
            if not database.is_passing(error):
                raise
            _log.warning("a job waits for the database", error=str(error)[:200])
            await asyncio.sleep(backoff.next())

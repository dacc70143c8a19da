"""The leases of a worker that runs a job: the claim on the job and, until an address is bought, the package's lock.

Both are renewed while the work continues. A worker that was away for longer than a lease (stopped, starved, cut off)
finds out before it buys: by the clock just before the request is sent, and by the fencing token in the database.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar

import structlog

from provisioning_service.job import Job
from provisioning_service.jobs import JobClaimLostError, Jobs
from provisioning_service.locks import Lock, Locks
from provisioning_service.outbox import Outbox
from shared import database
from shared.bus.backoff import Backoff
from shared.clock import Clock
from shared.errors import OwnershipLostError

RENEWALS_PER_LEASE = 3
RELEASE_TIMEOUT_SECONDS = 1.0

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class JobLeaseLostError(OwnershipLostError):
    """The lock or the claim may be lost: nothing may be bought."""


class JobLease:
    """The leases of one claimed job; the context manager renews them and releases the lock at the end."""

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
        self._duration = lease
        self._until = clock() + lease
        self._lost = False
        self._ended = False
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start renewing."""
        self._renewing = asyncio.create_task(self._renew(), name=f"renew {self.job.order_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop renewing, then release the lock; after an error or a cancellation, requeue the job.

        There is one attempt: if it fails, the leases expire by themselves. After a crash, real or simulated, nothing is
        released.
        """
        self._ended = True
        while self._renewing is not None and not self._renewing.done():
            # The driver may swallow a cancellation that arrives in the middle of a reply, so repeat it.
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
        except Exception as failure:  # noqa: BLE001 - nothing may prevent a process from ending
            _log.warning("could not requeue a job", order_id=self.job.order_id, error=str(failure)[:200])

    def ensure_held(self) -> None:
        """Raise JobLeaseLostError unless the clock proves that both leases are still held."""
        if self._lost or self._clock() >= self._until:
            raise JobLeaseLostError(f"the leases of order {self.job.order_id} have expired")

    async def report_progress(self) -> None:
        """Record that the holder makes progress. Raises JobLeaseLostError if another worker holds the lock."""
        lock, now = self._lock, self._clock()
        if lock is not None and not await retry_until_available(
            lambda: self._locks.renew(lock, now, self._duration, progress=True)
        ):
            self._lost = True
        self.ensure_held()

    async def record(self, after: Job, *, unless_cancelled: bool = False) -> Job:
        """Store the job's new state, waiting out a database outage, and publish its messages.

        Raises JobClaimLostError if another worker has taken the job over.
        """
        before = self.job
        self.job = await retry_until_available(
            lambda: self._jobs.record(before, after, unless_cancelled=unless_cancelled)
        )
        self._outbox.post(self.job)
        return self.job

    async def release_lock(self) -> None:
        """Free the package for the next job in its queue."""
        if (lock := self._take_lock()) is not None:
            await retry_until_available(lambda: self._locks.release(lock))

    def _take_lock(self) -> Lock | None:
        lock, self._lock = self._lock, None
        return lock

    async def _renew(self) -> None:
        pause = self._duration.total_seconds() / RENEWALS_PER_LEASE
        while not self._lost and not self._ended:
            await asyncio.sleep(pause)
            now = self._clock()
            try:
                if not await self._renew_both():
                    self._lost = True
                    _log.warning("lease lost", order_id=self.job.order_id)
                    return
            except Exception as error:  # noqa: BLE001 - the leases last until they expire; the next renewal may succeed
                _log.warning("leases could not be renewed", order_id=self.job.order_id, error=str(error)[:200])
            else:
                self._until = now + self._duration

    async def _renew_both(self) -> bool:
        now, lock = self._clock(), self._lock
        # The lock may have been released while it was being renewed.
        if lock is not None and not await self._locks.renew(lock, now, self._duration) and self._lock is not None:
            return False
        return await self._jobs.renew(self.job, now + self._duration) or self.job.ended


async def retry_until_available(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the database answers: an outage must not lose what was done at the provider."""
    backoff = Backoff()
    while True:
        try:
            return await call()
        except JobClaimLostError:
            raise
        except Exception as error:
            if not database.is_transient(error):
                raise
            _log.warning("job is waiting for the database", error=str(error)[:200])
            await asyncio.sleep(backoff.next())

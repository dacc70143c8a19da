"""Schedules the jobs: one FIFO queue per package, and packages run in parallel.

The queues are in the database, so any number of processes may serve them; the process that claims a job runs it.
Nothing waits in memory: a waiting job is a due time in a document.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from prometheus_client import Counter, Gauge, Histogram

from provisioning_service import lifecycle
from provisioning_service.job import Job
from provisioning_service.job_runner import JobRunner
from provisioning_service.jobs import Jobs
from provisioning_service.lease import JobLease
from provisioning_service.lifecycle import Timeouts
from provisioning_service.locks import Lock, Locks
from provisioning_service.outbox import Outbox
from shared.background import run_periodically
from shared.clock import Clock
from shared.slow_waits import LOGGED_AT_SECONDS

POLL_SECONDS = 0.5
"""The interval between two polls for due jobs; events of this process wake the scheduler at once."""

WAIT_CHECK_SECONDS = 2.5
"""The interval between two looks for waits that have become long."""

_PAGE = 200
_log = structlog.get_logger(__name__)
_waits = Histogram(
    "provisioning_lock_wait_seconds",
    "Time from joining the queue of a package until its lock was acquired",
    buckets=(0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600),
)
_lock_timeouts = Counter(
    "provisioning_lock_waits_failed_total", "Waits for a package that took too long without progress of its holder"
)
_running_jobs = Gauge("provisioning_jobs_in_hand", "Jobs that this process is working on")


class Scheduler:
    """The scheduler of one process, which runs at most `max_concurrent` jobs at the same time."""

    def __init__(
        self,
        jobs: Jobs,
        locks: Locks,
        runner: JobRunner,
        outbox: Outbox,
        timeouts: Timeouts,
        *,
        clock: Clock,
        max_concurrent: int,
    ) -> None:
        self._jobs = jobs
        self._locks = locks
        self._runner = runner
        self._outbox = outbox
        self._timeouts = timeouts
        self._clock = clock
        self._max_concurrent = max_concurrent
        self._running: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._waits_checked_at: datetime | None = None
        self._logged_waits: dict[str, tuple[str, int]] = {}

    def wake(self) -> None:
        """Poll at once, because a job has arrived or a package is free."""
        self._woken.set()

    async def run(self) -> None:
        """Run due jobs until cancelled, then stop those that are running."""
        try:
            await run_periodically(self.start_due_jobs, every=POLL_SECONDS, wake=self._woken, name="starting due jobs")
        finally:
            await self._stop_running()

    async def start_due_jobs(self) -> None:
        """Start the due jobs for which there is capacity, and count the waits for a lock that took too long."""
        held = await self._locks.held()
        now = self._clock()
        busy = [lock for lock in held if lock.expires_at > now]
        for job in await self._jobs.queue_heads(now, [lock.key for lock in busy], self._capacity):
            await self._start_next_in_queue(job)
        for job in await self._jobs.due_without_lock(now, self._capacity) if self._capacity else ():
            if (claimed := await self._jobs.claim(job, self._clock(), self._timeouts.lease)) is not None:
                self._start(claimed, None)
        for lock in busy:
            if now - lock.progress_at >= self._timeouts.lock_wait:
                await self._count_lock_timeouts(lock)
        await self._log_long_waits([lock.key for lock in busy], now)

    async def wait_until_idle(self) -> None:
        """Wait until no job is running."""
        while self._running:
            await asyncio.wait(self._running)

    async def _stop_running(self) -> None:
        """Cancel the running jobs and wait for them, even if cancelled again: requeuing them takes a moment."""
        for task in self._running:
            task.cancel()
        while self._running:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(self._running)

    @property
    def _capacity(self) -> int:
        return max(self._max_concurrent - len(self._running), 0)

    async def _start_next_in_queue(self, job: Job) -> None:
        if not self._capacity or job.lock_key is None:
            return
        now = self._clock()
        lock = await self._locks.acquire(job.lock_key, job.order_id, now, self._timeouts.lease)
        if lock is None:
            return
        claimed = None
        try:
            claimed = await self._jobs.claim(job, now, self._timeouts.lease)
        finally:
            if claimed is None:
                await self._locks.release(lock)
        if claimed is None:
            return
        if job.waiting_since is not None:
            _waits.observe((now - job.waiting_since).total_seconds())
        self._start(claimed, lock)

    def _start(self, job: Job, lock: Lock | None) -> None:
        lease = JobLease(
            job,
            lock,
            jobs=self._jobs,
            locks=self._locks,
            outbox=self._outbox,
            clock=self._clock,
            lease=self._timeouts.lease,
        )
        task = asyncio.create_task(self._runner.run(lease, self.wake), name=f"job {job.order_id}")
        self._running.add(task)
        _running_jobs.set(len(self._running))
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        _running_jobs.set(len(self._running))
        self.wake()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a job crashed; it is taken over when its claim expires", exc_info=error)

    async def _log_long_waits(self, busy: Sequence[str], now: datetime) -> None:
        """Log the first wait in the queue of each busy package when it has lasted 5 s, and again at 30 s."""
        checked_at = self._waits_checked_at
        if checked_at is not None and (now - checked_at).total_seconds() < WAIT_CHECK_SECONDS:
            return
        self._waits_checked_at = now
        shortest = now - timedelta(seconds=LOGGED_AT_SECONDS[0])
        logged, self._logged_waits = self._logged_waits, {}
        for package, order_id, since in await self._jobs.first_waiting(busy, shortest) if busy else ():
            waited = (now - since).total_seconds()
            reached = max(seconds for seconds in LOGGED_AT_SECONDS if waited >= seconds)
            if logged.get(package) != (order_id, reached):
                _log.warning("still waiting for a package", package=package, order_id=order_id, waited_seconds=waited)
            self._logged_waits[package] = order_id, reached

    async def _count_lock_timeouts(self, lock: Lock) -> None:
        """Count the waits in the queue of a package whose holder makes no progress."""
        now = self._clock()
        for job in await self._jobs.waiting_in_queue(lock.key, now - self._timeouts.lock_wait, _PAGE):
            if job.order_id == lock.order_id or not lifecycle.lock_wait_expired(
                job, lock.progress_at, now, self._timeouts
            ):
                continue
            after = lifecycle.lock_wait_timed_out(job, lock.order_id, lock.progress_at, now, self._timeouts)
            if await self._jobs.change(job, after):
                _lock_timeouts.inc()
                self._outbox.post(after)

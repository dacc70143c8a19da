"""Decides which job is carried when: packages serve their lines, first come first served, all of them at once.

What is due stands in the records, so that any number of processes may look at them; whoever claims a job carries it.
Nothing waits in memory: a job that has to wait is a time in a document.
"""

import asyncio
import contextlib
from datetime import timedelta

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

POLL_SECONDS = 0.5
"""Between two looks at what is due; this process's own events wake it at once."""

_PAGE = 200
_log = structlog.get_logger(__name__)
_waits = Histogram(
    "provisioning_lock_wait_seconds",
    "From joining the line of a package until the lock was got",
    buckets=(0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600),
)
_lock_timeouts = Counter("provisioning_lock_waits_failed_total", "Waits for a package that stood still for too long")
_running_jobs = Gauge("provisioning_jobs_in_hand", "Jobs that this process is working on")


class Scheduler:
    """The jobs of one process; `max_concurrent` is the most that it carries at the same time."""

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

    def wake(self) -> None:
        """Look at once: a job has come, or a package is free."""
        self._woken.set()

    async def run(self) -> None:
        """Carry jobs until cancelled; then give back what is in hand."""
        try:
            await run_periodically(self.look, every=POLL_SECONDS, wake=self._woken, name="looking for jobs")
        finally:
            await self._give_back()

    async def look(self) -> None:
        """Begin what is due, as far as there is room, and count the waits that have been too long."""
        held = await self._locks.held()
        now = self._clock()
        busy = [lock for lock in held if lock.expires_at > now]
        for job in await self._jobs.queue_heads(now, [lock.key for lock in busy], self._room):
            await self._start_next_in_queue(job)
        for job in await self._jobs.due_without_lock(now, self._room) if self._room else ():
            if (claimed := await self._jobs.claim(job, self._clock(), self._lease)) is not None:
                self._start(claimed, None)
        for lock in busy:
            if now - lock.progress_at >= self._timeouts.lock_wait:
                await self._count_lock_timeouts(lock)

    async def wait_until_idle(self) -> None:
        """Wait until nothing is in hand."""
        while self._running:
            await asyncio.wait(self._running)

    async def _give_back(self) -> None:
        """End what is in hand, also if this is cancelled again meanwhile: each job takes a moment to be given back."""
        for task in self._running:
            task.cancel()
        while self._running:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(self._running)

    @property
    def _room(self) -> int:
        return max(self._max_concurrent - len(self._running), 0)

    @property
    def _lease(self) -> timedelta:
        return self._timeouts.lease

    async def _start_next_in_queue(self, job: Job) -> None:
        if not self._room or job.lock_key is None:
            return
        now = self._clock()
        lock = await self._locks.acquire(job.lock_key, job.order_id, now, self._lease)
        if lock is None:
            return
        claimed = None
        try:
            claimed = await self._jobs.claim(job, now, self._lease)
        finally:
            if claimed is None:
                await self._locks.release(lock)
        if claimed is None:
            return
        if job.waiting_since is not None:
            _waits.observe((now - job.waiting_since).total_seconds())
        self._start(claimed, lock)

    def _start(self, job: Job, lock: Lock | None) -> None:
        held = JobLease(
            job,
            lock,
            jobs=self._jobs,
            locks=self._locks,
            outbox=self._outbox,
            clock=self._clock,
            lease=self._lease,
        )
        task = asyncio.create_task(self._runner.run(held, self.wake), name=f"job {job.order_id}")
        self._running.add(task)
        _running_jobs.set(len(self._running))
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        _running_jobs.set(len(self._running))
        self.wake()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a job could not be carried on; it is taken up when its claim is over", exc_info=error)

    async def _count_lock_timeouts(self, lock: Lock) -> None:
        """Count the waits of those who stand in a line that has not moved for too long."""
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

"""Publishes what jobs and packages owe: their records say so until the broker has confirmed it.

A step is announced as soon as it is recorded. What a crash or an outage left behind is found by a sweep, of whichever
process is there; a message that goes out twice is recognised by its sequence number.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog

from provisioning_service.job import Job
from provisioning_service.jobs import Jobs
from provisioning_service.packages import Packages
from shared.background import run_periodically
from shared.bus.publisher import Publisher
from shared.clock import Clock
from shared.contracts import BY_ROUTING_KEY
from shared.failure_points import JOB_RECORDED, FailurePoint

SWEEP_SECONDS = 2.0
"""Between two looks for what was left behind."""

LEFT_BEHIND = timedelta(seconds=5)
"""After so long a message that is still owed is taken for left behind."""

_PAGE = 200
_log = structlog.get_logger(__name__)


class Outbox:
    """The messages that one process sends on its own account; `post` never waits for the broker."""

    def __init__(self, jobs: Jobs, packages: Packages, publisher: Publisher, clock: Clock, reach: FailurePoint) -> None:
        self._jobs = jobs
        self._packages = packages
        self._publisher = publisher
        self._clock = clock
        self._reach = reach
        self._posted: dict[str, Job] = {}
        self._package_fell = False
        self._woken = asyncio.Event()

    def post(self, job: Job) -> None:
        """Have what the job owes published soon."""
        if job.outbox:
            self._posted[job.order_id] = job
            self._woken.set()

    def announce_low_packages(self) -> None:
        """Have it published soon that a package runs out of addresses."""
        self._package_fell = True
        self._woken.set()

    async def run(self) -> None:
        """Publish until cancelled; what could not be published is there for the next sweep."""
        await run_periodically(self._publish_due, every=SWEEP_SECONDS, wake=self._woken, name="publishing for jobs")

    async def publish_posted(self) -> None:
        """Publish what was posted, each job's messages in their order."""
        while self._posted:
            jobs, self._posted = list(self._posted.values()), {}
            self._reach(JOB_RECORDED)
            await self._publish(jobs)
        if self._package_fell:
            self._package_fell = False
            await self._publish_low_packages(self._clock())

    async def publish_left_behind(self) -> None:
        """Publish what was recorded a while ago and is not known to be published."""
        before = self._clock() - LEFT_BEHIND
        await self._publish(await self._jobs.unpublished(before, _PAGE))
        await self._publish_low_packages(before)

    async def _publish_due(self) -> None:
        await self.publish_posted()
        await self.publish_left_behind()

    async def _publish_low_packages(self, seen_before: datetime) -> None:
        for low in await self._packages.unannounced(seen_before):
            await self._publisher.send([low])
            await self._packages.mark_announced(low)

    async def _publish(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        await self._publisher.send(
            [BY_ROUTING_KEY[notice.routing_key].model_validate(notice.body) for job in jobs for notice in job.outbox],
            {job.order_id: job.traceparent for job in jobs},
        )
        await self._jobs.mark_published([(job.order_id, job.outbox[-1].sequence) for job in jobs if job.outbox])

"""The outbox: publishes the messages of jobs and packages, which stay in their records until the broker confirms them.

Messages are published as soon as they are recorded. A sweep of any process finds what a crash or an outage left behind.
Receivers recognise a message published twice by its sequence number.
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
from shared.contracts import BY_ROUTING_KEY, Message
from shared.failpoints import JOB_RECORDED, Failpoint

SWEEP_SECONDS = 2.0
"""The interval between two sweeps."""

OVERDUE_AFTER = timedelta(seconds=5)
"""The age at which a sweep publishes a message that is still in a record."""

_PAGE = 200
_log = structlog.get_logger(__name__)


class Outbox:
    """The outbox of one process; `post` never waits for the broker."""

    def __init__(
        self, jobs: Jobs, packages: Packages, publisher: Publisher, clock: Clock, failpoint: Failpoint
    ) -> None:
        self._jobs = jobs
        self._packages = packages
        self._publisher = publisher
        self._clock = clock
        self._failpoint = failpoint
        self._posted: dict[str, Job] = {}
        self._package_fell = False
        self._woken = asyncio.Event()

    def post(self, job: Job) -> None:
        """Publish the job's messages soon."""
        if job.outbox:
            self._posted[job.order_id] = job
            self._woken.set()

    def announce_low_packages(self) -> None:
        """Publish soon that packages have become low."""
        self._package_fell = True
        self._woken.set()

    async def run(self) -> None:
        """Publish until cancelled; the next sweep finds what could not be published."""
        await run_periodically(
            self._publish_due, every=SWEEP_SECONDS, wake=self._woken, name="publishing messages of jobs"
        )

    async def publish_posted(self) -> None:
        """Publish the posted messages, those of each job in their order; they stay posted until that succeeds."""
        while self._posted:
            jobs = list(self._posted.values())
            self._failpoint(JOB_RECORDED)
            await self._publish(jobs)
            for job in jobs:
                if self._posted[job.order_id] is job:  # it may have been posted anew
                    del self._posted[job.order_id]
        if self._package_fell:
            self._package_fell = False
            try:
                await self._publish_low_packages(self._clock())
            except BaseException:
                self._package_fell = True
                raise

    async def publish_overdue(self) -> None:
        """Publish messages that were recorded a while ago and never confirmed."""
        before = self._clock() - OVERDUE_AFTER
        await self._publish(await self._jobs.unpublished(before, _PAGE))
        await self._publish_low_packages(before)

    async def _publish_due(self) -> None:
        await self.publish_posted()
        await self.publish_overdue()

    async def _publish_low_packages(self, fell_before: datetime) -> None:
        for low in await self._packages.unannounced(fell_before):
            await self._publisher.send([low])
            await self._packages.mark_announced(low)

    async def _publish(self, jobs: Sequence[Job]) -> None:
        sendable = [(job, messages) for job in jobs if (messages := _messages(job))]
        if not sendable:
            return
        await self._publisher.send(
            [message for _, messages in sendable for message in messages],
            {job.order_id: job.traceparent for job, _ in sendable},
        )
        await self._jobs.mark_published([(job.order_id, job.outbox[-1].sequence) for job, _ in sendable])


def _messages(job: Job) -> list[Message]:
    """Return the messages of a job; none, with an error in the log, if they are not ones of the contract."""
    try:
        return [BY_ROUTING_KEY[message.routing_key].model_validate(message.body) for message in job.outbox]
    except (KeyError, ValueError):  # it holds up no other job
        _log.exception("the messages of a job cannot be sent", order_id=job.order_id)
        return []

"""What the provisioning service does with its messages: a request opens a job or another run of it, a cancel stops it.

The handlers only record what is wanted and answer from the record; the schedule does the work.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from provisioning_service import lifecycle
from provisioning_service.job import Job, State
from provisioning_service.jobs import Jobs
from shared import tracing
from shared.bus import Handlers
from shared.clock import Clock
from shared.contracts import CancelProvisioning, Message, ProvisionServer
from shared.errors import TransientError

ATTEMPTS = 20
"""How often a job may change under our hands; each time, its worker has got further."""

Wish = ProvisionServer | CancelProvisioning


class JobHandlers:
    """Records what is wanted; `on_new` is called with every job about which there is something new to do or to say.

    Without a provider (`has_provider` false) every run is refused.
    """

    def __init__(self, jobs: Jobs, clock: Clock, on_new: Callable[[Job], None], *, has_provider: bool) -> None:
        self._jobs = jobs
        self._clock = clock
        self._on_new = on_new
        self._has_provider = has_provider
        self._last_line = 0

    async def decide(self, wishes: Sequence[Wish]) -> Sequence[Message]:
        """Record the batch in its order, the jobs that are new in one write, and answer."""
        first: dict[str, tuple[Wish, Job]] = {}
        later: list[Wish] = []
        for wish in wishes:
            if wish.order_id in first:
                later.append(wish)
            else:
                first[wish.order_id] = (wish, self._new(wish))
        recorded = await self._jobs.open([job for _, job in first.values()])
        answers: list[Message] = []
        for (wish, new), job in zip(first.values(), recorded, strict=True):
            if job is new:
                self._on_new(job)
                answers += lifecycle.answers(job)
            else:
                answers += await self._change(wish, job)
        for wish in later:
            answers += await self._change(wish, await self._jobs.find(wish.order_id))
        return answers

    def _new(self, wish: Wish) -> Job:
        now = self._clock()
        if isinstance(wish, CancelProvisioning):
            return _answered_here(lifecycle.tombstone(wish, now))
        job = lifecycle.requested(wish, now, self._next_line())
        job = replace(job, traceparent=tracing.of_order(job.order_id))
        return job if self._has_provider else _answered_here(lifecycle.refused(job, now))

    async def _change(self, wish: Wish, job: Job | None) -> Sequence[Message]:
        """Have a job that exists do what is wanted; returns what it has to say to that."""
        for _ in range(ATTEMPTS):
            if job is None:
                raise TransientError(f"the job of order {wish.order_id} was recorded and cannot be read")
            if isinstance(wish, CancelProvisioning) and job.state is State.RUNNING:
                if await self._jobs.ask_to_cancel(job.order_id, wish.run or job.run):
                    return ()
                job = await self._jobs.find(wish.order_id)
                continue
            after = _answered_here(self._after(wish, job), job)
            if after == job:
                return lifecycle.answers(job)
            if await self._jobs.change(job, after):
                self._on_new(after)
                return lifecycle.answers(after)
            job = await self._jobs.find(wish.order_id)
        raise TransientError(f"the job of order {wish.order_id} is changing too quickly")

    def _after(self, wish: Wish, job: Job) -> Job:
        now = self._clock()
        if isinstance(wish, CancelProvisioning):
            return lifecycle.cancelled(job, wish, now)
        again = lifecycle.requested_again(job, wish, now, self._next_line())
        # What is under way stands still without a provider; only a run that begins is refused.
        return again if self._has_provider or again is job or again.over else lifecycle.refused(again, now)

    def _next_line(self) -> int:
        """Return a place at the end of any line: the time in microseconds, and no two the same in this process."""
        self._last_line = max(self._last_line + 1, int(self._clock().timestamp() * 1_000_000))
        return self._last_line


def _answered_here(after: Job, before: Job | None = None) -> Job:
    """Leave the end of a job out of its outbox where the handler answers it: its message stands behind that."""
    if not after.over:
        return after
    return replace(after, outbox=before.outbox if before else ())


def handlers(jobs: Jobs, clock: Clock, on_new: Callable[[Job], None], *, has_provider: bool) -> Handlers:
    """Which handler takes which message: one takes both, so that they stay in the order in which they came."""
    decide = JobHandlers(jobs, clock, on_new, has_provider=has_provider).decide
    return {
        ProvisionServer: decide,
        CancelProvisioning: decide,
    }

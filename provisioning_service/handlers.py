"""Handlers of provisioning messages: a request opens a job or starts another run of it, a cancellation stops it.

The handlers only record the command and answer from the record; the scheduler does the work.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from provisioning_service import lifecycle
from provisioning_service.job import Job, State
from provisioning_service.jobs import Jobs
from provisioning_service.lifecycle import Command
from shared import tracing
from shared.bus import Handlers
from shared.clock import Clock
from shared.contracts import CancelProvisioning, Message, ProvisionServer
from shared.errors import TransientError
from shared.repeats import note_repeat

ATTEMPTS = 20
"""The attempts to change a job that its worker changes at the same time; each lost one is the worker's progress."""


class JobHandlers:
    """Records commands. `on_change` is called with every job that has new work to do or messages to publish.

    Without a provider (`has_provider` false) every run is refused.
    """

    def __init__(self, jobs: Jobs, clock: Clock, on_change: Callable[[Job], None], *, has_provider: bool) -> None:
        self._jobs = jobs
        self._clock = clock
        self._on_change = on_change
        self._has_provider = has_provider
        self._last_position = 0

    async def handle(self, commands: Sequence[Command]) -> Sequence[Message]:
        """Record the commands in their order, new jobs in one write, and return the answers."""
        first: dict[str, tuple[Command, Job]] = {}
        later: list[Command] = []
        for command in commands:
            if command.order_id in first:
                later.append(command)
            else:
                first[command.order_id] = (command, self._new(command))
        recorded = await self._jobs.insert([job for _, job in first.values()])
        answers: list[Message] = []
        for (command, new), job in zip(first.values(), recorded, strict=True):
            if job is new:
                self._on_change(job)
                answers += lifecycle.answers(job)
            else:
                answers += await self._change(command, job)
        for command in later:
            answers += await self._change(command, await self._jobs.find(command.order_id))
        return answers

    def _new(self, command: Command) -> Job:
        now = self._clock()
        job = lifecycle.commanded(None, command, now, self._next_position())
        if isinstance(command, ProvisionServer):
            job = replace(job, traceparent=tracing.of_order(job.order_id))
            job = job if self._has_provider else lifecycle.refused(job, now)
        return lifecycle.without_final_message(job)

    async def _change(self, command: Command, job: Job | None) -> Sequence[Message]:
        """Apply the command to an existing job; return the answers."""
        for _ in range(ATTEMPTS):
            if job is None:
                raise TransientError(f"the job of order {command.order_id} was recorded and cannot be read")
            if isinstance(command, CancelProvisioning) and job.state is State.RUNNING:
                if await self._jobs.request_cancel(job.order_id, command.run or job.run):
                    return ()
                job = await self._jobs.find(command.order_id)
                continue
            after = lifecycle.without_final_message(self._after(command, job), job)
            if after == job:
                note_repeat(command.routing_key, order_id=job.order_id)
                return lifecycle.answers(job)
            if await self._jobs.change(job, after):
                self._on_change(after)
                return lifecycle.answers(after)
            job = await self._jobs.find(command.order_id)
        raise TransientError(f"the job of order {command.order_id} is changing too quickly")

    def _after(self, command: Command, job: Job) -> Job:
        now = self._clock()
        after = lifecycle.commanded(job, command, now, self._next_position())
        if isinstance(command, CancelProvisioning) or self._has_provider or after is job or after.ended:
            return after
        # Without a provider, a run that has begun is paused and a new run is refused.
        return lifecycle.refused(after, now)

    def _next_position(self) -> int:
        """Return a position at the end of any queue: the time in microseconds, unique in this process."""
        self._last_position = max(self._last_position + 1, int(self._clock().timestamp() * 1_000_000))
        return self._last_position


def handlers(jobs: Jobs, clock: Clock, on_change: Callable[[Job], None], *, has_provider: bool) -> Handlers:
    """Map message types to handlers: one takes both types, so they stay in the order of their arrival."""
    handle = JobHandlers(jobs, clock, on_change, has_provider=has_provider).handle
    return {
        ProvisionServer: handle,
        CancelProvisioning: handle,
    }

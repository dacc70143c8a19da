"""What the provisioning service does with its messages: the first about an order decides for good."""

from collections.abc import Sequence

from provisioning_service.jobs import Jobs
from provisioning_service.lifecycle import Job, answer, cancelled, requested
from shared.bus import Handlers
from shared.clock import Clock
from shared.contracts import CancelProvisioning, Message, ProvisionServer


class JobHandlers:
    """Records jobs and answers from the records."""

    def __init__(self, jobs: Jobs, clock: Clock) -> None:
        self._jobs = jobs
        self._clock = clock

    async def decide(self, messages: Sequence[ProvisionServer | CancelProvisioning]) -> Sequence[Message]:
        """Answer each order once."""
        first: dict[str, Job] = {}
        for message in messages:
            first.setdefault(message.order_id, self._job(message))
        return [answer(job) for job in await self._jobs.open(list(first.values()))]

    def _job(self, message: ProvisionServer | CancelProvisioning) -> Job:
        now = self._clock()
        return requested(message, now) if isinstance(message, ProvisionServer) else cancelled(message, now)


def handlers(jobs: Jobs, clock: Clock) -> Handlers:
    """Which handler takes which message: one takes both, so that they stay in the order in which they came."""
    decide = JobHandlers(jobs, clock).decide
    return {
        ProvisionServer: decide,
        CancelProvisioning: decide,
    }

"""Delivers what is due: any number of processes, each with a worker per endpoint that has something due.

Nothing waits in memory: the next attempt of a delivery is a time in its document. A worker claims some due deliveries
of its endpoint by moving that time beyond the end of an attempt, attempts them, a bounded number at once, and records
the outcomes. So processes share the work of an endpoint, a slow one holds up nothing but its own deliveries, and what a
killed process was at comes due again. A receiver may get an event twice, with the same `webhook-id`.
"""

import asyncio
from collections.abc import Iterable, Sequence

from notification_service.deliveries import Deliveries
from notification_service.delivery import Attempt, Delivery, Next
from notification_service.endpoints import Endpoints
from notification_service.signing_secrets import SecretVault
from notification_service.worker import Dependencies, EndpointWorker, Limits, Sender, Sign
from shared.background import run_periodically
from shared.clock import Clock
from shared.failpoints import Failpoint
from shared.group_commit import GroupCommit

POLL_SECONDS = 1.0
"""The interval between two searches for endpoints with deliveries due; what this process records wakes it at once."""
FINISH_SECONDS = 1.0
"""The time that attempts get at the end of the process; after that their deliveries are due again."""

_RECORDED_AT_ONCE = 200


class Dispatcher:
    """The workers of one process."""

    def __init__(
        self,
        endpoints: Endpoints,
        deliveries: Deliveries,
        vault: SecretVault,
        sender: Sender,
        sign: Sign,
        limits: Limits,
        *,
        clock: Clock,
        failpoint: Failpoint,
    ) -> None:
        self._deliveries = deliveries
        self._clock = clock
        self._shared = Dependencies(
            endpoints,
            deliveries,
            vault,
            sender,
            sign,
            limits,
            clock,
            failpoint,
            asyncio.Semaphore(limits.at_once),
            GroupCommit(self._record, limit=_RECORDED_AT_ONCE),
        )
        self._workers: dict[str, EndpointWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._due: set[str] = set()
        self._woken = asyncio.Event()
        self._next_poll = 0.0

    def wake(self, endpoint_ids: Iterable[str]) -> None:
        """Deliver to these endpoints soon, because something has become due."""
        self._due.update(endpoint_ids)
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled; then finish what can be finished quickly."""
        try:
            await run_periodically(self._wake_workers, every=POLL_SECONDS, wake=self._woken, name="finding webhooks")
        finally:
            await self._stop()

    async def _wake_workers(self) -> None:
        due, self._due = self._due, set()
        for endpoint_id in due:
            self._wake_worker(endpoint_id)
        now = asyncio.get_running_loop().time()
        if now < self._next_poll:
            return
        busy = [endpoint_id for endpoint_id, worker in self._workers.items() if worker.is_busy]
        for endpoint_id in await self._deliveries.first_due(self._clock(), busy):
            self._wake_worker(endpoint_id)
        self._next_poll = now + POLL_SECONDS

    def _wake_worker(self, endpoint_id: str) -> None:
        if (working := self._workers.get(endpoint_id)) is not None:
            working.wake()
            return
        worker = self._workers[endpoint_id] = EndpointWorker(endpoint_id, self._shared)
        task = asyncio.create_task(worker.run(), name=f"webhook {endpoint_id}")
        self._tasks.add(task)

        def ended(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            del self._workers[endpoint_id]
            if worker.may_be_due:  # it was woken between its last look and its end
                self.wake([endpoint_id])

        task.add_done_callback(ended)

    async def _stop(self) -> None:
        for worker in self._workers.values():
            worker.stop()
        if tasks := set(self._tasks):
            _, unfinished = await asyncio.wait(tasks, timeout=FINISH_SECONDS)
            for task in unfinished:
                task.cancel()
            await asyncio.wait(tasks, timeout=FINISH_SECONDS)

    async def _record(self, outcomes: Sequence[tuple[Delivery, Attempt, Next]]) -> Sequence[None]:
        await self._deliveries.record(outcomes)
        return [None] * len(outcomes)

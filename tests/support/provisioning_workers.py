"""Provisioning workers for tests: over a real database and the provider's simulator, with a clock, a provider and
crashes that a test controls."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from cryptography.fernet import Fernet

from provisioning_service import jobs as job_records
from provisioning_service import locks as lock_records
from provisioning_service import ownership as address_records
from provisioning_service import packages as package_records
from provisioning_service.credentials import Vault
from provisioning_service.handlers import JobHandlers
from provisioning_service.job import Job, State
from provisioning_service.job_runner import JobCollections, JobRunner
from provisioning_service.jobs import Jobs
from provisioning_service.lifecycle import Timeouts
from provisioning_service.locks import Locks
from provisioning_service.outbox import Outbox
from provisioning_service.ownership import Ownership
from provisioning_service.packages import Packages
from provisioning_service.provider import Access, Package
from provisioning_service.scheduler import Scheduler
from provisioning_service.schema import SCHEMA
from provisioning_service.smartvps import SmartVps
from shared.contracts import CancelProvisioning, Message, ProvisioningProgress, ProvisionServer
from shared.database import Database
from shared.failpoints import SimulatedCrashError
from shared.schema import prepare
from tests.support import payment_workers
from tests.support.builders import connected, new_id
from tests.support.eventually import eventually
from tests.support.payment_workers import MovableClock
from tests.support.simulators import Simulator
from tests.support.tasks import end_tasks

KEY = Fernet.generate_key().decode()

DEFAULT_TIMEOUTS = Timeouts(
    buy_attempts=3,
    buy_delays=(timedelta(seconds=120), timedelta(seconds=180)),
    buy_timeout=timedelta(seconds=120),
    status_attempts=3,
    status_delays=(timedelta(seconds=60), timedelta(seconds=120)),
    lock_wait=timedelta(seconds=30),
    lock_attempts=10,
    lease=timedelta(seconds=120),
)
"""The defaults of the settings: tests advance the clock, so minutes cost nothing."""

LONG_TIMEOUT = 60.0
"""A timeout by the real clock that no slow machine reaches."""


class RecordingPublisher(payment_workers.Outbox):
    """Records the published messages."""

    def said(self, order_id: str) -> list[str]:
        """Return the progress messages of an order, without repetitions, in their sequence."""
        words = {
            m.sequence: m.message for m in self.sent if isinstance(m, ProvisioningProgress) and m.order_id == order_id
        }
        return [words[sequence] for sequence in sorted(words)]

    def of(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.sent if type(message) is kind]


class InterceptedProvider:
    """A provider with hooks of a test around its calls: `before` and `after` get the call's name and its address."""

    def __init__(self, inner: SmartVps) -> None:
        self.inner = inner
        self.before: Callable[[str, str], Awaitable[None]] = _nothing
        self.after: Callable[[str, str], Awaitable[None]] = _nothing

    async def packages(self) -> Sequence[Package]:
        await self.before("packages", "")
        listed = await self.inner.packages()
        await self.after("packages", "")
        return listed

    async def buy(self, ip: str, ram: int | None, *, before_sending: Callable[[], None]) -> str:
        await self.before("buy", ip)
        assigned = await self.inner.buy(ip, ram, before_sending=before_sending)
        await self.after("buy", ip)
        return assigned

    async def access(self, ip: str) -> Access | None:
        await self.before("access", ip)
        access = await self.inner.access(ip)
        await self.after("access", ip)
        return access

    async def close(self) -> None:
        await self.inner.close()


class ProvisioningWorker:
    """One provisioning process without its consumer; `settle` works until nothing is due."""

    def __init__(self, database: Database, provider: SmartVps, clock: MovableClock, timeouts: Timeouts) -> None:
        self.database = database
        self.clock = clock
        self.crash_at: str | None = None
        self.publisher = RecordingPublisher()
        self.provider = InterceptedProvider(provider)
        self.jobs = Jobs(database[job_records.COLLECTION])
        self.locks = Locks(database[lock_records.COLLECTION])
        self.packages = Packages(database[package_records.COLLECTION], low_threshold=5)
        self.ownership = Ownership(database[address_records.COLLECTION])
        self.vault = Vault(KEY)
        self.outbox = Outbox(self.jobs, self.packages, self.publisher, clock, self.failpoint)  # type: ignore[arg-type]
        records = JobCollections(self.jobs, self.ownership, self.packages)
        self.runner = JobRunner(
            records,
            self.provider,
            self.vault,
            timeouts,
            clock=clock,
            failpoint=self.failpoint,
            on_low_package=self.outbox.announce_low_packages,
        )
        self.scheduler = Scheduler(
            self.jobs, self.locks, self.runner, self.outbox, timeouts, clock=clock, max_concurrent=100
        )
        self._handlers = JobHandlers(self.jobs, clock, self._on_change, has_provider=True)

    def _on_change(self, job: Job) -> None:
        self.outbox.post(job)
        self.scheduler.wake()

    def failpoint(self, point: str) -> None:
        """Crash once at the point that the test has chosen."""
        if point == self.crash_at:
            self.crash_at = None
            raise SimulatedCrashError(point)

    async def take(self, *messages: ProvisionServer | CancelProvisioning) -> list[Message]:
        """Handle a batch; the handlers' answers count as published."""
        answers = list(await self._handlers.handle(messages))
        await self.publisher.send(answers)
        return answers

    async def settle(self) -> None:
        """Work until nothing is due, and publish the messages."""
        while True:
            await self.scheduler.start_due_jobs()
            if not self.scheduler._running:
                break
            await self.scheduler.wait_until_idle()
        await self.outbox.publish_posted()

    async def job(self, order_id: str) -> Job:
        found = await self.jobs.find(order_id)
        assert found is not None, f"no job of order {order_id}"
        return found

    async def waits(self, order_id: str) -> float:
        """Return the seconds until the job's next attempt."""
        job = await self.job(order_id)
        assert job.state is State.WAITING, job
        assert job.due_at is not None
        return float((job.due_at - self.clock.now).total_seconds())


def request(package: str = "103.181.91", **changes: Any) -> ProvisionServer:
    """Build a request for a server of 2 GB from this package."""
    return ProvisionServer(**{"order_id": new_id(), "user_id": "u1", "package": package, "ram": 2048, **changes})


@asynccontextmanager
async def provisioning_worker(
    mongodb_url: str,
    database_prefix: str,
    simulator: Simulator,
    *,
    clock: MovableClock | None = None,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    driver: str = "pymongo",
    buy_timeout: float = LONG_TIMEOUT,
) -> AsyncIterator[ProvisioningWorker]:
    """Run a worker with its own connections; workers with the same prefix share a database."""
    provider = SmartVps(
        url=simulator.url,
        username=simulator.username,
        password=simulator.password,
        buy_timeout=buy_timeout,
        status_timeout=LONG_TIMEOUT,
        stock_timeout=LONG_TIMEOUT,
    )
    try:
        async with connected(mongodb_url, f"{database_prefix}_provisioning", driver) as database:
            await prepare(database, SCHEMA)
            worker = ProvisioningWorker(database, provider, clock or MovableClock(), timeouts)
            try:
                yield worker
            finally:
                await end_tasks(*worker.scheduler._running)
                await worker.scheduler.wait_until_idle()
    finally:
        await provider.close()


async def jobs_running(worker: ProvisioningWorker, number: int = 1) -> None:
    """Wait until the worker runs this number of jobs."""
    await eventually(lambda: len(worker.scheduler._running) == number, LONG_TIMEOUT)


async def _nothing(_call: str, _ip: str) -> None:
    return None


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Wait until the tasks have ended, in any way."""
    if tasks:
        await asyncio.wait(tasks)

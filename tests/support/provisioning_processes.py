"""Provisioning processes over the provider's simulator, driven by messages, for tests that kill and pause them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cryptography.fernet import Fernet

from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.clock import utc_now
from shared.contracts import Message, ProvisionServer
from shared.database import Database, Document
from tests.support.builders import connected, new_id
from tests.support.eventually import eventually
from tests.support.processes import Process, Stack, run_stack
from tests.support.simulators import Simulator, run_simulator

SHORT_DELAYS = {
    "credentials_key": Fernet.generate_key().decode(),
    "buy_retry_delays": "0.2,0.3",
    "status_retry_delays": "0.2,0.3",
    "buy_timeout_seconds": 60,
    "status_timeout_seconds": 60,
    "lock_lease_seconds": 10,
}
"""Settings with delays of less than a second; timeouts are long, so that a slow machine does not fail a test."""

SHORT_LEASES = {"lock_lease_seconds": 1, "buy_timeout_seconds": 4}
"""Settings for tests in which a process dies or is paused: its leases expire after a second."""


@dataclass(frozen=True)
class Hosting:
    """Provisioning processes, their provider, and their records."""

    stack: Stack
    simulator: Simulator
    database: Database
    publisher: Publisher

    async def start(self, **settings: object) -> Process:
        (process,) = await self.stack.start("provisioning", **settings)
        return process

    async def ask(self, message: Message) -> None:
        await self.publisher.send([message])

    async def order(self, package: str) -> str:
        """Request a server; return the order's id."""
        order_id = new_id()
        await self.ask(ProvisionServer(order_id=order_id, user_id="u1", package=package, ram=2048))
        return order_id

    async def job(self, order_id: str) -> Document:
        """Return the recorded job, or an empty document."""
        return await self.database["jobs"].find_one({"_id": order_id}) or {}

    async def when(self, order_id: str, *states: str, within: float = 60) -> Document:
        """Wait until the job is in one of these states, and return it."""

        async def is_there() -> Document | None:
            job = await self.job(order_id)
            return job if job.get("state") in states else None

        found = await eventually(is_there, within, f"the job of {order_id} to be {' or '.join(states)}")
        assert found is not None
        return found

    async def ended(self, order_id: str, within: float = 60) -> Document:
        return await self.when(order_id, "COMPLETED", "FAILED", within=within)

    async def all_ended(self, order_ids: list[str], within: float = 90) -> list[Document]:
        return [await self.ended(order_id, within) for order_id in order_ids]

    async def bought(self) -> list[str]:
        """Return the addresses that the provider sold, in their order."""
        return [purchase["ip"] for purchase in await self.simulator.purchases()]

    async def assert_one_server_each(self, jobs: list[Document]) -> None:
        """Check that every job has its own server, and that the provider sold no other."""
        assert {job["state"] for job in jobs} == {"COMPLETED"}, [job.get("failureReason") for job in jobs]
        assert sorted(job["ip"] for job in jobs) == sorted(await self.bought())
        owners = {document["_id"]: document["orderId"] async for document in self.database["addresses"].find()}
        assert owners == {job["ip"]: job["_id"] for job in jobs}

    async def assert_nothing_is_held(self) -> None:
        """Check that soon no lock is held and no message is unpublished.

        A process that was killed between the end of a job and the release of its lock leaves the lock to its lease.
        """

        async def nothing() -> bool:
            leased = {"orderId": {"$exists": True}, "expiresAt": {"$gt": utc_now()}}
            held = await self.database["locks"].count_documents(leased)
            unpublished = await self.database["jobs"].count_documents({"outboxSince": {"$exists": True}})
            return held == unpublished == 0

        await eventually(nothing, 60, "locks to be free and messages to be published")


@asynccontextmanager
async def hosting(mongodb_url: str, amqp_url: str, database_prefix: str, **settings: object) -> AsyncIterator[Hosting]:
    """Run a provider and the means to request servers; the test starts the processes."""
    bus = RabbitBus(amqp_url, prefetch=10)
    async with (
        run_simulator() as simulator,
        connected(mongodb_url, f"{database_prefix}_provisioning") as database,
        run_stack(
            mongodb_url, amqp_url, database_prefix, **{**SHORT_DELAYS, **simulator.settings, **settings}
        ) as stack,
    ):
        await bus.start(None)
        try:
            yield Hosting(stack, simulator, database, Publisher(bus))
        finally:
            await bus.close()

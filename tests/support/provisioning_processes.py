"""Provisioning processes over the provider's simulator, asked by messages, for tests that kill and pause them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cryptography.fernet import Fernet

from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
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
"""Settings that make seconds of what are minutes; time-outs are long, as a slow machine must not decide a test."""

SHORT_LEASES = {"lock_lease_seconds": 1, "buy_timeout_seconds": 4}
"""For tests in which a process dies or is paused: what it held is taken over after a second."""


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
        """Ask for a server; returns the order's id."""
        order_id = new_id()
        await self.ask(ProvisionServer(order_id=order_id, user_id="u1", package=package, ram=2048))
        return order_id

    async def job(self, order_id: str) -> Document:
        """The job as it is recorded; empty before it is."""
        return await self.database["jobs"].find_one({"_id": order_id}) or {}

    async def when(self, order_id: str, *states: str, within: float = 60) -> Document:
        """The job once it is in one of these states."""

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
        """The addresses that the provider sold, in the order in which it did."""
        return [purchase["ip"] for purchase in await self.simulator.purchases()]

    async def assert_one_server_each(self, jobs: list[Document]) -> None:
        """Every job has its own server, and the provider sold no other."""
        assert {job["state"] for job in jobs} == {"COMPLETED"}, [job.get("failureReason") for job in jobs]
        assert sorted(job["ip"] for job in jobs) == sorted(await self.bought())
        owners = {document["_id"]: document["orderId"] async for document in self.database["addresses"].find()}
        assert owners == {job["ip"]: job["_id"] for job in jobs}

    async def assert_nothing_is_held(self) -> None:
        """No lock is held, no message is owed; what the last step left to do is done in a moment."""

        async def nothing() -> bool:
            held = await self.database["locks"].count_documents({"orderId": {"$exists": True}})
            owed = await self.database["jobs"].count_documents({"outboxSince": {"$exists": True}})
            return held == owed == 0

        await eventually(nothing, 60, "locks to be free and messages to be out")


@asynccontextmanager
async def hosting(mongodb_url: str, amqp_url: str, database_prefix: str, **settings: object) -> AsyncIterator[Hosting]:
    """A provider and a way to ask; the processes are started by the test."""
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

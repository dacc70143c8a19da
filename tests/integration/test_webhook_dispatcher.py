"""Workers of webhooks in this process, over a real database; what they send to is a script."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.fernet import Fernet
from prometheus_client import REGISTRY

from notification_service.deliveries import Deliveries
from notification_service.delivery import Attempt, Delivery, Next, Status
from notification_service.dispatcher import Dispatcher
from notification_service.endpoint import DISABLE_AFTER, Endpoint, Secret
from notification_service.endpoints import Endpoints
from notification_service.metrics import Counts
from notification_service.schema import SCHEMA
from notification_service.sender import Outcome
from notification_service.signing import sign
from notification_service.signing_secrets import SecretVault, new_secret
from notification_service.worker import CLAIMED_PER_ATTEMPT, SLOW_SECONDS, Limits
from shared import database, schema
from shared.clock import utc_now
from shared.database import Database
from shared.failpoints import nothing_fails
from shared.settings import ServiceSettings
from tests.support.eventually import eventually

WITHIN = 60.0
VAULT = SecretVault(Fernet.generate_key().decode())


class ScriptedSender:
    """Requests that end when the test says so."""

    def __init__(self) -> None:
        self.requests: list[asyncio.Future[Outcome]] = []
        self.most_open = 0

    @property
    def open(self) -> list[asyncio.Future[Outcome]]:
        return [each for each in self.requests if not each.done()]

    async def send(self, _url: str, _headers: Mapping[str, str], _body: bytes) -> Outcome:
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.requests.append(answer)
        self.most_open = max(self.most_open, len(self.open))
        return await answer

    def answer_all(self, status: int = 204, seconds: float = 0.01) -> None:
        """Answer what is open; `most_open` starts afresh."""
        for each in self.open:
            each.set_result(Outcome(status, None, "", seconds))
        self.most_open = 0

    async def received(self, number: int) -> None:
        await eventually(lambda: len(self.requests) >= number, WITHIN, f"{number} requests")


@dataclass
class World:
    """A database with endpoints and their deliveries."""

    database: Database
    endpoints: Endpoints
    deliveries: Deliveries
    known: list[Endpoint] = field(default_factory=list)

    async def endpoint(self, *, failing_since: datetime | None = None) -> Endpoint:
        now, name = utc_now(), f"wh_{secrets.token_hex(8)}"
        sealed = Secret(VAULT.seal(name, new_secret()), now)
        endpoint = Endpoint(name, "https://shop.example/", ("*",), (sealed,), now, now, "shop")
        await self.endpoints.insert(endpoint)
        if failing_since is not None:
            await self.endpoints.note_failure(name, failing_since)
        return endpoint

    async def record(self, endpoint: Endpoint, number: int = 1, *, due_at: datetime | None = None) -> list[Delivery]:
        now = utc_now()
        due = [
            Delivery(
                endpoint.id,
                f"evt_{secrets.token_hex(8)}",
                "order.confirmed",
                "{}",
                now,
                Status.PENDING,
                due_at=due_at or now,
            )
            for _ in range(number)
        ]
        await self.deliveries.insert(due)
        return due

    async def number(self, endpoint: Endpoint, status: Status) -> int:
        return await self.database["deliveries"].count_documents({"endpointId": endpoint.id, "status": status})

    async def stored(self, endpoint: Endpoint) -> Any:
        return await self.database["endpoints"].find_one({"_id": endpoint.id})

    @contextlib.asynccontextmanager
    async def delivering(
        self, sender: ScriptedSender, *, per_endpoint: int = 10, deliveries: Deliveries | None = None
    ) -> AsyncIterator[Dispatcher]:
        """Run the workers of one process; at the end, attempts that were answered are recorded."""
        limits = Limits(at_once=100, per_endpoint=per_endpoint, timeout=timedelta(seconds=60), retry_delays=(60.0,) * 9)
        dispatcher = Dispatcher(
            self.endpoints,
            deliveries or self.deliveries,
            VAULT,
            sender,
            sign,
            limits,
            clock=utc_now,
            failpoint=nothing_fails,
        )
        running = asyncio.create_task(dispatcher.run())
        try:
            yield dispatcher
        finally:
            running.cancel()
            await asyncio.wait([running])


@pytest.fixture
async def world(mongodb_url: str, database_prefix: str) -> AsyncIterator[World]:
    client = database.client(ServiceSettings(mongodb_url=mongodb_url))
    found = client[f"{database_prefix}_notifications"]
    await schema.prepare(found, SCHEMA)
    yield World(found, Endpoints(found), Deliveries(found, timedelta(days=1)))
    await database.close(client)


@pytest.fixture
def sender() -> ScriptedSender:
    return ScriptedSender()


def all_in(world: World, endpoint: Endpoint, status: Status, number: int) -> Callable[[], Any]:
    async def are_there() -> bool:
        return await world.number(endpoint, status) == number

    return are_there


async def test_a_receiver_that_answers_slowly_gets_one_attempt_at_a_time_until_it_is_quick(
    world: World, sender: ScriptedSender
) -> None:
    endpoint = await world.endpoint()
    await world.record(endpoint, 60)
    async with world.delivering(sender):
        await sender.received(10)
        assert sender.most_open == 10
        sender.answer_all(seconds=SLOW_SECONDS + 0.1)
        for number in range(11, 16):
            await sender.received(number)
            assert sender.most_open == 1
            sender.answer_all(seconds=SLOW_SECONDS + 0.1)
        await sender.received(16)
        sender.answer_all(seconds=0.1)
        await sender.received(26)
        assert sender.most_open == 10
        sender.answer_all()


async def test_an_endpoint_that_has_just_recovered_is_not_disabled_by_an_older_attempt(
    world: World, sender: ScriptedSender
) -> None:
    endpoint = await world.endpoint(failing_since=utc_now() - DISABLE_AFTER)
    await world.record(endpoint)
    later = ScriptedSender()
    async with world.delivering(sender):
        await sender.received(1)
        async with world.delivering(later):
            await world.record(endpoint)
            await later.received(1)
            later.answer_all(204)
        assert "failingSince" not in await world.stored(endpoint)
        sender.answer_all(500)
    stored = await world.stored(endpoint)
    assert await world.number(endpoint, Status.PENDING) == 1, "the older attempt is recorded"
    assert (stored["enabled"], stored.get("disabledReason")) == (True, None)


async def test_after_a_410_no_further_attempt_begins(world: World, sender: ScriptedSender) -> None:
    endpoint = await world.endpoint()
    await world.record(endpoint, 3)
    async with world.delivering(sender, per_endpoint=1):
        await sender.received(1)
        sender.answer_all(410)
        await eventually(all_in(world, endpoint, Status.FAILED, 3), WITHIN, "all to fail")
    assert len(sender.requests) == 1


class WaitingDeliveries(Deliveries):
    """Its outcomes are recorded when the test says so."""

    def __init__(self, source: Database) -> None:
        super().__init__(source, timedelta(days=1))
        self.may_record = asyncio.Event()
        self.writes: list[int] = []

    async def record(self, outcomes: Sequence[tuple[Delivery, Attempt, Next]]) -> None:
        await self.may_record.wait()
        self.writes.append(len(outcomes))
        await super().record(outcomes)


async def test_successes_that_wait_to_be_recorded_hold_up_no_attempt_and_share_a_write(
    world: World, sender: ScriptedSender
) -> None:
    endpoint = await world.endpoint()
    await world.record(endpoint, 2 * CLAIMED_PER_ATTEMPT)
    waiting = WaitingDeliveries(world.database)
    async with world.delivering(sender, per_endpoint=1, deliveries=waiting):
        for number in range(1, CLAIMED_PER_ATTEMPT + 1):
            await sender.received(number)
            assert sender.most_open == 1
            sender.answer_all()
        waiting.may_record.set()
        for number in range(CLAIMED_PER_ATTEMPT + 1, 2 * CLAIMED_PER_ATTEMPT + 1):
            await sender.received(number)
            sender.answer_all()
        await eventually(all_in(world, endpoint, Status.DELIVERED, 2 * CLAIMED_PER_ATTEMPT), WITHIN)
    assert waiting.writes[:2] == [1, CLAIMED_PER_ATTEMPT - 1]


async def test_what_waits_to_be_recorded_is_bounded(world: World, sender: ScriptedSender) -> None:
    endpoint = await world.endpoint()
    await world.record(endpoint, 3 * CLAIMED_PER_ATTEMPT)
    other = await world.endpoint()
    waiting = WaitingDeliveries(world.database)
    async with world.delivering(sender, per_endpoint=1, deliveries=waiting) as dispatcher:
        for number in range(1, CLAIMED_PER_ATTEMPT + 1):
            await sender.received(number)
            sender.answer_all()
        await world.record(other)
        dispatcher.wake([endpoint.id, other.id])
        await sender.received(CLAIMED_PER_ATTEMPT + 1)  # that of the other endpoint, which was woken later
        assert len(sender.requests) == CLAIMED_PER_ATTEMPT + 1
        sender.answer_all()
        waiting.may_record.set()


# --- What is due. ---


async def test_the_first_that_is_due_of_each_endpoint_is_found_however_many_are_due(world: World) -> None:
    now = utc_now()
    endpoints = [await world.endpoint() for _ in range(3)]
    for number, endpoint in enumerate(endpoints):
        await world.record(endpoint, 50, due_at=now)
        await world.record(endpoint, due_at=now - timedelta(minutes=number + 1))
    await world.record(await world.endpoint(), due_at=now + timedelta(minutes=1))
    first = await world.deliveries.first_due(now)
    assert {name: now - at for name, at in first.items()} == {
        endpoint.id: timedelta(minutes=number + 1) for number, endpoint in enumerate(endpoints)
    }
    skipped = await world.deliveries.first_due(now, [endpoints[0].id])
    assert set(skipped) == {endpoints[1].id, endpoints[2].id}
    assert await world.deliveries.count_due(now) == 153


@pytest.mark.parametrize("skipped", [[], ["wh_x"]])
async def test_looking_for_what_is_due_reads_an_entry_for_each_endpoint(world: World, skipped: list[str]) -> None:
    now = utc_now()
    for _ in range(3):
        await world.record(await world.endpoint(), 100, due_at=now)
    await world.database.command("profile", 2)
    await world.deliveries.first_due(now, skipped)
    await world.database.command("profile", 0)
    profiled = await world.database["system.profile"].find_one({"command.aggregate": "deliveries"})
    assert profiled is not None
    assert profiled["docsExamined"] == 0
    assert profiled["keysExamined"] <= 10


async def test_lateness_is_told_apart_by_whether_the_endpoint_is_failing(world: World) -> None:
    def measured() -> tuple[float | None, float | None, float | None]:
        oldest = "webhook_oldest_overdue_seconds"
        return (
            REGISTRY.get_sample_value("webhook_overdue_deliveries"),
            REGISTRY.get_sample_value(oldest, {"state": "working"}),
            REGISTRY.get_sample_value(oldest, {"state": "failing"}),
        )

    now = utc_now()
    counts = Counts(world.endpoints, world.deliveries, lambda: now)
    await counts.measure()
    assert measured() == (0, 0, 0)
    dead = await world.endpoint(failing_since=now)
    await world.record(dead, 2, due_at=now - timedelta(hours=1))
    await counts.measure()
    assert measured() == (2, 0, 3600)
    await world.record(await world.endpoint(), due_at=now - timedelta(seconds=90))
    await world.record(await world.endpoint(), due_at=now - timedelta(seconds=30))
    await counts.measure()
    assert measured() == (4, 90, 3600)

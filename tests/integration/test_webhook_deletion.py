"""The deletion of a webhook beside a worker that delivers to it, at the moments that processes seldom meet."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta

import pymongo
import pytest
from cryptography.fernet import Fernet

from notification_service.deletion import Deletion
from notification_service.deliveries import Deliveries
from notification_service.delivery import Delivery, Status
from notification_service.dispatcher import Dispatcher
from notification_service.endpoint import Endpoint, Secret
from notification_service.endpoints import Endpoints
from notification_service.schema import SCHEMA
from notification_service.sender import Outcome
from notification_service.signing import sign
from notification_service.signing_secrets import SecretVault, new_secret
from notification_service.worker import Limits
from shared import schema
from shared.access.principal import EVERYTHING
from shared.clock import utc_now
from shared.database import Database
from shared.failpoints import WEBHOOK_CLAIMED, Failpoint, nothing_fails
from tests.support.builders import connected
from tests.support.eventually import eventually

WEBHOOK = "wh_1"
LEASE = timedelta(seconds=30)


class Receiver:
    """Takes what a dispatcher sends."""

    def __init__(self) -> None:
        self.received: list[str] = []

    async def send(self, _url: str, headers: Mapping[str, str], _body: bytes) -> Outcome:
        self.received.append(headers["webhook-id"])
        return Outcome(204, None, "", 0.01)


@pytest.fixture
async def database(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_notifications") as found:
        await schema.prepare(found, SCHEMA)
        yield found


@pytest.fixture
def deliveries(database: Database) -> Deliveries:
    return Deliveries(database, timedelta(days=30))


VAULT = SecretVault(Fernet.generate_key().decode())


@pytest.fixture
async def endpoints(database: Database, deliveries: Deliveries) -> Endpoints:
    """An endpoint with a delivery that is due."""
    found, now = Endpoints(database), utc_now()
    secret = Secret(VAULT.seal(WEBHOOK, new_secret()), now)
    await found.insert(Endpoint(WEBHOOK, "https://shop.example/", ("*",), (secret,), now, now))
    await deliveries.insert([Delivery(WEBHOOK, "evt_1", "order.failed", "{}", now, Status.PENDING, due_at=now)])
    return found


@contextlib.asynccontextmanager
async def delivering(endpoints: Endpoints, deliveries: Deliveries, failpoint: Failpoint) -> AsyncIterator[Receiver]:
    receiver, limits = Receiver(), Limits(10, 10, LEASE / 2, [1.0])
    dispatcher = Dispatcher(endpoints, deliveries, VAULT, receiver, sign, limits, clock=utc_now, failpoint=failpoint)
    running = asyncio.create_task(dispatcher.run())
    try:
        yield receiver
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_what_was_claimed_just_before_the_deletion_is_not_sent(
    mongodb_url: str, database: Database, endpoints: Endpoints, deliveries: Deliveries
) -> None:
    with pymongo.MongoClient[dict[str, object]](mongodb_url) as other_process:

        def delete_meanwhile(point: str) -> None:
            if point == WEBHOOK_CLAIMED:
                deleted = {"$set": {"deletedAt": utc_now(), "enabled": False}}
                other_process[database.name]["endpoints"].update_one({"_id": WEBHOOK}, deleted)

        async with delivering(endpoints, deliveries, delete_meanwhile) as receiver:

            async def is_gone() -> bool:
                return await deliveries.find(WEBHOOK, "evt_1", EVERYTHING) is None

            await eventually(is_gone, 60, "the worker to find that there is no such webhook")
        assert receiver.received == []


async def test_a_deletion_waits_for_what_another_process_has_claimed(
    endpoints: Endpoints, deliveries: Deliveries
) -> None:
    (claimed,) = await deliveries.claim(WEBHOOK, utc_now(), LEASE, 10)
    assert await endpoints.delete(WEBHOOK, EVERYTHING, utc_now())
    deletion = Deletion(endpoints, deliveries, utc_now, nothing_fails)
    assert not await deletion.continue_all()
    assert await deliveries.find(WEBHOOK, "evt_1", EVERYTHING) is not None
    settling = asyncio.create_task(deletion.settle(WEBHOOK))
    await eventually(lambda: deliveries.has_claims(WEBHOOK, utc_now()))
    assert not settling.done()
    assert not await deliveries.has_claims(WEBHOOK, utc_now() + LEASE), "a process that was killed is not waited for"
    await deliveries.release([claimed], utc_now())
    await settling
    assert await deliveries.find(WEBHOOK, "evt_1", EVERYTHING) is None
    assert await endpoints.deleted() == []

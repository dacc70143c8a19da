"""Provisioning without a provider: every job is refused, recorded, and answered the same again."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from provisioning_service.api import create_router
from provisioning_service.handlers import JobHandlers
from provisioning_service.jobs import COLLECTION, INDEXES, Jobs
from shared.clock import utc_now
from shared.contracts import CancelProvisioning, ProvisioningFailed, ProvisionServer
from shared.database import ensure_indexes
from shared.http import create_app
from tests.builders import connected, new_id


async def nothing_is_down() -> dict[str, str]:
    return {}


def a_request(order_id: str) -> ProvisionServer:
    return ProvisionServer(order_id=order_id, user_id="u1", package="103.181.91", package_id="7", ram=2048)


def refused(order_id: str) -> ProvisioningFailed:
    return ProvisioningFailed(order_id=order_id, reason="No server provider is configured", retryable=True)


def cancelled(order_id: str) -> ProvisioningFailed:
    return ProvisioningFailed(order_id=order_id, reason="Cancelled", retryable=False)


@pytest.fixture(params=["pymongo", "motor"])
async def jobs(request: pytest.FixtureRequest, mongodb_url: str, database_prefix: str) -> AsyncIterator[Jobs]:
    async with connected(mongodb_url, f"{database_prefix}_provisioning", request.param) as database:
        await ensure_indexes(database[COLLECTION], INDEXES)
        yield Jobs(database[COLLECTION])


@pytest.fixture
def handlers(jobs: Jobs) -> JobHandlers:
    return JobHandlers(jobs, utc_now)


@pytest.fixture
async def client(jobs: Jobs) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app("provisioning", "Jobs", nothing_is_down)
    app.include_router(create_router(jobs))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://provisioning") as client:
        yield client


async def test_a_request_is_refused_and_recorded(handlers: JobHandlers, client: httpx.AsyncClient) -> None:
    order_id = new_id()
    assert await handlers.decide([a_request(order_id)]) == [refused(order_id)]
    assert (await client.get(f"/jobs/{order_id}")).json() == {
        "orderId": order_id,
        "package": "103.181.91",
        "ram": 2048,
        "state": "FAILED",
        "attempts": [],
        "nextAttemptAt": None,
        "ip": None,
        "failureReason": "No server provider is configured",
    }


async def test_messages_that_come_again_repeat_the_recorded_answer(handlers: JobHandlers) -> None:
    order_id = new_id()
    await handlers.decide([a_request(order_id)])
    assert await handlers.decide([a_request(order_id), a_request(order_id)]) == [refused(order_id)]
    assert await handlers.decide([CancelProvisioning(order_id=order_id)]) == [refused(order_id)]


async def test_a_cancellation_that_overtakes_its_request_wins(handlers: JobHandlers) -> None:
    order_id, other = new_id(), new_id()
    assert await handlers.decide([CancelProvisioning(order_id=order_id)]) == [cancelled(order_id)]
    assert await handlers.decide([a_request(other), a_request(order_id)]) == [refused(other), cancelled(order_id)]
    both = await handlers.decide([CancelProvisioning(order_id=other), a_request(order_id)])
    assert both == [refused(other), cancelled(order_id)]


async def test_within_a_batch_the_first_message_of_an_order_decides(handlers: JobHandlers) -> None:
    one, other = new_id(), new_id()
    batch = [a_request(one), CancelProvisioning(order_id=other), CancelProvisioning(order_id=one), a_request(other)]
    assert await handlers.decide(batch) == [refused(one), cancelled(other)]


async def test_workers_that_decide_at_once_answer_the_same(handlers: JobHandlers) -> None:
    order_ids = [new_id() for _ in range(30)]
    requests = [a_request(order_id) for order_id in order_ids]
    cancellations = [CancelProvisioning(order_id=order_id) for order_id in order_ids]
    answers = await asyncio.gather(*(handlers.decide(batch) for batch in (requests, cancellations) * 5))
    assert all(answer == answers[0] for answer in answers)


async def test_the_list_pages_by_state_and_package(handlers: JobHandlers, client: httpx.AsyncClient) -> None:
    order_ids = sorted(new_id() for _ in range(3))
    await handlers.decide([a_request(order_id) for order_id in order_ids])
    await handlers.decide([CancelProvisioning(order_id=new_id())])
    page = (await client.get("/jobs?status=FAILED&package=103.181.91&limit=2")).json()
    assert [item["orderId"] for item in page["items"]] == order_ids[:2]
    rest = (await client.get(f"/jobs?package=103.181.91&limit=2&cursor={page['nextCursor']}")).json()
    assert [item["orderId"] for item in rest["items"]] == order_ids[2:]
    assert rest["nextCursor"] is None
    assert len((await client.get("/jobs")).json()["items"]) == 4


async def test_wrong_questions_are_problems(client: httpx.AsyncClient) -> None:
    assert (await client.get("/jobs/nobody")).status_code == 404
    for query in ("status=DONE", "limit=0", "cursor=x", "package=%00"):
        assert (await client.get(f"/jobs?{query}")).status_code == 422

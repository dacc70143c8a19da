"""Provisioning jobs on the console, in its search and in the operations API, as they are stored."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from operations.console import ConsoleDependencies
from provisioning_service.job import Attempt, Job, Purchase, State, Step
from provisioning_service.jobs import COLLECTION, SCHEMA, Jobs
from shared import schema
from shared.access.permissions import Role
from shared.services import PROVISIONING
from tests.support.access import KEYS, bearer
from tests.support.consoles import console_dependencies, pages_of

NOW = datetime(2026, 6, 3, 9, 50, tzinfo=UTC)
ASKED = Purchase(asked=("103.181.9.7",), free_before=("103.181.9.8",), started_at=NOW, no_retry_before=NOW)


def a_job(order_id: str, state: State, minutes: int, package: str = "103.181.9.x") -> Job:
    at = NOW - timedelta(minutes=minutes)
    return Job(order_id=order_id, state=state, package=package, created_at=at, updated_at=at, requested_at=at)


@pytest.fixture
async def dependencies(mongodb_url: str, amqp_url: str, database_prefix: str) -> AsyncIterator[ConsoleDependencies]:
    async with console_dependencies(mongodb_url, amqp_url, database_prefix, clock=lambda: NOW) as found:
        database = found.client[PROVISIONING.database_in(database_prefix)]
        await schema.prepare(database, {COLLECTION: SCHEMA})
        failed = Attempt(Step.BUY, NOW, "failed", "attempt 1 of 3: the provider answered 502")
        waiting = replace(
            a_job("waits", State.WAITING, 2),
            buy_attempts=1,
            due_at=NOW + timedelta(minutes=3),
            step=Step.BUY,
            purchase=ASKED,
            attempts=(failed,),
            credentials=b"secret",
        )
        gone = replace(a_job("gone", State.FAILED, 5, "10.0.0"), failure_reason="No IPs", retryable=True)
        others = [a_job(f"done-{number:02}", State.COMPLETED, 60 * 24 + number) for number in range(50)]
        await Jobs(database[COLLECTION]).insert([waiting, gone, *others])
        yield found


@pytest.fixture
async def pages(dependencies: ConsoleDependencies) -> AsyncIterator[httpx.AsyncClient]:
    async with pages_of(dependencies) as client:
        yield client


def shown_in(page: str) -> list[str]:
    return re.findall(r'href="/jobs/([\w-]+)"', page)


async def test_jobs_are_filtered_counted_and_paged(pages: httpx.AsyncClient) -> None:
    first = (await pages.get("/jobs")).text
    assert "52 jobs match; 50 on this page" in first
    (following,) = re.findall(r'href="([^"]+)" rel="next"', first)
    second = (await pages.get(following)).text
    assert shown_in(first) + shown_in(second) == ["waits", "gone", *(f"done-{number:02}" for number in range(50))]
    assert "2 on this page" in second

    assert shown_in((await pages.get("/jobs?status=open")).text) == ["waits"]
    assert shown_in((await pages.get("/jobs?status=FAILED")).text) == ["gone"]
    assert shown_in((await pages.get("/jobs?package=10.0.0.x")).text) == ["gone"]
    assert shown_in((await pages.get("/jobs?order=wai")).text) == ["waits"]
    assert shown_in((await pages.get("/jobs?span=1h")).text) == ["waits", "gone"]
    assert "No matching jobs" in (await pages.get("/jobs?order=none")).text
    assert (await pages.get("/jobs?status=LOST")).status_code == 422
    assert "Next attempt" in first
    assert "the provider answered 502" in first


async def test_a_job_shows_its_attempts_and_no_credentials(pages: httpx.AsyncClient) -> None:
    shown = (await pages.get("/jobs/waits")).text
    assert "attempt 1 of 3: the provider answered 502" in shown
    assert "no answer yet" in shown
    assert 'href="/orders/waits"' in shown
    assert "secret" not in shown
    assert (await pages.get("/jobs/nothing")).status_code == 404
    # Who may not see packages gets no link to them.
    accountant = bearer(KEYS[Role.ACCOUNTANT])
    assert 'href="/packages"' not in (await pages.get("/jobs/waits", headers=accountant)).text


async def test_the_search_leads_to_jobs(dependencies: ConsoleDependencies, pages: httpx.AsyncClient) -> None:
    assert 'href="/jobs/waits"' in (await pages.get("/search?q=waits")).text
    await dependencies.packages.insert_one({"_id": "103.181.9.x"})
    found = await pages.get("/search?q=103.181.9.x")
    assert (found.status_code, found.headers["location"]) == (303, "/packages"), "the only page that is about it"
    order = {"_id": "103.181.9.x", "status": "PENDING", "settled": False, "createdAt": NOW, "updatedAt": NOW}
    await dependencies.orders.insert_one(order)
    assert 'href="/jobs?package=103.181.9.x"' in (await pages.get("/search?q=103.181.9.x")).text


async def test_the_operations_api_has_jobs(pages: httpx.AsyncClient) -> None:
    page = (await pages.get("/api/v1/jobs", params={"limit": 2})).json()
    assert ([job["orderId"] for job in page["items"]], page["total"]) == (["waits", "gone"], 52)
    after = (await pages.get("/api/v1/jobs", params={"limit": 2, "cursor": page["nextCursor"]})).json()
    assert [job["orderId"] for job in after["items"]] == ["done-00", "done-01"]
    assert (await pages.get("/api/v1/jobs?unfinished=true")).json()["total"] == 1
    assert (await pages.get("/api/v1/jobs?unfinished=true&status=FAILED")).status_code == 422

    job = (await pages.get("/api/v1/jobs/waits")).json()
    assert (job["purchaseAttempts"], job["nextAttemptAt"]) == (1, "2026-06-03T09:53:00.000Z")
    assert job["lastError"] == "Buy: attempt 1 of 3: the provider answered 502"
    assert job["purchase"] == {"asked": ["103.181.9.7"], "startedAt": "2026-06-03T09:50:00.000Z", "answered": False}
    assert "secret" not in str(job)
    assert (await pages.get("/api/v1/jobs/nothing")).status_code == 404

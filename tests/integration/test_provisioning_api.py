"""HTTP routes of the provisioning service over a real database and the provider's simulator."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

from provisioning_service import package_cache
from provisioning_service.api import ApiDependencies, create_router
from provisioning_service.credentials import Vault
from provisioning_service.provider import Package
from provisioning_service.smartvps import SmartVps
from shared.clock import to_rfc3339
from shared.contracts import CancelProvisioning, ProvisionServer
from shared.http import add_routes, create_app
from tests.support.access import ADMIN, key_authenticator
from tests.support.builders import new_id
from tests.support.eventually import eventually
from tests.support.provisioning_workers import KEY as CREDENTIALS_KEY
from tests.support.provisioning_workers import LONG_TIMEOUT, ProvisioningWorker, provisioning_worker, request
from tests.support.simulators import Simulator, package, run_simulator

NAME = "103.181.91"
WHY = {"Ordersaga-Reason": "the customer asks for it"}
Clients = Callable[..., httpx.AsyncClient]


async def nothing_is_down() -> dict[str, str]:
    return {}


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with run_simulator() as running:
        await running.packages([package(NAME, 9)])
        yield running


@pytest.fixture
async def worker(mongodb_url: str, database_prefix: str, simulator: Simulator) -> AsyncIterator[ProvisioningWorker]:
    async with provisioning_worker(mongodb_url, database_prefix, simulator) as running:
        yield running


@pytest.fixture
async def clients(worker: ProvisioningWorker) -> AsyncIterator[Clients]:
    """Build clients of the service, with the parts that a test replaces."""
    opened: list[httpx.AsyncClient] = []

    def client(**parts: Any) -> httpx.AsyncClient:
        dependencies = ApiDependencies(
            worker.jobs, worker.locks, worker.packages, worker.provider, worker.vault, worker.clock
        )
        app = create_app("provisioning", "Jobs", nothing_is_down, authenticator=key_authenticator())
        add_routes(app.router, create_router(dependencies._replace(**parts)))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        opened.append(httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ADMIN | WHY))
        return opened[-1]

    yield client
    for one in opened:
        await one.aclose()


@pytest.fixture
def client(clients: Clients) -> httpx.AsyncClient:
    return clients()


def problem(response: httpx.Response, status: int) -> str:
    """Check the status of a problem and return its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    return str(body["detail"])


ENABLED = {"disabled": False, "disabledReason": None}
UNUSED = {**ENABLED, "lock": None}


async def provision(worker: ProvisioningWorker, **changes: Any) -> ProvisionServer:
    message = request(**changes)
    await worker.take(message)
    await worker.settle()
    return message


# --- Jobs. ---


async def test_a_job_that_waits_says_until_when(
    worker: ProvisioningWorker, simulator: Simulator, client: httpx.AsyncClient
) -> None:
    await simulator.faults(buy={"failNext": 1})
    started = to_rfc3339(worker.clock.now)
    message = await provision(worker, ram=None)
    response = await client.get(f"/jobs/{message.order_id}")
    assert response.status_code == 200
    assert response.json() == {
        "orderId": message.order_id,
        "ownerId": None,
        "package": NAME,
        "ram": None,
        "state": "WAITING",
        "step": "buy",
        "run": 1,
        "attempts": [
            {"step": "check", "at": started, "outcome": "ok", "detail": f"9 free, asking for {NAME}.1"},
            {"step": "buy", "at": started, "outcome": "failed", "detail": "attempt 1 of 3: buyvps: answered 500"},
        ],
        "nextAttemptAt": to_rfc3339(worker.clock.now + timedelta(seconds=120)),
        "purchase": {"asked": [f"{NAME}.1"], "startedAt": started, "answered": True},
        "ip": None,
        "wrongIps": [],
        "failureReason": None,
        "createdAt": started,
        "updatedAt": started,
    }


async def test_a_failed_job_shows_the_operator_more_than_the_customer(
    worker: ProvisioningWorker, simulator: Simulator, client: httpx.AsyncClient
) -> None:
    await simulator.faults(buy={"wrongIpNext": 1})
    message = await provision(worker)
    body = (await client.get(f"/jobs/{message.order_id}")).json()
    assert body["failureReason"] == f"WRONG PACKAGE ASSIGNED: ordered {NAME}, provider assigned 192.0.2.1"
    assert (body["state"], body["ip"], body["wrongIps"]) == ("FAILED", None, ["192.0.2.1"])
    assert body["nextAttemptAt"] is None


async def test_a_job_that_was_cancelled_in_advance_has_no_package(
    worker: ProvisioningWorker, client: httpx.AsyncClient
) -> None:
    order_id = new_id()
    await worker.take(CancelProvisioning(order_id=order_id))
    body = (await client.get(f"/jobs/{order_id}")).json()
    assert (body["state"], body["package"], body["ram"], body["failureReason"]) == ("FAILED", None, None, "Cancelled")


async def test_a_queued_job_has_no_next_attempt(worker: ProvisioningWorker, client: httpx.AsyncClient) -> None:
    message = request()
    await worker.take(message)
    body = (await client.get(f"/jobs/{message.order_id}")).json()
    assert (body["state"], body["nextAttemptAt"]) == ("QUEUED", None)


async def test_the_list_pages_through_everything_once(worker: ProvisioningWorker, client: httpx.AsyncClient) -> None:
    messages = [request() for _ in range(5)] + [request(package="10.0.0") for _ in range(2)]
    await worker.take(*messages)
    await worker.take(*(CancelProvisioning(order_id=message.order_id) for message in messages[:3]))

    async def ids(query: str) -> list[str]:
        found, cursor = [], ""
        while True:
            page = (await client.get(f"/jobs?limit=2{query}{cursor}")).json()
            assert set(page) == {"items", "nextCursor"}
            assert len(page["items"]) <= 2
            found += [item["orderId"] for item in page["items"]]
            if page["nextCursor"] is None:
                return found
            cursor = f"&cursor={page['nextCursor']}"

    def those(wanted: list[ProvisionServer]) -> list[str]:
        return sorted(message.order_id for message in wanted)

    assert await ids("") == those(messages)
    assert await ids("&status=FAILED") == those(messages[:3])
    assert await ids(f"&package={NAME}") == those(messages[:5])
    assert await ids(f"&status=QUEUED&package={NAME}") == those(messages[3:5])
    assert await ids("&status=RUNNING") == []


@pytest.mark.parametrize(
    "query",
    ["status=DONE", "status=failed", "limit=0", "limit=101", "limit=x", "cursor=x", "cursor=WzFd", "package=%00"],
)
async def test_an_invalid_query_of_a_list_is_a_422(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"/jobs?{query}")
    problem(response, 422)
    assert response.json()["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.parametrize("order_id", ["unknown", "%00", "%7B%22$gt%22%3A%22%22%7D", "a" * 200, "..%2F..%2Fetc"])
@pytest.mark.parametrize("what", ["", "/credentials"])
async def test_a_job_that_does_not_exist_is_a_404(client: httpx.AsyncClient, order_id: str, what: str) -> None:
    problem(await client.get(f"/jobs/{order_id}{what}"), 404)


# --- Credentials. ---


async def test_the_credentials_are_shown_and_must_not_be_stored(
    worker: ProvisioningWorker, simulator: Simulator, client: httpx.AsyncClient
) -> None:
    message = await provision(worker)
    response = await client.get(f"/jobs/{message.order_id}/credentials")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    status = await simulator.client.post(
        "/api/oceansmart/status", json={"ip": f"{NAME}.1"}, auth=(simulator.username, simulator.password)
    )
    described = status.json() if isinstance(status.json(), dict) else json.loads(status.json())
    password = described["Password"]
    assert response.json() == {"ip": f"{NAME}.1", "username": "root", "password": password}


async def test_there_are_no_credentials_before_the_server_is_ready(
    worker: ProvisioningWorker, client: httpx.AsyncClient
) -> None:
    message = request()
    await worker.take(message)
    path = f"/jobs/{message.order_id}/credentials"
    assert "is QUEUED: there are no credentials" in problem(await client.get(path), 409)
    await worker.take(CancelProvisioning(order_id=message.order_id))
    assert "is FAILED: there are no credentials" in problem(await client.get(path), 409)


async def test_credentials_of_an_old_key_are_shown_while_the_key_is_configured(
    worker: ProvisioningWorker, clients: Clients
) -> None:
    message = await provision(worker)
    path = f"/jobs/{message.order_id}/credentials"
    shown = (await clients().get(path)).json()
    new_key = Fernet.generate_key().decode()
    rotated = await clients(vault=Vault(f"{new_key},{CREDENTIALS_KEY}")).get(path)
    assert (rotated.status_code, rotated.json()) == (200, shown)

    detail = problem(await clients(vault=Vault(new_key)).get(path), 503)
    assert "is an earlier key missing from ORDERSAGA_CREDENTIALS_KEY?" in detail
    assert new_key not in detail
    assert "ORDERSAGA_CREDENTIALS_KEY" in problem(await clients(vault=None).get(path), 503)


async def test_the_credentials_of_another_order_are_not_shown(
    worker: ProvisioningWorker, client: httpx.AsyncClient
) -> None:
    one, other = [await provision(worker) for _ in range(2)]
    sealed = (await worker.job(one.order_id)).credentials
    await worker.database["jobs"].update_one({"_id": other.order_id}, {"$set": {"credentials": sealed}})
    response = await client.get(f"/jobs/{other.order_id}/credentials")
    assert "another order's" in problem(response, 503)
    assert f"{NAME}.1" not in response.text


async def test_no_other_route_shows_a_password(worker: ProvisioningWorker, client: httpx.AsyncClient) -> None:
    message = await provision(worker)
    secret = (await client.get(f"/jobs/{message.order_id}/credentials")).json()["password"]
    for path in (f"/jobs/{message.order_id}", "/jobs", "/packages", "/locks", "/metrics"):
        response = await client.get(path)
        assert response.status_code == 200
        assert secret not in response.text


# --- Packages. ---


async def test_the_packages_are_the_providers_with_their_locks_and_levels(
    worker: ProvisioningWorker, simulator: Simulator, client: httpx.AsyncClient
) -> None:
    await simulator.packages(
        [
            package("103.83.x", [f"103.83.7.{number}" for number in range(6)], id=83),
            package("10.0.0", 5),
            package("10.0.1", 0, status="suspended"),
        ]
    )
    lock = await worker.locks.acquire("103.83", "o1", worker.clock.now, timedelta(seconds=120))
    assert lock is not None
    await worker.locks.acquire("10.0.0", "o2", worker.clock.now - timedelta(seconds=120), timedelta(seconds=120))
    response = await client.get("/packages")
    assert response.status_code == 200
    assert response.json() == {
        "items": [
            {
                "packageId": "id-10.0.0",
                "name": "10.0.0",
                "status": "active",
                "ipv4": 5,
                "low": True,
                **ENABLED,
                "lock": None,
            },
            {
                "packageId": "id-10.0.1",
                "name": "10.0.1",
                "status": "suspended",
                "ipv4": 0,
                "low": True,
                **ENABLED,
                "lock": None,
            },
            {
                "packageId": "83",
                "name": "103.83.x",
                "status": "active",
                "ipv4": 6,
                "low": False,
                **ENABLED,
                "lock": {
                    "orderId": "o1",
                    "acquiredAt": to_rfc3339(worker.clock.now),
                    "expiresAt": to_rfc3339(worker.clock.now + timedelta(seconds=120)),
                },
            },
        ],
        "nextCursor": None,
        "total": 3,
    }


async def test_the_packages_are_paged_by_name(simulator: Simulator, client: httpx.AsyncClient) -> None:
    await simulator.packages([package(f"10.0.{number}", 1) for number in (3, 1, 4, 2)])
    pages, query = [], "limit=2"
    for _ in range(2):
        page = (await client.get(f"/packages?{query}")).json()
        pages.append([item["name"] for item in page["items"]])
        query = f"limit=2&cursor={page['nextCursor']}"
    assert pages == [["10.0.1", "10.0.2"], ["10.0.3", "10.0.4"]]
    assert (page["nextCursor"], page["total"]) == (None, 4)
    for wrong in ("limit=0", "cursor=x", "cursor=WyJhIl0"):
        problem(await client.get(f"/packages?{wrong}"), 422)


class CountingProvider:
    """Lists one package once the test allows it."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = asyncio.Event()

    async def packages(self) -> list[Package]:
        self.asked += 1
        await self.answers.wait()
        return [Package("7", f"10.0.{self.asked}", "active", 1, ())]


async def test_the_provider_is_asked_once_for_all_readers_within_seconds(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_cache, "CACHE_SECONDS", 3600)  # however slow the machine is
    provider = CountingProvider()
    client = clients(provider=provider)
    waiting = [asyncio.create_task(client.get("/packages")) for _ in range(100)]
    await eventually(lambda: provider.asked)
    waiting.pop(0).cancel()  # a cancelled caller does not cancel the others' request
    provider.answers.set()
    answers = [*await asyncio.gather(*waiting), await client.get("/packages")]
    assert {item["name"] for answer in answers for item in answer.json()["items"]} == {"10.0.1"}
    assert provider.asked == 1
    monkeypatch.setattr(package_cache, "CACHE_SECONDS", 0)
    later = clients(provider=provider)
    names = [(await later.get("/packages")).json()["items"][0]["name"] for _ in range(2)]
    assert names == ["10.0.2", "10.0.3"], "it is asked again once the answer is old"


async def test_without_a_provider_there_is_no_list_of_packages(clients: Clients) -> None:
    detail = problem(await clients(provider=None).get("/packages"), 503)
    assert detail == "No server provider is configured"


async def test_without_an_answer_of_the_provider_there_is_no_list_of_packages(clients: Clients) -> None:
    async with run_simulator() as gone:
        times = {"buy_timeout": LONG_TIMEOUT, "status_timeout": LONG_TIMEOUT, "stock_timeout": LONG_TIMEOUT}
        provider = SmartVps(url=gone.url, username="u", password="secret", **times)
        refused = problem(await clients(provider=provider).get("/packages"), 503)
    try:
        away = problem(await clients(provider=provider).get("/packages"), 503)
    finally:
        await provider.close()
    assert refused == "The provider does not list its packages: ipstock: answered 401"
    assert away.startswith("The provider does not list its packages: ipstock: ")
    assert "secret" not in refused + away


# --- Locks. ---


async def test_the_locks_are_listed_and_freed_by_an_operator(
    worker: ProvisioningWorker, client: httpx.AsyncClient
) -> None:
    now, lease = worker.clock.now, timedelta(seconds=120)
    for key in ("103.83", "10.0.0", "10.0.1"):
        assert await worker.locks.acquire(key, f"order-{key}", now, lease)

    def shown(key: str) -> dict[str, str]:
        return {
            "package": key,
            "orderId": f"order-{key}",
            "acquiredAt": to_rfc3339(now),
            "expiresAt": to_rfc3339(now + lease),
            "progressAt": to_rfc3339(now),
        }

    first = (await client.get("/locks?limit=2")).json()
    assert first["items"] == [shown("10.0.0"), shown("10.0.1")]
    rest = (await client.get(f"/locks?limit=2&cursor={first['nextCursor']}")).json()
    assert rest == {"items": [shown("103.83")], "nextCursor": None, "total": 3}

    freed = await client.delete("/locks/103.83.x")
    assert (freed.status_code, freed.json()) == (200, shown("103.83"))
    assert (await client.get("/locks")).json()["items"] == [shown("10.0.0"), shown("10.0.1")]
    assert await worker.locks.acquire("103.83", "next", now, lease)


async def test_a_lock_that_is_not_held_is_a_404(worker: ProvisioningWorker, client: httpx.AsyncClient) -> None:
    await provision(worker)
    assert NAME in problem(await client.delete(f"/locks/{NAME}"), 404)
    problem(await client.delete("/locks/never-held"), 404)
    problem(await client.get("/locks?cursor=x"), 422)


async def test_concurrent_requests_free_a_lock_once(worker: ProvisioningWorker, client: httpx.AsyncClient) -> None:
    await worker.locks.acquire(NAME, "o1", worker.clock.now, timedelta(seconds=120))
    answers = await asyncio.gather(*(client.delete(f"/locks/{NAME}") for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [404] * 9


async def test_the_routes_are_described(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert {"JobView", "CredentialsView", "PackageView", "PackageLockView"} <= set(document["components"]["schemas"])
    assert {"/jobs", "/jobs/{order_id}", "/jobs/{order_id}/credentials", "/packages", "/locks", "/locks/{package}"} <= (
        set(document["paths"])
    )


# --- Off sale. ---


async def test_a_disabled_package_sells_no_more_servers_until_it_is_enabled(
    worker: ProvisioningWorker, simulator: Simulator, client: httpx.AsyncClient
) -> None:
    body = {"disabled": True, "reason": "abuse reports"}
    disabled = await client.patch(f"/packages/{NAME}.x", json=body)
    assert (disabled.status_code, disabled.json()) == (200, body | {"package": NAME})
    (shown,) = (p for p in (await client.get("/packages")).json()["items"] if p["name"].startswith(NAME))
    assert (shown["disabled"], shown["disabledReason"]) == (True, "abuse reports")
    refused = await provision(worker)
    assert await simulator.purchases() == []
    job = (await client.get(f"/jobs/{refused.order_id}")).json()
    assert (job["state"], job["failureReason"]) == ("FAILED", f"Package {NAME} is disabled: abuse reports")

    enabled = await client.patch(f"/packages/{NAME}", json={"disabled": False})
    assert enabled.json() == {"package": NAME, "disabled": False, "reason": None}
    await provision(worker)
    assert len(await simulator.purchases()) == 1
    problem(await client.patch(f"/packages/{NAME}", json={"disabled": False, "reason": "x"}), 422)


async def test_a_purchase_that_has_begun_is_finished_though_its_package_is_disabled(
    worker: ProvisioningWorker, simulator: Simulator, client: httpx.AsyncClient
) -> None:
    await simulator.faults(buy={"loseAnswerNext": 1})
    message = await provision(worker)
    assert len(await simulator.purchases()) == 1
    await client.patch(f"/packages/{NAME}", json={"disabled": True})
    worker.clock.advance(600)
    await worker.settle()
    assert (await client.get(f"/jobs/{message.order_id}")).json()["state"] == "COMPLETED"
    assert len(await simulator.purchases()) == 1

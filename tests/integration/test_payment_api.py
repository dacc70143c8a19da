"""The payment service's HTTP routes over a real database."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pymongo
import pytest

from payment_service.api import create_router
from payment_service.lifecycle import PaymentStatus
from payment_service.payments import RARE
from payment_service.schema import SCHEMA
from shared.http import add_routes, create_app
from shared.schema import prepare
from tests.support.access import ADMIN, key_authenticator
from tests.support.payment_workers import PaymentWorker, order_created, payment_worker


async def nothing_is_down() -> dict[str, str]:
    return {}


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def worker(mongodb_url: str, database_prefix: str) -> AsyncIterator[PaymentWorker]:
    async with payment_worker(mongodb_url, database_prefix) as worker:
        yield worker


@pytest.fixture
async def client(worker: PaymentWorker) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app("payment", "Payments", nothing_is_down, authenticator=key_authenticator())
    add_routes(app.router, create_router(worker.payments))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ADMIN) as client:
        yield client


async def test_a_payment_reads_as_the_contract_says(worker: PaymentWorker, client: httpx.AsyncClient) -> None:
    order = order_created(amount=1999)
    (answer,) = await worker.charge(order)
    response = await client.get(f"/payments/{order.order_id}")
    assert response.status_code == 200
    assert response.json() == {
        "orderId": order.order_id,
        "userId": "u1",
        "ownerId": None,
        "amount": 19.99,
        "status": "PROCESSED",
        "transactionId": answer.transaction_id,  # type: ignore[attr-defined]
        "failureReason": None,
        "refundedAmount": 0,
    }


async def test_a_declined_payment_says_why(worker: PaymentWorker, client: httpx.AsyncClient) -> None:
    order = order_created("tok_declined")
    await worker.charge(order)
    body = (await client.get(f"/payments/{order.order_id}")).json()
    assert (body["status"], body["failureReason"], body["transactionId"]) == ("FAILED", "The card was declined", None)
    assert body["amount"] == 10


async def test_a_tombstone_has_neither_amount_nor_user(worker: PaymentWorker, client: httpx.AsyncClient) -> None:
    order = order_created()
    await worker.refund(order.order_id)
    body = (await client.get(f"/payments/{order.order_id}")).json()
    assert (body["status"], body["amount"], body["userId"]) == ("VOIDED", None, None)


@pytest.mark.parametrize(
    "order_id", ["nobody", "%00", "%7B%22$gt%22%3A%22%22%7D", "a" * 200, "%F0%9F%92%B8", "%ff", "..%2F..%2Fetc"]
)
async def test_a_payment_that_does_not_exist_is_a_404_problem(client: httpx.AsyncClient, order_id: str) -> None:
    response = await client.get(f"/payments/{order_id}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == 404


async def test_the_list_pages_through_everything_once(worker: PaymentWorker, client: httpx.AsyncClient) -> None:
    orders = [order_created("tok_declined" if number % 2 else "tok_ok") for number in range(7)]
    await worker.charge(*orders)

    async def ids(query: str) -> list[str]:
        found, cursor = [], ""
        while True:
            page = (await client.get(f"/payments?limit=2{query}{cursor}")).json()
            assert set(page) == {"items", "nextCursor"}
            assert len(page["items"]) <= 2
            found += [item["orderId"] for item in page["items"]]
            if page["nextCursor"] is None:
                return found
            cursor = f"&cursor={page['nextCursor']}"

    assert await ids("") == sorted(order.order_id for order in orders)
    assert await ids("&status=FAILED") == sorted(order.order_id for order in orders[1::2])
    assert await ids("&status=REFUNDED") == []


@pytest.mark.parametrize("status", PaymentStatus)
async def test_the_list_of_a_status_reads_little_more_than_it_shows(
    mongodb_url: str, database_prefix: str, worker: PaymentWorker, status: PaymentStatus
) -> None:
    """Payments of one status are nearly all, and the others few: each of the two has an index to find them by."""
    few = [{"status": each, "_id": f"{each}-{number}"} for each in RARE for number in range(3)]
    many = [{"status": PaymentStatus.PROCESSED, "_id": f"{number:03}"} for number in range(300)]
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url) as client:
        database = client[f"{database_prefix}_payments"]
        await prepare(database, SCHEMA)
        await database["payments"].insert_many(many + few)
        command = {"find": "payments", "filter": {"status": status}, "sort": {"_id": 1}, "limit": 3}
        explained = await database.command({"explain": command, "verbosity": "executionStats"})
    figures = explained["executionStats"]
    assert (figures["nReturned"], figures["totalDocsExamined"] <= 5) == (3, True)
    assert "'SORT'" not in str(explained["queryPlanner"]["winningPlan"])


@pytest.mark.parametrize(
    "query",
    ["status=paid", "status[$gt]=", "limit=0", "limit=101", "limit=x", "cursor=%7B%7D", "cursor=WzFd", "cursor=é"],
)
async def test_an_invalid_list_request_is_a_422_and_unknown_parameters_are_ignored(
    client: httpx.AsyncClient, query: str
) -> None:
    response = await client.get(f"/payments?{query}")
    if query.startswith("status["):
        assert response.status_code == 200
        return
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_the_routes_are_described(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert "PaymentView" in document["components"]["schemas"]
    assert {"/payments", "/payments/{order_id}"} <= set(document["paths"])

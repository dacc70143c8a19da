"""Consumption is paused under load, by an operator: nothing is lost, doubled or timed out by it, whatever dies.

The time of orders is ended by hand, as a test must not wait for it: they are PENDING past their deadlines at once.
"""

import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pymongo
import pytest

from tests.support.eventually import eventually
from tests.support.processes import Process, Stack, run_stack
from tests.support.servers import Servers, delete_topology, drop_databases

WITHIN = 60.0
STOCK = 1000
ORDERS = 30
NOW = [{"$set": {"deadline": "$$NOW", "dueAt": "$$NOW"}}]


@pytest.fixture(scope="module")
async def stack(servers: Servers) -> AsyncIterator[Stack]:
    """Two processes of each service that a test kills one of, for all tests here: each has a product of its own."""
    await delete_topology(servers.amqp_url)
    prefix = f"t{secrets.token_hex(8)}"
    async with run_stack(servers.mongodb_url, servers.amqp_url, prefix, republish_after_seconds=0.5) as running:
        await running.start("order", "order", "inventory", "inventory", "payment")
        yield running
    await delete_topology(servers.amqp_url)
    await drop_databases(servers.mongodb_url, prefix)


async def place(stack: Stack, product: str, number: int) -> list[str]:
    return await stack.place_many(number, lambda _: {"items": [{"productId": product, "quantity": 1, "price": 10}]})


async def set_paused(stack: Stack, process: Process, what: str, **more: Any) -> httpx.Response:
    return await stack.client.post(f"{process.url}/consumer/{what}", json={"reason": "a test", **more})


async def all_paused(stack: Stack, service: str, paused: bool = True) -> None:
    async def every_one() -> bool:
        answers = [await stack.client.get(f"{process.url}/readyz") for process in stack.processes(service)]
        assert all(answer.status_code == 200 for answer in answers)
        return all(("paused" in answer.json()) is paused for answer in answers)

    await eventually(every_one, WITHIN, f"all processes of {service} to follow")


async def times_run_out(stack: Stack, placed: list[str]) -> None:
    """End the time of all PENDING orders, and wait until the order service has given it to them again."""
    async with pymongo.AsyncMongoClient[dict[str, Any]](stack.mongodb_url, tz_aware=True) as client:
        orders = client[f"{stack.database_prefix}_orders"]["orders"]
        ended = await orders.update_many({"_id": {"$in": placed}, "status": "PENDING"}, NOW)
        assert ended.modified_count > 0

        async def extended() -> bool:
            overdue = {"_id": {"$in": placed}, "$expr": {"$lte": ["$deadline", "$$NOW"]}, "status": "PENDING"}
            return await orders.count_documents(overdue) == 0

        await eventually(extended, WITHIN, "the deadlines to be extended")
        assert await orders.count_documents({"_id": {"$in": placed}, "status": "CANCELLED"}) == 0


async def knows_of_pause(stack: Stack, service: str) -> None:
    async with pymongo.AsyncMongoClient[dict[str, Any]](stack.mongodb_url) as client:
        pauses = client[f"{stack.database_prefix}_orders"]["pauses"]

        async def known() -> bool:
            return await pauses.find_one({"_id": service, "pauses.0": {"$exists": True}}) is not None

        await eventually(known, WITHIN, f"the order service to know of the pause of {service}")


async def recorded(stack: Stack, database: str) -> list[str]:
    async with pymongo.AsyncMongoClient[dict[str, Any]](stack.mongodb_url) as client:
        entries = (
            client[f"{stack.database_prefix}_{database}"]["actions"].find({"action": "letters:decide"}).sort("seq")
        )
        return [f"{entry['resource']}: {entry['outcome']}" async for entry in entries]


@pytest.mark.parametrize(("service", "database"), [("inventory", "inventory"), ("order", "orders")])
async def test_a_pause_under_load_outlives_its_processes_and_costs_no_order(
    stack: Stack, service: str, database: str
) -> None:
    await stack.stock(service, STOCK)
    first, second = stack.processes(service)
    placed = await place(stack, service, ORDERS)
    assert (await set_paused(stack, first, "pause")).json()["paused"] is True
    placed += await place(stack, service, ORDERS)
    await all_paused(stack, service)
    await knows_of_pause(stack, service)
    late = await place(stack, service, 5)

    # Of two processes that are paused, one is killed and another takes its place.
    await stack.kill(second)
    third = await stack.launch(service)
    await all_paused(stack, service)
    await times_run_out(stack, [*placed, *late])
    assert {(await stack.order(order_id))["status"] for order_id in late} == {"PENDING"}

    answer = await set_paused(stack, third, "resume")
    assert answer.json()["pause"]["reason"] == "a test"
    orders = await stack.all_settled([*placed, *late])
    assert {order["status"] for order in orders} == {"CONFIRMED"}
    inventory = await stack.inventory(service)
    assert (inventory["quantity"], inventory["reserved"]) == (STOCK - len(orders), len(orders))
    await all_paused(stack, service, paused=False)
    assert (await set_paused(stack, third, "resume")).status_code == 409
    await stack.assert_books_balance()
    assert await recorded(stack, database) == [
        "POST /consumer/pause: 200",
        "POST /consumer/resume: 200",
        "POST /consumer/resume: 409",
    ]


async def test_a_pause_with_an_end_is_over_by_itself(stack: Stack) -> None:
    await stack.stock("p1", STOCK)
    (payment,) = stack.processes("payment")
    paused = (await set_paused(stack, payment, "pause", seconds=3)).json()
    assert paused["pause"]["until"] > paused["pause"]["since"]
    placed = await place(stack, "p1", ORDERS)
    orders = await stack.all_settled(placed)
    assert {order["status"] for order in orders} == {"CONFIRMED"}
    await all_paused(stack, "payment", paused=False)
    await stack.assert_books_balance()

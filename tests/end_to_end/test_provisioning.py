"""Orders for servers over real processes, a real broker, a real database and the provider's simulator."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pymongo
import pytest

from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.provisioning_processes import SHORT_DELAYS
from tests.support.seeds import IS_LONG_FORM
from tests.support.servers import Servers, delete_topology
from tests.support.simulators import Simulator, package, run_simulator

SERVICES = ("order", "inventory", "payment", "provisioning")
WHY = {"Ordersaga-Reason": "the customer asks for it"}
HOLD_SECONDS = 3600
FOR_EVER = 3600
PACKAGES = 50 if IS_LONG_FORM else 8
"""A delay in seconds that holds calls until the test sets another one."""


class Hoster:
    """A shop that sells servers, one product per package."""

    def __init__(self, stack: Stack, simulator: Simulator) -> None:
        self.stack = stack
        self.simulator = simulator

    async def sells(self, *names: str, ips: int = 5, ram: int = 2048) -> None:
        """Let the provider offer these packages only, and the shop sell a server of each."""
        await self.simulator.faults(
            buy={"failNext": 0, "delaySeconds": 0, "wrongIpNext": 0, "loseAnswerNext": 0},
            status={"failNext": 0, "delaySeconds": 0},
        )
        await self.simulator.packages([package(name, ips) for name in names])
        for name in names:
            body = {"kind": "vps", "package": name, "packageId": f"id-{name}", "ram": ram}
            url = f"{self.stack.url('inventory')}/products/vps-{name}"
            response = await self.stack.client.put(url, json=body)
            assert response.status_code in (200, 201), response.text

    async def order(self, name: str) -> str:
        return await self.stack.place(
            items=[{"productId": f"vps-{name}", "quantity": 1, "price": 10}], payment={"token": "tok_ok"}
        )

    async def orders(self, number: int, name: str) -> list[str]:
        return list(await asyncio.gather(*(self.order(name) for _ in range(number))))

    async def when(self, order_id: str, *statuses: str, within: float = 60) -> dict[str, Any]:
        """Wait until the order has one of these statuses, and return it."""
        found: dict[str, Any] = {}

        async def has_status() -> bool:
            found.update(await self.stack.order(order_id))
            return found["status"] in statuses

        await eventually(has_status, within, f"order {order_id} to be {' or '.join(statuses)}")
        return found

    async def ended(self, order_ids: list[str], within: float = 60) -> list[dict[str, Any]]:
        return [await self.when(order_id, "COMPLETED", "FAILED", "CANCELLED", within=within) for order_id in order_ids]

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Any:
        response = await self.stack.client.get(f"{self.stack.url('provisioning')}{path}", headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    async def operate(self, order_id: str, verb: str) -> int:
        """Send an operator's or a client's action on an order; return the HTTP status."""
        response = await self.stack.client.post(f"{self.stack.url('order')}/orders/{order_id}/{verb}")
        return int(response.status_code)

    async def sold(self, name: str) -> list[dict[str, Any]]:
        """Return the provider's sales from a package."""
        return [purchase for purchase in await self.simulator.purchases() if purchase["package"] == name]


@pytest.fixture(scope="module")
async def hoster(servers: Servers) -> AsyncIterator[Hoster]:
    """One stack for all tests of this module, each with its own packages; the books are audited at the end."""
    prefix = f"t{secrets.token_hex(8)}"
    await delete_topology(servers.amqp_url)
    settings = {**SHORT_DELAYS, "republish_after_seconds": 1, "failed_hold_seconds": HOLD_SECONDS}
    async with (
        run_simulator() as simulator,
        run_stack(servers.mongodb_url, servers.amqp_url, prefix, **{**settings, **simulator.settings}) as stack,
    ):
        await stack.start(*SERVICES)
        yield Hoster(stack, simulator)
        await stack.assert_books_balance()
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        for name in SERVICES:
            await client.drop_database(f"{prefix}_{ {'order': 'orders', 'payment': 'payments'}.get(name, name) }")
    await delete_topology(servers.amqp_url)


async def test_ten_orders_at_once_for_five_addresses(hoster: Hoster) -> None:
    await hoster.sells("103.1.1", "103.1.2", ips=5)
    orders = await hoster.ended(await hoster.orders(10, "103.1.1"))
    completed = [order for order in orders if order["status"] == "COMPLETED"]
    failed = [order for order in orders if order["status"] == "FAILED"]
    assert (len(completed), len(failed)) == (5, 5)
    assert {order["server"]["ip"] for order in completed} == {f"103.1.1.{number}" for number in range(1, 6)}
    assert all("no available IPs" in order["failureReason"] for order in failed)
    assert all(order["paymentStatus"] == "PROCESSED" and not order["settled"] for order in failed)
    assert len(await hoster.sold("103.1.1")) == 5
    assert await hoster.sold("103.1.2") == []


async def test_a_completed_order_has_a_server_and_credentials_for_its_owner(hoster: Hoster) -> None:
    await hoster.sells("103.2.1")
    order = await hoster.when(await hoster.order("103.2.1"), "COMPLETED")
    assert order["settled"]
    assert order["provisioningStatus"] == "COMPLETED"
    assert order["server"]["ip"] == "103.2.1.1"
    progress = [entry["message"] for entry in order["history"] if "message" in entry]
    assert "Your server is being provisioned" in progress
    assert "Your server is ready" in progress
    credentials = await hoster.get(f"/jobs/{order['orderId']}/credentials", WHY)
    assert credentials["ip"] == "103.2.1.1"
    job = await hoster.get(f"/jobs/{order['orderId']}")
    assert [attempt["step"] for attempt in job["attempts"]] == ["check", "buy", "verify", "status"]
    # The password is in no other response, in no log, and not in plain text in the database.
    said = "".join(line for process in hoster.stack.processes("provisioning") for line in process.output)
    async with pymongo.AsyncMongoClient[dict[str, Any]](hoster.stack.mongodb_url) as client:
        records = client[f"{hoster.stack.database_prefix}_provisioning"]["jobs"]
        stored = await records.find_one({"_id": order["orderId"]})
    for place in (order, job, said, stored):
        assert credentials["password"] not in str(place)


async def test_a_wrong_address_blocks_the_order_and_is_not_retried(hoster: Hoster) -> None:
    await hoster.sells("103.3.1", "103.3.11")
    await hoster.simulator.faults(buy={"wrongIpNext": 1})
    order = await hoster.when(await hoster.order("103.3.1"), "FAILED", "COMPLETED")
    assert (order["status"], order["failureReason"]) == ("FAILED", "PROVISIONING BLOCKED: Wrong package assigned")
    assert order["server"] is None
    job = await hoster.get(f"/jobs/{order['orderId']}")
    assert job["failureReason"] == f"WRONG PACKAGE ASSIGNED: ordered 103.3.1, provider assigned {job['wrongIps'][0]}"
    assert job["wrongIps"][0].startswith("103.3.11.")
    assert job["nextAttemptAt"] is None
    assert len(await hoster.sold("103.3.1")) + len(await hoster.sold("103.3.11")) == 1
    assert await hoster.operate(order["orderId"], "refund") == 202
    refunded = await hoster.stack.settled(order["orderId"], within=60)
    assert (refunded["status"], refunded["paymentStatus"], refunded["stockStatus"]) == (
        "FAILED",
        "REFUNDED",
        "RELEASED",
    )


async def test_lost_answers_never_buy_twice(hoster: Hoster) -> None:
    await hoster.sells("103.4.1", ips=20)
    await hoster.simulator.faults(buy={"loseAnswerNext": 8})
    orders = await hoster.ended(await hoster.orders(8, "103.4.1"))
    assert Counter(order["status"] for order in orders) == {"COMPLETED": 8}
    sold = [purchase["ip"] for purchase in await hoster.sold("103.4.1")]
    assert sorted(sold) == sorted(order["server"]["ip"] for order in orders)


async def test_the_customer_reads_why_the_order_waits(hoster: Hoster) -> None:
    await hoster.sells("103.5.1")
    await hoster.simulator.faults(buy={"failNext": 1}, status={"failNext": 1})
    order = await hoster.when(await hoster.order("103.5.1"), "COMPLETED")
    progress = [entry["message"] for entry in order["history"] if entry["event"] == "provisioning.progress"]
    waited = "Waiting 0.2 seconds before attempt 2 of 3"
    assert progress == ["Your server is being provisioned", waited, waited, "Your server is ready"]


async def test_an_operator_retries_one_and_refunds_the_other(hoster: Hoster) -> None:
    await hoster.sells("103.6.1", ips=0)
    first, second = await hoster.orders(2, "103.6.1")
    for order_id in (first, second):
        assert "no available IPs" in (await hoster.when(order_id, "FAILED"))["failureReason"]
    await hoster.sells("103.6.1", ips=1)
    assert await hoster.operate(first, "retry") == 202
    retried = await hoster.when(first, "COMPLETED")
    assert (retried["server"]["ip"], retried["failureReason"]) == ("103.6.1.1", None)
    assert (await hoster.get(f"/jobs/{first}"))["run"] == 2
    assert await hoster.operate(second, "refund") == 202
    refunded = await hoster.stack.settled(second, within=60)
    assert (refunded["status"], refunded["paymentStatus"]) == ("FAILED", "REFUNDED")
    assert await hoster.operate(second, "retry") == 409
    assert await hoster.operate(first, "refund") == 409
    assert len(await hoster.sold("103.6.1")) == 1


async def test_cancelled_before_it_buys_the_money_goes_back(hoster: Hoster) -> None:
    await hoster.sells("103.8.1")
    await hoster.simulator.faults(buy={"delaySeconds": FOR_EVER})
    buying = await hoster.order("103.8.1")
    await eventually(lambda: _is_buying(hoster, buying), 60, "the first to buy")
    waiting = await hoster.order("103.8.1")
    await hoster.when(waiting, "PROVISIONING")
    assert await hoster.operate(waiting, "cancel") == 202
    assert await hoster.operate(buying, "cancel") == 202
    cancelled = await hoster.stack.settled(waiting, within=60)
    assert (cancelled["status"], cancelled["paymentStatus"]) == ("CANCELLED", "REFUNDED")
    # The other order's request had been sent when the cancellation came, so the customer gets the server.
    await hoster.simulator.faults(buy={"delaySeconds": 0})
    assert (await hoster.when(buying, "COMPLETED"))["server"]["ip"] == "103.8.1.1"
    assert len(await hoster.sold("103.8.1")) == 1


async def test_cancelled_after_a_wrong_address_was_bought_an_operator_must_decide(hoster: Hoster) -> None:
    await hoster.sells("103.9.1", "103.9.2")
    await hoster.simulator.faults(buy={"wrongIpNext": 1, "delaySeconds": FOR_EVER})
    asked_before = hoster.simulator.asked_to_buy
    order_id = await hoster.order("103.9.1")
    await eventually(lambda: hoster.simulator.asked_to_buy > asked_before, 60, "the request to arrive")
    assert await hoster.operate(order_id, "cancel") == 202
    await hoster.simulator.faults(buy={"delaySeconds": 0})
    order = await hoster.when(order_id, "FAILED", "CANCELLED")
    assert (order["status"], order["failureReason"]) == ("FAILED", "PROVISIONING BLOCKED: Wrong package assigned")
    assert order["paymentStatus"] == "PROCESSED"
    assert await hoster.operate(order_id, "refund") == 202
    assert (await hoster.stack.settled(order_id, within=60))["paymentStatus"] == "REFUNDED"


@pytest.mark.long_form
async def test_many_jobs_over_many_packages_run_side_by_side(hoster: Hoster) -> None:
    """One after the other within a package, packages in parallel. benchmarks/provisioning.py measures the speed."""
    names = [f"104.0.{number}" for number in range(PACKAGES)]
    await hoster.sells(*names, ips=4)
    await hoster.simulator.faults(buy={"delaySeconds": FOR_EVER})
    orders = [order_id for _ in range(4) for order_id in await asyncio.gather(*(hoster.order(n) for n in names))]
    await eventually(lambda: _are_buying(hoster, PACKAGES), 60, "every package to have a request under way")
    await hoster.simulator.faults(buy={"delaySeconds": 0.2})
    ended = await hoster.ended(orders, within=120)
    assert Counter(order["status"] for order in ended) == {"COMPLETED": 4 * PACKAGES}
    assert len({order["server"]["ip"] for order in ended}) == 4 * PACKAGES
    purchases = [purchase for purchase in await hoster.simulator.purchases() if purchase["package"] in names]
    assert Counter(purchase["package"] for purchase in purchases) == dict.fromkeys(names, 4)
    for name in names:
        times = [datetime.fromisoformat(purchase["at"]) for purchase in purchases if purchase["package"] == name]
        # A request is sent after the answer to the one before; clocks may be adjusted meanwhile, so not exactly 0.2.
        assert all((after - before).total_seconds() >= 0.15 for before, after in pairwise(times))


async def _are_buying(hoster: Hoster, number: int) -> bool:
    running = await hoster.get("/jobs?status=RUNNING&limit=100")
    return [job["step"] for job in running["items"]].count("buy") >= number


async def _is_buying(hoster: Hoster, order_id: str) -> bool:
    return bool((await hoster.get(f"/jobs/{order_id}"))["step"] == "buy")

"""kill -9 of each service at each point between two steps, under load: nothing is lost, sold twice or charged twice.

The process ends itself with SIGKILL when it reaches the named point (shared/failpoints.py), in the middle of a
batch; a new one takes its place. It finds what the first one had written, published or left undone.
"""

import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable
from typing import Any

import httpx
import pytest

from shared import failpoints as at
from tests.support.eventually import eventually
from tests.support.processes import SAGA_SERVICES, Process, Stack, run_stack
from tests.support.seeds import IS_LONG_FORM

CONSUMER = (at.HANDLED, at.PUBLISHED, at.ACKNOWLEDGED)
POINTS = {
    "order": (*CONSUMER, at.ORDER_INSERTED, at.ORDER_CREATED_PUBLISHED),
    "inventory": (*CONSUMER, at.STOCK_MOVED, at.RESERVATION_RECORDED),
    "payment": (*CONSUMER, at.PAYMENT_PENDING, at.PAYMENT_CHARGED, at.REFUND_SENT),
}
ORDERS = 40
STOCK = 15
BATCH = 5
KILLS = 20 if IS_LONG_FORM else 3


@pytest.mark.parametrize("service", SAGA_SERVICES)
async def test_killed_between_two_steps(
    service: str, mongodb_url: str, clean_broker: str, database_prefix: str
) -> None:
    async with run_stack(mongodb_url, clean_broker, database_prefix, republish_after_seconds=0.5) as stack:
        await stack.start()
        for point in POINTS[service]:
            await stack.stock(point, STOCK)
            await stack.kill(stack.processes(service)[0])
            # Small batches, so that there are at least two even if all messages arrive at once.
            (doomed,) = await stack.start(service, crash_at=f"{point}#2", batch_limit=BATCH)
            placed = await place_some(stack, point, ORDERS)
            await eventually(lambda: not doomed.alive, 60, f"{service} to die at {point}")  # noqa: B023
            await stack.start(service)
            placed += await place_some(stack, point, ORDERS - len(placed))
            await assert_sold_out(stack, point, await stack.all_settled(placed))
        await stack.assert_books_balance()


async def place_some(stack: Stack, point: str, number: int) -> list[str]:
    """Order a unit of the point's own product that many times, for its own user; a third of the cards are declined."""
    body = {"userId": point, "items": [{"productId": point, "quantity": 1, "price": 10}]}
    tokens = ("tok_declined", "tok_ok", "tok_ok")
    return await stack.place_many(number, lambda index: {**body, "payment": {"token": tokens[index % 3]}})


async def assert_sold_out(stack: Stack, point: str, orders: list[dict[str, Any]]) -> None:
    """Every unit was sold once, as there were more good orders than stock; or is still in stock."""
    confirmed = [order for order in orders if order["status"] == "CONFIRMED"]
    assert {order["status"] for order in orders} == {"CONFIRMED", "CANCELLED"}
    assert len(confirmed) <= STOCK
    # A client whose connection broke does not know of its order, but the books do.
    sold = sum(1 for order in await every_order(stack, point) if order["status"] == "CONFIRMED")
    inventory = await stack.inventory(point)
    assert inventory["quantity"] + inventory["reserved"] == STOCK
    assert inventory["reserved"] == sold


async def every_order(stack: Stack, user: str) -> list[dict[str, Any]]:
    """All orders of a user, once all orders are settled."""
    url = f"{stack.url('order')}/orders"

    async def none_open() -> bool:
        found = (await stack.client.get(url, params={"settled": False, "limit": 1})).json()
        return not found["items"]

    await eventually(none_open, 60, "all orders to settle")
    orders: list[dict[str, Any]] = []
    cursor = None
    while True:
        parameters: dict[str, str | int] = {"userId": user, "limit": 100, **({"cursor": cursor} if cursor else {})}
        page = (await stack.client.get(url, params=parameters)).json()
        orders += page["items"]
        cursor = page["nextCursor"]
        if cursor is None:
            return orders


HOLD_POINTS = (at.STOCK_MOVED, at.RESERVATION_RECORDED, at.HOLD_CLAIMED, at.HOLD_ENDED)


async def test_holds_of_killed_processes_are_held_or_not_and_come_back(
    mongodb_url: str, clean_broker: str, database_prefix: str
) -> None:
    """Inventory processes die at each point between two steps while they make, end and hand over holds."""
    quick = {"mark_sweep_seconds": 1, "republish_after_seconds": 0.5}
    async with run_stack(mongodb_url, clean_broker, database_prefix, **quick) as stack:
        await stack.start("order", "payment", "inventory")
        await stack.stock("p1", 1000)
        users = HoldUsers(stack, stack.url("inventory"))
        for point in HOLD_POINTS:
            (doomed,) = await stack.start("inventory", crash_at=f"{point}#2", batch_limit=BATCH)

            async def dies(doomed: Process = doomed) -> bool:
                await users.hold_order_and_delete(doomed)
                return not doomed.alive

            await eventually(dies, 60, f"an inventory process to die at {point}")
        await users.assert_kept_and_handed_over()
        out = len(users.holds_of_orders) + len(users.kept)
        held = {"productId": "p1", "quantity": 1000 - out, "reserved": out, "shipped": 0}

        async def others_came_back() -> bool:
            return await stack.inventory("p1") == held

        await eventually(others_came_back, 30, "the units of all other holds to come back")
        await stack.assert_books_balance()


class HoldUsers:
    """Users who hold one unit each at a process that will die, and at one that survives."""

    def __init__(self, stack: Stack, survivor: str) -> None:
        self._stack = stack
        self._survivor = survivor
        self.kept: list[str] = []
        self.holds_of_orders: dict[str, str] = {}

    async def hold_order_and_delete(self, doomed: Process) -> None:
        """Hold at both processes; order with holds of the one, and delete holds of the other, or let them expire."""
        short, long = await asyncio.gather(
            asyncio.gather(*(self._hold(doomed.url, seconds=1) for _ in range(5))),
            asyncio.gather(*(self._hold(self._survivor, seconds=600) for _ in range(4))),
        )
        (kept, _), *ordered = [each for each in long if each is not None]
        self.kept.append(kept)
        client, deleted = self._stack.client, [each[0] for each in short[:2] if each is not None]
        placed, _ = await asyncio.gather(
            asyncio.gather(*(self._stack.place(userId=user, holdId=hold_id) for hold_id, user in ordered)),
            asyncio.gather(*(answered(client.delete(f"{doomed.url}/holds/{each}")) for each in deleted)),
        )
        self.holds_of_orders |= zip(placed, (hold_id for hold_id, _ in ordered), strict=True)

    async def assert_kept_and_handed_over(self) -> None:
        client = self._stack.client
        for order in await self._stack.all_settled(self.holds_of_orders):
            assert order["status"] == "CONFIRMED"
            found = (await client.get(f"{self._survivor}/reservations/{order['orderId']}")).json()
            assert found["hold"] == {"holdId": self.holds_of_orders[order["orderId"]], "outcome": "TAKEN"}
        for hold_id in self.kept:
            assert (await client.get(f"{self._survivor}/holds/{hold_id}")).json()["status"] == "HELD"

    async def _hold(self, url: str, seconds: int) -> tuple[str, str] | None:
        """Hold one unit for a new user; return the hold and the user, None if the process did not answer."""
        user = f"u-{uuid.uuid4().hex}"
        body = {"userId": user, "items": [{"productId": "p1", "quantity": 1}], "ttlSeconds": seconds}
        response = await answered(self._stack.client.post(f"{url}/holds", json=body))
        if response is None:
            return None
        assert response.status_code == 201, response.text
        return response.json()["holdId"], user


async def answered(request: Awaitable[httpx.Response]) -> httpx.Response | None:
    """Return the answer, None if the process died before it."""
    try:
        return await request
    except httpx.HTTPError:
        return None


@pytest.mark.long_form
@pytest.mark.parametrize("service", ["inventory", pytest.param("payment", marks=pytest.mark.extended)])
async def test_a_hot_product_survives_many_kills(
    service: str, mongodb_url: str, clean_broker: str, database_prefix: str
) -> None:
    """After a kill, the restarted process and the one beside it continue within 3 s; no unit is leaked in the end.

    A slow machine has as much more time as an order takes on it when nothing is killed.
    """
    async with run_stack(mongodb_url, clean_broker, database_prefix) as stack:
        await stack.start("order", "inventory", "payment", service)
        await stack.stock("p1", 100_000)
        placed: list[str] = []
        waits: list[float] = []
        since = time.monotonic()
        placed.append(await stack.place(payment={"token": "tok_ok"}))
        await stack.settled(placed[0])
        undisturbed = time.monotonic() - since
        for _ in range(KILLS):
            victim = stack.processes(service)[0]
            placed += await stack.place_many(30, lambda _: {"payment": {"token": "tok_ok"}})
            victim.kill()
            replacement = await stack.launch(service)
            probe = await stack.place(payment={"token": "tok_ok"})
            placed.append(probe)
            since = time.monotonic()
            order = await stack.settled(probe)
            waits.append(time.monotonic() - since)
            assert order["status"] == "CONFIRMED"
            await stack.ready(replacement)
        # Of a single one, the machine may be the reason.
        assert statistics.median(waits) < 3 + 10 * undisturbed, (waits, undisturbed)
        orders = await stack.all_settled(placed)
        assert {order["status"] for order in orders} == {"CONFIRMED"}
        inventory = await stack.inventory("p1")
        held = {"quantity": 100_000 - len(placed), "reserved": len(placed), "shipped": 0}
        assert inventory == {"productId": "p1", **held}
        await stack.assert_books_balance()

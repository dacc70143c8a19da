"""Orders with a delivery slot over real processes, a real broker and a real database."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from shared.clock import utc_now
from tests.support.builders import order_body
from tests.support.processes import Stack, run_stack


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    async with run_stack(mongodb_url, clean_broker, database_prefix) as running:
        await running.start()
        await running.stock("p1", 100)
        yield running
        await running.assert_books_balance()


async def inventory(stack: Stack, method: str, path: str, **body: Any) -> httpx.Response:
    return await stack.client.request(method, f"{stack.url('inventory')}{path}", json=body or None)


async def open_slots(stack: Stack, capacity: int) -> list[str]:
    """Configure two slots per day, the first in half a day; return them, earliest first."""
    opening = (utc_now() + timedelta(hours=12)).strftime("%H:%M")
    times = {"durationMinutes": 1440, "openTime": opening, "closeTime": opening, "horizonSlots": 2}
    return await set_rules(stack, capacity=capacity, **times)


async def set_rules(stack: Stack, **rules: Any) -> list[str]:
    """Change the rules of slots; return the slots on offer, earliest first."""
    assert (await inventory(stack, "PUT", "/slots/config", **rules)).status_code == 200
    return [slot["slotId"] for slot in await slots(stack)]


async def slots(stack: Stack) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await inventory(stack, "GET", "/slots")).json()["items"]
    return found


async def loads(stack: Stack) -> list[float]:
    return [slot["load"] for slot in await slots(stack)]


async def place(stack: Stack, slot: str | None = "auto", token: str = "tok_ok") -> dict[str, Any]:
    """Place an order for 10 and wait until it is settled."""
    return await stack.settled(await stack.place(payment={"token": token}, delivery={"slot": slot}))


async def place_and_cancel(stack: Stack) -> bool:
    """Place an order and cancel it at once; return whether it was cancelled before it was confirmed."""
    order_id = await stack.place(payment={"token": "tok_ok"}, delivery={"slot": "auto"})
    answer = await stack.client.post(f"{stack.url('order')}/orders/{order_id}/cancel")
    status = (await stack.settled(order_id))["status"]
    assert (answer.status_code, status) in ((202, "CANCELLED"), (409, "CONFIRMED"))
    return bool(status == "CANCELLED")


async def test_orders_get_slots_while_there_is_room_and_return_them(stack: Stack) -> None:
    await a_burst_of_orders_fills_the_slots_to_the_last_one_that_fits(stack)
    await orders_one_by_one_get_slots_and_give_them_back(stack)


async def a_burst_of_orders_fills_the_slots_to_the_last_one_that_fits(stack: Stack) -> None:
    await stack.start("inventory")
    first, second = await open_slots(stack, capacity=75)

    def body(index: int) -> dict[str, Any]:
        return {"delivery": {"slot": "auto"}, "payment": {"token": "tok_declined" if index % 4 == 3 else "tok_ok"}}

    orders = await stack.all_settled(await stack.place_many(40, body))
    # Orders with a declined card take up room for a while, so others are refused: late orders get that room.
    late = [await place(stack) for _ in range(14)]

    assert len(orders) == 40
    confirmed = Counter(order["slot"] for order in (*orders, *late) if order["status"] == "CONFIRMED")
    assert confirmed == {first: 7, second: 7}
    assert await loads(stack) == [70, 70]
    reasons = {order["failureReason"] for order in (*orders, *late) if order["status"] == "CANCELLED"}
    until = (await slots(stack))[-1]["end"]
    assert reasons == {"The card was declined", f"No delivery slot with room for 10 until {until}"}
    assert (await stack.inventory("p1"))["quantity"] == 100 - 14


async def orders_one_by_one_get_slots_and_give_them_back(stack: Stack) -> None:
    first, second = await set_rules(stack, capacity=80)

    assert (await place(stack, token="tok_declined"))["status"] == "CANCELLED"
    assert await loads(stack) == [70, 70]
    confirmed = await place(stack)
    assert (confirmed["status"], confirmed["slot"]) == ("CONFIRMED", first)
    reservation = (await inventory(stack, "GET", f"/reservations/{confirmed['orderId']}")).json()
    assert reservation["slot"]["slotId"] == first
    named = await place(stack, slot=second)
    assert (named["status"], named["slot"]) == ("CONFIRMED", second)
    assert await loads(stack) == [80, 80]

    full = await place(stack)
    until = (await slots(stack))[-1]["end"]
    assert (full["status"], full["slot"], full["settled"]) == ("CANCELLED", None, True)
    assert full["failureReason"] == f"No delivery slot with room for 10 until {until}"
    no_room = await stack.client.post(
        f"{stack.url('order')}/orders",
        json=order_body(delivery={"slot": first}),
        headers={"Prefer": "wait=30"},
        timeout=60,
    )
    assert (no_room.status_code, no_room.headers["content-type"]) == (429, "application/problem+json")
    assert no_room.json()["detail"] == f"Delivery {first} has no room for 10: 0 of 80 is free"
    assert no_room.json()["order"]["status"] == "CANCELLED"
    assert no_room.headers["location"] == f"/orders/{no_room.json()['order']['orderId']}"
    refused = await place(stack, slot=first)
    assert refused["failureReason"] == f"Delivery {first} has no room for 10: 0 of 80 is free"
    unknown = await place(stack, slot="slot:1")
    assert unknown["failureReason"] == "There is no delivery slot:1: by the opening hours none starts then"
    tomorrow = await stack.client.post(
        f"{stack.url('order')}/orders",
        json={"userId": "u", "items": [], "totalAmount": 0, "delivery": {"slot": "tomorrow"}},
    )
    assert tomorrow.status_code == 422
    assert "delivery.slot" in [error["field"] for error in tomorrow.json()["errors"]]
    assert await loads(stack) == [80, 80]

    await set_rules(stack, capacity=200)
    cancelled = await asyncio.gather(*(place_and_cancel(stack) for _ in range(8)))
    assert await loads(stack) == [80 + 10 * cancelled.count(False), 80]
    assert (await stack.inventory("p1"))["quantity"] == 84 - cancelled.count(False)

"""Refunds in part from the request to the end, over all four services: money, units, races and crashes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from shared.access.permissions import Role
from shared.failpoints import (
    HANDLED,
    PART_RECORDED,
    PART_SENT,
    PUBLISHED,
    REFUND_REQUESTED,
    RESERVATION_RECORDED,
    STOCK_MOVED,
    SimulatedCrashError,
)
from shared.services import SERVICES
from tests.support.access import KEYS, bearer
from tests.support.eventually import eventually
from tests.support.shop import Shop, open_shop

ITEMS = [{"productId": "p1", "quantity": 4, "price": 20}, {"productId": "p2", "quantity": 1, "price": 20}]
"""Goods for 100."""


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def shop(mongodb_url: str, database_prefix: str) -> AsyncIterator[Shop]:
    async with open_shop(mongodb_url, database_prefix) as shop:
        shop.settings |= {"resend_after_seconds": 0.2, "approval_amount": "1000"}
        yield shop


@pytest.fixture
async def open_for_business(shop: Shop) -> AsyncIterator[Shop]:
    async with shop.all_running():
        await shop.ask("inventory", "PUT", "/inventory/p2", {"quantity": 10})
        yield shop


async def confirmed(shop: Shop, token: str = "tok_ok", **changes: Any) -> str:
    """Place an order for 100 and return its id once it is CONFIRMED."""
    body: dict[str, Any] = {"items": ITEMS, "totalAmount": 100, "payment": {"token": token}} | changes
    order_id = await shop.place(**body)
    assert (await shop.settled(order_id))["status"] == "CONFIRMED"
    return order_id


async def ask(shop: Shop, order_id: str, body: Any, **headers: str) -> httpx.Response:
    client = shop._clients["order"]
    answer = await client.post(f"/orders/{order_id}/refunds", json=body, headers=headers)
    assert answer.headers.get("location") == (f"/orders/{order_id}/refunds" if answer.status_code == 202 else None)
    return answer


async def refunds(shop: Shop, order_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await shop.ask("order", "GET", f"/orders/{order_id}/refunds"))["items"]
    return found


async def payment(shop: Shop, order_id: str) -> dict[str, Any]:
    found: dict[str, Any] = await shop.ask("payment", "GET", f"/payments/{order_id}")
    return found


async def free(shop: Shop, product_id: str) -> int:
    return int((await shop.ask("inventory", "GET", f"/inventory/{product_id}"))["quantity"])


async def test_lines_are_refunded_and_their_units_are_free_again(open_for_business: Shop) -> None:
    shop = open_for_business
    order_id, before = await confirmed(shop), await free(shop, "p1")
    body = {"items": [{"productId": "p1", "quantity": 3}], "reason": "Three were broken", "restock": True}
    answer = await ask(shop, order_id, body)
    assert answer.status_code == 202, answer.text
    asked = answer.json()
    assert (asked["amount"], asked["status"]) == (60, "PENDING")
    order = await shop.settled(order_id)
    assert (order["refundedAmount"], order["status"], order["paymentStatus"]) == (60, "CONFIRMED", "PROCESSED")
    (made,) = await refunds(shop, order_id)
    assert made["refundId"] == asked["refundId"]
    assert (made["status"], made["returned"], made["reason"]) == ("REFUNDED", True, "Three were broken")
    assert made["items"] == body["items"]
    assert await free(shop, "p1") == before + 3
    assert (await payment(shop, order_id))["refundedAmount"] == 60
    events = [(entry["event"], entry.get("message")) for entry in order["history"][-3:]]
    name = f"Refund {asked['refundId']}"
    assert events == [
        ("order.refund_part_requested", f"{name}: Three were broken"),
        ("payment.refunded_part", name),
        ("stock.returned", name),
    ]


async def test_an_amount_is_refunded_without_touching_the_stock(open_for_business: Shop) -> None:
    shop = open_for_business
    order_id, before = await confirmed(shop), await free(shop, "p1")
    assert (await ask(shop, order_id, {"amount": 33.33})).status_code == 202
    assert (await shop.settled(order_id))["refundedAmount"] == 33.33
    assert await free(shop, "p1") == before


@pytest.mark.parametrize("keyed", [True, False], ids=["with keys", "without keys"])
async def test_ten_refunds_of_60_of_100_at_once_make_one(open_for_business: Shop, keyed: bool) -> None:
    shop = open_for_business
    order_id = await confirmed(shop)
    headers = [{"Idempotency-Key": f"k{number}"} if keyed else {} for number in range(10)]
    answers = await asyncio.gather(*(ask(shop, order_id, {"amount": 60}, **each) for each in headers))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 9
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.json()["detail"].endswith("40 USD of 100 USD is left, not 60 USD")
    assert (await shop.settled(order_id))["refundedAmount"] == 60
    assert (await payment(shop, order_id))["refundedAmount"] == 60


async def test_a_key_makes_one_refund(open_for_business: Shop) -> None:
    shop = open_for_business
    order_id, key = await confirmed(shop), {"Idempotency-Key": "return-1"}
    answers = await asyncio.gather(*(ask(shop, order_id, {"amount": 10}, **key) for _ in range(6)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["refundId"] for answer in answers}) == 1
    await shop.settled(order_id)
    repeated = (await ask(shop, order_id, {"amount": 10}, **key)).json()
    assert repeated["status"] == "REFUNDED"
    assert (await ask(shop, order_id, {"amount": 11}, **key)).status_code == 422
    other = await confirmed(shop)
    assert (await ask(shop, other, {"amount": 10}, **key)).json()["refundId"] != repeated["refundId"]
    assert (await shop.settled(order_id))["refundedAmount"] == 10


async def test_never_more_units_than_were_bought(open_for_business: Shop) -> None:
    shop = open_for_business
    order_id = await confirmed(shop)
    assert (await ask(shop, order_id, {"items": [{"productId": "p1", "quantity": 3}]})).status_code == 202
    more = await ask(shop, order_id, {"items": [{"productId": "p1", "quantity": 2}], "restock": True})
    assert more.status_code == 409
    assert more.json()["detail"].endswith("1 units of p1 are left, not 2")
    unknown = await ask(shop, order_id, {"items": [{"productId": "p9", "quantity": 1}]})
    assert (unknown.status_code, "0 units of p9" in unknown.text) == (409, True)
    assert len(await refunds(shop, order_id)) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "either amount or items"),
        ({"amount": 1, "items": [{"productId": "p1", "quantity": 1}]}, "either amount or items"),
        ({"amount": 1, "restock": True}, "needs items"),
        ({"amount": 0}, "greater than 0"),
        ({"amount": -1}, "greater than 0"),
        ({"amount": 0.001}, "two decimals"),
        ({"items": []}, "at least 1"),
        ({"items": [{"productId": "p1", "quantity": 0}]}, "must be at least 1"),
        ({"items": [{"productId": "p1", "quantity": 1}] * 2}, "listed twice"),
        ({"amount": 1, "to": "me"}, "to"),
    ],
)
async def test_invalid_requests_are_refused(shop: Shop, body: dict[str, Any], field: str) -> None:
    async with shop.running("order"):
        answer = await ask(shop, "o1", body)
        assert (answer.status_code, field in answer.text) == (422, True), answer.text


async def test_only_fulfilled_goods_are_refunded_in_part(open_for_business: Shop) -> None:
    shop = open_for_business
    declined = await shop.place(payment={"token": "tok_declined"})
    await shop.settled(declined)
    answer = await ask(shop, declined, {"amount": 1})
    assert (answer.status_code, "it is CANCELLED" in answer.text) == (409, True)
    assert (await ask(shop, "unknown", {"amount": 1})).status_code == 404
    assert (await shop._clients["order"].get("/orders/unknown/refunds")).status_code == 404


async def test_lines_that_cost_nothing_are_not_refunded(open_for_business: Shop) -> None:
    shop = open_for_business
    free_item = [*ITEMS, {"productId": "p3", "quantity": 1, "price": 0}]
    await shop.ask("inventory", "PUT", "/inventory/p3", {"quantity": 10})
    order_id = await confirmed(shop, items=free_item)
    answer = await ask(shop, order_id, {"items": [{"productId": "p3", "quantity": 1}]})
    assert (answer.status_code, "cost nothing" in answer.text) == (409, True)


async def test_a_refused_refund_is_visible_and_another_one_may_succeed(open_for_business: Shop) -> None:
    shop = open_for_business
    order_id, before = await confirmed(shop, "tok_refund_refused"), await free(shop, "p1")
    body = {"items": [{"productId": "p1", "quantity": 4}], "restock": True}
    await ask(shop, order_id, body)
    assert (await shop.settled(order_id))["refundedAmount"] == 0
    await ask(shop, order_id, body)
    assert (await shop.settled(order_id))["refundedAmount"] == 80
    first, second = await refunds(shop, order_id)
    assert (first["status"], first["failureReason"]) == ("FAILED", "The card's bank refused the refund")
    assert (second["status"], second["returned"]) == ("REFUNDED", True)
    assert await free(shop, "p1") == before + 4


async def test_an_unknown_outcome_ends_well(open_for_business: Shop) -> None:
    shop = open_for_business
    order_id = await confirmed(shop, "tok_timeout")
    await ask(shop, order_id, {"amount": 60})
    assert (await shop.settled(order_id))["refundedAmount"] == 60
    assert (await payment(shop, order_id))["refundedAmount"] == 60


async def test_a_refund_goes_back_to_the_retainer(open_for_business: Shop) -> None:
    shop = open_for_business
    body = {"clientId": "u1", "retainerType": "general", "initialAmount": 150}
    retainer_id = (await shop.ask("payment", "POST", "/api/retainers", body))["retainer"]["_id"]
    order_id = await confirmed(shop, payment={"method": "retainer", "retainerId": retainer_id})
    await ask(shop, order_id, {"amount": 60})
    await shop.settled(order_id)
    retainer = (await shop.ask("payment", "GET", f"/api/retainers/{retainer_id}"))["data"]
    assert retainer["currentBalance"] == 110


async def test_a_refund_and_a_cancellation_at_once(open_for_business: Shop) -> None:
    """The order is cancelled, and nothing is refunded in part, or confirmed, and not cancelled."""
    shop = open_for_business
    before = await free(shop, "p1")
    orders = [await shop.place(items=ITEMS, totalAmount=100, payment={"token": "tok_ok"}) for _ in range(10)]

    async def refund_when_possible(order_id: str) -> int:
        while True:
            status = (await ask(shop, order_id, {"amount": 60})).status_code
            if status == 202 or (await shop.found(order_id))["status"] != "PENDING":
                return status

    async def cancel(order_id: str) -> int:
        return (await shop._clients["order"].post(f"/orders/{order_id}/cancel")).status_code

    await asyncio.gather(*(race(order_id) for order_id in orders for race in (refund_when_possible, cancel)))
    held = 0
    for order_id in orders:
        order, paid = await shop.settled(order_id), await payment(shop, order_id)
        if order["status"] == "CANCELLED":
            assert (order["refundedAmount"], paid["refundedAmount"]) == (0, 0)
            assert paid["status"] in ("REFUNDED", "VOIDED")
        else:
            assert order["status"] == "CONFIRMED"
            assert order["refundedAmount"] == paid["refundedAmount"]
            held += 4
    assert await free(shop, "p1") == before - held


async def test_the_refunds_of_an_order_come_in_pages(open_for_business: Shop) -> None:
    shop = open_for_business
    order_id = await confirmed(shop)
    asked = [(await ask(shop, order_id, {"amount": amount})).json()["refundId"] for amount in (1, 2, 3)]
    page = await shop.ask("order", "GET", f"/orders/{order_id}/refunds?limit=2")
    rest = await shop.ask("order", "GET", f"/orders/{order_id}/refunds?limit=2&cursor={page['nextCursor']}")
    assert [refund["refundId"] for refund in page["items"] + rest["items"]] == asked
    assert rest["nextCursor"] is None
    await shop.settled(order_id)


@pytest.mark.parametrize("role", [Role.CUSTOMER, Role.VIEWER, Role.ACCOUNTANT, Role.MANAGER])
async def test_others_may_not_refund(shop: Shop, role: Role) -> None:
    async with shop.running("order"):
        assert (await ask(shop, "o1", {"amount": 1}, **bearer(KEYS[role]))).status_code == 403


async def test_staff_refunds_a_large_order_only_through_the_console(open_for_business: Shop) -> None:
    shop = open_for_business
    large = [{"productId": "p1", "quantity": 1, "price": 5000}]
    order_id = await confirmed(shop, items=large, totalAmount=5000)
    operator, console = bearer(KEYS[Role.OPERATOR]), {"Ordersaga-Acts-For": "anna;operator"}
    refused = await ask(shop, order_id, {"amount": 1}, **operator)
    assert (refused.status_code, "second person" in refused.text) == (403, True)
    assert (await ask(shop, order_id, {"amount": 1}, **bearer(KEYS[Role.ADMIN]), **console)).status_code == 202


ORDER_POINTS = [REFUND_REQUESTED, HANDLED, PUBLISHED]
CRASHES = [
    *(("order", point) for point in ORDER_POINTS),
    *(("payment", point) for point in (PART_RECORDED, PART_SENT, HANDLED, PUBLISHED)),
    *(("inventory", point) for point in (STOCK_MOVED, RESERVATION_RECORDED, HANDLED, PUBLISHED)),
]


@pytest.mark.parametrize(("service", "point"), CRASHES, ids=[f"{service} at {point}" for service, point in CRASHES])
async def test_a_crash_between_two_steps_of_a_refund(shop: Shop, service: str, point: str) -> None:
    async with contextlib.AsyncExitStack() as others:
        for name in SERVICES:
            if name in ("order", "inventory", "payment") and name != service:
                await others.enter_async_context(shop.running(name))
        async with shop.running(service):
            await shop.ask("inventory", "PUT", "/inventory/p2", {"quantity": 10})
            order_id, before = await confirmed(shop), await free(shop, "p1")
        crashed = asyncio.Event()

        def crash(reached: str) -> None:
            if reached == point and not crashed.is_set():
                crashed.set()
                raise SimulatedCrashError(point)

        async with shop.running(service, crash):
            await ask(shop, order_id, {"items": [{"productId": "p1", "quantity": 2}], "restock": True})
            await eventually(lambda: _advanced(shop, crashed), 30, "the crash")
        async with shop.running(service):
            order = await shop.settled(order_id)
            assert order["refundedAmount"] == 40
            assert (await payment(shop, order_id))["refundedAmount"] == 40
            assert await free(shop, "p1") == before + 2
            assert _events(order, "order.refund_part_requested", "payment.refunded_part", "stock.returned") == [1, 1, 1]


async def _advanced(shop: Shop, crashed: asyncio.Event) -> bool:
    shop.broker.advance(1)
    return crashed.is_set()


def _events(order: dict[str, Any], *names: str) -> Sequence[int]:
    return [sum(entry["event"] == name for entry in order["history"]) for name in names]

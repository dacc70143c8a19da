"""The routes of holds, and an order with a hold on its way through all services."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.access.permissions import Role
from tests.support.access import ADMIN, RING, bearer
from tests.support.builders import order_body
from tests.support.shop import Shop, open_shop

SHOP = bearer(RING.add(Role.CLIENT, "shop"))
RIVAL = bearer(RING.add(Role.CLIENT, "rival"))
ANNA = bearer(RING.add(Role.CUSTOMER, "shop", "anna"))
BEN = bearer(RING.add(Role.CUSTOMER, "shop", "ben"))
VIEWER = bearer(RING.add(Role.VIEWER, "host"))

ONE = {"userId": "anna", "items": [{"productId": "p1", "quantity": 1}], "ttlSeconds": 600}


@pytest.fixture
async def shop(mongodb_url: str, database_prefix: str) -> AsyncIterator[Shop]:
    async with open_shop(mongodb_url, database_prefix) as opened, opened.all_running():
        await opened.ask("inventory", "PUT", "/products/p1", {"kind": "goods", "price": 10})
        await opened.ask("inventory", "PUT", "/inventory/p1", {"quantity": 3})
        yield opened


async def send(
    shop: Shop,
    caller: dict[str, str],
    method: str,
    path: str,
    body: Any = None,
    service: str = "inventory",
    **headers: str,
) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await shop._clients[service].request(method, path, json=body, headers=caller | sent)


async def stock(shop: Shop) -> tuple[int, int]:
    found = (await send(shop, ADMIN, "GET", "/inventory/p1")).json()
    return found["quantity"], found["reserved"]


async def test_a_hold_is_made_shown_extended_and_deleted(shop: Shop) -> None:
    made = await send(shop, ANNA, "POST", "/holds", ONE)
    assert made.status_code == 201, made.text
    hold = made.json()
    assert (hold["status"], hold["items"], hold["slot"]) == ("HELD", [{"productId": "p1", "quantity": 1}], None)
    assert await stock(shop) == (2, 1)
    path = f"/holds/{hold['holdId']}"
    assert (await send(shop, SHOP, "GET", path)).json() == hold

    extended = await send(shop, ANNA, "POST", f"{path}/extend", {"ttlSeconds": 3600})
    assert extended.json()["expiresAt"] > hold["expiresAt"]

    for _ in range(2):
        assert (await send(shop, ANNA, "DELETE", path)).status_code == 204
    assert await stock(shop) == (3, 0)
    assert (await send(shop, ANNA, "GET", path)).json()["status"] == "DELETED"
    over = await send(shop, ANNA, "POST", f"{path}/extend", {"ttlSeconds": 60})
    assert (over.status_code, over.json()["detail"]) == (409, f"Hold {hold['holdId']} is over: it is DELETED")


async def test_a_hold_that_does_not_fit_says_what(shop: Shop) -> None:
    answer = await send(shop, ANNA, "POST", "/holds", ONE | {"items": [{"productId": "p1", "quantity": 4}]})
    assert (answer.status_code, answer.json()["detail"]) == (409, "Insufficient stock for p1: asked 4, free 3")
    unknown = await send(shop, ANNA, "POST", "/holds", ONE | {"items": [{"productId": "p9", "quantity": 1}]})
    assert (unknown.status_code, unknown.json()["detail"]) == (409, "Unknown product p9")
    assert await stock(shop) == (3, 0)


WRONG: list[dict[str, Any]] = [
    {"ttlSeconds": 3601},
    {"ttlSeconds": 0},
    {"items": []},
    {"items": [{"productId": "p1", "quantity": 1}] * 2},
    {"items": [{"productId": f"p{n}", "quantity": 1} for n in range(101)]},
    {"items": [{"productId": "p1", "quantity": 0}]},
    {"slot": "auto"},
    {"slot": "tomorrow"},
    {"note": "x"},
]


async def test_a_wrong_hold_is_refused(shop: Shop) -> None:
    for wrong in WRONG:
        assert (await send(shop, ANNA, "POST", "/holds", ONE | wrong)).status_code == 422, wrong


async def test_a_key_makes_one_hold(shop: Shop) -> None:
    first = await send(shop, ANNA, "POST", "/holds", ONE, Idempotency_Key="k")
    again = await send(shop, ANNA, "POST", "/holds", ONE, Idempotency_Key="k")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert (await send(shop, ANNA, "GET", first.headers["location"])).json() == first.json()
    other = await send(shop, ANNA, "POST", "/holds", ONE | {"ttlSeconds": 5}, Idempotency_Key="k")
    assert other.status_code == 422
    assert (await send(shop, RIVAL, "POST", "/holds", ONE, Idempotency_Key="k")).json() != first.json()
    assert await stock(shop) == (1, 2)


async def test_another_persons_hold_does_not_exist(shop: Shop) -> None:
    hold_id = (await send(shop, ANNA, "POST", "/holds", ONE)).json()["holdId"]
    for stranger in (BEN, RIVAL):
        assert (await send(shop, stranger, "GET", f"/holds/{hold_id}")).status_code == 404
        assert (await send(shop, stranger, "DELETE", f"/holds/{hold_id}")).status_code == 404
        body = {"ttlSeconds": 60}
        assert (await send(shop, stranger, "POST", f"/holds/{hold_id}/extend", body)).status_code == 404
    assert (await send(shop, BEN, "POST", "/holds", ONE)).status_code == 403
    assert (await send(shop, VIEWER, "POST", "/holds", ONE)).status_code == 403
    assert (await send(shop, VIEWER, "GET", f"/holds/{hold_id}")).status_code == 200
    assert await stock(shop) == (2, 1)


async def test_a_user_has_a_limited_number_of_holds(shop: Shop) -> None:
    await shop.ask("inventory", "PUT", "/inventory/p1", {"quantity": 50})
    made = await asyncio.gather(*(send(shop, ANNA, "POST", "/holds", ONE) for _ in range(50)))
    assert Counter(answer.status_code for answer in made) == {201: 20, 429: 30}
    assert await stock(shop) == (30, 20)
    assert (await send(shop, SHOP, "POST", "/holds", ONE | {"userId": "ben"})).status_code == 201


async def test_an_order_takes_its_hold_over_and_the_hold_belongs_to_it(shop: Shop) -> None:
    hold_id = (await send(shop, ANNA, "POST", "/holds", ONE | {"items": [{"productId": "p1", "quantity": 3}]})).json()[
        "holdId"
    ]
    lines = [{"productId": "p1", "quantity": 2, "price": 10}]
    body = order_body(userId="anna", items=lines, totalAmount=20, holdId=hold_id)
    placed = await send(shop, ANNA, "POST", "/orders", body, service="order")
    assert placed.status_code == 202, placed.text
    order_id = placed.json()["orderId"]

    assert (await shop.settled(order_id))["status"] == "CONFIRMED"

    reservation = (await send(shop, ANNA, "GET", f"/reservations/{order_id}")).json()
    assert reservation["hold"] == {"holdId": hold_id, "outcome": "TAKEN"}
    assert await stock(shop) == (1, 2)
    shown = (await send(shop, ANNA, "GET", f"/holds/{hold_id}")).json()
    assert (shown["status"], shown["orderId"]) == ("TAKEN", order_id)
    deleted = await send(shop, ANNA, "DELETE", f"/holds/{hold_id}")
    assert (deleted.status_code, deleted.json()["detail"]) == (
        409,
        f"Hold {hold_id} belongs to order {order_id}: cancel the order",
    )

"""Orders whose cards are captured when they are fulfilled, over all services: goods, servers, refusals, crashes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from inventory_service.stock_items import COLLECTION as PRODUCTS
from payment_service.gateways.simulated import CAPTURE_REFUSED
from payment_service.refusals import EXPIRED
from shared.database import Document
from shared.failpoints import CAPTURE_SENT, HANDLED, PUBLISHED, SimulatedCrashError
from tests.support.builders import connected
from tests.support.eventually import eventually
from tests.support.servers import Servers
from tests.support.shop import A_SERVER, SERVICES, Shop, open_shop
from tests.support.violations import violations


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@dataclass(frozen=True)
class Opened:
    """What all tests share: the provider, and the products as they were at first."""

    settings: dict[str, object]
    products: list[Document]


@pytest.fixture(scope="module")
async def opened(servers: Servers, module_prefix: str) -> AsyncIterator[Opened]:
    async with (
        open_shop(servers.mongodb_url, module_prefix) as shop,
        connected(servers.mongodb_url, f"{module_prefix}_inventory") as inventory,
    ):
        yield Opened(shop.settings, await inventory[PRODUCTS].find().to_list())


@pytest.fixture
async def shop(opened: Opened, mongodb_url: str, database_prefix: str) -> Shop:
    async with connected(mongodb_url, f"{database_prefix}_inventory") as inventory:
        await inventory[PRODUCTS].delete_many({})
        await inventory[PRODUCTS].insert_many(opened.products)
    # The token refuses the first capture only, so an order that waits for an operator must not be captured again.
    changes = {"resend_after_seconds": 60, "card_capture": "on_confirm"}
    return Shop(mongodb_url, database_prefix, opened.settings | changes)


@pytest.fixture
def sends_once(shop: Shop) -> None:
    """On a slow machine an order could be published again while it is under way, and captured twice."""
    shop.settings["republish_after_seconds"] = 60


@pytest.fixture
async def open_for_business(shop: Shop, sends_once: None) -> AsyncIterator[Shop]:
    async with shop.all_running():
        yield shop


async def post(shop: Shop, path: str, body: Any = None) -> httpx.Response:
    return await shop._clients["order"].post(path, json=body or {})


async def failed(shop: Shop, token: str, **body: Any) -> dict[str, Any]:
    """Place an order whose capture is refused, and return it once it is FAILED."""
    order_id = await shop.place(payment={"token": token}, **body)

    async def has_failed() -> bool:
        shop.broker.advance(1)
        return bool((await shop.found(order_id))["status"] == "FAILED") and not shop.depth()

    await eventually(has_failed, 30, "the capture to be refused")
    return await shop.found(order_id)


def events(order: dict[str, Any]) -> list[str]:
    return [entry["event"] for entry in order["history"]]


async def charges(shop: Shop, order_id: str) -> str:
    """Return the status of the payment, as the payment service knows it."""
    return str((await shop.ask("payment", "GET", f"/payments/{order_id}"))["status"])


async def test_goods_are_captured_when_they_are_confirmed(open_for_business: Shop) -> None:
    shop = open_for_business
    order = await shop.settled(await shop.place(payment={"token": "tok_ok"}))
    assert (order["status"], order["paymentStatus"]) == ("CONFIRMED", "PROCESSED")
    assert events(order)[-1] == "payment.captured"
    (authorised,) = [entry for entry in order["history"] if entry["event"] == "payment.processed"]
    assert authorised["message"] == "Authorised"
    assert await charges(shop, order["orderId"]) == "PROCESSED"
    assert (await post(shop, f"/orders/{order['orderId']}/deliver")).status_code == 202
    assert (await shop.settled(order["orderId"]))["status"] == "COMPLETED"
    assert (await post(shop, f"/orders/{order['orderId']}/refunds", {"amount": 5})).status_code == 202
    assert (await shop.settled(order["orderId"]))["refundedAmount"] == 5


async def test_a_server_is_captured_when_it_is_ready(open_for_business: Shop) -> None:
    shop = open_for_business
    order = await shop.settled(await shop.place(payment={"token": "tok_ok"}, **A_SERVER))
    assert (order["status"], order["paymentStatus"]) == ("COMPLETED", "PROCESSED")
    assert events(order)[-2:] == ["provisioning.completed", "payment.captured"]


async def test_an_order_that_is_cancelled_is_voided(open_for_business: Shop) -> None:
    shop = open_for_business
    body: dict[str, Any] = {"items": [{"productId": "p1", "quantity": 1000, "price": 1}], "totalAmount": 1000}
    order = await shop.settled(await shop.place(payment={"token": "tok_ok"}, **body))
    assert (order["status"], order["paymentStatus"]) == ("CANCELLED", "VOIDED")
    assert await charges(shop, order["orderId"]) == "VOIDED"


async def test_nothing_leaves_and_nothing_is_refunded_before_the_capture(shop: Shop) -> None:
    crashed = asyncio.Event()

    def crash(point: str) -> None:
        if point == CAPTURE_SENT:
            crashed.set()
            raise SimulatedCrashError(point)

    async with shop.all_running("order", "inventory"):
        async with shop.running("payment", crash):
            order_id = await shop.place(payment={"token": "tok_ok"})
            await eventually(lambda: _crashed_or_settled(shop, order_id, crashed), 30, "the crash")
            order = await shop.found(order_id)
            assert (order["status"], order["paymentStatus"], order["settled"]) == ("CONFIRMED", "AUTHORIZED", False)
            for path, body in (("deliver", {}), ("refunds", {"amount": 1}), ("cancel", {})):
                answer = await post(shop, f"/orders/{order_id}/{path}", body)
                assert answer.status_code == 409
                assert "its payment is authorised, and not captured yet" in answer.json()["detail"]
        async with shop.running("payment"):
            assert (await shop.settled(order_id))["paymentStatus"] == "PROCESSED"


async def _status(shop: Shop, order_id: str, status: str) -> bool:
    shop.broker.advance(1)
    return bool((await shop.found(order_id))["status"] == status)


@pytest.mark.parametrize("body", [{}, A_SERVER], ids=["goods", "a server"])
async def test_a_refused_capture_waits_for_an_operator_who_retries(
    open_for_business: Shop, body: dict[str, Any]
) -> None:
    shop = open_for_business
    order = await failed(shop, "tok_capture_refused", **body)
    assert (order["failureReason"], order["paymentStatus"]) == (CAPTURE_REFUSED, "AUTHORIZED")
    assert (order["stockStatus"], order["settled"]) == ("RESERVED", False)
    assert (await post(shop, f"/orders/{order['orderId']}/retry")).status_code == 202
    done = await shop.settled(order["orderId"])
    assert (done["status"], done["paymentStatus"]) == ("COMPLETED" if body else "CONFIRMED", "PROCESSED")
    assert done["failureReason"] is None
    if body:
        assert events(done).count("provisioning.completed") == 1
        assert done["server"] == order["server"]


@pytest.mark.parametrize("token", ["tok_capture_refused", "tok_authorization_expires"])
@pytest.mark.parametrize("body", [{}, A_SERVER], ids=["goods", "server"])
async def test_the_books_balance_while_an_order_that_was_not_captured_waits(
    shop: Shop, sends_once: None, mongodb_url: str, database_prefix: str, body: dict[str, Any], token: str
) -> None:
    shop.settings["failed_hold_seconds"] = 3600
    async with shop.all_running():
        order = await failed(shop, token, **body)
        assert order["completedAt"] is None
        assert await violations(mongodb_url, database_prefix) == []


@pytest.mark.parametrize("how", ["refund", "end of the hold"])
async def test_an_expired_authorisation_is_given_up(shop: Shop, sends_once: None, how: str) -> None:
    shop.settings["failed_hold_seconds"] = 0.5 if how != "refund" else 600
    async with shop.all_running():
        before = await shop.ask("inventory", "GET", "/inventory/p1")
        order = await failed(shop, "tok_authorization_expires")
        assert order["failureReason"] == EXPIRED
        if how == "refund":
            assert (await post(shop, f"/orders/{order['orderId']}/retry")).status_code == 202
            await eventually(lambda: _status(shop, order["orderId"], "FAILED"), 30, "the second refusal")
            assert (await post(shop, f"/orders/{order['orderId']}/refund")).status_code == 202
        done = await shop.settled(order["orderId"])
        assert (done["status"], done["stockStatus"], done["paymentStatus"]) == ("FAILED", "RELEASED", "VOIDED")
        assert await shop.ask("inventory", "GET", "/inventory/p1") == before
        refused = await post(shop, f"/orders/{order['orderId']}/retry")
        assert refused.status_code == 409


CRASHES = [
    ("payment", CAPTURE_SENT, 1),
    *((service, point, nth) for service in ("payment", "order") for point in (HANDLED, PUBLISHED) for nth in (1, 2, 3)),
]


@pytest.mark.parametrize(("service", "point", "nth"), CRASHES, ids=[f"{s} at {p}, {nth}" for s, p, nth in CRASHES])
async def test_a_crash_between_two_steps_of_an_order_with_a_capture(
    shop: Shop, service: str, point: str, nth: int
) -> None:
    """The answers, the join and the capture are handled and published one after the other: hence the n-th time."""
    reached = 0
    crashed = asyncio.Event()

    def crash(name: str) -> None:
        nonlocal reached
        if name == point and not crashed.is_set():
            reached += 1
            if reached == nth:
                crashed.set()
                raise SimulatedCrashError(point)

    async with contextlib.AsyncExitStack() as others:
        for name in SERVICES:
            if name in ("order", "inventory", "payment") and name != service:
                await others.enter_async_context(shop.running(name))
        async with shop.running(service, crash):
            order_id = await shop.place(payment={"token": "tok_ok"})
            await eventually(lambda: _crashed_or_settled(shop, order_id, crashed), 30, "the crash")
        async with shop.running(service):
            order = await shop.settled(order_id)
            assert (order["status"], order["paymentStatus"]) == ("CONFIRMED", "PROCESSED")
            assert events(order).count("payment.captured") == 1
            assert await charges(shop, order_id) == "PROCESSED"


async def _crashed_or_settled(shop: Shop, order_id: str, crashed: asyncio.Event) -> bool:
    shop.broker.advance(1)
    return crashed.is_set() or bool((await shop.found(order_id))["settled"])

"""The life of an order in the console: found by its customer, delivered, refunded in part, and seen in its timeline."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import expect

from tests.support.access import ADMIN, ADMIN_KEY
from tests.support.browser import run_browser
from tests.support.processes import Stack, run_stack
from tests.unit.test_new_order import FULL

PATIENCE = 60_000
"""Milliseconds that a page may take on a loaded machine."""


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    async with run_stack(mongodb_url, clean_broker, database_prefix, api_key=ADMIN_KEY) as running:
        await running.start("order", "inventory", "payment")
        urls = {f"{name}_url": running.url(name) for name in ("order", "inventory", "payment")}
        await running.start("console", **urls)
        yield running
        await running.assert_books_balance()


async def test_an_operator_finds_an_order_delivers_it_and_refunds_one_line(stack: Stack) -> None:
    for product in ("p1", "p2"):
        await stack.stock(product, 10)
    order_id = await stack.place(**FULL | {"payment": {"token": "tok_ok"}})
    other = await stack.place(payment={"token": "tok_ok"})
    order = (await stack.all_settled([order_id, other]))[0]
    async with run_browser() as browser:
        page = await browser.new_page(base_url=stack.url("console"), extra_http_headers=ADMIN)
        page.set_default_timeout(PATIENCE)
        await page.goto("/orders")
        await page.get_by_label("Customer").fill("smith")
        await page.get_by_role("button", name="Search").click()
        await expect(page.locator("tbody tr")).to_have_count(1)
        await page.get_by_role("link", name=order["orderNumber"]).click()
        await expect(page.locator("h1")).to_have_text(f"Order {order['orderNumber']}")
        await expect(page.locator("body")).to_contain_text("1 High Street")

        await page.get_by_role("link", name="Deliver…").click()
        await page.get_by_label("Reason").fill("picked up")
        await page.get_by_role("button", name="Deliver").click()
        await expect(page.locator(".facts")).to_contain_text("COMPLETED")
        assert (await stack.settled(order_id))["stockStatus"] == "SHIPPED"

        await page.goto(f"/orders?number={order['orderNumber'].lower()}")
        await page.get_by_role("link", name="Refund in part…").click()
        await page.get_by_label("What").select_option("p2")
        await page.get_by_label("Put the units back").check()
        await page.get_by_label("Reason").fill("one was cold")
        await page.get_by_role("button", name="Refund in part").click()
        assert (await stack.settled(order_id))["refundedAmount"] == 5.5
        await page.goto(f"/orders/{order_id}")
        await expect(page.locator("section[aria-labelledby=refunds]")).to_contain_text("REFUNDED")
        for step in ("Delivered", "one was cold"):
            await expect(page.locator("section[aria-labelledby=saga]")).to_contain_text(step)
    assert await stack.inventory("p2") == {"productId": "p2", "quantity": 10, "reserved": 0, "shipped": 0}
    assert await stack.inventory("p1") == {"productId": "p1", "quantity": 7, "reserved": 1, "shipped": 2}

"""An operator's night, on a stack and in a real browser: failures are understood, fixed and replayed."""

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import aiohttp
import orjson
import psutil
import pytest
from playwright.async_api import Page, expect

from shared.database import Database
from shared.topology import EXCHANGE, INVENTORY_INBOX, ORDER_INBOX, PAYMENT_INBOX
from tests.support.access import ADMIN, ADMIN_KEY, keys_file
from tests.support.browser import run_browser
from tests.support.builders import connected, order_body
from tests.support.eventually import eventually
from tests.support.servers import Servers

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120
GOOD, HIT = 300, 100
WITHOUT_WEBHOOKS = "order,inventory,payment,provisioning,simulator,console"
KEEP_SECONDS = 2.0
"""Idle connections are closed earlier than the services close them (5 s)."""
AT_ONCE = 40


@dataclass
class Shop:
    """A stack that `ordersaga up` started, and actions on it."""

    environment: dict[str, str]
    client: aiohttp.ClientSession
    orders: Database
    broker: aio_pika.abc.AbstractRobustConnection
    processes: dict[str, dict[str, Any]]

    def url(self, name: str) -> str:
        return str(self.processes[name]["url"])

    async def process(self, name: str) -> psutil.Process:
        """The service's current process: a killed one is replaced."""
        status = orjson.loads(await ordersaga(self.environment, "status", "--json"))
        return psutil.Process(next(p["pid"] for p in status["processes"] if p["name"] == name))

    async def place(self, product: str = "p1") -> str:
        body = order_body(items=[{"productId": product, "quantity": 1, "price": 10}])
        async with self.client.post(f"{self.url('order')}/orders", json=body) as response:
            assert response.status == 202, await response.text()
            return str((await response.json())["orderId"])

    async def place_many(self, number: int) -> list[str]:
        return list(await asyncio.gather(*(self.place() for _ in range(number))))

    async def stock(self, product: str, quantity: int) -> None:
        address = f"{self.url('inventory')}/inventory/{product}"
        async with self.client.put(address, json={"quantity": quantity}) as response:
            assert response.ok, await response.text()

    async def all_are(self, order_ids: list[str], **fields: str | None) -> None:
        """Wait until all of these orders have these fields."""

        async def there() -> bool:
            found = await self.orders["orders"].count_documents({"_id": {"$in": order_ids}, **fields})
            return found == len(order_ids)

        await eventually(there, PATIENCE_SECONDS, f"{len(order_ids)} orders to be {fields}")

    @asynccontextmanager
    async def without(self, routing_key: str, queue: str) -> AsyncIterator[None]:
        """Keep messages of one type from a queue for a while."""
        channel = await self.broker.channel()
        inbox = await channel.get_queue(queue)
        await inbox.unbind(EXCHANGE, routing_key)
        try:
            yield
        finally:
            await inbox.bind(EXCHANGE, routing_key)
            await channel.close()

    async def publish(self, queue: str, kind: str, *bodies: bytes) -> None:
        """Send messages of one type straight to a queue."""
        channel = await self.broker.channel()
        persistent = aio_pika.DeliveryMode.PERSISTENT
        for body in bodies:
            message = aio_pika.Message(body, type=kind, message_id=secrets.token_hex(8), delivery_mode=persistent)
            await channel.default_exchange.publish(message, routing_key=queue)
        await channel.close()


def created(order_id: str, product: str = "p1", quantity: object = 1) -> bytes:
    """The message that the order service sends for a new order."""
    body = order_body(items=[{"productId": product, "quantity": quantity, "price": 10}])
    return orjson.dumps(body | {"orderId": order_id, "currency": "USD", "payment": {"method": "card"}, "delivery": {}})


async def ordersaga(environment: dict[str, str], *words: str) -> str:
    """Run the command line; return its output."""
    command = [sys.executable, "-m", "operations.cli", *words]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
async def shop(tmp_path: Path, servers: Servers, database_prefix: str, clean_broker: str) -> AsyncIterator[Shop]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")} | {
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "ORDERSAGA_DATA_DIR": str(tmp_path / "stack"),
        "ORDERSAGA_MONGODB_URL": servers.mongodb_url,
        "ORDERSAGA_AMQP_URL": clean_broker,
        "ORDERSAGA_DATABASE_PREFIX": database_prefix,
        "ORDERSAGA_PAYMENT_FAILURE_RATE": "0",
        "ORDERSAGA_KEYS_FILE": str(keys_file()),
        "ORDERSAGA_API_KEY": ADMIN_KEY,
        "ORDERSAGA_REPUBLISH_AFTER_SECONDS": "1",
        "ORDERSAGA_RESEND_AFTER_SECONDS": "3600",  # the corrupted order waits for the operator
        "ORDERSAGA_AUDIT_INTERVAL_SECONDS": "0",  # else the button may show one that runs by itself
        "ORDERSAGA_TOPOLOGY_CHECK_SECONDS": "3600",  # must not restore the bindings that `without` removes
    }
    try:
        await ordersaga(environment, "up", "--detach", "--only", WITHOUT_WEBHOOKS)
        status = orjson.loads(await ordersaga(environment, "status", "--json"))
        broker = await aio_pika.connect_robust(clean_broker)
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=AT_ONCE, keepalive_timeout=KEEP_SECONDS), headers=ADMIN
            ) as client,
            connected(servers.mongodb_url, f"{database_prefix}_orders") as orders,
            broker,
        ):
            yield Shop(environment, client, orders, broker, {p["name"]: p for p in status["processes"]})
    finally:
        await ordersaga(environment, "down")


@pytest.fixture
async def page(shop: Shop) -> AsyncIterator[Page]:
    async with run_browser() as browser:
        found = await browser.new_page(base_url=shop.url("console"), viewport={"width": 1280, "height": 860})
        found.set_default_timeout(PATIENCE_SECONDS * 1000)
        expect.set_options(timeout=PATIENCE_SECONDS * 1000)
        yield found
        expect.set_options(timeout=5000)


# test_incident.py does the same on the pages; tests/faults has the kills: test_dead_letters.py and test_kill.py.
@pytest.mark.extended
async def test_an_operators_night(shop: Shop, page: Page) -> None:
    for product, quantity in (("p1", 5000), ("p2", 10)):
        await shop.stock(product, quantity)
    await sign_in(shop, page)

    corrupted, good = await three_kinds_of_poison_among_good_orders(shop)
    await the_console_shows_three_groups(page)
    await one_is_edited_and_its_order_confirms(shop, page, corrupted)
    await one_is_discarded(page)
    hit = await a_fault_is_fixed_and_all_is_replayed_with_one_click(shop, page)
    await shop.all_are([corrupted, *good, *hit], status="CONFIRMED")
    await the_books_balance(page)
    await every_page_is_there(page, corrupted)


async def sign_in(shop: Shop, page: Page) -> None:
    link = (await ordersaga(shop.environment, "console", "--name", "op-1")).strip()
    await page.goto(link)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_text("Signed in as op-1, admin")).to_be_visible()


async def three_kinds_of_poison_among_good_orders(shop: Shop) -> tuple[str, list[str]]:
    """A body that is not JSON, an answer for an unknown order, and an order that inventory received corrupted."""
    async with shop.without("order.created", INVENTORY_INBOX):
        corrupted = await shop.place("p2")
        # All its messages are published, or inventory would receive the correct one again.
        await shop.all_are([corrupted], paymentStatus="PROCESSED", unpublished=None)

    placing = asyncio.create_task(shop.place_many(GOOD))
    await shop.publish(INVENTORY_INBOX, "order.created", created(corrupted, product="p2", quantity="one"))
    await shop.publish(PAYMENT_INBOX, "order.created", b"\x00\x01 this is not JSON <b>")
    await shop.publish(ORDER_INBOX, "stock.released", b'{"orderId": "unknown-order"}')
    good = await placing
    await shop.all_are(good, status="CONFIRMED")
    return corrupted, good


async def the_console_shows_three_groups(page: Page) -> None:
    await page.goto("/")
    await expect(page.locator(".group-link")).to_have_count(3)
    await expect(page.locator(".group-link .count")).to_have_text(["1", "1", "1"])
    await page.goto("/dead-letters")
    await page.goto("/dead-letters/list")


async def one_is_edited_and_its_order_confirms(shop: Shop, page: Page, corrupted: str) -> None:
    await page.goto(f"/orders/{corrupted}")
    await expect(page.get_by_text("stock: Reserving", exact=True)).to_be_visible()
    await page.get_by_role("link", name="see the dead letter").click()
    await expect(page.locator(".error")).to_contain_text("quantity")
    await page.get_by_role("link", name="Edit and replay").click()
    body = page.locator("#text")
    await page.get_by_label("Reason").fill("the shop sent a word instead of a number")
    await body.fill((await body.input_value()).replace('"one"', "-1"))
    await page.get_by_role("button", name="Preview").click()
    await expect(page.locator(".errors")).to_contain_text("quantity")
    await body.fill((await body.input_value()).replace("-1", "1"))
    await page.get_by_role("button", name="Preview").click()
    await expect(page.locator("ins")).to_have_text("1")
    await page.get_by_role("button", name="Replay with this body").click()
    await page.wait_for_url("**/dead-letters/replays/*")
    await expect(page.get_by_text("Every message was handled.")).to_be_visible()
    await shop.all_are([corrupted], status="CONFIRMED")


async def one_is_discarded(page: Page) -> None:
    await page.goto("/dead-letters")
    await page.locator(".group-link", has_text="which does not exist").click()
    await page.get_by_role("link", name="Discard all…").click()
    await page.get_by_label("Reason").fill("no such order was placed")
    await page.get_by_role("button", name="Discard 1 dead letter").click()
    await expect(page.locator("td .tag-discarded")).to_have_count(1)


async def a_fault_is_fixed_and_all_is_replayed_with_one_click(shop: Shop, page: Page) -> list[str]:
    """Orders are missing from the database, as if an old backup had been restored, until they are inserted again."""
    async with shop.without("order.created", PAYMENT_INBOX):
        hit = await shop.place_many(HIT)
        # All their messages are published: each reaches payment once, and late.
        await shop.all_are(hit, stockStatus="RESERVED", unpublished=None)
    lost = await shop.orders["orders"].find({"_id": {"$in": hit}}).to_list(None)
    await shop.orders["orders"].delete_many({"_id": {"$in": hit}})
    await shop.publish(PAYMENT_INBOX, "order.created", *(created(order_id) for order_id in hit))
    await page.goto("/")
    group = page.locator(".group-link", has_text="payment.processed")
    await expect(group.locator(".count")).to_have_text(str(HIT))
    await shop.orders["orders"].insert_many(lost)

    await group.click()
    await expect(page.get_by_label("Traceback")).to_be_visible()
    await page.get_by_role("link", name="Replay all…").click()
    await page.get_by_label("Reason").fill("the orders are back from the other backup")
    order_service = await shop.process("order")
    await page.get_by_role("button", name=f"Replay {HIT} dead letters").click()
    await expect(page.get_by_text("published")).to_be_visible()
    order_service.kill()
    await expect(page.get_by_text(f"{HIT} of {HIT} published")).to_be_visible()
    await expect(page.get_by_text("Every message was handled.")).to_be_visible()
    return hit


async def the_books_balance(page: Page) -> None:
    await page.goto("/audit")
    await page.get_by_role("button", name="Run an audit").click()
    await expect(page.get_by_text("The books balance.")).to_be_visible()


async def is_logged(page: Page, action: str) -> bool:
    """Load the log of actions; an audit is logged a moment after its result is shown."""
    await page.goto("/actions")
    return await page.get_by_role("cell", name=action).count() > 0


async def every_page_is_there(page: Page, corrupted: str) -> None:
    for path in ("orders", "inventory", "packages", "actions"):
        await page.goto(f"/{path}")
        await expect(page.get_by_text("Not available")).to_have_count(0)
    for action in ("dead-letters.edit", "dead-letters.discard", "dead-letters.replay", "audit"):
        await eventually(partial(is_logged, page, action), PATIENCE_SECONDS, f"{action} to be logged")
    await page.goto(f"/orders/{corrupted}")
    await expect(page.get_by_text("order.created edited and replayed")).to_be_visible()

"""What client developers read runs as it stands: the examples of the Python client's README, and those in examples/."""

import asyncio
import contextlib
import io
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet

from ordersaga_client import (
    AsyncClient,
    Delivery,
    DeliveryStatus,
    FailureCode,
    Item,
    NewOrder,
    Payment,
    SlotsFullError,
    Status,
)
from shared.access.permissions import Role
from shared.services import ORDER
from tests.support.access import KEYS
from tests.support.eventually import eventually
from tests.support.generated_clients import generated
from tests.support.processes import Stack, run_stack
from tests.support.servers import Servers, delete_topology, drop_databases

ROOT = Path(__file__).parents[2]
README = ROOT / "clients/python/README.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
EXAMPLES = [(code, printed) for code, printed in EXAMPLE.findall(README.read_text())]
NODE = ROOT / ".venv/.tools/bin/node"
NOWHERE = "http://127.0.0.1:9/webhooks"
"""Nothing listens there."""
SECONDS = 120
"""For a program that ends by itself, on a slow machine."""


@pytest.fixture(scope="module")
async def stack(servers: Servers) -> AsyncIterator[Stack]:
    """A stack with a product p1 at 9.95, used by a shop's backend: its key is in the environment, as are the URLs."""
    prefix = f"t{secrets.token_hex(8)}"
    await delete_topology(servers.amqp_url)
    async with run_stack(servers.mongodb_url, servers.amqp_url, prefix) as running:
        await running.start("order", "inventory", "payment")
        key = Fernet.generate_key().decode()
        await running.start("notification", webhook_key=key, webhook_allow_private=True)
        product = await running.client.put(
            f"{running.url('inventory')}/products/p1", json={"kind": "goods", "price": 9.95}
        )
        assert product.is_success, product.text
        await running.stock("p1", 100)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ORDERSAGA_ORDER_URL", running.url("order"))
            patch.setenv("ORDERSAGA_NOTIFICATION_URL", running.url("notification"))
            patch.setenv("ORDERSAGA_API_KEY", KEYS[Role.CLIENT])
            patch.setenv("RECEIVER_URL", NOWHERE)
            yield running
        await running.assert_books_balance()
    await delete_topology(servers.amqp_url)
    await drop_databases(servers.mongodb_url, prefix)


async def run(*command: str, **variables: str) -> tuple[int | None, str]:
    """Run a program to its end; its exit status and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, printed.decode()


def execute(code: str) -> str:
    """Run an example; what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(README), "exec"), {"__name__": "__main__"})
    return printed.getvalue()


@pytest.mark.usefixtures("stack")
async def test_the_examples_of_the_readme_print_what_it_says() -> None:
    assert len(EXAMPLES) == 6
    for code, printed in EXAMPLES:
        assert await asyncio.to_thread(execute, code) == printed


@pytest.mark.usefixtures("stack")
async def test_the_walk_with_curl_succeeds() -> None:
    status, printed = await run("examples/orders.sh")
    assert status == 0, printed
    for expected in (
        '"name":"client of tests"',
        '"status":"CONFIRMED"',
        "still ",
        "The card was declined",
        "\n422",
        "\n409",
    ):
        assert expected in printed


@pytest.mark.usefixtures("stack")
async def test_the_walk_with_javascript_succeeds() -> None:
    assert NODE.exists(), "run `make setup-tests`"
    status, printed = await run(str(NODE), "examples/orders.mjs")
    assert status == 0, printed
    course = r"placed \S+\norder\.created PENDING\n(.*\n)*\S+ CONFIRMED\n(settled.*\n)?422 items, totalAmount\n"
    assert re.fullmatch(course, printed), printed


async def test_a_generated_client_places_an_order_waits_for_it_and_lists_it(stack: Stack, tmp_path: Path) -> None:
    with generated(ORDER.name, tmp_path) as module:
        place, list_ = module("api.orders.place_order"), module("api.orders.list_orders")
        body = module("models.new_order").NewOrder.from_dict(
            {
                "userId": "generated",
                "items": [{"productId": "p1", "quantity": 1, "price": 9.95}],
                "totalAmount": 9.95,
                "payment": {"token": "tok_ok"},
            }
        )
        client = module("").AuthenticatedClient(base_url=stack.url("order"), token=os.environ["ORDERSAGA_API_KEY"])
        async with client:
            placed = await place.asyncio_detailed(client=client, body=body, idempotency_key="g1", prefer="wait=30")
            assert (placed.status_code, placed.parsed.status) == (200, "CONFIRMED")
            page = await list_.asyncio(client=client, user_id="generated", status=[placed.parsed.status])
            assert [order.order_id for order in page.items] == [placed.parsed.order_id]


async def test_an_order_for_which_no_slot_has_room_is_an_error_with_the_order(stack: Stack) -> None:
    url = f"{stack.url('inventory')}/products/villa"
    assert (await stack.client.put(url, json={"kind": "goods", "price": 200_000})).is_success
    await stack.stock("villa", 1)
    new = NewOrder(
        user_id="slots",
        items=[Item(product_id="villa", quantity=1, price=Decimal(200_000))],
        payment=Payment(token="tok_ok"),
        delivery=Delivery(slot="auto"),
    )
    async with AsyncClient() as client:
        with pytest.raises(SlotsFullError, match="none takes more than 100000") as raised:
            await client.orders.place(new, wait=30)
    assert raised.value.order is not None
    assert (raised.value.order.status, raised.value.order.failure_code) == (Status.CANCELLED, FailureCode.SLOT_FULL)


@contextlib.asynccontextmanager
async def receiver(secret: str) -> AsyncIterator[tuple[str, list[str]]]:
    """The receiver of webhooks in examples/: its URL, and the lines that it prints about events."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        ROOT / "examples/webhook_receiver.py",
        env={**os.environ, "WEBHOOK_SECRET": secret, "PORT": "0"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        port = (await asyncio.wait_for(process.stdout.readline(), SECONDS)).decode().split()[-1]
        reading = asyncio.create_task(_collect(process.stdout, lines))
        yield f"http://127.0.0.1:{port}/", lines
    finally:
        process.kill()
        await process.wait()
    await reading


async def _collect(stream: asyncio.StreamReader, lines: list[str]) -> None:
    async for line in stream:
        lines.append(line.decode().strip())


@pytest.mark.usefixtures("stack")
async def test_the_receiver_takes_the_events_of_an_order_and_nothing_else() -> None:
    async with AsyncClient() as client:
        webhook = await client.webhooks.create(NOWHERE, ["order.*"], user_id="receiver")
        assert webhook.secret is not None
        async with receiver(webhook.secret) as (url, lines):
            await client.webhooks.update(webhook.id, url=url)
            item = Item(product_id="p1", quantity=1, price=Decimal("9.95"))
            new = NewOrder(user_id="receiver", items=[item], payment=Payment(token="tok_ok"))
            order_id = (await client.orders.place(new)).order_id
            expected = {f"order.created {order_id} None", f"order.confirmed {order_id} CONFIRMED"}
            await eventually(lambda: expected <= set(lines), SECONDS, "the order's events")

            forged = {"webhook-id": "evt_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
            async with httpx.AsyncClient() as stranger:
                assert (await stranger.post(url, content=b"{}", headers=forged)).status_code == 400
            assert set(lines) == expected
        delivered = [each async for each in client.webhooks.deliveries(webhook.id, DeliveryStatus.DELIVERED)]
        assert {each.type for each in delivered} == {"order.created", "order.confirmed"}
        detail = await client.webhooks.delivery(webhook.id, delivered[0].id)
        assert [attempt.status for attempt in detail.history] == [204]
        await client.webhooks.delete(webhook.id)
        assert webhook.id not in [each.id async for each in client.webhooks.iterate()]

"""The broker loses messages that it had confirmed, as after a restore of MongoDB beside an empty broker.

The record of each unsettled order shows which answers are missing, and the order service repeats those requests.
"""

from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest

from shared import topology
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.provisioning_processes import SHORT_DELAYS
from tests.support.simulators import package, run_simulator

QUICK = {"saga_timeout_seconds": 2, "republish_after_seconds": 0.5, "resend_after_seconds": 1}


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    async with run_stack(mongodb_url, clean_broker, database_prefix, **QUICK) as running:
        yield running


async def lose(stack: Stack, inbox: str) -> int:
    """Purge a queue; returns how many messages are gone."""
    async with await aio_pika.connect(stack.amqp_url) as connection:
        queue = await (await connection.channel()).get_queue(inbox)
        return (await queue.purge()).message_count or 0


async def lost_at_least_one(stack: Stack, inbox: str) -> None:
    async def lost() -> bool:
        return await lose(stack, inbox) > 0

    await eventually(lost, 60, f"a message in {inbox}")


async def stands_at(stack: Stack, order_id: str, status: str) -> None:
    async def there() -> bool:
        order: dict[str, Any] = await stack.order(order_id)
        return bool(order["status"] == status)

    await eventually(there, 60, f"the order to be {status}")


async def test_a_new_order_and_then_its_release_are_lost(stack: Stack) -> None:
    """Inventory gets neither: the order is cancelled at its deadline, and settles once inventory runs."""
    await stack.start("order", "payment")
    order_id = await stack.place(payment={"token": "tok_ok"})
    await lost_at_least_one(stack, topology.INVENTORY_INBOX)
    await stands_at(stack, order_id, "CANCELLED")
    await lost_at_least_one(stack, topology.INVENTORY_INBOX)
    await lost_at_least_one(stack, topology.INVENTORY_INBOX)  # twice, as the first may have been `order.created` again
    await stack.start("inventory")
    order = await stack.settled(order_id)
    assert (order["status"], order["stockStatus"]) == ("CANCELLED", "RELEASED")
    assert order["paymentStatus"] in ("REFUNDED", "VOIDED")
    await stack.assert_books_balance()


async def test_the_request_for_a_server_is_lost(stack: Stack) -> None:
    async with run_simulator() as simulator:
        await simulator.packages([package("103.181.91", 2)])
        await stack.start(saga_timeout_seconds=60)
        body = {"kind": "vps", "package": "103.181.91"}
        (await stack.client.put(f"{stack.url('inventory')}/products/vps", json=body)).raise_for_status()
        items = [{"productId": "vps", "quantity": 1, "price": 10}]
        order_id = await stack.place(items=items, payment={"token": "tok_ok"})
        await stands_at(stack, order_id, "PROVISIONING")
        await lost_at_least_one(stack, topology.PROVISIONING_INBOX)
        await stack.start("provisioning", **SHORT_DELAYS, **simulator.settings)
        order = await stack.settled(order_id)
        assert order["status"] == "COMPLETED"
        assert [purchase["ip"] for purchase in await simulator.purchases()] == [order["server"]["ip"]]
        await stack.assert_books_balance()

"""Partitioned inboxes under orders: they are divided and joined again, a process is killed, and no order is lost."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence

import pytest

from operations.stack.broker_topology import retire_surplus
from shared import topology
from tests.support.eventually import eventually
from tests.support.partitions import declare_partitions, undivided
from tests.support.processes import Process, Stack, run_stack

NEVER = 3600
"""The time after which an order is sent again, which would hide that a message is lost."""
PRODUCTS = [f"p{number}" for number in range(8)]
UNHEARD = topology.NOTIFICATION_INBOX
"""The inbox of a service that does not run."""


@pytest.fixture
async def broker(clean_broker: str) -> AsyncIterator[str]:
    async with undivided(clean_broker) as url:
        yield url


@pytest.fixture
async def stack(mongodb_url: str, broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    settings = {"topology": "check", "events_retention": "off", "republish_after_seconds": NEVER}
    async with run_stack(mongodb_url, broker, database_prefix, **settings) as running:
        yield running


@contextlib.asynccontextmanager
async def orders_flowing(stack: Stack) -> AsyncIterator[list[str]]:
    """Place orders for all products meanwhile, a third of them with a card that is declined; yield their ids."""
    placed: list[str] = []

    async def flow() -> None:
        while True:
            placed.extend(
                await stack.place_many(len(PRODUCTS), lambda index: body(PRODUCTS[index], len(placed) + index))
            )
            await asyncio.sleep(0.3)

    flowing = asyncio.create_task(flow())
    yield placed
    flowing.cancel()
    await asyncio.gather(flowing, return_exceptions=True)


def body(product: str, number: int) -> dict[str, object]:
    token = "tok_declined" if number % 3 == 0 else "tok_ok"
    return {"items": [{"productId": product, "quantity": 1, "price": 10}], "payment": {"token": token}}


async def waiting(broker: str, partitions: int) -> dict[str, int]:
    """Return the messages that wait in surplus partitions of services that run."""
    left = await retire_surplus(broker, partitions)
    return {each.queue: each.messages for each in left if topology.inbox_of(each.queue) != UNHEARD}


async def change(stack: Stack, broker: str, running: Sequence[Process], partitions: int) -> list[Process]:
    """Change the number of partitions as docs/broker.md says: the topology, new processes, then the old ones end."""
    await declare_partitions(broker, partitions)
    await retire_surplus(broker, partitions)
    started = await stack.start(partitions=partitions)

    async def is_drained() -> bool:
        return not any((await waiting(broker, partitions)).values())

    await eventually(is_drained, 60, "the surplus partitions to be empty")
    for process in running:
        process.process.terminate()
    await asyncio.gather(*(process.process.wait() for process in running))
    assert await waiting(broker, partitions) == {}
    return started


async def passes(stack: Stack, process: Process) -> tuple[float, float]:
    """Return how many batches of orders a process of inventory has allocated, and in how many passes."""
    text = (await stack.client.get(f"{process.url}/metrics")).text
    found = dict(re.findall(r"^inventory_allocation_passes_(count|sum) (.*)$", text, re.MULTILINE))
    return float(found["count"]), float(found["sum"])


async def has_handled(stack: Stack, process: Process) -> bool:
    return (await passes(stack, process))[0] > 0


async def test_inboxes_are_divided_and_joined_again_while_orders_flow(stack: Stack, broker: str) -> None:
    running = await stack.start()
    for product in (*PRODUCTS, "hot"):
        await stack.stock(product, 1_000_000)
    async with orders_flowing(stack) as placed:
        await eventually(lambda: placed, 60)
        running = await change(stack, broker, running, 4)
        first = next(process for process in running if process.service == "inventory")
        (second,) = await stack.start("inventory", partitions=4)
        await eventually(lambda: has_handled(stack, second), 60, "the further process to get its share")
    placed += await hot_orders_have_one_process(stack, first, second)
    async with orders_flowing(stack) as further:
        await eventually(lambda: further, 60)
        await stack.kill(first)
        running = [second, *(process for process in running if process is not first)]
        running = await change(stack, broker, running, 2)
        await change(stack, broker, running, 1)
        seen = len(further)
        await eventually(lambda: len(further) > seen, 60)

    left = await retire_surplus(broker, 1)
    assert {topology.inbox_of(each.queue) for each in left} == {UNHEARD}
    assert sum(each.messages for each in left) > 0
    orders = await stack.all_settled([*placed, *further])
    assert {order["status"] for order in orders} == {"CONFIRMED", "CANCELLED"}
    await stack.assert_books_balance()


async def hot_orders_have_one_process(stack: Stack, first: Process, second: Process) -> list[str]:
    """Order one product many times at once: one process reserves it, and none of its batches meets another's change."""
    await asyncio.sleep(1.5)  # what the first has left is handled
    before = [await passes(stack, process) for process in (first, second)]
    hot = await stack.place_many(100, lambda _: body("hot", 1), at_once=50)
    await stack.all_settled(hot)
    after = [await passes(stack, process) for process in (first, second)]
    grown = [(now[0] - then[0], now[1] - then[1]) for now, then in zip(after, before, strict=True)]
    assert min(grown) == (0, 0), grown
    assert max(grown)[0] == max(grown)[1] > 1, grown
    return hot

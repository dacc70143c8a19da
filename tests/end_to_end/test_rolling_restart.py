"""ORDERSAGA_DRAIN_SECONDS: a service that is replaced is no longer ready, but serves on until nobody needs it."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import httpx
import pytest

from operations.reading.broker import count_messages
from shared import topology
from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.order_load import PRODUCT, Balancer, Load, all_settled, new_client, served, steady_orders
from tests.support.processes import Process, Stack, run_stack
from tests.support.seeds import IS_LONG_FORM

LONG = 300
WITHIN = 120
RATE, ROUNDS = (100.0, 5) if IS_LONG_FORM else (20.0, 1)


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    async with run_stack(mongodb_url, clean_broker, database_prefix, rate_limit="") as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with new_client(stack) as opened:
        yield opened


async def not_ready(stack: Stack, process: Process) -> None:
    async def says_that_it_is_stopping() -> bool:
        answer = await stack.client.get(f"{process.url}/readyz")
        return answer.status_code == 503 and answer.json()["down"]["process"] == "it is stopping"

    await eventually(says_that_it_is_stopping, WITHIN, "the process to say that it is stopping")


async def end(process: Process) -> int:
    return await asyncio.wait_for(process.process.wait(), WITHIN)


async def test_a_draining_process_is_not_ready_and_serves_until_a_second_signal(
    stack: Stack, client: httpx.AsyncClient
) -> None:
    (process,) = await stack.start("order", drain_seconds=LONG)
    before = await client.get(f"{process.url}/healthz")
    assert "connection" not in before.headers

    process.process.terminate()
    await not_ready(stack, process)

    for _ in range(2):  # the second one needs a new connection
        answer = await served(lambda: client.post(f"{process.url}/orders", json=order_body()))
        assert (answer.status_code, answer.headers["connection"]) == (202, "close")
    assert process.alive
    process.process.send_signal(signal.SIGTERM)
    assert await end(process) == 0


async def test_a_process_that_has_drained_ends_by_itself(stack: Stack) -> None:
    (process,) = await stack.start("inventory", drain_seconds=0.2)
    process.process.terminate()
    assert await end(process) == 0
    assert any("draining" in line for line in process.output)


@pytest.mark.long_form
async def test_a_rolling_restart_behind_a_balancer_fails_no_request(stack: Stack, client: httpx.AsyncClient) -> None:
    """The balancer looks at /readyz and repeats nothing; clients repeat only what was refused for a slow MongoDB."""
    await stack.start("inventory", "payment")
    await stack.start("order", "order", drain_seconds=LONG)
    await stack.stock(PRODUCT, 1_000_000)
    balancer = Balancer(stack, client)
    watching = asyncio.create_task(balancer.watch())
    await eventually(lambda: all(map(balancer.chooses, stack.processes("order"))), WITHIN)

    async with steady_orders(balancer, RATE) as load:
        for _ in range(ROUNDS):
            for process in stack.processes("order"):
                await replace(stack, balancer, load, process)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching

    assert load.failures == []
    await all_settled(stack)
    assert (await count_messages(stack.amqp_url))[topology.DEAD_LETTERS] == 0
    await stack.assert_books_balance()
    for process in stack.processes("order"):
        await stack.kill(process)  # nobody waits for the end of these drains


async def replace(stack: Stack, balancer: Balancer, load: Load, former: Process) -> None:
    """Start a process in place of another one, under load."""
    (new,) = await stack.start("order", drain_seconds=LONG)
    await eventually(lambda: balancer.chooses(new), WITHIN)
    former.process.terminate()
    await eventually(lambda: balancer.is_done_with(former), WITHIN)
    await load.grown_by(20)
    former.process.send_signal(signal.SIGTERM)
    assert await end(former) == 0

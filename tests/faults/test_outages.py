"""The broker, or the database, is away in the middle of load; then the services continue by themselves.

It is away for a minute by `make test-seeds`, and in the suite for longer than one attempt waits for it.
"""

import asyncio
import contextlib
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.seeds import IS_LONG_FORM
from tests.support.servers import NativeServers, delete_topology, drop_databases

OUTAGE_SECONDS = float(os.environ.get("ORDERSAGA_TEST_OUTAGE_SECONDS", "60" if IS_LONG_FORM else "5"))
STOCK = 100_000
SOME = 25
"""Orders that are accepted before an outage, and after it."""


class Load:
    """A client that places orders one after another until it is stopped, whatever the answers are."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._stopped = asyncio.Event()
        self.accepted: list[str] = []
        self.answers = Counter[str]()

    async def run(self) -> None:
        while not self._stopped.is_set():
            body = order_body(payment={"token": "tok_ok"})
            # Without a key, an order whose write gets no answer is 504, because it must not be repeated.
            headers = {"Idempotency-Key": secrets.token_hex(8)}
            try:
                response = await self._stack.client.post(
                    f"{self._stack.url('order')}/orders", json=body, headers=headers
                )
            except httpx.HTTPError as error:
                self.answers[type(error).__name__] += 1
            else:
                self.answers[str(response.status_code)] += 1
                if response.status_code == 202:
                    self.accepted.append(response.json()["orderId"])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), 0.1)

    def stop(self) -> None:
        self._stopped.set()


@pytest.fixture(scope="module")
async def stack(servers_to_stop: NativeServers) -> AsyncIterator[Stack]:
    """One stack, which outlives both outages."""
    mongodb_url, amqp_url, prefix = servers_to_stop.mongodb_url, servers_to_stop.amqp_url, f"t{secrets.token_hex(8)}"
    await delete_topology(amqp_url)
    async with run_stack(mongodb_url, amqp_url, prefix, database_timeout_seconds=2) as running:
        await running.start()
        await running.stock("p1", STOCK)
        yield running
    await delete_topology(amqp_url)
    await drop_databases(mongodb_url, prefix)


@pytest.fixture
async def stopped(servers_to_stop: NativeServers) -> AsyncIterator[NativeServers]:
    """The servers of the stack, which run again at the end, also of a test that fails."""
    yield servers_to_stop
    await servers_to_stop.start()


@pytest.mark.long_form
async def test_the_broker_is_away_under_load(stack: Stack, stopped: NativeServers) -> None:
    load = Load(stack)
    running = asyncio.create_task(load.run())
    await eventually(lambda: len(load.accepted) >= SOME, 60)
    await stopped.stop_broker()
    await _until_not_ready(stack, "rabbitmq")
    before = len(load.accepted)
    await _let_pass(OUTAGE_SECONDS)
    assert len(load.accepted) > before, "orders are accepted all the same: they are published when the broker is back"
    await stopped.start_broker()
    await _until_ready_again(stack)
    await _finish(stack, load, running)
    assert set(load.answers) == {"202"}


@pytest.mark.long_form
async def test_the_database_is_away_under_load(stack: Stack, stopped: NativeServers) -> None:
    load = Load(stack)
    running = asyncio.create_task(load.run())
    await eventually(lambda: len(load.accepted) >= SOME, 60)
    await stopped.stop_database(kill=True)
    await _until_not_ready(stack, "mongodb")
    await _let_pass(OUTAGE_SECONDS)
    await stopped.start_database()
    await _until_ready_again(stack)
    await _finish(stack, load, running)
    assert load.answers["503"] > 0
    assert set(load.answers) == {"202", "503"}


async def _let_pass(seconds: float) -> None:
    """The outage is the thing under test: it lasts as long as it says."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(min(1, max(0, end - time.monotonic())))


async def _until_not_ready(stack: Stack, server: str) -> None:
    async def named() -> bool:
        answer = await stack.client.get(f"{stack.url('order')}/readyz")
        return server in answer.json().get("down", {})

    await eventually(named, 60, f"readyz to name {server}")


async def _until_ready_again(stack: Stack) -> None:
    for service in ("order", "inventory", "payment"):
        (process,) = stack.processes(service)
        await stack.ready(process)


async def _finish(stack: Stack, load: Load, running: asyncio.Task[None]) -> None:
    """A few more orders, then everything that was ever accepted is confirmed, and nothing is counted twice."""
    accepted = len(load.accepted)
    await eventually(lambda: len(load.accepted) >= accepted + SOME, 60)
    load.stop()
    await running
    orders = await stack.all_settled(load.accepted, within=90)
    assert Counter(order["status"] for order in orders) == {"CONFIRMED": len(load.accepted)}
    inventory = await stack.inventory("p1")
    # A request that ended in 503 or a broken connection may still have stored its order: count them in the books.
    assert inventory["quantity"] + inventory["reserved"] == STOCK
    assert inventory["reserved"] >= len(load.accepted)
    await stack.assert_books_balance()

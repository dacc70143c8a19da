"""Orders over gRPC with all services as processes: slots that fill up, and an order service that is killed.

`make test-grpc` places 1000 orders at once instead of 100.
"""

import asyncio
import logging
import os
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from grpc import StatusCode, aio

from operations.stack.ports import PortClaims
from order_service.rpc.generated import orders_pb2 as pb
from order_service.rpc.generated.orders_pb2_grpc import OrderServiceStub
from shared.clock import utc_now
from tests.support.access import ADMIN_KEY
from tests.support.eventually import eventually
from tests.support.grpc_servers import metadata, new_order, refusal, refused
from tests.support.processes import Stack, run_stack
from tests.support.raw_grpc import raw_client

ORDERS = int(os.environ.get("ORDERS", "100"))
WITHIN_SECONDS = 120
"""The deadline of calls: generous, so that a loaded machine is no failure."""

_log = logging.getLogger(__name__)


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    with PortClaims() as ports:
        async with run_stack(
            mongodb_url, clean_broker, database_prefix, grpc_port=ports.claim_free(), republish_after_seconds=0.5
        ) as running:
            yield running


@asynccontextmanager
async def orders_of(stack: Stack) -> AsyncIterator[Any]:
    """A client of the stack's gRPC service."""
    async with aio.insecure_channel(f"127.0.0.1:{stack.setting('grpc_port')}") as channel:
        yield OrderServiceStub(channel)  # type: ignore[no-untyped-call]


def with_slot(**changes: Any) -> pb.CreateOrderRequest:
    return new_order(payment={"token": "tok_ok"}, delivery={"slot": "auto"}, **changes)


async def open_one_slot(stack: Stack, capacity: int) -> None:
    opening = (utc_now() + timedelta(hours=12)).strftime("%H:%M")
    rules = {"durationMinutes": 1440, "openTime": opening, "closeTime": opening, "horizonSlots": 1}
    answer = await stack.client.put(f"{stack.url('inventory')}/slots/config", json={**rules, "capacity": capacity})
    assert answer.status_code == 200, answer.text


async def test_a_slot_takes_what_it_has_room_for_and_all_others_are_told(stack: Stack) -> None:
    await stack.start()
    await stack.stock("p1", ORDERS)
    await open_one_slot(stack, capacity=10 * ORDERS // 2)
    async with orders_of(stack) as orders:
        ends = await asyncio.gather(*(outcome(orders, number) for number in range(ORDERS)))
    booked = [end for end in ends if end[0] is StatusCode.OK]
    assert Counter(code for code, _, _ in ends) == {
        StatusCode.OK: ORDERS // 2,
        StatusCode.RESOURCE_EXHAUSTED: ORDERS - ORDERS // 2,
    }
    seconds = sorted(end[2] for end in ends)
    _log.info("%d orders at once: median %.2f s, slowest %.2f s", ORDERS, statistics.median(seconds), seconds[-1])
    settled = await stack.all_settled([order_id for _, order_id, _ in ends], within=WITHIN_SECONDS)
    assert Counter(order["status"] for order in settled) == {
        "CONFIRMED": len(booked),
        "CANCELLED": ORDERS - len(booked),
    }
    await stack.assert_books_balance()


async def outcome(orders: Any, number: int) -> tuple[StatusCode, str, float]:
    """Place an order; return the status, the order's id and the seconds that it took."""
    started = time.monotonic()
    try:
        order = await orders.CreateOrder(with_slot(user_id=f"u{number}"), metadata=metadata(), timeout=WITHIN_SECONDS)
    except aio.AioRpcError as error:
        end = refused(error)
        assert end.reason == "SLOTS_FULL", end
        return end.code, end.about["orderId"], time.monotonic() - started
    assert order.slot
    return StatusCode.OK, order.order_id, time.monotonic() - started


async def test_a_killed_service_is_unavailable_and_the_same_key_is_one_order(stack: Stack, unique_id: str) -> None:
    order_process, inventory_process, _ = await stack.start()
    await stack.stock("p1", 10)
    await open_one_slot(stack, capacity=1000)
    await stack.kill(inventory_process)  # now orders wait for their slots
    keys = [f"{unique_id}-{number}" for number in range(5)]

    async def create(orders: Any, key: str) -> Any:
        return await orders.CreateOrder(
            with_slot(), metadata=metadata(idempotency_key=key), timeout=WITHIN_SECONDS, wait_for_ready=True
        )

    async with orders_of(stack) as orders:
        waiting = [asyncio.ensure_future(refusal(create(orders, key))) for key in keys]
        await eventually(lambda: accepted(stack, len(keys)), 60, "the orders to be accepted")
        await stack.kill(order_process)
        assert {end.code for end in await asyncio.gather(*waiting)} == {StatusCode.UNAVAILABLE}
        # A service that stops ends the calls that wait, and itself.
        (order_process,) = await stack.start("order")
        late = asyncio.ensure_future(refusal(create(orders, f"{unique_id}-late")))
        await eventually(lambda: accepted(stack, len(keys) + 1), 60, "one more order to be accepted")
        order_process.process.terminate()
        stopped = await late
        assert (stopped.code, stopped.reason) == (StatusCode.UNAVAILABLE, "STOPPING")
        assert await order_process.process.wait() == 0
        keys.append(f"{unique_id}-late")
        await stack.start("order", "inventory")
        placed = await asyncio.gather(*(create(orders, key) for key in keys))
    assert len({order.order_id for order in placed}) == len(keys)
    assert await accepted(stack, len(keys))
    assert all(order.slot for order in placed)
    await stack.all_settled([order.order_id for order in placed])
    await stack.assert_books_balance()


async def test_a_service_that_stops_finishes_the_calls_in_progress(stack: Stack) -> None:
    (process,) = await stack.start("order")
    port: Any = stack.setting("grpc_port")

    async def is_closed() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return True
        writer.close()
        return False

    async with raw_client(port) as client, asyncio.timeout(WITHIN_SECONDS):
        get = "/ordersaga.v1.OrderService/GetOrder"
        call = await client.open(get, {b"authorization": f"Bearer {ADMIN_KEY}".encode()})
        await client.end_of(await client.open(get))  # refused, so the first call is in progress
        process.process.terminate()
        await eventually(is_closed, WITHIN_SECONDS, "the service to take no more connections")
        await client.message(call, pb.GetOrderRequest(order_id="x1").SerializeToString())
        assert b"Order x1 does not exist" in await client.end_of(call)
        assert await process.process.wait() == 0


async def accepted(stack: Stack, number: int) -> bool:
    """Return whether this many orders exist, and no more."""
    answer = await stack.client.get(f"{stack.url('order')}/orders")
    return len(answer.json()["items"]) == number

"""`Prefer: wait` over two order processes without the other services: orders only end when they are cancelled."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from order_service.order import HistoryEntry, Order, Status
from order_service.orders import COLLECTION, Change, NewRecord, Orders
from order_service.waiting import BOOKED, READ_AT_ONCE, Outcome, WaitingRequests
from shared.database import Document
from tests.support.builders import an_order, connected, order_body
from tests.support.eventually import eventually
from tests.support.processes import Process, Stack, run_stack
from tests.support.servers import delete_topology

LONG = 30


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture(scope="module")
async def stack(servers: Any) -> AsyncIterator[Stack]:
    async with run_stack(servers.mongodb_url, servers.amqp_url, "t-waiting", saga_timeout_seconds=600) as running:
        await running.start("order", "order")
        yield running
    await delete_topology(servers.amqp_url)


async def post(stack: Stack, process: Process, wait: str | None, key: str | None = None) -> httpx.Response:
    headers = {} if wait is None else {"Prefer": wait}
    headers |= {} if key is None else {"Idempotency-Key": key}
    return await stack.client.post(
        f"{process.url}/orders", json=order_body(), headers=headers, timeout=httpx.Timeout(5, read=LONG + 30)
    )


async def waiting_at(stack: Stack, process: Process) -> float:
    text = (await stack.client.get(f"{process.url}/metrics")).text
    (line,) = [line for line in text.splitlines() if line.startswith("order_requests_waiting ")]
    return float(line.split()[1])


async def waits(stack: Stack, process: Process, requests: int = 1) -> None:
    async def counted() -> bool:
        return await waiting_at(stack, process) == requests

    await eventually(counted, 20, f"{requests} requests to wait")


async def newest(stack: Stack) -> str:
    answer = await stack.client.get(f"{stack.url('order')}/orders", params={"limit": 1})
    return str(answer.json()["items"][0]["orderId"])


async def cancel(stack: Stack, process: Process, order_id: str) -> None:
    assert (await stack.client.post(f"{process.url}/orders/{order_id}/cancel")).status_code == 202


async def test_an_order_that_another_process_ends_is_answered_with_its_end(stack: Stack) -> None:
    first, second = stack.processes("order")
    request = asyncio.create_task(post(stack, first, f"wait={LONG}"))
    await waits(stack, first)
    await cancel(stack, second, await newest(stack))
    answer = await request
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == f"wait={LONG}"
    shown = answer.json()
    assert (shown["status"], shown["failureReason"]) == ("CANCELLED", "Cancelled by the client")
    assert answer.headers["location"] == f"/orders/{shown['orderId']}"
    assert [entry["status"] for entry in shown["history"]] == ["PENDING", "CANCELLED"]
    await waits(stack, first, 0)


async def test_when_the_time_is_over_the_order_is_as_without_waiting(stack: Stack) -> None:
    process, _ = stack.processes("order")
    began = time.monotonic()
    answer = await post(stack, process, "respond-async, wait=1")
    assert answer.status_code == 202
    assert time.monotonic() - began >= 1
    assert answer.headers["preference-applied"] == "wait=1"
    assert answer.json()["status"] == "PENDING"
    assert answer.json() == await stack.order(answer.json()["orderId"])


@pytest.mark.parametrize("preference", [None, "wait=0", "wait=soon", "wait", "respond-async"])
async def test_a_request_that_does_not_wait_is_answered_at_once(stack: Stack, preference: str | None) -> None:
    process, _ = stack.processes("order")
    answer = await post(stack, process, preference)
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers
    assert "idempotent-replayed" not in answer.headers


async def test_a_client_that_goes_away_waits_no_longer(stack: Stack) -> None:
    process, _ = stack.processes("order")
    async with httpx.AsyncClient(headers=stack.client.headers) as client:
        requests = [
            asyncio.create_task(
                client.post(f"{process.url}/orders", json=order_body(), headers={"Prefer": "wait=30"}, timeout=60)
            )
            for _ in range(5)
        ]
        await waits(stack, process, 5)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
    await waits(stack, process, 0)


async def test_a_repeated_request_waits_for_the_first_order(stack: Stack) -> None:
    first, second = stack.processes("order")
    key = f"key-{time.monotonic_ns()}"
    requests = [asyncio.create_task(post(stack, process, "wait=30", key)) for process in (first, second)]
    await waits(stack, first)
    await waits(stack, second)
    order_id = await newest(stack)
    await cancel(stack, first, order_id)
    answers = await asyncio.gather(*requests)
    assert [(answer.status_code, answer.json()["orderId"]) for answer in answers] == [(200, order_id)] * 2
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 1
    again = await post(stack, second, "wait=30", key)
    assert (again.status_code, again.json()["status"]) == (200, "CANCELLED")
    assert again.headers["idempotent-replayed"] == "true"
    plain = await post(stack, second, None, key)
    assert (plain.status_code, plain.headers["idempotent-replayed"]) == (202, "true")


async def test_a_service_that_stops_answers_first_and_one_that_is_killed_loses_no_order(stack: Stack) -> None:
    stopped, killed = await stack.start("order", "order")
    key = f"key-{time.monotonic_ns()}"
    request = asyncio.create_task(post(stack, stopped, "wait=30"))
    cut_off = asyncio.create_task(post(stack, killed, "wait=30", key))
    await waits(stack, stopped)
    await waits(stack, killed)
    began = time.monotonic()
    stopped.process.terminate()
    answer = await request
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers
    assert time.monotonic() - began < 25
    assert (await stack.order(answer.json()["orderId"]))["status"] == "PENDING"
    await stack.kill(killed)
    with pytest.raises(httpx.TransportError):
        await cut_off
    left = stack.processes("order")[0]
    again = asyncio.create_task(post(stack, left, "wait=30", key))
    await waits(stack, left)
    listed = await stack.client.get(f"{left.url}/orders", params={"limit": 2, "status": "PENDING"})
    (order_id,) = {order["orderId"] for order in listed.json()["items"]} - {answer.json()["orderId"]}
    await cancel(stack, left, order_id)
    answered = await again
    assert (answered.status_code, answered.json()["orderId"]) == (200, order_id)
    assert answered.headers["idempotent-replayed"] == "true"


# --- The requests themselves. ---


class CountedOrders(Orders):
    """Counts the queries."""

    def __init__(self, collection: Any) -> None:
        super().__init__(collection)
        self.reads = 0
        self.queries = 0

    async def ended(self, ids: Any) -> list[Order]:
        self.reads += 1
        assert len(ids) <= READ_AT_ONCE
        return await super().ended(ids)

    async def documents(self, ids: Any) -> dict[str, Document]:
        self.queries += 1
        return await super().documents(ids)


@pytest.fixture
async def orders(mongodb_url: str, database_prefix: str) -> AsyncIterator[CountedOrders]:
    async with connected(mongodb_url, f"{database_prefix}_orders") as database:
        yield CountedOrders(database[COLLECTION])


async def _stays() -> None:
    await asyncio.Event().wait()


async def _end(orders: Orders, ended: list[Order]) -> list[Order]:
    changes = [
        Change(
            order,
            an_order(order_id=order.order_id, status=Status.CANCELLED, now=order.created_at),
            (HistoryEntry(order.created_at, "order.cancel_requested", Status.CANCELLED),),
        )
        for order in ended
    ]
    assert await orders.apply(changes)
    return [change.after for change in changes]


async def test_a_thousand_requests_share_their_reads(orders: CountedOrders) -> None:
    placed = [an_order() for _ in range(1000)]
    await orders.insert([NewRecord(order) for order in placed])
    waiting = WaitingRequests(orders, limit=1000)
    requests = [asyncio.create_task(waiting.wait(order, 60, _stays)) for order in placed]
    await asyncio.sleep(0)
    assert not (await waiting.wait(an_order(), 60, _stays)).waited, "the limit is reached"
    await _end(orders, [placed[0], placed[-1]])
    await waiting.read()
    await waiting.read()
    assert orders.reads == 2, "all are read in two queries"
    answers = await asyncio.gather(requests[0], requests[-1])
    assert all(answer.final and answer.final["status"] == "CANCELLED" for answer in answers)
    waiting.announce(await _end(orders, placed[1:500]))
    assert all(answer.final for answer in await asyncio.gather(*requests[1:500]))
    assert orders.queries <= 4, "the answers are read together"
    waiting.stop()
    assert set(await asyncio.gather(*requests[500:-1])) == {Outcome(None, waited=False)}
    assert not (await waiting.wait(placed[1], 60, _stays)).waited, "none waits after the stop"
    await waiting.read()
    assert orders.reads == 2, "none waits"


async def test_a_slot_that_another_process_books_is_found(orders: CountedOrders) -> None:
    booked, refused, open_ = (an_order() for _ in range(3))
    await orders.insert([NewRecord(order) for order in (booked, refused, open_)])
    waiting = WaitingRequests(orders, BOOKED, limit=10)
    requests = [asyncio.create_task(waiting.wait(order, 60)) for order in (booked, refused, open_)]
    await asyncio.sleep(0)
    with_slot = an_order(order_id=booked.order_id, slot="slot:1893456000", now=booked.created_at)
    assert await orders.apply([Change(booked, with_slot, ())])
    await _end(orders, [refused])
    await waiting.read()
    documents = [outcome.final for outcome in await asyncio.gather(*requests[:2])]
    assert [document and (document["status"], document.get("slot")) for document in documents] == [
        ("PENDING", "slot:1893456000"),
        ("CANCELLED", None),
    ]
    assert not requests[2].done()
    waiting.stop()
    assert await requests[2] == Outcome(None, waited=False)


async def test_an_order_that_is_final_but_for_its_capture_is_waited_for(orders: CountedOrders) -> None:
    changes: dict[str, Any] = {"status": Status.CONFIRMED, "stock_status": "RESERVED"}
    order = an_order(**changes, payment_status="AUTHORIZED")
    await orders.insert([NewRecord(order)])
    waiting = WaitingRequests(orders, limit=10)
    request = asyncio.create_task(waiting.wait(order, 60, _stays))
    await asyncio.sleep(0)
    await waiting.read()
    assert not request.done()
    captured = an_order(order_id=order.order_id, now=order.created_at, **changes, payment_status="PROCESSED")
    assert await orders.apply([Change(order, captured, ())])
    await waiting.read()
    assert (await request).final
    document = await orders.document(order.order_id)
    assert document is not None
    assert (await waiting.wait(document, 60, _stays)).final == document

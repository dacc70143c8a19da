"""The saga over real processes, a real broker and a real database."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import httpx
import pymongo
import pytest

from operations.reading.broker import count_messages
from shared import topology
from shared.contracts import PaymentProcessed
from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    async with run_stack(mongodb_url, clean_broker, database_prefix, republish_after_seconds=1) as running:
        yield running
        await running.assert_books_balance()


async def test_ten_orders_at_once_for_five_in_stock(stack: Stack) -> None:
    await stack.start()
    await stack.stock("p1", 5)
    placed = await asyncio.gather(*(stack.place(userId=f"u{n}", payment={"token": "tok_ok"}) for n in range(10)))
    orders = await stack.all_settled(placed)
    assert Counter(order["status"] for order in orders) == {"CONFIRMED": 5, "CANCELLED": 5}
    for order in orders:
        if order["status"] == "CONFIRMED":
            assert (order["stockStatus"], order["paymentStatus"]) == ("RESERVED", "PROCESSED")
        else:
            assert order["failureReason"] == "Insufficient stock for p1: asked 1, free 0"
            assert order["stockStatus"] == "FAILED"
            assert order["paymentStatus"] in ("REFUNDED", "VOIDED")
    assert await stack.inventory("p1") == {"productId": "p1", "quantity": 0, "reserved": 5, "shipped": 0}


async def test_two_hundred_requests_wait_for_their_orders(stack: Stack) -> None:
    """Two processes of the order service share the answers, so each ends orders that the other one waits for."""
    await stack.start()
    (second,) = await stack.start("order")
    await stack.stock("p1", 150)
    urls = [stack.url("order"), second.url]

    async def place(client: httpx.AsyncClient, number: int) -> httpx.Response:
        body = order_body(userId=f"u{number}", payment={"token": "tok_ok"})
        headers = {"Prefer": "wait=30", "Idempotency-Key": f"key-{number}"}
        while True:
            answer = await client.post(f"{urls[number % 2]}/orders", json=body, headers=headers)
            if answer.status_code != 202:  # on a slow machine, a wait may be too short
                return answer

    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(limits=limits, timeout=60, headers=stack.client.headers) as client:
        answers = await asyncio.gather(*(place(client, number) for number in range(200)))
    shown = [answer.json() for answer in answers]
    assert Counter((answer.status_code, order["status"]) for answer, order in zip(answers, shown, strict=True)) == {
        (200, "CONFIRMED"): 150,
        (200, "CANCELLED"): 50,
    }
    for order in shown:
        reason = None if order["status"] == "CONFIRMED" else "Insufficient stock for p1: asked 1, free 0"
        assert order["failureReason"] == reason
        assert order["history"][-1]["status"] == order["status"]
    await stack.all_settled([order["orderId"] for order in shown])


async def test_a_declined_payment_releases_its_stock(stack: Stack) -> None:
    await stack.start()
    await stack.stock("p1", 1)
    order = await stack.settled(await stack.place(payment={"token": "tok_declined"}))
    assert (order["status"], order["failureReason"]) == ("CANCELLED", "The card was declined")
    assert (order["stockStatus"], order["paymentStatus"]) == ("RELEASED", "FAILED")
    assert await stack.inventory("p1") == {"productId": "p1", "quantity": 1, "reserved": 0, "shipped": 0}
    assert (await stack.settled(await stack.place(payment={"token": "tok_ok"})))["status"] == "CONFIRMED"


async def test_a_lost_answer_of_the_gateway_is_looked_up(stack: Stack) -> None:
    await stack.start()
    await stack.stock("p1", 1)
    order = await stack.settled(await stack.place(payment={"token": "tok_timeout"}))
    assert (order["status"], order["paymentStatus"]) == ("CONFIRMED", "PROCESSED")


async def test_orders_that_cannot_be_fulfilled_are_refused_with_the_reason(stack: Stack) -> None:
    await stack.start()
    await stack.stock("p1", 5)
    await stack.client.put(f"{stack.url('inventory')}/products/dear", json={"kind": "goods", "price": 20})
    await stack.stock("dear", 5)
    line = {"productId": "p1", "quantity": 1, "price": 10}

    async def reason(*items: dict[str, Any], total: float) -> str:
        order = await stack.settled(await stack.place(items=list(items), totalAmount=total))
        assert order["status"] == "CANCELLED"
        found: str = order["failureReason"]
        return found

    assert await reason({**line, "productId": "unknown"}, total=10) == "Unknown product unknown"
    assert await reason({**line, "productId": "dear"}, total=10) == "Price of dear is 20, the order says 10"
    assert await reason(line, {**line, "productId": "unknown"}, total=20) == "Unknown product unknown"
    assert await reason({**line, "quantity": 6}, total=60) == "Insufficient stock for p1: asked 6, free 5"
    assert (await stack.inventory("p1"))["quantity"] == 5


async def test_many_orders_over_several_products_and_several_workers(stack: Stack) -> None:
    """All or nothing: with two inventories and two order services, no order ever holds a part of its items."""
    await stack.start("order", "order", "inventory", "inventory", "payment", "payment")
    products = [f"p{n}" for n in range(4)]
    for product in products:
        await stack.stock(product, 40)

    def several(index: int) -> dict[str, Any]:
        chosen = [products[(index + offset) % 4] for offset in range(1 + index % 3)]
        items: list[dict[str, Any]] = [
            {"productId": product, "quantity": 1 + index % 2, "price": 10} for product in chosen
        ]
        return {
            "items": items,
            "totalAmount": 10 * sum(item["quantity"] for item in items),
            "payment": {"token": "tok_ok"},
        }

    placed = await stack.place_many(200, several)
    orders = await stack.all_settled(placed)
    assert len(orders) == 200
    sold = Counter[str]()
    for order in orders:
        if order["status"] == "CONFIRMED":
            sold.update({item["productId"]: item["quantity"] for item in order["items"]})
    for product in products:
        inventory = await stack.inventory(product)
        assert inventory["quantity"] + inventory["reserved"] == 40
        assert inventory["reserved"] == sold[product]


async def test_an_order_times_out_while_payment_is_down_and_nothing_is_charged(stack: Stack) -> None:
    await stack.start("order", "inventory")
    await stack.stock("p1", 5)
    order_id = await stack.place(payment={"token": "tok_ok"})

    async def has(**expected: str) -> bool:
        order = await stack.order(order_id)
        return {name: order[name] for name in expected} == expected

    await eventually(lambda: has(stockStatus="RESERVED"), 60, "the stock to be reserved")
    await time_runs_out(stack, order_id)
    await eventually(lambda: has(status="CANCELLED", stockStatus="RELEASED"), 60, "the order to be cancelled")
    order = await stack.order(order_id)
    assert order["failureReason"] == "Timed out waiting for payment"
    assert order["settled"] is False
    assert (await stack.inventory("p1"))["quantity"] == 5
    await stack.start("payment")
    order = await stack.settled(order_id)
    assert order["paymentStatus"] in ("VOIDED", "REFUNDED")
    payment = (await stack.client.get(f"{stack.url('payment')}/payments/{order_id}")).json()
    assert payment["status"] in ("VOIDED", "REFUNDED")


async def test_an_answer_whose_type_contradicts_its_routing_key_confirms_no_order(stack: Stack) -> None:
    await stack.start("order", "inventory")
    await stack.stock("p1", 5)
    order_id = await stack.place(payment={"token": "tok_ok"})
    async with await aio_pika.connect(stack.amqp_url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(topology.EXCHANGE, ensure=False)
        forged = PaymentProcessed(order_id=order_id, transaction_id="never charged")
        await exchange.publish(aio_pika.Message(forged.to_json(), type=forged.routing_key), "stock.reserved")

    async def is_refused_and_reserved() -> bool:
        waiting = await count_messages(stack.amqp_url, [topology.DEAD_LETTERS])
        return waiting[topology.DEAD_LETTERS] == 1 and (await stack.order(order_id))["stockStatus"] == "RESERVED"

    await eventually(is_refused_and_reserved, 60, "the forged answer to be a dead letter and the stock to be reserved")
    order = await stack.order(order_id)
    assert (order["status"], order["paymentStatus"]) == ("PENDING", "PENDING")
    await stack.start("payment")
    assert (await stack.settled(order_id))["paymentStatus"] == "PROCESSED"


async def time_runs_out(stack: Stack, order_id: str) -> None:
    """Move the deadline of the order into the past. A short timeout could expire before inventory answers."""
    now = [{"$set": {"deadline": "$$NOW", "dueAt": "$$NOW"}}]
    async with pymongo.AsyncMongoClient[dict[str, Any]](stack.mongodb_url) as client:
        orders = client[f"{stack.database_prefix}_orders"]["orders"]
        assert (await orders.update_one({"_id": order_id, "status": "PENDING"}, now)).modified_count == 1


async def test_a_cancel_racing_the_join_has_one_winner(stack: Stack) -> None:
    await stack.start("order", "order", "inventory", "payment")
    await stack.stock("p1", 1000)

    async def race(index: int) -> tuple[str, int]:
        order_id = await stack.place(payment={"token": "tok_ok"})
        await asyncio.sleep(0.0005 * (index % 30))
        answer = await stack.client.post(f"{stack.url('order')}/orders/{order_id}/cancel")
        return order_id, answer.status_code

    for start in range(0, 120, 12):
        raced = await asyncio.gather(*(race(start + n) for n in range(12)))
        for order_id, answer in raced:
            order = await stack.settled(order_id)
            assert (order["status"], answer) in (("CANCELLED", 202), ("CONFIRMED", 409))
    statuses = Counter(order["status"] for order in [await stack.order(order_id) for order_id, _ in raced])
    inventory = await stack.inventory("p1")
    assert inventory["quantity"] + inventory["reserved"] == 1000
    assert statuses


async def test_delivered_goods_leave_the_stock_once(stack: Stack) -> None:
    await stack.start("order", "inventory", "payment", "inventory")
    await stack.stock("p1", 20)
    placed = [await stack.place(payment={"token": "tok_ok"}, delivery={"slot": "auto"}) for _ in range(6)]
    refused = await stack.place(payment={"token": "tok_declined"})
    await stack.all_settled([*placed, refused])

    async def deliver(order_id: str) -> int:
        url = f"{stack.url('order')}/orders/{order_id}/deliver"
        return (await stack.client.post(url)).status_code

    # While inventory is away, an order is completed and not settled; three requests for each deliver it once.
    for process in stack.processes("inventory"):
        await stack.kill(process)
    leaving = placed[:4]
    answers = await asyncio.gather(*(deliver(order_id) for order_id in leaving * 3))
    assert Counter(answers) == {202: 4, 409: 8}
    assert await deliver(refused) == 409
    shown = await stack.order(leaving[0])
    assert (shown["status"], shown["stockStatus"], shown["settled"]) == ("COMPLETED", "RESERVED", False)
    await stack.start("inventory")
    for order in await stack.all_settled(leaving):
        assert (order["status"], order["stockStatus"], order["paymentStatus"]) == ("COMPLETED", "SHIPPED", "PROCESSED")
        assert order["confirmedAt"] < order["completedAt"]
        events = [line["event"] for line in order["history"]]
        assert (events.count("order.delivery_noted"), events.count("stock.shipped")) == (1, 1)
    stock = await stack.inventory("p1")
    assert stock == {"productId": "p1", "quantity": 14, "reserved": 2, "shipped": 4}
    slot = (await stack.order(leaving[0]))["slot"]
    answer = await stack.client.get(f"{stack.url('inventory')}/slots/{slot}/orders")
    statuses = {found["orderId"]: found["status"] for found in answer.json()["items"]}
    assert {order_id: statuses[order_id] for order_id in placed} == dict.fromkeys(leaving, "SHIPPED") | dict.fromkeys(
        placed[4:], "RESERVED"
    )


async def test_an_order_is_followed_to_its_end_by_events(stack: Stack) -> None:
    await stack.start()
    await stack.stock("p1", 1)
    order_id = await stack.place(payment={"token": "tok_ok"})
    seen = []
    async with stack.client.stream("GET", f"{stack.url('order')}/orders/{order_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                seen.append(line.removeprefix("event: "))
    assert seen[0] == "order.created"
    assert sorted(seen[1:]) == ["payment.processed", "stock.reserved"]


async def test_orders_are_accepted_while_the_others_are_away(stack: Stack) -> None:
    """The other services have not been started: their queues keep the orders until they start."""
    await stack.start("order")
    placed = await stack.place_many(50, lambda _: {"payment": {"token": "tok_ok"}})
    assert len(placed) == 50
    await stack.start("payment")
    inventory = await stack.launch("inventory")
    await stack.ready(inventory)
    orders = await stack.all_settled(placed)
    assert {order["failureReason"] for order in orders} == {"Unknown product p1"}


async def test_a_terminated_service_finishes_its_current_batch(stack: Stack) -> None:
    """After SIGTERM under load, the process ends with status 0, and no accepted order is lost."""
    await stack.start("order", "order", "inventory", "payment")
    await stack.stock("p1", 1000)
    first, second = stack.processes("order")
    placed: list[str] = []

    async def client(number: int) -> None:
        for order in range(10):
            at = first if (number + order) % 2 and first.alive else second
            with contextlib.suppress(httpx.HTTPError):
                body = order_body(payment={"token": "tok_ok"})
                placed.append((await stack.client.post(f"{at.url}/orders", json=body)).json()["orderId"])

    loading = asyncio.gather(*(client(number) for number in range(30)))
    await eventually(lambda: len(placed) > 50, 60)
    first.process.terminate()
    # The process allows itself 10 s; a loaded machine may pause meanwhile.
    assert await asyncio.wait_for(first.process.wait(), 30) == 0
    await loading
    orders = await stack.all_settled(placed)
    assert {order["status"] for order in orders} == {"CONFIRMED"}


async def test_a_wrong_setting_stops_the_process_with_one_line(stack: Stack) -> None:
    process = await stack.launch("order", saga_timeout_seconds="soon")
    assert await asyncio.wait_for(process.process.wait(), 60) == 1
    await eventually(lambda: process.output, 60)
    (line,) = process.output
    assert "ORDERSAGA_SAGA_TIMEOUT_SECONDS='soon'" in line
    assert "valid number" in line


async def test_a_server_that_is_away_is_named_by_readyz(stack: Stack) -> None:
    """Without a broker, the process runs, is not ready, and reports the reason."""
    process = await stack.launch("order", amqp_url="amqp://guest:guest@127.0.0.1:9/")

    async def named() -> bool:
        answer = await stack.client.get(f"{process.url}/readyz")
        return answer.status_code == 503 and "rabbitmq" in answer.json()["down"]

    await eventually(named, 60)
    assert (await stack.client.get(f"{process.url}/healthz")).status_code == 200

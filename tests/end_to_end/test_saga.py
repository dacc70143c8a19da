"""The saga over real processes, a real broker and a real database."""

import asyncio
import contextlib
import itertools
import secrets
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
from tests.support.processes import SAGA_SERVICES, Stack, run_stack
from tests.support.servers import Servers, delete_topology, drop_databases

TWO_OF_EACH = 2 * SAGA_SERVICES


@pytest.fixture(scope="module")
async def both(servers: Servers) -> AsyncIterator[Stack]:
    """Run two of each service for all tests, which ignore each other's records; the books are audited at the end.

    An order is placed before the other services have ever run: their queues exist already.
    """
    prefix = f"t{secrets.token_hex(8)}"
    await delete_topology(servers.amqp_url)
    async with run_stack(servers.mongodb_url, servers.amqp_url, prefix, republish_after_seconds=1) as running:
        await running.start("order", "order")
        early = await running.place()
        await start_what_is_missing(running)
        await running.settled(early)
        yield running
        await running.assert_books_balance()
    await delete_topology(servers.amqp_url)
    await drop_databases(servers.mongodb_url, prefix)


@pytest.fixture
async def stack(both: Stack) -> AsyncIterator[Stack]:
    """Yield the stack, and start again what a test has ended."""
    yield both
    await start_what_is_missing(both)


@pytest.fixture
def product() -> str:
    """Return the id of a product that no other test sells."""
    return secrets.token_hex(4)


async def start_what_is_missing(stack: Stack) -> None:
    missing = Counter(TWO_OF_EACH) - Counter({service: len(stack.processes(service)) for service in SAGA_SERVICES})
    if missing:
        await stack.start(*missing.elements())


async def without(stack: Stack, *services: str) -> None:
    """Kill all processes of these services."""
    for process in itertools.chain.from_iterable(map(stack.processes, services)):
        await stack.kill(process)


def one_of(product: str, **changes: Any) -> dict[str, Any]:
    """Return changes that make an order one for a unit of the product, paid with a card that is good."""
    return {"items": [{"productId": product, "quantity": 1, "price": 10}], "payment": {"token": "tok_ok"}} | changes


async def test_ten_orders_at_once_for_five_in_stock(stack: Stack, product: str) -> None:
    await stack.stock(product, 5)
    placed = await asyncio.gather(*(stack.place(**one_of(product, userId=f"u{n}")) for n in range(10)))
    orders = await stack.all_settled(placed)
    assert Counter(order["status"] for order in orders) == {"CONFIRMED": 5, "CANCELLED": 5}
    for order in orders:
        if order["status"] == "CONFIRMED":
            assert (order["stockStatus"], order["paymentStatus"]) == ("RESERVED", "PROCESSED")
        else:
            assert order["failureReason"] == f"Insufficient stock for {product}: asked 1, free 0"
            assert order["stockStatus"] == "FAILED"
            assert order["paymentStatus"] in ("REFUNDED", "VOIDED")
    assert await stack.inventory(product) == {"productId": product, "quantity": 0, "reserved": 5, "shipped": 0}


async def test_a_hundred_requests_wait_for_their_orders(stack: Stack, product: str) -> None:
    """Two processes of the order service share the answers, so each ends orders that the other one waits for."""
    await stack.stock(product, 75)
    urls = [process.url for process in stack.processes("order")]

    async def place(client: httpx.AsyncClient, number: int) -> httpx.Response:
        body = order_body(**one_of(product, userId=f"u{number}"))
        headers = {"Prefer": "wait=30", "Idempotency-Key": f"{product}-{number}"}
        while True:
            answer = await client.post(f"{urls[number % 2]}/orders", json=body, headers=headers)
            if answer.status_code != 202:  # on a slow machine, a wait may be too short
                return answer

    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(limits=limits, timeout=60, headers=stack.client.headers) as client:
        answers = await asyncio.gather(*(place(client, number) for number in range(100)))
    shown = [answer.json() for answer in answers]
    assert Counter((answer.status_code, order["status"]) for answer, order in zip(answers, shown, strict=True)) == {
        (200, "CONFIRMED"): 75,
        (200, "CANCELLED"): 25,
    }
    for order in shown:
        reason = None if order["status"] == "CONFIRMED" else f"Insufficient stock for {product}: asked 1, free 0"
        assert order["failureReason"] == reason
        assert order["history"][-1]["status"] == order["status"]
    await stack.all_settled([order["orderId"] for order in shown])


async def test_a_declined_payment_releases_its_stock(stack: Stack, product: str) -> None:
    await stack.stock(product, 1)
    order = await stack.settled(await stack.place(**one_of(product, payment={"token": "tok_declined"})))
    assert (order["status"], order["failureReason"]) == ("CANCELLED", "The card was declined")
    assert (order["stockStatus"], order["paymentStatus"]) == ("RELEASED", "FAILED")
    assert await stack.inventory(product) == {"productId": product, "quantity": 1, "reserved": 0, "shipped": 0}
    assert (await stack.settled(await stack.place(**one_of(product))))["status"] == "CONFIRMED"


async def test_a_lost_answer_of_the_gateway_is_looked_up(stack: Stack, product: str) -> None:
    await stack.stock(product, 1)
    order = await stack.settled(await stack.place(**one_of(product, payment={"token": "tok_timeout"})))
    assert (order["status"], order["paymentStatus"]) == ("CONFIRMED", "PROCESSED")


async def test_orders_that_cannot_be_fulfilled_are_refused_with_the_reason(stack: Stack, product: str) -> None:
    await stack.stock(product, 5)
    dear = f"dear-{product}"
    await stack.client.put(f"{stack.url('inventory')}/products/{dear}", json={"kind": "goods", "price": 20})
    await stack.stock(dear, 5)
    line = {"productId": product, "quantity": 1, "price": 10}

    async def reason(*items: dict[str, Any], total: float) -> str:
        order = await stack.settled(await stack.place(items=list(items), totalAmount=total))
        assert order["status"] == "CANCELLED"
        found: str = order["failureReason"]
        return found

    assert await reason({**line, "productId": "unknown"}, total=10) == "Unknown product unknown"
    assert await reason({**line, "productId": dear}, total=10) == f"Price of {dear} is 20, the order says 10"
    assert await reason(line, {**line, "productId": "unknown"}, total=20) == "Unknown product unknown"
    assert await reason({**line, "quantity": 6}, total=60) == f"Insufficient stock for {product}: asked 6, free 5"
    assert (await stack.inventory(product))["quantity"] == 5


async def test_many_orders_over_several_products_and_several_workers(stack: Stack, product: str) -> None:
    """All or nothing: with two inventories and two order services, no order ever holds a part of its items."""
    products = [f"{product}-{n}" for n in range(4)]
    for sold_out in products:
        await stack.stock(sold_out, 20)

    def several(index: int) -> dict[str, Any]:
        chosen = [products[(index + offset) % 4] for offset in range(1 + index % 3)]
        items: list[dict[str, Any]] = [{"productId": each, "quantity": 1 + index % 2, "price": 10} for each in chosen]
        return {
            "items": items,
            "totalAmount": 10 * sum(item["quantity"] for item in items),
            "payment": {"token": "tok_ok"},
        }

    placed = await stack.place_many(100, several)
    orders = await stack.all_settled(placed)
    assert len(orders) == 100
    sold = Counter[str]()
    for order in orders:
        if order["status"] == "CONFIRMED":
            sold.update({item["productId"]: item["quantity"] for item in order["items"]})
    for each in products:
        inventory = await stack.inventory(each)
        assert inventory["quantity"] + inventory["reserved"] == 20
        assert inventory["reserved"] == sold[each]


async def test_an_order_times_out_while_payment_is_down_and_nothing_is_charged(stack: Stack, product: str) -> None:
    await without(stack, "payment")
    await stack.stock(product, 5)
    order_id = await stack.place(**one_of(product))

    async def has(**expected: str) -> bool:
        order = await stack.order(order_id)
        return {name: order[name] for name in expected} == expected

    await eventually(lambda: has(stockStatus="RESERVED"), 60, "the stock to be reserved")
    await time_runs_out(stack, order_id)
    await eventually(lambda: has(status="CANCELLED", stockStatus="RELEASED"), 60, "the order to be cancelled")
    order = await stack.order(order_id)
    assert order["failureReason"] == "Timed out waiting for payment"
    assert order["settled"] is False
    assert (await stack.inventory(product))["quantity"] == 5
    await stack.start("payment")
    order = await stack.settled(order_id)
    assert order["paymentStatus"] in ("VOIDED", "REFUNDED")
    payment = (await stack.client.get(f"{stack.url('payment')}/payments/{order_id}")).json()
    assert payment["status"] in ("VOIDED", "REFUNDED")


async def test_an_answer_whose_type_contradicts_its_routing_key_confirms_no_order(stack: Stack, product: str) -> None:
    await without(stack, "payment")
    await stack.stock(product, 5)
    order_id = await stack.place(**one_of(product))
    before = (await count_messages(stack.amqp_url, [topology.DEAD_LETTERS]))[topology.DEAD_LETTERS] or 0
    async with await aio_pika.connect(stack.amqp_url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(topology.EXCHANGE, ensure=False)
        forged = PaymentProcessed(order_id=order_id, transaction_id="never charged")
        await exchange.publish(aio_pika.Message(forged.to_json(), type=forged.routing_key), "stock.reserved")

    async def is_refused_and_reserved() -> bool:
        waiting = await count_messages(stack.amqp_url, [topology.DEAD_LETTERS])
        return (
            waiting[topology.DEAD_LETTERS] == before + 1 and (await stack.order(order_id))["stockStatus"] == "RESERVED"
        )

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


async def test_a_cancel_racing_the_join_has_one_winner(stack: Stack, product: str) -> None:
    await stack.stock(product, 1000)

    async def race(index: int) -> tuple[str, int]:
        order_id = await stack.place(**one_of(product))
        await asyncio.sleep(0.0005 * (index % 30))
        answer = await stack.client.post(f"{stack.url('order')}/orders/{order_id}/cancel")
        return order_id, answer.status_code

    for start in range(0, 60, 12):
        raced = await asyncio.gather(*(race(start + n) for n in range(12)))
        for order_id, answer in raced:
            order = await stack.settled(order_id)
            assert (order["status"], answer) in (("CANCELLED", 202), ("CONFIRMED", 409))
    inventory = await stack.inventory(product)
    assert inventory["quantity"] + inventory["reserved"] == 1000


async def test_delivered_goods_leave_the_stock_once(stack: Stack, product: str) -> None:
    await stack.stock(product, 20)
    placed = [await stack.place(**one_of(product, delivery={"slot": "auto"})) for _ in range(6)]
    refused = await stack.place(**one_of(product, payment={"token": "tok_declined"}))
    await stack.all_settled([*placed, refused])

    async def deliver(order_id: str) -> int:
        url = f"{stack.url('order')}/orders/{order_id}/deliver"
        return (await stack.client.post(url)).status_code

    # While inventory is away, an order is completed and not settled; three requests for each deliver it once.
    await without(stack, "inventory")
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
    stock = await stack.inventory(product)
    assert stock == {"productId": product, "quantity": 14, "reserved": 2, "shipped": 4}
    slot = (await stack.order(leaving[0]))["slot"]
    answer = await stack.client.get(f"{stack.url('inventory')}/slots/{slot}/orders")
    statuses = {found["orderId"]: found["status"] for found in answer.json()["items"]}
    assert {order_id: statuses[order_id] for order_id in placed} == dict.fromkeys(leaving, "SHIPPED") | dict.fromkeys(
        placed[4:], "RESERVED"
    )


async def test_an_order_is_followed_to_its_end_by_events(stack: Stack, product: str) -> None:
    await stack.stock(product, 1)
    order_id = await stack.place(**one_of(product))
    seen = []
    async with stack.client.stream("GET", f"{stack.url('order')}/orders/{order_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                seen.append(line.removeprefix("event: "))
    assert seen[0] == "order.created"
    assert sorted(seen[1:-1]) == ["payment.processed", "stock.reserved"]
    assert seen[-1] == "settled"


async def test_orders_are_accepted_while_the_others_are_away(stack: Stack, product: str) -> None:
    """Their queues keep the orders until they start."""
    await without(stack, "inventory", "payment")
    placed = await stack.place_many(30, lambda _: one_of(product))
    assert len(placed) == 30
    await stack.start("payment")
    inventory = await stack.launch("inventory")
    await stack.ready(inventory)
    orders = await stack.all_settled(placed)
    assert {order["failureReason"] for order in orders} == {f"Unknown product {product}"}


async def test_a_terminated_service_finishes_its_current_batch(stack: Stack, product: str) -> None:
    """After SIGTERM under load, the process ends with status 0, and no accepted order is lost."""
    await stack.stock(product, 1000)
    first, second = stack.processes("order")
    placed: list[str] = []

    async def client(number: int) -> None:
        for order in range(8):
            at = first if (number + order) % 2 and first.alive else second
            with contextlib.suppress(httpx.HTTPError):
                body = order_body(**one_of(product))
                placed.append((await stack.client.post(f"{at.url}/orders", json=body)).json()["orderId"])

    loading = asyncio.gather(*(client(number) for number in range(15)))
    await eventually(lambda: len(placed) > 20, 60)
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
    await stack.kill(process)

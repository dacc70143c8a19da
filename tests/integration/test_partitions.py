"""Partitioned inboxes on a real broker: who gets which messages, and that none is lost when processes come and go."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from operations.metrics import Observer
from operations.reading.broker import count_messages
from shared import topology
from shared.bus import Envelope
from shared.bus.publisher import envelope
from shared.contracts import Message, OrderCreated, ReleaseStock
from shared.contracts.orders import Item
from tests.support.builders import connected
from tests.support.buses import raw, take_batch
from tests.support.eventually import eventually
from tests.support.partitions import (
    MOST,
    OFTEN,
    Workers,
    declare_partitions,
    delete_partitions,
    open_workers,
    purge_inboxes,
    workers_of_orders,
)

INBOX = topology.PAYMENT_INBOX
ORDERS = [f"o{number}" for number in range(40)]


@pytest.fixture(scope="module")
async def partitioned(bare_broker: str) -> AsyncIterator[str]:
    """A broker on which every inbox that may have partitions has four, for the whole module."""
    await declare_partitions(bare_broker)
    yield bare_broker
    await delete_partitions(bare_broker)


@pytest.fixture
async def broker(partitioned: str) -> AsyncIterator[str]:
    """The same, without messages after the test."""
    yield partitioned
    await purge_inboxes(partitioned)


@pytest.fixture
async def workers(broker: str) -> AsyncIterator[Workers]:
    async with open_workers(broker) as opened:
        yield opened


@pytest.mark.parametrize("count", [2, 3])
async def test_processes_share_the_partitions_and_each_order_has_one_of_them(workers: Workers, count: int) -> None:
    [first] = await workers.start()
    await workers.send(ORDERS)
    await workers.received(len(ORDERS))
    assert len(first.active) == MOST  # it was there first
    assert sorted(first.orders) == sorted(ORDERS)

    everyone = [first, *await workers.start(count - 1)]
    await workers.share(*everyone)
    for _ in range(5):
        await workers.send(ORDERS)
    await workers.received(5 * len(ORDERS))
    await asyncio.sleep(3 * OFTEN)  # nobody leaves anything any more

    assert sum(len(worker.active) for worker in everyone) == MOST
    assert all(len(owners) == 1 for owners in workers_of_orders(everyone).values())
    assert sorted(order for worker in everyone for order in worker.orders) == sorted(5 * ORDERS)
    assert all(worker.orders for worker in everyone)
    assert not any(delivery.redelivered for worker in everyone for delivery in worker.deliveries)
    assert {delivery.queue for worker in everyone for delivery in worker.deliveries} == {INBOX}


async def test_sharing_loses_and_repeats_nothing_under_load(workers: Workers) -> None:
    [first] = await workers.start()
    sent = 0
    for round_ in range(30):
        await workers.send([f"{order}-{round_}" for order in ORDERS])
        sent += len(ORDERS)
        if round_ in (5, 10):
            await workers.start()
        await asyncio.sleep(0.05)
    await workers.received(sent)

    everyone = workers._all
    assert sum(1 for worker in everyone if worker.orders) == 3
    assert len([order for worker in everyone for order in worker.orders]) == sent
    assert first.orders


async def test_when_a_process_is_killed_another_takes_over_and_the_next_gets_its_share(workers: Workers) -> None:
    first, second = await workers.start(2)
    await workers.share(first, second)
    first.holds_next = True
    await workers.send(ORDERS)
    await eventually(lambda: first.held, 60)

    await first.kill()
    await workers.received(len(ORDERS))

    assert sorted(second.orders) == sorted(ORDERS)
    assert {d.correlation_id for d in second.deliveries if d.redelivered} >= {d.correlation_id for d in first.held}
    assert len(second.active) == MOST
    [third] = await workers.start()
    await workers.share(second, third)
    assert len(second.active) == len(third.active) == MOST // 2


async def test_a_paused_process_leaves_its_partitions_to_others_and_resumes(workers: Workers) -> None:
    first, second = await workers.start(2)
    await workers.share(first, second)

    await first.bus.limit_intake(0)
    await workers.send(ORDERS)
    await workers.received(len(ORDERS))
    assert not first.orders
    await second.bus.limit_intake(0)
    await workers.send(ORDERS)
    await asyncio.sleep(2 * OFTEN)
    assert len(second.orders) == len(ORDERS)

    await first.bus.limit_intake(None)
    await workers.received(2 * len(ORDERS))
    await second.bus.limit_intake(None)
    await workers.share(first, second)


async def test_one_process_makes_one_batch_of_all_its_partitions(workers: Workers) -> None:
    [worker] = await workers.start()
    await worker.bus.limit_intake(0)
    worker.stop_working()
    await workers.send(ORDERS)
    await worker.bus.limit_intake(None)
    await eventually(lambda: worker.buffered == len(ORDERS), 60)

    batch = await worker.bus.receive(200)
    assert len(batch) == len(ORDERS)
    await worker.bus.acknowledge(batch)  # all of four queues

    await worker.bus.limit_intake(0)
    await worker.bus.limit_intake(None)
    await asyncio.sleep(OFTEN)
    assert not worker.buffered


async def test_tests_of_a_breaker_take_one_message_of_one_queue_and_give_none_back(workers: Workers) -> None:
    [worker] = await workers.start()
    await worker.bus.limit_intake(0)
    worker.stop_working()
    await workers.send(ORDERS)

    for _ in range(6):
        await worker.bus.limit_intake(1)
        [one] = await worker.bus.receive(1)
        await worker.bus.limit_intake(0)
        await worker.bus.acknowledge([one])
    await worker.bus.limit_intake(None)

    rest = await take_batch(worker.bus, len(ORDERS) - 6)
    assert not any(delivery.redelivered for delivery in rest)


async def test_a_breakers_test_goes_on_to_the_queue_that_has_messages(workers: Workers) -> None:
    [worker] = await workers.start()
    assert worker.bus._link is not None
    await worker.bus.limit_intake(0)
    await worker.bus.limit_intake(1)  # nothing waits anywhere
    [consumed] = worker.bus._link._subscriptions.consumers
    other = next(queue for queue in topology.partitions_of(INBOX, MOST) if queue != consumed)

    await workers.publisher.publish([raw(b"{}", other)])
    await workers.received(1)


def order(number: int, *products: str) -> OrderCreated:
    items = tuple(Item(product_id=product, quantity=1, price=100) for product in products)
    return OrderCreated(order_id=f"o{number}", user_id="u1", items=items, total_amount=100 * len(items))


async def test_a_hot_product_has_one_worker_and_a_message_without_a_key_arrives(broker: str) -> None:
    async with open_workers(broker, topology.INVENTORY_INBOX) as workers:
        everyone = await workers.start(3)
        products = [f"p{number}" for number in range(40)]

        async def have_all() -> bool:
            await workers.publisher.publish([envelope(order(0, product)) for product in products])
            return sorted(len(worker.active) for worker in everyone) == [1, 1, 2]

        await eventually(have_all, 60, "the workers to have equal shares")
        await workers.quiet()
        sent: list[Message] = [order(number, "hot", f"p{number}") for number in range(100)]
        sent += [ReleaseStock(order_id=f"o{number}", items=order(number, "hot").items) for number in range(100)]
        await workers.publisher.publish([envelope(message) for message in sent])
        await workers.received(200)
        assert sorted(len(worker.deliveries) for worker in everyone) == [0, 0, 200]

        body = order(1, "hot").to_json()
        await workers.publisher.publish([Envelope(body, "ordersaga", "order.created", "order.created", "o1", "m1")])
        await workers.received(201)


async def test_retries_and_replays_come_through_the_inbox_itself(workers: Workers) -> None:
    await workers.start(2)
    await workers.publisher.publish([raw(b"replayed", INBOX)])
    level = topology.retry_queues(INBOX)[0]
    await workers.publisher.publish([Envelope(b"retried", level, "payment.refund", "payment.refund", "o1", "m1")])

    await workers.received(2)
    found = {d.body: (d.queue, d.exchange) for worker in workers._all for d in worker.deliveries}
    assert found == {b"replayed": (INBOX, ""), b"retried": (INBOX, topology.INBOX_EXCHANGE)}


async def test_a_consumer_that_the_broker_forgets_is_noticed_on_every_partition(workers: Workers) -> None:
    [worker] = await workers.start()
    link = worker.bus._link
    assert link is not None
    await link._consuming.basic_cancel(link._subscriptions.consumers[f"{INBOX}.3"])

    await eventually(link.lost.done, 60)
    assert link.lost.result() == "the broker no longer knows the consumer"
    await workers.send(ORDERS)
    await workers.received(len(ORDERS))


async def test_messages_are_counted_with_their_inbox(broker: str) -> None:
    async with open_workers(broker) as workers:
        await workers.send(ORDERS)
        await workers.publisher.publish([raw(b"replayed", INBOX)])
        counted = await count_messages(broker)
    assert counted[INBOX] == len(ORDERS) + 1
    assert not any(topology.is_partition(name) for name in counted)


async def test_the_metrics_of_an_inbox_have_the_messages_of_its_partitions(broker: str, mongodb_url: str) -> None:
    async with open_workers(broker) as workers, connected(mongodb_url, "unused") as database:
        await workers.send(ORDERS)
        observer = Observer(database.client, "unused", broker, partitions=MOST)
        try:
            await observer.observe()
        finally:
            await observer.close()
    assert REGISTRY.get_sample_value("ordersaga_queue_messages", {"queue": INBOX}) == len(ORDERS)

"""With ORDERSAGA_TOPOLOGY=check nothing is declared: what is missing is named, until `ordersaga topology apply`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest

from operations.errors import UnreachableError
from operations.stack.broker_topology import apply_topology
from shared import topology
from shared.bus import Envelope
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.contracts import RefundPayment
from shared.errors import StartError
from shared.urls import hide_credentials
from tests.support.buses import take_batch
from tests.support.commands import run_command
from tests.support.eventually import eventually
from tests.support.processes import run_stack

INBOX = topology.PAYMENT_INBOX
OFTEN = 0.2


@pytest.fixture
async def checking(clean_broker: str) -> AsyncIterator[RabbitBus]:
    """A bus that consumes from an inbox and declares nothing."""
    bus = RabbitBus(clean_broker, topology_mode="check", repair_every=OFTEN)
    yield bus
    await bus.close()


async def existing(url: str) -> set[str]:
    """Return the declared queues that exist."""
    found = set()
    async with await aio_pika.connect(url) as connection:
        for queue in topology.queues():
            channel = await connection.channel()
            try:
                await channel.get_queue(queue.name)
            except aio_pika.exceptions.ChannelNotFoundEntity:
                continue
            found.add(queue.name)
    return found


async def delete(url: str, queue: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.queue_delete(queue)


async def test_a_bus_waits_for_the_topology_and_names_what_is_missing(checking: RabbitBus, clean_broker: str) -> None:
    starting = asyncio.create_task(checking.start(INBOX))
    await eventually(lambda: "missing exchange ordersaga" in str(checking.unhealthy_reason), within=60)
    assert str(checking.unhealthy_reason).endswith("more: `ordersaga topology apply` creates what is missing")
    assert not starting.done()
    assert await existing(clean_broker) == set()

    await apply_topology(clean_broker)

    async with asyncio.timeout(60):
        await starting
    await Publisher(checking).send([RefundPayment(order_id="o1")])
    assert len(await take_batch(checking, 1)) == 1
    assert checking.unhealthy_reason is None


async def test_a_deleted_queue_is_reported_until_it_is_applied_again(checking: RabbitBus, clean_broker: str) -> None:
    await apply_topology(clean_broker)
    await checking.start(INBOX)
    link = checking._link

    await delete(clean_broker, topology.ORDER_INBOX)

    reason = "RabbitMQ: missing queue order.inbox: `ordersaga topology apply` creates what is missing"
    await eventually(lambda: checking.unhealthy_reason == reason, within=60)
    assert topology.ORDER_INBOX not in await existing(clean_broker)
    assert await apply_topology(clean_broker) == ["queue order.inbox"]
    await eventually(lambda: checking.unhealthy_reason is None, within=60)
    assert checking._link is link  # it has consumed all the time


async def test_a_consumer_whose_own_inbox_is_deleted_consumes_again_once_it_is_applied(
    checking: RabbitBus, clean_broker: str
) -> None:
    await apply_topology(clean_broker)
    await checking.start(INBOX)

    await delete(clean_broker, INBOX)
    await eventually(lambda: "missing queue payment.inbox" in str(checking.unhealthy_reason), within=60)
    assert INBOX not in await existing(clean_broker)

    await apply_topology(clean_broker)
    await eventually(lambda: checking.unhealthy_reason is None, within=60)
    await Publisher(checking).send([RefundPayment(order_id="o1")])
    assert len(await take_batch(checking, 1)) == 1


async def test_a_retry_without_its_queue_does_not_stop_the_consumer(checking: RabbitBus, clean_broker: str) -> None:
    await apply_topology(clean_broker)
    await checking.start(INBOX)
    retry = topology.retry_queues(INBOX)[0]
    await delete(clean_broker, retry)
    await checking.publish([Envelope(b"{}", retry, "payment.refund", "payment.refund", "o1", "m1")])
    async with await aio_pika.connect(clean_broker) as connection, connection.channel() as channel:
        letters = await channel.get_queue(topology.DEAD_LETTERS)
        letter = await eventually(lambda: letters.get(no_ack=True, fail=False), within=60)
    assert letter is not None
    assert (letter.exchange, letter.routing_key, letter.user_id) == (retry, "payment.refund", checking.user)


async def test_applying_declares_everything_once_and_says_so(clean_broker: str) -> None:
    created = await apply_topology(clean_broker)
    expected = [f"exchange {exchange.name}" for exchange in topology.exchanges()]
    expected += [f"queue {queue.name}" for queue in topology.queues()]
    assert created == expected
    assert await apply_topology(clean_broker) == []


async def test_applying_names_a_queue_with_other_arguments_and_a_broker_that_is_away(clean_broker: str) -> None:
    async with await aio_pika.connect(clean_broker) as connection, connection.channel() as channel:
        await channel.declare_queue(INBOX, durable=True, arguments={"x-queue-type": "classic"})
    with pytest.raises(StartError, match=r"payment\.inbox.*`ordersaga migrate` replaces"):
        await apply_topology(clean_broker)
    with pytest.raises(UnreachableError, match="RabbitMQ does not answer"):
        await apply_topology("amqp://127.0.0.1:1/")


async def test_a_service_is_ready_once_the_topology_is_applied_by_the_command(
    mongodb_url: str, clean_broker: str, database_prefix: str
) -> None:
    async with run_stack(mongodb_url, clean_broker, database_prefix, topology="check") as stack:
        process = await stack.launch("inventory")

        async def answer() -> dict[str, Any]:
            response = await stack.client.get(f"{process.url}/readyz")
            return {"status": response.status_code, "text": response.text}

        async def names_the_command() -> bool:
            return "`ordersaga topology apply` creates what is missing" in (await answer())["text"]

        await eventually(names_the_command, within=120)
        assert (await answer())["status"] == 503
        given = {"ORDERSAGA_AMQP_URL": clean_broker, "PATH": ""}
        status, printed, errors = await run_command("topology", "apply", environment=given)
        assert (status, errors) == (0, f"broker: {hide_credentials(clean_broker)}\n")
        assert "created queue inventory.retry.2m" in printed.splitlines()
        await stack.ready(process)

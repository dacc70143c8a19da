"""The broker runs low on memory or disk and blocks publishers: the services report it, and no message is lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import aiormq
import pytest
from yarl import URL

from operations.console import Services
from operations.console.upstream import Health
from operations.doctor.broker import check_broker
from operations.reading.broker import count_messages
from operations.stack.services import ask_readiness
from shared import topology
from shared.bus import Delivery
from shared.bus.amqp import link as link_module
from shared.bus.consumer import Consumer
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.contracts import Message, PaymentRefunded, RefundPayment
from shared.errors import BusUnavailableError
from tests.support.access import ADMIN_KEY
from tests.support.eventually import eventually
from tests.support.processes import SAGA_SERVICES, run_stack
from tests.support.proxy import Proxy
from tests.support.servers import NativeServers

INBOX, ANSWERS = topology.PAYMENT_INBOX, topology.ORDER_INBOX
MESSAGES = 40
ALARM_SECONDS = 6.0
"""Longer than the bus waits for any answer, and many times its interval between checks."""

RAISE = {
    "memory": ("set_vm_memory_high_watermark", "0.00001"),
    "disk": ("set_disk_free_limit", "1000000GB"),
}
CLEAR = {
    "memory": ("set_vm_memory_high_watermark", "0.6"),
    "disk": ("set_disk_free_limit", "1MB"),
}


@asynccontextmanager
async def alarm(servers: NativeServers, kind: str) -> AsyncIterator[None]:
    await asyncio.to_thread(servers.rabbitmqctl, *RAISE[kind])
    try:
        yield
    finally:
        await asyncio.to_thread(servers.rabbitmqctl, *CLEAR[kind])


class Service:
    """A consumer that answers every message, impatient with the broker; it counts how often it handled each."""

    def __init__(self, url: str) -> None:
        self.bus = RabbitBus(url, prefetch=MESSAGES // 2, publish_timeout=1.5, check_every=0.2, repair_every=0.2)
        self.consumer = Consumer(self.bus, INBOX, {RefundPayment: self._handle}, batch_limit=5)
        self.handled = Counter[str]()

    @asynccontextmanager
    async def run(self) -> AsyncIterator["Service"]:
        running = asyncio.create_task(self.consumer.run())
        try:
            yield self
        finally:
            await self.consumer.stop()
            await running
            await self.bus.close()

    async def _handle(self, messages: Sequence[RefundPayment]) -> list[Message]:
        self.handled.update(message.order_id for message in messages)
        return [PaymentRefunded(order_id=message.order_id, status="VOIDED") for message in messages]


@pytest.mark.parametrize("kind", ["memory", pytest.param("disk", marks=pytest.mark.extended)])
async def test_during_an_alarm_consumers_keep_their_messages_and_nothing_is_redelivered(
    own_servers: NativeServers, kind: str
) -> None:
    before, during = Service(own_servers.amqp_url), Service(own_servers.amqp_url)
    await before.bus.start(INBOX)
    orders = [f"{kind}{number}" for number in range(MESSAGES)]
    await send(own_servers.amqp_url, orders)
    link = before.bus._link

    async with AsyncExitStack() as running:
        async with alarm(own_servers, kind):
            await during.bus.start(INBOX)  # gets what exceeds the prefetch of the other
            for service in (before, during):
                await running.enter_async_context(service.run())
            for service in (before, during):
                await eventually(lambda: f"low on {kind}" in str(service.bus.unhealthy_reason), within=60)  # noqa: B023
                await eventually(lambda: service.handled, within=60)  # noqa: B023
            await asyncio.sleep(ALARM_SECONDS)
        answers = await take(own_servers.amqp_url, ANSWERS, MESSAGES)
        await eventually(
            lambda: (before.consumer.unhealthy_reason, during.consumer.unhealthy_reason) == (None, None), within=60
        )
        assert before.bus._link is link
    assert {answer.correlation_id for answer in answers} == set(orders)
    # Once each: a redelivered message would have been handled again.
    assert before.handled + during.handled == Counter(orders)
    counts = await count_messages(own_servers.amqp_url)
    assert (counts[INBOX], counts[topology.DEAD_LETTERS]) == (0, 0)


async def send(url: str, orders: Sequence[str]) -> None:
    bus = RabbitBus(url)
    await bus.start(None)
    await Publisher(bus).send([RefundPayment(order_id=order) for order in orders])
    await bus.close()


async def take(url: str, queue: str, number: int) -> list[Delivery]:
    """Take messages until those of this many orders have arrived."""
    bus, found = RabbitBus(url), list[Delivery]()
    await bus.start(queue)
    async with asyncio.timeout(60):
        while len({delivery.correlation_id for delivery in found}) < number:
            batch = await bus.receive(100)
            await bus.acknowledge(batch)
            found += batch
    await bus.close()
    return found


async def test_a_blocked_connection_whose_broker_goes_silent_is_noticed(
    own_servers: NativeServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiormq.Connection, "HEARTBEAT_GRACE_MULTIPLIER", 1)
    async with Proxy(URL(own_servers.amqp_url).update_query(heartbeat=1)).open() as proxy:
        bus = RabbitBus(str(proxy.url), publish_timeout=2)
        await bus.start(INBOX)
        async with alarm(own_servers, "memory"):
            await eventually(lambda: "low on memory" in str(bus.unhealthy_reason), within=60)
            proxy.carrying.clear()
            await eventually(lambda: bus._link is None, within=60)
            proxy.carrying.set()
        await eventually(lambda: bus.unhealthy_reason is None, within=60)
        await bus.close()


async def test_during_an_alarm_publishing_fails_and_a_node_that_sends_few_heartbeats_is_kept(
    own_servers: NativeServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bus that has never published reports the alarm, and keeps its connection over it."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(Proxy(URL(own_servers.amqp_url)).open()) for _ in range(2)]
        bus = RabbitBus(",".join(str(node.url.update_query(heartbeat=20)) for node in nodes))
        await bus.start(None)
        link = bus._link
        assert link is not None
        async with alarm(own_servers, "disk"):
            await eventually(lambda: bus.unhealthy_reason == "RabbitMQ has blocked publishing: low on disk", within=60)
            with pytest.raises(BusUnavailableError, match="low on disk"):
                await Publisher(bus).send([RefundPayment(order_id="o1")])
            monkeypatch.setattr(link_module, "SILENT_SECONDS", 1.0)
            await eventually(lambda: link._transport.silent_seconds > 3, within=60)
            assert bus._link is link
        await eventually(lambda: bus.unhealthy_reason is None, within=60)
        assert bus._link is link
        await bus.close()


async def test_orders_are_accepted_during_an_alarm_and_every_health_report_names_it(
    own_servers: NativeServers, unique_id: str
) -> None:
    async with run_stack(own_servers.mongodb_url, own_servers.amqp_url, f"t{unique_id}") as stack:
        await stack.start()
        await stack.stock("p1", 10)
        overview = Services({service: stack.url(service) for service in SAGA_SERVICES}, ADMIN_KEY)
        async with alarm(own_servers, "memory"):
            for service in SAGA_SERVICES:
                await eventually(lambda: _says_why(overview.health(service)), within=60)  # noqa: B023
            order = await stack.place(payment={"token": "tok_ok"})
            status = await asyncio.to_thread(ask_readiness, stack.url("order"))
            assert "low on memory" in f"{status.degraded} {status.unhealthy_reason}"
            findings = {finding.subject: finding async for finding in check_broker(own_servers.amqp_url, None)}
            assert findings["RabbitMQ alarms"].outcome == "wrong"
            assert "low on memory" in findings["RabbitMQ alarms"].detail
        await overview.close()
        assert (await stack.settled(order))["status"] == "CONFIRMED"


async def _says_why(asked: Awaitable[Health]) -> bool:
    return "blocked publishing: low on memory" in str((await asked).problem)

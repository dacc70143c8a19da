"""The broker stops, dies or drops its connections in the middle of load: the bus comes back and nothing is lost."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from shared import topology
from shared.bus.consumer import Consumer
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.contracts import Message, PaymentRefunded, RefundPayment
from shared.errors import BusUnavailableError
from tests.support.eventually import eventually
from tests.support.servers import NativeServers
from tests.support.tasks import end_tasks

INBOX, ANSWERS = topology.PAYMENT_INBOX, topology.ORDER_INBOX
PUBLISH_SECONDS = 2.0


class Traffic:
    """A sender that repeats what was not confirmed, a service that answers, and a receiver of the answers."""

    def __init__(self, url: str) -> None:
        self.sender = RabbitBus(url, publish_timeout=PUBLISH_SECONDS)
        self.service = RabbitBus(url, publish_timeout=PUBLISH_SECONDS)
        self.receiver = RabbitBus(url)
        self.consumer = Consumer(self.service, INBOX, {RefundPayment: self._answer})
        self.confirmed: set[str] = set()
        self.answered: set[str] = set()
        self.failures = 0

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator["Traffic"]:
        await self.sender.start(None)
        await self.service.start(INBOX)
        await self.receiver.start(ANSWERS)
        tasks = [asyncio.create_task(work()) for work in (self._send, self.consumer.run, self._receive)]
        try:
            yield self
        finally:
            await end_tasks(*tasks)
            for bus in (self.sender, self.service, self.receiver):
                await bus.close()

    async def recovered(self) -> None:
        """Wait until all are connected again, and new messages and all confirmed ones are answered."""
        before = len(self.confirmed)
        await eventually(lambda: len(self.confirmed) >= before + 50, within=60)
        everything = set(self.confirmed)
        await eventually(lambda: everything <= self.answered, within=60)
        await eventually(lambda: self._health_checks() == {None}, within=60, message="all to be connected")

    def _health_checks(self) -> set[str | None]:
        return {self.sender.unhealthy_reason, self.consumer.unhealthy_reason, self.receiver.unhealthy_reason}

    async def _send(self) -> None:
        publisher, number = Publisher(self.sender), 0
        while True:
            orders = [f"o{number + offset}" for offset in range(10)]
            try:
                await publisher.send([RefundPayment(order_id=order) for order in orders])
            except BusUnavailableError:
                self.failures += 1
                await asyncio.sleep(0.05)
            else:
                self.confirmed.update(orders)
                number += 10
                await asyncio.sleep(0.002)

    async def _answer(self, messages: Sequence[RefundPayment]) -> list[Message]:
        return [PaymentRefunded(order_id=message.order_id, status="VOIDED") for message in messages]

    async def _receive(self) -> None:
        while True:
            batch = await self.receiver.receive(200)
            self.answered.update(str(delivery.correlation_id) for delivery in batch)
            await self.receiver.acknowledge(batch)


async def kill_and_start(servers: NativeServers) -> None:
    await servers.stop_broker(kill=True)
    await servers.start_broker()


async def close_connections(servers: NativeServers) -> None:
    await asyncio.to_thread(servers.rabbitmqctl, "close_all_connections", "a test")


@pytest.mark.parametrize("outage", [kill_and_start, close_connections])
async def test_traffic_continues_after_an_outage_and_nothing_confirmed_is_lost(
    own_servers: NativeServers, outage: Callable[[NativeServers], Awaitable[None]]
) -> None:
    async with Traffic(own_servers.amqp_url).run() as traffic:
        await eventually(lambda: len(traffic.answered) > 500, within=60)
        await outage(own_servers)
        await eventually(lambda: traffic.failures, within=60)
        await traffic.recovered()


async def test_while_the_broker_is_away_publishing_fails_in_bounded_time_and_a_bus_that_starts_waits(
    own_servers: NativeServers,
) -> None:
    async with Traffic(own_servers.amqp_url).run() as traffic:
        bus = RabbitBus(own_servers.amqp_url, publish_timeout=PUBLISH_SECONDS)
        await bus.start(None)
        stopping = asyncio.create_task(own_servers.stop_broker())
        assert await slowest_publication(bus, failures=5) < PUBLISH_SECONDS + 10  # a stalled machine is not its fault
        await stopping
        late = RabbitBus(own_servers.amqp_url)
        starting = asyncio.create_task(late.start(INBOX))
        for each in (bus, late):
            # The last reason may be how the connection was lost, until the bus has tried again.
            await eventually(lambda: "Connect call failed" in str(each.unhealthy_reason), within=60)  # noqa: B023
        assert not starting.done()

        await own_servers.start_broker()

        async with asyncio.timeout(60):
            await starting
        assert late.unhealthy_reason is None
        await late.close()
        await bus.close()
        await traffic.recovered()


async def slowest_publication(bus: RabbitBus, failures: int) -> float:
    """Publish until that has failed some times; return how many seconds the slowest attempt took."""
    slowest = 0.0
    while failures:
        start = time.monotonic()
        try:
            await Publisher(bus).send([RefundPayment(order_id="o1")] * 50)
        except BusUnavailableError:
            failures -= 1
            await asyncio.sleep(0.05)
        slowest = max(slowest, time.monotonic() - start)
    return slowest


async def test_a_consumer_whose_queue_has_no_leader_is_kept(own_servers: NativeServers) -> None:
    """Without a leader, the broker counts no consumers of the queue, and ends a connection that begins to consume."""
    bus = RabbitBus(own_servers.amqp_url, check_every=0.05)
    await bus.start(INBOX)
    link = bus._link
    member = f"quorum_queues, {{'%2F_{INBOX}', node()}}"
    stop_for_a_while = f"ra:stop_server({member}), timer:sleep(2000), ra:restart_server({member})."
    await asyncio.to_thread(own_servers.rabbitmqctl, "eval", stop_for_a_while)

    async with asyncio.timeout(60):
        await _until_sent(bus, RefundPayment(order_id="o1"))
        received = await bus.receive(1)

    assert [delivery.correlation_id for delivery in received] == ["o1"]
    assert bus._link is link
    await bus.close()


async def _until_sent(bus: RabbitBus, message: Message) -> None:
    while True:
        with contextlib.suppress(BusUnavailableError):
            return await Publisher(bus).send([message])
        await asyncio.sleep(0.05)

"""Another number of partitions: what is missing, what is too much, and that nothing is lost while it changes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from operations.doctor.broker import check_broker, check_plugin
from operations.doctor.finding import Finding
from operations.stack.broker_topology import apply_topology, retire_surplus
from shared import topology
from shared.bus.partitions import Leftover, describe_leftovers
from shared.bus.rabbitmq import RabbitBus
from shared.errors import StartError
from tests.support.commands import run_command
from tests.support.eventually import eventually
from tests.support.partitions import MOST, Workers, declare_partitions, open_workers, undivided
from tests.support.servers import Servers

INBOX = topology.PAYMENT_INBOX


@pytest.fixture
async def broker(clean_broker: str) -> AsyncIterator[str]:
    """A broker with the topology of undivided inboxes."""
    async with undivided(clean_broker) as url:
        yield url


async def test_a_service_with_more_partitions_than_the_broker_names_those_that_are_missing(broker: str) -> None:
    bus = RabbitBus(broker, topology_mode="check", topology_options=topology.TopologyOptions(partitions=2))
    starting = asyncio.create_task(bus.start(INBOX))
    try:
        missing = "missing exchange order.inbox.partitions, exchange inventory.inbox.partitions"
        await eventually(lambda: missing in str(bus.unhealthy_reason), 60)
        assert not starting.done()
        await declare_partitions(broker, 2)
        async with asyncio.timeout(60):
            await starting
    finally:
        starting.cancel()
        await bus.close()


@contextlib.asynccontextmanager
async def messages_flowing(workers: Workers) -> AsyncIterator[list[str]]:
    """Send messages about ever new orders meanwhile; yield the list of them."""
    sent: list[str] = []

    async def flow() -> None:
        while True:
            orders = [f"o{len(sent) + number}" for number in range(20)]
            await workers.send(orders)
            sent.extend(orders)
            await asyncio.sleep(0.02)

    flowing = asyncio.create_task(flow())
    yield sent
    flowing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await flowing


async def test_growing_and_shrinking_lose_nothing(broker: str) -> None:
    async with open_workers(broker) as workers:
        async with messages_flowing(workers) as sent:
            [undivided] = await workers.start(partitions=topology.WHOLE)
            await eventually(lambda: undivided.orders, 60)
            await declare_partitions(broker)
            [of_four] = await workers.start()
            await eventually(lambda: len(of_four.active) == MOST, 60)

            await apply_topology(broker, topology.TopologyOptions(partitions=2))
            assert {each.queue for each in await retire_surplus(broker, 2)} == {f"{INBOX}.3", f"{INBOX}.4"}
            [of_two] = await workers.start(partitions=2)
            await of_four.close()
            await eventually(lambda: len(of_two.active) == 2, 60)

            await apply_topology(broker)
            left = await retire_surplus(broker, 1)
            assert {each.queue for each in left if each.consumers} == {f"{INBOX}.1", f"{INBOX}.2"}
            seen = len(undivided.orders)
            await eventually(lambda: len(undivided.orders) > seen + 20, 60)
        await of_two.close()
        left = await retire_surplus(broker, 1)
        assert sum(each.messages for each in left) == len(set(sent) - workers.orders)
        for _ in left[:1]:  # what came to the others after they had ended
            [of_four] = await workers.start()
            await eventually(lambda: workers.orders >= set(sent), 60)
            await of_four.close()
        assert await retire_surplus(broker, 1) == []
        await eventually(lambda: workers.orders >= set(sent), 60)


def test_what_is_left_is_said_in_one_line() -> None:
    line = describe_leftovers([Leftover("order.inbox.3", 12, 0), Leftover("order.inbox.4", 0, 1)])
    assert "order.inbox.3 (12 waiting, not consumed), order.inbox.4 (0 waiting, still consumed)" in line
    assert "former ORDERSAGA_PARTITIONS" in line


async def test_doctor_knows_the_number_of_partitions(broker: str) -> None:
    async def findings(partitions: int) -> dict[str, Finding]:
        return {
            each.subject: each
            async for each in check_broker(broker, None, topology.TopologyOptions(partitions=partitions))
        }

    assert "partitions" not in await findings(1)
    assert (await findings(2))["queues"].outcome == "wrong"
    await declare_partitions(broker, 2)
    found = await findings(2)
    assert {found[subject].outcome for subject in ("exchanges", "queues", "plugins")} == {"ok"}
    assert "partitions" not in found
    assert (await findings(1))["partitions"].detail.startswith("ORDERSAGA_PARTITIONS is 1, and order.inbox has 2, ")


async def test_topology_apply_says_what_it_has_created_and_what_is_left(broker: str) -> None:
    await declare_partitions(broker, 2)
    async with open_workers(broker) as workers:
        await workers.send(["o1"])
    stack = {"ORDERSAGA_AMQP_URL": broker, "ORDERSAGA_EVENTS_RETENTION": "off"}

    _, document, _ = await run_command("topology", "apply", "--json", environment=stack)
    [left] = json.loads(document)["surplus"]
    assert left["queue"] in topology.partitions_of(INBOX, 2)
    assert (left["messages"], left["consumers"]) == (1, 0)
    status, said, _ = await run_command("topology", "apply", environment=stack)
    assert status == 0  # or services that wait for this step could never take it
    assert f"no longer in use, but not deleted yet: {left['queue']} (1 waiting, not consumed)" in said
    _, said, _ = await run_command("topology", "apply", environment={**stack, "ORDERSAGA_PARTITIONS": "2"})
    assert "created queue order.inbox.2" in said


async def test_a_broker_without_the_plugin_is_named(servers: Servers, clean_broker: str) -> None:
    if servers.native is None:
        pytest.skip("the plugins of a broker that was given stay as they are")
    control = servers.native.broker.control
    await asyncio.to_thread(control, "disable", topology.PARTITIONS_PLUGIN, tool="rabbitmq-plugins")
    try:
        await apply_topology(clean_broker)  # undivided, it is not needed
        reason = f"lacks the plugin {topology.PARTITIONS_PLUGIN}.*: `rabbitmq-plugins enable"
        with pytest.raises(StartError, match=reason):
            await apply_topology(clean_broker, topology.TopologyOptions(partitions=2))
        bus = RabbitBus(clean_broker, topology_mode="declare", topology_options=topology.TopologyOptions(partitions=2))
        with pytest.raises(StartError, match=reason):
            await bus.start(INBOX)
        await bus.close()
        assert topology.PARTITIONS_PLUGIN in (await check_plugin(clean_broker)).detail
    finally:
        await asyncio.to_thread(control, "enable", topology.PARTITIONS_PLUGIN, tool="rabbitmq-plugins")

"""The stream of events: it is declared with the topology, kept as it is when its retention changes, and can be off."""

from collections.abc import AsyncIterator

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection

from operations.doctor.broker import check_event_stream
from operations.stack.broker_topology import apply_topology
from shared import topology
from shared.bus import Envelope
from shared.bus.declaring import EventStreamDiffersError, find_missing, repair_topology
from shared.bus.rabbitmq import RabbitBus
from tests.support.events import kept, publish
from tests.support.eventually import eventually

MISSING = ["queue ordersaga.events"]


@pytest.fixture
async def connection(clean_broker: str) -> AsyncIterator[AbstractConnection]:
    async with await aio_pika.connect(clean_broker) as opened:
        yield opened


async def test_a_broker_of_an_earlier_release_gets_the_stream_and_nothing_else_changes(
    clean_broker: str, connection: AbstractConnection
) -> None:
    await apply_topology(clean_broker)
    assert await find_missing(connection, topology.RETRY_LADDER, topology.TopologyOptions("7D")) == MISSING
    assert await apply_topology(clean_broker, topology.TopologyOptions("7D")) == MISSING
    assert await find_missing(connection, topology.RETRY_LADDER, topology.TopologyOptions("7D")) == []
    assert await apply_topology(clean_broker, topology.TopologyOptions("7D")) == []
    await publish(clean_broker, "order.created", "stock.released", "package.low_ips")
    assert await kept(clean_broker) == ["order.created", "package.low_ips"]
    assert (await check_event_stream(connection, "7D")).outcome == "ok"


async def test_another_retention_is_named_and_the_stream_goes_on(
    clean_broker: str, connection: AbstractConnection
) -> None:
    await apply_topology(clean_broker, topology.TopologyOptions("7D"))
    await apply_topology(clean_broker)
    reason = "keeps events for 7D, not for 12h as ORDERSAGA_EVENTS_RETENTION says"
    with pytest.raises(EventStreamDiffersError, match=reason):
        await apply_topology(clean_broker, topology.TopologyOptions("12h"))
    await publish(clean_broker, "order.created")
    assert await kept(clean_broker) == ["order.created"]
    finding = await check_event_stream(connection, "12h")
    assert (finding.outcome, "current is '7D'" in finding.detail) == ("note", True)


async def test_off_removes_the_bindings_and_keeps_what_the_stream_has(
    clean_broker: str, connection: AbstractConnection
) -> None:
    await apply_topology(clean_broker, topology.TopologyOptions("7D"))
    await publish(clean_broker, "order.created")
    await apply_topology(clean_broker)
    await publish(clean_broker, "order.created")
    assert await kept(clean_broker) == ["order.created"]
    assert (await check_event_stream(connection, topology.EVENTS_OFF)).detail.startswith("off: ")
    assert (await check_event_stream(connection, "7D")).outcome == "ok"  # it exists; bindings are another check


async def test_a_service_that_checks_names_the_missing_stream_and_one_that_declares_restores_it(
    clean_broker: str, connection: AbstractConnection
) -> None:
    await apply_topology(clean_broker)
    bus = RabbitBus(
        clean_broker, topology_mode="declare", repair_every=0.2, topology_options=topology.TopologyOptions("7D")
    )
    checking = RabbitBus(
        clean_broker, topology_mode="check", repair_every=0.2, topology_options=topology.TopologyOptions("7D")
    )
    try:
        await bus.start(None)
        await checking.start(None)
        await publish(clean_broker, "order.created")
        assert await kept(clean_broker) == ["order.created"]
        await bus.close()
        async with connection.channel() as channel:
            await channel.queue_delete(topology.EVENTS)
        await eventually(lambda: "missing queue ordersaga.events" in str(checking.unhealthy_reason), within=60)
        assert (await check_event_stream(connection, "7D")).outcome == "wrong"
        assert await repair_topology(connection, topology.RETRY_LADDER, topology.TopologyOptions("7D")) == MISSING
        await eventually(lambda: checking.unhealthy_reason is None, within=60)
        await checking.publish([Envelope(b"{}", topology.EXCHANGE, "order.failed", "order.failed", "o1", "m1")])
        assert await kept(clean_broker) == ["order.failed"]
    finally:
        await bus.close()
        await checking.close()

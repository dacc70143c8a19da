"""The bus in memory: its faults depend only on the seed, its clock moves only on request, and nothing is ever lost."""

import asyncio

import pytest

from shared import topology
from shared.bus import Envelope
from shared.bus.memory import Faults, MemoryBroker, MemoryBus
from shared.errors import BusUnavailableError
from tests.support.seeds import seeded

INBOX = topology.PAYMENT_INBOX
EVERYTHING = Faults(duplicate=0.2, reorder=0.3, delay=0.3, longest_delay=9.0, disconnect=0.1)


def envelope(number: int) -> Envelope:
    return Envelope(b"%d" % number, "", INBOX, "t", "c", str(number))


async def play(seed: int, faults: Faults, count: int = 200) -> list[int]:
    """Publish numbers until each is confirmed while a consumer takes them; return them as they were taken."""
    broker = MemoryBroker(seed, faults=faults)
    sender, receiver = MemoryBus(broker), MemoryBus(broker)
    await sender.start(None)
    await receiver.start(INBOX)
    taken: list[int] = []

    async def consume() -> None:
        while batch := await receiver.receive(7):
            taken.extend(int(delivery.body) for delivery in batch)
            await receiver.acknowledge(batch)

    consuming = asyncio.create_task(consume())
    for first in range(0, count, 5):
        await send([envelope(number) for number in range(first, first + 5)], sender)
    while broker.depth():
        broker.advance_to_next()
        await asyncio.sleep(0)
    await receiver.close()
    await consuming
    return taken


async def send(envelopes: list[Envelope], bus: MemoryBus) -> None:
    while True:
        try:
            await bus.publish(envelopes)
        except BusUnavailableError:
            continue
        return


def test_equal_seeds_give_equal_runs_and_other_seeds_others() -> None:
    first, again, other = (asyncio.run(play(seed, EVERYTHING)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@seeded()
def test_despite_all_faults_every_message_arrives_at_least_once(seed: int) -> None:
    assert set(asyncio.run(play(seed, EVERYTHING))) == set(range(200))


def test_without_faults_messages_come_once_and_in_order() -> None:
    assert asyncio.run(play(1, Faults())) == list(range(200))


@pytest.mark.parametrize(
    "faults", [Faults(duplicate=0.2), Faults(disconnect=0.2)], ids=["duplicated", "after a lost connection"]
)
def test_messages_may_come_twice(faults: Faults) -> None:
    assert len(asyncio.run(play(1, faults))) > 200


@pytest.mark.parametrize("faults", [Faults(reorder=0.3), Faults(delay=0.3)], ids=["reordered", "delayed"])
def test_messages_may_come_out_of_order(faults: Faults) -> None:
    taken = asyncio.run(play(1, faults))
    assert taken != sorted(taken)
    assert sorted(taken) == list(range(200))


def test_a_retry_returns_after_its_delay_and_not_before() -> None:
    async def work() -> None:
        broker = MemoryBroker()
        bus = MemoryBus(broker)
        await bus.start(None)
        levels = [Envelope(b"", level, "t", "t", "c", level) for level in topology.retry_queues(INBOX)]
        await bus.publish(levels)
        came: list[tuple[int, str]] = []
        for second in range(1, 121):
            broker.advance(1)
            came += [(second, one.message_id) for one in broker.contents(INBOX)[len(came) :]]
        assert came == list(zip((1, 5, 30, 120), topology.retry_queues(INBOX), strict=True))

    asyncio.run(work())


def test_a_stopped_broker_keeps_its_messages_and_confirms_nothing() -> None:
    async def work() -> None:
        broker = MemoryBroker()
        bus = MemoryBus(broker)
        await bus.start(INBOX)
        await bus.publish([envelope(1)])
        broker.stop()
        with pytest.raises(BusUnavailableError):
            await bus.publish([envelope(2)])
        receiving = asyncio.create_task(bus.receive(5))
        await asyncio.sleep(0.01)
        assert not receiving.done()
        assert bus.unhealthy_reason == "memory broker: stopped"
        broker.start()
        assert [delivery.body for delivery in await receiving] == [b"1"]

    asyncio.run(work())

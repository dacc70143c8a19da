"""The contract of every bus (shared.bus.Bus), over RabbitMQ and in memory."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared import topology
from shared.bus import Envelope
from shared.bus.publisher import Publisher, envelope
from shared.contracts import OrderConfirmed, RefundPayment
from shared.errors import BusUnavailableError
from tests.support.buses import SHORT_LADDER, Harness, bodies, open_harness, raw, take_batch
from tests.support.eventually import eventually

INBOX = topology.PAYMENT_INBOX


@pytest.fixture(params=["memory", "rabbitmq"])
async def harness(request: pytest.FixtureRequest, amqp_url: str) -> AsyncIterator[Harness]:
    async with open_harness(request.param, amqp_url, "declare") as opened:
        yield opened


def refunds(count: int) -> list[RefundPayment]:
    return [RefundPayment(order_id=f"o{number}", reason="a test") for number in range(count)]


async def test_messages_are_received_complete_and_in_order(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    sent = [envelope(message) for message in refunds(250)]
    await bus.publish(sent)

    received = await take_batch(bus, 250)

    assert [(d.body, d.type, d.routing_key, d.correlation_id, d.message_id) for d in received] == [
        (e.body, "payment.refund", "payment.refund", e.correlation_id, e.message_id) for e in sent
    ]
    assert {(d.queue, d.exchange, d.redelivered) for d in received} == {(INBOX, topology.EXCHANGE, False)}


async def test_headers_of_every_kind_survive(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    headers: dict[str, Any] = {"text": "ü", "number": -7, "big": 2**60, "yes": True, "nothing": None, "real": 0.1}
    headers |= {"list": [1, "two", {"three": 3}], "table": {"deep": {"deeper": [False]}}, "bytes": b"\xff\x00"}
    sent = Envelope(b"{}", "", INBOX, "t", "c", "m", headers=headers)
    await bus.publish([sent])

    (received,) = await take_batch(bus, 1)

    assert dict(received.headers) == headers


async def test_receive_returns_the_waiting_messages_up_to_the_limit(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    await Publisher(bus).send(refunds(10))
    await eventually(lambda: harness.arrived(bus) == 10, 60)

    assert [len(await bus.receive(4)), len(await bus.receive(4)), len(await bus.receive(4))] == [4, 4, 2]


async def test_a_message_at_idle_is_received_at_once(harness: Harness) -> None:
    bus = await harness.bus(INBOX)

    async def at_once() -> bool:
        receiving = asyncio.create_task(_receive(bus))
        start = time.monotonic()
        await Publisher(bus).send(refunds(1))
        await bus.acknowledge(await receiving)
        return time.monotonic() - start < 0.05

    # The broker's disk may be slow for a while; what waits for company is never at once.
    await eventually(at_once, 60, "a message to be received at once")


async def test_acknowledged_messages_never_come_again(harness: Harness) -> None:
    bus = await harness.bus(INBOX, prefetch=10)
    await Publisher(bus).send(refunds(20))
    await bus.acknowledge(await take_batch(bus, 10))
    # They come only when the broker has seen the acknowledgement, which otherwise might be lost with the connection.
    unacknowledged = await take_batch(bus, 10)

    await harness.drop_connections()

    assert bodies(await take_batch(bus, 10)) == bodies(unacknowledged)


async def test_unacknowledged_messages_are_redelivered_and_marked_so_after_a_lost_connection(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    await Publisher(bus).send(refunds(5))
    first = await take_batch(bus, 5)
    assert bus.still_owns(first)

    await harness.drop_connections()
    again = await take_batch(bus, 5)

    assert bodies(again) == bodies(first)
    assert all(delivery.redelivered for delivery in again)
    assert not bus.still_owns(first)
    assert bus.still_owns(again)


async def test_acknowledging_deliveries_of_a_lost_connection_changes_nothing(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    await Publisher(bus).send(refunds(3))
    first = await take_batch(bus, 3)
    await harness.drop_connections()
    again = await take_batch(bus, 3)

    await bus.acknowledge(first)
    await bus.requeue(first)
    await harness.drop_connections()

    assert bodies(await take_batch(bus, 3)) == bodies(again)


async def test_requeued_messages_are_redelivered_in_order(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    await Publisher(bus).send(refunds(5))
    first = await take_batch(bus, 5)

    await bus.requeue(first)

    again = await take_batch(bus, 5)
    assert bodies(again) == bodies(first)
    await bus.acknowledge(again)
    await harness.take_from(INBOX, 0)


async def test_without_intake_a_batch_in_hand_is_finished_and_the_rest_goes_back_in_order(harness: Harness) -> None:
    bus, other = await harness.bus(INBOX), await harness.bus()
    await Publisher(other).send(refunds(10))
    await eventually(lambda: harness.arrived(bus) == 10, 60)
    in_hand = await bus.receive(3)

    await bus.limit_intake(0)
    await bus.acknowledge(in_hand)

    left = await harness.take_from(INBOX, 7)
    assert bodies([*in_hand, *left]) == [envelope(message).body for message in refunds(10)]


async def test_without_intake_nothing_is_received_until_there_is_some_again(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    await bus.limit_intake(0)
    await Publisher(bus).send(refunds(5))
    receiving = asyncio.create_task(_receive(bus))
    # A new connection is limited, too.
    await harness.drop_connections()
    await eventually(lambda: bus.unhealthy_reason is None, 60)
    assert not receiving.done()

    await bus.limit_intake(None)

    received = [*await receiving]
    received += await take_batch(bus, 5 - len(received))
    assert bodies(received) == [envelope(message).body for message in refunds(5)]


async def test_an_intake_of_one_brings_the_next_message_after_the_acknowledgement(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    await bus.limit_intake(1)
    await Publisher(bus).send(refunds(3))
    (first,) = await bus.receive(100)
    await bus.acknowledge([first])
    (second,) = await bus.receive(100)

    await bus.limit_intake(None)
    await bus.acknowledge([second])

    (third,) = await bus.receive(100)
    assert bodies([first, second, third]) == [envelope(message).body for message in refunds(3)]


async def test_a_message_that_crashes_its_consumer_for_ever_becomes_a_dead_letter(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    await Publisher(bus).send(refunds(1))
    for _ in range(topology.DELIVERY_LIMIT + 1):
        await bus.requeue(await take_batch(bus, 1))

    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)

    assert dead.correlation_id == "o0"
    assert dead.headers["x-first-death-queue"] == INBOX
    await harness.take_from(INBOX, 0)


async def test_a_mandatory_message_that_no_queue_takes_is_an_error(harness: Harness) -> None:
    bus = await harness.bus()
    routable, unroutable = envelope(refunds(1)[0]), Envelope(b"{}", topology.EXCHANGE, "no.such", "t", "c", "m")
    with pytest.raises(BusUnavailableError, match=r"no queue takes 'no\.such' from exchange 'ordersaga'"):
        await bus.publish([routable, unroutable, routable])
    await harness.take_from(INBOX, 2)


async def test_publishing_nothing_is_done_at_once(harness: Harness) -> None:
    bus = await harness.bus()
    async with asyncio.timeout(60):
        await bus.publish([])


async def test_an_optional_message_that_no_queue_takes_is_fine(harness: Harness) -> None:
    bus = await harness.bus()
    await Publisher(bus).send([OrderConfirmed(order_id="o1", user_id="u1", total_amount=10)])


async def test_a_deleted_queue_is_declared_again_when_a_message_for_it_is_returned(harness: Harness) -> None:
    bus = await harness.bus()
    await harness.delete_queue(topology.INVENTORY_INBOX)
    message = Envelope(b"{}", "", topology.INVENTORY_INBOX, "t", "c", "m")
    with pytest.raises(BusUnavailableError):
        await bus.publish([message])

    await bus.publish([message])

    await harness.take_from(topology.INVENTORY_INBOX, 1)


async def test_a_consumer_whose_queue_is_deleted_consumes_from_the_new_one(harness: Harness) -> None:
    bus = await harness.bus(INBOX, check_every=0.2)
    publisher = Publisher(await harness.bus())
    await harness.delete_queue(INBOX)

    async def sent() -> bool:
        await publisher.send(refunds(1))
        return True

    await eventually(sent, within=60)
    assert len(await take_batch(bus, 1)) == 1
    assert bus.unhealthy_reason is None


async def test_each_retry_level_returns_a_message_to_its_inbox_after_its_delay(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    for level in SHORT_LADDER:
        name, headers = level.queue_of(INBOX), {"x-attempts": 1}
        sent = Envelope(b"{}", name, "payment.refund", "payment.refund", "c", f"m-{level.name}", headers=headers)
        start = harness.now()
        await bus.publish([sent])
        receiving = asyncio.create_task(_receive(bus))
        while not receiving.done():
            await harness.pass_time(0.005)
        assert harness.now() - start > level.milliseconds / 1000 - 0.002
        (back,) = receiving.result()
        assert (back.message_id, back.type, back.routing_key) == (f"m-{level.name}", sent.type, INBOX)
        assert back.exchange == topology.INBOX_EXCHANGE
        assert back.headers["x-attempts"] == 1
        await bus.acknowledge([back])


async def test_retries_that_no_queue_takes_become_dead_letters_and_hold_up_no_other(harness: Harness) -> None:
    """More than the broker forwards at once: with at-least-once dead-lettering it waits until those are taken."""
    level = SHORT_LADDER[0].queue_of(INBOX)
    await harness.delete_queue(INBOX)
    for number in range(40):
        await harness.send_raw(Envelope(b"lost", level, "payment.refund", "payment.refund", "o1", f"m{number}"))

    dead = await harness.take_from(topology.DEAD_LETTERS, 40)
    assert {(letter.body, letter.routing_key) for letter in dead} == {(b"lost", INBOX)}
    assert {letter.headers["x-first-death-queue"] for letter in dead} == {level}
    await harness.bus()  # declares the inbox again
    await harness.send_raw(Envelope(b"good", level, "payment.refund", "payment.refund", "o1", "good"))
    assert bodies(await harness.take_from(INBOX, 1)) == [b"good"]


async def test_a_retry_returns_to_its_own_inbox_whatever_its_routing_key_and_its_headers_say(harness: Harness) -> None:
    copies = {"CC": [topology.ORDER_INBOX], "BCC": [topology.INVENTORY_INBOX]}
    level = SHORT_LADDER[0].queue_of(INBOX)
    await harness.send_raw(
        Envelope(b"mine", level, topology.ORDER_INBOX, "payment.processed", "o1", "m", headers=copies)
    )

    assert bodies(await harness.take_from(INBOX, 1)) == [b"mine"]
    for other in (topology.ORDER_INBOX, topology.INVENTORY_INBOX, topology.DEAD_LETTERS):
        await harness.take_from(other, 0)


async def test_a_retry_whose_queue_is_missing_becomes_a_dead_letter(harness: Harness) -> None:
    level = SHORT_LADDER[0].queue_of(INBOX)
    await harness.delete_queue(level)
    await harness.send_raw(Envelope(b"lost", level, "payment.refund", "payment.refund", "o1", "m"))
    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)
    assert (dead.body, dead.routing_key) == (b"lost", "payment.refund")
    await harness.bus()  # declares the queue again


async def test_prefetch_bounds_what_is_unacknowledged(harness: Harness) -> None:
    bus = await harness.bus(INBOX, prefetch=5)
    await Publisher(bus).send(refunds(8))
    first = await take_batch(bus, 5)
    receiving = asyncio.create_task(_receive(bus))
    await harness.pass_time(0.2)
    assert not receiving.done()

    await bus.acknowledge(first)

    await Publisher(bus).send(refunds(1))
    async with asyncio.timeout(60):
        await receiving


async def test_two_consumers_of_a_queue_share_it(harness: Harness) -> None:
    bus, other = await harness.bus(INBOX, prefetch=5), await harness.bus(INBOX, prefetch=5)
    await Publisher(other).send(refunds(10))
    mine, theirs = await take_batch(bus, 5), await take_batch(other, 5)
    assert set(bodies(mine)).isdisjoint(bodies(theirs))


async def test_stopping_wakes_a_waiting_receiver_and_still_acknowledges(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    await Publisher(bus).send(refunds(2))
    batch = await take_batch(bus, 2)
    receiving = asyncio.create_task(_receive(bus))
    await asyncio.sleep(0.01)

    await bus.stop_receiving()

    async with asyncio.timeout(60):
        assert len(await receiving) == 0
    await bus.acknowledge(batch)
    await bus.close()
    await harness.take_from(INBOX, 0)


async def test_closing_returns_what_was_not_acknowledged(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    await Publisher(bus).send(refunds(3))
    batch = await take_batch(bus, 3)
    await bus.close()
    assert bodies(await harness.take_from(INBOX, 3)) == bodies(batch)
    assert bus.unhealthy_reason is not None


async def test_publishing_on_a_closed_bus_is_an_error_and_not_a_wait(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.close()
    with pytest.raises(BusUnavailableError):
        async with asyncio.timeout(1):
            await bus.publish([raw(b"{}", INBOX)])


async def test_messages_of_many_publishers_at_once_all_arrive(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    sent = [[envelope(message) for message in refunds(25)] for _ in range(20)]
    await asyncio.gather(*(bus.publish(one) for one in sent))

    received: list[Any] = []
    while len(received) < 500:
        batch = await take_batch(bus, min(200, 500 - len(received)))
        received += batch
        await bus.acknowledge(batch)

    assert {d.message_id for d in received} == {e.message_id for one in sent for e in one}


async def test_the_largest_body_that_the_broker_takes_travels_whole(harness: Harness) -> None:
    bus = await harness.bus(INBOX)
    body = bytes(range(256)) * (topology.MAX_MESSAGE_BYTES // 256)
    await bus.publish([raw(body, INBOX, message_id="big"), raw(b"", INBOX, message_id="empty")])
    assert bodies(await take_batch(bus, 2)) == [body, b""]


async def _receive(bus: Any) -> Any:
    return await bus.receive(10)

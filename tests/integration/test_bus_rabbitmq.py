"""Faults that only a real RabbitMQ, or a sender that writes its own frames, can cause on the bus."""

import asyncio
import functools
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import aio_pika
import aiormq
import pytest
from aiormq.abc import ChannelFrame, FieldTable
from yarl import URL

from shared import topology
from shared.bus import Envelope
from shared.bus.amqp import link as link_module
from shared.bus.amqp.confirms import Pending
from shared.bus.amqp.frames import BODY, HEADER, METHOD, UNREADABLE_HEADERS
from shared.bus.amqp.publications import Publications
from shared.bus.consumer import Consumer
from shared.bus.publisher import Publisher, envelope
from shared.bus.rabbitmq import RabbitBus
from shared.bus.reading import read
from shared.contracts import RefundPayment
from shared.errors import BusUnavailableError, StartError
from tests.support.buses import SHORT_LADDER, RabbitHarness, bodies, raw, take_batch
from tests.support.eventually import eventually
from tests.support.proxy import Proxy

INBOX = topology.PAYMENT_INBOX


@pytest.fixture
async def harness(amqp_url: str) -> AsyncIterator[RabbitHarness]:
    async with RabbitHarness.open(amqp_url, "declare") as opened:
        yield opened


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def nested(levels: int) -> bytes:
    content = b""
    for _ in range(levels):
        content = short(b"a") + b"F" + table(content)
    return content


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


HOSTILE_PROPERTIES = {
    "a type that is not UTF-8": struct.pack(">H", 1 << 5) + short(b"\xff\xfe" * 100),
    "ids that are not UTF-8": struct.pack(">H", 1 << 10 | 1 << 7) + short(b"\xff" * 255) + short(b"\xfe" * 255),
    "a timestamp in the year 292278994": struct.pack(">H", 1 << 6) + struct.pack(">Q", 2**63),
    "headers nested 1500 deep": struct.pack(">H", 1 << 13) + table(nested(1500)),
    "a header name that is not UTF-8": struct.pack(">H", 1 << 13) + table(short(b"\xff") + b"V"),
    "a header timestamp out of range": struct.pack(">H", 1 << 13) + table(short(b"t") + b"T" + b"\x7f" * 8),
    "a header of 100 KB": struct.pack(">H", 1 << 13) + table(short(b"h") + b"S" + table(b"\xff" * 100_000)),
    "a priority, an expiration and all else": struct.pack(">H", 0xFFFC)
    + b"".join((short(b"t/x"), short(b"e"), table(b""), b"\x02", b"\x09", short(b"c"), short(b"r"), short(b"60000")))
    + b"".join((short(b"m"), struct.pack(">Q", 1), short(b"no.such"), short(b"guest"), short(b"a"), short(b""))),
}


async def send_frames(url: str, exchange: str, routing_key: bytes, properties: bytes, body: bytes = b"{}") -> None:
    """Publish with names and properties that no client library would write."""
    connection = await aiormq.connect(url)
    channel = await connection.channel(publisher_confirms=False)
    method = struct.pack(">HHH", 60, 40, 0) + short(exchange.encode()) + short(routing_key) + b"\0"
    frames = frame(METHOD, channel.number, method)
    frames += frame(HEADER, channel.number, struct.pack(">HHQ", 60, 0, len(body)) + properties)
    frames += frame(BODY, channel.number, body)
    written = asyncio.get_running_loop().create_future()
    await connection.write_queue.put(ChannelFrame(payload=frames, should_close=False, drain_future=written))
    await written
    await connection.close()


@pytest.mark.parametrize("name", HOSTILE_PROPERTIES)
async def test_a_message_with_hostile_properties_becomes_a_dead_letter_and_the_connection_lives(
    harness: RabbitHarness, name: str
) -> None:
    bus = await harness.bus(INBOX)
    link = bus._link  # type: ignore[attr-defined]
    consumer = Consumer(bus, INBOX, {}, ladder=SHORT_LADDER)
    task = asyncio.create_task(consumer.run())
    await send_frames(harness.url, "", INBOX.encode(), HOSTILE_PROPERTIES[name])

    (dead,) = await take_dead(harness)

    assert dead.body == b"{}"
    assert dead.headers["x-error-type"] in ("PoisonError", "UnknownTypeError")
    assert bus._link is link  # type: ignore[attr-defined]
    await consumer.stop()
    await task
    await harness.take_from(INBOX, 0)


async def take_dead(harness: RabbitHarness) -> list[Any]:
    """Take the one dead letter over our own bus: other clients choke on what it may carry."""
    return await take_batch(await harness.bus(topology.DEAD_LETTERS), 1)


async def test_a_routing_key_that_is_not_utf_8_is_delivered(harness: RabbitHarness) -> None:
    bus = await harness.bus(topology.DEAD_LETTERS)
    await send_frames(harness.url, topology.DEAD_LETTERS, b"\xff\xfe", struct.pack(">H", 0))
    (delivery,) = await take_batch(bus, 1)
    assert (delivery.routing_key, delivery.body) == ("\\xff\\xfe", b"{}")


async def test_unreadable_headers_are_kept_as_they_came(harness: RabbitHarness) -> None:
    bus = await harness.bus(INBOX)
    await send_frames(harness.url, "", INBOX.encode(), struct.pack(">H", 1 << 13) + table(nested(1500)))
    (delivery,) = await take_batch(bus, 1)
    assert delivery.headers == {UNREADABLE_HEADERS: bytearray(table(nested(1500)))}


async def test_retries_in_a_queue_of_an_earlier_release_still_return(harness: RabbitHarness) -> None:
    name = topology.FORMER_RETRY_QUEUES[0]
    arguments: FieldTable = {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-dead-letter-strategy": "at-least-once",
    }
    arguments |= {"x-message-ttl": 1000, "x-dead-letter-exchange": ""}
    former = await harness._channel.declare_queue(name, durable=True, arguments=arguments)
    await former.bind(await harness._channel.declare_exchange(name, "fanout", durable=True))
    try:
        bus = await harness.bus(INBOX, ladder=topology.RETRY_LADDER)
        headers = {"x-attempts": 1, "x-routing-key": "payment.refund"}
        await harness.send_raw(
            Envelope(b'{"orderId":"o1"}', name, INBOX, "payment.refund", "o1", "m1", headers=headers)
        )
        (back,) = await take_batch(bus, 1)
        assert read(back, {RefundPayment}) == RefundPayment(order_id="o1")
    finally:
        await harness.delete_queue(name)
        await harness._channel.exchange_delete(name)


async def test_a_queue_that_exists_with_other_arguments_is_named_at_the_start(harness: RabbitHarness) -> None:
    name = "order.retry.contradiction"
    arguments: FieldTable = {"x-queue-type": "quorum", "x-message-ttl": 5}
    await harness._channel.declare_queue(name, durable=True, arguments=arguments)
    bus = RabbitBus(harness.url, ladder=(topology.RetryDelay("contradiction", 77),))
    try:
        with pytest.raises(StartError, match=r"order\.retry\.contradiction.*`ordersaga migrate` replaces"):
            await bus.start(None)
    finally:
        await bus.close()
        await harness.delete_queue(name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda url: url.with_password("wrong"), "ACCESS_REFUSED"),
        (lambda url: url.with_path("/nosuch"), "vhost nosuch not found"),
    ],
)
async def test_a_wrong_password_or_virtual_host_ends_the_start_with_the_reason(
    amqp_url: str, change: Callable[[URL], URL], reason: str
) -> None:
    bus = RabbitBus(str(change(URL(amqp_url))))
    with pytest.raises(StartError, match=reason):
        await bus.start(None)
    await bus.close()


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x01\x00\x00", b"", b"\x01"])
async def test_a_server_other_than_rabbitmq_is_waited_for_with_a_reason(greeting: bytes) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        bus = RabbitBus(f"amqp://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}/", publish_timeout=0.3)
        starting = asyncio.create_task(bus.start(None))
        await eventually(lambda: bus.unhealthy_reason not in (None, "RabbitMQ: not started"), 60)
        assert not starting.done()
        starting.cancel()
        await asyncio.wait({starting})
        await bus.close()


FULL = "test.full"


@pytest.fixture
async def full_queue(harness: RabbitHarness) -> AsyncIterator[None]:
    """A queue that refuses messages."""
    arguments: FieldTable = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    await harness._channel.declare_queue(FULL, durable=True, arguments=arguments)
    try:
        await _be_refused(await harness.bus())
        yield
    finally:
        await harness.delete_queue(FULL)


async def _be_refused(bus: Any) -> None:
    """Publish to the full queue until a message is refused: the limit is enforced a little late."""
    async with asyncio.timeout(60):
        with pytest.raises(BusUnavailableError, match="refused"):
            await _publish_for_ever(bus)


async def _publish_for_ever(bus: Any) -> None:
    while True:
        await bus.publish([raw(b"{}", FULL, message_id=f"m{number}") for number in range(10)])


@pytest.mark.usefixtures("full_queue")
async def test_a_refusal_by_a_full_queue_is_an_error(harness: RabbitHarness) -> None:
    bus = await harness.bus()
    await _be_refused(bus)
    await Publisher(bus).send([RefundPayment(order_id="o1")])


@pytest.mark.usefixtures("full_queue")
async def test_refusals_do_not_disturb_other_publications(harness: RabbitHarness) -> None:
    bus = await harness.bus(publish_timeout=60)
    link = bus._link  # type: ignore[attr-defined]
    first = link._publications
    many = [raw(b"{}", INBOX, message_id=str(number)) for number in range(3000)]

    others = asyncio.create_task(bus.publish(many))
    await _be_refused(bus)
    await eventually(lambda: link._publications is not first, within=60)

    await others
    await eventually(lambda: len(link._channels) == 1, within=60, message="the first channel to be closed")
    await bus.publish([raw(b"{}", INBOX)])
    assert bus._link is link  # type: ignore[attr-defined]


async def test_in_a_cluster_what_a_channel_does_not_confirm_soon_is_published_on_another(
    harness: RabbitHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader of a queue died with what a channel had sent to it; the next leader takes it on another channel."""
    monkeypatch.setattr(link_module, "_CLUSTER_TIMEOUT_SECONDS", 60.0)
    bus = RabbitBus(f"{harness.url},{harness.url}", ladder=SHORT_LADDER, publish_timeout=60)
    await bus.start(None)
    try:
        link: Any = bus._link
        first = link._publications
        monkeypatch.setattr(first, "confirmed", lambda *_, **__: None)
        sent = [raw(b"%d" % number, INBOX, message_id=str(number)) for number in range(20)]

        await asyncio.gather(bus.publish(sent[:10]), *(bus.publish([one]) for one in sent[10:]))

        assert link._publications is not first
        assert bus._link is link
        assert sorted(bodies(await harness.take_from(INBOX, 40))) == sorted(bodies(2 * sent))
    finally:
        await bus.close()


async def test_in_a_cluster_confirms_that_become_slow_are_waited_for(
    harness: RabbitHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slower than what counts as overdue: if each publisher gave up the channel of the others, none would succeed."""
    monkeypatch.setattr(link_module, "_CLUSTER_TIMEOUT_SECONDS", 60.0)
    confirmed = Publications.confirmed

    def confirm_late(channel: Publications, tag: int, *, all_up_to: bool) -> None:
        late = functools.partial(confirmed, channel, tag, all_up_to=all_up_to)
        asyncio.get_running_loop().call_later(2.0, late)

    bus = RabbitBus(f"{harness.url},{harness.url}", ladder=SHORT_LADDER, publish_timeout=60)
    await bus.start(None)
    try:
        monkeypatch.setattr(Publications, "confirmed", confirm_late)
        link: Any = bus._link
        async with asyncio.timeout(120):
            publishing = []
            for number in range(8):
                publishing.append(asyncio.create_task(bus.publish([raw(b"{}", INBOX, message_id=str(number))])))
                await asyncio.sleep(0.4)
            await asyncio.gather(*publishing)
        assert link._confirm_times.overdue_after > 2.0
        assert bus._link is link
    finally:
        await bus.close()


@pytest.mark.usefixtures("full_queue")
async def test_what_waits_on_a_former_channel_fails_at_once_when_the_connection_is_lost(harness: RabbitHarness) -> None:
    bus = await harness.bus(publish_timeout=600)
    link = bus._link  # type: ignore[attr-defined]
    first, waiting = link._publications, Pending(["m"])
    await _be_refused(bus)
    first._confirms.expect(waiting, asyncio.get_running_loop().time())
    publishing = asyncio.create_task(first.publish([], waiting, 600))
    await eventually(lambda: link._publications is not first, within=60)
    assert not publishing.done()

    await harness.drop_connections()

    async with asyncio.timeout(60):
        with pytest.raises(BusUnavailableError):
            await publishing


@pytest.mark.usefixtures("full_queue")
async def test_while_refusals_go_on_few_channels_are_opened(harness: RabbitHarness) -> None:
    bus = await harness.bus()
    used, begun = set(), time.monotonic()
    for _ in range(30):
        await _be_refused(bus)
        used.add(bus._link._publications)  # type: ignore[attr-defined]
    assert len(used) <= 2 + (time.monotonic() - begun) / link_module._RENEWAL_PAUSE


@pytest.mark.usefixtures("full_queue")
async def test_channel_numbers_are_used_again(harness: RabbitHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    # RabbitMQ ends a connection that uses a number above 2,047.
    monkeypatch.setattr(link_module, "_RENEWAL_PAUSE", 0)
    bus = await harness.bus()
    link = bus._link  # type: ignore[attr-defined]
    for _ in range(20):
        former = link._publications
        await _be_refused(bus)
        await eventually(lambda: link._publications is not former and len(link._channels) == 1, within=60)  # noqa: B023
    assert link._publications.number < 10
    assert bus._link is link  # type: ignore[attr-defined]


async def test_a_name_or_headers_that_do_not_fit_the_protocol_are_refused_before_anything_is_sent(
    harness: RabbitHarness,
) -> None:
    bus = await harness.bus(INBOX)
    good = envelope(RefundPayment(order_id="o1"))
    with pytest.raises(ValueError, match="longer than 255 bytes"):
        await bus.publish([good, raw(b"{}", "x" * 256)])
    with pytest.raises(ValueError, match="do not fit into a frame"):
        await bus.publish([good, raw(b"{}", INBOX, headers={"h": "x" * 200_000})])
    await bus.publish([good])
    assert len(await take_batch(bus, 1)) == 1


async def test_the_broker_refuses_what_no_service_could_handle(harness: RabbitHarness) -> None:
    bus = await harness.bus(INBOX)
    link = bus._link  # type: ignore[attr-defined]
    async with await aio_pika.connect(harness.url) as stranger, stranger.channel() as channel:
        too_large = aio_pika.Message(bytes(topology.MAX_MESSAGE_BYTES + 1), type="payment.refund")
        with pytest.raises(aio_pika.exceptions.AMQPError, match="larger than configured max size"):
            await channel.default_exchange.publish(too_large, INBOX)
    await Publisher(bus).send([RefundPayment(order_id="o1")])
    assert [delivery.correlation_id for delivery in await take_batch(bus, 1)] == ["o1"]
    assert bus._link is link  # type: ignore[attr-defined]


async def test_a_consumer_that_the_broker_has_forgotten_is_noticed_and_comes_back(harness: RabbitHarness) -> None:
    bus = await harness.bus(INBOX, check_every=0.2)
    link = bus._link  # type: ignore[attr-defined]
    await link._consuming.basic_cancel(next(iter(link._consuming.consumers)))
    await Publisher(await harness.bus()).send([RefundPayment(order_id="o1")])
    assert len(await take_batch(bus, 1)) == 1
    assert bus._link is not link  # type: ignore[attr-defined]


@pytest.fixture
async def proxy(harness: RabbitHarness) -> AsyncIterator[Proxy]:
    async with Proxy(URL(harness.url)).open() as opened:
        yield opened


async def test_a_publication_that_is_not_confirmed_in_time_is_an_error(harness: RabbitHarness, proxy: Proxy) -> None:
    bus = RabbitBus(str(proxy.url), ladder=SHORT_LADDER)
    await bus.start(None)
    link = bus._link
    assert link is not None
    proxy.carrying.clear()
    # Only this publication has a short timeout: connecting, and confirming the last message, may take longer.
    patient, link._options = link._options, replace(link._options, timeout=1)
    with pytest.raises(BusUnavailableError, match="in 1 s for 3 of 3 confirms"):
        await bus.publish([envelope(RefundPayment(order_id=f"o{number}")) for number in range(3)])
    assert link._renewal is not None, "it has not waited for another channel"
    link._options = patient
    proxy.carrying.set()
    await eventually(lambda: link._renewal is None, within=60)

    await Publisher(bus).send([RefundPayment(order_id="o4")])

    await harness.take_from(INBOX, 4)
    await bus.close()


async def test_a_publication_is_not_cancelled_when_its_connection_is_given_up(
    harness: RabbitHarness, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # aio-pika gives up after 2.5 s of silence, and cancels whoever waits for its answers.
    monkeypatch.setattr(aiormq.Connection, "HEARTBEAT_GRACE_MULTIPLIER", 1.25)
    bus = RabbitBus(str(proxy.url.update_query(heartbeat=1)), ladder=SHORT_LADDER)
    await bus.start(None)
    link = bus._link
    assert link is not None
    proxy.carrying.clear()
    link._options = replace(link._options, timeout=2)

    with pytest.raises(BusUnavailableError):
        await Publisher(bus).send([RefundPayment(order_id="o1")])

    await eventually(lambda: bus._link is None, within=60)
    proxy.carrying.set()
    await eventually(lambda: bus.can_publish, within=60)
    await bus.close()


async def test_a_connection_that_goes_silent_is_given_up_and_opened_again(
    harness: RabbitHarness, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiormq.Connection, "HEARTBEAT_GRACE_MULTIPLIER", 0.5)
    bus = RabbitBus(str(proxy.url.update_query(heartbeat=1)), ladder=SHORT_LADDER, publish_timeout=2)
    await bus.start(INBOX)
    proxy.carrying.clear()
    await eventually(lambda: bus.unhealthy_reason, within=60)
    proxy.carrying.set()
    await eventually(lambda: bus.unhealthy_reason is None, within=60)
    await bus.close()


async def test_a_busy_connection_is_not_taken_for_a_silent_one(
    harness: RabbitHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A broker that sends messages sends no heartbeats; aio-pika sees only what the wire lets through.
    monkeypatch.setattr(aiormq.Connection, "HEARTBEAT_GRACE_MULTIPLIER", 1)
    harness.url = str(URL(harness.url).update_query(heartbeat=1))
    for _ in range(10):
        bus = await harness.bus(INBOX, check_every=60)
        link = bus._link  # type: ignore[attr-defined]
        longest_pause = await _keep_busy(bus, 5)
        if bus._link is link:  # type: ignore[attr-defined]
            return
        assert longest_pause > 0.5  # a stalled machine makes the connection really silent: try again
        await bus.close()
        await harness._empty()
    pytest.fail("no connection was kept")


async def _keep_busy(bus: Any, seconds: float) -> float:
    """Send and receive for this long; return the longest pause between messages."""
    clock = asyncio.get_running_loop().time
    until, longest = clock() + seconds, 0.0
    while (begun := clock()) < until:
        with suppress(BusUnavailableError):
            await bus.publish([raw(b"{}", INBOX, message_id=str(number)) for number in range(3)])
            await bus.acknowledge(await take_batch(bus, 3))
        await asyncio.sleep(0.1)
        longest = max(longest, clock() - begun)
    return longest


async def test_bodies_around_the_size_of_a_frame_travel_whole(harness: RabbitHarness) -> None:
    bus = await harness.bus(INBOX)
    sizes = [1, 131_062, 131_063, 131_064, 131_065, 131_072, 262_128, 262_129]
    sent = [raw(bytes([index]) * size, INBOX, message_id=str(size)) for index, size in enumerate(sizes)]
    await bus.publish(sent)
    assert bodies(await take_batch(bus, len(sizes))) == bodies(sent)


async def test_other_clients_read_what_we_publish(harness: RabbitHarness) -> None:
    bus = await harness.bus()
    await bus.publish([Envelope(b'{"a":1}', "", INBOX, "t", "c", "m", headers={"x-attempts": 3})])
    queue = await harness._channel.get_queue(INBOX)
    message = await queue.get(no_ack=True)
    assert message is not None
    assert (message.content_type, message.delivery_mode) == ("application/json", aio_pika.DeliveryMode.PERSISTENT)
    assert (message.type, message.correlation_id, message.message_id) == ("t", "c", "m")
    assert message.timestamp is not None
    assert message.headers["x-attempts"] == 3

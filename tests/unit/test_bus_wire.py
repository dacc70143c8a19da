"""The wire takes messages out of the stream however it is split, and passes everything else on unchanged."""

import asyncio
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, heartbeat
from pamqp import frame as pamqp_frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from shared.bus.amqp.frames import HEARTBEAT_FRAME, Deliver, Properties, Return
from shared.bus.amqp.wire import Tap, _TappedReader


class Recorder(Tap):
    """A tap that records every event."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def delivered(self, method: Deliver, properties: Properties, body: bytes) -> None:
        self.events.append(("delivered", method.tag, properties.type, body))

    def returned(self, method: Return, properties: Properties) -> None:
        self.events.append(("returned", method.routing_key, properties.message_id))

    def confirmed(self, tag: int, *, all_up_to: bool) -> None:
        self.events.append(("confirmed", tag, all_up_to))

    def refused(self, tag: int, *, all_up_to: bool) -> None:
        self.events.append(("refused", tag, all_up_to))


def marshal(channel: int, *frames: Any) -> bytes:
    return b"".join(pamqp_frame.marshal(one, channel) for one in frames)


def content(method: Any, body: bytes, parts: int = 1, **properties: Any) -> list[Any]:
    size = max(1, -(-len(body) // parts))
    bodies = [ContentBody(body[at : at + size]) for at in range(0, len(body), size)]
    return [method, ContentHeader(0, len(body), commands.Basic.Properties(**properties)), *bodies]


OTHER = marshal(0, heartbeat.Heartbeat()) + marshal(2, commands.Queue.DeclareOk("q", 1, 1))
CANCEL = marshal(2, commands.Basic.Cancel("tag", True))
UNTAPPED = marshal(1, *content(commands.Basic.Deliver("c", 1, False, "e", "k"), b"not ours"))
STREAM = (
    OTHER
    + marshal(2, *content(commands.Basic.Deliver("c", 1, False, "e", "k"), b"hello", message_type="t"))
    + CANCEL
    + marshal(2, *content(commands.Basic.Deliver("c", 2, False, "e", "k"), b""))
    + UNTAPPED
    + marshal(2, *content(commands.Basic.Deliver("c", 3, True, "e", "k"), b"x" * 1000, parts=4))
    + marshal(2, *content(commands.Basic.Return(312, "NO_ROUTE", "e", "lost"), b"back", message_id="m"))
    + marshal(2, commands.Basic.Ack(1), commands.Basic.Nack(3, multiple=True))
    + OTHER
)
EVENTS = [
    ("delivered", 1, "t", b"hello"),
    ("delivered", 2, None, b""),
    ("delivered", 3, None, b"x" * 1000),
    ("returned", "lost", "m"),
    ("confirmed", 1, False),
    ("refused", 3, True),
]


async def read(chunks: list[bytes]) -> tuple[list[tuple[Any, ...]], bytes]:
    reader, tap = _TappedReader(), Recorder()
    reader.tap(2, tap)
    for chunk in chunks:
        reader.feed_data(chunk)
    reader.feed_eof()
    return tap.events, await reader.read()


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_the_stream_may_arrive_in_any_pieces(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(edges)]
    events, rest = asyncio.run(read([piece for piece in pieces if piece]))
    assert events == EVENTS
    assert _without_heartbeats(rest) == _without_heartbeats(OTHER + CANCEL + UNTAPPED + OTHER)


def test_the_stream_may_arrive_byte_by_byte() -> None:
    events, _ = asyncio.run(read([STREAM[at : at + 1] for at in range(len(STREAM))]))
    assert events == EVENTS


def test_a_busy_stream_shows_life_to_a_reader_without_messages() -> None:
    messages = marshal(2, *content(commands.Basic.Deliver("c", 1, False, "e", "k"), b"hello"))
    _, rest = asyncio.run(read([messages]))
    assert rest == HEARTBEAT_FRAME


def test_the_close_reason_of_the_broker_is_remembered() -> None:
    async def close_reason() -> str | None:
        reader = _TappedReader()
        reader.feed_data(marshal(0, commands.Connection.Close(530, "NOT_ALLOWED - vhost x not found", 10, 40)))
        return reader.close_reason

    assert asyncio.run(close_reason()) == "NOT_ALLOWED - vhost x not found"


@given(st.lists(st.integers(0, 100), max_size=10))
def test_blocking_by_the_broker_is_reported_and_removed_from_the_stream(cuts: list[int]) -> None:
    stream = OTHER + marshal(0, commands.Connection.Blocked("low on disk")) + OTHER
    stream += marshal(0, commands.Connection.Unblocked())
    reasons: list[str | None] = []

    async def rest() -> bytes:
        reader = _TappedReader(reasons.append)
        edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
        for start, end in pairwise(edges):
            reader.feed_data(stream[start:end])
        reader.feed_eof()
        return await reader.read()

    assert asyncio.run(rest()) == OTHER + OTHER
    assert reasons == ["low on disk", None]


def test_a_server_of_another_version_is_passed_on() -> None:
    _, rest = asyncio.run(read([b"AMQP\x00\x01\x00\x00"]))
    assert rest.startswith(b"AMQP\x00\x01\x00\x00")


def _without_heartbeats(data: bytes) -> bytes:
    return data.replace(HEARTBEAT_FRAME, b"")

"""The frames that carry messages: other libraries read ours, and no input breaks the reader."""

import string
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body as pamqp_body
from pamqp import commands, header
from pamqp import frame as pamqp_frame

from shared.bus.amqp import frames
from shared.bus.amqp.frames import UNREADABLE_HEADERS, Deliver, Properties

MAX_FRAME = 4096
names = st.text(string.ascii_letters + "äß漢", max_size=40)
exchanges = st.text(string.ascii_letters + ".-_", max_size=40)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=50)
    | st.binary(max_size=20).map(lambda value: b"\xff" + value)
)
tables = st.dictionaries(
    names,
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=10),
    max_size=5,
)


def split(data: bytes) -> list[tuple[int, int, bytes]]:
    """Type, channel and payload of each frame."""
    found = []
    while data:
        kind, channel, size = struct.unpack_from(">BHI", data)
        assert data[7 + size : 8 + size] == b"\xce"
        found.append((kind, channel, data[7 : 7 + size]))
        data = data[8 + size :]
    return found


def publication(body: bytes = b"{}", **changed: Any) -> bytes:
    arguments: dict[str, Any] = {
        "channel": 3,
        "exchange": "ordersaga",
        "routing_key": "order.created",
        "mandatory": True,
        "properties": Properties("order.created", "o1", "m1", {}),
        "timestamp": 1_700_000_000,
        "body": body,
        "max_frame": MAX_FRAME,
    }
    return frames.publication(**(arguments | changed))


@given(body=st.binary(max_size=3 * MAX_FRAME), key=names, type_=names, correlation=names, message=names, user=names)
def test_another_implementation_reads_what_we_publish(
    body: bytes, key: str, type_: str, correlation: str, message: str, user: str
) -> None:
    properties = Properties(type_, correlation, message, {"x-attempts": 2}, user)
    data = publication(body, routing_key=key, properties=properties)
    parsed = []
    while data:
        size, channel, parsed_frame = pamqp_frame.unmarshal(data)
        assert channel == 3
        assert size <= MAX_FRAME
        parsed.append(parsed_frame)
        data = data[size:]
    publish, head, *contents = parsed
    assert isinstance(publish, commands.Basic.Publish)
    assert isinstance(head, header.ContentHeader)
    assert (publish.exchange, publish.routing_key, publish.mandatory) == ("ordersaga", key, True)
    assert head.body_size == len(body)
    got = head.properties
    assert (got.content_type, got.delivery_mode, got.headers) == ("application/json", 2, {"x-attempts": 2})
    assert (got.message_id or "", got.message_type or "", got.correlation_id or "") == (message, type_, correlation)
    assert (got.user_id or "") == user
    assert got.timestamp is not None
    assert int(got.timestamp.timestamp()) == 1_700_000_000
    assert b"".join(content.value for content in contents if isinstance(content, pamqp_body.ContentBody)) == body


@given(headers=tables)
def test_headers_are_read_as_they_were_written(headers: dict[str, Any]) -> None:
    assert frames.read_headers(frames.write_headers(headers)) == headers


@given(table=st.binary(max_size=200))
def test_any_received_headers_can_be_sent_again(table: bytes) -> None:
    raw = struct.pack(">I", len(table)) + table
    headers = frames.read_headers(raw)
    frames.write_headers(headers)


@given(flags=st.integers(0, 2**16 - 1), rest=st.binary(max_size=300))
def test_no_content_header_is_an_error(flags: int, rest: bytes) -> None:
    size, _ = frames.read_content_header(struct.pack(">HHQH", 60, 0, 17, flags) + rest)
    assert size == 17


@given(tag=st.integers(0, 2**64 - 1), redelivered=st.booleans(), exchange=exchanges, key=names, consumer=names)
def test_deliveries_of_another_implementation_are_read(
    tag: int, redelivered: bool, exchange: str, key: str, consumer: str
) -> None:
    method = commands.Basic.Deliver(consumer, tag % 2**63, redelivered, exchange, key)
    ((_, _, payload),) = split(pamqp_frame.marshal(method, 1))
    assert frames.read_deliver(payload) == Deliver(tag % 2**63, redelivered, exchange, key, consumer.encode())


def test_properties_of_another_implementation_are_read() -> None:
    given_properties = commands.Basic.Properties(
        content_type="a/b", content_encoding="gzip", headers={"n": 1}, delivery_mode=2, priority=3, correlation_id="c",
        reply_to="r", expiration="5", message_id="m", message_type="t", user_id="guest", app_id="a",
    )  # fmt: skip
    ((_, _, payload),) = split(pamqp_frame.marshal(header.ContentHeader(0, 5, given_properties), 1))
    assert frames.read_content_header(payload) == (5, Properties("t", "c", "m", {"n": 1}, "guest"))


def test_confirms_and_returns_are_read() -> None:
    ((_, _, ack),) = split(pamqp_frame.marshal(commands.Basic.Ack(7, multiple=True), 1))
    ((_, _, nack),) = split(pamqp_frame.marshal(commands.Basic.Nack(8, multiple=False, requeue=True), 1))
    ((_, _, returned),) = split(pamqp_frame.marshal(commands.Basic.Return(312, "NO_ROUTE", "e", "k"), 1))
    assert (frames.read_confirm(ack), frames.read_confirm(nack)) == ((7, True), (8, False))
    assert frames.read_return(returned) == frames.Return(312, "NO_ROUTE", "e", "k")


def test_acknowledging_covers_all_deliveries_up_to_the_tag() -> None:
    _, channel, ack = pamqp_frame.unmarshal(frames.acknowledgement(4, 9))
    _, _, nack = pamqp_frame.unmarshal(frames.refusal(4, 9))
    assert isinstance(ack, commands.Basic.Ack)
    assert isinstance(nack, commands.Basic.Nack)
    assert (channel, ack.delivery_tag, ack.multiple) == (4, 9, True)
    assert (nack.delivery_tag, nack.multiple, nack.requeue) == (9, True, True)


def test_names_that_were_not_utf_8_are_shown_as_escapes() -> None:
    payload = frames.DELIVER + b"\x00" + struct.pack(">QB", 1, 0) + b"\x00" + b"\x02\xff\xfe"
    assert frames.read_deliver(payload).routing_key == "\\xff\\xfe"


@pytest.mark.parametrize("levels", [21, 5000])
def test_headers_nested_too_deep_are_kept_as_bytes(levels: int) -> None:
    content = b""
    for _ in range(levels):
        content = b"\x01aF" + struct.pack(">I", len(content)) + content
    raw = struct.pack(">I", len(content)) + content
    assert frames.read_headers(raw) == {UNREADABLE_HEADERS: bytearray(raw)}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 255 bytes"):
        publication(routing_key="ä" * 128)
    with pytest.raises(ValueError, match=r"headers of \d+ bytes do not fit into a frame of 4096"):
        publication(properties=Properties("t", "c", "m", {"h": "x" * MAX_FRAME}))

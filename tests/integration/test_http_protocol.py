"""Limits for one client of the HTTP transport: size, time and connections are bounded, and others are served."""

import contextlib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import tls
from shared.http_protocol import SPARE_CONNECTIONS
from tests.support.certificates import Certificates
from tests.support.http_servers import (
    DEADLINE_SECONDS,
    DEFAULT_TLS,
    GONE,
    Server,
    TestTls,
    read_all,
    read_answer,
    refused,
    running,
    soon,
    status_of,
)

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
MIB = 1 << 20
SOON = 0.3
"""A limit in seconds that a test waits for."""
NEVER = 10 * DEADLINE_SECONDS
"""A limit in seconds that a test does not reach."""


@pytest.fixture(autouse=True, params=["http", "https"])
def scheme(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Runs every test without TLS and with it."""
    if request.param == "http":
        yield
        return
    authority = Certificates(tmp_path)
    pair = authority.issue("server")
    server = tls.server_context(pair.certificate, pair.key, None)
    DEFAULT_TLS.append(TestTls(server, ssl.create_default_context(cafile=authority.ca)))
    yield
    DEFAULT_TLS.clear()


@pytest.fixture
def server() -> Iterator[Server]:
    with running(head_seconds=NEVER, body_seconds=NEVER, read_seconds=NEVER) as started:
        yield started


# --- Size. ---


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(b"a: bbbbbbbb\r\n" * 1000, id="headers"),
        pytest.param(b"a" * 10_000, id="one header's name"),
        pytest.param(b"a: " + b"b" * 10_000, id="one header's value"),
    ],
)
def test_an_endless_head_is_refused_and_others_are_served(server: Server, piece: bytes) -> None:
    before = refused("head_too_large")
    client = server.send(b"GET / HTTP/1.1\r\nHost: x\r\n", *[piece] * 100)
    assert status_of(client) in (431, 0)  # 0 where the answer was lost because the client was still sending
    soon(lambda: refused("head_too_large") == before + 1, "the refusal")
    assert server.status() == 200


def test_an_endless_target_is_refused(server: Server) -> None:
    assert status_of(server.send(b"GET /" + b"a" * 40_000)) == 431
    assert status_of(server.send(b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")) == 431


def test_the_refusal_of_a_head_is_a_problem(server: Server) -> None:
    head, body = read_all(server.send(GET[:-2] + b"a: b\r\n" * 101 + b"\r\n")).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"content-type: application/problem+json" in head
    assert b"x-content-type-options: nosniff" in head
    assert b'"type":"/problems/head-too-large"' in body


def test_a_head_within_the_limits_is_answered(server: Server) -> None:
    client = server.send(
        GET[:-2] + b"".join(b"a%d: b\r\n" % n for n in range(90)), b"cookie: " + b"c" * 30_000, b"\r\n\r\n"
    )
    assert read_answer(client).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        pytest.param(b"", b"\r\n" * 10_000, id="blank lines"),
        pytest.param(CHUNKED + b"0\r\n", b"a: b\r\n" * 2000, id="trailers"),
        pytest.param(CHUNKED + b"0\r\na: ", b"b" * 10_000, id="one trailer"),
        pytest.param(CHUNKED + b"1;", b"a" * 10_000, id="a chunk's extension"),
    ],
)
def test_what_is_neither_head_nor_body_is_bounded_too(server: Server, begin: bytes, piece: bytes) -> None:
    before = refused("head_too_large")
    client = server.send(begin, *[piece] * 100)
    assert status_of(client) in (431, 0)
    assert refused("head_too_large") == before + 1


def test_trailers_do_not_become_headers(server: Server) -> None:
    client = server.send(CHUNKED + b"3\r\nabc\r\n0\r\nx-role: admin\r\n\r\n")
    assert read_answer(client).endswith(b"/ 3")
    (seen,) = server.application.seen
    assert "x-role" not in seen["headers"]  # type: ignore[operator]


def test_a_body_in_tiny_chunks_is_refused(server: Server) -> None:
    before = refused("too_many_chunks")
    client = server.send(CHUNKED, *[b"1\r\nx\r\n" * 1000] * 5)
    assert status_of(client) in (413, 0)
    assert refused("too_many_chunks") == before + 1


def test_a_body_in_chunks_of_some_size_is_taken(server: Server) -> None:
    client = server.send(CHUNKED, *[b"40\r\n" + b"x" * 64 + b"\r\n"] * 4000, b"0\r\n\r\n")
    assert read_answer(client).endswith(b"/ 256000")


def test_what_is_not_http_is_a_problem(server: Server) -> None:
    before = refused("malformed")
    for sent in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n"):
        assert status_of(server.send(sent)) == 400
    assert refused("malformed") == before + 3


def test_what_is_not_http_does_not_get_into_the_answer_before_it(server: Server) -> None:
    client = server.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.recv(100).startswith(b"HTTP/1.1 200")
    client.sendall(b"\x00\x00")
    assert b"400" not in read_all(client)


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize(
    ("framing", "body"), [(b"Content-Length: 3", b"abc"), (b"Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n")]
)
def test_a_request_for_http_2_is_answered_by_http_1_with_its_body(
    server: Server, apart: bool, framing: bytes, body: bytes
) -> None:
    """Java's HttpClient sends each first request so, unless configured otherwise."""
    head = b"POST /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + framing + b"\r\n\r\n"
    client = server.send(head) if apart else server.send(head + body)
    if apart:
        soon(lambda: server.application.begun == 1, "the request to begin")
        client.sendall(body)
    answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"/upgrade 3")
    assert b"connection: close" in answer


def test_a_request_behind_one_for_another_protocol_is_answered(server: Server) -> None:
    client = server.send(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + GET)
    for _ in range(2):
        assert read_answer(client).startswith(b"HTTP/1.1 200 ")


# --- Requests behind each other. ---


def test_some_pipelined_requests_are_answered_in_order(server: Server) -> None:
    requests = [b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(16)]
    client = server.send(b"GET /?held=1 HTTP/1.1\r\nHost: x\r\n\r\n" + b"".join(requests))
    server.application.released.set()
    answers = [read_answer(client) for _ in range(17)]
    assert [answer.rpartition(b"\r\n")[2].split()[0] for answer in answers[1:]] == [b"/%d" % n for n in range(16)]


def test_thousands_of_pipelined_requests_end_their_connection(server: Server) -> None:
    before = refused("too_many_pipelined")
    client = server.send(GET * 10_000)
    read_all(client)
    assert refused("too_many_pipelined") == before + 1
    assert server.status() == 200


def test_a_client_that_leaves_with_requests_waiting_ends_the_stream_before_them(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    client = server.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    client.recv(100)
    client.close()
    assert server.application.cut.wait(DEADLINE_SECONDS)
    assert not caplog.records


# --- Time. ---


def test_who_sends_no_head_is_cut() -> None:
    with running(head_seconds=SOON) as server:
        before = refused("head_too_slow")
        silent, incomplete = server.send(b""), server.send(GET[:10])
        assert status_of(incomplete) == 408
        assert read_all(silent) == b""
        soon(lambda: refused("head_too_slow") == before + 2, "both to be counted")


def test_who_sends_a_byte_now_and_then_is_cut() -> None:
    with running(head_seconds=SOON) as server:
        before = refused("head_too_slow")
        client = server.connect()
        with contextlib.suppress(*GONE):
            for byte in b"GET / HTTP/1.1\r\nx: " + b"y" * 3000:
                client.sendall(bytes([byte]))
                time.sleep(0.02)
        assert refused("head_too_slow") == before + 1


@pytest.mark.parametrize("sent", [GET, GET + b"\r\n"], ids=["nothing more", "a blank line"])
def test_a_connection_that_is_not_used_again_is_closed(sent: bytes) -> None:
    with running(idle_seconds=1) as server:
        client = server.send(sent)
        read_answer(client)
        assert read_all(client) == b""


def test_a_client_that_does_not_send_the_body_is_answered_and_cut() -> None:
    with running(body_seconds=SOON) as server:
        before = refused("body_too_slow")
        assert status_of(server.send(POST + b"x")) == 408
        assert refused("body_too_slow") == before + 1
        assert server.application.seen == []


def test_a_body_still_sent_after_its_answer_is_cut() -> None:
    with running(body_seconds=SOON) as server:
        client = server.send(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
        assert read_answer(client).startswith(b"HTTP/1.1 413 ")
        assert read_all(client) == b""


def test_the_time_that_the_application_takes_is_not_the_clients() -> None:
    with running(head_seconds=SOON, body_seconds=SOON, read_seconds=SOON) as server:
        client = server.send(b"GET /?held=1 HTTP/1.1\r\nHost: x\r\n\r\n" + POST)  # the second one's body waits with it
        time.sleep(2.5)
        server.application.released.set()
        assert read_answer(client).startswith(b"HTTP/1.1 200 ")


# --- Readers. ---


def test_who_does_not_read_the_answer_is_cut() -> None:
    with running(read_seconds=SOON) as server:
        before = refused("reader_too_slow")
        client = server.connect(receive_buffer=4096)
        client.sendall(b"GET /?bytes=%d HTTP/1.1\r\nHost: x\r\n\r\n" % (32 * MIB))
        soon(lambda: refused("reader_too_slow") == before + 1, "the connection to be cut")
        assert len(read_all(client)) < 32 * MIB


def test_who_leaves_the_end_of_an_answer_unread_is_cut() -> None:
    with running(read_seconds=SOON) as server:
        before = refused("reader_too_slow")
        client = server.connect(receive_buffer=4096)
        client.sendall(b"GET /stream?bytes=9000 HTTP/1.0\r\nHost: x\r\n\r\n")
        soon(lambda: refused("reader_too_slow") == before + 1, "the connection to be cut")
        assert server.application.cut.wait(DEADLINE_SECONDS)


def test_a_stream_that_is_read_is_not_cut_however_long_it_is() -> None:
    with running(head_seconds=SOON, body_seconds=SOON, read_seconds=SOON) as server:
        client = server.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert client.recv(1 << 16)
        assert not server.application.cut.is_set()


def test_unread_answers_are_bounded_together() -> None:
    with running(held_bytes=20 * MIB, read_seconds=NEVER) as server:
        before = refused("too_much_held")
        clients = [server.connect(receive_buffer=4096) for _ in range(6)]
        for client in clients:
            client.sendall(b"GET /?bytes=%d HTTP/1.1\r\nHost: x\r\n\r\n" % (10 * MIB))
        soon(lambda: refused("too_much_held") >= before + 3, "the oldest to be cut")
        assert server.status() == 200


def test_incomplete_bodies_are_bounded_together() -> None:
    with running(held_bytes=MIB, body_seconds=NEVER) as server:
        before = refused("too_much_held")
        for _ in range(8):
            server.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 250_000)
        soon(lambda: refused("too_much_held") >= before + 4, "the oldest to be cut")
        assert server.status() == 200


# --- Connections. ---


def test_silent_connections_make_room_for_new_ones() -> None:
    with running(connections=20, head_seconds=NEVER) as server:
        before = refused("displaced")
        silent = [server.connect() for _ in range(60)]
        assert [server.status() for _ in range(5)] == [200] * 5
        soon(lambda: refused("displaced") >= before + 41, "the oldest to be closed")
        assert read_all(silent[0]) == b""


def test_above_the_limit_only_health_checks_are_answered() -> None:
    with running(connections=5) as server:
        for _ in range(5):
            server.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").recv(100)
        answer = read_all(server.send(GET)).lower()
        assert answer.startswith(b"http/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert server.status("/healthz") == 200


def test_far_above_the_limit_connections_are_refused_and_the_server_recovers() -> None:
    with running(connections=5) as server:
        before = refused("too_many_connections")
        for number in range(1, 5 + SPARE_CONNECTIONS + 1):
            server.send(b"GET /healthz?held=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            soon(lambda: server.application.begun == number, "the request to be seen")  # noqa: B023 - called at once
        assert refused("too_many_connections") == before + SPARE_CONNECTIONS
        assert status_of(server.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")) == 0
        server.application.released.set()
        soon(lambda: server.status() == 200, "the server to take requests again")

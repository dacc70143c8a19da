"""Sending webhooks: to real servers that misbehave, and to names whose addresses are inside."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from notification_service.sender import MAX_BODY_BYTES, Address, Outcome, Sender
from notification_service.signing import sign
from notification_service.signing_secrets import new_secret
from tests.support.certificates import Certificates
from tests.support.eventually import eventually

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BODY = b'{"type":"order.confirmed"}'


class Server:
    """Answers each connection's requests as a test says, and counts what came."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.port = 0
        self.connections = 0
        self.heads: list[str] = []
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(int(line.split(":")[1]) for line in head.lower().splitlines() if "content-length" in line)
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(length))
                await self._answer(reader, writer)


@contextlib.asynccontextmanager
async def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    found = Server(answer)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0, ssl=tls)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


@contextlib.asynccontextmanager
async def sending(
    *, allow_private: bool = True, timeout: float = 30, resolves: Sequence[str] = (), tls: ssl.SSLContext | None = None
) -> AsyncIterator[Sender]:
    """A sender; with `resolves`, every name has these addresses."""

    async def resolve(_host: str, _port: int) -> list[Address]:
        return [ip_address(each) for each in resolves]

    sender = Sender(allow_private=allow_private, timeout=timeout, resolve=resolve if resolves else None, tls=tls)
    try:
        yield sender
    finally:
        await sender.close()


async def post(sender: Sender, url: str) -> Outcome:
    return await sender.send(url, {"content-type": "application/json"}, BODY)


def answering(raw: bytes) -> Answer:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()

    return answer


OK = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")


async def test_a_body_is_posted_and_the_connection_is_kept() -> None:
    async with serving(OK) as server, sending() as sender:
        for _ in range(3):
            outcome = await post(sender, f"http://127.0.0.1:{server.port}/hooks?shop=1")
            assert (outcome.status, outcome.error, outcome.body) == (200, None, "hello")
        assert server.connections == 1
        assert server.bodies == [BODY] * 3
        head = server.heads[0].lower()
        assert head.startswith("post /hooks?shop=1 http/1.1\r\n")
        assert f"host: 127.0.0.1:{server.port}\r\n" in head
        assert "content-type: application/json\r\n" in head


async def test_a_redirect_is_not_followed() -> None:
    async with serving(OK) as inside, sending() as sender:
        there = f"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{inside.port}/\r\ncontent-length: 0\r\n\r\n".encode()
        async with serving(answering(there)) as server:
            outcome = await post(sender, f"http://127.0.0.1:{server.port}/")
        assert outcome.status == 302
        assert outcome.error == "It answered 302, and redirects are not followed"
        assert inside.connections == 0


async def test_a_connection_that_breaks_or_is_refused_is_told_in_words() -> None:
    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with sending() as sender:
        async with serving(reset) as server:
            outcome = await post(sender, f"http://127.0.0.1:{server.port}/")
        assert (outcome.status, outcome.error) == (None, "The connection ended without a valid HTTP answer")
        # The server has ended, and its port with it.
        refused = await post(sender, f"http://127.0.0.1:{server.port}/")
        assert refused.error == "The connection was refused, or the host cannot be reached"
        async with serving(answering(b"220 mail.example ESMTP\r\n\r\n")) as server:
            outcome = await post(sender, f"http://127.0.0.1:{server.port}/")
        assert (outcome.status, outcome.error) == (None, "The connection ended without a valid HTTP answer")


async def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Busy\r\n\r\ntry later")
        writer.close()

    async with serving(close) as server, sending() as sender:
        for _ in range(2):
            outcome = await post(sender, f"http://127.0.0.1:{server.port}/")
            assert (outcome.status, outcome.error, outcome.body) == (503, None, "try later")
        assert server.connections == 2


async def test_an_answer_that_is_cut_off_is_none() -> None:
    async def cut(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nx")
        writer.close()

    async with serving(cut) as server, sending() as sender:
        outcome = await post(sender, f"http://127.0.0.1:{server.port}/")
    assert (outcome.status, outcome.error) == (None, "The connection ended without a valid HTTP answer")


async def test_a_chunked_answer_is_put_together_and_an_early_one_skipped() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    async with serving(answering(early + chunked)) as server, sending() as sender:
        for _ in range(2):
            assert (await post(sender, f"http://127.0.0.1:{server.port}/")).body == "hello"
        assert server.connections == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n",
    ],
)
async def test_a_connection_is_not_used_again_when_it_is_to_end_or_more_came_than_was_asked_for(raw: bytes) -> None:
    async with serving(answering(raw)) as server, sending() as sender:
        for _ in range(2):
            outcome = await post(sender, f"http://127.0.0.1:{server.port}/")
            assert (outcome.status, outcome.body) == (200, "hello")
        assert server.connections == 2


async def test_headers_without_end_are_not_read_without_end() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nx: ")
        while not reader.at_eof():
            writer.write(b"x" * 0x4000)
            await writer.drain()

    async with serving(endless) as server, sending() as sender:
        outcome = await post(sender, f"http://127.0.0.1:{server.port}/")
    assert (outcome.status, outcome.error) == (None, "The connection ended without a valid HTTP answer")


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nx"])
async def test_an_answer_that_never_ends_is_given_up(start: bytes) -> None:
    """Each byte comes in time; the whole does not."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while not reader.at_eof() and start:
            writer.write(b"y" if b"\r\n\r\n" in start else b"x-more: 1\r\n")
            await writer.drain()
            await asyncio.sleep(0.3)
        await reader.read()

    async with serving(drip) as server, sending(timeout=0.5) as sender:
        outcome = await post(sender, f"http://127.0.0.1:{server.port}/")
    assert (outcome.status, outcome.error) == (None, "No answer within 0.5 s")


async def test_of_a_long_answer_the_beginning_is_read() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oops\r\ntransfer-encoding: chunked\r\n\r\n")
        while not reader.at_eof():
            writer.write(b"400\r\n" + b"e" * 0x400 + b"\r\n")
            await writer.drain()

    async with serving(endless) as server, sending() as sender:
        outcome = await post(sender, f"http://127.0.0.1:{server.port}/")
    assert (outcome.status, outcome.body) == (500, "e" * MAX_BODY_BYTES)


async def test_a_name_server_that_does_not_answer_is_given_up() -> None:
    async def resolve(_host: str, _port: int) -> list[Address]:
        await asyncio.Event().wait()
        return []

    sender = Sender(allow_private=True, timeout=0.2, resolve=resolve)
    assert (await post(sender, "http://shop.example/")).error == "No answer within 0.2 s"
    await sender.close()


@pytest.mark.parametrize("host", ["shop.invalid", "a..example", f"{'a' * 64}.example"])
async def test_an_unknown_name_is_named_as_the_cause(host: str) -> None:
    async with sending() as sender:
        assert (await post(sender, f"http://{host}/")).error == "The name of the host was not found"


async def test_a_look_up_that_hangs_holds_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answer = threading.Event()

    def look_up(host: str, *_args: object, **_options: object) -> list[tuple[object, ...]]:
        asked.append(host)
        answer.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with sending(timeout=0.1) as sender:
        for _ in range(3):
            assert (await post(sender, "http://hangs.example/")).error == "No answer within 0.1 s"
        assert asked == ["hangs.example"]
        answer.set()


# --- What is inside cannot be reached. ---


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::1"], ["::ffff:127.0.0.1"]])
async def test_a_name_with_an_address_inside_is_refused(addresses: list[str]) -> None:
    async with serving(OK) as server, sending(allow_private=False, resolves=addresses) as sender:
        outcome = await post(sender, f"http://shop.example:{server.port}/")
        assert outcome.error == "The name of the host has an address that is not public"
        assert server.connections == 0


async def test_a_name_of_this_machine_is_refused() -> None:
    """It is resolved as in production."""
    async with serving(OK) as server, sending(allow_private=False) as sender:
        outcome = await post(sender, f"http://localhost:{server.port}/")
        assert outcome.error == "The name of the host has an address that is not public"
        assert server.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0177.0.0.1"])
async def test_no_spelling_of_an_address_inside_is_connected_to(host: str) -> None:
    async with serving(OK) as server, sending(allow_private=False) as sender:
        outcome = await post(sender, f"http://{host}:{server.port}/")
        assert outcome.error is not None
        assert outcome.error.startswith("The host must")
        assert server.connections == 0


async def test_a_name_is_looked_up_once_for_each_connection() -> None:
    """A second answer of the name server, which is inside, is never asked for."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> list[Address]:
        asked.append(host)
        return [ip_address(each) for each in answers[len(asked) - 1]]

    async with serving(OK) as server:
        sender = Sender(allow_private=True, timeout=30, resolve=resolve)
        assert (await post(sender, f"http://shop.example:{server.port}/")).status == 200
        assert asked == ["shop.example"]
        assert f"host: shop.example:{server.port}\r\n" in server.heads[0].lower()
        await sender.close()


async def test_the_next_address_is_tried_when_one_refuses() -> None:
    async with serving(OK) as server, sending(resolves=["127.0.0.9", "127.0.0.1"]) as sender:
        assert (await post(sender, f"http://shop.example:{server.port}/")).status == 200


async def test_an_address_that_does_not_answer_leaves_time_for_the_next() -> None:
    async with serving(OK) as server, sending(resolves=["127.0.0.9", "127.0.0.1"], timeout=3) as sender:
        with socket.create_server(("127.0.0.9", server.port), backlog=0) as silent:
            # Its queue is full, so that further connections wait for ever.
            filled = [socket.socket() for _ in range(3)]
            for each in filled:
                each.setblocking(False)
                each.connect_ex(silent.getsockname())
            assert (await post(sender, f"http://shop.example:{server.port}/")).status == 200
            for each in filled:
                each.close()


# --- TLS. ---


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def server_context(certificates: Certificates, host: str) -> ssl.SSLContext:
    pair = certificates.issue("server", host)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


async def test_the_certificate_is_that_of_the_name(certificates: Certificates) -> None:
    trusted = ssl.create_default_context(cafile=str(certificates.ca))
    async with (
        serving(OK, server_context(certificates, "shop.example")) as server,
        sending(resolves=["127.0.0.1"], tls=trusted) as sender,
        sending(resolves=["127.0.0.1"]) as distrustful,
    ):
        assert (await post(sender, f"https://shop.example:{server.port}/")).status == 200
        # The same address, and a connection to it is open.
        other = await post(sender, f"https://other.example:{server.port}/")
        unknown = await post(distrustful, f"https://shop.example:{server.port}/")
        for refused in (other, unknown):
            assert refused.error == "The TLS handshake failed: CERTIFICATE_VERIFY_FAILED"
        assert len(server.heads) == 1


# --- Signatures. ---


def verified_by_hand(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """Ten lines that need no library."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    given = (each.partition(",")[2] for each in headers["webhook-signature"].split())
    return any(hmac.compare_digest(expected, each) for each in given)


def test_every_secret_verifies_what_is_signed_and_no_other_does() -> None:
    secrets = [new_secret(), new_secret()]
    body = json.dumps({"type": "order.confirmed", "note": "Grüße"}, ensure_ascii=False).encode()
    headers = sign(secrets, "evt_1", datetime.now(UTC), body)
    for secret in secrets:
        assert Webhook(secret).verify(body, headers) == json.loads(body)
        assert verified_by_hand(secret, headers, body)
        assert not verified_by_hand(secret, headers, body + b" ")
    assert not verified_by_hand(new_secret(), headers, body)


async def test_idle_connections_end_with_the_sender() -> None:
    async with serving(OK) as server, sending() as sender:
        assert (await post(sender, f"http://127.0.0.1:{server.port}/")).status == 200
        await sender.close()
        await eventually(lambda: not [t for t in asyncio.all_tasks() if "Server.serve" in repr(t)], 20, "the end")

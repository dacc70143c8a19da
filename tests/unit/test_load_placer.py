"""Placing orders over HTTP, against a server in this process that gives the answers of each test."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from operations.load import connection as http
from operations.load import placer as placer_module
from operations.load.connection import Connection, NoAnswerError, NotSentError
from operations.load.placer import OrderPlacer
from operations.load.plan import LoadPlan

ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
OVERLOADED = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
WRONG = b"HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: 0\r\n\r\n"
LAST = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HANGS_UP = b""
PATIENT = 60.0
"""A timeout that a slow machine does not exceed."""


@dataclass
class Shop:
    """A server that gives the answers in turn, then accepts everything; it records requests and connections."""

    answers: list[bytes]
    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(length))
                answer = self.answers.pop(0) if self.answers else ACCEPTED
                writer.write(answer)
                if answer in (HANGS_UP, LAST):
                    break
        writer.close()


@contextlib.asynccontextmanager
async def shop(*answers: bytes) -> AsyncIterator[Shop]:
    opened = Shop(list(answers))
    server = await asyncio.start_server(opened.serve, "127.0.0.1", 0)
    opened.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield opened


@pytest.fixture(autouse=True)
def _is_never_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not let a pause of the machine make a connection idle."""
    monkeypatch.setattr(http, "IDLE_SECONDS", 600.0)


async def test_posts_go_over_one_connection() -> None:
    async with shop() as opened:
        connection = Connection(opened.url, "/orders")
        assert [(await connection.post(body, PATIENT)).status for body in (b"{}", b'{"userId":"u1"}')] == [202, 202]
        connection.close()
        assert opened.connections == 1
        assert opened.bodies == [b"{}", b'{"userId":"u1"}']
        assert opened.heads[0].startswith(b"POST /orders HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_an_answer_may_come_in_pieces() -> None:
    async def in_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in ACCEPTED:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(in_pieces, "127.0.0.1", 0) as server:
        connection = Connection(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "/orders")
        assert (await connection.post(b"", PATIENT)).status == 202
        connection.close()


async def test_a_server_that_closes_is_connected_to_again() -> None:
    async with shop(LAST, ACCEPTED) as opened:
        connection = Connection(opened.url, "/orders")
        assert [(await connection.post(b"{}", PATIENT)).status for _ in range(2)] == [202, 202]
        connection.close()
        assert opened.connections == 2


async def test_a_connection_that_was_idle_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.0)
    async with shop() as opened:
        connection = Connection(opened.url, "/orders")
        assert [(await connection.post(b"{}", PATIENT)).status for _ in range(2)] == [202, 202]
        connection.close()
        assert opened.connections == 2


@pytest.mark.parametrize("answer", [HANGS_UP, b"SSH-2.0-OpenSSH_9.2\r\n"])
async def test_no_answer_is_not_a_refusal(answer: bytes) -> None:
    async with shop(answer) as opened:
        connection = Connection(opened.url, "/orders")
        with pytest.raises(NoAnswerError):
            await connection.post(b"{}", PATIENT)
        assert (await connection.post(b"{}", PATIENT)).status == 202
        connection.close()


async def test_an_answer_after_the_timeout_counts_as_none() -> None:
    async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(says_nothing, "127.0.0.1", 0) as server:
        connection = Connection(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "/orders")
        with pytest.raises(NoAnswerError, match="no answer within"):
            await connection.post(b"{}", 0.05)


async def test_a_refused_connection_is_reported() -> None:
    with pytest.raises(NotSentError, match="does not accept connections"):
        await Connection("http://127.0.0.1:1", "/orders").post(b"{}", PATIENT)


async def place(opened: Shop, plan: LoadPlan) -> OrderPlacer:
    placer = OrderPlacer(plan, opened.url, plan.bodies("load-1"))
    await placer.run()
    return placer


async def test_every_order_is_placed_once() -> None:
    plan = LoadPlan(orders=30, concurrency=4)
    async with shop() as opened:
        placer = await place(opened, plan)
        assert sorted(opened.bodies) == sorted(plan.bodies("load-1"))
        assert opened.connections == 4
    assert (placer.done, placer.accepted, placer.in_doubt, len(placer.latencies)) == (30, 30, 0, 30)
    assert not placer.errors


async def test_a_busy_server_is_tried_again() -> None:
    async with shop(BUSY, BUSY) as opened:
        placer = await place(opened, LoadPlan(orders=2, concurrency=1))
        assert len(opened.bodies) == 4
    assert placer.accepted == 2
    assert placer.errors == {"HTTP 503": 2}


async def test_an_order_is_tried_again_when_the_answer_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    async with shop(OVERLOADED, ACCEPTED, BUSY) as opened:
        monkeypatch.setattr(placer_module, "asyncio", SimpleNamespace(sleep=note, TaskGroup=asyncio.TaskGroup))
        placer = await place(opened, LoadPlan(orders=2, concurrency=1))
    assert pauses == [7.0, placer_module.FIRST_PAUSE_SECONDS]
    assert (placer.accepted, placer.refused) == (2, 0)


async def test_an_order_without_patience_is_placed_once() -> None:
    async with shop(OVERLOADED) as opened:
        placer = await place(opened, LoadPlan(orders=2, concurrency=1, patience=0))
        assert len(opened.bodies) == 2
    assert (placer.done, placer.accepted, placer.refused) == (2, 1, 1)
    assert placer.errors == {"HTTP 503": 1, "given up": 1}


async def test_an_invalid_order_is_not_posted_again() -> None:
    async with shop(WRONG) as opened:
        placer = await place(opened, LoadPlan(orders=2, concurrency=1))
        assert len(opened.bodies) == 2
    assert (placer.done, placer.accepted) == (2, 1)
    assert placer.errors == {"HTTP 422": 1}


async def test_an_order_without_an_answer_is_in_doubt_and_not_posted_again() -> None:
    async with shop(HANGS_UP) as opened:
        placer = await place(opened, LoadPlan(orders=2, concurrency=1))
        assert len(opened.bodies) == 2
    assert (placer.done, placer.accepted, placer.in_doubt) == (2, 1, 1)


async def test_an_order_that_is_never_accepted_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = itertools.count(0.0, 0.04)  # it gives up after the third attempt, however long one takes
    monkeypatch.setattr(placer_module, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    plan = LoadPlan(orders=1, patience=0.3)
    placer = OrderPlacer(plan, "http://127.0.0.1:1", plan.bodies("load-1"))
    await placer.run()
    assert (placer.done, placer.accepted) == (1, 0)
    assert placer.errors["given up"] == 1
    assert placer.errors["not connected"] > 1


async def test_a_rate_is_kept() -> None:
    plan = LoadPlan(orders=20, rate=100, concurrency=8)
    async with shop() as opened:
        started = asyncio.get_running_loop().time()
        placer = await place(opened, plan)
        took = asyncio.get_running_loop().time() - started
    assert placer.accepted == 20
    assert took >= 0.19


async def test_with_a_rate_waiting_for_a_connection_counts() -> None:
    """Twenty orders are scheduled for the same time; over one connection, the last waits for all others."""

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"}]"):  # the end of an order's items; the rest is ignored
                await asyncio.sleep(0.01)
                writer.write(ACCEPTED)
        writer.close()

    plan = LoadPlan(orders=20, rate=100_000, concurrency=1)
    async with await asyncio.start_server(slowly, "127.0.0.1", 0) as server:
        placer = OrderPlacer(plan, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", plan.bodies("load-1"))
        await placer.run()
    # The duration of the first is unknown; the last has also waited for nineteen others.
    assert max(placer.latencies) - min(placer.latencies) >= 0.18

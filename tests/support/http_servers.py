"""The bounded HTTP server with a test application, and misbehaving clients over plain sockets."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import uvloop
from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from shared.http_protocol import Limits
from shared.http_server import http_server
from shared.http_tls import TlsContext

DEADLINE_SECONDS = 60.0
"""Seconds to wait for expected events: generous, so that a loaded machine is no failure."""


GONE = (ConnectionError, ssl.SSLError)
"""The errors of a client whose connection the server has closed."""


@dataclass(frozen=True)
class TestTls:
    """TLS for a server and for its clients."""

    __test__ = False

    server: TlsContext
    client: ssl.SSLContext


DEFAULT_TLS: list[TestTls] = []
"""Used by servers and clients of a test without TLS of their own, if there is one."""


@dataclass
class Application:
    """Answers by path, and remembers what it has seen."""

    begun: int = 0
    """Requests, whether or not they were answered."""
    seen: list[dict[str, object]] = field(default_factory=list)
    cut: threading.Event = field(default_factory=threading.Event)
    """Set when a stream has ended, which it does only if its client is gone."""
    released: threading.Event = field(default_factory=threading.Event)
    """Releases the requests with `held` in their query."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun += 1
        request = Request(scope, receive)
        try:
            await (await self._answer(request))(scope, receive, send)
        finally:
            if request.url.path == "/stream":
                self.cut.set()

    async def _answer(self, request: Request) -> Response:
        size = int(request.query_params.get("bytes", "0"))
        while "held" in request.query_params and not self.released.is_set():
            await asyncio.sleep(0.005)
        if request.url.path == "/stream":
            return StreamingResponse(self._ticks(b"x" * size))
        if request.url.path == "/unread":
            return PlainTextResponse("too large", 413)
        body = await request.body()
        self.seen.append({"path": request.url.path, "body": body, "headers": dict(request.headers)})
        return PlainTextResponse("x" * size or f"{request.url.path} {len(body)}")

    async def _ticks(self, tick: bytes) -> AsyncIterator[bytes]:
        while True:
            yield tick or b"tick\n"
            await asyncio.sleep(0.01)


@dataclass
class Server:
    """One running server; its connections are closed when it is."""

    port: int
    application: Application
    stack: contextlib.ExitStack
    client_context: ssl.SSLContext | None = None
    """Connections use TLS with this context if there is one."""

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """Open a connection; with a small buffer, what is not read stays with the server."""
        client = self.stack.enter_context(socket.socket())
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(DEADLINE_SECONDS)
        client.connect(("127.0.0.1", self.port))
        if self.client_context is None:
            return client
        return self.stack.enter_context(self.client_context.wrap_socket(client, server_hostname="127.0.0.1"))

    def send(self, *data: bytes) -> socket.socket:
        """Open a connection and send; the server may break it meanwhile."""
        try:
            client = self.connect()
        except GONE:
            client, other = socket.socketpair()  # as if it had been closed without an answer
            other.close()
            return self.stack.enter_context(client)
        with contextlib.suppress(*GONE):
            for part in data:
                client.sendall(part)
        return client

    def status(self, path: str = "/") -> int:
        """Return the status that answers a request on a new connection."""
        return status_of(self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()))


@contextlib.contextmanager
def running(
    tls: TlsContext | None = None, client_context: ssl.SSLContext | None = None, **limits: float
) -> Iterator[Server]:
    """Run a server on an event loop like that of a service, in a separate thread; over TLS with a context for it."""
    application = Application()
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    if tls is None and DEFAULT_TLS:
        tls, client_context = DEFAULT_TLS[-1].server, DEFAULT_TLS[-1].client
    bounds = Limits(**{"connections": 100, **limits})  # type: ignore[arg-type]
    server = http_server(application, bounds, grace_seconds=1, tls=tls)
    thread = threading.Thread(target=lambda: uvloop.run(server.serve(sockets=[listener])))
    thread.start()
    with contextlib.ExitStack() as stack:
        try:
            yield Server(listener.getsockname()[1], application, stack, client_context)
        finally:
            application.released.set()
            server.should_exit = True
            stack.close()
            thread.join()
            listener.close()


def read_all(client: socket.socket) -> bytes:
    """Read until the server has closed the connection."""
    received = b""
    with contextlib.suppress(*GONE):
        while part := client.recv(1 << 16):
            received += part
    return received


def status_of(client: socket.socket) -> int:
    """Return the status of the answer that the server closes the connection after; 0 if it only closes it."""
    answer = read_all(client)
    return int(answer.split(b" ", 2)[1]) if answer else 0


def read_answer(client: socket.socket) -> bytes:
    """Read one answer that has a length, and leave the connection open."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += client.recv(1)
    head = received.lower()
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    while length:
        part = client.recv(length)
        assert part, "the connection was closed in the middle of an answer"
        length -= len(part)
        received += part
    return received


def refused(reason: str) -> float:
    """Return how many connections were refused for this reason since the process began."""
    return REGISTRY.get_sample_value("http_connections_refused_total", {"reason": reason}) or 0.0


def soon(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS} s for {what}"
        time.sleep(0.01)

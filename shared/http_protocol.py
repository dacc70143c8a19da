"""HTTP connections with limits: how much a client may send, how long it may take, and how many connections are open.

uvicorn's own protocol keeps a request head of any size, waits for the rest of a request for ever, and keeps an unread
answer for ever. This one always knows what it expects from the client (`ClientWait`), and `OpenConnections`, one for
each server, closes connections that wait too long or keep too many bytes. Every limit is in `Limits`.
"""

import asyncio
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

import httptools
from prometheus_client import Counter
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from shared.http import HEALTH, problem_response
from shared.problems import OVERLOADED

SPARE_CONNECTIONS = 16
"""Connections above the limit that still get answers: health checks as usual, everything else 503."""

_refused = Counter("http_connections_refused_total", "Connections refused or closed at a limit", ["reason"])


class ClientWait(Enum):
    """The action of the client that a connection waits for."""

    IDLE = "send another request"
    HEAD = "send a request head"
    BODY = "send the rest of a request body"
    READ = "read the answer"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one server's connections."""

    connections: int
    head_bytes: int = 32 * 1024
    """The size of a request's line, headers and trailers, or of anything else outside a body."""
    headers: int = 100
    """The number of headers and trailers of a request."""
    chunks: int = 4096
    """The number of chunks of a request's body: 64 bytes each for the largest body."""
    pipelined: int = 16
    """The number of requests that wait behind another one on the same connection."""
    held_bytes: int = 64 * 1024 * 1024
    """The size of incomplete requests and unread answers of all connections together."""
    head_seconds: float = 10.0
    """The time for a request head, from its first byte; for the first one, from the beginning of the connection."""
    idle_seconds: int = 75
    """How long a connection is kept for another request: longer than clients and balancers keep theirs, 60 s at most
    (nginx, AWS). If the server were the first to close, a request sent at that moment would be lost."""
    body_seconds: float = 30.0
    read_seconds: float = 30.0
    """The time to read what the server could not send at once, or `progress_bytes` of it."""
    progress_bytes: int = 64 * 1024
    """A client that reads this much gets the time again: a large answer may take minutes over a slow line."""

    def seconds(self, wait: ClientWait) -> float:
        """Return the time that a client has for an action."""
        match wait:
            case ClientWait.IDLE:
                return self.idle_seconds
            case ClientWait.HEAD:
                return self.head_seconds
            case ClientWait.BODY:
                return self.body_seconds
            case ClientWait.READ:
                return self.read_seconds


class _Refusal(NamedTuple):
    """The reason why a request ends its connection, for the metric and for the client."""

    reason: str
    status: HTTPStatus
    detail: str


_MALFORMED = _Refusal("malformed", HTTPStatus.BAD_REQUEST, "The request is not HTTP/1.1")
_HEAD_TOO_LARGE = _Refusal(
    "head_too_large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request line or the headers are too large"
)
_TOO_MANY_CHUNKS = _Refusal(
    "too_many_chunks", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body has too many chunks; send larger ones"
)
_TOO_MANY_PIPELINED = _Refusal(
    "too_many_pipelined", HTTPStatus.BAD_REQUEST, "Too many requests are waiting for an answer"
)
_TOO_SLOW = {
    ClientWait.HEAD: _Refusal("head_too_slow", HTTPStatus.REQUEST_TIMEOUT, "The request head did not arrive in time"),
    ClientWait.BODY: _Refusal("body_too_slow", HTTPStatus.REQUEST_TIMEOUT, "The request body did not arrive in time"),
    ClientWait.READ: _Refusal("reader_too_slow", HTTPStatus.REQUEST_TIMEOUT, "The answer was not read in time"),
}
TOO_MANY_CONNECTIONS = "too_many_connections"
_DISPLACED = "displaced"
_TOO_MUCH_HELD = "too_much_held"
TLS_HANDSHAKE = "tls_handshake"
"""The client completed no TLS handshake: it speaks no TLS, refuses the certificate, or has none that is accepted."""
for _reason in (
    *(refusal.reason for refusal in (_MALFORMED, _HEAD_TOO_LARGE, _TOO_MANY_CHUNKS, _TOO_MANY_PIPELINED)),
    *(refusal.reason for refusal in _TOO_SLOW.values()),
    *(TOO_MANY_CONNECTIONS, _DISPLACED, _TOO_MUCH_HELD, TLS_HANDSHAKE),
):
    _refused.labels(_reason)  # starts at 0, so the first one counts as an increase


def count_refusal(reason: str) -> None:
    """Count a connection that is refused or closed at a limit."""
    _refused.labels(reason).inc()


class Connection(Protocol):
    """One of the open connections of a server."""

    held: int

    def abort(self, reason: str) -> None:
        """Close the connection at once."""

    def close_if_overdue(self, now: float) -> None:
        """Close the connection if its client has taken too long."""


class OpenConnections:
    """The connections of one server, and the bytes that they hold together."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: set[Connection] = set()
        # In the order in which they began to wait; the first one is closed first.
        self._waiting: dict[Connection, None] = {}
        self._held = 0

    def __contains__(self, connection: object) -> bool:
        return connection in self._open

    def __len__(self) -> int:
        return len(self._open)

    @property
    def crowded(self) -> bool:
        """True if there are more connections than the limit."""
        return len(self._open) > self.limits.connections

    @property
    def full(self) -> bool:
        """True if there are more connections than the limit and the spare ones together."""
        return len(self._open) > self.limits.connections + SPARE_CONNECTIONS

    def add(self, connection: Connection) -> None:
        """Add a connection; above the limit, it replaces the one that has waited longest for its client."""
        if len(self._open) >= self.limits.connections and self._waiting:
            next(iter(self._waiting)).abort(_DISPLACED)
        self._open.add(connection)

    def discard(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)
        self.hold(-connection.held)
        connection.held = 0

    def turn(self, connection: Connection, *, waits: bool) -> None:
        """Note whether a connection waits for its client."""
        self._waiting.pop(connection, None)
        if waits:
            self._waiting[connection] = None

    def hold(self, more: int) -> None:
        """Note that waiting connections hold more bytes, or fewer; close the oldest while they hold too many."""
        self._held += more
        while self._held > self.limits.held_bytes and more > 0:
            next(connection for connection in self._waiting if connection.held).abort(_TOO_MUCH_HELD)

    async def close_overdue(self) -> None:
        """Close all connections that have waited too long for their clients."""
        now = asyncio.get_running_loop().time()
        for connection in tuple(self._open):
            connection.close_if_overdue(now)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol within `Limits`; a server's connections share `connections`."""

    def __init__(self, connections: OpenConnections, **options: Any) -> None:
        super().__init__(**options)
        self.held = 0
        """The bytes of an incomplete request or an unread answer, while the connection waits for its client."""
        self._connections = connections
        self._limits = connections.limits
        self._running: RequestResponseCycle | None = None
        self._refusal: _Refusal | None = None
        self._turn: tuple[ClientWait | None, int] = (None, 0)
        """The action that the connection waits for, and the number of the request."""
        self._since = 0.0
        self._unread = 0
        """The unread bytes when the client's time to read began."""
        self._requests = 0
        self._in_head = False
        self._in_body = False
        self._received = 0
        """The bytes of the incoming request; for a pipelined one, counted from the next piece."""
        self._unparsed = 0
        """The bytes since the parser last reported anything."""
        self._fed = 0
        self._progressed = False
        self._head_bytes = 0
        self._headers = 0
        self._chunks = 0
        self._framing: bytes | None = None
        """The header that delimits the body of a request for another protocol, until the body is parsed."""

    # --- The connection. ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection unless there are too many."""
        super().connection_made(transport)
        self._connections.add(self)
        if self._connections.full:
            self.abort(TOO_MANY_CONNECTIONS)
            return
        if self._connections.crowded:
            _refused.labels(TOO_MANY_CONNECTIONS).inc()
            self.app = _health_only(self.app)
        self._take_turn()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that the client has disconnected, even if pipelined requests are waiting."""
        self._connections.discard(self)
        super().connection_lost(exc)
        self._tell_application()

    def abort(self, reason: str) -> None:
        """Close the connection at once, in any state."""
        _refused.labels(reason).inc()
        self._connections.discard(self)
        self.transport.abort()
        self._tell_application()

    def close_if_overdue(self, now: float) -> None:
        """Close the connection if its client has taken too long."""
        self._take_turn()
        wait, _ = self._turn
        unread = self.transport.get_write_buffer_size()
        if wait is ClientWait.READ and unread <= self._unread - self._limits.progress_bytes:
            self._since, self._unread = now, unread
        if wait is None or now - self._since <= self._limits.seconds(wait):
            return
        if wait is ClientWait.IDLE:
            self.transport.close()
        elif wait is ClientWait.HEAD and not self._requests:
            _refused.labels(_TOO_SLOW[wait].reason).inc()
            self.transport.close()
        else:
            self._refuse(_TOO_SLOW[wait])

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer with an error and close the connection; only close it if the answer could be taken for another's."""
        begun = self._running.response_started if self._in_body and self._running else self._answering
        if begun or self.pipeline or self.flow.write_paused or self.transport.is_closing():
            self.abort(refusal.reason)
            return
        _refused.labels(refusal.reason).inc()
        self.transport.write(_answer(refusal))
        self.transport.close()
        self._tell_application()

    def _tell_application(self) -> None:
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    # --- Whose turn it is. ---

    @property
    def _answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _waits_for(self) -> ClientWait | None:
        if self.flow.write_paused or self.transport.is_closing():
            return ClientWait.READ
        if self.pipeline:
            return None
        if self._in_body:
            return ClientWait.BODY
        if self._in_head or not self._requests:
            return ClientWait.HEAD
        return None if self._answering else ClientWait.IDLE

    def _take_turn(self) -> None:
        """Determine whether it is the client's turn, and since when."""
        if self not in self._connections:
            return
        wait = self._waits_for()
        if self._turn != (wait, self._requests):
            self._turn = (wait, self._requests)
            self._since = self.loop.time()
            self._unread = self.transport.get_write_buffer_size()
            self._connections.turn(self, waits=wait is not None)
        held = 0 if wait is None else self.transport.get_write_buffer_size() + self._received_and_kept()
        more, self.held = held - self.held, held
        if more:
            self._connections.hold(more)

    def _received_and_kept(self) -> int:
        if self._in_head:
            return self._received
        return self._received if self._in_body and self._answering else 0

    def pause_writing(self) -> None:
        """Note that the client reads slower than the server answers."""
        super().pause_writing()
        self._take_turn()

    def resume_writing(self) -> None:
        """Note that the client has read most of its answer."""
        super().resume_writing()
        self._take_turn()

    def on_response_complete(self) -> None:
        """Continue with the next request."""
        super().on_response_complete()
        self._take_turn()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    # --- What is received. ---

    def data_received(self, data: bytes) -> None:
        """Parse the data in pieces, so a limit is detected soon after it is passed."""
        self._unset_keepalive_if_required()
        step = self._limits.head_bytes
        for start in range(0, len(data), step):
            if refusal := self._feed(data[start : start + step]):
                self._refuse(refusal)
                return
        self._take_turn()

    def _feed(self, piece: bytes) -> _Refusal | None:
        self._fed, self._progressed = len(piece), False
        try:
            self._parse(piece)
        except httptools.HttpParserError:
            return self._refusal or _MALFORMED
        self._received += self._fed
        self._unparsed = 0 if self._progressed else self._unparsed + self._fed
        too_large = max(self._unparsed, self._received if self._in_head else 0) > self._limits.head_bytes
        return _HEAD_TOO_LARGE if too_large else None

    def _parse(self, piece: bytes) -> None:
        """Parse as HTTP/1.1 even after a request for another protocol; no other is supported (RFC 9110, 7.8)."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            if self._framing is not None:
                self._parse_body_only(self._framing)
            if rest := piece[upgrade.args[0] :]:
                self._parse(rest)

    def _parse_body_only(self, framing: bytes) -> None:
        """Continue with a second parser after the head; the first one has ended the request without its body."""
        self._framing = None
        self.parser = httptools.HttpRequestParser(_BodyCallbacks(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"POST / HTTP/1.1\r\nconnection: close\r\n" + framing + b"\r\n\r\n")

    def on_message_begin(self) -> None:
        """Reset the counters of a request."""
        super().on_message_begin()
        self._received = -self._fed if self._progressed else 0
        self._progressed = self._in_head = True
        self._requests += 1
        self._head_bytes = self._headers = self._chunks = 0

    def on_url(self, url: bytes) -> None:
        """Receive a part of the request's target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Receive a header; a trailer is counted and dropped, because it must not become a header."""
        self._headers += 1
        self._count_head(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def _count_head(self, size: int) -> None:
        self._progressed = True
        self._head_bytes += size
        if self._head_bytes > self._limits.head_bytes or self._headers > self._limits.headers:
            self._stop_parsing(_HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Start the request, or queue it behind the current one."""
        if len(self.pipeline) >= self._limits.pipelined:
            self._stop_parsing(_TOO_MANY_PIPELINED)
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        if self.parser.should_upgrade() and (framing := _framing(self.headers)):
            self._framing = framing
            self.cycle.keep_alive = False  # there is no parser for another request

    def on_chunk_header(self) -> None:
        """Count a chunk of the body."""
        self._progressed = True
        self._chunks += 1
        if self._chunks > self._limits.chunks:
            self._stop_parsing(_TOO_MANY_CHUNKS)

    def on_body(self, body: bytes) -> None:
        """Receive a part of the body."""
        self._progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._progressed = True
        if self._framing is not None:
            return
        self._in_body = False
        super().on_message_complete()

    def _stop_parsing(self, refusal: _Refusal) -> None:
        """Raise out of a callback of the parser, which wraps every exception in its own."""
        self._refusal = refusal
        raise ValueError(refusal.detail)


class _BodyCallbacks:
    """The parser's callbacks for a request whose head is already known."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        self.on_header = protocol.on_header
        self.on_chunk_header = protocol.on_chunk_header
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete


def _framing(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """Return the header that delimits a request's body, None if it has no body."""
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and int(value)):
            return name + b": " + value
    return None


def _answer(refusal: _Refusal) -> bytes:
    """Return the bytes of an error answer to a request that has not reached the application."""
    response = problem_response(refusal.status, refusal.detail, headers={"Connection": "close"})
    lines = [f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}".encode()]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


def _health_only(app: ASGIApp) -> ASGIApp:
    """Return an application that answers health checks like the given one, and everything else with 503."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in HEALTH:
            await app(scope, receive, send)
            return
        detail = "There are too many connections; try again"
        headers = {"Retry-After": "1", "Connection": "close"}
        answer = problem_response(HTTPStatus.SERVICE_UNAVAILABLE, detail, kind=OVERLOADED, headers=headers)
        await answer(scope, receive, send)

    return answer

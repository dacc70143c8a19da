"""HTTP connections with bounds: how much a client may send, how long it may take, and how many connections there are.

uvicorn's own protocol keeps whatever a client sends as a request head, waits for the rest of a request for ever, and
keeps an answer that is not read for ever. This one always knows what it waits for from the client (`ClientWait`), and
`OpenConnections`, one for each server, closes what waits too long or holds too much. Every limit is in `Limits`.
"""

import asyncio
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any, NamedTuple

import httptools
from prometheus_client import Counter
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from shared.http import HEALTH, problem_response

SPARE_CONNECTIONS = 16
"""Connections above the limit that are still answered: health checks as always, everything else with 503."""

_refused = Counter("http_connections_refused_total", "Connections refused or closed at a limit", ["reason"])


class ClientWait(Enum):
    """What a connection waits for the client to do."""

    HEAD = "send a request head"
    BODY = "send the rest of a request body"
    READ = "read the answer"


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of the connections of one server."""

    connections: int
    head_bytes: int = 32 * 1024
    """Of a request's line, headers and trailers, or of anything else that is not body."""
    headers: int = 100
    """Headers and trailers of a request."""
    chunks: int = 4096
    """Chunks of a request's body: 64 bytes each, if the body is as large as it may be."""
    pipelined: int = 16
    """Requests that wait behind another one on the same connection."""
    held_bytes: int = 64 * 1024 * 1024
    """Incomplete requests and unread answers of all connections together."""
    head_seconds: float = 10.0
    """For a request head, from its first byte or, if that does not come, from the end of the request before it."""
    body_seconds: float = 30.0
    read_seconds: float = 30.0
    """To read what the server could not send at once, or `progress_bytes` of it."""
    progress_bytes: int = 64 * 1024
    """A client that reads so much gets the time once more: a large answer may take a slow line minutes."""

    def seconds(self, wait: ClientWait) -> float:
        """Return how long a client may take over what is waited for."""
        match wait:
            case ClientWait.HEAD:
                return self.head_seconds
            case ClientWait.BODY:
                return self.body_seconds
            case ClientWait.READ:
                return self.read_seconds


class _Refusal(NamedTuple):
    """Why a request ends its connection, as the metric and the client are told."""

    reason: str
    status: HTTPStatus
    detail: str


_MALFORMED = _Refusal("malformed", HTTPStatus.BAD_REQUEST, "The request is not HTTP/1.1")
_HEAD_TOO_LARGE = _Refusal(
    "head_too_large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request line or the headers are too large"
)
_TOO_MANY_CHUNKS = _Refusal(
    "too_many_chunks", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body comes in too many chunks; send larger ones"
)
_TOO_MANY_PIPELINED = _Refusal("too_many_pipelined", HTTPStatus.BAD_REQUEST, "Too many requests wait for an answer")
_TOO_SLOW = {
    ClientWait.HEAD: _Refusal("head_too_slow", HTTPStatus.REQUEST_TIMEOUT, "The request head did not arrive in time"),
    ClientWait.BODY: _Refusal("body_too_slow", HTTPStatus.REQUEST_TIMEOUT, "The request body did not arrive in time"),
    ClientWait.READ: _Refusal("reader_too_slow", HTTPStatus.REQUEST_TIMEOUT, "The answer was not read in time"),
}
_NO_ROOM = "too_many_connections"
_DISPLACED = "displaced"
_TOO_MUCH_HELD = "too_much_held"
for _reason in (
    *(refusal.reason for refusal in (_MALFORMED, _HEAD_TOO_LARGE, _TOO_MANY_CHUNKS, _TOO_MANY_PIPELINED)),
    *(refusal.reason for refusal in _TOO_SLOW.values()),
    *(_NO_ROOM, _DISPLACED, _TOO_MUCH_HELD),
):
    _refused.labels(_reason)  # starts at 0, so that the first one is an increase


class OpenConnections:
    """The connections of one server, and what they hold together."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: set[BoundedProtocol] = set()
        # In the order in which they began to wait: the first one is closed first.
        self._waiting: dict[BoundedProtocol, None] = {}
        self._held = 0

    def __contains__(self, connection: object) -> bool:
        return connection in self._open

    def __len__(self) -> int:
        return len(self._open)

    @property
    def crowded(self) -> bool:
        """Whether there are more connections than the limit."""
        return len(self._open) > self.limits.connections

    @property
    def full(self) -> bool:
        """Whether there are more connections than the limit, spare ones included."""
        return len(self._open) > self.limits.connections + SPARE_CONNECTIONS

    def add(self, connection: "BoundedProtocol") -> None:
        """Add a new connection; above the limit, in the place of the one that has waited longest for its client."""
        if len(self._open) >= self.limits.connections and self._waiting:
            next(iter(self._waiting)).abort(_DISPLACED)
        self._open.add(connection)

    def discard(self, connection: "BoundedProtocol") -> None:
        """Forget a connection that is gone."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)
        self.hold(-connection.held)
        connection.held = 0

    def turn(self, connection: "BoundedProtocol", *, waits: bool) -> None:
        """Note that a connection now waits for its client, or no longer does."""
        self._waiting.pop(connection, None)
        if waits:
            self._waiting[connection] = None

    def hold(self, more: int) -> None:
        """Note that connections that wait hold more bytes, or fewer; close the oldest while it is too much."""
        self._held += more
        while self._held > self.limits.held_bytes and more > 0:
            next(connection for connection in self._waiting if connection.held).abort(_TOO_MUCH_HELD)

    async def close_overdue(self) -> None:
        """Close each connection that has waited too long for its client."""
        now = asyncio.get_running_loop().time()
        for connection in tuple(self._open):
            connection.close_if_overdue(now)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the bounds of `Limits`; `connections` is what the connections of a server share."""

    def __init__(self, connections: OpenConnections, **options: Any) -> None:
        super().__init__(**options)
        self.held = 0
        """Bytes of an incomplete request or an unread answer, while the connection waits for its client."""
        self._connections = connections
        self._limits = connections.limits
        self._running: RequestResponseCycle | None = None
        self._refusal: _Refusal | None = None
        self._turn: tuple[ClientWait | None, int] = (None, 0)
        """What is waited for, and in which request."""
        self._since = 0.0
        self._unread = 0
        """Bytes that the client had left unread when its time to read began."""
        self._requests = 0
        self._in_head = False
        self._in_body = False
        self._received = 0
        """Bytes of the request that is being received; of one that came behind another, from the next piece on."""
        self._unparsed = 0
        """Bytes since the parser last reported anything."""
        self._fed = 0
        self._progressed = False
        self._head_bytes = 0
        self._headers = 0
        self._chunks = 0
        self._framing: bytes | None = None
        """The header that delimits the body of a request that asks for another protocol, until it is parsed."""

    # --- The connection. ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, unless there are too many."""
        super().connection_made(transport)
        self._connections.add(self)
        if self._connections.full:
            self.abort(_NO_ROOM)
            return
        if self._connections.crowded:
            _refused.labels(_NO_ROOM).inc()
            self.app = _health_only(self.app)
        self._take_turn()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application, also where other requests wait behind the one that it answers."""
        self._connections.discard(self)
        super().connection_lost(exc)
        self._tell_application()

    def abort(self, reason: str) -> None:
        """Break the connection, whatever it is at."""
        _refused.labels(reason).inc()
        self._connections.discard(self)
        self.transport.abort()
        self._tell_application()

    def close_if_overdue(self, now: float) -> None:
        """Close the connection if its client has taken too long over what is waited for."""
        self._take_turn()
        wait, _ = self._turn
        unread = self.transport.get_write_buffer_size()
        if wait is ClientWait.READ and unread <= self._unread - self._limits.progress_bytes:
            self._since, self._unread = now, unread
        if wait is None or now - self._since <= self._limits.seconds(wait):
            return
        if wait is ClientWait.HEAD and not self._in_head and not self._answering:
            _refused.labels(_TOO_SLOW[wait].reason).inc()
            self.transport.close()
        else:
            self._refuse(_TOO_SLOW[wait])

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer with an error and close the connection; only close it where an answer would be taken for another."""
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
        return ClientWait.HEAD if self._in_head or not self._answering else None

    def _take_turn(self) -> None:
        """Find out whether it is the client's turn, and since when."""
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
        """Note that the client does not read as fast as it is answered."""
        super().pause_writing()
        self._take_turn()

    def resume_writing(self) -> None:
        """Note that the client has read what was kept for it."""
        super().resume_writing()
        self._take_turn()

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        super().on_response_complete()
        self._take_turn()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    # --- What is received. ---

    def data_received(self, data: bytes) -> None:
        """Parse what has come in pieces, so that a limit is noticed soon after it is passed."""
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
        """Parse as HTTP/1.1 even what follows a request for another protocol: there is none here (RFC 9110, 7.8)."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            if self._framing is not None:
                self._parse_body_only(self._framing)
            if rest := piece[upgrade.args[0] :]:
                self._parse(rest)

    def _parse_body_only(self, framing: bytes) -> None:
        """Go on with a parser that is past the head; the first one has ended the request without its body."""
        self._framing = None
        self.parser = httptools.HttpRequestParser(_BodyCallbacks(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"POST / HTTP/1.1\r\nconnection: close\r\n" + framing + b"\r\n\r\n")

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self._received = -self._fed if self._progressed else 0
        self._progressed = self._in_head = True
        self._requests += 1
        self._head_bytes = self._headers = self._chunks = 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer is counted and dropped, for it must not become one."""
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
        """Start the request, or let it wait behind the one that is being answered."""
        if len(self.pipeline) >= self._limits.pipelined:
            self._stop_parsing(_TOO_MANY_PIPELINED)
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        if self.parser.should_upgrade() and (framing := _framing(self.headers)):
            self._framing = framing
            self.cycle.keep_alive = False  # no parser is left for another request

    def on_chunk_header(self) -> None:
        """Count a chunk of the body."""
        self._progressed = True
        self._chunks += 1
        if self._chunks > self._limits.chunks:
            self._stop_parsing(_TOO_MANY_CHUNKS)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
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
        """Raise out of a callback of the parser, which wraps every exception in one of its own."""
        self._refusal = refusal
        raise ValueError(refusal.detail)


class _BodyCallbacks:
    """What is told about a request whose head is known already."""

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
    """Return an error answer as it is sent, for a request that no application has seen."""
    response = problem_response(refusal.status, refusal.detail, headers={"Connection": "close"})
    lines = [f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}".encode()]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


def _health_only(app: ASGIApp) -> ASGIApp:
    """Return an application that answers health checks as the given one, and everything else with 503."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in HEALTH:
            await app(scope, receive, send)
            return
        detail = "There are too many connections; try again"
        headers = {"Retry-After": "1", "Connection": "close"}
        await problem_response(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=headers)(scope, receive, send)

    return answer

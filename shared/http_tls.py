"""TLS between a TCP connection and its HTTP protocol, within the limits of the server.

An event loop's own TLS tells nobody about a connection before its handshake is complete, and its transports do not
count what waits in the TCP connection below. So clients could use up file descriptors and memory in spite of `Limits`.
Here a handshake is one of the open connections, and every unread byte is counted.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from uvicorn.server import ServerState

from shared.http_protocol import (
    TLS_HANDSHAKE,
    TOO_MANY_CONNECTIONS,
    BoundedProtocol,
    OpenConnections,
    count_refusal,
)

READ_BYTES = 64 * 1024

TlsContext = Callable[[], ssl.SSLContext]
"""Returns the TLS context for the next connection."""


class TlsConnection(asyncio.Transport, asyncio.Protocol):
    """The protocol of a TCP connection until its handshake is complete, then also the transport of an HTTP protocol.

    `make_protocol` returns that protocol; `options` are uvicorn's for it.
    """

    held = 0
    """A handshake keeps no bytes worth counting."""

    def __init__(
        self,
        context: TlsContext,
        connections: OpenConnections,
        make_protocol: Callable[..., BoundedProtocol],
        *,
        server_state: ServerState,
        **options: Any,
    ) -> None:
        super().__init__()
        self._connections = connections
        self._server_state = server_state
        self._make_protocol = lambda: make_protocol(server_state=server_state, **options)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._context = context()
        self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._http: BoundedProtocol | None = None
        self._since = 0.0

    # --- The handshake: one of the open connections, which waits for its client. ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the client's part of the handshake unless there are too many connections."""
        self._tcp = cast("asyncio.Transport", transport)  # the class of uvloop is not derived from that of asyncio
        self._since = asyncio.get_running_loop().time()
        self._connections.add(self)
        self._connections.turn(self, waits=True)
        self._server_state.connections.add(self)  # type: ignore[arg-type]  # only `shutdown` is called
        if self._connections.full:
            self.abort(TOO_MANY_CONNECTIONS)

    def close_if_overdue(self, now: float) -> None:
        """Close the connection if the handshake takes too long."""
        if now - self._since > self._connections.limits.head_seconds:
            self.abort(TLS_HANDSHAKE)

    def shutdown(self) -> None:
        """Close the connection: the server stops."""
        self._end_handshake()
        self._tcp.abort()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except (ssl.SSLError, OSError, ValueError):  # no TLS, another version, no accepted certificate
            self._flush()  # the alert, which tells the client why
            count_refusal(TLS_HANDSHAKE)
            self._end_handshake()
            self._tcp.close()
        else:
            self._flush()
            self._end_handshake()
            self._http = self._make_protocol()  # type: ignore[no-untyped-call]
            self._http.connection_made(self)

    def _end_handshake(self) -> None:
        self._connections.discard(self)
        self._server_state.connections.discard(self)

    # --- The protocol of the TCP connection. ---

    def data_received(self, data: bytes) -> None:
        """Decrypt what has arrived."""
        self._incoming.write(data)
        if self._http is None:
            self._shake_hands()
        if self._http is not None:
            self._read(self._http)

    def _read(self, http: BoundedProtocol) -> None:
        try:
            while not self.is_closing() and (plain := self._tls.read(READ_BYTES)):
                http.data_received(plain)
        except ssl.SSLWantReadError:
            self._flush()  # an answer of TLS itself, such as new keys
        except ssl.SSLZeroReturnError:
            self.close()
        except (ssl.SSLError, OSError):
            self._tcp.abort()

    def eof_received(self) -> None:
        """Let the TCP connection be closed."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the HTTP protocol, or forget the handshake."""
        if self._http is not None:
            self._http.connection_lost(exc)
        else:
            self._end_handshake()

    def pause_writing(self) -> None:
        """Pass on that the client reads slower than the server answers."""
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client has read most of its answer."""
        if self._http is not None:
            self._http.resume_writing()

    # --- The transport of the HTTP protocol. ---

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        if self.is_closing():
            return
        rest = memoryview(data)
        with suppress(ssl.SSLError):  # the client has ended the connection meanwhile
            while rest:
                rest = rest[self._tls.write(rest) :]
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._tcp.write(self._outgoing.read())

    def close(self) -> None:
        """Close the connection when everything is sent, without waiting for the client's agreement."""
        if self.is_closing():
            return
        with suppress(ssl.SSLError, OSError):
            self._tls.unwrap()
        self._flush()
        self._tcp.close()

    def abort(self, reason: str | None = None) -> None:
        """Close the connection at once; a `reason` is counted as the end of a handshake."""
        if reason is not None:
            count_refusal(reason)
            self._end_handshake()
        self._tcp.abort()

    def is_closing(self) -> bool:
        """Return True once the connection is closed or about to be."""
        return self._tcp.is_closing()

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that are not sent yet."""
        return self._tcp.get_write_buffer_size()

    def pause_reading(self) -> None:
        """Receive nothing for now."""
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._tcp.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact about the TLS connection or the TCP connection below."""
        if name in ("sslcontext", "ssl_object"):
            return self._context if name == "sslcontext" else self._tls
        return self._tcp.get_extra_info(name, default)

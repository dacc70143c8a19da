"""An HTTP server that answers each request with the next part of a script: bytes as they are, or a reset."""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

RESET = b""
"""Closes the connection at once, by a reset."""


@dataclass(frozen=True)
class LateReset:
    """Closes the connection by a reset, after so many seconds."""

    seconds: float


Part = bytes | LateReset


def answer(status: int, content: object = None, **headers: str) -> bytes:
    """Return an answer with a JSON body, after which the connection is closed."""
    body = b"" if content is None else json.dumps(content).encode()
    kind = "application/problem+json" if status >= 400 else "application/json"
    given = {"Content-Length": str(len(body)), "Content-Type": kind, "Connection": "close"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status} x\r\n{head}\r\n".encode() + body


def stream(*events: str) -> bytes:
    """Return an answer with server-sent events that breaks off in the middle of a chunk."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [f"{len(event.encode()):x}\r\n{event}\r\n".encode() for event in events]
    return head + b"".join(chunks) + b"ff\r\nid: 99\nevent: order.lo"


@dataclass
class ScriptedServer:
    """One running server. It keeps what it was sent: for each request, its first line, headers and body."""

    url: str
    script: list[Part]
    requests: list["Received"] = field(default_factory=list)


@dataclass(frozen=True)
class Received:
    """One request."""

    line: str
    headers: dict[str, str]
    body: bytes


@contextlib.contextmanager
def scripted(script: Sequence[Part]) -> Iterator[ScriptedServer]:
    """Run a server that answers one request per connection, and nothing after the script."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = ScriptedServer(f"http://127.0.0.1:{listener.getsockname()[1]}", list(script))
    thread = threading.Thread(target=_serve, args=(server, listener), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # ends an accept that waits
        thread.join()
        listener.close()


def _serve(server: ScriptedServer, listener: socket.socket) -> None:
    for part in server.script:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            server.requests.append(_read(connection))
            if isinstance(part, LateReset):
                time.sleep(part.seconds)
                part = RESET
            if part == RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                connection.sendall(part)
    listener.close()


def _read(connection: socket.socket) -> Received:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16)
    head, _, body = received.partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in rest)}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(1 << 16)
    return Received(line, headers, body)

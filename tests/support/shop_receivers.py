"""A shop's system that receives webhooks: a real HTTP server that answers as a test tells it to."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

OK, FAIL, HANG, GONE, RESET, REDIRECT, SLOW = "ok", "fail", "hang", "gone", "reset", "redirect", "slow"
STATUS = {
    OK: "204 No Content",
    SLOW: "204 No Content",
    FAIL: "500 Internal Server Error",
    GONE: "410 Gone",
    REDIRECT: "307 Temporary Redirect",
}
ELSEWHERE = "/elsewhere"
"""Where a redirect leads."""
SLOW_SECONDS = 2.2


@dataclass(frozen=True)
class Received:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.body)
        return content

    def is_signed_with(self, secret: str) -> bool:
        """Whether one of its signatures is by this secret, computed by hand."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        wanted = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        return f"v1,{wanted}" in self.headers["webhook-signature"].split(" ")


@dataclass
class Receiver:
    """Answers by path: each has its behaviour, which a test changes."""

    url: str = ""
    behaviour: dict[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    open: dict[str, int] = field(default_factory=dict)
    most_open: dict[str, int] = field(default_factory=dict)
    """The most requests that a path had at the same time."""

    def behaviour_for(self, request: Received) -> str:
        """How to answer a request; asked again while it hangs."""
        return self.behaviour.get(request.path, OK)

    def to(self, path: str) -> list[Received]:
        return [each for each in self.received if each.path == path]

    def ids(self, path: str) -> list[str]:
        return [each.id for each in self.to(path)]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                path = lines[0].split(" ")[1]
                headers = {
                    n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:] if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                request = Received(path, headers, body)
                self.received.append(request)
                if not await self._answer(request, reader, writer):
                    return

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return whether the connection stays open."""
        path, behaviour = request.path, self.behaviour_for(request)
        if behaviour == RESET:
            writer.transport.abort()
            return False
        self.open[path] = self.open.get(path, 0) + 1
        self.most_open[path] = max(self.most_open.get(path, 0), self.open[path])
        try:
            if behaviour == SLOW:
                await asyncio.sleep(SLOW_SECONDS)
            while self.behaviour_for(request) == HANG and not reader.at_eof():
                await asyncio.sleep(0.02)
        finally:
            self.open[path] -= 1
        status = STATUS.get(behaviour, STATUS[OK])
        text = b"" if status.startswith("204") else f"{behaviour}: try later".encode()
        length = f"content-length: {len(text)}\r\n".encode() if text else b""
        location = f"location: {self.url}{ELSEWHERE}\r\n".encode() if behaviour == REDIRECT else b""
        writer.write(f"HTTP/1.1 {status}\r\n".encode() + location + length + b"\r\n" + text)
        await writer.drain()
        return True


@contextlib.asynccontextmanager
async def run_receiver(receiver: Receiver | None = None) -> AsyncIterator[Receiver]:
    """A receiver, on a free port of this machine."""
    receiver = receiver or Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield receiver
    finally:
        receiver.behaviour.clear()
        server.close()

"""A minimal HTTP connection that only posts.

A request costs 30 µs of CPU time; with aiohttp it costs 145 (both measured on uvloop). The load generator shares the
machine with the stack that it measures, and the whole stack spends about 2,500 µs on an order.
"""

import asyncio
import time
import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple, cast

import httptools

from operations.errors import CommandError
from shared.tls import client_context, plain_reason

IDLE_SECONDS = 3.0
"""A connection that was idle for longer is not reused: servers close idle connections after 5 s."""

CONNECT_SECONDS = 10.0


class NotSentError(CommandError):
    """The connection could not be opened, so no request was sent."""


class NoAnswerError(CommandError):
    """The connection broke or the answer did not arrive in time; the server may have handled the request."""


class Answer(NamedTuple):
    """The status of an answer, and its `Retry-After` in seconds if it has one."""

    status: int
    retry_after: float | None = None


class Connection:
    """Posts to one path, one request at a time; connects on demand."""

    def __init__(self, url: str, path: str, headers: Mapping[str, str] | None = None) -> None:
        added = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        parts = urllib.parse.urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._head = (
            f"POST {parts.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
            f"{added}Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._protocol: _Protocol | None = None
        self._last_used = 0.0

    async def post(self, body: bytes, timeout: float) -> Answer:  # noqa: ASYNC109 - of the whole request
        """Post a body and return the answer.

        Raises NotSentError, or NoAnswerError if there is no answer within the timeout (seconds).
        """
        protocol = await self._connected()
        try:
            async with asyncio.timeout(timeout):
                return await protocol.send(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        except TimeoutError:
            self.close()
            raise NoAnswerError(f"no answer within {timeout:.0f} s") from None
        finally:
            self._last_used = time.monotonic()

    def close(self) -> None:
        """Close the connection if there is one."""
        if self._protocol is not None:
            self._protocol.close()
            self._protocol = None

    async def _connected(self) -> "_Protocol":
        protocol = self._protocol
        if protocol is not None and protocol.open and time.monotonic() - self._last_used < IDLE_SECONDS:
            return protocol
        self.close()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, protocol = await asyncio.get_running_loop().create_connection(
                    _Protocol, self._host, self._port, ssl=client_context() if self._tls else None
                )
        except (OSError, TimeoutError) as error:
            raise NotSentError(f"{self._host}:{self._port} does not accept connections: {_reason(error)}") from error
        self._protocol = protocol
        return protocol


def _reason(error: BaseException) -> str:
    reason = plain_reason(str(error))
    return repr(error) if reason == str(error) else reason


class _Protocol(asyncio.Protocol):
    """Sends requests and parses answers on one open connection; the parser calls the `on_` methods."""

    def __init__(self) -> None:
        self.open = False
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Answer] | None = None
        self._retry_after: float | None = None

    def send(self, request: bytes) -> "asyncio.Future[Answer]":
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.open = False
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # create_connection makes stream transports; the class of uvloop is not derived from that of asyncio.
        self._transport = cast("asyncio.Transport", transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close()
            self._fail(f"the answer is not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._fail(f"the connection was closed: {exc!r}")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after" and value.isdigit():
            self._retry_after = float(value)

    def on_message_complete(self) -> None:
        status, keeps = self._parser.get_status_code(), self._parser.should_keep_alive()
        answer, self._retry_after = Answer(status, self._retry_after), None
        self._parser = httptools.HttpResponseParser(self)
        if not keeps:
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def _fail(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswerError(why))

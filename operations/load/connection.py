"""One HTTP connection that posts, and does nothing else.

It costs 30 µs of CPU a request where aiohttp costs 145 (both measured on uvloop): the generator shares the machine with
what it measures, and one order is to cost all of the stack no more than 2,500.
"""

import asyncio
import time
import urllib.parse
from typing import cast

import httptools

IDLE_SECONDS = 3.0
"""A connection that has been idle for longer is not used again: servers close theirs after five."""

CONNECT_SECONDS = 10.0


class NotSentError(Exception):
    """The server could not be connected to: nothing was asked of it."""


class NoAnswerError(Exception):
    """The connection broke, or nothing was answered in time: the server may have done what it was asked."""


class Connection:
    """Posts to one path, one request at a time; connects when it has to."""

    def __init__(self, url: str, path: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._head = (
            f"POST {parts.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._exchange: _Exchange | None = None
        self._last_used = 0.0

    async def post(self, body: bytes, timeout: float) -> int:  # noqa: ASYNC109 - of the whole request
        """Post and return the answer's status.

        Raises NotSentError, or NoAnswerError, also when there is no answer within the timeout (seconds).
        """
        exchange = await self._connected()
        try:
            async with asyncio.timeout(timeout):
                return await exchange.send(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        except TimeoutError:
            self.close()
            raise NoAnswerError(f"no answer within {timeout:.0f} s") from None
        finally:
            self._last_used = time.monotonic()

    def close(self) -> None:
        """Close the connection if there is one."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    async def _connected(self) -> "_Exchange":
        exchange = self._exchange
        if exchange is not None and exchange.open and time.monotonic() - self._last_used < IDLE_SECONDS:
            return exchange
        self.close()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, exchange = await asyncio.get_running_loop().create_connection(
                    _Exchange, self._host, self._port, ssl=self._tls or None
                )
        except (OSError, TimeoutError) as error:
            raise NotSentError(f"{self._host}:{self._port} does not accept connections: {error!r}") from error
        self._exchange = exchange
        return exchange


class _Exchange(asyncio.Protocol):
    """Requests and answers on one open connection; the parser calls the `on_` methods."""

    def __init__(self) -> None:
        self.open = False
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None

    def send(self, request: bytes) -> "asyncio.Future[int]":
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.open = False
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A stream's, as create_connection makes them; uvloop's class is not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close()
            self._fail(f"what came is not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._fail(f"the connection was closed: {exc!r}")

    def on_message_complete(self) -> None:
        status, keeps = self._parser.get_status_code(), self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        if not keeps:
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    def _fail(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswerError(why))

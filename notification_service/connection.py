"""A connection to a receiver of webhooks: HTTP/1.1, one request at a time, and of each answer the beginning.

It is as small as it is because half of the time of a delivery went into a general client: a request costs 30 µs of CPU
time here, and 700 over a pool of httpcore's connections. The parser is that of Node.js (llhttp, by httptools).
"""

import asyncio
from typing import NamedTuple, cast

import httptools

MAX_BODY_BYTES = 4096
"""How much of a body is read: enough for an error message."""
MAX_ANSWER_BYTES = 65_536
"""How much of an answer is read, with its headers, before it is taken for one that never ends."""

_FIRST_FINAL_STATUS = 200
_FRAMING = (b"content-length", b"transfer-encoding")


class NoAnswerError(Exception):
    """The connection ended before an answer was complete, or what came is not HTTP."""


class Answer(NamedTuple):
    """The status of an answer, and the beginning of its body."""

    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """A connection, made by the event loop's `create_connection`; its user closes it unless it is reusable."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._reusable = True
        self._expect_answer()

    @property
    def is_reusable(self) -> bool:
        """Return whether another request can be sent."""
        return self._reusable and self._transport is not None and not self._transport.is_closing()

    async def post(self, request: bytes) -> Answer:
        """Send a request, head and body; return the answer. Raises NoAnswerError if there is none.

        If it is cancelled, the connection is not reusable.
        """
        if self._transport is None:
            raise NoAnswerError("the connection has ended")
        self._expect_answer()
        self._reusable = False
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Close the connection; what was not read or written yet is lost."""
        if self._transport is not None:
            self._transport.abort()

    # --- Called by the event loop. ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        """Read a part of an answer."""
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked: it must not pass for the answer to a later request
            return
        self._bytes_left -= len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._reusable = False
            self._fail(error)
        if self._bytes_left <= 0 and not self._answer.done():
            if self._in_body:
                self._finish(reusable=False)
            else:
                self._fail(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the answer: the body of one that says nothing about its length ends with the connection."""
        self._transport = None
        if self._answer is None or self._answer.done():
            return
        if self._in_body and not self._framed and exc is None:
            self._finish(reusable=False)
        else:
            self._fail(exc)

    # --- Called by the parser. ---

    def on_message_begin(self) -> None:
        """Refuse what follows a complete answer."""
        if self._answer is not None and self._answer.done():
            self._reusable = False

    def on_header(self, name: bytes, _value: bytes) -> None:
        """Note whether the answer says where it ends."""
        self._framed |= name.lower() in _FRAMING

    def on_headers_complete(self) -> None:
        """Begin the body; answers before the final one have none."""
        self._in_body = self._parser.get_status_code() >= _FIRST_FINAL_STATUS

    def on_body(self, data: bytes) -> None:
        """Keep the beginning of the body."""
        self._body += data
        if len(self._body) >= MAX_BODY_BYTES:
            self._finish(reusable=False)

    def on_message_complete(self) -> None:
        """Finish, unless it was an answer before the final one."""
        if self._in_body:
            self._finish(reusable=bool(self._parser.should_keep_alive()))

    def _expect_answer(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._bytes_left = MAX_ANSWER_BYTES
        self._in_body = False
        self._framed = False

    def _finish(self, *, reusable: bool) -> None:
        if self._answer is not None and not self._answer.done():
            self._reusable = reusable
            self._answer.set_result(Answer(self._parser.get_status_code(), self._body[:MAX_BODY_BYTES]))

    def _fail(self, cause: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            error = NoAnswerError("the connection ended" if cause is None else str(cause))
            self._answer.set_exception(error)

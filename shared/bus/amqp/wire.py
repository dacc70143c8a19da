"""The socket of a link. It takes frames with messages out of the stream and leaves the rest to aio-pika.

aio-pika reads from the `StreamReader` and writes to the `StreamWriter` that its transport factory returns. Ours checks
the frames as they arrive and passes deliveries, returns and confirms of the tapped channels to their `Tap`: bytes in,
objects out, without a task, a queue or a future per message (see shared.bus.amqp for the reasons).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from shared.bus.amqp.frames import (
    ACK,
    BLOCKED,
    BODY,
    CLOSE_CONNECTION,
    DELIVER,
    FRAME_HEAD,
    FRAME_OVERHEAD,
    HEADER,
    HEARTBEAT_FRAME,
    METHOD,
    NACK,
    RETURN,
    UNBLOCKED,
    Deliver,
    Properties,
    Return,
    read_blocked,
    read_close,
    read_confirm,
    read_content_header,
    read_deliver,
    read_return,
)

_TAKEN_METHODS = frozenset((DELIVER, RETURN, ACK, NACK))

OnBlocked = Callable[[str | None], None]
"""Called with the reason when the broker blocks the connection, and with None when it unblocks it."""


def ignore_blocking(_reason: str | None) -> None:
    """Do nothing about it."""


class Tap:
    """The receiver of one channel's messages and confirms. It ignores what a subclass does not take."""

    def delivered(self, method: Deliver, properties: Properties, body: bytes) -> None:
        """Receive a message for the consumer."""

    def returned(self, method: Return, properties: Properties) -> None:
        """Receive a mandatory message that reached no queue."""

    def confirmed(self, tag: int, *, all_up_to: bool) -> None:
        """Note that a publication, or all up to it, was accepted."""

    def refused(self, tag: int, *, all_up_to: bool) -> None:
        """Note that a publication, or all up to it, was not accepted."""


class _Channel:
    """Assembles the frames of one channel: a method, its content header, and bodies up to the announced size."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._method: Deliver | Return | None = None
        self._properties = Properties()
        self._missing = 0
        self._parts: list[bytes] = []

    def take(self, kind: int, payload: bytes) -> bool:
        """Take a frame; return False if it is not about messages."""
        if kind == METHOD:
            return self._take_method(payload)
        if kind == HEADER:
            self._missing, self._properties = read_content_header(payload)
            self._parts = []
        elif kind == BODY:
            self._parts.append(payload)
            self._missing -= len(payload)
        else:
            return False
        if self._missing <= 0:
            self._complete()
        return True

    def _take_method(self, payload: bytes) -> bool:
        name = payload[:4]
        if name not in _TAKEN_METHODS:
            return False
        if name == DELIVER:
            self._method = read_deliver(payload)
        elif name == RETURN:
            self._method = read_return(payload)
        else:
            tag, all_up_to = read_confirm(payload)
            (self._tap.confirmed if name == ACK else self._tap.refused)(tag, all_up_to=all_up_to)
        return True

    def _complete(self) -> None:
        method, self._method = self._method, None
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        if isinstance(method, Deliver):
            self._tap.delivered(method, self._properties, body)
        elif isinstance(method, Return):
            self._tap.returned(method, self._properties)


class _TappedReader(asyncio.StreamReader):
    """A stream of whole frames, without those for the taps."""

    def __init__(self, on_blocked: OnBlocked = ignore_blocking) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._on_blocked = on_blocked
        self._clock = asyncio.get_running_loop().time
        self._channels: dict[int, _Channel] = {}
        self._incomplete = b""
        self._alive_at = 0.0
        self.heard_at = self._clock()
        self.close_reason: str | None = None

    def tap(self, channel: int, tap: Tap) -> None:
        """Pass the messages of `channel` to `tap` from now on."""
        self._channels[channel] = _Channel(tap)

    def feed_data(self, data: Any) -> None:
        """Receive bytes from the transport."""
        stream = self._incomplete + data if self._incomplete else data
        at, end = 0, len(stream)
        if stream.startswith(b"AMQP"):  # a server that refuses our version sends a bare protocol header
            at = end
            super().feed_data(stream)
        while end - at >= FRAME_OVERHEAD:
            kind, channel, size = FRAME_HEAD.unpack_from(stream, at)
            after = at + FRAME_OVERHEAD + size
            if after > end:
                break
            if not self._take(kind, channel, stream[at + FRAME_HEAD.size : after - 1]):
                super().feed_data(stream[at:after])
            at = after
        self._incomplete = stream[at:]
        self._show_life()

    def _take(self, kind: int, channel: int, payload: bytes) -> bool:
        if channel == 0:
            return kind == METHOD and self._take_connection_method(payload)
        tapped = self._channels.get(channel)
        return tapped is not None and tapped.take(kind, payload)

    def _take_connection_method(self, payload: bytes) -> bool:
        name = payload[:4]
        if name == CLOSE_CONNECTION:
            self.close_reason = read_close(payload)  # aio-pika answers it
            return False
        if name == BLOCKED:
            self._on_blocked(read_blocked(payload))
        elif name == UNBLOCKED:
            self._on_blocked(None)
        return name in (BLOCKED, UNBLOCKED)

    def _show_life(self) -> None:
        # A broker that sends messages sends no heartbeats, and aio-pika does not see the messages, so it would
        # consider the broker dead.
        self.heard_at = now = self._clock()
        if self._channels and now - self._alive_at > 1.0:
            self._alive_at = now
            super().feed_data(HEARTBEAT_FRAME)


class TappedTransport(TransportFactory):
    """The transport of one connection; `on_blocked` is called when the broker blocks or unblocks it.

    With `ip` it connects to that address of the host, whose certificate still has to have the host's name.
    """

    def __init__(self, on_blocked: OnBlocked = ignore_blocking, ip: str | None = None) -> None:
        self._on_blocked = on_blocked
        self._ip = ip
        self._reader: _TappedReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def close_reason(self) -> str | None:
        """The broker's reason for closing the connection; None if it has not closed it or gave no reason."""
        return self._reader.close_reason if self._reader else None

    @property
    def silent_seconds(self) -> float:
        """The time since the broker has sent anything; heartbeats count."""
        return asyncio.get_running_loop().time() - self._reader.heard_at if self._reader else 0.0

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the broker; called by aio-pika."""
        provider = kwargs.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        self._reader = _TappedReader(self._on_blocked)
        protocol = asyncio.StreamReaderProtocol(self._reader, loop=loop)
        if context is not None:
            kwargs.setdefault("server_hostname", url.host)
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, self._ip or url.host or "", url.port or 5672, ssl=context, **kwargs
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self._writer = asyncio.StreamWriter(transport, protocol, self._reader, loop)
        return self._reader, self._writer

    def write(self, frames: bytes) -> bool:
        """Write whole frames; return False if the connection is closing, so they will not arrive."""
        if self._writer is None or self._writer.is_closing():
            return False
        try:
            self._writer.write(frames)
        except (OSError, RuntimeError):  # uvloop raises where asyncio only logs
            return False
        return True

    async def drain(self) -> None:
        """Wait until most of the written bytes are sent, or the socket is closed."""
        if self._writer is not None:
            with suppress(OSError):
                await self._writer.drain()

    def tap(self, channel: int, tap: Tap) -> None:
        """Pass the messages of `channel` to `tap` from now on; the connection must be open."""
        assert self._reader is not None  # noqa: S101
        self._reader.tap(channel, tap)

"""A client of gRPC that writes its own frames, so that it can do what no library lets its users do."""

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
ACK = END_STREAM = 1
END_HEADERS = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CANCEL = 8
INITIAL_WINDOW_SIZE = 4


@dataclass(frozen=True)
class Frame:
    """One frame of HTTP/2."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def ends_call(self) -> bool:
        """Whether a stream ends with it."""
        return self.kind == RST_STREAM or (self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM))


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next_stream = 1

    async def open(self, path: str, metadata: Mapping[bytes, bytes] | None = None) -> int:
        """Start a call without sending its message, and return its number."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        fields = {
            b":method": b"POST",
            b":scheme": b"http",
            b":path": path.encode(),
            b":authority": b"localhost",
            b"te": b"trailers",
            b"content-type": b"application/grpc",
            **(metadata or {}),
        }
        block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())
        await self.send(HEADERS, END_HEADERS, stream, block)
        return stream

    async def message(self, stream: int, message: bytes, *, compressed: bool = False) -> None:
        """Send the message of a call, in one frame: it has at most 16 KiB."""
        await self.send(DATA, END_STREAM, stream, struct.pack(">BI", compressed, len(message)) + message)

    async def reset(self, stream: int) -> None:
        """Give a call up."""
        await self.send(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))

    async def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        """Send a frame."""
        self._writer.write(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload)
        await self._writer.drain()

    async def frame(self) -> Frame:
        """Return the next frame; those that keep the connection alive are answered."""
        while True:
            head = await self._reader.readexactly(9)
            length, (kind, flags, stream) = int.from_bytes(head[:3]), struct.unpack(">BBI", head[3:])
            found = Frame(kind, flags, stream, await self._reader.readexactly(length))
            if kind in (SETTINGS, PING) and not flags & ACK:
                await self.send(kind, ACK, 0, found.payload if kind == PING else b"")
            elif kind not in (SETTINGS, PING):
                return found

    async def end_of(self, stream: int) -> bytes:
        """Wait until a call has ended, and return all that it was answered with."""
        received = b""
        while True:
            found = await self.frame()
            if found.stream == stream:
                received += found.payload
                if found.ends_call:
                    return received


def _text(value: bytes) -> bytes:
    """Return a string of HPACK, without Huffman's code."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, encoded = len(value) - 127, b"\x7f"
    while rest >= 128:
        rest, encoded = rest >> 7, encoded + bytes([rest & 127 | 128])
    return encoded + bytes([rest]) + value


@asynccontextmanager
async def raw_client(port: int, window: int = 65_535) -> AsyncIterator[RawClient]:
    """Connect; the client takes this many bytes of each answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        client = RawClient(reader, writer)
        writer.write(PREFACE)
        await client.send(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))
        yield client
    finally:
        writer.close()

"""The channel of a link that messages are published on, and the confirms that come back on it."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

from aio_pika.abc import AbstractChannel
from aiormq.abc import AbstractChannel as UnderlyingChannel

from shared.bus.amqp.confirms import Confirms, ConfirmTimes, Pending
from shared.bus.amqp.frames import Properties, Return
from shared.bus.amqp.wire import Tap, TappedTransport
from shared.errors import BusUnavailableError

MOST_UNDECIDED = 200
"""The most publications that the broker has not decided.

RabbitMQ reads nothing more from a connection, neither acknowledgements nor requests for another channel, once one of
its channels is 400 publications behind, which it counts by 200. A channel that asks a silent node may stay behind until
that node is back: RabbitMQ 3.10 then asks it again with each publication.
"""

_WRITTEN_AT_ONCE = 256 * 1024
_MOST_IN_CHUNK = 50
_DEFAULT_MAX_FRAME = 131_072


class Publications(Tap):
    """What is published on one channel, until the broker has confirmed or refused it, or the channel is given up."""

    def __init__(
        self,
        channel: AbstractChannel,
        underlying: UnderlyingChannel,
        transport: TappedTransport,
        times: ConfirmTimes,
    ) -> None:
        self.channel = channel
        self.number = underlying.number
        self.max_frame = underlying.connection.connection_tune.frame_max or _DEFAULT_MAX_FRAME
        self._transport = transport
        self._times = times
        self._confirms = Confirms()
        self._undecided: set[asyncio.Future[None]] = set()
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._decided_at = 0.0
        self._lost: str | None = None
        transport.tap(self.number, self)

    async def publish(self, frames: Sequence[bytes], pending: Pending, patience: float) -> None:
        """Write the frames of publications and wait until all are decided.

        Raises TimeoutError if the broker leaves a publication of this channel undecided for `patience` seconds after it
        was written. So a slow broker has the time that many of them need, one after the other, and a channel that the
        broker works on for too long with each of them has not. Raises BusUnavailableError if one was not accepted, or
        if the channel is lost.
        """
        self._undecided.add(pending.outcome)
        pending.outcome.add_done_callback(self._undecided.discard)
        try:
            async with self._patience(patience):
                await self._write(frames, pending)
                await pending.outcome
        finally:
            pending.abandon()

    @asynccontextmanager
    async def _patience(self, patience: float) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        timer: asyncio.TimerHandle

        def check() -> None:
            nonlocal timer
            waiting_since = self._confirms.waiting_since
            if waiting_since is None:  # what is still to be written waits for the socket
                waiting_since = max(began, self._decided_at)
            if (due := waiting_since + patience) > loop.time():
                timer = loop.call_at(due, check)
            else:
                limit.reschedule(due)

        async with asyncio.timeout(None) as limit:
            timer = loop.call_later(patience, check)
            try:
                yield
            finally:
                timer.cancel()

    async def _write(self, frames: Sequence[bytes], pending: Pending) -> None:
        """Write in chunks, and wait in between for confirms and the socket: a slow broker does not fill our memory."""
        async with self._turn:
            for chunk in _chunks(frames):
                await self._has_room_for(len(chunk))
                await self._write_chunk(chunk, pending)

    async def _has_room_for(self, publications: int) -> None:
        while self._lost is None and len(self._confirms) + publications > MOST_UNDECIDED:
            self._room.clear()
            await self._room.wait()

    async def _write_chunk(self, chunk: Sequence[bytes], pending: Pending) -> None:
        if self._lost is not None or not self._transport.write(b"".join(chunk)):
            pending.abort(BusUnavailableError(f"RabbitMQ: {self._lost or 'the connection is closing'}"))
            return
        now = asyncio.get_running_loop().time()
        for _ in chunk:
            self._confirms.expect(pending, now)
        await self._transport.drain()

    async def finish(self, within: float) -> None:
        """Wait at most `within` seconds until everything is decided, also what is still to be written."""
        if self._undecided:
            await asyncio.wait(self._undecided, timeout=within)

    def lost(self, reason: str) -> None:
        """Fail everything that is not decided, and what is still to be written."""
        if self._lost is None:
            self._lost = reason
            self._confirms.lost(f"RabbitMQ: {reason}")
            self._room.set()

    def returned(self, method: Return, properties: Properties) -> None:
        """Note that a mandatory message came back."""
        reason = f"no queue takes {method.routing_key!r} from exchange {method.exchange!r} ({method.reason})"
        self._confirms.returned(properties.message_id, reason)

    def confirmed(self, tag: int, *, all_up_to: bool) -> None:
        """Note that publications were accepted."""
        self._note_time(tag, all_up_to=all_up_to)
        self._confirms.confirmed(tag, all_up_to=all_up_to)
        self._decided()

    def refused(self, tag: int, *, all_up_to: bool) -> None:
        """Note that publications were not accepted."""
        self._note_time(tag, all_up_to=all_up_to)
        self._confirms.refused(tag, all_up_to=all_up_to)
        self._decided()

    def _note_time(self, tag: int, *, all_up_to: bool) -> None:
        written_at = self._confirms.waiting_since if all_up_to else self._confirms.written_at(tag)
        if written_at is not None:
            self._times.note(asyncio.get_running_loop().time() - written_at)

    def _decided(self) -> None:
        self._decided_at = asyncio.get_running_loop().time()
        self._room.set()


def _chunks(frames: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Divide publications into parts that are written at once."""
    chunk: list[bytes] = []
    size = 0
    for frame in frames:
        chunk.append(frame)
        size += len(frame)
        if size >= _WRITTEN_AT_ONCE or len(chunk) == _MOST_IN_CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk

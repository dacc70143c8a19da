"""One live connection to RabbitMQ, with the topology declared, a channel to publish and one to consume.

A link is opened, used and lost as a whole; it never mends itself (see RabbitBus).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import aio_pika
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq.abc import AbstractChannel as UnderlyingChannel
from yarl import URL

from shared import topology
from shared.bus import Delivery, Envelope
from shared.bus.confirms import Confirms, Pending, UnroutableError
from shared.bus.declaring import declare_topology
from shared.bus.frames import Deliver, Properties, Return, acknowledgement, publication, refusal
from shared.bus.wire import Wire
from shared.errors import BusUnavailableError

_LINK_ERRORS = CONNECTION_EXCEPTIONS
"""What aio-pika raises when a connection or channel is not, or no longer, to be had; TimeoutError is an OSError."""

_NOT_LET_IN = ("ACCESS_REFUSED", "NOT_ALLOWED")

_HEARTBEAT_SECONDS = 10
_CLOSE_SECONDS = 3.0
_PAUSE_BEFORE_DECLARING_AGAIN = 1.0
_WRITTEN_AT_ONCE = 256 * 1024
_DEFAULT_MAX_FRAME = 131_072


@dataclass(frozen=True, slots=True)
class Options:
    """How a link is opened; `timeout` and `check_every` in seconds."""

    url: str
    prefetch: int
    timeout: float
    check_every: float
    ladder: tuple[topology.RetryDelay, ...]
    name: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What acknowledges a delivery: a tag, which means something on its own link only."""

    link: "Link"
    tag: int


class RefusedError(BusUnavailableError):
    """The broker is there and does not let us in: wrong user, password or virtual host."""


class Link:
    """A connection and everything on it; `lost` is done, with the reason, when any part of it is gone."""

    def __init__(self, options: Options, queue: str | None, on_delivery: Callable[[], None]) -> None:
        self.deliveries: deque[Delivery] = deque()
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._options = options
        self._queue = queue or ""
        self._on_delivery = on_delivery
        self._wire = Wire()
        self._connection = aio_pika.Connection(
            _with_heartbeat(options.url), client_properties={"connection_name": options.name}
        )
        self._connection.kwargs["transport_factory"] = self._wire
        self._channels: list[AbstractChannel] = []  # aio-pika closes a channel that nobody refers to
        self._publishing: UnderlyingChannel
        self._consuming: UnderlyingChannel
        self._confirms = Confirms()
        self._max_frame = _DEFAULT_MAX_FRAME
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, options: Options, queue: str | None, on_delivery: Callable[[], None]) -> Self:
        """Connect, declare the topology, and consume from `queue` if there is one.

        Raises StartError if the topology contradicts what the broker has, RefusedError if the broker does not let us
        in, BusUnavailableError if it cannot be reached.
        """
        link = cls(options, queue, on_delivery)
        try:
            async with asyncio.timeout(options.timeout):
                await link._open()
        except _LINK_ERRORS as error:
            await link.close()
            raise link._not_open(error) from error
        except BaseException:
            await link.close()
            raise
        return link

    async def close(self) -> None:
        """Close the connection; whoever waits for a confirm gets BusUnavailableError."""
        self._lose("closed")
        if self._watch is not None:
            self._watch.cancel()
        with suppress(*_LINK_ERRORS):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._connection.close()

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Publish all and wait for their confirms; see shared.bus.Bus."""
        now, channel = int(time.time()), self._publishing.number
        frames = [_frames(envelope, channel, now, self._max_frame) for envelope in envelopes]
        pending = Pending([envelope.message_id for envelope in envelopes])
        try:
            async with asyncio.timeout(self._options.timeout):
                await self._write(frames, pending)
                await pending.outcome
        except TimeoutError as error:
            pending.outcome.cancel()  # nobody waits for it any more
            waited = f"{self._options.timeout:g} s for {pending.undecided} of {len(envelopes)} confirms"
            raise BusUnavailableError(f"RabbitMQ did not answer in {waited}") from error
        except UnroutableError:
            await self._declare_again()
            raise

    async def _write(self, frames: Sequence[bytes], pending: Pending) -> None:
        """Write in chunks, waiting for the socket between them, so that a slow broker does not fill our memory."""
        chunk, size = [], 0
        for frame in frames:
            chunk.append(frame)
            size += len(frame)
            if size >= _WRITTEN_AT_ONCE:
                await self._write_chunk(chunk, pending)
                chunk, size = [], 0
        await self._write_chunk(chunk, pending)

    async def _write_chunk(self, chunk: Sequence[bytes], pending: Pending) -> None:
        if self.lost.done() or not self._wire.write(b"".join(chunk)):
            reason = self.lost.result() if self.lost.done() else "the connection is closing"
            pending.abort(BusUnavailableError(f"RabbitMQ: {reason}"))
            return
        for _ in chunk:
            self._confirms.expect(pending)
        await self._wire.drain()

    async def _declare_again(self) -> None:
        # If a queue is declared again right after it was deleted, RabbitMQ 3.10 does not tell its consumers: it counts
        # them as consumers of the new queue and sends them nothing. With a pause, it cancels them and they come back.
        await asyncio.sleep(_PAUSE_BEFORE_DECLARING_AGAIN)
        try:
            async with asyncio.timeout(self._options.timeout):
                await declare_topology(self._connection, self._options.ladder)
        except _LINK_ERRORS as error:
            self._lose(f"the topology could not be declared again: {error!r}")

    def take(self, limit: int) -> list[Delivery]:
        """The deliveries that are here, at most `limit`."""
        return [self.deliveries.popleft() for _ in range(min(limit, len(self.deliveries)))]

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge everything up to the last of these."""
        self._wire.write(acknowledgement(self._consuming.number, deliveries[-1].receipt.tag))

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Have everything up to the last of these delivered again."""
        self._wire.write(refusal(self._consuming.number, deliveries[-1].receipt.tag))

    def delivered(self, method: Deliver, properties: Properties, body: bytes) -> None:
        """See shared.bus.wire.Tap."""
        self.deliveries.append(
            Delivery(
                body=body,
                queue=self._queue,
                exchange=method.exchange,
                routing_key=method.routing_key,
                type=properties.type,
                correlation_id=properties.correlation_id,
                message_id=properties.message_id,
                redelivered=method.redelivered,
                headers=properties.headers,
                receipt=Receipt(self, method.tag),
            )
        )
        self._on_delivery()

    def returned(self, method: Return, properties: Properties) -> None:
        """See shared.bus.wire.Tap."""
        reason = f"no queue takes {method.routing_key!r} from exchange {method.exchange!r} ({method.reason})"
        self._confirms.returned(properties.message_id, reason)

    def confirmed(self, tag: int, *, all_up_to: bool) -> None:
        """See shared.bus.wire.Tap."""
        self._confirms.confirmed(tag, all_up_to=all_up_to)

    def refused(self, tag: int, *, all_up_to: bool) -> None:
        """See shared.bus.wire.Tap."""
        self._confirms.refused(tag, all_up_to=all_up_to)

    def _not_open(self, error: BaseException) -> BusUnavailableError:
        if self._wire.farewell is not None:
            refused = self._wire.farewell.startswith(_NOT_LET_IN)
            return (RefusedError if refused else BusUnavailableError)(self._wire.farewell)
        if isinstance(error, TimeoutError):
            return BusUnavailableError(f"no answer within {self._options.timeout:g} s")
        return BusUnavailableError(f"{type(error).__name__}: {error}")

    async def _open(self) -> None:
        await self._connection.connect()
        self._connection.close_callbacks.add(self._closed)
        await declare_topology(self._connection, self._options.ladder)
        self._publishing = await self._open_channel(publisher_confirms=True)
        self._max_frame = self._publishing.connection.connection_tune.frame_max or _DEFAULT_MAX_FRAME
        if self._queue:
            self._consuming = await self._open_channel(publisher_confirms=False)
            await self._consume()

    async def _open_channel(self, *, publisher_confirms: bool) -> UnderlyingChannel:
        channel = await self._connection.channel(publisher_confirms=publisher_confirms)
        channel.close_callbacks.add(self._closed)
        self._channels.append(channel)
        underlying = await channel.get_underlay_channel()
        self._wire.tap(underlying.number, self)
        return underlying

    async def _consume(self) -> None:
        self._consuming.on_consumer_cancel_callbacks.add(lambda _: self._lose("the broker cancelled the consumer"))
        await self._consuming.basic_qos(prefetch_count=self._options.prefetch)
        await self._consuming.basic_consume(self._queue, _unreached)
        self._watch = asyncio.create_task(self._watch_consumer(), name=f"watch-{self._queue}")

    async def _watch_consumer(self) -> None:
        """Ask the broker now and then whether it still knows a consumer of the queue; twice none ends the link.

        Once none is no proof: a queue without a leader counts none either.
        """
        missed = 0
        while missed < 2:
            await asyncio.sleep(self._options.check_every)
            try:
                answer = await self._consuming.queue_declare(self._queue, passive=True, timeout=self._options.timeout)
            except _LINK_ERRORS as error:
                self._lose(f"the queue could not be looked at: {error!r}")
                return
            missed = 0 if answer.consumer_count else missed + 1
        self._lose("the broker does not know the consumer any more")

    def _closed(self, _sender: object, error: BaseException | None) -> None:
        self._lose(self._wire.farewell or str(error) or type(error).__name__)

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
            self._confirms.lost(f"RabbitMQ: {reason}")


async def _unreached(_message: object) -> None:
    """Stands for the consumer at aio-pika, which never sees its messages: the wire takes them."""


def _frames(envelope: Envelope, channel: int, now: int, max_frame: int) -> bytes:
    properties = Properties(envelope.type, envelope.correlation_id, envelope.message_id, envelope.headers)
    return publication(
        channel,
        envelope.exchange,
        envelope.routing_key,
        envelope.mandatory,
        properties,
        now,
        envelope.body,
        max_frame,
    )


def _with_heartbeat(url: str) -> URL:
    parsed = URL(url)
    return parsed if "heartbeat" in parsed.query else parsed.update_query(heartbeat=_HEARTBEAT_SECONDS)

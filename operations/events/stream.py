"""Reads the stream of events over AMQP 0.9.1: from an offset or a time to its end, or on as events arrive.

RabbitMQ sends the consumer of a stream everything from `x-stream-offset` on, as far as its prefetch allows, and more
with each acknowledgement. It reads the stream in the process of the channel, and answers on the channel in order. So
once it has answered a question that was asked after a delivery, everything that it could send has arrived: with fewer
unacknowledged events than the prefetch, that is all until now. No pause has to be guessed.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused

from operations.errors import CommandError, UnreachableError
from operations.events.event import Event, Selection, read_event
from shared.bus.amqp.connecting import connect
from shared.outage_words import with_detail
from shared.topology import EVENTS, HOW_TO_APPLY

PREFETCH = 500
CONNECT_SECONDS = 5.0

RECONNECT_SECONDS = 60.0
"""For how long a lost broker may be away until reading gives up."""

PAUSE_SECONDS = 0.5

EMPTY_SECONDS = 6.0
"""A stream that sends nothing for this long is empty if it also counts no events: its count is 5 s old at most."""

SILENT_SECONDS = 30.0
"""The time limit for events that must exist."""

CLOCK_DIFFERENCE = timedelta(seconds=60)
"""The broker finds a time by its own clock, events have the time of their service: reading begins that much earlier."""

EPOCH = datetime.fromtimestamp(0, UTC)

Offset = int | str | datetime


class NoEventStreamError(CommandError):
    """The broker has no stream of events, or this user may not read it."""


class _ConnectionLostError(Exception):
    """The broker or the stream has gone; reading may continue on a new connection."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the stream that is read: its first offset so far, the next one, and its last one if it has an end."""

    first: int | None = None
    next: int | None = None
    last: int | None = None


class _Consumer:
    """One consumer of the stream, on a connection of its own."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._arrived: deque[AbstractIncomingMessage] = deque()
        self._changed = asyncio.Event()
        self._lost: str | None = None

    async def start(self, offset: Offset) -> None:
        """Consume from an offset or a time on, or the `last` events."""
        underlying = await self._channel.get_underlay_channel()
        underlying.on_consumer_cancel_callbacks.add(lambda *_: self._lose("the stream was deleted"))
        self._channel.close_callbacks.add(lambda _, error: self._lose(str(error or "closed")))
        await self._channel.set_qos(prefetch_count=PREFETCH)
        stream = await self._channel.get_queue(EVENTS)
        await stream.consume(self._take, arguments={"x-stream-offset": offset})

    async def _take(self, message: AbstractIncomingMessage) -> None:
        self._arrived.append(message)
        self._changed.set()

    def _lose(self, reason: str) -> None:
        self._lost = reason
        self._changed.set()

    async def receive(self, within: float | None) -> list[Event]:
        """Wait for events and return all that have arrived; none if none does within this time (in seconds)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._changed.wait()
        if self._lost is not None:
            raise _ConnectionLostError(self._lost)
        self._changed.clear()
        messages = list(self._arrived)
        self._arrived.clear()
        if messages:
            await messages[-1].ack(multiple=True)
        return [_event(message) for message in messages]

    async def count(self) -> int:
        """Return how many events the stream has, as of a few seconds ago."""
        return (await self._question()).declaration_result.message_count or 0

    async def last(self) -> Event | None:
        """Return the last event, if this consumer has begun at `last`: as of now or later. None if there is none."""
        events = await self.receive(EMPTY_SECONDS) or (await self._must_receive() if await self.count() else [])
        if not events:
            return None
        while True:
            await self._question()
            more = await self.receive(0)
            events = more or events
            if len(more) < PREFETCH:
                return events[-1]

    async def _must_receive(self) -> list[Event]:
        if events := await self.receive(SILENT_SECONDS):
            return events
        raise UnreachableError(f"RabbitMQ has sent nothing of the stream {EVENTS} for {SILENT_SECONDS:.0f} s")

    async def _question(self) -> Any:
        """Ask the broker on the channel; when it has answered, what it sent before has arrived."""
        answer = await self._channel.declare_queue(EVENTS, passive=True)
        await asyncio.sleep(0)
        return answer


def _event(message: AbstractIncomingMessage) -> Event:
    offset: Any = message.headers["x-stream-offset"]
    return read_event(int(offset), message.routing_key or "", message.timestamp, message.message_id, message.body)


@contextlib.asynccontextmanager
async def _consuming(url: str, offset: Offset) -> AsyncIterator[_Consumer]:
    """Consume the stream. Raises NoEventStreamError, and _ConnectionLostError if the broker does not answer."""
    try:
        async with await connect(url, CONNECT_SECONDS) as connection, connection.channel() as channel:
            consumer = _Consumer(channel)
            await consumer.start(offset)
            yield consumer
    except ChannelNotFoundEntity as error:
        if "is down" in str(error):  # for a moment after the broker's start
            raise _ConnectionLostError(with_detail(error)) from error
        raise NoEventStreamError(
            f"there is no stream {EVENTS}: {HOW_TO_APPLY}, unless ORDERSAGA_EVENTS_RETENTION is off"
        ) from error
    except ChannelAccessRefused as error:
        raise NoEventStreamError(f"this user may not read the stream {EVENTS}: {with_detail(error)}") from error
    except (AMQPError, OSError, TimeoutError) as error:
        raise _ConnectionLostError(with_detail(error)) from error


async def find_last(url: str) -> Event | None:
    """Return the last event of the stream as of now, None if it is empty.

    Raises NoEventStreamError, and UnreachableError if the broker does not answer.
    """
    with _unreachable():
        async with _consuming(url, "last") as consumer:
            return await consumer.last()


@contextlib.contextmanager
def _unreachable() -> Iterator[None]:
    try:
        yield
    except _ConnectionLostError as error:
        raise UnreachableError(f"RabbitMQ does not answer: {error}") from error


async def read_kept(
    url: str, selection: Selection, on_progress: Callable[[Span], None] = lambda _: None
) -> AsyncGenerator[list[Event], None]:
    """Read what the stream has when the reading begins, in batches. Raises what `find_last` raises."""
    last = await find_last(url)
    if last is None or last.offset < selection.offset or _is_over(last, selection.since):
        return
    async with contextlib.aclosing(_read(url, selection, last.offset, on_progress)) as batches:
        async for batch in batches:
            yield batch


def follow(url: str, selection: Selection) -> AsyncGenerator[list[Event], None]:
    """Read what the stream has, then each event as it comes, in batches; it does not end. Raises as `find_last`."""
    return _read(url, selection, None, lambda _: None)


async def _read(
    url: str, selection: Selection, last: int | None, on_progress: Callable[[Span], None]
) -> AsyncGenerator[list[Event], None]:
    """Read from the selection's time to the offset `last`; over connections that are lost, each event once."""
    span = Span(last=last)
    lost_at: float | None = None
    while True:
        try:
            async with _consuming(url, _start(selection, span)) as consumer:
                while last is None or span.next is None or span.next <= last:
                    events = await consumer.receive(None if last is None else SILENT_SECONDS)
                    if not events:
                        raise UnreachableError(f"RabbitMQ has sent nothing for {SILENT_SECONDS:.0f} s")
                    # What the first chunk has from before the offset is left out.
                    new = [event for event in events if span.next is None or event.offset >= span.next]
                    span = Span(span.first if span.first is not None else events[0].offset, events[-1].offset + 1, last)
                    lost_at = None
                    yield [event for event in new if _is_within(event, last) and selection.selects(event)]
                    on_progress(span)
                return
        except _ConnectionLostError as error:
            lost_at = lost_at if lost_at is not None else time.monotonic()
            # If there was no event yet, there may be no broker at all.
            if span.next is None or time.monotonic() > lost_at + RECONNECT_SECONDS:
                raise UnreachableError(f"RabbitMQ does not answer: {error}") from error
        await asyncio.sleep(PAUSE_SECONDS)


def _is_over(last: Event, since: datetime | None) -> bool:
    return since is not None and last.at is not None and last.at < since.replace(microsecond=0)


def _is_within(event: Event, last: int | None) -> bool:
    return last is None or event.offset <= last


def _start(selection: Selection, span: Span) -> Offset:
    return start_of(selection) if span.next is None else span.next


def start_of(selection: Selection) -> Offset:
    """Return where reading begins: an offset, or a time that the broker looks up, which AMQP counts from 1970 on."""
    if selection.offset or selection.since is None or selection.since <= EPOCH + CLOCK_DIFFERENCE:
        return selection.offset
    return selection.since - CLOCK_DIFFERENCE

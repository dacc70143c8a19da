"""The consumers of one channel: of an inbox and its partitions, or of a single queue.

All deliveries come over one channel, so they make common batches, and one acknowledgement settles a batch of several
queues. Of each partition the broker has one active consumer; the others wait in line. AMQP does not tell a consumer
that it is active: it is, from its first delivery until it is cancelled. Nor does it count those that wait in line. But
every process also consumes the inbox itself, which has as many consumers as there are processes.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from aiormq.abc import AbstractChannel

from shared.bus.fair_shares import surplus

EVERYTHING = None
"""The intake of a consumer that is not limited, see `Bus.limit_intake`."""

OnMessage = Callable[[Any], Coroutine[Any, Any, None]]


class Level(NamedTuple):
    """The ready messages of a queue, and its consumers."""

    messages: int
    consumers: int


class Subscriptions:
    """Consumes from the first of the queues, and from the others as one of several processes that share them.

    `on_message` is what aiormq calls for a message; it is never called where a `Tap` takes the messages.
    """

    def __init__(self, channel: AbstractChannel, queues: Sequence[str], prefetch: int, on_message: OnMessage) -> None:
        self._channel = channel
        self._queues = tuple(queues)
        self._partitions = self._queues[1:]
        self._prefetch = prefetch
        self._on_message = on_message
        self._tags: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._quiet: dict[bytes, str] = {}
        self._active: set[str] = set()
        self._left_at: dict[str, float] = {}
        self._became_active = asyncio.Event()
        self._tested = 0

    @property
    def consumers(self) -> Mapping[str, str]:
        """The tag of the consumer of each queue that is consumed now."""
        return {**self._tags}

    @property
    def active(self) -> frozenset[str]:
        """The partitions that this process is the one to work on, as far as it knows."""
        return frozenset(self._active)

    @property
    def is_idle(self) -> bool:
        """Whether none of the consumers has got a message yet."""
        return len(self._quiet) == len(self._tags)

    def delivered(self, consumer: bytes) -> None:
        """Note that a message came for the consumer with this tag."""
        queue = self._quiet.pop(consumer, None)
        if queue is not None and queue in self._partitions:
            self._active.add(queue)
            self._became_active.set()

    async def has_become_active(self, within: float) -> bool:
        """Wait until this process has another partition to work on, at most so many seconds; return whether it has."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._became_active.wait()
        has_become, self._became_active = self._became_active.is_set(), asyncio.Event()
        return has_become

    async def begin(self, intake: int | None) -> None:
        """Consume with this many messages ahead of acknowledgements, from each queue: the usual number if None.

        With a limit, it is one queue at a time that is consumed, since each consumer has its own.
        """
        if intake == 0:
            return
        await self._channel.basic_qos(prefetch_count=self._prefetch if intake is EVERYTHING else intake)
        # The inbox last: who counts as a process there is in the lines of all partitions.
        for queue in reversed(self._queues) if intake is EVERYTHING else [await self._next_tested()]:
            await self._consume(queue)

    async def cancel(self) -> None:
        """End all consumers; what they have delivered is still to be acknowledged."""
        for queue in reversed([*self._tags]):
            await self._cancel(queue)

    async def levels(self) -> dict[str, Level]:
        """Ask for the level of each queue that is consumed."""
        return {queue: await self._level(queue) for queue in [*self._tags]}

    async def share(self, processes: int, patience: float) -> list[str]:
        """Go to the end of the line of the partitions that others are to have; return their names.

        What has been delivered of them is still handled here: giving it back would count as a failed delivery, and the
        next process would get it after newer messages. What comes back within `patience` seconds stays, as no other
        process waits for it: one that counts was started with another number of partitions, or is testing a breaker.
        """
        active = [number for number, queue in enumerate(self._partitions) if queue in self._active]
        now = time.monotonic()
        left = [
            queue
            for queue in (self._partitions[number] for number in surplus(active, len(self._partitions), processes))
            if now - self._left_at.get(queue, -math.inf) > patience
        ]
        for queue in left:
            self._left_at[queue] = now
            await self._cancel(queue)
            await self._consume(queue)
        return left

    async def test_next(self, intake: int) -> None:
        """Consume from another queue: with a limit it is one at a time, and another process may have this one."""
        if self._partitions:
            await self.cancel()
            await self.begin(intake)

    async def _next_tested(self) -> str:
        """Return the next queue in turn that has messages, else the next."""
        begin = self._tested = (self._tested + 1) % len(self._queues)
        in_turn = self._queues[begin:] + self._queues[:begin]
        for queue in in_turn if self._partitions else ():
            if (await self._level(queue)).messages:
                self._tested = self._queues.index(queue)
                return queue
        return in_turn[0]

    async def _level(self, queue: str) -> Level:
        answer = await self._channel.queue_declare(queue, passive=True)
        return Level(answer.message_count or 0, answer.consumer_count or 0)

    async def _consume(self, queue: str) -> None:
        tag = f"{queue}#{next(self._numbers)}"  # known before the answer, which the first message may overtake
        self._tags[queue] = tag
        self._quiet[tag.encode()] = queue
        await self._channel.basic_consume(queue, self._on_message, consumer_tag=tag)

    async def _cancel(self, queue: str) -> None:
        tag = self._tags.pop(queue)
        await self._channel.basic_cancel(tag)
        self._quiet.pop(tag.encode(), None)
        self._active.discard(queue)

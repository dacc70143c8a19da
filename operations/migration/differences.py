"""Compares the broker's queues and exchanges with those of this release, and says in words how they differ.

The comparison is the broker's own: a declaration that differs changes nothing, and its refusal names the first
argument that differs. Adopting that one and asking again gives the next.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from aio_pika.abc import AbstractConnection

from shared import topology
from shared.bus.declaring import Declarer, describe_stream_difference
from shared.topology import Queue

Value = int | str | None
"""An argument's value, None if it is not set."""

_REFUSAL = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for .*: received (?P<ours>.*?) but current is (?P<theirs>.*)", re.DOTALL
)
_TYPED = re.compile(r"the value '(?P<value>.*)' of type '(?P<type>\w+)'", re.DOTALL)
_MOST_DIFFERENCES = 20


class Difference(NamedTuple):
    """An argument of which the broker's value is not that of this release."""

    argument: str
    ours: Value
    theirs: Value

    def __str__(self) -> str:
        """Return it in words, such as `x-delivery-limit is 20, this release declares 50`."""
        current = "is not set" if self.theirs is None else f"is {self.theirs}"
        return f"{self.argument} {current}, this release {_declares(self.ours)}"


@dataclass(frozen=True, slots=True)
class QueueState:
    """A declared queue that needs work."""

    queue: Queue
    differences: Sequence[str] = ()
    """How it differs, in words."""
    unfinished: bool = False
    """A migration was interrupted: some of its messages are in its migration queue."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What differs between a broker and this release."""

    exchanges: Mapping[str, str] = field(default_factory=dict)
    """The exchanges that differ, and how."""
    queues: Sequence[QueueState] = ()
    """The queues that differ, or of which a migration was interrupted."""
    unfinished: bool = False
    """A migration was interrupted."""
    event_stream: str | None = None
    """How the stream of events differs, and where to read what to do."""


async def examine(connection: AbstractConnection, options: topology.TopologyOptions) -> Examination:
    """Compare without changing anything; what is missing does not count. Raises aio-pika's errors.

    Partitions are left out: they are replaced by going back to one and dividing the inboxes again.
    """
    declarer = Declarer(connection, await connection.channel())
    exchanges = {
        exchange.name: in_words(words)
        for exchange in topology.exchanges()
        if await declarer.exchange_exists(exchange) and (words := await declarer.difference(exchange)) is not None
    }
    unfinished = await declarer.exchange_exists(topology.MIGRATION)
    queues = [queue for queue in topology.queues(options=options) if not topology.is_partition(queue.name)]
    states = [await _examine_queue(declarer, queue, unfinished) for queue in queues]
    found = [state for state in states if state.differences or state.unfinished]
    stream = await _examine_stream(declarer, options.events_retention)
    await declarer.channel.close()
    return Examination(exchanges, found, unfinished, stream)


async def _examine_queue(declarer: Declarer, queue: Queue, some_unfinished: bool) -> QueueState:
    unfinished = some_unfinished and await declarer.queue_exists(topology.migration_queue(queue).name)
    if not await declarer.queue_exists(queue.name):
        return QueueState(queue, (), unfinished)
    differences: list[str] = []
    adopted: Queue | None = queue
    while adopted is not None and len(differences) < _MOST_DIFFERENCES:
        words = await declarer.difference(adopted)
        if words is None:
            break
        found = read(words)
        if found is not None or not differences:  # after the first, a refusal may be about values that do not fit
            differences.append(in_words(words))
        adopted = found and adopt(adopted, found)
    return QueueState(queue, differences, unfinished)


async def _examine_stream(declarer: Declarer, retention: str) -> str | None:
    stream = topology.event_stream(retention)
    if not retention or not await declarer.queue_exists(stream.name):
        return None
    words = await declarer.difference(stream)
    return words and describe_stream_difference(words, retention)


def read(words: str) -> Difference | None:
    """Read the broker's refusal of a declaration; return None if it says something else."""
    found = _REFUSAL.search(words)
    if found is None:
        return None
    return Difference(found["argument"], _value(found["ours"]), _value(found["theirs"]))


def in_words(words: str) -> str:
    """Return what the broker's refusal says, in our words where they are known."""
    return str(read(words) or words)


def adopt(queue: Queue, found: Difference) -> Queue | None:
    """Return the queue with the broker's value of an argument; None for what is not an argument, such as `durable`."""
    if not found.argument.startswith("x-") or queue.arguments.get(found.argument) == found.theirs:
        return None
    others = {name: value for name, value in queue.arguments.items() if name != found.argument}
    return replace(queue, arguments=others if found.theirs is None else others | {found.argument: found.theirs})


def _value(described: str) -> Value:
    if described == "none":
        return None
    typed = _TYPED.fullmatch(described)
    text = typed["value"] if typed else described.removeprefix("'").removesuffix("'")
    is_number = re.fullmatch(r"-?[0-9]+", text) and (typed is None or typed["type"] != "longstr")
    return int(text) if is_number else text


def _declares(value: Value) -> str:
    return "does not set it" if value is None else f"declares {value}"

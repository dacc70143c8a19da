"""Replaces the queues that differ from those of this release while services run, and loses no message.

    1. divert    each gets a migration queue with the same bindings, which has what comes through them from now on
    2. empty     the messages that waited are moved there, while the services go on consuming
    3. delete    one queue after the other: its bindings go, it is emptied of what has come since, and deleted at once
    4. declare   as this release declares it, with its bindings
    5. return    the migration queue gets nothing more, and its messages are moved back
    6. recover   what a service holds of a deleted queue, and would lose if it ended now, is sent again from the records
    7. clean up  the migration queue is deleted, once nothing waits in it and nobody holds a message of it

From step 1 on, every message that comes through a binding is in at least one queue, and those that come twice change
nothing. What is sent to a queue by its name alone, such as a replay, is not diverted: it is lost if it comes in the few
milliseconds between the last look into the queue and its deletion (docs/adr/0018). While the queue does not exist, such
a message is returned to its sender, who sends it again.

A migration that was interrupted is repeated: a migration queue that is left goes through the steps that are missing.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

from operations.dead_letters.connection import record_waiting
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.service import DeadLetterService
from operations.errors import CommandError, UnfinishedRestoreError, UnreachableError
from operations.migration.differences import Examination, QueueState, examine, in_words
from operations.migration.moving import NAME, Readdress, away, back, move
from operations.migration.under_way import hold_lock, mark_begun
from operations.reading.broker import QueueLevel, queue_level
from operations.reading.connection import open_mongodb
from operations.recovery import RecoveryReport, recover
from operations.settings import Stack
from operations.stack.broker_topology import CONNECT_SECONDS
from shared import topology
from shared.bus.amqp.connecting import connect
from shared.bus.declaring import PAUSE_BEFORE_DECLARING_AGAIN, Declarer, not_permitted
from shared.database import Database
from shared.failpoints import MIGRATION_DECLARED, MIGRATION_DELETED, MIGRATION_EMPTIED, Failpoint, nothing_fails
from shared.outage_words import with_detail
from shared.services import CONSOLE
from shared.topology import DEAD_LETTERS, Queue, migration_exchange, migration_queue
from shared.unfinished_restore import unfinished_restore

SETTLE_SECONDS = 2.0
"""The time in which services finish what they took before their queue had a migration queue."""

ROUTED_SECONDS = 0.5
"""After the last binding is gone, a message that was just routed may still be on its way to the queue."""

STALLED_SECONDS = 60.0
"""Messages that are not delivered for so long do not come: another consumer has the queue for itself."""

POLL_SECONDS = 0.05

BEFORE = timedelta(hours=1)
"""Events from so long before the first run on are published again, as by `ordersaga recover`."""

_EMPTY = QueueLevel(0, 0)


class ExchangeDiffersError(CommandError):
    """An exchange differs, which a migration does not replace."""


class StepRefusedError(CommandError):
    """The broker answers, and refuses a step."""


@dataclass(slots=True)
class MigrationReport:
    """What a migration did, or what it would do."""

    found: Examination
    moved: dict[str, int] = field(default_factory=dict)
    """The number of messages that were moved back, or of dead letters that were recorded, by queue.

    What came while its queue was being replaced may count twice, as it is in two queues.
    """
    still_differing: dict[str, str] = field(default_factory=dict)
    """Queues that somebody has declared in another form again, and the broker's words."""
    recovery: RecoveryReport | None = None
    """What was sent again; None if nothing had to be replaced."""

    @property
    def ok(self) -> bool:
        """True if all queues are now as this release declares them, or would be."""
        return not self.still_differing and not self.found.exchanges and (self.recovery is None or self.recovery.ok)

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON document shows it."""
        return {
            "ok": self.ok,
            "queues": [self._queue_as_json(state) for state in self.found.queues],
            "exchanges": [{"name": name, "difference": words} for name, words in self.found.exchanges.items()],
            "eventStream": self.found.event_stream,
            "recovery": self.recovery and self.recovery.as_json(),
        }

    def _queue_as_json(self, state: QueueState) -> dict[str, Any]:
        name = state.queue.name
        return {
            "name": name,
            "differences": list(state.differences),
            "unfinished": state.unfinished,
            "moved": self.moved.get(name),
            "stillDiffers": self.still_differing.get(name),
        }


async def preview(stack: Stack) -> MigrationReport:
    """Return what differs, without changing anything. Raises UnreachableError, and StartError without the rights."""
    async with _connected(stack) as connection:
        return MigrationReport(await examine(connection, stack.topology_options))


async def migrate(stack: Stack, *, by: str, failpoint: Failpoint = nothing_fails) -> MigrationReport:
    """Replace the queues that differ, and finish a migration that was interrupted.

    Raises MigrationRunsError, ExchangeDiffersError and UnfinishedRestoreError with nothing changed. Raises StartError
    if the user may not declare, StepRefusedError if the broker refuses something else, and UnreachableError if a server
    does not answer. A repetition continues.
    """
    purpose = "the migration"
    async with _connected(stack) as connection, open_mongodb(stack.mongodb_url, purpose=purpose, name=NAME) as client:
        await hold_lock(connection)
        report = MigrationReport(await examine(connection, stack.topology_options))
        _refuse_exchanges(report.found)
        if not report.found.queues and not report.found.unfinished:
            return report
        database = client[CONSOLE.database_in(stack.database_prefix)]
        await _refuse_unfinished_restore(database)
        await DeadLetterService(database).prepare()
        migration = _Migration(stack.amqp_url, connection, LetterRecords(database), report, failpoint)
        since = await mark_begun(await migration.declarer()) - BEFORE
        await migration.run()
        # A queue that differs again exists, and the declaration of the topology would only refuse it.
        declare = not report.still_differing
        report.recovery = await recover(stack, by=by, why=_why(report), since=since, declare=declare)
        await migration.clean_up()
    return report


def _why(report: MigrationReport) -> str:
    names = ", ".join(state.queue.name for state in report.found.queues)
    return f"queues were replaced: {names}"[:500] if names else "a migration that was interrupted is finished"


async def _refuse_unfinished_restore(database: Database) -> None:
    """Refuse what the recovery at the end would refuse, before anything is changed."""
    if reason := await unfinished_restore(database):
        raise UnfinishedRestoreError(f"{reason}. Nothing was changed")


def _refuse_exchanges(found: Examination) -> None:
    if found.exchanges:
        named = "; ".join(f"exchange {name}: {words}" for name, words in found.exchanges.items())
        raise ExchangeDiffersError(
            f"{named}. Nothing was changed: other programs' bindings would be lost with an exchange, so stop the "
            "services, delete it, and run `ordersaga topology apply`"
        )


@contextlib.asynccontextmanager
async def _connected(stack: Stack) -> AsyncIterator[AbstractConnection]:
    try:
        async with await connect(stack.amqp_url, CONNECT_SECONDS) as connection:
            yield connection
    except ChannelAccessRefused as error:
        raise not_permitted(error) from error
    except (ChannelPreconditionFailed, ChannelNotFoundEntity) as error:
        raise StepRefusedError(
            f"RabbitMQ refuses a step ({with_detail(error)}): put that right, and run it again"
        ) from error
    except (AMQPError, OSError, TimeoutError) as error:
        raise UnreachableError(f"RabbitMQ does not answer: {with_detail(error)}") from error


class _Migration:
    """One run over the queues of a report."""

    def __init__(
        self,
        amqp_url: str,
        connection: AbstractConnection,
        letters: LetterRecords,
        report: MigrationReport,
        failpoint: Failpoint,
    ) -> None:
        self._amqp_url = amqp_url
        self._connection = connection
        self._letters = letters
        self._report = report
        self._queues = [state.queue for state in report.found.queues]
        self._failpoint = failpoint

    async def declarer(self) -> Declarer:
        """Return a declarer on the connection that holds the lock: whoever loses it changes nothing any more."""
        return Declarer(self._connection, await self._connection.channel())

    async def run(self) -> None:
        """Replace the queues, and return their messages."""
        declarer = await self.declarer()
        for exchange in topology.exchanges():
            await declarer.declare_exchange(exchange)
        await self._delete_all(declarer, [state.queue for state in self._report.found.queues if state.differences])
        await asyncio.sleep(PAUSE_BEFORE_DECLARING_AGAIN)
        for queue in self._queues:
            await self._declare(declarer, queue)
        self._failpoint(MIGRATION_DECLARED)
        for queue in self._queues:
            await declarer.unbind(_through_exchange(migration_queue(queue), queue))
        await asyncio.sleep(ROUTED_SECONDS)
        for queue in self._queues:
            await self._return(queue)

    async def clean_up(self) -> None:
        """Delete what only the migration needed; last the exchange that shows that it is unfinished."""
        channel = await self._connection.channel()
        for queue in self._queues:
            await self._return(queue)  # nothing, unless an acknowledgement was lost
            await channel.queue_delete(migration_queue(queue).name)
            await channel.exchange_delete(migration_exchange(queue).name)
        await channel.exchange_delete(topology.MIGRATION.name)

    async def _delete_all(self, declarer: Declarer, queues: Sequence[Queue]) -> None:
        """Delete queues, once their messages are in their migration queues."""
        if not queues:
            return
        for queue in queues:
            await self._divert(declarer, queue)
        for queue in queues:
            await self._empty(queue)
        await asyncio.sleep(SETTLE_SECONDS)
        for queue in queues:
            await self._delete(declarer, queue)
        self._failpoint(MIGRATION_DELETED)

    async def _divert(self, declarer: Declarer, queue: Queue) -> None:
        await declarer.declare_exchange(migration_exchange(queue))
        await declarer.unbind(_only_exchange(queue))  # an interrupted run may have left it: copies would come back here
        await declarer.declare_queue(_through_exchange(migration_queue(queue), queue))

    async def _delete(self, declarer: Declarer, queue: Queue) -> None:
        """Delete a queue if it still differs, at once after it was found empty.

        What its consumers hold then is void: it is sent again by the recovery.
        """
        if await declarer.difference(queue) is None:
            return
        bound = replace(queue, bindings=(*queue.bindings, *topology.routes_to(queue.name)))  # by other options as well
        await declarer.unbind(bound)
        while await self._empty(queue):
            await declarer.unbind(bound)  # an older process that declares may have bound it again
        self._failpoint(MIGRATION_EMPTIED)
        await declarer.channel.queue_delete(queue.name)

    async def _empty(self, queue: Queue) -> int:
        """Move away what waits in a queue now; return how many messages waited."""
        waiting = (await self._level(queue.name)).messages
        moved = await self._drain(queue.name, queue, away, waiting)
        if queue.name == DEAD_LETTERS:
            self._note_moved(queue, moved)
        return waiting

    async def _drain(self, source: str, queue: Queue, readdress: Readdress, number: int) -> int:
        """Move `number` messages of a queue, or what other consumers leave of it; return how many."""
        moved, progress_at = 0, time.monotonic()
        while moved < number and (await self._level(source)).messages:
            if more := await self._move(source, queue, readdress, number - moved):
                moved += more
                progress_at = time.monotonic()
            elif time.monotonic() > progress_at + STALLED_SECONDS:
                raise UnreachableError(f"RabbitMQ delivers none of the messages of {source}. Run it again later")
        return moved

    async def _move(self, source: str, queue: Queue, readdress: Readdress, number: int) -> int:
        """Move messages of a queue; dead letters are recorded instead, with their senders."""
        if queue.name == DEAD_LETTERS:
            return await record_waiting(self._amqp_url, self._letters, source)
        return await move(self._amqp_url, source, queue, readdress, number)

    async def _declare(self, declarer: Declarer, queue: Queue) -> None:
        await declarer.declare_exchange(migration_exchange(queue))
        self._note_moved(queue, 0)
        if (words := await declarer.declare_queue(_through_exchange(queue, queue))) is not None:
            self._report.still_differing[queue.name] = in_words(words)

    async def _return(self, queue: Queue) -> None:
        """Move back all that is in a migration queue, until nothing waits in it and nobody holds a message of it."""
        waiting, give_up_at = migration_queue(queue).name, time.monotonic() + STALLED_SECONDS
        while (level := await self._level(waiting)) != _EMPTY:
            if level.messages:
                self._note_moved(queue, await self._drain(waiting, queue, back, level.messages))
                give_up_at = time.monotonic() + STALLED_SECONDS
            elif time.monotonic() > give_up_at:
                raise UnreachableError(f"somebody else consumes from {waiting}: end that, and run it again")
            else:
                await asyncio.sleep(POLL_SECONDS)  # a connection that has ended gives back what it held

    def _note_moved(self, queue: Queue, number: int) -> None:
        self._report.moved[queue.name] = self._report.moved.get(queue.name, 0) + number

    async def _level(self, name: str) -> QueueLevel:
        """Return the level of a queue; one that does not exist is empty.

        RabbitMQ says (0, 0) of a queue whose leader does not answer within a quarter of a second. So an empty one is
        asked for a message, which waits for the leader, and counted again.
        """
        level = await queue_level(self._connection, name)
        if level is None or level.messages:
            return level or _EMPTY
        if await self._has_message(name):
            return QueueLevel(1, level.consumers)
        return await queue_level(self._connection, name) or _EMPTY

    async def _has_message(self, name: str) -> bool:
        async with self._connection.channel() as channel:
            queue = await channel.get_queue(name, ensure=False)
            message = await queue.get(fail=False, timeout=STALLED_SECONDS)
            if message is not None:
                await message.reject(requeue=True)
            return message is not None


def _only_exchange(queue: Queue) -> Queue:
    """Return the queue with only a binding to its migration exchange."""
    return replace(queue, bindings=((migration_exchange(queue).name, ""),))


def _through_exchange(queue: Queue, owner: Queue) -> Queue:
    """Return the queue with a binding to its owner's migration exchange."""
    return replace(queue, bindings=(*queue.bindings, (migration_exchange(owner).name, "")))

"""Access to dead letters for commands: directly over MongoDB and RabbitMQ, so no other process has to run."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import uuid4

from operations.dead_letters.ingest import BATCH, PREFETCH, Ingest
from operations.dead_letters.notices import handlers
from operations.dead_letters.outcome import ReplayOutcome
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.replaying import Progress, Replayer
from operations.dead_letters.replays import UNFINISHED, ReplayLeaseLostError, ReplayRecords
from operations.dead_letters.service import DeadLetterService
from operations.errors import UnreachableError
from operations.reading.broker import count_messages
from operations.reading.connection import BUS_SECONDS, open_bus, open_mongodb
from operations.settings import Stack
from shared.bus.batch_loop import BatchAbandonedError, BatchLoop
from shared.bus.consumer import Consumer
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.clock import utc_now
from shared.database import Database, Document, translate_error
from shared.errors import BusUnavailableError
from shared.services import CONSOLE
from shared.topology import DEAD_LETTERS, OPERATIONS_INBOX

NAME = "ordersaga-dead-letters"
"""The name of a command's connections."""

QUIET_SECONDS = 2.0
"""A waiting letter that is not delivered within this time went to another consumer."""

RECORD_SECONDS = 60.0
"""The time limit for recording a batch of letters: 50 of them may have 5 MB each."""

POLL_SECONDS = 0.25


@dataclass(frozen=True)
class DeadLetterConnection:
    """The dead letters of a stack."""

    service: DeadLetterService
    database: Database
    stack: Stack


@contextlib.asynccontextmanager
async def connect(
    stack: Stack, on_broker_away: Callable[[UnreachableError], None] | None = None
) -> AsyncIterator[DeadLetterConnection]:
    """Connect to the stack's MongoDB and record the letters that wait in the broker.

    Without the broker, `on_broker_away` is told why, for callers who only read what is recorded. Raises
    UnreachableError if MongoDB does not answer, or the broker while there is nobody to tell.
    """
    async with open_mongodb(stack.mongodb_url, purpose="access to the dead letters", name=NAME) as client:
        database: Database = client[CONSOLE.database_in(stack.database_prefix)]
        service = DeadLetterService(database)
        await service.prepare()
        try:
            await record_waiting(stack.amqp_url, LetterRecords(database))
        except UnreachableError as error:
            if on_broker_away is None:
                raise
            on_broker_away(error)
        yield DeadLetterConnection(service, database, stack)


async def record_waiting(amqp_url: str, records: LetterRecords, queue: str = DEAD_LETTERS) -> int:
    """Record the dead letters that wait in the broker; return how many. Raises UnreachableError."""
    waiting = await _count_waiting(amqp_url, queue)
    if not waiting:
        return 0
    taken = 0
    async with _consume(amqp_url, queue) as bus:
        ingest = Ingest(bus, records)
        while taken < waiting:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    deliveries = await bus.receive(BATCH)
            except TimeoutError:
                break  # the operations process took the others
            try:
                async with asyncio.timeout(RECORD_SECONDS):
                    await ingest.take(deliveries)
            except (TimeoutError, BatchAbandonedError) as error:
                why = str(error) or f"not done in {RECORD_SECONDS:.0f} s"
                raise UnreachableError(
                    f"the waiting dead letters could not be recorded, and stay in the queue: {why}"
                ) from error
            taken += len(deliveries)
            if taken >= waiting:
                waiting = taken + await _count_waiting(amqp_url, queue)
    return taken


async def follow(connection: DeadLetterConnection, replay_id: str, on_progress: Progress) -> Document:
    """Run a replay, or watch while another process runs it, until it has ended; return its record.

    Raises UnreachableError when the broker stays unavailable: the operations process, or the next command, continues.
    """
    replays = ReplayRecords(connection.database)
    async with open_bus(connection.stack.amqp_url, None, name=NAME) as bus, _learning_outcomes(connection, replay_id):
        replayer = Replayer(connection.database, Publisher(bus), bus_timeout=BUS_SECONDS)
        while True:
            token = uuid4().hex
            if (replay := await replays.acquire(token, replay_id)) is not None:
                try:
                    return await replayer.run(replay, token, on_progress)
                except ReplayLeaseLostError:
                    continue
                except BusUnavailableError as error:
                    raise UnreachableError(f"{error}; the rest of the replay runs later") from error
            found = await replays.find(replay_id)
            if found is None or found["status"] not in UNFINISHED:
                return found or {}
            on_progress(found)
            await asyncio.sleep(POLL_SECONDS)


async def await_outcome(
    connection: DeadLetterConnection, replay_id: str, within: float, on_progress: Callable[[ReplayOutcome], None]
) -> ReplayOutcome:
    """Wait up to `within` seconds until every letter of an ended replay has an outcome.

    Consumes dead letters and notices meanwhile, so that it works without an operations process.
    """
    deadline = time.monotonic() + within
    async with _consuming(connection):
        while True:
            outcome = await connection.service.outcome(replay_id)
            on_progress(outcome)
            if not outcome.unknown or time.monotonic() > deadline:
                return outcome
            await asyncio.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def _learning_outcomes(connection: DeadLetterConnection, replay_id: str) -> AsyncIterator[None]:
    """Record the outcomes of a careful replay, which waits for them; no other replay needs them to run."""
    replay = await connection.service.replay(replay_id)
    async with _consuming(connection) if replay and replay.get("careful") else contextlib.nullcontext():
        yield


@contextlib.asynccontextmanager
async def _consuming(connection: DeadLetterConnection) -> AsyncIterator[None]:
    """Consume the two queues of the operations process, beside it or in its place."""
    records, url = LetterRecords(connection.database), connection.stack.amqp_url
    async with _consume(url, DEAD_LETTERS) as letters, _consume(url, OPERATIONS_INBOX) as notices:
        loops: list[BatchLoop] = [
            Ingest(letters, records),
            Consumer(notices, OPERATIONS_INBOX, handlers(records, utc_now), translate_error=translate_error),
        ]
        tasks = [asyncio.create_task(loop.run()) for loop in loops]
        try:
            yield
        finally:
            await asyncio.gather(*(loop.stop() for loop in loops))
            await asyncio.gather(*tasks, return_exceptions=True)


async def abandoned(connection: DeadLetterConnection) -> list[str]:
    """Return the unfinished replays that no process runs."""
    return await ReplayRecords(connection.database).abandoned()


async def _count_waiting(amqp_url: str, queue: str) -> int:
    return (await count_messages(amqp_url, [queue]))[queue] or 0


def _consume(amqp_url: str, queue: str) -> "contextlib.AbstractAsyncContextManager[RabbitBus]":
    return open_bus(amqp_url, queue, name=NAME, prefetch=PREFETCH)

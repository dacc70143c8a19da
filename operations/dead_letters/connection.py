"""Dead letters for a command: over MongoDB and RabbitMQ directly, so that it works while no other process runs."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import uuid4

from operations.dead_letters.ingest import BATCH, PREFETCH, Ingest
from operations.dead_letters.notices import handlers
from operations.dead_letters.outcome import Outcome
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.replaying import (
    CANCELLING,
    RUNNING,
    LostLeaseError,
    Progress,
    Replayer,
    Replays,
)
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
from shared.database import Database, Document, as_ours
from shared.errors import BusUnavailableError
from shared.topology import DEAD_LETTERS, OPERATIONS_INBOX

NAME = "ordersaga-dead-letters"
"""The name of a command's connections."""

QUIET_SECONDS = 2.0
"""A letter that waited and has not come in this time went to somebody else."""

RECORD_SECONDS = 60.0
"""How long a command waits for a batch of letters to be recorded; 50 of them may have 5 MB each."""

POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Connected:
    """The dead letters of a stack, and where they are."""

    letters: DeadLetterService
    database: Database
    stack: Stack


@contextlib.asynccontextmanager
async def connected(stack: Stack) -> AsyncIterator[Connected]:
    """Connect to the stack's MongoDB and take in what waits in the broker; raises UnreachableError."""
    async with open_mongodb(stack.mongodb_url, purpose="the dead letters", name=NAME) as client:
        database: Database = client[f"{stack.database_prefix}_operations"]
        letters = DeadLetterService(database)
        await letters.prepare()
        await take_in(stack.amqp_url, LetterRecords(database))
        yield Connected(letters, database, stack)


async def take_in(amqp_url: str, records: LetterRecords) -> int:
    """Record the dead letters that wait in the broker; returns how many. Raises UnreachableError."""
    waiting = await _waiting(amqp_url)
    if not waiting:
        return 0
    taken = 0
    async with _consume(amqp_url, DEAD_LETTERS) as bus:
        ingest = Ingest(bus, records)
        while taken < waiting:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    deliveries = await bus.receive(BATCH)
            except TimeoutError:
                break  # the operations process has taken the others
            try:
                async with asyncio.timeout(RECORD_SECONDS):
                    await ingest.take(deliveries)
            except (TimeoutError, BatchAbandonedError) as error:
                why = str(error) or f"not done in {RECORD_SECONDS:.0f} s"
                raise UnreachableError(
                    f"the letters that wait could not be recorded, they come again: {why}"
                ) from error
            taken += len(deliveries)
            if taken >= waiting:
                waiting = taken + await _waiting(amqp_url)
    return taken


async def follow(connected_: Connected, replay_id: str, on_progress: Progress) -> Document:
    """Carry a replay out, or watch while somebody else does, until it has ended; returns its record.

    Raises UnreachableError when the broker stays away: the operations process, or the next command, goes on with it.
    """
    replays = Replays(connected_.database)
    async with open_bus(connected_.stack.amqp_url, None, name=NAME) as bus:
        replayer = Replayer(connected_.database, Publisher(bus), patience=BUS_SECONDS)
        while True:
            token = uuid4().hex
            if (replay := await replays.take_over(token, replay_id)) is not None:
                try:
                    return await replayer.carry_out(replay, token, on_progress)
                except LostLeaseError:
                    continue
                except BusUnavailableError as error:
                    raise UnreachableError(f"{error}; what is left of the replay is done later") from error
            found = await replays.find(replay_id)
            if found is None or found["status"] not in (RUNNING, CANCELLING):
                return found or {}
            on_progress(found)
            await asyncio.sleep(POLL_SECONDS)


async def await_outcome(
    connected_: Connected, replay_id: str, within: float, on_progress: Callable[[Outcome], None]
) -> Outcome:
    """Wait, at most `within` seconds, until it is known what became of every letter of an ended replay.

    Takes in dead letters and notices meanwhile, so that it works while no operations process runs.
    """
    deadline = time.monotonic() + within
    async with _taking_in(connected_):
        while True:
            outcome = await connected_.letters.outcome(replay_id)
            on_progress(outcome)
            if not outcome.unknown or time.monotonic() > deadline:
                return outcome
            await asyncio.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def _taking_in(connected_: Connected) -> AsyncIterator[None]:
    """Do what the operations process does with its two queues, beside it or in its place."""
    records, url = LetterRecords(connected_.database), connected_.stack.amqp_url
    async with _consume(url, DEAD_LETTERS) as letters, _consume(url, OPERATIONS_INBOX) as notices:
        taking: list[BatchLoop] = [
            Ingest(letters, records),
            Consumer(notices, OPERATIONS_INBOX, handlers(records, utc_now), as_ours=as_ours),
        ]
        tasks = [asyncio.create_task(loop.run()) for loop in taking]
        try:
            yield
        finally:
            await asyncio.gather(*(loop.stop() for loop in taking))
            await asyncio.gather(*tasks, return_exceptions=True)


async def unfinished(connected_: Connected) -> list[str]:
    """The replays that somebody began and nobody carries out."""
    return await Replays(connected_.database).left_behind()


async def _waiting(amqp_url: str) -> int:
    return (await count_messages(amqp_url, [DEAD_LETTERS]))[DEAD_LETTERS] or 0


def _consume(amqp_url: str, queue: str) -> "contextlib.AbstractAsyncContextManager[RabbitBus]":
    return open_bus(amqp_url, queue, name=NAME, prefetch=PREFETCH)

"""kill -9 of the operations process while it records and replays dead letters: none is lost, none is sent twice.

The process ends itself at a named point (shared/failpoints.py), or is killed at any moment; then another starts.
"""

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from pymongo import AsyncMongoClient

from operations.dead_letters.connection import record_waiting
from operations.dead_letters.filters import Filters
from operations.dead_letters.notices import handlers
from operations.dead_letters.patching import read_patch
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.service import DeadLetterService
from shared import failpoints as at
from shared import topology
from shared.bus import Envelope
from shared.clock import utc_now
from shared.contracts import Message, RefundPayment
from shared.database import Database, Document
from tests.integration.test_dead_letters import consuming
from tests.support import warm_processes
from tests.support.buses import RabbitHarness
from tests.support.eventually import eventually
from tests.support.processes import Process, Stack, run_stack
from tests.support.seeds import IS_LONG_FORM

LETTERS = 10_000 if IS_LONG_FORM else 2_000
REPLAYED = 300
CAREFULLY = 60
EDITED = 160
AT_ONCE = 50
"""Letters that a replay claims together: half of what it may send per second."""
INBOX = topology.PAYMENT_INBOX


@pytest.fixture
async def harness(clean_broker: str) -> AsyncIterator[RabbitHarness]:
    async with RabbitHarness.open(clean_broker) as opened:
        yield opened


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    async with run_stack(mongodb_url, clean_broker, database_prefix) as started:
        yield started


@pytest.fixture
async def database(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with AsyncMongoClient[Document](mongodb_url, tz_aware=True, w="majority") as client:
        yield client[f"{database_prefix}_operations"]


def dead(number: int) -> Envelope:
    return Envelope(
        body=b'{"orderId": "o%d"}' % number,
        exchange=topology.DEAD_LETTERS,
        routing_key="payment.refund",
        type="payment.refund",
        correlation_id=f"o{number}",
        message_id=f"m{number}",
        headers={"x-queue": INBOX, "x-error-type": "KeyError", "x-error-message": f"no card of o{number}"},
    )


async def send(harness: RabbitHarness, first: int, after_last: int) -> None:
    bus = await harness.bus()
    for start in range(first, after_last, 1000):
        await bus.publish([dead(number) for number in range(start, min(start + 1000, after_last))])


@pytest.mark.long_form
async def test_letters_are_recorded_once_each_despite_kills(
    harness: RabbitHarness, stack: Stack, database: Database
) -> None:
    letters = database["dead_letters"]
    await send(harness, 0, LETTERS // 2)
    points = (f"{at.LETTERS_TAKEN}#3", f"{at.LETTERS_RECORDED}#4", f"{at.LETTERS_ACKNOWLEDGED}#5")
    victim, *doomed = [await stack.launch("console", **how) for how in ({}, *({"crash_at": point} for point in points))]
    # Probably in the middle of a batch: the test does not wait for a step.
    await at_least(database, LETTERS // 4, victim)
    await stack.kill(victim)
    await send(harness, LETTERS // 2, LETTERS)
    for process, point in zip(doomed, points, strict=True):
        await eventually(lambda: not process.alive, 120, f"the process to die at {point}")  # noqa: B023
    assert await letters.count_documents({}) < LETTERS
    (process,) = await stack.start("console")
    await at_least(database, LETTERS, process)
    await harness.take_from(topology.DEAD_LETTERS, 0)
    assert await letters.count_documents({}) == LETTERS
    assert len(await letters.distinct("messageId")) == LETTERS
    (group,) = await DeadLetterService(database).groups()
    assert (group.total, group.open) == (LETTERS, LETTERS)


async def at_least(database: Database, number: int, process: Process) -> None:
    """Wait until that many letters are recorded."""

    async def are_there() -> bool:
        assert process.alive, "".join(process.output[-20:])
        return await database["dead_letters"].count_documents({}) >= number

    await eventually(are_there, 120, f"{number} letters")


async def test_a_bulk_replay_continues_after_a_kill_at_any_step(
    harness: RabbitHarness, mongodb_url: str, database: Database
) -> None:
    """Only messages that were published and not noted are sent again, with the same message id."""
    service = DeadLetterService(database)
    await service.prepare()
    await send(harness, 0, REPLAYED)
    await record_waiting(harness.url, LetterRecords(database))
    replay_id = await service.start_replay(Filters(), by="ann", why="fixed", rate=AT_ONCE * 2)
    for point in (at.REPLAY_CLAIMED, at.REPLAY_PUBLISHED, at.REPLAY_RECORDED):
        assert await work(replay_id, harness, mongodb_url, database, f"{point}#2") == -signal.SIGKILL
        await expire_lease(database)
    assert await work(replay_id, harness, mongodb_url, database) == 0
    replay = await service.replay(replay_id)
    assert replay is not None
    assert (replay["status"], replay["published"], replay["total"]) == ("done", REPLAYED, REPLAYED)
    assert (await service.counts())["pending"] == REPLAYED
    found = [letter async for letter in database["dead_letters"].find()]
    assert {len(letter["replays"]) for letter in found} == {1}
    sent = Counter(message.message_id for message in await harness.take_from(INBOX, REPLAYED + AT_ONCE, within=60))
    assert set(sent) == {letter["replays"][0]["messageId"] for letter in found}
    assert Counter(sent.values()) == {1: REPLAYED - AT_ONCE, 2: AT_ONCE}


async def test_a_careful_replay_continues_after_a_kill_at_any_step(
    harness: RabbitHarness, mongodb_url: str, database: Database
) -> None:
    """Its steps go on where they were: 1, 5, 25, then 50 at a time; nothing is left out, and no letter sent anew."""
    service = DeadLetterService(database)
    await service.prepare()
    await send(harness, 0, CAREFULLY)
    records = LetterRecords(database)
    await record_waiting(harness.url, records)
    replay_id = await service.start_replay(Filters(), by="ann", why="fixed", rate=AT_ONCE, careful=True)
    received: Counter[str] = Counter()

    async def handle(messages: Sequence[RefundPayment]) -> Sequence[Message]:
        received.update(message.order_id for message in messages)
        return ()

    async with (
        consuming(harness, INBOX, {RefundPayment: handle}),
        consuming(harness, topology.OPERATIONS_INBOX, handlers(records, utc_now)),
    ):
        for point in (at.REPLAY_CLAIMED, at.REPLAY_PUBLISHED, at.REPLAY_RECORDED):
            assert await work(replay_id, harness, mongodb_url, database, f"{point}#2") == -signal.SIGKILL
            await expire_lease(database)
        assert await work(replay_id, harness, mongodb_url, database) == 0
    replay = await service.replay(replay_id)
    assert replay is not None
    assert (replay["status"], replay["published"], replay["total"]) == ("done", CAREFULLY, CAREFULLY)
    assert (await service.outcome(replay_id)).handled == CAREFULLY
    assert {len(letter["replays"]) async for letter in database["dead_letters"].find()} == {1}
    assert set(received) == {f"o{number}" for number in range(CAREFULLY)}
    assert max(received.values()) <= 2


async def test_a_bulk_edit_continues_after_a_kill_at_any_step(
    harness: RabbitHarness, mongodb_url: str, database: Database
) -> None:
    """Each letter is edited once and sent, or left out and counted once, whichever step its process dies at."""
    service = DeadLetterService(database)
    await service.prepare()
    bus = await harness.bus()
    bodies = [b'{"orderId": "o%d", "reason": %s}' % (n, b"7" if n % 4 else b'"right"') for n in range(EDITED)]
    await bus.publish([replace(dead(n), body=body) for n, body in enumerate(bodies)])
    await record_waiting(harness.url, LetterRecords(database))
    patch = read_patch(
        '[{"op": "test", "path": "/reason", "value": 7}, {"op": "replace", "path": "/reason", "value": "late"}]'
    )
    replay_id = await service.start_edit(Filters(), patch, by="ann", why="a number", rate=40, careful=False)
    for point in (at.REPLAY_CLAIMED, at.REPLAY_PUBLISHED, at.REPLAY_RECORDED):
        assert await work(replay_id, harness, mongodb_url, database, f"{point}#2") == -signal.SIGKILL
        await expire_lease(database)
    assert await work(replay_id, harness, mongodb_url, database) == 0
    wrong, right = EDITED * 3 // 4, EDITED // 4
    replay = await service.replay(replay_id)
    assert replay is not None
    assert (replay["status"], replay["published"], replay["total"]) == ("done", wrong, EDITED)
    assert replay["left"] == [{"reason": "the test of /reason failed", "letters": right}]
    assert len({each["letter"] for each in replay["leftLetters"]}) == right
    assert await service.counts() == {"dead": right, "pending": wrong, "replaying": 0, "handled": 0, "discarded": 0}
    edits = [(letter["status"], len(letter["edits"])) async for letter in database["dead_letters"].find()]
    assert Counter(edits) == {("pending", 1): wrong, ("dead", 0): right}
    sent = await harness.take_from(INBOX, wrong + 20, within=60)
    assert {message.body for message in sent} == {
        b'{"orderId":"o%d","reason":"late"}' % n for n in range(EDITED) if n % 4
    }
    assert Counter(Counter(message.message_id for message in sent).values()) == {1: wrong - 20, 2: 20}


async def work(
    replay_id: str, harness: RabbitHarness, mongodb_url: str, database: Database, crash_at: str | None = None
) -> int:
    """Run the replay in a separate process until it ends or dies; return the exit status."""
    settings = {
        "MONGODB_URL": mongodb_url,
        "AMQP_URL": harness.url,
        "DATABASE_PREFIX": database.name.removesuffix("_operations"),
        **({"CRASH_AT": crash_at} if crash_at else {}),
    }
    environment = os.environ | {f"ORDERSAGA_{name}": value for name, value in settings.items()}
    status, _, _ = await warm_processes.run("tests.support.replay_worker", replay_id, environment=environment)
    return status


async def expire_lease(database: Database) -> None:
    """Expire the lease, after which another process may continue, without waiting for it."""
    past = [{"$set": {"lease.until": {"$subtract": ["$$NOW", 1000]}}}]
    assert (await database["replays"].update_many({}, past)).modified_count == 1

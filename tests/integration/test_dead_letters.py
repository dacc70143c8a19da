"""Dead letters over real servers: recorded whole and once, distinguished, grouped, replayed, edited, discarded."""

import asyncio
import contextlib
import functools
import json
import re
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import orjson
import pytest
from pymongo import AsyncMongoClient

from operations.actions import list_actions
from operations.dead_letters.careful import why_stopped
from operations.dead_letters.connection import record_waiting
from operations.dead_letters.editing import InvalidBodyError
from operations.dead_letters.filters import Filters
from operations.dead_letters.ingest import Ingest
from operations.dead_letters.letter import replay_envelope
from operations.dead_letters.notices import handlers
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.replaying import Replayer, ReplayWork
from operations.dead_letters.replays import NotPossibleError, ReplayRecords
from operations.dead_letters.service import DeadLetterService
from shared import topology
from shared.bus import Delivery, Envelope, Handlers
from shared.bus.consumer import Consumer
from shared.bus.publisher import Publisher
from shared.bus.reading import MAX_BODY_BYTES
from shared.clock import utc_now
from shared.contracts import DeadLetterHandled, RefundPayment
from shared.database import Database, Document
from shared.errors import PoisonError
from tests.support.buses import SHORT_LADDER, RabbitHarness, raw
from tests.support.eventually import eventually
from tests.support.servers import Servers
from tests.support.tasks import end_tasks

INBOX = topology.PAYMENT_INBOX


@dataclass
class DeadLetterHarness:
    """The dead letters of one test, in its database and on its broker."""

    database: Database
    harness: RabbitHarness

    @property
    def service(self) -> DeadLetterService:
        return DeadLetterService(self.database)

    @property
    def records(self) -> LetterRecords:
        return LetterRecords(self.database)

    async def record_waiting(self) -> list[Document]:
        """Record the letters that wait in the broker; return all letters, the first failure first."""
        await record_waiting(self.harness.url, self.records)
        return await self.all()

    async def all(self) -> list[Document]:
        found = await self.database["dead_letters"].find().to_list()
        return sorted(found, key=lambda letter: (letter["firstFailedAt"], letter["_id"]))

    async def stored(self, letter_id: str) -> Document:
        found = await self.service.letter(letter_id)
        assert found is not None
        return found

    async def run_replay(self, replay_id: str, **options: Any) -> Document:
        replay = await ReplayRecords(self.database).acquire("test", replay_id)
        assert replay is not None
        bus = await self.harness.bus()
        return await Replayer(self.database, Publisher(bus), **options).run(replay, "test")

    async def replay_carefully(self, handle: Any, start: Any = None) -> Document:
        """Replay all letters carefully while `handle` receives them, and operations learns of the outcomes."""
        begin = self.service.start_replay if start is None else start
        replay_id = await begin(Filters(), by="ann", why="fixed", rate=5000.0, careful=True)
        letters = Ingest(await self.harness.bus(topology.DEAD_LETTERS), self.records)
        recording = asyncio.create_task(letters.run())
        try:
            async with (
                consuming(self.harness, INBOX, {RefundPayment: handle}),
                consuming(self.harness, topology.OPERATIONS_INBOX, handlers(self.records, utc_now)),
            ):
                return await self.run_replay(replay_id)
        finally:
            await letters.stop()
            await recording

    async def replay(self, filters: Filters, **how: Any) -> Document:
        replay_id = await self.service.start_replay(filters, **{"by": "ann", "why": "fixed", "rate": 5000.0, **how})
        return await self.run_replay(replay_id)

    async def send_dead(self, *envelopes: Envelope) -> None:
        bus = await self.harness.bus()
        await bus.publish(envelopes)

    async def note_handled(self, expected: int = 1) -> None:
        """Consume the inbox of operations until that many letters are handled."""
        async with consuming(self.harness, topology.OPERATIONS_INBOX, handlers(self.records, utc_now)):

            async def noted() -> bool:
                return (await self.service.counts())["handled"] == expected

            await eventually(noted, 20, f"{expected} handled")


class consuming:  # noqa: N801 - reads as what it is used for
    """Run a consumer of a queue while the context is open."""

    def __init__(self, harness: RabbitHarness, queue: str, handled: Handlers) -> None:
        self._harness, self._queue, self._handled = harness, queue, handled

    async def __aenter__(self) -> None:
        self._bus = await self._harness.bus(self._queue)
        self._consumer = Consumer(self._bus, self._queue, self._handled, ladder=SHORT_LADDER)
        self._task = asyncio.create_task(self._consumer.run())

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()
        await self._task
        await self._bus.close()


@pytest.fixture(scope="module")
async def database(servers: Servers) -> AsyncIterator[Database]:
    """One database for all tests here: creating the indexes takes longer than most tests."""
    async with AsyncMongoClient[Document](servers.mongodb_url, tz_aware=True, w="majority") as client:
        created = client[f"t{secrets.token_hex(8)}_operations"]
        await DeadLetterService(created).prepare()
        yield created
        await client.drop_database(created.name)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record all waiting letters, however slowly the broker delivers them."""
    monkeypatch.setattr("operations.dead_letters.connection.QUIET_SECONDS", 60.0)


@pytest.fixture
async def dead_letters(database: Database, amqp_url: str, patient: None) -> AsyncIterator[DeadLetterHarness]:
    for name in await database.list_collection_names():
        await database[name].delete_many({})
    async with RabbitHarness.open(amqp_url) as harness:
        yield DeadLetterHarness(database, harness)


def replay_of(letter_id: object) -> dict[str, Any]:
    """Return the header that names the letter of which a message is a copy."""
    return {"x-replay-of": letter_id}


def dead(
    body: bytes = b'{"orderId": "o1", "reason": "late"}',
    message_id: str = "m1",
    queue: str = INBOX,
    type_: str = "payment.refund",
    error: str = "order o1 is not known",
    **headers: Any,
) -> Envelope:
    """A dead letter as a consumer publishes it."""
    own = {
        "x-queue": queue,
        "x-routing-key": type_,
        "x-error-type": "PoisonError",
        "x-error-message": error,
        "x-traceback": "Traceback (most recent call last): …",
        "x-attempts": 2,
        "x-first-failed-at": "2026-01-31T09:30:00.000Z",
        "x-failed-at": "2026-01-31T09:31:00.000Z",
    }
    return Envelope(
        body=body,
        exchange=topology.DEAD_LETTERS,
        routing_key=type_,
        type=type_,
        correlation_id="o1",
        message_id=message_id,
        headers=own | headers,
    )


async def refuse(messages: Sequence[RefundPayment]) -> Sequence[Any]:
    raise PoisonError("the refund of order o1 failed with code 17")


async def accept(messages: Sequence[RefundPayment]) -> Sequence[Any]:
    return ()


async def test_a_retry_without_an_inbox_is_a_letter_and_can_be_replayed_to_one_of_ours(
    dead_letters: DeadLetterHarness,
) -> None:
    level = SHORT_LADDER[0].queue_of(INBOX)
    await dead_letters.harness.delete_queue(INBOX)
    await dead_letters.harness.send_raw(Envelope(b'{"orderId": "o2"}', level, INBOX, "payment.refund", "o2", "m2"))

    async def is_dead() -> bool:
        return len(await dead_letters.record_waiting()) == 1

    await eventually(is_dead, 60, "the letter")
    await dead_letters.harness.bus()  # declares the inbox again
    (letter,) = await dead_letters.all()
    assert (letter["error"]["type"], letter["service"], letter["routingKey"]) == (
        "Unroutable",
        "payment",
        "payment.refund",
    )
    assert (await dead_letters.replay(Filters(service="payment")))["published"] == 1
    (replayed,) = await dead_letters.harness.take_from(INBOX, 1)
    assert (replayed.body, replayed.type) == (b'{"orderId": "o2"}', "payment.refund")


async def test_a_retry_without_a_retry_queue_is_a_letter_and_can_be_replayed(dead_letters: DeadLetterHarness) -> None:
    level = SHORT_LADDER[0].queue_of(INBOX)
    bus = await dead_letters.harness.bus(repair_every=3600)
    await dead_letters.harness.delete_queue(level)
    body, headers = b'{"orderId": "o1"}', {"x-attempts": 1}
    await bus.publish([Envelope(body, level, "payment.refund", "payment.refund", "o1", "m1", headers=headers)])

    async def is_dead() -> bool:
        return len(await dead_letters.record_waiting()) == 1

    await eventually(is_dead, 60, "the letter")
    (letter,) = await dead_letters.all()
    assert (letter["queue"], letter["routingKey"], letter["foreign"]) == (INBOX, "payment.refund", False)
    assert letter["error"]["message"] == f"sent to the retry queue '{level}', but there is no such queue"
    assert (await dead_letters.replay(Filters(service="payment")))["published"] == 1
    (replayed,) = await dead_letters.harness.take_from(INBOX, 1)
    assert (replayed.body, replayed.type) == (body, "payment.refund")
    await dead_letters.harness.bus(topology_mode="declare")  # declares the queue again


async def test_a_letter_has_everything_about_the_failure(dead_letters: DeadLetterHarness) -> None:
    async with consuming(dead_letters.harness, INBOX, {RefundPayment: refuse}):
        await dead_letters.send_dead(
            Envelope(
                body=b'{"orderId": "o1", "reason": "late"}',
                exchange=topology.EXCHANGE,
                routing_key="payment.refund",
                type="payment.refund",
                correlation_id="o1",
                message_id="m1",
                headers={"traceparent": "00-1-2-01"},
            )
        )

        async def is_dead() -> bool:
            return bool(await dead_letters.record_waiting())

        await eventually(is_dead, 20, "the letter")
    (listed,) = await dead_letters.all()
    letter = await dead_letters.stored(listed["_id"])
    assert letter["body"] == letter["current"] == b'{"orderId": "o1", "reason": "late"}'
    assert (letter["queue"], letter["routingKey"], letter["service"]) == (INBOX, "payment.refund", "payment")
    assert (letter["messageId"], letter["orderId"], letter["status"]) == ("m1", "o1", "dead")
    assert letter["error"]["type"] == "PoisonError"
    assert letter["error"]["message"] == "the refund of order o1 failed with code 17"
    assert "in refuse" in letter["error"]["traceback"]
    assert (letter["attempts"], letter["contentType"]) == (1, "application/json")
    assert letter["headers"]["traceparent"] == "00-1-2-01"
    assert letter["firstFailedAt"] <= letter["lastFailedAt"] <= letter["receivedAt"]


GARBAGE = {
    "not JSON": raw(b"not json", topology.DEAD_LETTERS),
    "binary": raw(bytes(range(256)) * 20, topology.DEAD_LETTERS, message_id="binary"),
    "nothing at all": raw(b"", topology.DEAD_LETTERS),
    "as much as the broker takes": raw(bytes(topology.MAX_MESSAGE_BYTES), topology.DEAD_LETTERS, message_id="big"),
    "headers of other types": raw(
        b"{}",
        topology.DEAD_LETTERS,
        message_id="types",
        headers={
            "x-queue": 7,
            "x-error-type": [1, {"a": None}],
            "x-attempts": "many",
            "x-failed-at": "tomorrow",
            "x-routing-key": True,
            "x-death": "x",
            "x-replay-of": {"a": 1},
            "$where": {"$a.b": "\x00", "a\x00b": 1.5},
        },
    ),
    "a time that never comes": raw(
        b"{}", topology.DEAD_LETTERS, message_id="time", headers={"x-failed-at": "9999-12-31T23:59:59.999999-23:59"}
    ),
    "NUL and half a surrogate pair": raw(b'{"a": "\\ud800\\u0000"}\x00', topology.DEAD_LETTERS, message_id="nul"),
}


async def test_any_message_is_recorded_whole(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(*GARBAGE.values())
    letters = {
        (await dead_letters.stored(listed["_id"]))["body"]: listed for listed in await dead_letters.record_waiting()
    }
    shown = {item["_id"] for item in (await dead_letters.service.page(Filters())).items}
    exported = {line["id"]: line async for line in dead_letters.service.export(Filters(), masked=False)}
    for name, sent in GARBAGE.items():
        letter = letters[sent.body] if sent.body != b"{}" else None
        assert letter is None or letter["_id"] in shown, name
        assert letter is None or len(json.dumps(exported[letter["_id"]])) > len(sent.body), name
    found = await dead_letters.all()
    assert len(found) == len(shown) == len(exported) == len(GARBAGE)
    assert {letter["status"] for letter in found} == {"dead"}
    assert max(letter["lastFailedAt"] for letter in found) <= utc_now()
    with pytest.raises(NotPossibleError, match="not the inbox of a service"):
        await dead_letters.replay(Filters(ids=(found[0]["_id"],)))


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 5_000_000, 15_900_000])
async def test_a_body_that_is_too_large_is_kept_whole_and_only_replayed_edited(
    dead_letters: DeadLetterHarness, size: int
) -> None:
    """From a broker with a larger limit than ours; the largest does not fit into one document."""
    sent = dead(bytes(size))
    taken = Delivery(
        sent.body,
        topology.DEAD_LETTERS,
        sent.exchange,
        "payment.refund",
        sent.type,
        "o1",
        "m1",
        False,
        sent.headers,
        None,
    )
    await dead_letters.records.record([taken], utc_now())
    (listed,) = await dead_letters.all()
    assert (await dead_letters.stored(listed["_id"]))["body"] == sent.body

    assert (await dead_letters.replay(Filters()))["published"] == 0

    (entry,) = (await dead_letters.stored(listed["_id"]))["replays"]
    assert (entry["outcome"], entry["error"]["message"]) == (
        "dead",
        f"the body has {size} bytes, the maximum is 262144: edit it",
    )
    edited = await dead_letters.service.edit_and_replay(listed["_id"], b'{"orderId": "o1"}', by="ann", why="too large")
    assert (await dead_letters.run_replay(edited))["published"] == 1
    assert [message.body for message in await dead_letters.harness.take_from(INBOX, 1)] == [b'{"orderId": "o1"}']


async def test_a_consumer_that_dead_letters_a_message_twice_makes_one_letter(dead_letters: DeadLetterHarness) -> None:
    later: dict[str, Any] = {"x-failed-at": "2026-01-31T09:32:00.000Z", "x-attempts": 3}
    await dead_letters.send_dead(dead(), dead(**later))
    assert len(await dead_letters.record_waiting()) == 1
    await dead_letters.send_dead(dead(**later))
    assert len(await dead_letters.record_waiting()) == 1


async def test_different_failures_never_become_one_letter(dead_letters: DeadLetterHarness) -> None:
    different = [
        dead(),
        dead(queue=topology.INVENTORY_INBOX),
        dead(type_="order.created"),
        dead(message_id="m2"),
        dead(body=b'{"orderId": "o2"}'),
        *[raw(b"no id and all alike", topology.DEAD_LETTERS)] * 3,
    ]
    await dead_letters.send_dead(*different)
    assert len(await dead_letters.record_waiting()) == len(different)
    await dead_letters.send_dead(raw(b"no id and all alike", topology.DEAD_LETTERS))
    assert len(await dead_letters.record_waiting()) == len(different) + 1


@pytest.mark.parametrize("acknowledged", [False, True])
async def test_messages_without_an_id_are_distinguished_even_when_redelivered(
    dead_letters: DeadLetterHarness, acknowledged: bool
) -> None:
    """The connection is lost after recording: the redelivered ones are known, an identical one is new."""
    alike = [raw(b"no id and all alike", topology.DEAD_LETTERS)] * 3
    await dead_letters.send_dead(*alike)
    bus = await dead_letters.harness.bus(topology.DEAD_LETTERS)
    ingest = Ingest(bus, dead_letters.records)
    async with asyncio.timeout(20):
        taken: list[Any] = []
        while len(taken) < 3:
            taken += await bus.receive(10)
    if acknowledged:
        await ingest.take(taken)
    else:
        await dead_letters.records.record(taken, utc_now())
    await bus.close()
    await dead_letters.send_dead(alike[0])
    assert len(await dead_letters.record_waiting()) == 4


async def test_a_letter_from_the_broker_itself_says_why(dead_letters: DeadLetterHarness) -> None:
    death = {"reason": "delivery_limit", "queue": INBOX, "count": 1, "exchange": "ordersaga", "routing-keys": ["a"]}
    await dead_letters.send_dead(
        Envelope(
            body=b'{"orderId": "o1"}',
            exchange=topology.DEAD_LETTERS,
            routing_key="payment.refund",
            type="payment.refund",
            correlation_id="o1",
            message_id="m1",
            headers={"x-death": [death], "x-first-death-queue": INBOX},
        )
    )
    (letter,) = await dead_letters.record_waiting()
    assert letter["error"]["type"] == "DeliveryLimit"
    assert (letter["queue"], letter["routingKey"]) == (INBOX, "payment.refund")
    await dead_letters.replay(Filters())
    (sent,) = await dead_letters.harness.take_from(INBOX, 1)
    assert not [name for name in sent.headers if "death" in name]


async def test_a_replay_goes_to_the_inbox_without_traces_of_the_failure(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead(traceparent="00-1-2-01"))
    (letter,) = await dead_letters.record_waiting()
    done = await dead_letters.replay(Filters(ids=(letter["_id"],)))
    (sent,) = await dead_letters.harness.take_from(INBOX, 1)
    assert (sent.body, sent.type, sent.correlation_id) == (letter["body"], "payment.refund", "o1")
    assert {name: value for name, value in sent.headers.items() if name != "x-delivery-count"} == {
        "traceparent": "00-1-2-01",
        "x-replay-of": letter["_id"],
        "x-routing-key": "payment.refund",
    }
    found = await dead_letters.stored(letter["_id"])
    assert (done["status"], done["published"], done["total"]) == ("done", 1, 1)
    assert found["status"] == "pending"
    (replay,) = found["replays"]
    assert (replay["messageId"], replay["by"], replay["why"]) == (sent.message_id, "ann", "fixed")
    assert sent.message_id != "m1"
    (action,) = (await list_actions(dead_letters.database)).items
    assert (action["action"], action["subject"], action["by"]) == ("dead-letters.replay", letter["_id"], "ann")


async def test_a_handled_replay_is_recorded_as_handled(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead())
    (letter,) = await dead_letters.record_waiting()
    await dead_letters.replay(Filters())
    async with consuming(dead_letters.harness, INBOX, {RefundPayment: accept}):
        await dead_letters.note_handled()
    found = await dead_letters.stored(letter["_id"])
    assert (found["status"], found["replays"][0]["outcome"]) == ("handled", "handled")
    with pytest.raises(NotPossibleError, match="it is handled"):
        await dead_letters.replay(Filters(ids=(letter["_id"],)))
    assert (await dead_letters.service.page(Filters())).items == []


async def test_a_replay_that_fails_again_is_the_same_letter_with_the_new_error(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead())
    (letter,) = await dead_letters.record_waiting()
    async with consuming(dead_letters.harness, INBOX, {RefundPayment: refuse}):
        await dead_letters.replay(Filters())

        async def dead_again() -> bool:
            (found,) = await dead_letters.record_waiting()
            return bool(found["status"] == "dead")

        await eventually(dead_again, 20, "the replay to die")
    found = await dead_letters.stored(letter["_id"])
    assert found["error"]["message"] == "the refund of order o1 failed with code 17"
    assert found["fingerprint"] != letter["fingerprint"]
    assert (found["attempts"], found["replays"][0]["outcome"]) == (3, "dead")
    assert found["replays"][0]["error"]["type"] == "PoisonError"
    assert (found["routingKey"], found["firstFailedAt"]) == ("payment.refund", letter["firstFailedAt"])
    assert [item["_id"] for item in (await dead_letters.service.page(Filters(text="code 17"))).items] == [letter["_id"]]

    await dead_letters.replay(Filters())
    first, second = (await dead_letters.stored(letter["_id"]))["replays"]
    assert first["messageId"] != second["messageId"]
    await dead_letters.harness.take_from(INBOX, 1)


async def test_a_group_keeps_its_history_over_a_replay(dead_letters: DeadLetterHarness) -> None:
    """Letters that fail again for another reason are in another group; the old one still shows what it had."""
    await dead_letters.send_dead(*[dead(message_id=f"m{n}") for n in range(3)])
    await dead_letters.record_waiting()
    (before,) = await dead_letters.service.groups(bins=4)
    async with consuming(dead_letters.harness, INBOX, {RefundPayment: refuse}):
        replay = await dead_letters.replay(Filters(group=before.fingerprint))

        async def dead_again() -> bool:
            return all(letter["status"] == "dead" for letter in await dead_letters.record_waiting())

        await eventually(dead_again, 60, "the replays to die")
    after, new = sorted(await dead_letters.service.groups(bins=4), key=lambda found: found.total)
    assert (after.fingerprint, after.open, after.total) == (before.fingerprint, 0, 0)
    assert (after.first_failed_at, after.last_failed_at) == (before.first_failed_at, before.last_failed_at)
    assert after.histogram[0].count == sum(found.count for found in before.histogram) == 3
    assert (new.open, new.total, new.histogram[-1].count, new.replayed) == (3, 3, 3, None)
    assert after.replayed
    assert (after.replayed.replay, after.replayed.by, after.replayed.outcome.failed) == (replay["_id"], "ann", 3)
    page = await dead_letters.service.page(Filters(replay=replay["_id"], outcome="failed"))
    assert len(page.items) == 3

    async with consuming(dead_letters.harness, INBOX, {RefundPayment: accept}):
        await dead_letters.replay(Filters(group=new.fingerprint))
        await dead_letters.note_handled(3)
    mended = await dead_letters.service.group(new.fingerprint)
    assert mended
    assert (mended.open, mended.total, sum(found.count for found in mended.histogram)) == (0, 3, 3)
    assert mended.replayed
    assert mended.replayed.outcome.in_brief() == "3 handled"


async def test_a_copy_that_fails_does_not_undo_the_handling_of_another(dead_letters: DeadLetterHarness) -> None:
    """A resumed replay may publish twice: the success of one copy counts, in either order."""
    await dead_letters.send_dead(dead(message_id="a"), dead(message_id="b"))
    await dead_letters.record_waiting()
    await dead_letters.replay(Filters())
    (one, other) = await dead_letters.harness.take_from(INBOX, 2)
    replays = [(sent.headers["x-replay-of"], sent.message_id or "") for sent in (one, other)]
    copies = [dead(message_id=message_id, **replay_of(letter_id)) for letter_id, message_id in replays]
    (handle,) = handlers(dead_letters.records, utc_now).values()
    notices = [DeadLetterHandled(letter_id=letter_id, message_id=message_id) for letter_id, message_id in replays]
    await dead_letters.send_dead(copies[0])
    await dead_letters.record_waiting()
    await dead_letters.send_dead(copies[0])
    await dead_letters.record_waiting()
    assert sorted(letter["attempts"] for letter in await dead_letters.all()) == [2, 4]
    await handle(notices)
    await dead_letters.send_dead(copies[1])
    await dead_letters.record_waiting()
    assert (await dead_letters.service.counts())["handled"] == 2
    assert [letter["replays"][0]["outcome"] for letter in await dead_letters.all()] == ["handled", "handled"]


async def test_a_message_that_only_claims_to_be_a_replay_is_a_separate_letter(
    dead_letters: DeadLetterHarness,
) -> None:
    await dead_letters.send_dead(dead())
    (letter,) = await dead_letters.record_waiting()
    await dead_letters.send_dead(dead(message_id="forged", **replay_of(letter["_id"])))
    await dead_letters.send_dead(dead(message_id="no such letter", **replay_of("nothing")))
    assert len(await dead_letters.record_waiting()) == 3
    assert (await dead_letters.stored(letter["_id"]))["status"] == "dead"


async def test_an_edit_is_sent_instead_of_the_original_which_is_kept(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead(body=b'{"orderId": "o1", "reason": 7}'))
    (letter,) = await dead_letters.record_waiting()
    body = b'{"orderId": "o1", "reason": "late"}'
    replay_id = await dead_letters.service.edit_and_replay(letter["_id"], body, by="ann", why="a number")
    await dead_letters.run_replay(replay_id)
    (sent,) = await dead_letters.harness.take_from(INBOX, 1)
    found = await dead_letters.stored(letter["_id"])
    assert sent.body == body == found["current"] == found["edits"][0]["body"]
    assert found["body"] == b'{"orderId": "o1", "reason": 7}'
    assert (found["status"], found["replays"][0]["edited"]) == ("pending", True)
    assert [action["action"] for action in (await list_actions(dead_letters.database)).items] == ["dead-letters.edit"]


async def test_a_letter_keeps_its_newest_replays(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead())
    (letter,) = await dead_letters.record_waiting()
    old = [{"replay": f"r{n}", "messageId": f"r{n}", "outcome": "dead", "outcomeAt": utc_now()} for n in range(100)]
    await dead_letters.database["dead_letters"].update_one({"_id": letter["_id"]}, {"$set": {"replays": old}})
    replay = await dead_letters.replay(Filters())
    await dead_letters.harness.take_from(INBOX, 1)
    kept = (await dead_letters.stored(letter["_id"]))["replays"]
    assert [entry["replay"] for entry in kept] == [*(f"r{n}" for n in range(1, 100)), replay["_id"]]


INVALID = (
    (b'{"orderId": "o1"', "body", "is not JSON"),
    (b'{"reason": "late"}', "orderId", "is required"),
    (b'{"orderId": "not an id!", "reason": 7}', "reason", "must be a string"),
    (b"[]", "body", "object"),
    (b'{"orderId": "o1", "reason": "' + b"x" * 2_000_000 + b'"}', "body", "the maximum is"),
)


async def test_an_invalid_edit_names_the_field_and_sends_nothing(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead())
    (letter,) = await dead_letters.record_waiting()
    for body, field, message in INVALID:
        with pytest.raises(InvalidBodyError) as refused:
            await dead_letters.service.edit_and_replay(letter["_id"], body, by="ann", why="")
        assert message in dict(refused.value.errors)[field]
    assert (await dead_letters.stored(letter["_id"]))["replays"] == []
    await dead_letters.harness.take_from(INBOX, 0)


async def test_an_edit_that_no_body_can_fix_says_so(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead(type_="payment.refnud"), dead(type_="stock.release"))
    for letter in await dead_letters.record_waiting():
        with pytest.raises(InvalidBodyError, match=r"no body can fix that"):
            await dead_letters.service.edit_and_replay(letter["_id"], b'{"orderId": "o1"}', by="ann", why="")


async def test_a_discarded_letter_is_kept_and_shown_on_request(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead(), dead(message_id="m2", type_="order.created"))
    await dead_letters.record_waiting()
    with pytest.raises(ValueError, match="reason"):
        await dead_letters.service.discard(Filters(type="payment.refund"), by="ann", why=" ")
    assert await dead_letters.service.discard(Filters(type="payment.refund"), by="ann", why="a test") == (1, 0)
    (left,) = (await dead_letters.service.page(Filters())).items
    assert left["routingKey"] == "order.created"
    (gone,) = (await dead_letters.service.page(Filters(status=("discarded",)))).items
    assert (gone["discarded"]["by"], gone["discarded"]["why"]) == ("ann", "a test")
    with pytest.raises(NotPossibleError, match="it is discarded"):
        await dead_letters.replay(Filters(ids=(gone["_id"],)))


async def test_letters_of_one_cause_are_one_group(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(
        *[dead(message_id=f"m{n}", error=f"order o{n} is not known (attempt {n} at 10.0.0.{n})") for n in range(5)],
        dead(message_id="other", error="the card was eaten"),
    )
    await dead_letters.record_waiting()
    group, other = sorted(await dead_letters.service.groups(bins=4), key=lambda found: -found.total)
    assert (group.total, group.open, group.status, group.service) == (5, 5, "new", "payment")
    assert (group.routing_key, group.error_type) == ("payment.refund", "PoisonError")
    assert group.message == "order # is not known (attempt # at #)"
    assert sum(found.count for found in group.histogram) == 5
    assert other.total == 1
    page = await dead_letters.service.page(Filters(group=group.fingerprint))
    assert len(page.items) == 5


async def test_a_resolved_group_that_fails_again_is_new(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead())
    (letter,) = await dead_letters.record_waiting()
    fingerprint = letter["fingerprint"]
    await dead_letters.service.set_group_status(fingerprint, "acknowledged", by="ann")
    await dead_letters.service.add_note(fingerprint, "the gateway is down", by="ann")
    await dead_letters.send_dead(dead(message_id="m2"))
    await dead_letters.record_waiting()
    assert [found.status for found in await dead_letters.service.groups()] == ["acknowledged"]
    await dead_letters.service.set_group_status(fingerprint, "resolved", by="ann")
    await dead_letters.send_dead(dead(message_id="m2"))
    await dead_letters.record_waiting()
    assert [found.status for found in await dead_letters.service.groups(status="resolved")] == ["resolved"]
    await dead_letters.send_dead(dead(message_id="m3"))
    await dead_letters.record_waiting()
    (group,) = await dead_letters.service.groups(status="new")
    assert [note["text"] for note in group.notes] == ["the gateway is down"]
    with pytest.raises(ValueError, match="acknowledged"):
        await dead_letters.service.set_group_status(fingerprint, "done", by="ann")
    with pytest.raises(NotPossibleError):
        await dead_letters.service.add_note("nothing", "text", by="ann")


@pytest.mark.parametrize(("former", "current"), [("looked at", "acknowledged"), ("mended", "resolved")])
async def test_a_group_status_of_an_older_release_has_its_new_name(
    dead_letters: DeadLetterHarness, former: str, current: str
) -> None:
    await dead_letters.send_dead(dead())
    await dead_letters.record_waiting()
    await dead_letters.database["dead_letter_groups"].update_one({}, {"$set": {"status": former}})
    for asked in (None, former, current):
        assert [found.status for found in await dead_letters.service.groups(status=asked)] == [current]
    await dead_letters.send_dead(dead(message_id="m2"))
    await dead_letters.record_waiting()
    (group,) = await dead_letters.service.groups()
    assert group.status == ("new" if current == "resolved" else current)


async def test_pages_follow_each_other_without_a_gap(dead_letters: DeadLetterHarness) -> None:
    """Seven letters with two times, so that pages end between letters of the same time."""
    at = ["2026-01-31T09:31:00.000Z", "2026-01-31T09:32:00.000Z"]
    failed_at: list[dict[str, Any]] = [{"x-failed-at": moment} for moment in at]
    await dead_letters.send_dead(*[dead(message_id=f"m{n}", **failed_at[n % 2]) for n in range(7)])
    await dead_letters.record_waiting()
    seen: list[Document] = []
    cursor = None
    while True:
        page = await dead_letters.service.page(Filters(service="payment"), limit=2, cursor=cursor)
        seen += page.items
        if (cursor := page.next_cursor) is None:
            break
    assert len({letter["_id"] for letter in seen}) == len(seen) == 7
    assert [letter["lastFailedAt"] for letter in seen] == sorted((x["lastFailedAt"] for x in seen), reverse=True)
    with pytest.raises(ValueError, match="cursor"):
        await dead_letters.service.page(Filters(), cursor="nonsense")


async def test_hidden_values_cannot_be_searched_for(dead_letters: DeadLetterHarness) -> None:
    body = b'{"orderId": "o1", "payment": {"token": "zq7secret"}, "reason": "late"}'
    await dead_letters.send_dead(
        dead(body=body, error="zq7secret is refused"),
        dead(message_id="m2", body=b"zq7secret", error="ann@zq7mail.example is not known"),
    )
    await dead_letters.record_waiting()

    async def found(text: str) -> set[str]:
        return {letter["messageId"] for letter in (await dead_letters.service.page(Filters(text=text))).items}

    assert await found("zq7*") == set()
    assert await found("late") == {"m1"}
    assert await found("refused") == {"m1"}
    assert await found("known") == {"m2"}
    # As an earlier release has recorded them.
    letters = dead_letters.database["dead_letters"]
    await letters.update_many({}, {"$unset": {"wordsMasked": True}, "$addToSet": {"words": "zq7secret"}})
    assert await found("zq7*") == {"m1", "m2"}
    assert [await dead_letters.records.mask_words(1) for _ in range(3)] == [True, True, False]
    assert await found("zq7*") == set()
    assert await found("late") == {"m1"}


async def test_a_person_is_erased_from_letters_and_their_edits(dead_letters: DeadLetterHarness) -> None:
    def body(user: str) -> bytes:
        person = {"name": "Ann Zq7", "address": {"city": "Leeds"}}
        return orjson.dumps({"orderId": "o1", "userId": user, "customer": person, "payment": {"token": "tok_ok"}})

    await dead_letters.send_dead(
        dead(body=body("leaving"), error="Ann Zq7 in Leeds is refused"),
        dead(message_id="m2", body=body("staying")),
        dead(message_id="m3", body=b"no JSON about leaving"),
        dead(message_id="m4", body=b'{"userId": "leaving", "orderId": "o1"}'),
    )
    await dead_letters.record_waiting()
    letters = dead_letters.database["dead_letters"]
    edit = {"at": utc_now(), "by": "ann", "why": "", "body": body("leaving")}
    await letters.update_one({"messageId": "m1"}, {"$push": {"edits": edit}})
    before = {letter["messageId"]: letter async for letter in letters.find()}
    assert [await dead_letters.records.erase_person("leaving") for _ in range(2)] == [1, 0]
    after = {letter["messageId"]: letter async for letter in letters.find()}
    assert [name for name in before if before[name] != after[name]] == ["m1"]
    erased = after["m1"]
    for text in ("Zq7", "Leeds"):
        assert text not in str(erased)
    kept = {"orderId": "o1", "userId": "leaving", "payment": {"token": "tok_ok"}}
    assert orjson.loads(erased["body"]) == orjson.loads(erased["edits"][0]["body"]) == kept
    assert erased["error"]["message"] == "••• in ••• is refused"


async def test_filters_select_letters(dead_letters: DeadLetterHarness) -> None:
    body = b'{"orderId": "order-7f", "items": [{"productId": "Blue-Teapot"}]}'
    much_later: dict[str, Any] = {"x-error-type": "ValueError", "x-failed-at": "2026-02-28T00:00:00Z"}
    await dead_letters.send_dead(
        dead(),
        dead(message_id="m2", body=body, queue=topology.INVENTORY_INBOX, type_="order.created"),
        dead(message_id="m3", **much_later),
    )
    await dead_letters.record_waiting()

    async def found(**filters: Any) -> set[str]:
        return {letter["messageId"] for letter in (await dead_letters.service.page(Filters(**filters))).items}

    assert await found(service="inventory") == {"m2"}
    assert await found(error="ValueError") == {"m3"}
    assert await found(type="order.created") == {"m2"}
    assert await found(order_id="order-7f") == {"m2"}
    assert await found(text="teapot order-7f") == {"m2"}
    assert await found(text="teap*") == {"m2"}
    assert await found(text="teapot valueerror") == set()
    assert await found(text="(") == set()
    assert await found(since=utc_now()) == set()
    assert await found(status=("handled",)) == set()
    assert await found() == {"m1", "m2", "m3"}
    with pytest.raises(ValueError, match="unknown status"):
        Filters(status=("lost",))


async def test_a_bulk_replay_sends_each_once_at_its_rate(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(*[dead(message_id=f"m{n}") for n in range(60)], dead(queue=topology.ORDER_INBOX))
    await dead_letters.record_waiting()
    started = asyncio.get_running_loop().time()
    done = await dead_letters.replay(Filters(service="payment"), rate=100.0)
    assert asyncio.get_running_loop().time() - started >= 0.55
    assert (done["total"], done["published"], done["status"]) == (60, 60, "done")
    sent = await dead_letters.harness.take_from(INBOX, 60)
    assert len({message.headers["x-replay-of"] for message in sent}) == 60
    assert (await dead_letters.service.counts())["dead"] == 1
    with pytest.raises(NotPossibleError):
        await dead_letters.replay(Filters(service="payment"))


async def test_a_careful_replay_goes_on_only_while_all_is_handled(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(*[dead(message_id=f"m{n}") for n in range(40)])
    await dead_letters.record_waiting()
    arrived = 0
    early: list[tuple[int, int]] = []

    async def handle(messages: Sequence[RefundPayment]) -> Sequence[Any]:
        nonlocal arrived
        arrived += len(messages)
        handled = (await dead_letters.service.counts())["handled"]
        needed = max(end for end in (0, 1, 6, 31) if end < arrived)
        if handled < needed:
            early.append((arrived, handled))
        return ()

    done = await dead_letters.replay_carefully(handle)
    assert (done["status"], done["published"], done["total"], arrived, early) == ("done", 40, 40, 40, [])
    assert (await dead_letters.service.outcome(done["_id"])).in_brief() == "40 handled"


@pytest.mark.parametrize("good", [0, 8])
async def test_a_careful_replay_stops_at_the_first_letter_that_fails_again(
    dead_letters: DeadLetterHarness, good: int
) -> None:
    await dead_letters.send_dead(*[dead(message_id=f"m{n}") for n in range(60)])
    await dead_letters.record_waiting()
    left = good

    async def handle(messages: Sequence[RefundPayment]) -> Sequence[Any]:
        nonlocal left
        if len(messages) > left:
            raise PoisonError("no card 4711")
        left -= len(messages)
        return ()

    done = await dead_letters.replay_carefully(handle)
    assert done["status"] == "stopped"
    assert done["published"] == (1 if good == 0 else 31)
    reason = why_stopped(done)
    assert reason
    assert re.fullmatch(r"\w{32} failed again: PoisonError: no card 4711", reason)
    outcome = await dead_letters.service.outcome(done["_id"])
    assert (outcome.verdict(done), outcome.handled + outcome.failed + outcome.unknown) == (
        "failed again",
        done["published"],
    )
    never_sent = await dead_letters.database["dead_letters"].count_documents({"replays": []})
    assert never_sent == 60 - done["published"]


async def test_a_careful_replay_without_an_outcome_stops_and_can_be_cancelled(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(*[dead(message_id=f"m{n}") for n in range(3)])
    await dead_letters.record_waiting()
    start = functools.partial(dead_letters.service.start_replay, Filters(), by="ann", why="fixed", careful=True)
    done = await dead_letters.run_replay(await start(), patience=0.5)
    assert (done["status"], done["published"]) == ("stopped", 1)
    assert "had no outcome in time" in str(why_stopped(done))

    replay_id = await start()
    running = asyncio.create_task(dead_letters.run_replay(replay_id))
    await dead_letters.harness.take_from(INBOX, 2)
    assert await dead_letters.service.cancel_replay(replay_id, by="bob")
    assert ((await running)["status"], (await running)["published"]) == ("cancelled", 1)


async def test_a_letter_that_fails_again_is_not_replayed_for_ever(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(*[dead(message_id=f"m{n}") for n in range(20)])
    await dead_letters.record_waiting()
    bus = await dead_letters.harness.bus(topology.DEAD_LETTERS)
    ingest = Ingest(bus, dead_letters.records)
    taking = asyncio.create_task(ingest.run())
    async with consuming(dead_letters.harness, INBOX, {RefundPayment: refuse}):
        done = await dead_letters.replay(Filters(), rate=40.0)

        async def all_dead() -> bool:
            return (await dead_letters.service.counts())["dead"] == 20

        await eventually(all_dead, 20, "all to die again")
    await ingest.stop()
    await taking
    assert done["published"] == 20
    assert {len(letter["replays"]) for letter in await dead_letters.all()} == {1}


async def test_a_cancelled_replay_ends_after_what_it_has_claimed(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(
        *[dead(message_id=f"m{n}") for n in range(100)]
    )  # 50 s, so that it does not end by itself
    await dead_letters.record_waiting()
    replay_id = await dead_letters.service.start_replay(Filters(), by="ann", why="", rate=2.0)
    task = asyncio.create_task(dead_letters.run_replay(replay_id))

    async def begun() -> bool:
        return (await dead_letters.service.counts())["pending"] > 0

    await eventually(begun, 20, "the first to be sent")
    assert await dead_letters.service.cancel_replay(replay_id, by="ann")
    done = await task
    counts = await dead_letters.service.counts()
    assert (done["status"], counts["replaying"]) == ("cancelled", 0)
    assert counts["pending"] == done["published"] < 100
    await dead_letters.harness.take_from(INBOX, done["published"])
    assert not await dead_letters.service.cancel_replay(replay_id, by="ann")


async def test_a_replay_sends_only_what_it_has_claimed_itself(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead())
    (letter,) = await dead_letters.record_waiting()
    replays = ReplayRecords(dead_letters.database)
    replayer = Replayer(dead_letters.database, Publisher(await dead_letters.harness.bus()))
    first = await dead_letters.replay(Filters())
    (sent,) = await dead_letters.harness.take_from(INBOX, 1)
    await dead_letters.send_dead(dead(message_id=sent.message_id or "", **replay_of(letter["_id"])))
    await dead_letters.record_waiting()
    body = b'{"orderId": "o1", "reason": "edited"}'
    other = await replays.find(await dead_letters.service.edit_and_replay(letter["_id"], body, by="bob", why=""))
    assert other is not None
    await dead_letters.records.claim([letter], other)
    assert (await dead_letters.stored(letter["_id"]))["status"] == "replaying"
    assert await replayer._publish_claimed(first, "test") == 0
    assert await replayer._sent_by(first) == 1
    await dead_letters.harness.take_from(INBOX, 0)
    assert [replay["_id"] for replay in await dead_letters.service.replays()] == [other["_id"], first["_id"]]
    assert all("edited" not in replay for replay in await dead_letters.service.replays())
    assert (await dead_letters.run_replay(other["_id"]))["published"] == 1
    assert "claimedBy" not in await dead_letters.stored(letter["_id"])
    assert [sent.body for sent in await dead_letters.harness.take_from(INBOX, 1)] == [body]


async def test_a_letter_that_cannot_be_sent_is_dead_again_and_does_not_block_others(
    dead_letters: DeadLetterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dead_letters.send_dead(dead(), dead(message_id="odd", odd="x"), dead(message_id="m3"))
    await dead_letters.record_waiting()

    def unfit(letter: Document, *about: Any) -> Envelope:
        sent = replay_envelope(letter, *about)
        return replace(sent, headers={"x" * 256: 1}) if "odd" in letter["headers"] else sent

    monkeypatch.setattr("operations.dead_letters.replaying.replay_envelope", unfit)
    done = await dead_letters.replay(Filters())
    assert (done["published"], done["total"], done["status"]) == (2, 3, "done")
    letters = {letter["messageId"]: letter for letter in await dead_letters.all()}
    assert [letters[name]["status"] for name in ("m1", "odd", "m3")] == ["pending", "dead", "pending"]
    (entry,) = letters["odd"]["replays"]
    assert (entry["outcome"], entry["error"]["type"]) == ("dead", "ValueError")
    await dead_letters.harness.take_from(INBOX, 2)


async def test_a_letter_that_two_operators_replay_is_sent_once(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead())
    (letter,) = await dead_letters.record_waiting()
    only = Filters(ids=(letter["_id"],))
    twice = [await dead_letters.service.start_replay(only, by="ann", why="") for _ in range(2)]
    assert [(await dead_letters.run_replay(replay_id))["published"] for replay_id in twice] == [1, 0]
    assert (await dead_letters.replay(only))["published"] == 1
    await dead_letters.harness.take_from(INBOX, 2)


async def test_a_letter_claimed_after_the_end_of_its_replay_is_still_sent(
    dead_letters: DeadLetterHarness,
) -> None:
    """Claimed by a process that stalled, woke after another one had ended the replay, and died."""
    await dead_letters.send_dead(dead(message_id="m1"), dead(message_id="m2"))
    first, second = await dead_letters.record_waiting()
    replay_id = await dead_letters.service.start_replay(Filters(), by="ann", why="", rate=5000.0)
    assert await dead_letters.service.cancel_replay(replay_id, by="ann")
    assert (await dead_letters.run_replay(replay_id))["published"] == 0
    replay = await ReplayRecords(dead_letters.database).find(replay_id)
    stalled = Replayer(dead_letters.database, Publisher(await dead_letters.harness.bus()))
    assert replay is not None
    await dead_letters.records.claim([first], replay)
    long_ago = {"$set": {"lease.until": replay["at"] - timedelta(minutes=1)}}
    await dead_letters.database["replays"].update_one({"_id": replay_id}, long_ago)

    work = asyncio.create_task(ReplayWork(dead_letters.database, stalled, every=0.05).run())

    async def ended_again() -> bool:
        found = await ReplayRecords(dead_letters.database).find(replay_id)
        return found is not None and (found["status"], found["published"]) == ("cancelled", 1)

    await eventually(ended_again, 60, "the replay to send what is claimed, and to end")
    await end_tasks(work)
    assert [(await dead_letters.stored(letter["_id"]))["status"] for letter in (first, second)] == ["pending", "dead"]
    await dead_letters.harness.take_from(INBOX, 1)


async def test_letters_wait_while_the_database_is_unavailable(
    dead_letters: DeadLetterHarness, servers: Servers
) -> None:
    """The current batch is neither acknowledged nor dropped, and recorded once the database answers."""
    reserved = socket.socket()  # reserves the port; connections are refused until a server listens
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    url = f"mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=200"
    async with AsyncMongoClient[Document](url, tz_aware=True, w="majority") as client:
        bus = await dead_letters.harness.bus(topology.DEAD_LETTERS)
        ingest = Ingest(bus, LetterRecords(client[dead_letters.database.name]))
        taking = asyncio.create_task(ingest.run())
        await dead_letters.send_dead(*[dead(message_id=f"m{n}") for n in range(10)])
        await eventually(lambda: (ingest.unhealthy_reason or "").startswith("waiting"), 20, "the ingest to wait")
        host, _, mongod = servers.mongodb_url.removeprefix("mongodb://").partition("/")[0].rpartition(":")
        async with await asyncio.start_server(forward_to(host, int(mongod)), sock=reserved):

            async def recorded() -> bool:
                return len(await dead_letters.all()) == 10

            await eventually(recorded, 60, "the letters to be recorded")
            await eventually(lambda: ingest.unhealthy_reason is None, 60, "all to be well")
            await ingest.stop()
            await taking
            await client.close()
    await bus.close()
    await dead_letters.harness.take_from(topology.DEAD_LETTERS, 0)


async def test_a_letter_that_the_database_rejects_is_recorded_without_its_headers(
    dead_letters: DeadLetterHarness,
) -> None:
    """Whatever the reason: here one letter of several violates a validator."""
    rule = {"$jsonSchema": {"properties": {"headers": {"properties": {"refused": {"bsonType": "bool"}}}}}}
    await dead_letters.database.command("collMod", "dead_letters", validator=rule)
    try:
        await dead_letters.send_dead(
            *[dead(message_id=f"m{n}", kept="text") for n in range(4)], dead(message_id="odd", refused="text")
        )
        letters = {letter["messageId"]: letter for letter in await dead_letters.record_waiting()}
    finally:
        await dead_letters.database.command("collMod", "dead_letters", validator={})
    assert len(letters) == 5
    assert [letters[name]["headers"] for name in ("m1", "odd")] == [{"kept": "text"}, {}]
    assert {letter["error"]["message"] for letter in letters.values()} == {"order o1 is not known"}


def forward_to(host: str, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return a server's handler that forwards connections to another server."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, here), pump(there, writer))

    return forward

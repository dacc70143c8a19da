"""Replays: letters sent back to the inboxes that they failed in, some at a time, at a bounded rate.

A replay is a record of its own that says which letters are meant and how far it has come. Whoever carries it out holds
a lease on it; when he dies, the next one goes on. For some letters at a time:

    1. claim     dead ──▶ replaying, with the message id that the replay's id and the letter's make: no letter twice
    2. publish   with confirms, all letters that the replay has claimed and not noted as sent
    3. note      replaying ──▶ pending, unless what became of it is known already
    4. go on     behind the last letter that was looked at

Killed anywhere, it begins with step 2: what was claimed is sent with the message id that it had, and what was not is
found behind the place that is noted. So no letter is left out, and the most that can come twice is the handful that
was published and not noted, with the same message ids.

One who stalls, loses the lease and claims all the same when he wakes may do so after the replay's end. If he dies
before he has sent that, the replay is opened again for it.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import structlog
from pymongo import UpdateOne
from pymongo.errors import PyMongoError

from operations.dead_letters.filters import Filters, query
from operations.dead_letters.letter import clean, current_body, replay_envelope, why_not_replayable
from operations.dead_letters.records import LETTERS, REPLAYS, LetterRecords, decidable
from operations.dead_letters.status import DEAD, PENDING, REPLAYING, STATUSES
from shared.background import ErrorLog, run_periodically
from shared.bus import Envelope
from shared.bus.backoff import Backoff
from shared.bus.publisher import Publisher
from shared.clock import utc_now
from shared.database import Collection, Database, Document
from shared.errors import BusUnavailableError
from shared.failure_points import (
    REPLAY_CLAIMED,
    REPLAY_PUBLISHED,
    REPLAY_RECORDED,
    FailurePoint,
    nothing_fails,
)
from shared.topology import INBOXES

DEFAULT_RATE = 100.0
"""Letters a second: a service that has just been mended is not to be drowned."""

MOST_AT_ONCE = 200
MOST_BYTES_AT_ONCE = 8 * 1024 * 1024
LEASE = timedelta(seconds=15)
LONGEST_PAUSE_SECONDS = 2.0
"""Between two renewals of the lease."""

MOST_REPLAYS_KEPT = 100
"""Replays that a letter's record keeps, the newest: a letter that is replayed again and again must not outgrow it."""

RUNNING, DONE, CANCELLED = "running", "done", "cancelled"
CANCELLING = "cancelling"
"""What is claimed is still sent, and then it ends."""

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

log = structlog.get_logger(__name__)

Progress = Callable[[Document], None]
"""Hears of the replay's record whenever it has come further."""


class NotPossibleError(Exception):
    """What was asked for cannot be done in the letters' present state; the message is for the person who asked."""


class LostLeaseError(Exception):
    """Somebody else carries the replay out now, as this one was away for too long."""


def message_id(replay_id: str, letter_id: str) -> str:
    """The id of the message by which this replay sends this letter, however often it has to."""
    return hashlib.sha256(f"{replay_id}/{letter_id}".encode()).hexdigest()[:32]


class Replays:
    """The records of replays. All methods let the driver's errors out."""

    def __init__(self, database: Database) -> None:
        self._replays: Collection = database[REPLAYS]
        self._letters: Collection = database[LETTERS]

    async def start(self, filters: Filters, *, by: str, why: str, rate: float, edited: bytes | None = None) -> Document:
        """Record that these letters are to be replayed, those of them that are there now; returns the record.

        Raises NotPossibleError if there is none that can be, and says why.
        """
        asked = _meant(filters)
        newest = await self._letters.find_one(asked, {"lastFailedAt": True}, sort=[("lastFailedAt", -1), ("_id", -1)])
        if newest is None:
            raise NotPossibleError(await self._why_none(filters))
        asked["lastFailedAt"] = asked.get("lastFailedAt", {}) | {"$lte": newest["lastFailedAt"]}
        replay: Document = {
            "_id": uuid4().hex[:16],
            "at": utc_now(),
            "by": by,
            "why": why,
            "rate": rate,
            "filters": filters.as_document(),
            "edited": edited,
            "through": newest["lastFailedAt"],
            "pending": await self._pending(asked) if filters.ids else [],
            "behind": None,
            "total": await self._letters.count_documents(asked),
            "published": 0,
            "status": RUNNING,
            "doneAt": None,
            "lease": {"token": None, "until": _LONG_AGO},
        }
        await self._replays.insert_one(replay)
        return replay

    async def find(self, replay_id: str) -> Document | None:
        """Return the record of a replay."""
        return await self._replays.find_one({"_id": replay_id})

    async def newest(self, limit: int) -> list[Document]:
        """Return the newest records, without the bodies that were written for them."""
        return await self._replays.find({}, {"edited": False}, sort=[("at", -1)], limit=limit).to_list(None)

    async def cancel(self, replay_id: str) -> bool:
        """Have a replay end after what it has claimed; False if it has ended already."""
        result = await self._replays.update_one({"_id": replay_id, "status": RUNNING}, {"$set": {"status": CANCELLING}})
        return bool(result.modified_count)

    async def take_over(self, token: str, replay_id: str | None = None) -> Document | None:
        """Take the lease on this replay, or on any that is not done and nobody's; None if there is none."""
        free: Document = {
            "status": {"$in": [RUNNING, CANCELLING]},
            # By the database's clock: those who carry replays out may be on different machines.
            "$expr": {"$lt": ["$lease.until", "$$NOW"]},
        }
        if replay_id is not None:
            free["_id"] = replay_id
        return await self._replays.find_one_and_update(free, [{"$set": {"lease": _lease(token)}}], return_document=True)

    async def reopen(self) -> None:
        """Open replays again that have ended and have letters claimed: nobody else would let go of these."""
        claimed = await self._letters.distinct("claimedBy", {"status": REPLAYING, "claimedBy": {"$exists": True}})
        if not claimed:
            return
        for ended, goes_on_as in ((DONE, RUNNING), (CANCELLED, CANCELLING)):
            over: Document = {"_id": {"$in": claimed}, "status": ended, "$expr": {"$lt": ["$lease.until", "$$NOW"]}}
            await self._replays.update_many(over, {"$set": {"status": goes_on_as, "doneAt": None}})

    async def left_behind(self) -> list[str]:
        """The replays that are not done and nobody's, the oldest first."""
        left: Document = {"status": {"$in": [RUNNING, CANCELLING]}, "$expr": {"$lt": ["$lease.until", "$$NOW"]}}
        return [replay["_id"] async for replay in self._replays.find(left, {"_id": True}, sort=[("at", 1)])]

    async def go_on(self, replay_id: str, token: str, changes: Document) -> Document:
        """Note how far it has come and renew the lease. Raises LostLeaseError."""
        held = {"_id": replay_id, "lease.token": token, "status": {"$in": [RUNNING, CANCELLING]}}
        fields = {name: {"$literal": value} for name, value in changes.items()}
        found = await self._replays.find_one_and_update(
            held, [{"$set": fields | {"lease": _lease(token)}}], return_document=True
        )
        if found is None:
            raise LostLeaseError(f"the replay {replay_id} is somebody else's now")
        return found

    async def _pending(self, asked: Document) -> list[str]:
        """The last messages of those of the letters that are pending: what is sent meanwhile is nobody's to repeat."""
        found = self._letters.find(asked | {"status": PENDING}, {"lastReplay": True})
        return [letter["lastReplay"] async for letter in found]

    async def _why_none(self, filters: Filters) -> str:
        if len(filters.ids) == 1:
            letter = await self._letters.find_one({"_id": filters.ids[0]}, {"status": True, "queue": True})
            if letter is None:
                return f"there is no dead letter {filters.ids[0]}"
            reason = why_not_replayable(letter) or f"it is {letter['status']}, and only what is dead can be replayed"
            return f"{letter['_id']} cannot be replayed: {reason}"
        return "there is no dead letter like this that could be replayed"


class Replayer:
    """Carries replays out; `patience` (seconds) is how long it waits for a broker that is away, None for ever."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        *,
        reach: FailurePoint = nothing_fails,
        patience: float | None = None,
    ) -> None:
        self._records = LetterRecords(database)
        self._letters: Collection = database[LETTERS]
        self._replays = Replays(database)
        self._publisher = publisher
        self._reach = reach
        self._patience = patience

    async def carry_out(self, replay: Document, token: str, on_progress: Progress = lambda _: None) -> Document:
        """Carry a replay, whose lease the token holds, to its end; returns its record.

        Raises LostLeaseError, BusUnavailableError when patience is at its end, and the driver's errors: it is gone on
        with when the lease is over.
        """
        started, sent_before = time.monotonic(), await self._sent_by(replay)
        sent = await self._publish_claimed(replay, token)
        while True:
            replay = await self._replays.go_on(replay["_id"], token, {"published": sent_before + sent})
            on_progress(replay)
            page = [] if replay["status"] == CANCELLING else await self._next(replay)
            if not page:
                return await self._finish(replay, token)
            await self._claim(replay, page)
            self._reach(REPLAY_CLAIMED)
            sent += await self._publish_claimed(replay, token)
            self._reach(REPLAY_RECORDED)
            replay["behind"] = [page[-1]["lastFailedAt"], page[-1]["_id"]]
            noted = {"behind": replay["behind"], "published": sent_before + sent}
            on_progress(await self._replays.go_on(replay["_id"], token, noted))
            await self._keep_rate(replay, token, started, sent)

    async def _sent_by(self, replay: Document) -> int:
        """How many letters it has sent: from the letters, as the count in its record may have been left behind."""
        own = {"replay": replay["_id"], "unsent": {"$ne": True}}
        claimed = {"status": REPLAYING, "claimedBy": replay["_id"]}
        # All statuses are named for the index, which begins with them.
        asked = {"status": {"$in": list(STATUSES)}, "replays": {"$elemMatch": own}, "$nor": [claimed]}
        return await self._letters.count_documents(asked)

    async def _next(self, replay: Document) -> list[Document]:
        """The letters that come next, the longest dead first, no more than can be sent at once."""
        asked = _meant(Filters.from_document(replay["filters"])) | {"replays.replay": {"$ne": replay["_id"]}}
        asked["lastFailedAt"] = asked.get("lastFailedAt", {}) | {"$lte": replay["through"]}
        if replay["behind"] is not None:
            at, last = replay["behind"]
            behind = {"lastFailedAt": {"$gte": at}, "$or": [{"lastFailedAt": {"$gt": at}}, {"_id": {"$gt": last}}]}
            asked["$and"] = [*asked.get("$and", []), behind]
        asked["$and"] = [*asked.get("$and", []), _undecided(replay)]
        most = min(MOST_AT_ONCE, max(1, int(replay["rate"] / 2)))
        fields = {"lastFailedAt": True, "size": True}
        cursor = self._letters.find(asked, fields, sort=[("lastFailedAt", 1), ("_id", 1)], limit=most)
        return _bounded(await cursor.to_list(None))

    async def _claim(self, replay: Document, page: Sequence[Document]) -> None:
        now = utc_now()
        writes = []
        for letter in page:
            own_id = message_id(replay["_id"], letter["_id"])
            entry = {
                "replay": replay["_id"],
                "at": now,
                "by": replay["by"],
                "why": replay["why"],
                "edited": replay["edited"] is not None,
                "messageId": own_id,
                "outcome": PENDING,
                "outcomeAt": None,
            }
            pushed: Document = {"replays": {"$each": [entry], "$slice": -MOST_REPLAYS_KEPT}}
            if replay["edited"] is not None:
                pushed["edits"] = {"at": now, "by": replay["by"], "why": replay["why"], "body": replay["edited"]}
            claimable = {"_id": letter["_id"]} | _undecided(replay)
            claim = {"status": REPLAYING, "claimedBy": replay["_id"], "lastReplay": own_id}
            writes.append(
                UpdateOne(
                    claimable | {"replays.replay": {"$ne": replay["_id"]}},
                    {"$set": claim, "$push": pushed, "$inc": {"changes": 1}},
                )
            )
        await self._letters.bulk_write(writes, ordered=False)

    async def _publish_claimed(self, replay: Document, token: str) -> int:
        """Send what is claimed and not noted as sent; returns how many."""
        sent = 0
        claimed = {"status": REPLAYING, "claimedBy": replay["_id"]}
        while letters := _bounded(await self._letters.find(claimed, limit=MOST_AT_ONCE).to_list(None)):
            refused: dict[str, Exception] = {}
            envelopes: dict[str, Envelope] = {}
            for letter in letters:
                try:
                    await self._records.with_body(letter)
                    envelopes[letter["_id"]] = replay_envelope(letter, letter["lastReplay"], current_body(letter))
                except PyMongoError:
                    raise
                except Exception as error:  # noqa: BLE001 - one letter is not to hold up the others, whatever it has
                    refused[letter["_id"]] = error
            refused |= await self._publish_all(envelopes, replay, token)
            self._reach(REPLAY_PUBLISHED)
            notes = [_note(letter, refused.get(letter["_id"])) for letter in letters]
            await self._letters.bulk_write(notes, ordered=False)
            sent += len(letters) - len(refused)
        return sent

    async def _publish_all(self, envelopes: dict[str, Envelope], replay: Document, token: str) -> dict[str, Exception]:
        """Send all that can be sent; returns why the others cannot, by the ids of their letters."""
        # One that cannot be encoded keeps all that are sent with it from being sent, and does not say which it is.
        if await self._publish(list(envelopes.values()), replay, token) is None:
            return {}
        alone = {letter_id: await self._publish([one], replay, token) for letter_id, one in envelopes.items()}
        return {letter_id: error for letter_id, error in alone.items() if error is not None}

    async def _publish(self, envelopes: Sequence[Envelope], replay: Document, token: str) -> Exception | None:
        """Send these, however long the broker is away; returns what is wrong with them, if they can never be sent."""
        backoff, since = Backoff(), time.monotonic()
        while True:
            try:
                await self._publisher.publish(envelopes)
            except BusUnavailableError as error:
                if self._patience is not None and time.monotonic() - since > self._patience:
                    raise
                log.warning("replay waits", replay=replay["_id"], letters=len(envelopes), error=str(error))
                await asyncio.sleep(min(backoff.next(), LONGEST_PAUSE_SECONDS))
                await self._replays.go_on(replay["_id"], token, {})
            except Exception as error:  # noqa: BLE001 - it is noted with the letter
                return error
            else:
                return None

    async def _keep_rate(self, replay: Document, token: str, started: float, sent: int) -> None:
        """Wait until no more than the rate has been sent since the start."""
        while (left := started + sent / replay["rate"] - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LONGEST_PAUSE_SECONDS))
            if left > LONGEST_PAUSE_SECONDS:
                await self._replays.go_on(replay["_id"], token, {})

    async def _finish(self, replay: Document, token: str) -> Document:
        status = CANCELLED if replay["status"] == CANCELLING else DONE
        done = await self._replays.go_on(replay["_id"], token, {"status": status, "doneAt": utc_now()})
        log.info("replay ended", replay=done["_id"], status=status, letters=done["published"])
        return done


class ReplayWork:
    """Carries out, in the operations process, what was asked for and what a dead process has left."""

    def __init__(self, database: Database, replayer: Replayer, *, every: float = 1.0) -> None:
        self._replays = Replays(database)
        self._replayer = replayer
        self._every = every
        self._running: set[asyncio.Task[None]] = set()
        self._errors = ErrorLog("replaying")

    async def run(self) -> None:
        """Look for replays that nobody carries out, for ever; each is a task of its own."""
        try:
            await run_periodically(self._look, every=self._every, name="looking for replays")
        finally:
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running)

    async def _look(self) -> None:
        token = uuid4().hex
        await self._replays.reopen()
        if (replay := await self._replays.take_over(token)) is not None:
            task = asyncio.create_task(self._carry_out(replay, token), name=f"replay-{replay['_id']}")
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _carry_out(self, replay: Document, token: str) -> None:
        try:
            await self._replayer.carry_out(replay, token)
        except LostLeaseError as error:
            log.warning("replay left to somebody else", reason=str(error))
        except Exception as error:  # noqa: BLE001 - another run takes the replay over when its lease has expired
            self._errors.failed(error, replay=replay["_id"])
        else:
            self._errors.succeeded()


def _meant(filters: Filters) -> Document:
    """The letters that can be replayed; those that came from no inbox have nowhere to go."""
    return query(filters, decidable(filters)) | {"queue": {"$in": list(INBOXES)}}


def _undecided(replay: Document) -> Document:
    """What a letter has to be like to be claimed: dead, or as pending as it was when somebody named it.

    What another replay has sent since is not sent again: who asked for this one has not seen that.
    """
    return {"$or": [{"status": DEAD}, {"status": PENDING, "lastReplay": {"$in": replay.get("pending", [])}}]}


def _note(letter: Document, error: Exception | None) -> UpdateOne:
    """Note that a claimed letter was sent, or that it is dead as before, as it cannot be."""
    claimed = {"_id": letter["_id"], "status": REPLAYING, "lastReplay": letter["lastReplay"]}
    if error is None:
        return UpdateOne(claimed, {"$set": {"status": PENDING}, "$unset": {"claimedBy": True}})
    log.warning("letter cannot be sent", letter=letter["_id"], error=str(error)[:200])
    outcome = {
        "replays.$.outcome": DEAD,
        "replays.$.outcomeAt": utc_now(),
        "replays.$.error": {"type": type(error).__name__, "message": clean(str(error)[:1000])},
        "replays.$.unsent": True,
    }
    return UpdateOne(
        claimed | {"replays": {"$elemMatch": {"messageId": letter["lastReplay"]}}},
        {"$set": outcome | {"status": DEAD}, "$unset": {"claimedBy": True}, "$inc": {"changes": 1}},
    )


def _bounded(letters: Sequence[Document]) -> list[Document]:
    """As many of the letters as fit into memory together; one at least."""
    taken: list[Document] = []
    size = 0
    for letter in letters:
        size += letter["size"]
        if taken and size > MOST_BYTES_AT_ONCE:
            break
        taken.append(letter)
    return taken


def _lease(token: str) -> Document:
    until = {"$add": ["$$NOW", LEASE // timedelta(milliseconds=1)]}
    return {"token": {"$literal": token}, "until": until}

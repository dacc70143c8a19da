"""The letters and their bodies. Only this module writes them; methods let the driver's errors out."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from secrets import token_hex
from typing import NamedTuple

from pymongo import ReplaceOne, UpdateOne

from operations.dead_letters import updates
from operations.dead_letters.erasure import without_person
from operations.dead_letters.filters import Filters, decidable, discardable, query, replayable, restorable
from operations.dead_letters.groups import GroupRecords
from operations.dead_letters.letter import (
    LARGEST_INLINE,
    Failure,
    current_body,
    identity,
    read_failure,
    record_of,
    words_of,
)
from operations.dead_letters.patching import Edit
from operations.dead_letters.schema import BODIES, LETTERS, NEWEST_FIRST
from operations.dead_letters.status import DEAD, DISCARDED, HANDLED, PENDING, REPLAYING, STATUSES
from operations.reading.cursors import read_cursor, write_cursor
from shared.bus import Delivery
from shared.clock import utc_now
from shared.contracts import DeadLetterHandled
from shared.database import Collection, Database, Document

READ_AT_ONCE = 100
"""Letters with their bodies per query."""

PIECE = 8 * 1024 * 1024
"""Bytes of a big body per document; MongoDB takes up to 16 MB."""

UNSHOWN_FIELDS = {"words": False, "wordsMasked": False}

LISTED_FIELDS = {
    "body": False,
    "bodyText": False,
    **UNSHOWN_FIELDS,
    "error.traceback": False,
    "edits.body": False,
    "headers": False,
}
"""Lists leave out what may be big."""


class LetterOrder(StrEnum):
    """The order of a list of letters, by their last failure."""

    NEWEST = "newest"
    OLDEST = "oldest"

    @property
    def sort(self) -> list[tuple[str, int]]:
        """The MongoDB sort, which the indexes serve in both directions."""
        return [(name, direction if self is LetterOrder.NEWEST else -direction) for name, direction in NEWEST_FIRST]


class LetterPage(NamedTuple):
    """A page of letters, and the cursor of the next page (None on the last one)."""

    items: list[Document]
    next_cursor: str | None


@dataclass(slots=True)
class RecordResult:
    """The number of new, failed-again and known deliveries of a batch; `nameless` are letters without a message id."""

    new: int = 0
    dead_again: int = 0
    known: int = 0
    nameless: list[str] = field(default_factory=list)

    def __add__(self, other: "RecordResult") -> "RecordResult":
        """Add up the results of two batches."""
        return RecordResult(
            self.new + other.new,
            self.dead_again + other.dead_again,
            self.known + other.known,
            self.nameless + other.nameless,
        )


class LetterRecords:
    """The operations on the letters."""

    def __init__(self, database: Database) -> None:
        self._letters: Collection = database[LETTERS]
        self._bodies: Collection = database[BODIES]
        self._groups = GroupRecords(database)

    # --- Recording. ---

    async def record(self, deliveries: Sequence[Delivery], now: datetime, taken_by: str | None = None) -> RecordResult:
        """Record every delivery that is not recorded yet. Idempotent, even after a crash at any point.

        `taken_by` is the broker's user whose connection they came over; without it, none counts as foreign.

        Groups are written first and letters last, in one bulk write: a letter that exists is complete.
        """
        read = [(delivery, read_failure(delivery, now, taken_by)) for delivery in deliveries]
        replayed = await self._replayed(failure for _, failure in read)
        done = RecordResult()
        again = [failure for _, failure in read if (failure.replay_of, failure.message_id) in replayed]
        others = [(d, failure) for d, failure in read if (failure.replay_of, failure.message_id) not in replayed]
        by_id = await self._by_id(others, done)
        known = await self._known(by_id)
        fresh = {letter_id: taken for letter_id, taken in by_id.items() if letter_id not in known}
        records = [record_of(letter_id, *taken, now) for letter_id, taken in fresh.items()]
        for record, base in zip(records, map(_base, fresh), strict=True):
            if record["_id"] in done.nameless:
                record |= {"nameless": base, "unacknowledged": True}
        await self._groups.open([failure for _, failure in fresh.values()] + again, now)
        await self._store_bodies(fresh)
        writes = [UpdateOne({"_id": record.pop("_id")}, {"$setOnInsert": record}, upsert=True) for record in records]
        for failure in again:
            writes += updates.failed_again(failure, replayed[failure.replay_of, failure.message_id], now)
        if writes:
            await self._letters.bulk_write(writes, ordered=False)
        done.new, done.dead_again = len(fresh), len(again)
        done.known = len(deliveries) - done.new - done.dead_again
        return done

    async def record_acknowledged(self, recorded: RecordResult) -> None:
        """Note that the broker has the acknowledgement: an identical message that comes now is a different one."""
        if recorded.nameless:
            among = {"_id": {"$in": recorded.nameless}}
            await self._letters.update_many(among, {"$unset": {"unacknowledged": True}})

    async def mask_words(self, limit: int = 100) -> bool:
        """Remove the words of hidden values from up to `limit` letters that an earlier release recorded.

        Returns whether there may be more.
        """
        fields = ("orderId", "messageId", "error", "body", "changes")
        found = await self._letters.find({"wordsMasked": {"$exists": False}}, fields, limit=limit).to_list(None)
        writes = [
            # Only as it was read: a failure meanwhile adds words of its own.
            UpdateOne({"_id": letter["_id"], "changes": letter["changes"]}, {"$set": _masked_words(letter)})
            for letter in found
        ]
        if writes:
            await self._letters.bulk_write(writes, ordered=False)
        return len(found) == limit

    async def erase_person(self, user_id: str) -> int:
        """Remove what the letters of a user say about the person; return how many letters said anything.

        Letters are read one by one, as they say nothing about a person by themselves that could be searched for.
        """
        fields = ("orderId", "messageId", "error", "body", "bodyText", "edits", "changes")
        erased = 0
        async for read in self._letters.find({}, fields):
            letter: Document | None = read
            while letter is not None and (changes := without_person(letter, user_id)) is not None:
                # Only as it was read: a replay or a failure meanwhile changes it.
                unchanged = {"_id": letter["_id"], "changes": letter["changes"]}
                result = await self._letters.update_one(unchanged, {"$set": changes, "$inc": {"changes": 1}})
                erased += result.modified_count
                letter = await self._letters.find_one({"_id": letter["_id"]}, fields)
        return erased

    async def _replayed(self, failures: Iterable[Failure]) -> dict[tuple[str | None, str], Document]:
        """Map replays that are on record, as (letter id, message id), to their letters: a header is no proof."""
        asked = {failure.replay_of: failure.message_id for failure in failures if failure.replay_of}
        if not asked:
            return {}
        fields = ("replays.messageId", "fingerprint", "firstFailedAt", "lastFailedAt", "failures")
        cursor = self._letters.find({"_id": {"$in": list(asked)}}, fields)
        return {(letter["_id"], replay["messageId"]): letter async for letter in cursor for replay in letter["replays"]}

    async def _by_id(
        self, read: Sequence[tuple[Delivery, Failure]], done: RecordResult
    ) -> dict[str, tuple[Delivery, Failure]]:
        """Map letter ids to deliveries; two copies of one message are one letter."""
        found: dict[str, tuple[Delivery, Failure]] = {}
        nameless: dict[str, list[tuple[Delivery, Failure]]] = {}
        for delivery, failure in read:
            letter_id = identity(delivery, failure)
            if failure.message_id:
                found[letter_id] = (delivery, failure)
            else:
                nameless.setdefault(letter_id, []).append((delivery, failure))
        for base, copies in nameless.items():
            ids = await self._ids_of_nameless(base, [delivery for delivery, _ in copies])
            found |= dict(zip(ids, copies, strict=True))
            done.nameless += ids
        return found

    async def _ids_of_nameless(self, base: str, copies: Sequence[Delivery]) -> list[str]:
        """Return ids for identical messages that have no message id.

        A first delivery is a new letter. A redelivery is one of the recorded letters that may not have been
        acknowledged, as long as there are any.
        """
        again = sum(copy.redelivered for copy in copies)
        waiting = []
        if again:
            cursor = self._letters.find({"nameless": base, "unacknowledged": True}, {"_id": True}).limit(again)
            waiting = [letter["_id"] async for letter in cursor]
        return [waiting.pop() if copy.redelivered and waiting else f"{token_hex(4)}-{base}" for copy in copies]

    async def _known(self, ids: Iterable[str]) -> set[str]:
        cursor = self._letters.find({"_id": {"$in": list(ids)}}, {"_id": True})
        return {letter["_id"] async for letter in cursor}

    async def _store_bodies(self, fresh: dict[str, tuple[Delivery, Failure]]) -> None:
        for letter_id, (delivery, _) in fresh.items():
            if len(delivery.body) <= LARGEST_INLINE:
                continue
            for number, start in enumerate(range(0, len(delivery.body), PIECE)):
                piece = {"_id": f"{letter_id}:{number}", "data": delivery.body[start : start + PIECE]}
                await self._bodies.bulk_write([ReplaceOne({"_id": piece["_id"]}, piece, upsert=True)])

    # --- Replaying. ---

    async def claim(
        self, letters: Sequence[Document], replay: Document, edits: Mapping[str, Edit] | None = None
    ) -> bool:
        """Claim those of the letters that the replay may still send, and note the replay with their groups.

        `edits` are the bodies that the replay's patch makes, by letter id. Return whether all are claimed.
        """
        if not letters:
            return True
        now = utc_now()
        await self._groups.note_replay({letter["fingerprint"] for letter in letters}, replay)
        writes = [updates.claimed(letter, replay, now, (edits or {}).get(letter["_id"])) for letter in letters]
        return (await self._letters.bulk_write(writes, ordered=False)).matched_count == len(letters)

    async def record_sent(self, letters: Iterable[Document], unsendable: Mapping[str, Exception]) -> None:
        """Note that claimed letters were sent, apart from those that cannot be, by id with the reason."""
        now = utc_now()
        writes = [
            updates.sent(letter)
            if (error := unsendable.get(letter["_id"])) is None
            else updates.unsendable(letter, error, now)
            for letter in letters
        ]
        await self._letters.bulk_write(writes, ordered=False)

    async def record_handled(self, notices: Sequence[DeadLetterHandled], now: datetime) -> None:
        """Note which replays were handled. That outweighs a dead letter of another copy of the same message."""
        writes = [write for notice in notices for write in updates.handled(notice, now)]
        if writes:
            await self._letters.bulk_write(writes, ordered=False)

    async def failed_in(self, replay_id: str) -> Document | None:
        """Return a letter that failed again in a replay, unless another replay of it was handled."""
        unhandled = [status for status in STATUSES if status != HANDLED]
        return await self._one_of_replay(replay_id, DEAD, unhandled)

    async def awaited_in(self, replay_id: str) -> Document | None:
        """Return a letter of a replay whose outcome is not known yet, and still awaited."""
        return await self._one_of_replay(replay_id, PENDING, [REPLAYING, PENDING])

    async def _one_of_replay(self, replay_id: str, outcome: str, statuses: Sequence[str]) -> Document | None:
        own = {"$elemMatch": {"replay": replay_id, "outcome": outcome}}
        return await self._letters.find_one({"status": {"$in": list(statuses)}, "replays": own}, {"replays": True})

    # --- Reading. ---

    async def page(
        self, filters: Filters, limit: int, cursor: str | None, order: LetterOrder = LetterOrder.NEWEST
    ) -> LetterPage:
        """Return a page of letters. Raises ValueError for a cursor of another list."""
        asked = query(filters)
        if cursor is not None:
            at, last = read_cursor(cursor)
            beyond = "$lt" if order is LetterOrder.NEWEST else "$gt"
            asked.setdefault("$and", []).append(
                {"lastFailedAt": {f"{beyond}e": at}, "$or": [{"lastFailedAt": {beyond: at}}, {"_id": {beyond: last}}]}
            )
        found = await self._letters.find(asked, LISTED_FIELDS, sort=order.sort, limit=limit + 1).to_list(None)
        items = found[:limit]
        more = len(found) > limit
        return LetterPage(items, write_cursor(items[-1]["lastFailedAt"], items[-1]["_id"]) if more else None)

    async def letter(self, letter_id: str) -> Document | None:
        """Return a whole letter: `body` as it was received, `current` as a replay would send it."""
        letter = await self.without_big_body(letter_id)
        return None if letter is None else await self.with_body(letter)

    async def to_replay(self, filters: Filters, most: int) -> AsyncIterator[Document]:
        """Yield the first letters that a replay of the selection would send, in its order; see `without_big_body`."""
        oldest_first = [("lastFailedAt", 1), ("_id", 1)]
        found = self._letters.find(replayable(filters), {"_id": True}, sort=oldest_first, limit=most)
        ids = [letter["_id"] async for letter in found]
        for start in range(0, len(ids), READ_AT_ONCE):
            for letter in await self.without_big_bodies(ids[start : start + READ_AT_ONCE]):
                yield letter
                await asyncio.sleep(0)  # thousands of bodies take seconds, in which others are served, too

    async def first(self, letters: Document, most: int) -> list[Document]:
        """Return the first letters of a query, the oldest failure first, without big fields."""
        oldest_first = [("lastFailedAt", 1), ("_id", 1)]
        return await self._letters.find(letters, LISTED_FIELDS, sort=oldest_first, limit=most).to_list(None)

    async def without_big_bodies(self, ids: Sequence[str]) -> list[Document]:
        """Return these letters, which must exist, in this order; see `without_big_body`."""
        among = self._letters.find({"_id": {"$in": list(ids)}}, UNSHOWN_FIELDS)
        found = {letter["_id"]: letter async for letter in among}
        return [found[letter_id] for letter_id in ids]

    async def without_big_body(self, letter_id: str) -> Document | None:
        """Return a letter with None for a body of more than LARGEST_INLINE bytes, which a page need not load."""
        return await self._letters.find_one({"_id": letter_id}, UNSHOWN_FIELDS)

    async def beginning_with(self, prefix: str) -> list[str]:
        """Return up to two ids that begin with the prefix."""
        among = {"_id": {"$gte": prefix, "$lt": f"{prefix}\U0010ffff"}}
        return [letter["_id"] async for letter in self._letters.find(among, {"_id": True}, limit=2)]

    async def with_body(self, letter: Document) -> Document:
        """Add the body to a letter, wherever it is stored."""
        if letter["body"] is None:
            ids = [f"{letter['_id']}:{number}" for number in range(-(-letter["size"] // PIECE))]
            pieces = {piece["_id"]: piece["data"] async for piece in self._bodies.find({"_id": {"$in": ids}})}
            letter["body"] = b"".join(pieces[piece_id] for piece_id in ids)
        letter["current"] = current_body(letter)
        return letter

    async def counts(self) -> dict[str, int]:
        """Count the letters by status."""
        return {status: await self._letters.count_documents({"status": status}) for status in STATUSES}

    async def count(self, filters: Filters, most: int) -> int:
        """Count the selected letters, up to `most`."""
        return await self._letters.count_documents(query(filters), limit=most)

    async def count_decidable(self, filters: Filters) -> int:
        """Count the selected letters that can be discarded."""
        return await self._letters.count_documents(discardable(filters))

    async def count_replayable(self, filters: Filters) -> int:
        """Count the selected letters that can be replayed."""
        return await self._letters.count_documents(replayable(filters))

    async def foreign(self, filters: Filters, most: int) -> list[Document]:
        """Return foreign letters of a selection that are open, the newest first."""
        asked = query(filters, decidable(filters)) | {"foreign": True}
        return await self._letters.find(asked, LISTED_FIELDS, sort=NEWEST_FIRST, limit=most).to_list(None)

    # --- Discarding and restoring. ---

    async def discard(self, filters: Filters, discarded: Document) -> int:
        """Archive the selected letters that can be discarded; return how many."""
        result = await self._letters.update_many(discardable(filters), updates.discarded(discarded))
        return int(result.modified_count)

    async def restore(self, filters: Filters, restored: Document) -> int:
        """Take the selected discarded letters back; return how many."""
        result = await self._letters.update_many(restorable(filters), updates.restored(restored))
        return int(result.modified_count)

    async def count_decided(self, filters: Filters, participle: str, by: str, why: str, since: datetime) -> int:
        """Count the selected letters that somebody has discarded or restored for a reason since, and that still are."""
        entry: Document = {"by": by, "why": why, "at": {"$gte": since}}
        if participle == DISCARDED:
            decided: Document = {f"discarded.{name}": value for name, value in entry.items()}
            return await self._letters.count_documents(query(filters, (DISCARDED,)) | decided)
        others = tuple(status for status in STATUSES if status != DISCARDED)
        return await self._letters.count_documents(query(filters, others) | {"restored": {"$elemMatch": entry}})


def _base(letter_id: str) -> str:
    return letter_id.rpartition("-")[2]


def _masked_words(letter: Document) -> Document:
    error = letter["error"]
    words = words_of(letter["orderId"] or "", letter["messageId"], error["type"], error["message"], letter["body"])
    return {"words": words, "wordsMasked": True}

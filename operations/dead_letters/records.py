"""The collections of dead letters, in the database of operations.

    dead_letters          a letter for each failed message with its whole line of replays; see `letter`
    dead_letter_bodies    the pieces of bodies that are too big to be kept in a letter
    dead_letter_groups    what letters with the same fingerprint have in common, and what operators say about them
    replays               who had what replayed, and how far it has come; see `replaying`

Nothing is ever deleted. Whatever changes a letter names in its filter the state that it starts from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from secrets import token_hex
from typing import Any, NamedTuple

from pymongo import ASCENDING, DESCENDING, IndexModel, ReplaceOne, UpdateMany, UpdateOne

from operations.dead_letters.filters import Filters, query
from operations.dead_letters.letter import (
    LARGEST_INLINE,
    Failure,
    current_body,
    failed_fields,
    identity,
    read_failure,
    record_of,
    words,
)
from operations.dead_letters.status import DEAD, DISCARDED, HANDLED, MENDED, NEW, OPEN, PENDING, STATUSES
from operations.reading.cursors import read_cursor, write_cursor
from shared.bus import Delivery
from shared.contracts import DeadLetterHandled
from shared.database import Collection, Database, Document
from shared.schema import CollectionSchema

LETTERS = "dead_letters"
BODIES = "dead_letter_bodies"
GROUPS = "dead_letter_groups"
REPLAYS = "replays"

PIECE = 8 * 1024 * 1024
"""Bytes of a big body in one document; MongoDB takes up to 16 MB."""

_NEWEST = [("lastFailedAt", DESCENDING), ("_id", DESCENDING)]


def _newest_of(*fields: str, name: str) -> IndexModel:
    return IndexModel([*((field, ASCENDING) for field in fields), *_NEWEST], name=name)


BY_GROUP = "by-group"

SCHEMA: dict[str, CollectionSchema] = {
    LETTERS: CollectionSchema(
        (
            _newest_of(name="newest"),
            _newest_of("status", name="by-status"),
            _newest_of("service", "status", name="by-service"),
            _newest_of("error.type", "status", name="by-error"),
            _newest_of("routingKey", "status", name="by-type"),
            _newest_of("orderId", name="by-order"),
            _newest_of("words", name="by-word"),
            # Has all that the list of groups is made from.
            IndexModel(
                [("fingerprint", ASCENDING), ("status", ASCENDING), *_NEWEST, ("firstFailedAt", ASCENDING)],
                name=BY_GROUP,
            ),
            IndexModel([("status", ASCENDING), ("firstFailedAt", ASCENDING)], name="oldest"),
            IndexModel([("status", ASCENDING), ("replays.replay", ASCENDING)], name="of-replay"),
            IndexModel(
                [("status", ASCENDING), ("claimedBy", ASCENDING)],
                name="claimed",
                partialFilterExpression={"claimedBy": {"$exists": True}},
            ),
            IndexModel(
                [("nameless", ASCENDING)],
                name="nameless",
                partialFilterExpression={"unacknowledged": {"$exists": True}},
            ),
        )
    ),
    GROUPS: CollectionSchema((IndexModel([("status", ASCENDING)], name="by-status"),)),
    REPLAYS: CollectionSchema(
        (
            IndexModel([("at", DESCENDING)], name="newest"),
            IndexModel([("status", ASCENDING), ("lease.until", ASCENDING)], name="unfinished"),
        )
    ),
}

SHOWN_IN_LISTS = {
    "body": False,
    "bodyText": False,
    "words": False,
    "error.traceback": False,
    "edits.body": False,
    "headers": False,
}
"""What a list leaves out: a letter may be big."""


class Page(NamedTuple):
    """Some letters, the one that failed last first, and where the next page begins (None: there is none)."""

    items: list[Document]
    next_cursor: str | None


@dataclass(slots=True)
class Recorded:
    """What became of a batch of deliveries; `nameless` are the ids of letters whose messages have none."""

    new: int = 0
    dead_again: int = 0
    known: int = 0
    nameless: list[str] = field(default_factory=list)

    def __add__(self, other: "Recorded") -> "Recorded":
        """What became of two batches."""
        return Recorded(
            self.new + other.new,
            self.dead_again + other.dead_again,
            self.known + other.known,
            self.nameless + other.nameless,
        )


class LetterRecords:
    """The operations on the letters. All of them let the driver's errors out."""

    def __init__(self, database: Database) -> None:
        self._letters: Collection = database[LETTERS]
        self._bodies: Collection = database[BODIES]
        self._groups: Collection = database[GROUPS]

    # --- Taking letters in. ---

    async def record(self, deliveries: Sequence[Delivery], now: datetime) -> Recorded:
        """Record every delivery that is not recorded yet; the same again changes nothing, also after a crash anywhere.

        The groups come first and the letters last, in one bulk write: what has its letter has everything.
        """
        read = [(delivery, read_failure(delivery, now)) for delivery in deliveries]
        replayed = await self._replayed(failure for _, failure in read)
        done = Recorded()
        again = [failure for _, failure in read if (failure.replay_of, failure.message_id) in replayed]
        others = [(d, failure) for d, failure in read if (failure.replay_of, failure.message_id) not in replayed]
        named = await self._named(others, done)
        known = await self._known(named)
        fresh = {letter_id: taken for letter_id, taken in named.items() if letter_id not in known}
        records = [record_of(letter_id, *taken, now) for letter_id, taken in fresh.items()]
        for record, base in zip(records, map(_base, fresh), strict=True):
            if record["_id"] in done.nameless:
                record |= {"nameless": base, "unacknowledged": True}
        await self._open_groups([failure for _, failure in fresh.values()] + again, now)
        await self._store_bodies(fresh)
        writes = [UpdateOne({"_id": record.pop("_id")}, {"$setOnInsert": record}, upsert=True) for record in records]
        writes += [write for failure in again for write in _died_again(failure, now)]
        if writes:
            await self._letters.bulk_write(writes, ordered=False)
        done.new, done.dead_again = len(fresh), len(again)
        done.known = len(deliveries) - done.new - done.dead_again
        return done

    async def acknowledged(self, recorded: Recorded) -> None:
        """Note that the broker has been told: a message like these that comes now is another one."""
        if recorded.nameless:
            among = {"_id": {"$in": recorded.nameless}}
            await self._letters.update_many(among, {"$unset": {"unacknowledged": True}})

    async def _replayed(self, failures: Iterable[Failure]) -> set[tuple[str | None, str]]:
        """Which of the failures are of replays that are on record, as (letter, message id): a header is no proof."""
        asked = {failure.replay_of: failure.message_id for failure in failures if failure.replay_of}
        if not asked:
            return set()
        cursor = self._letters.find({"_id": {"$in": list(asked)}}, {"replays.messageId": True})
        return {(letter["_id"], replay["messageId"]) async for letter in cursor for replay in letter["replays"]}

    async def _named(
        self, read: Sequence[tuple[Delivery, Failure]], done: Recorded
    ) -> dict[str, tuple[Delivery, Failure]]:
        """Each delivery under the id of its letter; the same message twice is there once."""
        named: dict[str, tuple[Delivery, Failure]] = {}
        nameless: dict[str, list[tuple[Delivery, Failure]]] = {}
        for delivery, failure in read:
            known_as = identity(delivery, failure)
            if failure.message_id:
                named[known_as] = (delivery, failure)
            else:
                nameless.setdefault(known_as, []).append((delivery, failure))
        for base, copies in nameless.items():
            ids = await self._names_of_nameless(base, [delivery for delivery, _ in copies])
            named |= dict(zip(ids, copies, strict=True))
            done.nameless += ids
        return named

    async def _names_of_nameless(self, base: str, copies: Sequence[Delivery]) -> list[str]:
        """Ids for messages without one that are alike in everything.

        One that comes for the first time is another one than all before. One that comes again is one of those that
        were recorded and, as far as is known, not acknowledged, where there are any left.
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

    async def _open_groups(self, failures: Sequence[Failure], now: datetime) -> None:
        """Have a group for each failure; one that was called mended is new again."""
        groups = {failure.fingerprint: failure for failure in failures}
        if not groups:
            return
        writes: list[UpdateOne | UpdateMany] = [
            UpdateOne({"_id": key}, {"$setOnInsert": _group_of(failure, now)}, upsert=True)
            for key, failure in groups.items()
        ]
        mended = {"_id": {"$in": list(groups)}, "status": MENDED}
        writes.append(UpdateMany(mended, {"$set": {"status": NEW, "statusAt": now, "reopenedAt": now}}))
        await self._groups.bulk_write(writes, ordered=False)

    async def _store_bodies(self, fresh: dict[str, tuple[Delivery, Failure]]) -> None:
        for letter_id, (delivery, _) in fresh.items():
            if len(delivery.body) <= LARGEST_INLINE:
                continue
            for number, start in enumerate(range(0, len(delivery.body), PIECE)):
                piece = {"_id": f"{letter_id}:{number}", "data": delivery.body[start : start + PIECE]}
                await self._bodies.bulk_write([ReplaceOne({"_id": piece["_id"]}, piece, upsert=True)])

    # --- What becomes of replays. ---

    async def handled(self, notices: Sequence[DeadLetterHandled], now: datetime) -> None:
        """Note which replays were handled. That outweighs a dead letter of another copy of the same message."""
        writes = [write for notice in notices for write in _handled(notice, now)]
        if writes:
            await self._letters.bulk_write(writes, ordered=False)

    # --- Reading. ---

    async def page(self, filters: Filters, limit: int, cursor: str | None) -> Page:
        """A page of the list; raises ValueError for a cursor that is none of it."""
        asked = query(filters)
        if cursor is not None:
            at, last = read_cursor(cursor)
            asked.setdefault("$and", []).append(
                {"lastFailedAt": {"$lte": at}, "$or": [{"lastFailedAt": {"$lt": at}}, {"_id": {"$lt": last}}]}
            )
        found = await self._letters.find(asked, SHOWN_IN_LISTS, sort=_NEWEST, limit=limit + 1).to_list(None)
        items = found[:limit]
        more = len(found) > limit
        return Page(items, write_cursor(items[-1]["lastFailedAt"], items[-1]["_id"]) if more else None)

    async def letter(self, letter_id: str) -> Document | None:
        """All of a letter, with its body as it came and, as `current`, what a replay would send."""
        letter = await self.without_big_body(letter_id)
        return None if letter is None else await self.with_body(letter)

    async def without_big_body(self, letter_id: str) -> Document | None:
        """A letter whose body is None where it has more than LARGEST_INLINE bytes: a page need not load it."""
        return await self._letters.find_one({"_id": letter_id}, {"words": False})

    async def beginning_with(self, prefix: str) -> list[str]:
        """The ids, two at most, that begin so."""
        among = {"_id": {"$gte": prefix, "$lt": f"{prefix}\U0010ffff"}}
        return [letter["_id"] async for letter in self._letters.find(among, {"_id": True}, limit=2)]

    async def with_body(self, letter: Document) -> Document:
        """The letter with its body, wherever that is kept."""
        if letter["body"] is None:
            ids = [f"{letter['_id']}:{number}" for number in range(-(-letter["size"] // PIECE))]
            pieces = {piece["_id"]: piece["data"] async for piece in self._bodies.find({"_id": {"$in": ids}})}
            letter["body"] = b"".join(pieces[piece_id] for piece_id in ids)
        letter["current"] = current_body(letter)
        return letter

    async def counts(self) -> dict[str, int]:
        """How many letters there are, by status."""
        return {status: await self._letters.count_documents({"status": status}) for status in STATUSES}

    async def count(self, filters: Filters, statuses: tuple[str, ...]) -> int:
        """How many of these letters have one of the statuses."""
        return await self._letters.count_documents(query(filters, statuses))

    # --- Deciding. ---

    async def discard(self, filters: Filters, discarded: Document) -> int:
        """Put letters aside; returns how many. Named by their ids, also those of whose replay nothing was heard."""
        statuses = decidable(filters)
        result = await self._letters.update_many(
            query(filters, statuses), {"$set": {"status": DISCARDED, "discarded": discarded}, "$inc": {"changes": 1}}
        )
        return int(result.modified_count)


def decidable(filters: Filters) -> tuple[str, ...]:
    """The statuses in which letters can be replayed or discarded: those that are dead.

    By their ids also those that are pending, as somebody who names them has looked; else they would be stuck if nobody
    can tell any more what became of their replay.
    """
    return (DEAD, PENDING) if filters.ids else (DEAD,)


def _base(letter_id: str) -> str:
    return letter_id.rpartition("-")[2]


def _group_of(failure: Failure, now: datetime) -> Document:
    return {
        "status": NEW,
        "statusAt": now,
        "since": now,
        "notes": [],
        "service": failure.service,
        "queue": failure.queue,
        "routingKey": failure.routing_key,
        "errorType": failure.error.type,
        "pattern": failure.pattern,
    }


def _died_again(failure: Failure, now: datetime) -> list[UpdateOne]:
    """A replay came back as a dead letter: to the letter that it replays, which is dead again if it was its last."""
    outcome: dict[str, Any] = {
        "replays.$.outcome": DEAD,
        "replays.$.outcomeAt": now,
        "replays.$.error": {"type": failure.error.type, "message": failure.error.message},
    }
    entry = {"$elemMatch": {"messageId": failure.message_id, "outcome": PENDING}}
    last = {"_id": failure.replay_of, "lastReplay": failure.message_id, "status": {"$in": OPEN}, "replays": entry}
    changed = failed_fields(failure)
    attempts = changed.pop("attempts")
    found_by = words(f"{failure.error.type} {failure.error.message}")[:20]
    return [
        UpdateOne(
            last,
            {
                "$set": outcome | changed | {"status": DEAD},
                "$unset": {"claimedBy": True},
                "$inc": {"attempts": attempts, "changes": 1},
                "$addToSet": {"words": {"$each": found_by}},
            },
        ),
        UpdateOne(_not_decided_by(str(failure.replay_of), failure.message_id) | {"replays": entry}, {"$set": outcome}),
    ]


def _handled(notice: DeadLetterHandled, now: datetime) -> list[UpdateOne]:
    outcome = {"replays.$.outcome": HANDLED, "replays.$.outcomeAt": now}
    entry = {"$elemMatch": {"messageId": notice.message_id, "outcome": {"$ne": HANDLED}}}
    last = {"_id": notice.letter_id, "lastReplay": notice.message_id, "status": {"$in": OPEN}, "replays": entry}
    return [
        UpdateOne(last, {"$set": outcome | {"status": HANDLED}, "$unset": {"claimedBy": True}, "$inc": {"changes": 1}}),
        UpdateOne(_not_decided_by(notice.letter_id, notice.message_id) | {"replays": entry}, {"$set": outcome}),
    ]


def _not_decided_by(letter_id: str, message_id: str) -> Document:
    """The letter, if what becomes of that replay says nothing about the letter itself any more."""
    return {"_id": letter_id, "$or": [{"lastReplay": {"$ne": message_id}}, {"status": {"$nin": OPEN}}]}

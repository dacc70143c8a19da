"""What operators do with delivery slots, and the rules by which there are any; orders book them in resources.py."""

from collections.abc import Sequence
from datetime import datetime
from itertools import islice, takewhile
from typing import Any, cast

from pymongo import ASCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from inventory_service.board import follow, listed
from inventory_service.resources import COLLECTION, from_document
from inventory_service.stock import SLOT, Slot
from inventory_service.timetable import Rules, on_offer, opening_at, openings, start_of
from shared.clock import Clock
from shared.database import Collection, Database, Document
from shared.schema import CollectionSchema

RULES_COLLECTION = "slot_rules"
RULES_ID = "rules"
RULES = {
    "durationMinutes": "duration",
    "capacity": "capacity",
    "opensAtMinute": "opens",
    "closesAtMinute": "closes",
    "cutoffMinutes": "cutoff",
    "leadMinutes": "lead",
    "horizonSlots": "horizon",
}
"""The fields of the one document of rules, and what they are in `Rules`: capacity in minor units."""

RULES_SCHEMA = CollectionSchema(
    validator={
        "$jsonSchema": {
            "required": list(RULES),
            "properties": {name: {"bsonType": ["int", "long"], "minimum": 0} for name in RULES},
        }
    }
)

UPSERT_ATTEMPTS = 5


class SlotRules:
    """The rules, which operators change while orders pour in: whoever decides about orders reads them first."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._collection: Collection = database.get_collection(RULES_COLLECTION, read_concern=ReadConcern("majority"))
        self._clock = clock

    async def read(self) -> Rules:
        """The rules as they are now; those of the contract until somebody sets others."""
        document = await self._collection.find_one({"_id": RULES_ID})
        return Rules() if document is None else Rules(**{ours: document[name] for name, ours in RULES.items()})

    async def write(self, rules: Rules) -> None:
        """Replace the rules."""
        document = {name: getattr(rules, ours) for name, ours in RULES.items()}
        await self._collection.replace_one({"_id": RULES_ID}, {**document, "updatedAt": self._clock()}, upsert=True)


class Slots:
    """What can be done with the slots; a driver's error passes through as it is. Reads see what a majority has."""

    def __init__(self, database: Database, rules: SlotRules, clock: Clock) -> None:
        self._collection: Collection = database.get_collection(COLLECTION, read_concern=ReadConcern("majority"))
        self._rules = rules
        self._clock = clock

    async def adjust(
        self, slot_id: str, *, capacity: int | None, follow_rules: bool, disabled: bool | None
    ) -> Slot | None:
        """Change one slot, at once and whatever is booked in it; None if there is no such slot.

        `capacity` is in minor units; with `follow_rules` it is the rules' again. A slot that nobody has booked yet is
        recorded by this, if there is one by the rules.
        """
        rules = await self._rules.read()
        start = start_of(slot_id)
        opening = opening_at(rules, start) if start is not None and start > self._clock() else None
        if opening is None and await self._find(slot_id) is None:
            return None
        new = {} if opening is None else {"start": opening.start, "end": opening.end}
        adjusted = None if capacity is None and not follow_rules else not follow_rules
        limit = rules.capacity if follow_rules else capacity
        changes = _changes(new, rules.capacity, limit, adjusted, disabled, self._clock())
        return follow(await self._upsert(slot_id, changes), rules)

    async def page(
        self, since: datetime | None, until: datetime | None, *, after: datetime | None, limit: int
    ) -> list[Slot]:
        """Slots that start from `since` (now) to before `until` (the end of the horizon), by their start.

        `after` is the start of the last slot of the page before. Of times past only those are left that were recorded.
        """
        rules, now = await self._rules.read(), self._clock()
        since = now if since is None else since
        if until is None:
            offered = on_offer(rules, now)
            until = max(offered[-1].end, since) if offered else since
        within: Document = {"$gte": since, "$lt": until} | ({} if after is None else {"$gt": after})
        query = {"end": {"$gt": since}, "start": within}
        cursor = self._collection.find(query).sort([("start", ASCENDING)]).limit(limit)
        recorded = [cast("Slot", from_document(document)) for document in await cursor.to_list(None)]
        ahead = openings(rules, max(since, now, after or since))
        times = takewhile(lambda opening: opening.start < until, ahead)
        unseen = (opening for opening in times if after is None or opening.start > after)
        return list(islice(listed(rules, recorded, unseen), limit))

    async def _find(self, slot_id: str) -> Slot | None:
        document = await self._collection.find_one({"_id": slot_id, "kind": SLOT})
        return None if document is None else cast("Slot", from_document(document))

    async def _upsert(self, slot_id: str, changes: Sequence[Document]) -> Slot:
        for attempt in range(UPSERT_ATTEMPTS):
            try:
                document: Any = await self._collection.find_one_and_update(
                    {"_id": slot_id, "kind": SLOT}, changes, upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                # Booked for the first time at this moment: the next attempt finds it.
                if attempt == UPSERT_ATTEMPTS - 1:
                    raise
            else:
                return cast("Slot", from_document(document))
        raise AssertionError("unreachable")


def _changes(
    new: Document, default: int, capacity: int | None, adjusted: bool | None, disabled: bool | None, now: datetime
) -> list[Document]:
    """The update: a pipeline, so that load and capacity are right whatever is booked at the same moment."""
    was: Document = {
        "supplied": {"$ifNull": ["$supplied", default]},
        "quantity": {"$ifNull": ["$quantity", default]},
        "moving": {"$ifNull": ["$moving", {"$literal": {}}]},
        "version": {"$add": [{"$ifNull": ["$version", 0]}, 1]},
        "createdAt": {"$ifNull": ["$createdAt", now]},
        "updatedAt": now,
        "disabled": {"$ifNull": ["$disabled", False]} if disabled is None else disabled,
        "adjusted": {"$ifNull": ["$adjusted", False]} if adjusted is None else adjusted,
    }
    was |= {name: {"$ifNull": [f"${name}", value]} for name, value in new.items()}
    stages: list[Document] = [{"$set": was}]
    if capacity is not None:
        load = {"$subtract": ["$supplied", "$quantity"]}
        stages.append(
            {
                "$set": {
                    "supplied": capacity,
                    "quantity": {"$subtract": [capacity, load]},
                    "ceiling": {"$cond": [{"$gt": [load, capacity]}, load, "$$REMOVE"]},
                }
            }
        )
    return stages

"""What operators do with delivery slots, and the rules by which there are any; orders book them in stock_items.py."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import islice, takewhile
from typing import Any, cast

from pymongo import ASCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from inventory_service.availability import apply_rules, list_slots
from inventory_service.stock import SLOT, Slot
from inventory_service.stock_items import COLLECTION, from_document
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
            "required": [*RULES, "version"],
            "properties": {name: {"bsonType": ["int", "long"], "minimum": 0} for name in (*RULES, "version")},
        }
    }
)


class SlotRules:
    """The rules, which operators change while orders pour in: whoever decides about orders reads them first."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._collection: Collection = database.get_collection(RULES_COLLECTION, read_concern=ReadConcern("majority"))
        self._clock = clock

    async def read(self) -> Rules:
        """The rules as they are now; those of the contract until somebody sets others."""
        document = await self._collection.find_one({"_id": RULES_ID})
        return _rules(document)

    async def change(self, changed: Callable[[Rules], Rules]) -> Rules:
        """Change the rules to what `changed` makes of them, whoever else does so at the same moment; returns them.

        What `changed` raises passes through, and nothing is changed.
        """
        while True:
            before = await self._collection.find_one({"_id": RULES_ID})
            rules = changed(_rules(before))
            version = before["version"] if before is not None else 0
            document = {name: getattr(rules, ours) for name, ours in RULES.items()}
            document |= {"version": version + 1, "updatedAt": self._clock()}
            try:
                await self._collection.replace_one({"_id": RULES_ID, "version": version}, document, upsert=True)
            except DuplicateKeyError:
                continue  # changed by somebody else since it was read
            return rules

    async def write(self, rules: Rules) -> None:
        """Replace the rules."""
        await self.change(lambda _: rules)


def _rules(document: Document | None) -> Rules:
    return Rules() if document is None else Rules(**{ours: document[name] for name, ours in RULES.items()})


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
        return apply_rules(await self._upsert(slot_id, changes), rules)

    async def page(
        self, since: datetime | None, until: datetime | None, *, after: datetime | None, limit: int
    ) -> tuple[list[Slot], datetime | None]:
        """Slots from `since` (now) to before `until` (the end of the horizon), and where the next page begins.

        They come by their start; `after` is where the page before ended. Of times past only those are left that were
        recorded. Left out is what cannot be booked for its times: by the rules there is none, or a booked one overlaps.
        """
        rules, now = await self._rules.read(), self._clock()
        since = now if since is None else since
        if until is None:
            offered = on_offer(rules, now)
            until = max(offered[-1].end, since) if offered else since
        # One that is under way at the beginning is not on the page, and may overlap with what is.
        from_ = since if after is None else max(since, after + timedelta(milliseconds=1))
        under_way = await self._read({"end": {"$gt": from_}, "start": {"$lt": from_}})
        recorded = await self._read({"end": {"$gt": from_}, "start": {"$gte": from_, "$lt": until}}, limit)
        last = recorded[-1].start if len(recorded) == limit else None
        times = takewhile(
            lambda opening: opening.start < until and (last is None or opening.start <= last),
            openings(rules, max(from_, now)),
        )
        kept = [slot for slot in recorded if slot.reserved or slot.start <= now or opening_at(rules, slot.start)]
        slots = list(islice(list_slots(rules, kept, times, under_way), limit + 1))
        if len(slots) > limit:
            return slots[:limit], slots[limit - 1].start
        return slots, last

    async def _read(self, query: Document, limit: int = 0) -> list[Slot]:
        cursor = self._collection.find(query).sort([("start", ASCENDING)]).limit(limit)
        return [cast("Slot", from_document(document)) for document in await cursor.to_list(None)]

    async def _find(self, slot_id: str) -> Slot | None:
        document = await self._collection.find_one({"_id": slot_id, "kind": SLOT})
        return None if document is None else cast("Slot", from_document(document))

    async def _upsert(self, slot_id: str, changes: Sequence[Document]) -> Slot:
        while True:
            try:
                document: Any = await self._collection.find_one_and_update(
                    {"_id": slot_id, "kind": SLOT}, changes, upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                continue  # booked for the first time at this moment: the next attempt finds it
            return cast("Slot", from_document(document))


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

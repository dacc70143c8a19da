"""Delivery slots for operators: the rules that define them, and the listing and adjusting of single slots."""

from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import islice, takewhile

from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from inventory_service.availability import apply_rules, list_slots
from inventory_service.stock import Slot
from inventory_service.stock_items import StockItems
from inventory_service.timetable import Rules, on_offer, opening_at, openings, start_of
from shared.clock import Clock
from shared.database import Collection, Database, Document
from shared.schema import CollectionSchema

RULES_COLLECTION = "slot_rules"
RULES_ID = "rules"
RULES_FIELDS = {
    "durationMinutes": "duration",
    "capacity": "capacity",
    "opensAtMinute": "opens",
    "closesAtMinute": "closes",
    "cutoffMinutes": "cutoff",
    "leadMinutes": "lead",
    "horizonSlots": "horizon",
}
"""The fields of the only document, by the attributes of `Rules` they hold; capacity in minor units."""

RULES_SCHEMA = CollectionSchema(
    validator={
        "$jsonSchema": {
            "required": [*RULES_FIELDS, "version"],
            "properties": {name: {"bsonType": ["int", "long"], "minimum": 0} for name in (*RULES_FIELDS, "version")},
        }
    }
)


class SlotRules:
    """The rules of slots. Operators change them at any time, so every batch of orders reads them first."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._collection: Collection = database.get_collection(RULES_COLLECTION, read_concern=ReadConcern("majority"))
        self._clock = clock

    async def read(self) -> Rules:
        """Return the current rules; the defaults until an operator sets others."""
        document = await self._collection.find_one({"_id": RULES_ID})
        return _rules(document)

    async def change(self, changed: Callable[[Rules], Rules]) -> Rules:
        """Apply `changed` to the current rules and return the result; safe with concurrent changes.

        An exception from `changed` passes through and leaves the rules unchanged.
        """
        while True:
            before = await self._collection.find_one({"_id": RULES_ID})
            rules = changed(_rules(before))
            version = before["version"] if before is not None else 0
            document = {name: getattr(rules, attribute) for name, attribute in RULES_FIELDS.items()}
            document |= {"version": version + 1, "updatedAt": self._clock()}
            try:
                await self._collection.replace_one({"_id": RULES_ID, "version": version}, document, upsert=True)
            except DuplicateKeyError:
                continue  # another operator changed them since the read
            return rules

    async def write(self, rules: Rules) -> None:
        """Replace the rules."""
        await self.change(lambda _: rules)


def _rules(document: Document | None) -> Rules:
    if document is None:
        return Rules()
    return Rules(**{attribute: document[name] for name, attribute in RULES_FIELDS.items()})


class Slots:
    """Listing and adjusting of slots, recorded or not; driver errors pass through."""

    def __init__(self, stock_items: StockItems, rules: SlotRules, clock: Clock) -> None:
        self._stock_items = stock_items
        self._rules = rules
        self._clock = clock

    async def adjust(
        self, slot_id: str, *, capacity: int | None, follow_rules: bool, disabled: bool | None
    ) -> Slot | None:
        """Change one slot, whatever is booked in it; return None if there is no such slot.

        `capacity` is in minor units; `follow_rules` resets it to the rules' capacity. A slot of the timetable that has
        never been booked is recorded by its first adjustment.
        """
        rules = await self._rules.read()
        start = start_of(slot_id)
        opening = opening_at(rules, start) if start is not None and start > self._clock() else None
        if opening is None and await self._stock_items.find_slot(slot_id) is None:
            return None
        slot = await self._stock_items.adjust_slot(
            slot_id,
            opening,
            default_capacity=rules.capacity,
            capacity=rules.capacity if follow_rules else capacity,
            adjusted=None if capacity is None and not follow_rules else not follow_rules,
            disabled=disabled,
        )
        return apply_rules(slot, rules)

    async def page(
        self, since: datetime | None, until: datetime | None, *, after: datetime | None, limit: int
    ) -> tuple[list[Slot], datetime | None]:
        """Return a page of slots by start, and the start of its last slot if there may be another page.

        The slots start at `since` (now) or later and before `until` (the end of the horizon); `after` is where the
        previous page ended. Of the past, only recorded slots are listed. Slots whose times cannot be booked are left
        out: those without an opening in the rules, and those that a booked slot overlaps.
        """
        rules, now = await self._rules.read(), self._clock()
        since = now if since is None else since
        if until is None:
            offered = on_offer(rules, now)
            until = max(offered[-1].end, since) if offered else since
        first = since if after is None else max(since, after + timedelta(milliseconds=1))
        # A slot under way at the beginning is not listed, but may overlap slots that are.
        under_way = await self._stock_items.slots_under_way(first)
        recorded = await self._stock_items.slots_starting(first, until, limit)
        last = recorded[-1].start if len(recorded) == limit else None
        times = takewhile(
            lambda opening: opening.start < until and (last is None or opening.start <= last),
            openings(rules, max(first, now)),
        )
        shown = [slot for slot in recorded if slot.reserved or slot.start <= now or opening_at(rules, slot.start)]
        slots = list(islice(list_slots(rules, shown, times, under_way), limit + 1))
        if len(slots) > limit:
            return slots[:limit], slots[limit - 1].start
        return slots, last

"""The products collection: all that is counted, products and delivery slots; orders change it by guarded updates only.

They are in one collection because an order's holds are written by one ordered bulk update (stock.py, ADR 3 and 9).
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern

from inventory_service.metrics import conflicts
from inventory_service.stock import SLOT, Description, Kind, Product, Slot, StockItem
from shared import database
from shared.clock import Clock
from shared.database import Collection, Database, Document
from shared.schema import CollectionSchema

COLLECTION = "products"

INDEXES = (
    IndexModel([("markedSince", ASCENDING)], name="marked", sparse=True),
    IndexModel([("end", ASCENDING)], name="slots", sparse=True),
)

_WHOLE = {"bsonType": ["int", "long"]}
_NOT_NEGATIVE = {**_WHOLE, "minimum": 0}
_STORED: Document = {
    "required": ["kind", "version", "moving", "createdAt", "updatedAt"],
    "properties": {"version": {**_WHOLE, "minimum": 1}, "moving": {"bsonType": "object"}},
}
VALIDATOR: Document = {
    "$jsonSchema": {
        **_STORED,
        "oneOf": [
            {
                "required": ["quantity", "supplied"],
                "properties": {"kind": {"enum": ["goods"]}, "quantity": _NOT_NEGATIVE, "supplied": _NOT_NEGATIVE},
            },
            {"properties": {"kind": {"enum": ["vps"]}, "quantity": {"bsonType": "null"}}},
            {
                "required": ["quantity", "supplied", "start", "end", "disabled", "adjusted"],
                "properties": {
                    "kind": {"enum": [SLOT]},
                    "quantity": _WHOLE,
                    "supplied": _NOT_NEGATIVE,
                    "start": {"bsonType": "date"},
                    "end": {"bsonType": "date"},
                    "disabled": {"bsonType": "bool"},
                    "adjusted": {"bsonType": "bool"},
                    "ceiling": _NOT_NEGATIVE,
                },
            },
        ],
    }
}
"""Goods are never fewer than none; a slot may be, as its capacity may be lowered beneath what is booked."""

SCHEMA = CollectionSchema(INDEXES, VALIDATOR)


class StockItems:
    """What is done with the collection for orders; a driver's error passes through as it is.

    Reads see only what a majority has: decisions that rest on a write which a failover could undo would lose stock.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._collection: Collection = database.get_collection(COLLECTION, read_concern=ReadConcern("majority"))
        self._clock = clock

    async def read(self, ids: Iterable[str]) -> dict[str, StockItem]:
        """Those that exist, whatever they are."""
        wanted = list(ids)
        return {item.id: item for item in await self._find({"_id": {"$in": wanted}})} if wanted else {}

    async def read_slots(self, since: datetime, until: datetime) -> list[Slot]:
        """The recorded slots of which some part lies between these moments, in the order of their start."""
        query = {"end": {"$gt": since}, "start": {"$lt": until}}
        slots = [slot for slot in await self._find(query) if isinstance(slot, Slot)]
        return sorted(slots, key=lambda slot: slot.start)

    async def slots_with_pending_moves(self) -> list[StockItem]:
        """Slots with marks: room that is being taken or given back."""
        return await self._find({"markedSince": {"$exists": True}, "kind": SLOT})

    async def pending_since_before(self, moment: datetime) -> list[StockItem]:
        """What has had marks without a break since before this moment: the busy and the forgotten."""
        return await self._find({"markedSince": {"$lt": moment}})

    async def write(self, changed: Sequence[StockItem]) -> set[str]:
        """Store quantities and marks as they follow from the version each was read at; returns the ids of which.

        They are taken in the order of their ids, and the first that another worker has changed meanwhile ends it:
        orders over the same products can so never each hold what the other needs.
        """
        if not changed:
            return set()
        ordered = sorted(changed, key=lambda item: item.id)
        now = self._clock()
        try:
            await self._collection.bulk_write([_guarded_update(item, now) for item in ordered], ordered=True)
        except BulkWriteError as error:
            conflicts.inc()
            ordered = ordered[: _first_missed(error)]
        return {item.id for item in ordered}

    async def _find(self, query: Document) -> list[StockItem]:
        return [from_document(document) for document in await self._collection.find(query).to_list(None)]


def _first_missed(error: BulkWriteError) -> int:
    """Say at which update another worker was in the way; raises the error again if it was anything else."""
    failure = error.details["writeErrors"][:1] or [{}]
    if error.details["writeConcernErrors"] or failure[0].get("code") != database.DUPLICATE_KEY:
        raise error
    return int(failure[0]["index"])


def _guarded_update(item: StockItem, now: datetime) -> UpdateOne:
    # With upsert a guard that does not match is a duplicate key, which ends an ordered bulk write; without, it is
    # passed over in silence. A slot is made by it where it is booked for the first time, as of version 0.
    changes: Document = {
        "quantity": item.quantity,
        "moving": item.pending_moves,
        "version": item.version + 1,
        "updatedAt": now,
    }
    gone: Document = {}
    if item.pending_moves:
        changes["markedSince"] = item.pending_since or now
    else:
        gone["markedSince"] = ""
    fixed: Document = {"createdAt": now}
    if isinstance(item, Slot):
        # Its capacity and its times may have followed the rules since it was stored.
        changes |= {"supplied": item.supplied, "end": item.end}
        fixed |= {"kind": SLOT, "start": item.start, "disabled": item.disabled, "adjusted": item.adjusted}
        if item.ceiling is None:
            gone["ceiling"] = ""
        else:
            changes["ceiling"] = item.ceiling
    elif isinstance(item, Product):
        fixed |= {"kind": item.kind, "supplied": item.supplied, **description_of(item)}
    update: Document = {"$set": changes, "$setOnInsert": fixed}
    if gone:
        update["$unset"] = gone
    return UpdateOne({"_id": item.id, "version": item.version}, update, upsert=True)


def description_of(product: Product | Description) -> Document:
    """The description as it is stored."""
    return {
        "name": product.name,
        "price": product.price,
        "package": product.package,
        "packageId": product.package_id,
        "ram": product.ram,
    }


def from_document(document: Document) -> StockItem:
    """Read a document."""
    stored: dict[str, Any] = {
        "id": document["_id"],
        "version": document["version"],
        "created_at": document["createdAt"],
        "updated_at": document["updatedAt"],
        "quantity": document["quantity"],
        "supplied": document["supplied"],
        "pending_moves": document["moving"],
        "pending_since": document.get("markedSince"),
    }
    if document["kind"] == SLOT:
        return Slot(
            **stored,
            start=document["start"],
            end=document["end"],
            disabled=document["disabled"],
            adjusted=document["adjusted"],
            ceiling=document.get("ceiling"),
        )
    return Product(
        **stored,
        kind=Kind(document["kind"]),
        name=document.get("name"),
        price=document.get("price"),
        package=document.get("package"),
        package_id=document.get("packageId"),
        ram=document.get("ram"),
    )

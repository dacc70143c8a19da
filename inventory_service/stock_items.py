"""The `products` collection: products and delivery slots. No other module writes it.

Both live in one collection because one ordered bulk write stores everything that an order holds (stock.py, ADR 3 and
9). Orders change items by guarded updates only. Operators' changes are single atomic updates, so they never conflict.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, ReturnDocument
from pymongo.errors import BulkWriteError, DuplicateKeyError
from pymongo.read_concern import ReadConcern

from inventory_service.metrics import conflicts
from inventory_service.stock import MAX_UNITS, SLOT, Description, Kind, Product, Slot, StockItem
from inventory_service.stock_documents import product_of, slot_of, stock_item_of
from inventory_service.timetable import Opening
from shared import database
from shared.clock import Clock
from shared.database import Collection, Database, Document
from shared.errors import RefusalError
from shared.repeats import note_repeat
from shared.schema import CollectionSchema

COLLECTION = "products"

UPSERT_ATTEMPTS = 5

REMEMBERED_RESTOCKS = 50
"""The number of restocks with a key that a product remembers; a repeat of an earlier one adds again."""

PRODUCT_KINDS = [kind.value for kind in Kind]

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
"""The quantity of goods is never negative. That of a slot may be: its capacity can be lowered below its load."""

SCHEMA = CollectionSchema(INDEXES, VALIDATOR)


class KindConflictError(RefusalError):
    """The product exists with the other kind."""


class TooManyUnitsError(RefusalError):
    """The product would have more than MAX_UNITS units."""


class RestockKeyReusedError(RefusalError):
    """The key belongs to a restock by another quantity."""


class StockItems:
    """Reads and writes of the collection; driver errors pass through.

    Reads use majority read concern: a decision based on a write that a failover can roll back would lose stock.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._collection: Collection = database.get_collection(COLLECTION, read_concern=ReadConcern("majority"))
        self._clock = clock

    # --- For orders. ---

    async def read(self, ids: Iterable[str]) -> dict[str, StockItem]:
        """Return the items that exist, products and slots alike, by id."""
        wanted = list(ids)
        return {item.id: item for item in await self._find({"_id": {"$in": wanted}})} if wanted else {}

    async def read_slots(self, since: datetime, until: datetime) -> list[Slot]:
        """Return the recorded slots that overlap this period, by start."""
        query = {"end": {"$gt": since}, "start": {"$lt": until}}
        slots = [slot for slot in await self._find(query) if isinstance(slot, Slot)]
        return sorted(slots, key=lambda slot: slot.start)

    async def slots_with_pending_moves(self) -> list[StockItem]:
        """Return the slots with pending moves."""
        return await self._find({"markedSince": {"$exists": True}, "kind": SLOT})

    async def pending_since_before(self, moment: datetime) -> list[StockItem]:
        """Return the items that have had pending moves continuously since before this moment."""
        return await self._find({"markedSince": {"$lt": moment}})

    async def write(self, changed: Sequence[StockItem]) -> set[str]:
        """Store quantities and pending moves, guarded by the version each item was read at; return the ids stored.

        Items are written in the order of their ids, up to the first one that another worker has changed meanwhile. So
        two orders for the same products can never each hold what the other needs.
        """
        if not changed:
            return set()
        ordered = sorted(changed, key=lambda item: item.id)
        now = self._clock()
        updates = database.guarded_updates([_guarded_update(item, now) for item in ordered], upsert=True)
        try:
            await self._collection.bulk_write(updates, ordered=True)
        except BulkWriteError as error:
            conflicts.inc()
            ordered = ordered[: _conflict_index(error)]
        return {item.id for item in ordered}

    async def _find(self, query: Document) -> list[StockItem]:
        return [stock_item_of(document) for document in await self._collection.find(query).to_list(None)]

    # --- For operators: products. ---

    async def find_product(self, product_id: str) -> Product | None:
        """Return the product, or None if there is none."""
        document = await self._collection.find_one({"_id": product_id, "kind": {"$in": PRODUCT_KINDS}})
        return None if document is None else product_of(document)

    async def product_page(self, *, after: str | None, limit: int) -> list[Product]:
        """Return a page of products, by id."""
        query: Document = {"kind": {"$in": PRODUCT_KINDS}} | ({} if after is None else {"_id": {"$gt": after}})
        cursor = self._collection.find(query).sort("_id", ASCENDING).limit(limit)
        return [product_of(document) for document in await cursor.to_list(None)]

    async def put_product(self, product_id: str, description: Description) -> tuple[Product, bool]:
        """Create the product or replace its description; return it and whether it is new.

        Raises KindConflictError if it exists with the other kind: a new kind must neither create nor destroy stock.
        """
        now = self._clock()
        units = 0 if description.kind is Kind.GOODS else None
        product = await self._upsert_product(
            {"_id": product_id, "kind": description.kind},
            {
                "$set": {**_described(description), "updatedAt": now},
                "$inc": {"version": 1},
                "$setOnInsert": {"moving": {}, "createdAt": now, "quantity": units, "supplied": units},
            },
        )
        return product, product.version == 1

    async def set_on_sale(self, product_id: str, on_sale: bool, reason: str | None) -> Product | None:
        """Offer a product, or offer it no longer; return None if it is unknown.

        The new version makes allocations that have read the product before read it again.
        """
        set_: Document = {"onSale": on_sale, "updatedAt": self._clock()}
        update: Document = {"$set": set_, "$inc": {"version": 1}}
        if on_sale or reason is None:
            update["$unset"] = {"offSaleReason": ""}
        else:
            set_["offSaleReason"] = reason
        document = await self._collection.find_one_and_update(
            {"_id": product_id, "kind": {"$in": PRODUCT_KINDS}}, update, return_document=ReturnDocument.AFTER
        )
        return None if document is None else product_of(document)

    async def set_free(self, product_id: str, quantity: int) -> tuple[Product, bool]:
        """Set the free quantity, creating the product as goods if it is unknown; return it and whether it is new.

        Raises KindConflictError if its stock is not counted.
        """
        now = self._clock()
        added = {"$subtract": [quantity, {"$ifNull": ["$quantity", 0]}]}
        product = await self._upsert_product(
            {"_id": product_id, "kind": Kind.GOODS},
            [
                {
                    "$set": {
                        "quantity": quantity,
                        "supplied": {"$add": [{"$ifNull": ["$supplied", 0]}, added]},
                        "version": {"$add": [{"$ifNull": ["$version", 0]}, 1]},
                        "moving": {"$ifNull": ["$moving", {"$literal": {}}]},
                        "createdAt": {"$ifNull": ["$createdAt", now]},
                        "updatedAt": now,
                    }
                }
            ],
        )
        return product, product.version == 1

    async def restock(self, product_id: str, quantity: int, key: str | None = None) -> tuple[Product, bool] | None:
        """Add to the free quantity, once for each key; return the product and whether it was done before.

        Return None if the product is unknown. The keys are remembered in the product, so that a restock and its key are
        one write.

        Raises KindConflictError if its stock is not counted, TooManyUnitsError if it would exceed MAX_UNITS,
        RestockKeyReusedError if the key is that of a restock by another quantity.
        """
        query: Document = {"_id": product_id, "kind": Kind.GOODS, "quantity": {"$lte": MAX_UNITS - quantity}}
        update: Document = {
            "$inc": {"quantity": quantity, "supplied": quantity, "version": 1},
            "$set": {"updatedAt": self._clock()},
        }
        if key is not None:
            query["restocks.key"] = {"$ne": key}
            added = {"$each": [{"key": key, "quantity": quantity}], "$slice": -REMEMBERED_RESTOCKS}
            update["$push"] = {"restocks": added}
        document = await self._collection.find_one_and_update(query, update, return_document=ReturnDocument.AFTER)
        if document is not None:
            return product_of(document), False
        done_before = await self._done_before(product_id, quantity, key)
        return None if done_before is None else (done_before, True)

    async def _done_before(self, product_id: str, quantity: int, key: str | None) -> Product | None:
        """Return the product of a restock that was done before, None if it is unknown; else raise why it was not."""
        document = await self._collection.find_one({"_id": product_id, "kind": {"$in": PRODUCT_KINDS}})
        if document is None:
            return None
        if document["kind"] != Kind.GOODS:
            raise KindConflictError
        done = {entry["key"]: entry["quantity"] for entry in document.get("restocks", ())}
        if key not in done:
            raise TooManyUnitsError
        if done[key] != quantity:
            raise RestockKeyReusedError
        note_repeat("stock.restock", product_id=product_id)
        return product_of(document)

    async def _upsert_product(self, query: Document, update: Any) -> Product:
        for _ in range(UPSERT_ATTEMPTS):
            try:
                document: Any = await self._collection.find_one_and_update(
                    query, update, upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                # Either it has the other kind, or it was created concurrently: then the next attempt finds it.
                continue
            return product_of(document)
        raise KindConflictError

    # --- For operators: slots. ---

    async def find_slot(self, slot_id: str) -> Slot | None:
        """Return the slot, or None if it is not recorded."""
        document = await self._collection.find_one({"_id": slot_id, "kind": SLOT})
        return None if document is None else slot_of(document)

    async def slots_under_way(self, moment: datetime) -> list[Slot]:
        """Return the recorded slots that start before this moment and end after it, by start."""
        return await self._find_slots({"end": {"$gt": moment}, "start": {"$lt": moment}})

    async def slots_starting(self, since: datetime, until: datetime, limit: int) -> list[Slot]:
        """Return the recorded slots that start in this period, by start."""
        # The condition on the end follows from that on the start; it is there for the index.
        query = {"end": {"$gt": since}, "start": {"$gte": since, "$lt": until}}
        return await self._find_slots(query, limit)

    async def adjust_slot(
        self,
        slot_id: str,
        opening: Opening | None,
        *,
        default_capacity: int,
        capacity: int | None,
        adjusted: bool | None,
        disabled: bool | None,
    ) -> Slot:
        """Change a slot and return it; None leaves a value unchanged.

        A slot that is not recorded is created with the times of `opening` and the default capacity.
        """
        stages = _adjustment(opening, default_capacity, capacity, adjusted, disabled, self._clock())
        while True:
            try:
                document: Any = await self._collection.find_one_and_update(
                    {"_id": slot_id, "kind": SLOT}, stages, upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                continue  # first booked concurrently: the next attempt finds it
            return slot_of(document)

    async def _find_slots(self, query: Document, limit: int = 0) -> list[Slot]:
        cursor = self._collection.find(query).sort([("start", ASCENDING)]).limit(limit)
        return [slot_of(document) for document in await cursor.to_list(None)]


def _conflict_index(error: BulkWriteError) -> int:
    """Return the index of the update that lost against another worker; raise the error again if it is any other."""
    failure = error.details["writeErrors"][:1] or [{}]
    if error.details["writeConcernErrors"] or failure[0].get("code") != database.DUPLICATE_KEY:
        raise error
    return int(failure[0]["index"])


def _guarded_update(item: StockItem, now: datetime) -> tuple[Document, Document]:
    # Upserting turns a guard that does not match into a duplicate key error, which ends an ordered bulk write; a plain
    # update would be skipped silently. It also creates a slot, from version 0, when it is first booked.
    changes: Document = {
        "quantity": item.quantity,
        "moving": item.pending_moves,
        "version": item.version + 1,
        "updatedAt": now,
    }
    removed: Document = {}
    if item.pending_moves:
        changes["markedSince"] = item.pending_since or now
    else:
        removed["markedSince"] = ""
    on_insert: Document = {"createdAt": now}
    if isinstance(item, Slot):
        # Capacity and times may have followed a change of the rules since the slot was stored.
        changes |= {"supplied": item.supplied, "end": item.end}
        on_insert |= {"kind": SLOT, "start": item.start, "disabled": item.disabled, "adjusted": item.adjusted}
        if item.ceiling is None:
            removed["ceiling"] = ""
        else:
            changes["ceiling"] = item.ceiling
    elif isinstance(item, Product):
        changes["shipped"] = item.shipped
        on_insert |= {"kind": item.kind, "supplied": item.supplied, **_described(item)}
    update: Document = {"$set": changes, "$setOnInsert": on_insert}
    if removed:
        update["$unset"] = removed
    return {"_id": item.id, "version": item.version}, update


def _adjustment(
    opening: Opening | None,
    default_capacity: int,
    capacity: int | None,
    adjusted: bool | None,
    disabled: bool | None,
    now: datetime,
) -> list[Document]:
    """Build the update as a pipeline, so that load and capacity stay consistent with concurrent bookings."""
    fields: Document = {
        "supplied": {"$ifNull": ["$supplied", default_capacity]},
        "quantity": {"$ifNull": ["$quantity", default_capacity]},
        "moving": {"$ifNull": ["$moving", {"$literal": {}}]},
        "version": {"$add": [{"$ifNull": ["$version", 0]}, 1]},
        "createdAt": {"$ifNull": ["$createdAt", now]},
        "updatedAt": now,
        "disabled": {"$ifNull": ["$disabled", False]} if disabled is None else disabled,
        "adjusted": {"$ifNull": ["$adjusted", False]} if adjusted is None else adjusted,
    }
    if opening is not None:
        fields["start"] = {"$ifNull": ["$start", opening.start]}
        fields["end"] = {"$ifNull": ["$end", opening.end]}
    stages: list[Document] = [{"$set": fields}]
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


def _described(product: Product | Description) -> Document:
    return {
        "name": product.name,
        "price": product.price,
        "package": product.package,
        "packageId": product.package_id,
        "ram": product.ram,
    }

"""What operators do with products; orders change them in stock_items.py."""

from typing import Any, cast

from pymongo import ASCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from inventory_service.stock import MAX_UNITS, Description, Kind, Product
from inventory_service.stock_items import COLLECTION, description_of, from_document
from shared.clock import Clock
from shared.database import Collection, Database, Document

UPSERT_ATTEMPTS = 5

KINDS = [kind.value for kind in Kind]


class KindConflictError(Exception):
    """The product exists and is of the other kind."""


class TooManyUnitsError(Exception):
    """The product would have more than MAX_UNITS units."""


class Products:
    """What can be done with the products; a driver's error passes through as it is. Reads see what a majority has."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._collection: Collection = database.get_collection(COLLECTION, read_concern=ReadConcern("majority"))
        self._clock = clock

    async def find(self, product_id: str) -> Product | None:
        """The product, if it exists."""
        document = await self._collection.find_one({"_id": product_id, "kind": {"$in": KINDS}})
        return None if document is None else _product(document)

    async def page(self, *, after: str | None, limit: int) -> list[Product]:
        """Products in the order of their ids."""
        query: Document = {"kind": {"$in": KINDS}} | ({} if after is None else {"_id": {"$gt": after}})
        cursor = self._collection.find(query).sort("_id", ASCENDING).limit(limit)
        return [_product(document) for document in await cursor.to_list(None)]

    async def put(self, product_id: str, description: Description) -> tuple[Product, bool]:
        """Create or describe a product; returns it and whether it is new.

        Raises KindConflictError if it exists and is of the other kind: stock can neither appear nor vanish by that.
        """
        now = self._clock()
        units = 0 if description.kind is Kind.GOODS else None
        product = await self._upsert(
            {"_id": product_id, "kind": description.kind},
            {
                "$set": {**description_of(description), "updatedAt": now},
                "$inc": {"version": 1},
                "$setOnInsert": {"moving": {}, "createdAt": now, "quantity": units, "supplied": units},
            },
        )
        return product, product.version == 1

    async def set_free(self, product_id: str, quantity: int) -> tuple[Product, bool]:
        """Set what is free to sell, creating the product as goods if it is unknown; returns it and whether it is new.

        Raises KindConflictError if it is not counted.
        """
        now = self._clock()
        added = {"$subtract": [quantity, {"$ifNull": ["$quantity", 0]}]}
        product = await self._upsert(
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

    async def restock(self, product_id: str, quantity: int) -> Product | None:
        """Add to what is free to sell; None if the product is unknown.

        Raises KindConflictError if it is not counted, TooManyUnitsError if it would have more than MAX_UNITS.
        """
        document = await self._collection.find_one_and_update(
            {"_id": product_id, "kind": Kind.GOODS, "quantity": {"$lte": MAX_UNITS - quantity}},
            {
                "$inc": {"quantity": quantity, "supplied": quantity, "version": 1},
                "$set": {"updatedAt": self._clock()},
            },
            return_document=ReturnDocument.AFTER,
        )
        if document is not None:
            return _product(document)
        existing = await self.find(product_id)
        if existing is None:
            return None
        raise KindConflictError if existing.kind is not Kind.GOODS else TooManyUnitsError

    async def _upsert(self, query: Document, update: Any) -> Product:
        for _ in range(UPSERT_ATTEMPTS):
            try:
                document: Any = await self._collection.find_one_and_update(
                    query, update, upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                # Of the other kind, or created this moment by somebody else: then the next attempt finds it.
                continue
            return _product(document)
        raise KindConflictError


def _product(document: Document) -> Product:
    return cast("Product", from_document(document))

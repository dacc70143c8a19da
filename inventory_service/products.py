"""The products collection: a document per product, changed for orders only by updates guarded by its version."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError
from pymongo.read_concern import ReadConcern

from inventory_service.metrics import conflicts
from inventory_service.stock import MAX_UNITS, Kind, Product
from shared import database
from shared.clock import Clock
from shared.database import Collection, Database, Document

COLLECTION = "products"

INDEXES = (IndexModel([("markedSince", ASCENDING)], name="marked", sparse=True),)

UPSERT_ATTEMPTS = 5


class KindConflictError(Exception):
    """The product exists and is of the other kind."""


class TooManyUnitsError(Exception):
    """The product would have more than MAX_UNITS units."""


@dataclass(frozen=True, slots=True)
class Description:
    """What an operator says about a product; `price` in minor units."""

    kind: Kind
    name: str | None = None
    price: int | None = None
    package: str | None = None
    package_id: str | None = None
    ram: int | None = None


class Products:
    """What can be done with the collection; a driver's error passes through as it is.

    Reads see only what a majority has: decisions that rest on a write which a failover could undo would lose stock.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._collection: Collection = database.get_collection(COLLECTION, read_concern=ReadConcern("majority"))
        self._clock = clock

    async def read(self, ids: Iterable[str]) -> dict[str, Product]:
        """Those of the products that exist."""
        return {product.product_id: product for product in await self._find({"_id": {"$in": list(ids)}})}

    async def marked_before(self, moment: datetime) -> list[Product]:
        """Products that have had marks without a break since before this moment: the busy and the forgotten."""
        return await self._find({"markedSince": {"$lt": moment}})

    async def page(self, *, after: str | None, limit: int, kind: Kind | None = None) -> list[Product]:
        """Products in the order of their ids."""
        query: Document = {} if after is None else {"_id": {"$gt": after}}
        if kind is not None:
            query["kind"] = kind
        cursor = self._collection.find(query).sort("_id", ASCENDING).limit(limit)
        return [_product(document) for document in await cursor.to_list(None)]

    async def write(self, products: Sequence[Product]) -> set[str]:
        """Store quantity and marks of products as they follow from the version each was read at; returns which.

        Products are taken in the order of their ids, and the first that another worker has changed meanwhile ends it:
        orders over the same products can so never each hold what the other needs.
        """
        if not products:
            return set()
        ordered = sorted(products, key=lambda product: product.product_id)
        now = self._clock()
        try:
            await self._collection.bulk_write([_guarded_update(product, now) for product in ordered], ordered=True)
        except BulkWriteError as error:
            conflicts.inc()
            ordered = ordered[: _first_missed(error)]
        return {product.product_id for product in ordered}

    async def put(self, product_id: str, description: Description) -> tuple[Product, bool]:
        """Create or describe a product; returns it and whether it is new.

        Raises KindConflictError if it exists and is of the other kind: stock can neither appear nor vanish by that.
        """
        now = self._clock()
        units = 0 if description.kind is Kind.GOODS else None
        product = await self._upsert(
            {"_id": product_id, "kind": description.kind},
            {
                "$set": {**_described(description), "updatedAt": now},
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
        existing = (await self.read([product_id])).get(product_id)
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

    async def _find(self, query: Document) -> list[Product]:
        return [_product(document) for document in await self._collection.find(query).to_list(None)]


def _first_missed(error: BulkWriteError) -> int:
    """Say at which update another worker was in the way; raises the error again if it was anything else."""
    failure = error.details["writeErrors"][:1] or [{}]
    if error.details["writeConcernErrors"] or failure[0].get("code") != database.DUPLICATE_KEY:
        raise error
    return int(failure[0]["index"])


def _guarded_update(product: Product, now: datetime) -> UpdateOne:
    # With upsert a guard that does not match is a duplicate key, which ends an ordered bulk write; without, it is
    # passed over in silence. What $setOnInsert says is never written: products are not deleted.
    changes = {"quantity": product.quantity, "moving": product.moving, "version": product.version + 1, "updatedAt": now}
    update: Document = {"$set": changes, "$setOnInsert": _fixed(product)}
    if product.moving:
        changes["markedSince"] = product.marked_since or now
    else:
        update["$unset"] = {"markedSince": ""}
    return UpdateOne({"_id": product.product_id, "version": product.version}, update, upsert=True)


def _fixed(product: Product) -> Document:
    description = Description(
        product.kind, product.name, product.price, product.package, product.package_id, product.ram
    )
    return {
        **_described(description),
        "kind": product.kind,
        "supplied": product.supplied,
        "createdAt": product.created_at,
    }


def _described(description: Description) -> Document:
    return {
        "name": description.name,
        "price": description.price,
        "package": description.package,
        "packageId": description.package_id,
        "ram": description.ram,
    }


def _product(document: Document) -> Product:
    return Product(
        product_id=document["_id"],
        kind=Kind(document["kind"]),
        version=document["version"],
        created_at=document["createdAt"],
        updated_at=document["updatedAt"],
        quantity=document["quantity"],
        supplied=document["supplied"],
        moving=document["moving"],
        marked_since=document.get("markedSince"),
        name=document.get("name"),
        price=document.get("price"),
        package=document.get("package"),
        package_id=document.get("packageId"),
        ram=document.get("ram"),
    )

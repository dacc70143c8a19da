"""The reservations collection: one document per order, the decision about its stock."""

from collections.abc import Iterable, Sequence

from pymongo import InsertOne
from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern

from inventory_service.stock import Line, Reservation, Status
from shared import database
from shared.clock import Clock
from shared.contracts.inventory import ServerSpecification
from shared.database import Collection, Database, Document

COLLECTION = "reservations"


class Reservations:
    """What can be done with the collection; a driver's error passes through as it is. Reads see what a majority has."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._collection: Collection = database.get_collection(COLLECTION, read_concern=ReadConcern("majority"))
        self._clock = clock

    async def read(self, order_ids: Iterable[str]) -> dict[str, Reservation]:
        """Those of the reservations that exist, by order."""
        cursor = self._collection.find({"_id": {"$in": list(order_ids)}})
        return {document["_id"]: _reservation(document) for document in await cursor.to_list(None)}

    async def statuses(self, order_ids: Iterable[str]) -> dict[str, Status]:
        """Those of the statuses that exist, by order."""
        cursor = self._collection.find({"_id": {"$in": list(order_ids)}}, {"status": True})
        return {document["_id"]: Status(document["status"]) for document in await cursor.to_list(None)}

    async def insert(self, reservations: Sequence[Reservation]) -> set[str]:
        """Insert decisions; returns the orders that were decided already, whose records are as they were."""
        if not reservations:
            return set()
        try:
            await self._collection.bulk_write([InsertOne(_document(r)) for r in reservations], ordered=False)
        except BulkWriteError as error:
            return database.duplicates(error)
        return set()

    async def mark_released(self, order_ids: Sequence[str]) -> None:
        """Turn RESERVED into RELEASED; other statuses stay."""
        if order_ids:
            await self._collection.update_many(
                {"_id": {"$in": order_ids}, "status": Status.RESERVED},
                {"$set": {"status": Status.RELEASED, "updatedAt": self._clock()}},
            )


def _document(reservation: Reservation) -> Document:
    document: Document = {
        "_id": reservation.order_id,
        "status": reservation.status,
        "items": [
            {"productId": line.product_id, "quantity": line.quantity, "price": line.price} for line in reservation.items
        ],
        "failureReason": reservation.failure_reason,
        "createdAt": reservation.created_at,
        "updatedAt": reservation.updated_at,
    }
    if reservation.server is not None:
        document["server"] = reservation.server.model_dump(by_alias=True)
    return document


def _reservation(document: Document) -> Reservation:
    server = document.get("server")
    return Reservation(
        order_id=document["_id"],
        status=Status(document["status"]),
        created_at=document["createdAt"],
        updated_at=document["updatedAt"],
        items=tuple(Line(item["productId"], item["quantity"], item["price"]) for item in document["items"]),
        failure_reason=document.get("failureReason"),
        server=ServerSpecification.model_validate(server) if server else None,
    )

"""The reservations collection: one document per order, the decision about its stock."""

from collections.abc import Iterable, Sequence

from pymongo import ASCENDING, DESCENDING, IndexModel, InsertOne
from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern

from inventory_service import hold_records
from inventory_service.stock import Assignment, Booking, Decision, HoldUse, Reservation, ReservationLine, Status
from shared import database
from shared.access.principal import Visible
from shared.clock import Clock
from shared.contracts.inventory import ServerSpecification
from shared.database import Collection, Database, Document
from shared.schema import CollectionSchema

COLLECTION = "reservations"

INDEXES = (
    IndexModel(
        [("assignment.orderId", ASCENDING), ("assignment.number", DESCENDING)],
        name="assignments",
        partialFilterExpression={"assignment.orderId": {"$exists": True}},
    ),
    *hold_records.INDEXES,
)

VALIDATOR: Document = {
    "$jsonSchema": {
        "required": ["status", "items", "createdAt", "updatedAt"],
        "properties": {
            "status": {"enum": [status.value for status in Status]},
            "items": {"bsonType": "array"},
            "slot": {
                "required": ["slotId", "start", "visibleAt", "price"],
                "properties": {"price": {"bsonType": ["int", "long"], "minimum": 0}},
            },
            "assignment": {"required": ["orderId", "number"]},
            "hold": {
                "required": ["userId", "expiresAt", "dueAt"],
                "properties": {"expiresAt": {"bsonType": "date"}, "dueAt": {"bsonType": "date"}},
            },
        },
    }
}

SCHEMA = CollectionSchema(INDEXES, VALIDATOR)


class Reservations:
    """Reads, with majority read concern, and writes of the collection; driver errors pass through."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._collection: Collection = database.get_collection(COLLECTION, read_concern=ReadConcern("majority"))
        self._clock = clock
        self.holds = hold_records.HoldRecords(self._collection, clock)

    async def read(self, order_ids: Iterable[str]) -> dict[str, Reservation]:
        """Return the reservations that exist, by order."""
        cursor = self._collection.find({"_id": {"$in": list(order_ids)}})
        return {document["_id"]: _reservation(document) for document in await cursor.to_list(None)}

    async def find(self, order_id: str, visible: Visible) -> Reservation | None:
        """Return the reservation of one order, None if there is none that is visible."""
        document = await self._collection.find_one({"_id": order_id, **visible})
        return _reservation(document) if document else None

    async def decisions(self, order_ids: Iterable[str]) -> dict[str, Decision]:
        """Return the decisions that exist, by order."""
        cursor = self._collection.find({"_id": {"$in": list(order_ids)}}, {"status": True, "slot.slotId": True})
        return {
            document["_id"]: Decision(Status(document["status"]), (document.get("slot") or {}).get("slotId"))
            for document in await cursor.to_list(None)
        }

    async def assignments(self, order_ids: Iterable[str]) -> dict[str, Reservation]:
        """Return the latest assignment of each of these orders that has one, by order."""
        query = {"assignment.orderId": {"$in": list(order_ids)}}
        cursor = self._collection.find(query).sort(
            [("assignment.orderId", ASCENDING), ("assignment.number", ASCENDING)]
        )
        return {document["assignment"]["orderId"]: _reservation(document) for document in await cursor.to_list(None)}

    async def insert(self, reservations: Sequence[Reservation]) -> set[str]:
        """Insert reservations; return the orders that were decided already, whose reservations stay unchanged."""
        if not reservations:
            return set()
        try:
            await self._collection.bulk_write([InsertOne(_document(r)) for r in reservations], ordered=False)
        except BulkWriteError as error:
            return database.duplicates(error)
        return set()

    async def mark_released(self, order_ids: Sequence[str]) -> None:
        """Change RESERVED reservations to RELEASED; others stay unchanged."""
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
    if reservation.owner_id is not None:
        document["ownerId"] = reservation.owner_id
    if reservation.user_id is not None:
        document["userId"] = reservation.user_id
    if reservation.server is not None:
        document["server"] = reservation.server.model_dump(by_alias=True)
    if (booking := reservation.booking) is not None:
        document["slot"] = {
            "slotId": booking.slot_id,
            "start": booking.start,
            "visibleAt": booking.visible_at,
            "price": booking.price,
        }
    if reservation.hold is not None:
        document["hold"] = hold_records.document_of(reservation.hold)
    if (used := reservation.used_hold) is not None:
        document["usedHold"] = {"holdId": used.hold_id, "outcome": used.outcome}
    if (assignment := reservation.assignment) is not None:
        document["assignment"] = {
            "orderId": assignment.order_id,
            "number": assignment.number,
            "itemsCount": assignment.items_count,
        }
    return document


def _reservation(document: Document) -> Reservation:
    server, slot, assignment = document.get("server"), document.get("slot"), document.get("assignment")
    hold, used = document.get("hold"), document.get("usedHold")
    return Reservation(
        order_id=document["_id"],
        status=Status(document["status"]),
        created_at=document["createdAt"],
        updated_at=document["updatedAt"],
        items=tuple(ReservationLine(item["productId"], item["quantity"], item["price"]) for item in document["items"]),
        failure_reason=document.get("failureReason"),
        server=ServerSpecification.model_validate(server) if server else None,
        booking=Booking(slot["slotId"], slot["start"], slot["visibleAt"], slot["price"]) if slot else None,
        assignment=(
            Assignment(assignment["orderId"], assignment["number"], assignment["itemsCount"]) if assignment else None
        ),
        owner_id=document.get("ownerId"),
        user_id=document.get("userId"),
        hold=hold_records.terms_of(hold) if hold else None,
        used_hold=HoldUse(used["holdId"], used["outcome"]) if used else None,
    )

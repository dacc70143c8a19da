"""The reservations collection: one document per order, the decision about its stock."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from pymongo import ASCENDING, DESCENDING, IndexModel, InsertOne
from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern

from inventory_service import hold_records
from inventory_service.stock import (
    Assignment,
    Booking,
    Decision,
    HoldUse,
    Reservation,
    ReservationLine,
    Return,
    Status,
    refund_of,
)
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
    IndexModel(
        [("slot.slotId", ASCENDING), ("slot.visibleAt", ASCENDING), ("_id", ASCENDING)],
        name="by_slot",
        partialFilterExpression={"slot.slotId": {"$exists": True}},
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
        return {document["_id"]: reservation_of(document) for document in await cursor.to_list(None)}

    async def read_existing(self, order_ids: Iterable[str]) -> dict[str, Reservation]:
        """Return reservations that must exist, by order; a new primary may not show one to other reads yet."""
        documents = await database.find_existing(self._collection, order_ids)
        return {document["_id"]: reservation_of(document) for document in documents}

    async def find(self, order_id: str, visible: Visible) -> Reservation | None:
        """Return the reservation of one order, None if there is none that is visible."""
        document = await self._collection.find_one({"_id": order_id, **visible})
        return reservation_of(document) if document else None

    async def in_slot(
        self,
        slot_id: str,
        visible: Visible,
        *,
        visible_until: datetime | None,
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> list[Reservation]:
        """Return a page of the bookings of a slot that are kept or delivered, by (visibleAt, id) after the given one.

        With `visible_until` only those that are visible by then.
        """
        query: Document = {"slot.slotId": slot_id, "status": {"$in": [Status.RESERVED, Status.SHIPPED]}, **visible}
        if visible_until is not None:
            query["slot.visibleAt"] = {"$lte": visible_until}
        if after is not None:
            moment, reservation_id = after
            later = {"slot.visibleAt": {"$gt": moment}}
            query["$or"] = [later, {"slot.visibleAt": moment, "_id": {"$gt": reservation_id}}]
        cursor = self._collection.find(query).sort([("slot.visibleAt", ASCENDING), ("_id", ASCENDING)]).limit(limit)
        return [reservation_of(document) for document in await cursor.to_list(None)]

    async def decisions(self, order_ids: Iterable[str]) -> dict[str, Decision]:
        """Return the decisions that exist, by order, or by key for the pending moves of returns."""
        ids = list(order_ids)
        returns = {key: refund for key in ids if (refund := refund_of(key))}
        named = list({*ids, *(order_id for order_id, _ in returns.values())} - returns.keys())
        fields = {"status": True, "slot.slotId": True} | ({"returns.refundId": True} if returns else {})
        found = {
            each["_id"]: each for each in await self._collection.find({"_id": {"$in": named}}, fields).to_list(None)
        }
        decided = {
            order_id: Decision(Status(found[order_id]["status"]), (found[order_id].get("slot") or {}).get("slotId"))
            for order_id in found.keys() & set(ids)
        }
        for key, (order_id, refund_id) in returns.items():
            if order_id in found and _is_over(found[order_id], refund_id):
                decided[key] = Decision(Status.RELEASED)
        return decided

    async def assignments(self, order_ids: Iterable[str]) -> dict[str, Reservation]:
        """Return the latest assignment of each of these orders that has one, by order."""
        query = {"assignment.orderId": {"$in": list(order_ids)}}
        cursor = self._collection.find(query).sort(
            [("assignment.orderId", ASCENDING), ("assignment.number", ASCENDING)]
        )
        return {document["assignment"]["orderId"]: reservation_of(document) for document in await cursor.to_list(None)}

    async def insert(self, reservations: Sequence[Reservation]) -> set[str]:
        """Insert reservations; return the orders that were decided already, whose reservations stay unchanged."""
        if not reservations:
            return set()
        try:
            await self._collection.bulk_write([InsertOne(_document(r)) for r in reservations], ordered=False)
        except BulkWriteError as error:
            return database.duplicates(error)
        return set()

    async def mark(self, order_ids: Sequence[str], status: Status) -> None:
        """Change RESERVED reservations to RELEASED or SHIPPED; others stay unchanged."""
        if order_ids:
            await self._collection.update_many(
                {"_id": {"$in": order_ids}, "status": Status.RESERVED},
                {"$set": {"status": status, "updatedAt": self._clock()}},
            )

    async def record_return(self, order_id: str, returned: Return) -> None:
        """Record that units were put back, once per refund; a reservation that is RELEASED stays as it is."""
        items = [{"productId": item_id, "quantity": count} for item_id, count in returned.units.items()]
        await self._collection.update_one(
            {"_id": order_id, "status": {"$ne": Status.RELEASED}, "returns.refundId": {"$ne": returned.refund_id}},
            {
                "$push": {"returns": {"refundId": returned.refund_id, "items": items}},
                "$set": {"updatedAt": self._clock()},
            },
        )


def _is_over(reservation: Document, refund_id: str) -> bool:
    """Return whether the units of this refund are back: recorded as such, or released together with all others."""
    recorded = [each["refundId"] for each in reservation.get("returns", ())]
    return refund_id in recorded or reservation["status"] == Status.RELEASED


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


def reservation_of(document: Document) -> Reservation:
    """Return the reservation of a document."""
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
        returns=tuple(
            Return(each["refundId"], {item["productId"]: item["quantity"] for item in each["items"]})
            for each in document.get("returns", ())
        ),
        hold=hold_records.terms_of(hold) if hold else None,
        used_hold=HoldUse(used["holdId"], used["outcome"]) if used else None,
    )

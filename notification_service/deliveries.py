"""The collection `deliveries`: one document for each event and endpoint; `_id` is `<endpoint>:<event>`.

    {_id, endpointId, eventId, type, orderId, ownerId, body, status, createdAt, expiresAt, dueAt, tries, claim,
     attempts: [{at, status, error, body, seconds}], deliveredAt, failureReason}

Empty fields are not stored. `dueAt` is the time of the next attempt, in a document that is PENDING and no other. A
process claims deliveries by moving that time beyond the end of the attempt, so the deliveries of a process that was
killed come due again. The outcome of an attempt is recorded under the claim, or dropped if another process has claimed
the delivery meanwhile. MongoDB deletes a document when it expires.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern

from notification_service.delivery import MAX_ATTEMPTS_KEPT, MAX_TIMEOUT_SECONDS, Attempt, Delivery, Next, Status
from shared import database
from shared.access.principal import Visible
from shared.database import Collection, Database, Document
from shared.schema import CollectionSchema

COLLECTION = "deliveries"

SCHEMA = CollectionSchema(
    indexes=(
        IndexModel(
            [("endpointId", ASCENDING), ("dueAt", ASCENDING)],
            name="due",
            partialFilterExpression={"dueAt": {"$exists": True}},
        ),
        IndexModel(
            [("endpointId", ASCENDING), ("status", ASCENDING), ("createdAt", DESCENDING), ("eventId", DESCENDING)],
            name="by_endpoint",
        ),
        IndexModel([("expiresAt", ASCENDING)], name="expired", expireAfterSeconds=0),
    ),
    validator={
        "$jsonSchema": {
            "required": ["endpointId", "eventId", "type", "body", "status", "createdAt", "expiresAt", "tries"],
            "properties": {
                "status": {"enum": list(Status)},
                "dueAt": {"bsonType": "date"},
                "expiresAt": {"bsonType": "date"},
                "attempts": {"bsonType": "array", "maxItems": MAX_ATTEMPTS_KEPT},
            },
            "anyOf": [
                {"properties": {"status": {"enum": [Status.PENDING]}}, "required": ["dueAt"]},
                {"properties": {"status": {"enum": [Status.DELIVERED, Status.FAILED]}}, "not": {"required": ["dueAt"]}},
            ],
        }
    },
)


_LISTED: Document = {"body": False, "attempts": {"$slice": -1}}


class Deliveries:
    """Reads and writes of the collection; driver errors pass through."""

    def __init__(self, database: Database, retention: timedelta) -> None:
        self._collection: Collection = database.get_collection(COLLECTION, read_concern=ReadConcern("majority"))
        self._retention = retention

    # --- Recording. ---

    async def insert(self, deliveries: Sequence[Delivery]) -> None:
        """Insert deliveries, all in one write; those that exist stay unchanged."""
        if not deliveries:
            return
        try:
            await self._collection.insert_many([self._document(each) for each in deliveries], ordered=False)
        except BulkWriteError as error:
            database.duplicates(error)

    # --- For their owners. ---

    async def find(self, endpoint_id: str, event_id: str, visible: Visible) -> Delivery | None:
        """Return one delivery, None if there is none that is visible."""
        document = await self._collection.find_one({"_id": _id(endpoint_id, event_id), **visible})
        return _delivery(document) if document else None

    async def page(
        self,
        endpoint_id: str,
        statuses: Iterable[Status],
        visible: Visible,
        *,
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> list[Delivery]:
        """Return a page of an endpoint's deliveries in some statuses, the newest first, older than the given one.

        They come without their bodies, and with the last of their attempts only.
        """
        query: Document = {"endpointId": endpoint_id, "status": {"$in": list(statuses)}, **visible}
        if after is not None:
            at, event_id = after
            query["$or"] = [{"createdAt": {"$lt": at}}, {"createdAt": at, "eventId": {"$lt": event_id}}]
        order = [("createdAt", DESCENDING), ("eventId", DESCENDING)]
        cursor = self._collection.find(query, _LISTED).sort(order).limit(limit)
        return [_delivery(document) async for document in cursor]

    async def redeliver(self, endpoint_id: str, event_id: str, visible: Visible, now: datetime) -> Delivery | None:
        """Let a delivery be attempted now, from the start of the ladder; None if there is none that is visible.

        One that is being attempted at this moment is left to it.
        """
        query: Document = {"_id": _id(endpoint_id, event_id), "claim": {"$exists": False}, **visible}
        update = self._again(now)
        document = await self._collection.find_one_and_update(query, update, return_document=ReturnDocument.AFTER)
        return _delivery(document) if document else await self.find(endpoint_id, event_id, visible)

    async def redeliver_failed(self, endpoint_id: str, since: datetime, visible: Visible, now: datetime) -> int:
        """Let all failed deliveries since a time be attempted now; return their number."""
        query: Document = {
            "endpointId": endpoint_id,
            "status": Status.FAILED,
            "createdAt": {"$gte": since},
            **visible,
        }
        return (await self._collection.update_many(query, self._again(now))).modified_count

    def _again(self, now: datetime) -> Document:
        return {
            "$set": {"status": Status.PENDING, "dueAt": now, "tries": 0},
            "$unset": {"deliveredAt": "", "failureReason": ""},
            # Its attempts may take days: it must not expire meanwhile.
            "$max": {"expiresAt": now + min(self._retention, timedelta(days=7))},
        }

    # --- After the deletion of their endpoint. ---

    async def delete_some(self, endpoint_id: str, now: datetime, limit: int) -> bool:
        """Delete deliveries of an endpoint, but not those that are claimed; return whether there may be more."""
        free: Document = {"$or": [{"claim": {"$exists": False}}, {"dueAt": {"$lte": now}}]}
        found = self._collection.find({"endpointId": endpoint_id, **free}, {"_id": True}).limit(limit)
        if ids := [document["_id"] async for document in found]:
            await self._collection.delete_many({"_id": {"$in": ids}, **free})
        # Not how many were deleted: another process may have been faster with some of them.
        return len(ids) == limit

    async def has_claims(self, endpoint_id: str, now: datetime) -> bool:
        """Return whether a process has claimed deliveries of an endpoint."""
        # No claim lasts longer; the times of later retries need not be read.
        until = now + 2 * timedelta(seconds=MAX_TIMEOUT_SECONDS)
        query: Document = {
            "endpointId": endpoint_id,
            "dueAt": {"$gt": now, "$lte": until},
            "claim": {"$exists": True},
        }
        return await self._collection.count_documents(query, limit=1, hint="due") > 0

    # --- For the processes that deliver. ---

    async def first_due(self, now: datetime, skipped: Sequence[str] = ()) -> dict[str, datetime]:
        """Return the endpoints that have deliveries due, except for `skipped` ones, and since when the first one is.

        However many are due, it reads one entry of the index for each endpoint.
        """
        pipeline: list[Document] = [
            # Without a condition on the endpoints, MongoDB would read the entries of all deliveries that are due.
            {"$match": {"endpointId": {"$nin": list(skipped)}, "dueAt": {"$lte": now}}},
            {"$sort": {"endpointId": ASCENDING, "dueAt": ASCENDING}},
            {"$group": {"_id": "$endpointId", "first": {"$first": "$dueAt"}}},
        ]
        return {row["_id"]: row["first"] async for row in database.aggregate(self._collection, pipeline, hint="due")}

    async def claim(self, endpoint_id: str, now: datetime, lease: timedelta, limit: int) -> list[Delivery]:
        """Claim due deliveries of an endpoint for some time, the longest overdue first."""
        due = {"endpointId": endpoint_id, "dueAt": {"$lte": now}}
        cursor = self._collection.find(due, {"_id": True}, hint="due").sort("dueAt", ASCENDING).limit(limit)
        ids = [document["_id"] async for document in cursor]
        if not ids:
            return []
        claim = uuid.uuid4().hex
        query: Document = {"_id": {"$in": ids}, "dueAt": {"$lte": now}}
        await self._collection.update_many(query, {"$set": {"dueAt": now + lease, "claim": claim}})
        claimed = self._collection.find({"_id": {"$in": ids}, "claim": claim}, {"attempts": False})
        return [_delivery(document) async for document in claimed]

    async def record(self, outcomes: Sequence[tuple[Delivery, Attempt, Next]]) -> None:
        """Record attempts and what follows from them, each unless its claim is lost."""
        updates = [
            UpdateOne(_claimed(delivery), _after(delivery, attempt, following))
            for delivery, attempt, following in outcomes
        ]
        await self._collection.bulk_write(updates, ordered=False)

    async def release(self, deliveries: Iterable[Delivery], now: datetime) -> None:
        """Return claims without an attempt: the deliveries are due again."""
        update = {"$set": {"dueAt": now}, "$unset": {"claim": ""}}
        if updates := [UpdateOne(_claimed(each), update) for each in deliveries]:
            await self._collection.bulk_write(updates, ordered=False)

    async def fail_due(self, endpoint_id: str, reason: str, now: datetime) -> None:
        """Let the due deliveries of an endpoint fail without an attempt."""
        update = {
            "$set": {"status": Status.FAILED, "failureReason": reason},
            "$unset": {"dueAt": "", "claim": ""},
        }
        await self._collection.update_many({"endpointId": endpoint_id, "dueAt": {"$lte": now}}, update)

    async def count_due(self, now: datetime) -> int:
        """Return how many deliveries are due, up to 10,000."""
        return await self._collection.count_documents({"dueAt": {"$lte": now}}, hint="due", limit=10_000)

    def _document(self, delivery: Delivery) -> Document:
        document: dict[str, Any] = {
            "_id": _id(delivery.endpoint_id, delivery.event_id),
            "endpointId": delivery.endpoint_id,
            "eventId": delivery.event_id,
            "type": delivery.type,
            "orderId": delivery.order_id,
            "ownerId": delivery.owner_id,
            "body": delivery.body,
            "status": delivery.status,
            "createdAt": delivery.created_at,
            "expiresAt": delivery.created_at + self._retention,
            "dueAt": delivery.due_at,
            "tries": delivery.tries,
            "failureReason": delivery.failure_reason,
        }
        return {name: value for name, value in document.items() if value is not None}


def _id(endpoint_id: str, event_id: str) -> str:
    return f"{endpoint_id}:{event_id}"


def _claimed(delivery: Delivery) -> Document:
    return {"_id": _id(delivery.endpoint_id, delivery.event_id), "claim": delivery.claim}


def _after(delivery: Delivery, attempt: Attempt, following: Next) -> Document:
    kept = {"at": attempt.at, "status": attempt.status, "error": attempt.error, "body": attempt.body}
    entry = {name: value for name, value in kept.items() if value is not None} | {"seconds": attempt.seconds}
    update: Document = {
        "$push": {"attempts": {"$each": [entry], "$slice": -MAX_ATTEMPTS_KEPT}},
        "$set": {"status": following.status, "tries": delivery.tries + 1},
        "$unset": {"claim": ""},
    }
    if following.due_at is None:
        update["$unset"]["dueAt"] = ""
    else:
        update["$set"]["dueAt"] = following.due_at
    if following.status is Status.DELIVERED:
        update["$set"]["deliveredAt"] = attempt.at
    if following.failure_reason is not None:
        update["$set"]["failureReason"] = following.failure_reason
    return update


def _delivery(document: Document) -> Delivery:
    return Delivery(
        endpoint_id=document["endpointId"],
        event_id=document["eventId"],
        type=document["type"],
        body=document.get("body", ""),
        created_at=document["createdAt"],
        status=Status(document["status"]),
        owner_id=document.get("ownerId"),
        order_id=document.get("orderId"),
        due_at=document.get("dueAt"),
        tries=document["tries"],
        claim=document.get("claim"),
        attempts=tuple(
            Attempt(each["at"], each.get("status"), each.get("error"), each.get("body", ""), each["seconds"])
            for each in document.get("attempts", ())
        ),
        delivered_at=document.get("deliveredAt"),
        failure_reason=document.get("failureReason"),
    )

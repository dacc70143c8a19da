"""The payment records: the collection `payments`, one document per order, with the order id as `_id`.

    {_id, status, userId, ownerId, amount (minor units), currency, token, captureOnConfirm, captureRequested,
     retainerId, transactionId, failureReason, refundRequested, nextLookupAt, lookups, unpublished, traceparent,
     createdAt, updatedAt,
     parts: [{refundId, amount, status, failureReason, entryId, createdAt, updatedAt}], partsVersion}

An order paid from a retainer has a `retainerId`, and its `transactionId` is the journal entry. Fields without a value
are not stored. Every update names the state it starts from: `status`, `refundRequested` and `failureReason`, the
fields that concurrent workers race for. The parts (parts.py) are changed apart from the rest: one is added to the
`partsVersion` on which it was decided, and leaves PENDING once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError

from payment_service.ledger.unit_of_work import UnitOfWork
from payment_service.lifecycle import (
    Part,
    PartStatus,
    Payment,
    PaymentStatus,
    tombstone,
    with_next_lookup,
    with_refund_requested,
)
from payment_service.payment_documents import FIELDS, payment_of
from shared import database
from shared.access.principal import EVERYTHING, Visible
from shared.database import Collection, Document
from shared.schema import CollectionSchema

COLLECTION = "payments"

RARE = tuple(status for status in PaymentStatus if status is not PaymentStatus.PROCESSED)
"""The statuses that few payments have for long; to list the others, the index of all ids does as well."""

SCHEMA = CollectionSchema(
    (
        IndexModel(
            [("status", ASCENDING), ("_id", ASCENDING)],
            name="by_rare_status",
            partialFilterExpression={"status": {"$in": list(RARE)}},
        ),
        IndexModel(
            [("ownerId", ASCENDING), ("_id", ASCENDING)],
            name="by_owner",
            partialFilterExpression={"ownerId": {"$exists": True}},
        ),
        IndexModel(
            [("nextLookupAt", ASCENDING)],
            name="due_lookups",
            partialFilterExpression={"nextLookupAt": {"$exists": True}},
        ),
        IndexModel(
            [("updatedAt", ASCENDING)],
            name="unpublished",
            partialFilterExpression={"unpublished": True},
        ),
    )
)

PaymentChange = tuple[Payment, Payment]
"""A payment as it was read, and as it should become."""

_OF_AN_UNKNOWN_OUTCOME = frozenset({"nextLookupAt", "captureRequested"})
"""What a worker without an answer leaves, perhaps after another one read the payment whose outcome it then records."""


class Payments:
    """The payments of one database. Every method may raise the driver's errors; callers translate them."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def insert_missing(self, payments: Sequence[Payment]) -> list[Payment]:
        """Insert the payments that do not exist yet, and return all of them as recorded, in the same order."""
        if not payments:
            return []
        try:
            await self._collection.insert_many([_document(payment) for payment in payments], ordered=False)
        except BulkWriteError as error:
            existing = await self.read_existing(database.duplicates(error))
            return [existing.get(payment.order_id, payment) for payment in payments]
        return list(payments)

    async def read(self, order_ids: Iterable[str]) -> dict[str, Payment]:
        """Return the payments that exist, by order id."""
        cursor = self._collection.find({"_id": {"$in": list(order_ids)}})
        return {document["_id"]: payment_of(document) async for document in cursor}

    async def read_existing(self, order_ids: Iterable[str]) -> dict[str, Payment]:
        """Return payments that must exist, by order id; a new primary may not show one to other reads yet."""
        documents = await database.find_existing(self._collection, order_ids)
        return {document["_id"]: payment_of(document) for document in documents}

    async def find(self, order_id: str, visible: Visible = EVERYTHING) -> Payment | None:
        """Return one payment, None if there is none that is visible."""
        document = await self._collection.find_one({"_id": order_id, **visible})
        return payment_of(document) if document else None

    async def update_many(self, changes: Sequence[PaymentChange]) -> list[Payment]:
        """Make the changes in one write and return the payments as recorded, in the same order.

        A change is skipped if its payment has left the state in which it was read. Raises LookupError if a payment no
        longer exists; its message must be retried.
        """
        if not changes:
            return []
        updates = database.guarded_updates([_update(*change) for change in changes])
        result = await self._collection.bulk_write(updates, ordered=False)
        if result.matched_count == len(changes):
            return [after for _, after in changes]
        recorded = await self.read_existing(before.order_id for before, _ in changes)
        if gone := [before.order_id for before, _ in changes if before.order_id not in recorded]:
            raise LookupError(f"payments that were recorded are gone: {', '.join(gone[:5])}")
        return [recorded[before.order_id] for before, _ in changes]

    async def add_part(self, payment: Payment, part: Part) -> bool:
        """Add a part; return False if the payment, or any of its parts, has changed since it was read."""
        unchanged = {**_unchanged(payment), "partsVersion": payment.parts_version or None}
        result = await self._collection.update_one(
            unchanged,
            {
                "$push": {"parts": _part_document(part)},
                "$inc": {"partsVersion": 1},
                "$set": {"updatedAt": part.updated_at},
            },
        )
        return bool(result.matched_count)

    async def decide_part(self, order_id: str, part: Part) -> Part:
        """Record the outcome of a PENDING part; return it as recorded, which another worker may have done first."""
        pending = {"$elemMatch": {"refundId": part.refund_id, "status": PartStatus.PENDING}}
        result = await self._collection.update_one(
            {"_id": order_id, "parts": pending},
            {"$set": {"parts.$": _part_document(part), "updatedAt": part.updated_at}},
        )
        if result.matched_count:
            return part
        recorded = (await self.read_existing([order_id]))[order_id]
        return next(known for known in recorded.parts if known.refund_id == part.refund_id)

    async def request_refunds(self, order_ids: Iterable[str], now: datetime) -> list[Payment]:
        """Record that the orders must be refunded, and return their payments as recorded.

        An order without a payment gets a tombstone, and a payment whose charge or capture may be in flight is marked.
        The caller refunds the payments that are charged or authorised.
        """
        settled: dict[str, Payment] = {}
        remaining = list(dict.fromkeys(order_ids))
        while remaining:
            found = await self.read(remaining)
            missing = [tombstone(order_id, now) for order_id in remaining if order_id not in found]
            unmarked = [payment for payment in found.values() if _may_be_in_flight(payment)]
            marked = await self.update_many([(payment, with_refund_requested(payment, now)) for payment in unmarked])
            found.update((payment.order_id, payment) for payment in (*await self.insert_missing(missing), *marked))
            settled.update(found)
            # Another worker inserted one of these in the meantime, so its refund is not recorded yet.
            remaining = [order_id for order_id in remaining if _may_be_in_flight(settled[order_id])]
        return list(settled.values())

    async def due(self, now: datetime, limit: int) -> list[Payment]:
        """Return payments whose look-up is due, most overdue first."""
        cursor = self._collection.find({"nextLookupAt": {"$lte": now}}).sort("nextLookupAt", ASCENDING).limit(limit)
        return [payment_of(document) async for document in cursor]

    async def claim(self, payment: Payment, now: datetime) -> Payment | None:
        """Claim a look-up by scheduling the next one; return the payment, or None if another process was faster."""
        claimed = with_next_lookup(payment, now)
        result = await self._collection.update_one(
            {"_id": payment.order_id, "nextLookupAt": payment.next_lookup_at},
            {"$set": {"nextLookupAt": claimed.next_lookup_at, "lookups": claimed.lookups, "updatedAt": now}},
        )
        return claimed if result.matched_count else None

    async def clear_lookups(self, payments: Sequence[Payment]) -> None:
        """Cancel the look-ups of payments that are decided."""
        await self.update_many([(payment, replace(payment, next_lookup_at=None)) for payment in payments])

    async def unpublished(self, before: datetime, limit: int) -> list[Payment]:
        """Return payments decided before the given time whose answer may be unpublished, oldest first."""
        cursor = self._collection.find({"unpublished": True, "updatedAt": {"$lte": before}})
        return [payment_of(document) async for document in cursor.sort("updatedAt", ASCENDING).limit(limit)]

    async def mark_published(self, payments: Sequence[Payment]) -> None:
        """Record that the answers to these payments are published."""
        if payments:
            # A payment that has changed since has another answer, which is not published yet.
            writes = [
                UpdateOne({"_id": payment.order_id, "status": payment.status}, {"$unset": {"unpublished": ""}})
                for payment in payments
            ]
            await self._collection.bulk_write(writes, ordered=False)

    async def page(
        self, status: PaymentStatus | None, *, after: str | None, limit: int, visible: Visible = EVERYTHING
    ) -> list[Payment]:
        """Return visible payments, of one status or all, ordered by id, starting after the given id."""
        query: Document = {"status": status, **visible} if status else dict(visible)
        if after is not None:
            query["_id"] = {"$gt": after}
        cursor = self._collection.find(query).sort("_id", ASCENDING).limit(limit)
        return [payment_of(document) async for document in cursor]


async def read_in(unit: UnitOfWork, order_id: str) -> Payment | None:
    """Return a payment as the transaction sees it, None if there is none."""
    document = await unit.get(COLLECTION, order_id)
    return None if document is None else payment_of(document)


def insert_in(unit: UnitOfWork, payment: Payment) -> None:
    """Record a new payment in the transaction."""
    unit.insert(COLLECTION, _document(payment))


async def update_in(unit: UnitOfWork, before: Payment, after: Payment) -> Payment:
    """Make one change in the transaction; return `after`, or the recorded payment if another worker was faster."""
    document = await _existing(unit, before.order_id)
    if not _matches(document, _unchanged(before)):
        return payment_of(document)
    changed, gone = _difference(before, after)
    unit.update(COLLECTION, {name: value for name, value in (document | changed).items() if name not in gone})
    return after


async def add_part_in(unit: UnitOfWork, payment: Payment, part: Part) -> None:
    """Add a part, in the transaction that has read the payment."""
    document = await _existing(unit, payment.order_id)
    unit.update(
        COLLECTION,
        document
        | {
            "parts": [*document.get("parts", ()), _part_document(part)],
            "partsVersion": document.get("partsVersion", 0) + 1,
            "updatedAt": part.updated_at,
        },
    )


async def _existing(unit: UnitOfWork, order_id: str) -> Document:
    document = await unit.get(COLLECTION, order_id)
    if document is None:
        raise LookupError(f"payment {order_id} is gone")
    return document


def _matches(document: Document, query: Document) -> bool:
    return all(document.get(name) == value for name, value in query.items())


def _may_be_in_flight(payment: Payment) -> bool:
    """Return whether a charge or a capture may be in flight that does not know of a refund."""
    return payment.status in (PaymentStatus.PENDING, PaymentStatus.AUTHORIZED) and not payment.refund_requested


def _update(before: Payment, after: Payment) -> tuple[Document, Document]:
    """Write the difference, unless another worker has changed the payment since it was read."""
    changed, gone = _difference(before, after)
    change: dict[str, Any] = {"$set": changed}
    if gone:
        change["$unset"] = dict.fromkeys(gone, "")
    return _unchanged(before), change


def _difference(before: Payment, after: Payment) -> tuple[Document, set[str]]:
    """Return the fields that have another value, and those that have none any more."""
    old, new = _document(before), _document(after)
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    return {"updatedAt": after.updated_at, **changed}, (old.keys() | _OF_AN_UNKNOWN_OUTCOME) - new.keys()


def _unchanged(payment: Payment) -> Document:
    """Return the query for a payment that no worker has changed; a null also matches a missing field."""
    return {
        "_id": payment.order_id,
        "status": payment.status,
        "refundRequested": payment.refund_requested or None,
        "failureReason": payment.failure_reason,
    }


def _part_document(part: Part) -> Document:
    document = {
        "refundId": part.refund_id,
        "amount": part.amount,
        "status": part.status,
        "failureReason": part.failure_reason,
        "entryId": part.entry_id,
        "createdAt": part.created_at,
        "updatedAt": part.updated_at,
    }
    return {name: value for name, value in document.items() if value is not None}


def _document(payment: Payment) -> Document:
    document: Document = {"_id": payment.order_id}
    for attribute, name in FIELDS.items():
        value = getattr(payment, attribute)
        if value is not None and value is not False:
            document[name] = value
    document["status"] = payment.status
    return document

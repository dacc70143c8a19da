"""The collection `orders`: one document per order, changed only by updates that name the version they start from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from pymongo import ASCENDING, DESCENDING, IndexModel, InsertOne, UpdateOne
from pymongo.errors import BulkWriteError

from order_service.failures import GENERAL
from order_service.order import FINAL, HistoryEntry, Order, Refund, RefundLine, RefundStatus, Status, replace
from order_service.participants import PARTICIPANTS
from order_service.particulars import ERASED_AT, PERSONAL, UNREAD
from order_service.refunds import refunded_amount
from order_service.saga import SAGA_VERSION
from shared import database
from shared.access.principal import EVERYTHING, Visible
from shared.contracts.failures import FailureCode
from shared.contracts.inventory import ServerSpecification
from shared.contracts.orders import DeliveryInstruction, Item, PaymentInstruction
from shared.contracts.provisioning import Server
from shared.database import Collection, Document
from shared.errors import NewerOrderError
from shared.schema import CollectionSchema

COLLECTION = "orders"

SCHEMA = CollectionSchema(
    (
        # For the lists: without a filter for the status, MongoDB merges the statuses in order of time.
        IndexModel([("status", ASCENDING), ("createdAt", DESCENDING), ("_id", DESCENDING)], name="by_status"),
        IndexModel(
            [("ownerId", ASCENDING), ("status", ASCENDING), ("createdAt", DESCENDING), ("_id", DESCENDING)],
            name="by_owner",
        ),
        IndexModel([("userId", ASCENDING), ("createdAt", DESCENDING), ("_id", DESCENDING)], name="by_user"),
        IndexModel(
            [("createdAt", DESCENDING), ("_id", DESCENDING)], name="open", partialFilterExpression={"settled": False}
        ),
        IndexModel([("dueAt", ASCENDING)], name="due", partialFilterExpression={"dueAt": {"$exists": True}}),
        IndexModel([("resendAt", ASCENDING)], name="resend", partialFilterExpression={"resendAt": {"$exists": True}}),
        IndexModel([(f"{PERSONAL}.words", ASCENDING), ("createdAt", DESCENDING)], name="by_person", sparse=True),
        IndexModel(
            [
                ("ownerId", ASCENDING),
                ("failureReason", ASCENDING),
                ("createdAt", DESCENDING),
                ("_id", DESCENDING),
            ],
            name="by_owner_and_failure_reason",
            partialFilterExpression={"failureReason": {"$exists": True}},
        ),
        IndexModel(
            [("failureReason", ASCENDING), ("createdAt", DESCENDING), ("_id", DESCENDING)],
            name="by_failure_reason",
            partialFilterExpression={"failureReason": {"$exists": True}},
        ),
        IndexModel(
            [("status", ASCENDING), ("failureReason", ASCENDING)],
            name="by_reason",
            partialFilterExpression={"failureReason": {"$exists": True}},
        ),
    )
)


MAX_HISTORY = 500
"""Most lines of one order's history; later events take effect, but are not recorded."""

_OF_SAGA = {"history": False, **UNREAD}
"""The projection of what the saga needs."""

KNOWN = {"sagaVersion": {"$not": {"$gt": SAGA_VERSION}}}
"""The condition of orders that this process can decide about: the others are left to newer processes."""

_WAITS_FOR_LONG = [Status.PROVISIONING.value, Status.FAILED.value]
_FINAL = [status.value for status in FINAL]

_HELD_FOR_A_DECISION = {"status": Status.FAILED.value, "compensating": {"$exists": False}}


_CODE = {
    "$ifNull": [
        "$failureCode",
        {
            "$switch": {
                "branches": [{"case": {"$eq": ["$cause", cause]}, "then": code} for cause, code in GENERAL.items()],
                "default": FailureCode.OTHER.value,
            }
        },
    ]
}
"""The code of an order that did not go through, which one of an earlier release has by its cause only."""


@dataclass(frozen=True, slots=True)
class CountedFailures:
    """How many orders ended with this status for this reason."""

    count: int
    status: str
    reason: str
    code: str


class NewRecord(NamedTuple):
    """A new order as it is stored, with the fingerprint of its request and its particulars, if any."""

    order: Order
    fingerprint: str | None = None
    particulars: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Change:
    """A decided change of one order: the state before, the state after, and the new lines of its history."""

    before: Order
    after: Order
    entries: tuple[HistoryEntry, ...]

    @property
    def version(self) -> int:
        """The version of the order after the change is stored."""
        return self.before.version + 1

    @property
    def stored(self) -> Order:
        """The order after the change is stored."""
        return replace(self.after, version=self.version)


@dataclass(frozen=True, slots=True)
class Filter:
    """The orders of a list: those that meet every condition that is given.

    `ids` are the first and the last id that an order may have. Of the times, the first is included, the last is not.
    """

    statuses: Sequence[Status] = ()
    user_id: str | None = None
    settled: bool | None = None
    ids: tuple[str, str] | None = None
    failure_reason: str | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None


class Orders:
    """Reads and updates of the collection; errors of the driver pass through unchanged."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def insert(self, records: Sequence[NewRecord]) -> set[str]:
        """Insert new orders; return the ids that existed already."""
        documents = [new_document(record) for record in records]
        try:
            await self._collection.bulk_write([InsertOne(document) for document in documents], ordered=False)
        except BulkWriteError as error:
            return database.duplicates(error)
        return set()

    async def load(self, ids: Iterable[str], visible: Visible = EVERYTHING) -> dict[str, Order]:
        """Return the orders that exist and are visible, by id, without their histories.

        An order that is not found is asked for again: a new primary may not show it to ordinary reads yet. Raises
        NewerOrderError if one of them began under a newer saga.
        """
        documents = await database.find_existing(self._collection, ids, visible, _OF_SAGA)
        return {document["_id"]: from_document(document) for document in documents}

    async def apply(self, changes: Sequence[Change]) -> bool:
        """Store the changes; return False if any of the orders had changed meanwhile (the others are stored)."""
        if not changes:
            return True
        updates = database.guarded_updates([_update(change) for change in changes])
        result = await self._collection.bulk_write(updates, ordered=False)
        return result.matched_count == len(changes)

    async def mark_published(self, orders: Sequence[tuple[str, int]], resend_at: datetime) -> None:
        """Note that the messages of these versions are published, and when unanswered commands are sent again.

        Orders that have changed meanwhile are left alone.
        """
        for version, ids in _by_version(orders).items():
            unchanged = {"_id": {"$in": ids}, "version": version}
            await self._collection.update_many(unchanged, _published(resend_at))

    async def hasten(self, ids: Sequence[str], now: datetime) -> None:
        """Make the orders due that are unpublished, also those that have changed meanwhile.

        When a part of an order's messages was published, their answer may come before the failure of the others.
        """
        unpublished = {"_id": {"$in": list(ids)}, "unpublished": True}
        await self._collection.update_many(unpublished, {"$set": {"dueAt": now}})

    async def due(self, now: datetime, limit: int) -> list[Order]:
        """Return the orders whose `due_at` has passed, longest overdue first."""
        return await self._until("dueAt", now, limit)

    async def to_resend(self, now: datetime, limit: int) -> list[Order]:
        """Return the orders whose `resend_at` has passed, longest overdue first."""
        return await self._until("resendAt", now, limit)

    async def schedule_resend(self, orders: Sequence[tuple[Order, datetime | None]]) -> None:
        """Note when each order's commands are sent again (None: never); orders that have changed are left alone.

        The version stays the same: a change that was decided meanwhile sets its own time.
        """
        updates = [
            UpdateOne(
                {"_id": order.order_id, "version": order.version},
                {"$set": {"resendAt": at}} if at is not None else {"$unset": {"resendAt": ""}},
            )
            for order, at in orders
        ]
        if updates:
            await self._collection.bulk_write(updates, ordered=False)

    async def extend(self, orders: Sequence[tuple[Order, datetime]]) -> None:
        """Give PENDING orders a later deadline; those that have changed meanwhile are left alone.

        The version stays the same, as in `schedule_resend`. Unpublished orders stay due, to be published.
        """
        updates = [
            UpdateOne(
                {"_id": order.order_id, "version": order.version},
                {"$set": {"deadline": deadline} if order.unpublished else {"deadline": deadline, "dueAt": deadline}},
            )
            for order, deadline in orders
        ]
        if updates:
            await self._collection.bulk_write(updates, ordered=False)

    async def adopt(self, now: datetime) -> int:
        """Schedule the commands of orders that have no `resend_at`; return the number of orders.

        Earlier versions did not store it. The index `open`, which needs the condition on createdAt, contains only
        unsettled orders, so no others are read.
        """
        unscheduled = {
            "settled": False,
            "createdAt": {"$lte": now},
            "unpublished": {"$exists": False},
            "resendAt": {"$exists": False},
            "$nor": [_HELD_FOR_A_DECISION],
            **KNOWN,
        }
        result = await self._collection.update_many(unscheduled, {"$set": {"resendAt": now}})
        return result.modified_count

    async def document(self, order_id: str, visible: Visible = EVERYTHING) -> Document | None:
        """Return the whole document of an order, including its history; None if it does not exist for the caller.

        As in `load`, an order that is not found is asked for again.
        """
        query = {"_id": order_id, **visible}
        found = await self._collection.find_one(query)
        return found if found is not None else await database.latest(self._collection).find_one(query)

    async def documents(self, ids: Iterable[str]) -> dict[str, Document]:
        """Return the whole documents of the orders that exist, by id."""
        return {document["_id"]: document async for document in self._collection.find({"_id": {"$in": list(ids)}})}

    async def stored(self, ids: Iterable[str]) -> set[str]:
        """Return the ids of the orders that exist."""
        found = self._collection.find({"_id": {"$in": list(ids)}}, {"_id": True})
        return {document["_id"] async for document in found}

    async def in_progress(self, ids: Sequence[str]) -> set[str]:
        """Return those of the orders that are on their way, see intake.py."""
        query = {"_id": {"$in": ids}, "settled": False, "status": {"$nin": _WAITS_FOR_LONG}}
        return {document["_id"] async for document in self._collection.find(query, {"_id": True}).hint("_id_")}

    async def newest_pending(self, limit: int) -> list[tuple[str, datetime]]:
        """Return ids and times of at most so many PENDING orders, newest first; the index alone has both."""
        found = self._collection.find({"status": Status.PENDING.value}, {"_id": True, "createdAt": True})
        newest = found.sort([("createdAt", DESCENDING), ("_id", DESCENDING)]).limit(limit)
        return [(document["_id"], document["createdAt"]) async for document in newest]

    async def ended(self, ids: Sequence[str]) -> list[Order]:
        """Return those of the orders that are in a final status, without their histories."""
        query = {"_id": {"$in": ids}, "status": {"$in": _FINAL}, **KNOWN}
        # By id: an index of statuses has nearly every order under these.
        cursor = self._collection.find(query, _OF_SAGA).hint("_id_")
        return [from_document(document) async for document in cursor]

    async def booked(self, ids: Sequence[str]) -> list[Order]:
        """Return those of the orders that have a slot, or have ended without one, without their histories."""
        done = [{"slot": {"$exists": True}}, {"status": {"$in": [Status.CANCELLED, Status.FAILED]}}]
        cursor = self._collection.find({"_id": {"$in": ids}, "$or": done, **KNOWN}, _OF_SAGA).hint("_id_")
        return [from_document(document) async for document in cursor]

    async def page(
        self,
        wanted: Filter,
        *,
        after: tuple[datetime, str] | None,
        limit: int,
        oldest_first: bool = False,
        with_items: bool = False,
        visible: Visible = EVERYTHING,
    ) -> list[Document]:
        """Return a page of visible documents, newest first or oldest first, after the given (createdAt, id).

        The documents have no histories and refunds, and no items and particulars unless `with_items`: all of them may
        be long.
        """
        query = {**_query(wanted), **visible}
        conditions = [{"userId": wanted.user_id}] if wanted.user_id is not None else []  # beside that of `visible`
        if after is not None:
            conditions.extend(_beyond(after, oldest_first=oldest_first))
        if conditions:
            query["$and"] = conditions
        excluded = {"history": False, "refunds": False}
        excluded |= {PERSONAL: False} if with_items else {"items": False, **UNREAD}
        direction = ASCENDING if oldest_first else DESCENDING
        cursor = self._collection.find(query, excluded).sort([("createdAt", direction), ("_id", direction)])
        return [document async for document in cursor.limit(limit)]

    async def erase_personal(self, user_id: str, now: datetime) -> int:
        """Remove what is known about a person from all orders of a user; return the number of orders that had it."""
        found = {"userId": user_id, PERSONAL: {"$exists": True}}
        erased = await self._collection.update_many(found, {"$unset": {PERSONAL: ""}, "$set": {ERASED_AT: now}})
        return erased.modified_count

    async def newest_without_owner(self) -> datetime | None:
        """Return when the newest order without an owner was placed, None if there is none."""
        query = {"ownerId": None, "status": {"$in": list(Status)}}
        found = await self._collection.find(query, {"createdAt": True}).sort("createdAt", DESCENDING).limit(1).to_list()
        return found[0]["createdAt"] if found else None

    async def _until(self, field: str, now: datetime, limit: int) -> list[Order]:
        cursor = self._collection.find({field: {"$lte": now}, **KNOWN}, _OF_SAGA).sort(field).limit(limit)
        return [from_document(document) async for document in cursor]

    async def count_failures(
        self, *, after: CountedFailures | None, limit: int, visible: Visible = EVERYTHING
    ) -> list[CountedFailures]:
        """Count visible failed and cancelled orders by status, reason and code, most frequent first."""
        ended = {"status": {"$in": [Status.CANCELLED, Status.FAILED]}, "failureReason": {"$exists": True}}
        group = {"status": "$status", "reason": "$failureReason", "code": _CODE}
        pipeline: list[Mapping[str, Any]] = [
            {"$match": {**ended, **visible}},
            {"$group": {"_id": group, "count": {"$sum": 1}}},
            {"$match": _counted_after(after)},
            {"$sort": {"count": -1, "_id": 1}},
            {"$limit": limit},
        ]
        return [
            CountedFailures(row["count"], **row["_id"]) async for row in database.aggregate(self._collection, pipeline)
        ]


def _query(wanted: Filter) -> dict[str, Any]:
    """Return the query of a list. It names the statuses even if all are wanted: the indexes begin with them."""
    created = {"$gte": wanted.created_from, "$lt": wanted.created_to}
    conditions: dict[str, Any] = {
        "status": {"$in": list(wanted.statuses or Status)},
        "settled": wanted.settled,
        "_id": {"$gte": wanted.ids[0], "$lte": wanted.ids[1]} if wanted.ids is not None else None,
        "failureReason": wanted.failure_reason,
        "createdAt": _without_none(created) or None,
    }
    return _without_none(conditions)


def _beyond(after: tuple[datetime, str], *, oldest_first: bool) -> list[Document]:
    """Return the conditions of the orders that follow the last one of a page.

    The first is implied by the second, but only it bounds the part of an index that is read.
    """
    created_at, order_id = after
    beyond = "$gt" if oldest_first else "$lt"
    later = [{"createdAt": {beyond: created_at}}, {"createdAt": created_at, "_id": {beyond: order_id}}]
    return [{"createdAt": {f"{beyond}e": created_at}}, {"$or": later}]


def _by_version(orders: Sequence[tuple[str, int]]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for order_id, version in orders:
        found.setdefault(version, []).append(order_id)
    return found


def _published(resend_at: datetime) -> list[Document]:
    """Return the update of an order whose messages are published.

    Only a PENDING order has a deadline. The version changes as with every update: a change that was decided on the
    state before must not overwrite it.
    """
    deadline = {"$cond": [{"$eq": ["$status", Status.PENDING.value]}, "$deadline", "$$REMOVE"]}
    resend = {"$cond": ["$settled", "$$REMOVE", resend_at]}
    version = {"$add": ["$version", 1]}
    return [{"$set": {"dueAt": deadline, "resendAt": resend, "unpublished": "$$REMOVE", "version": version}}]


def _counted_after(after: CountedFailures | None) -> Document:
    if after is None:
        return {}
    group = {"status": after.status, "reason": after.reason, "code": after.code}
    return {"$or": [{"count": {"$lt": after.count}}, {"count": after.count, "_id": {"$gt": group}}]}


def stored_items(order: Order) -> list[Document]:
    """Return the items of an order as its record has them."""
    return [{"productId": i.product_id, "quantity": i.quantity, "price": i.price} for i in order.items]


def new_document(record: NewRecord) -> Document:
    """Return the document of a new order, with the first line of its history."""
    order = record.order
    first = HistoryEntry(order.created_at, "order.created", order.status)
    document = {
        "_id": order.order_id,
        "userId": order.user_id,
        "ownerId": order.owner_id,
        "items": stored_items(order),
        "totalAmount": order.total_amount,
        "currency": order.currency,
        "payment": _without_none(order.payment.model_dump()),
        "delivery": _without_none(order.delivery.model_dump()),
        "createdAt": order.created_at,
        "deadline": order.deadline,
        "traceparent": order.traceparent,
        "pricesRequired": order.prices_required or None,
        "holdId": order.hold_id,
        "sagaVersion": order.saga_version,
        **_changing_fields(order),
        "history": [_entry(first)],
    }
    if record.fingerprint is not None:
        document["fingerprint"] = record.fingerprint
    return {**_without_none(document), **record.particulars}


def _changing_fields(order: Order) -> Document:
    """Return the fields that the saga changes; None means that the field is absent."""
    return {
        "status": order.status.value,
        **{participant.stored_field: participant.state(order) for participant in PARTICIPANTS},
        "provisioningStatus": order.provisioning_status,
        "settled": order.settled,
        "cause": order.cause,
        "enteredAt": order.entered_at,
        "failureReason": order.failure_reason,
        "failureCode": order.failure_code,
        "transactionId": order.transaction_id,
        "fulfilment": order.fulfilment,
        "provisioning": order.provisioning_spec.model_dump() if order.provisioning_spec else None,
        "provisioningRun": order.provisioning_run or None,
        "progress": order.progress,
        "progressSequence": order.progress_sequence or None,
        "slot": order.slot,
        "slotVisibleAt": order.slot_visible_at,
        "server": order.server.model_dump() if order.server else None,
        "cancelRequested": order.cancel_requested or None,
        "compensating": order.compensating or None,
        "updatedAt": order.updated_at,
        "confirmedAt": order.confirmed_at,
        "completedAt": order.completed_at,
        "cancelledAt": order.cancelled_at,
        "dueAt": order.due_at,
        "resendAt": order.resend_at,
        "unpublished": order.unpublished or None,
        "refunds": [_refund_document(refund) for refund in order.refunds] or None,
        "refundedAmount": refunded_amount(order) or None,
        "version": order.version,
    }


def _refund_document(refund: Refund) -> Document:
    document = {
        "refundId": refund.refund_id,
        "amount": refund.amount,
        "status": refund.status.value,
        "items": [{"productId": line.product_id, "quantity": line.quantity} for line in refund.lines] or None,
        "reason": refund.reason,
        "restock": refund.restock or None,
        "returned": refund.returned or None,
        "failureReason": refund.failure_reason,
        "createdAt": refund.created_at,
        "updatedAt": refund.updated_at,
        "fingerprint": refund.fingerprint,
    }
    return _without_none(document)


def _update(change: Change) -> tuple[Document, Document]:
    before, after = _changing_fields(change.before), _changing_fields(change.after)
    after["version"] = change.version
    changed = {name: value for name, value in after.items() if value != before[name]}
    update: dict[str, Any] = {"$set": {name: value for name, value in changed.items() if value is not None}}
    if gone := {name: "" for name, value in changed.items() if value is None}:
        update["$unset"] = gone
    if change.entries:
        update["$push"] = {"history": {"$each": [_entry(entry) for entry in change.entries], "$slice": MAX_HISTORY}}
    return {"_id": change.before.order_id, "version": change.before.version}, update


def _entry(entry: HistoryEntry) -> Document:
    return _without_none({"at": entry.at, "event": entry.event, "status": entry.status.value, "message": entry.message})


def _without_none(document: Document) -> Document:
    return {name: value for name, value in document.items() if value is not None}


def _refund(document: Document) -> Refund:
    return Refund(
        refund_id=document["refundId"],
        amount=document["amount"],
        status=RefundStatus(document["status"]),
        lines=tuple(RefundLine(item["productId"], item["quantity"]) for item in document.get("items", ())),
        reason=document.get("reason"),
        restock=document.get("restock", False),
        returned=document.get("returned", False),
        failure_reason=document.get("failureReason"),
        created_at=document["createdAt"],
        updated_at=document["updatedAt"],
        fingerprint=document.get("fingerprint"),
    )


def from_document(document: Document) -> Order:
    """Return the order of a document, which is trusted and not validated again.

    Raises NewerOrderError if it began under a newer saga: it may be in a status that only a newer process knows.
    """
    saga_version = document.get("sagaVersion", 1)  # no version was stored before there was a second one to come
    if saga_version > SAGA_VERSION:
        raise NewerOrderError(
            f"order {document['_id']} began under version {saga_version} of the saga, this process knows {SAGA_VERSION}"
        )
    spec, server = document.get("provisioning"), document.get("server")
    states = {participant.field: document[participant.stored_field] for participant in PARTICIPANTS}
    return Order(
        order_id=document["_id"],
        user_id=document["userId"],
        items=tuple(
            Item.model_construct(product_id=i["productId"], quantity=i["quantity"], price=i["price"])
            for i in document["items"]
        ),
        total_amount=document["totalAmount"],
        currency=document["currency"],
        payment=PaymentInstruction.model_construct(**document["payment"]),
        delivery=DeliveryInstruction.model_construct(**document["delivery"]),
        created_at=document["createdAt"],
        updated_at=document["updatedAt"],
        deadline=document["deadline"],
        status=Status(document["status"]),
        **states,
        provisioning_status=document.get("provisioningStatus"),
        settled=document["settled"],
        cause=document.get("cause"),
        entered_at=document.get("enteredAt"),
        failure_reason=document.get("failureReason"),
        failure_code=document.get("failureCode"),
        transaction_id=document.get("transactionId"),
        fulfilment=document.get("fulfilment"),
        provisioning_spec=ServerSpecification.model_construct(**spec) if spec else None,
        # Earlier versions did not count runs: an order that was being provisioned is in its first.
        provisioning_run=document.get("provisioningRun", 1 if "provisioningStatus" in document else 0),
        progress=document.get("progress"),
        progress_sequence=document.get("progressSequence", 0),
        slot=document.get("slot"),
        slot_visible_at=document.get("slotVisibleAt"),
        server=Server.model_construct(**server) if server else None,
        cancel_requested=document.get("cancelRequested", False),
        compensating=document.get("compensating", False),
        confirmed_at=document.get("confirmedAt"),
        completed_at=document.get("completedAt"),
        cancelled_at=document.get("cancelledAt"),
        due_at=document.get("dueAt"),
        resend_at=document.get("resendAt"),
        unpublished=document.get("unpublished", False),
        traceparent=document.get("traceparent"),
        version=document["version"],
        owner_id=document.get("ownerId"),
        prices_required=document.get("pricesRequired", False),
        refunds=tuple(_refund(refund) for refund in document.get("refunds", ())),
        hold_id=document.get("holdId"),
        saga_version=saga_version,
    )

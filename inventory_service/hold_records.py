"""The updates of a hold's document that decide about it. Each finds the hold open, so only one of them succeeds."""

from collections.abc import Collection as Ids
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from pymongo import ASCENDING, IndexModel, ReturnDocument, UpdateOne

from inventory_service.stock import HoldOutcome, HoldTerms, Status, hold_reservation_id
from shared.access.principal import Visible
from shared.clock import Clock
from shared.database import Collection, Document

_HELD: Document = {"status": Status.RESERVED.value, "hold.dueAt": {"$exists": True}}
_OPEN: Document = _HELD | {"hold.outcome": None}

INDEXES = (
    IndexModel([("hold.dueAt", ASCENDING)], name="holds_due", partialFilterExpression=_HELD),
    IndexModel([("hold.userId", ASCENDING)], name="holds_of_user", partialFilterExpression=_HELD),
)

TAKEN_CHECKED_AFTER = timedelta(seconds=5)
"""When the sweep looks at a hold that an order has claimed: the order's own message finishes it long before."""
EXPIRED_CHECKED_AFTER = timedelta(seconds=2)
"""When the sweep looks again at a hold that it has ended: until then, the process that ended it returns its units."""
MOST_CLAIMED = 100
"""The most holds of one user that an order is served from without naming them."""


class HoldClaim(NamedTuple):
    """An order that names a hold; the hold must be of the same owner and user."""

    hold_id: str
    order_id: str
    owner_id: str | None
    user_id: str


class HoldRecords:
    """The holds among the reservations; driver errors pass through."""

    def __init__(self, collection: Collection, clock: Clock) -> None:
        self._collection = collection
        self._clock = clock

    async def claim(self, claims: Sequence[HoldClaim]) -> None:
        """Claim each hold for its order if it is open, not expired, and of the order's owner and user."""
        now = self._clock()
        updates = [
            UpdateOne(
                {"_id": hold_reservation_id(claim.hold_id), **_claimable(claim.owner_id, claim.user_id, now)},
                _claimed(claim.order_id, now),
            )
            for claim in claims
        ]
        if updates:
            await self._collection.bulk_write(updates, ordered=False)

    async def claim_own(
        self, order_id: str, owner_id: str | None, user_id: str, item_ids: Ids[str], any_slot: bool
    ) -> set[str]:
        """Claim the user's open holds of any of these items for the order; return those that the order has now."""
        now = self._clock()
        of_items: list[Document] = [{"items.productId": {"$in": list(item_ids)}}]
        if any_slot:
            of_items.append({"slot.slotId": {"$exists": True}})
        mine: Document = {**_HELD, "ownerId": owner_id, "hold.userId": user_id, "$or": of_items}
        open_now = {"hold.outcome": None, "hold.expiresAt": {"$gt": now}}
        found = await self._collection.find(mine | open_now, {"_id": True}).limit(MOST_CLAIMED).to_list(None)
        if found:
            ids = [document["_id"] for document in found]
            await self._collection.update_many({"_id": {"$in": ids}, **mine, **open_now}, _claimed(order_id, now))
        taken = self._collection.find({**mine, "hold.orderId": order_id}, {"_id": True})
        return {document["_id"] for document in await taken.to_list(None)}

    async def extend(self, hold_id: str, expires_at: datetime, visible: Visible) -> Document | None:
        """Set a new expiry; return the hold, or None if it is not open any more."""
        now = self._clock()
        query = {"_id": hold_reservation_id(hold_id), **_OPEN, "hold.expiresAt": {"$gt": now}, **visible}
        change = {"$set": {"hold.expiresAt": expires_at, "hold.dueAt": expires_at, "updatedAt": now}}
        return await self._collection.find_one_and_update(query, change, return_document=ReturnDocument.AFTER)

    async def delete(self, hold_id: str, visible: Visible) -> None:
        """End the hold if it is open and not expired."""
        now = self._clock()
        query = {"_id": hold_reservation_id(hold_id), **_OPEN, "hold.expiresAt": {"$gt": now}, **visible}
        await self._collection.update_one(query, _ended(HoldOutcome.DELETED, now, due_at=now))

    async def expire(self, reservation_ids: Sequence[str]) -> int:
        """End those of these holds that are open and expired; return their number. Of two processes, one ends each."""
        now = self._clock()
        query = {"_id": {"$in": list(reservation_ids)}, **_OPEN, "hold.expiresAt": {"$lte": now}}
        change = _ended(HoldOutcome.EXPIRED, now, due_at=now + EXPIRED_CHECKED_AFTER)
        return (await self._collection.update_many(query, change)).modified_count

    async def due(self, limit: int) -> dict[str, HoldTerms]:
        """Return holds that the sweep must look at, by the ids of their reservations, earliest first."""
        query = {**_HELD, "hold.dueAt": {"$lte": self._clock()}}
        cursor = self._collection.find(query, {"hold": True}).sort("hold.dueAt", ASCENDING).limit(limit)
        return {document["_id"]: terms_of(document["hold"]) for document in await cursor.to_list(None)}

    async def postpone(self, reservation_ids: Sequence[str]) -> None:
        """Let the sweep look at these claimed holds later: their orders are not decided yet."""
        if reservation_ids:
            due = self._clock() + TAKEN_CHECKED_AFTER
            query = {"_id": {"$in": list(reservation_ids)}, **_HELD}
            await self._collection.update_many(query, {"$set": {"hold.dueAt": due}})

    async def open_of(self, owner_id: str | None, user_id: str) -> list[str]:
        """Return the user's open holds, by the ids of their reservations."""
        cursor = self._collection.find({**_OPEN, "ownerId": owner_id, "hold.userId": user_id}, {"_id": True})
        return [document["_id"] for document in await cursor.to_list(None)]

    async def are_open(self, reservation_ids: Ids[str]) -> dict[str, bool]:
        """Return whether holds are open, for those that exist."""
        fields = {"status": True, "hold.outcome": True}
        found = await self._collection.find({"_id": {"$in": list(reservation_ids)}}, fields).to_list(None)
        return {
            each["_id"]: each["status"] == Status.RESERVED and (each.get("hold") or {}).get("outcome") is None
            for each in found
        }

    async def count_all(self) -> int:
        """Count the holds of all users whose units are out."""
        return await self._collection.count_documents(_HELD)


def document_of(terms: HoldTerms) -> Document:
    """Return the stored form of a hold's terms."""
    document: Document = {"userId": terms.user_id, "expiresAt": terms.expires_at, "dueAt": terms.due_at}
    optional = {"outcome": terms.outcome, "orderId": terms.order_id, "fingerprint": terms.fingerprint}
    return document | {name: value for name, value in optional.items() if value is not None}


def terms_of(document: Document) -> HoldTerms:
    """Read a hold's terms from their stored form."""
    outcome = document.get("outcome")
    return HoldTerms(
        document["userId"],
        document["expiresAt"],
        document["dueAt"],
        HoldOutcome(outcome) if outcome else None,
        document.get("orderId"),
        document.get("fingerprint"),
    )


def _claimable(owner_id: str | None, user_id: str, now: datetime) -> Document:
    return {**_OPEN, "ownerId": owner_id, "hold.userId": user_id, "hold.expiresAt": {"$gt": now}}


def _claimed(order_id: str, now: datetime) -> Document:
    taken = {"hold.outcome": HoldOutcome.TAKEN, "hold.orderId": order_id, "hold.dueAt": now + TAKEN_CHECKED_AFTER}
    return {"$set": taken | {"updatedAt": now}}


def _ended(outcome: HoldOutcome, now: datetime, due_at: datetime) -> Document:
    return {"$set": {"hold.outcome": outcome, "hold.dueAt": due_at, "updatedAt": now}}

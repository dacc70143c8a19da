"""The collection `locks`: one lock per package, whose holder may buy from it; `_id` is the `package_key`.

    {_id, token, orderId, acquiredAt, expiresAt, progressAt}

A lock is held while it has an `orderId` and `expiresAt` is in the future. The fencing token counts the holders and is
part of every filter that a holder uses, so a holder whose lock was taken over can no longer write. A free lock keeps
only its token.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pymongo import ASCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from shared.database import Collection, Document

COLLECTION = "locks"

_HOLDER = ("orderId", "acquiredAt", "expiresAt", "progressAt")


@dataclass(frozen=True, slots=True)
class Lock:
    """A held lock; `progress_at` is when the holder last made progress, not when it last renewed the lease."""

    key: str
    order_id: str
    token: int
    acquired_at: datetime
    expires_at: datetime
    progress_at: datetime


class Locks:
    """Reads and writes of the collection; driver errors pass through."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def acquire(self, key: str, order_id: str, now: datetime, lease: timedelta) -> Lock | None:
        """Take a lock that is free or whose lease has expired; return None if it is held."""
        query = {"_id": key, "$or": [{"orderId": {"$exists": False}}, {"expiresAt": {"$lte": now}}]}
        held = {"orderId": order_id, "acquiredAt": now, "expiresAt": now + lease, "progressAt": now}
        try:
            document = await self._collection.find_one_and_update(
                query, {"$set": held, "$inc": {"token": 1}}, upsert=True, return_document=ReturnDocument.AFTER
            )
        except DuplicateKeyError:  # the lock exists but does not match: it is held
            return None
        return _lock(document) if document else None

    async def renew(self, lock: Lock, now: datetime, lease: timedelta, *, progress: bool = False) -> bool:
        """Extend the lease from now on, with or without progress; return False if the lock is lost."""
        change = {"expiresAt": now + lease} | ({"progressAt": now} if progress else {})
        result = await self._collection.update_one({"_id": lock.key, "token": lock.token, **_IS_HELD}, {"$set": change})
        return result.matched_count == 1

    async def release(self, lock: Lock) -> None:
        """Free the lock if this holder still holds it."""
        await self._collection.update_one(
            {"_id": lock.key, "token": lock.token}, {"$unset": dict.fromkeys(_HOLDER, "")}
        )

    async def clear(self, key: str) -> Lock | None:
        """Free the lock of any holder and return it as it was held; None if it was free.

        The former holder finds out before it buys.
        """
        document = await self._collection.find_one_and_update(
            {"_id": key, **_IS_HELD},
            {"$unset": dict.fromkeys(_HOLDER, ""), "$inc": {"token": 1}},
            return_document=ReturnDocument.BEFORE,
        )
        return _lock(document) if document else None

    async def held(self, keys: Iterable[str] | None = None) -> list[Lock]:
        """Return the held locks of these packages or of all, including expired ones, by package."""
        query: Document = dict(_IS_HELD)
        if keys is not None:
            query["_id"] = {"$in": list(keys)}
        return [_lock(document) async for document in self._collection.find(query).sort("_id", ASCENDING)]


_IS_HELD: Document = {"orderId": {"$exists": True}}


def _lock(document: Document) -> Lock:
    return Lock(
        document["_id"],
        document["orderId"],
        document["token"],
        document["acquiredAt"],
        document["expiresAt"],
        document["progressAt"],
    )

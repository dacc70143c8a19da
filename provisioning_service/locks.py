"""Who may buy from a package: the collection `locks`, one document per package, `_id` its key (see `package_key`).

    {_id, token, orderId, acquiredAt, expiresAt, progressAt}

Held as long as `orderId` is there and `expiresAt` is not over. The token counts the holders, and is in the filter of
everything that a holder does with the lock: one that was overtaken finds that out, it cannot overtake back. A lock that
nobody holds keeps its token only.
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
    """A lock as it is held; `progress_at` is when the holder last got further, not when it last renewed the lease."""

    key: str
    order_id: str
    token: int
    acquired_at: datetime
    expires_at: datetime
    progress_at: datetime


class Locks:
    """What can be done with the collection; a driver's error passes through as it is."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def acquire(self, key: str, order_id: str, now: datetime, lease: timedelta) -> Lock | None:
        """Take a lock that is free, or whose holder has let its lease run out; None if it is held."""
        query = {"_id": key, "$or": [{"orderId": {"$exists": False}}, {"expiresAt": {"$lte": now}}]}
        held = {"orderId": order_id, "acquiredAt": now, "expiresAt": now + lease, "progressAt": now}
        try:
            document = await self._collection.find_one_and_update(
                query, {"$set": held, "$inc": {"token": 1}}, upsert=True, return_document=ReturnDocument.AFTER
            )
        except DuplicateKeyError:  # the lock is there and does not match: it is held
            return None
        return _lock(document) if document else None

    async def renew(self, lock: Lock, now: datetime, lease: timedelta, *, progress: bool = False) -> bool:
        """Hold the lock for another lease from now on, having got further or not; False if it is lost."""
        change = {"expiresAt": now + lease} | ({"progressAt": now} if progress else {})
        result = await self._collection.update_one({"_id": lock.key, "token": lock.token, **_IS_HELD}, {"$set": change})
        return result.matched_count == 1

    async def release(self, lock: Lock) -> None:
        """Free the lock if it is still held by this holder."""
        await self._collection.update_one(
            {"_id": lock.key, "token": lock.token}, {"$unset": dict.fromkeys(_HOLDER, "")}
        )

    async def clear(self, key: str) -> Lock | None:
        """Free the lock whoever holds it, and return how it was held; None if nobody held it.

        The holder finds out before it buys.
        """
        document = await self._collection.find_one_and_update(
            {"_id": key, **_IS_HELD},
            {"$unset": dict.fromkeys(_HOLDER, ""), "$inc": {"token": 1}},
            return_document=ReturnDocument.BEFORE,
        )
        return _lock(document) if document else None

    async def held(self, keys: Iterable[str] | None = None) -> list[Lock]:
        """Return the locks that somebody holds, of these packages or of all, also those with a lease that is over."""
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

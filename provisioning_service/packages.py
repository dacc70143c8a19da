"""The collection `packages`: the last known stock of each package; `_id` is its key.

    {_id, packageId, name, ipv4, low, checkedAt, unannounced, fellAt, disabled: {reason, at}}

`low` changes when the number of free addresses crosses the threshold. The write that records the fall also sets
`unannounced`, the number of addresses left, and `fellAt`, until package.low_ips is published: once per crossing,
however many jobs notice it.
"""

from collections.abc import Sequence
from datetime import datetime

from prometheus_client import Gauge
from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from provisioning_service.provider import Package
from shared.contracts import PackageLowIps
from shared.database import Collection
from shared.schema import CollectionSchema

COLLECTION = "packages"

SCHEMA = CollectionSchema(
    (
        IndexModel(
            [("fellAt", ASCENDING)], name="unannounced", partialFilterExpression={"unannounced": {"$exists": True}}
        ),
    )
)

_free = Gauge("package_free_addresses", "Free addresses of a package when last checked", ["package"])
_low = Gauge("package_low", "1 while a package has no more free addresses than the threshold", ["package"])


class Packages:
    """Reads and writes of the collection; driver errors pass through."""

    def __init__(self, collection: Collection, low_threshold: int) -> None:
        self._collection = collection
        self._threshold = low_threshold

    def is_low(self, package: Package) -> bool:
        """Return whether the free addresses are at or below the threshold."""
        return package.ipv4 <= self._threshold

    async def record(self, key: str, package: Package, now: datetime) -> bool:
        """Record the stock of a package; return True if it has just become low, which must then be announced."""
        low = self.is_low(package)
        _free.labels(key).set(package.ipv4)
        _low.labels(key).set(low)
        seen = {
            "packageId": package.package_id,
            "name": package.name,
            "ipv4": package.ipv4,
            "low": low,
            "checkedAt": now,
        }
        if not low:
            await self._collection.update_one({"_id": key}, {"$set": seen, "$unset": {"unannounced": ""}}, upsert=True)
            return False
        try:
            crossing = {**seen, "unannounced": package.ipv4, "fellAt": now}
            await self._collection.update_one({"_id": key, "low": {"$ne": True}}, {"$set": crossing}, upsert=True)
        except DuplicateKeyError:  # it exists and is low already
            await self._collection.update_one({"_id": key}, {"$set": seen})
            return False
        return True

    async def disable(self, key: str, reason: str | None, now: datetime) -> None:
        """Buy nothing more from a package, whether or not its stock was ever recorded."""
        await self._collection.update_one(
            {"_id": key},
            {"$set": {"disabled": {"reason": reason, "at": now}}, "$setOnInsert": {"name": key}},
            upsert=True,
        )

    async def enable(self, key: str) -> None:
        """Buy from a package again."""
        await self._collection.update_one({"_id": key}, {"$unset": {"disabled": ""}})

    async def disabled(self) -> dict[str, str | None]:
        """Return the reasons of the disabled packages, by key."""
        cursor = self._collection.find({"disabled": {"$exists": True}}, {"disabled": True})
        return {document["_id"]: document["disabled"]["reason"] async for document in cursor}

    async def disabled_reason(self, key: str | None) -> str | None:
        """Return the sentence with which orders of the package fail, None if it is not disabled."""
        found = await self._collection.find_one({"_id": key, "disabled": {"$exists": True}}, {"disabled": True})
        if found is None:
            return None
        reason = found["disabled"]["reason"]
        return f"Package {key} is disabled" + (f": {reason}" if reason else "")

    async def unannounced(self, fell_before: datetime) -> Sequence[PackageLowIps]:
        """Return the announcements of packages that became low at or before this time."""
        cursor = self._collection.find({"unannounced": {"$exists": True}, "fellAt": {"$lte": fell_before}})
        return [
            PackageLowIps(package=document["_id"], ipv4=document["unannounced"], at=document["fellAt"])
            async for document in cursor
        ]

    async def mark_announced(self, announced: PackageLowIps) -> None:
        """Mark the fall of a package as announced."""
        found = {"_id": announced.package, "unannounced": announced.ipv4}
        await self._collection.update_one(found, {"$unset": {"unannounced": ""}})

"""What was last seen of each package: the collection `packages`, one document per package, `_id` its key.

    {_id, packageId, name, ipv4, low, checkedAt, unannounced, fellAt}

`low` changes when the number of free addresses crosses the threshold. The write that sees it fall also notes, in
`unannounced`, how many are left, which is to be published as package.low_ips, and when: once per crossing, however many
orders see it.
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

_free = Gauge("package_free_addresses", "Free addresses of a package when it was last looked at", ["package"])
_low = Gauge("package_low", "1 while a package has no more free addresses than the threshold", ["package"])


class Packages:
    """What can be done with the collection; a driver's error passes through as it is."""

    def __init__(self, collection: Collection, low_threshold: int) -> None:
        self._collection = collection
        self._threshold = low_threshold

    def is_low(self, package: Package) -> bool:
        """Whether so few addresses are left that somebody should buy more."""
        return package.ipv4 <= self._threshold

    async def note(self, key: str, package: Package, now: datetime) -> bool:
        """Record what was seen of a package; True if it has become low with it, which is then to be announced."""
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
        except DuplicateKeyError:  # it is there and low already
            await self._collection.update_one({"_id": key}, {"$set": seen})
            return False
        return True

    async def unannounced(self, fell_before: datetime) -> Sequence[PackageLowIps]:
        """Return what is to be announced about packages that became low before that time."""
        cursor = self._collection.find({"unannounced": {"$exists": True}, "fellAt": {"$lte": fell_before}})
        return [PackageLowIps(package=document["_id"], ipv4=document["unannounced"]) async for document in cursor]

    async def mark_announced(self, announced: PackageLowIps) -> None:
        """Note that the package's fall is announced."""
        found = {"_id": announced.package, "unannounced": announced.ipv4}
        await self._collection.update_one(found, {"$unset": {"unannounced": ""}})

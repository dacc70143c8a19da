"""Which order an address belongs to: the collection `addresses`, one document per address, `_id` the IPv4.

    {_id, orderId, wrong, at}

An address is given once: the `_id` decides between two orders. `wrong` marks one that the provider assigned to the
order outside the package ordered: nobody has it, and nobody is to get it.
"""

from collections.abc import Iterable
from datetime import datetime

from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from shared.database import Collection
from shared.schema import CollectionSchema

COLLECTION = "addresses"

SCHEMA = CollectionSchema((IndexModel([("orderId", ASCENDING)], name="by_order"),))
"""For the audit and for cleanup, which ask what an order owns."""


class Ownership:
    """What can be done with the collection; a driver's error passes through as it is."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def claim(self, ip: str, order_id: str, now: datetime, *, wrong: bool = False) -> str:
        """Give the address to the order unless it was given before; returns the order that it belongs to."""
        try:
            await self._collection.insert_one({"_id": ip, "orderId": order_id, "wrong": wrong, "at": now})
        except DuplicateKeyError:
            document = await self._collection.find_one({"_id": ip})
            # Addresses are never deleted, so the one that is in the way is there.
            return str(document["orderId"]) if document else order_id
        return order_id

    async def owners(self, ips: Iterable[str]) -> dict[str, str]:
        """Return the orders of those addresses that were given, wrong ones included, by address."""
        cursor = self._collection.find({"_id": {"$in": list(ips)}})
        return {document["_id"]: document["orderId"] async for document in cursor}

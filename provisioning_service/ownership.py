"""The collection `addresses`: the order that each address belongs to; `_id` is the IPv4.

    {_id, orderId, wrong, at}

An address is given out once: the unique `_id` decides between two orders. `wrong` marks an address outside the ordered
package, which no order may have.
"""

from collections.abc import Iterable
from datetime import datetime

from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from shared.database import Collection, find_existing
from shared.schema import CollectionSchema

COLLECTION = "addresses"

SCHEMA = CollectionSchema((IndexModel([("orderId", ASCENDING)], name="by_order"),))
"""The index is for the audit and the cleanup, which look up the addresses of an order."""


class Ownership:
    """Reads and writes of the collection; driver errors pass through."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def claim(self, ip: str, order_id: str, now: datetime, *, wrong: bool = False) -> str:
        """Give the address to the order unless it has an owner; return the owner."""
        try:
            await self._collection.insert_one({"_id": ip, "orderId": order_id, "wrong": wrong, "at": now})
        except DuplicateKeyError:
            # Addresses are never deleted, so the existing document is found.
            (document,) = await find_existing(self._collection, [ip])
            return str(document["orderId"])
        return order_id

    async def owners(self, ips: Iterable[str]) -> dict[str, str]:
        """Return the owners of these addresses, by address, including wrong ones."""
        cursor = self._collection.find({"_id": {"$in": list(ips)}})
        return {document["_id"]: document["orderId"] async for document in cursor}

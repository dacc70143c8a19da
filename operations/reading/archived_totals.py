"""Reads the running totals of archived orders, and adds to them; see archived.py."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from pymongo import ASCENDING, AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection

from operations.reading.archived import ADDRESSES, COLLECTION, FILES, ORDERS, RETAINER, STOCK, WITH_PERSONAL_DATA
from shared.schema import CollectionSchema
from shared.services import CONSOLE

Document = dict[str, Any]

SCHEMA = CollectionSchema()


class ArchivedTotals:
    """The totals of one stack. Errors of the driver pass through."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str) -> None:
        self._collection: AsyncCollection[Document] = client[CONSOLE.database_in(database_prefix)][COLLECTION]

    async def stock(self, session: AsyncClientSession, ids: Sequence[str] | None = None) -> AsyncIterator[Document]:
        """Yield {_id, units, shipped} of all products and slots, or of these, by id."""
        named: Document = {"$in": [f"{STOCK}{key}" for key in ids or ()]}
        among = {"_id": _beginning(STOCK) if ids is None else named}
        async for found in self._collection.find(among, sort=[("_id", ASCENDING)], session=session):
            yield found | {"_id": found["_id"].removeprefix(STOCK)}

    async def retainers(self, session: AsyncClientSession) -> dict[str, Document]:
        """Return {amount, orders} of each retainer, by the id of its account."""
        found = self._collection.find({"_id": _beginning(RETAINER)}, session=session)
        return {document["_id"]: document async for document in found}

    async def addresses(self, session: AsyncClientSession) -> int:
        """Return the number of addresses of archived orders."""
        found = await self._collection.find_one({"_id": ADDRESSES}, session=session)
        return int((found or {}).get("count", 0))

    async def orders(self) -> dict[str, int]:
        """Return the number of archived orders by status."""
        found = await self._collection.find_one({"_id": ORDERS}, {"_id": False})
        return {name: int(number) for name, number in sorted((found or {}).items())}

    async def personal_files(self) -> int:
        """Return the number of files that were begun with personal data, also of orders that were not deleted then."""
        found = await self._collection.find_one({"_id": FILES})
        return int((found or {}).get(WITH_PERSONAL_DATA, 0))

    async def note_personal_file(self) -> None:
        """Count a file that is about to have personal data."""
        await self._collection.update_one({"_id": FILES}, {"$inc": {WITH_PERSONAL_DATA: 1}}, upsert=True)

    async def add(self, totals: Mapping[str, Mapping[str, int]], session: AsyncClientSession) -> None:
        """Add to the totals with these ids."""
        for key, changes in sorted(totals.items()):
            await self._collection.update_one({"_id": key}, {"$inc": dict(changes)}, upsert=True, session=session)


def _beginning(prefix: str) -> Document:
    return {"$gte": prefix, "$lt": prefix[:-1] + chr(ord(prefix[-1]) + 1)}

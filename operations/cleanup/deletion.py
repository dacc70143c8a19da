"""Deletes the records of orders that were cancelled long ago, in all databases.

A group of orders is read, judged and deleted in one transaction: readers see all records of an order or none, even if
this process dies. A concurrent change of one of the records makes the transaction start again. The services do not
wait for it, since it writes nothing that is still in use.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from operations.cleanup.deletable import CleanupCandidate, Document, is_over, why_kept
from operations.reading.connection import open_mongodb
from operations.reading.order_collections import KINDS, order_collections
from operations.reading.participant_records import by_participant
from shared.services import INVENTORY, PROVISIONING

GROUP = 200
"""Orders per transaction, which takes some tens of milliseconds."""


@dataclass(slots=True)
class CleanupResult:
    """The number of records found deletable and deleted, by kind, and of orders kept, by reason."""

    found: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(KINDS, 0)))
    deleted: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(KINDS, 0)))
    kept: Counter[str] = field(default_factory=Counter)

    def add(self, other: "CleanupResult") -> None:
        """Add the result of a group."""
        for mine, theirs in ((self.found, other.found), (self.deleted, other.deleted), (self.kept, other.kept)):
            mine.update(theirs)

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON document shows it."""
        return {"found": dict(self.found), "deleted": dict(self.deleted), "kept": dict(sorted(self.kept.items()))}


Progress = Callable[[int], None]
"""Receives the number of orders checked since the last call."""


async def clean_up(
    mongodb_url: str,
    database_prefix: str,
    before: datetime,
    *,
    delete: bool,
    on_progress: Progress = lambda _: None,
    group: int = GROUP,
) -> CleanupResult:
    """Check every order that was cancelled and settled before that time; with `delete`, delete what may be deleted.

    Raises UnreachableError when MongoDB does not answer. What was deleted by then stays deleted, and the next call
    continues from there.
    """
    result = CleanupResult()
    async with open_mongodb(mongodb_url, purpose="the cleanup", name="ordersaga-cleanup") as client:
        collections = _OrderCollections(client, database_prefix)
        async for order_ids in collections.over(before, group):
            result.add(await collections.clean(order_ids, before, delete=delete))
            on_progress(len(order_ids))
    return result


class _OrderCollections:
    """The collections that have records of orders."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str) -> None:
        self._client = client
        inventory, provisioning = (
            client[service.database_in(database_prefix)] for service in (INVENTORY, PROVISIONING)
        )
        self._by_order = order_collections(client, database_prefix)
        self._products = inventory["products"]
        self._addresses = provisioning["addresses"]
        self._locks = provisioning["locks"]

    async def over(self, before: datetime, group: int) -> AsyncIterator[list[str]]:
        """Yield the ids of orders that were over before that time, the oldest first, in groups.

        Each group is a separate query, so it does not matter how long the previous group took.
        """
        # The time of an order's end is not indexed, but that of its creation is, and it comes before.
        over = {"status": "CANCELLED", "settled": True, "updatedAt": {"$lt": before}}
        query: Document = over | {"createdAt": {"$lt": before}}
        while True:
            fields, order = {"createdAt": True}, [("createdAt", ASCENDING), ("_id", ASCENDING)]
            found = await self._by_order["orders"].find(query, fields, sort=order, limit=group).to_list()
            if not found:
                return
            yield [document["_id"] for document in found]
            at, last = found[-1]["createdAt"], found[-1]["_id"]
            query = over | {"$or": [{"createdAt": {"$gt": at, "$lt": before}}, {"createdAt": at, "_id": {"$gt": last}}]}

    async def clean(self, order_ids: Sequence[str], before: datetime, *, delete: bool) -> CleanupResult:
        """Judge these orders and, with `delete`, delete those that may be deleted, in one transaction."""

        async def transaction(session: AsyncClientSession) -> CleanupResult:
            result = CleanupResult()
            found = await self._read(order_ids, session)
            deletable = []
            for candidate in await self._candidates(found, before, session):
                if reason := why_kept(candidate):
                    result.kept[reason] += 1
                else:
                    deletable.append(candidate.order["_id"])
            result.found.update({kind: len(by_id.keys() & set(deletable)) for kind, by_id in found.items()})
            if delete and deletable:
                for kind, collection in self._by_order.items():
                    deleted = await collection.delete_many({"_id": {"$in": deletable}}, session=session)
                    result.deleted[kind] += deleted.deleted_count
            return result

        async with self._client.start_session() as session:
            return await session.with_transaction(
                transaction, read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority")
            )

    async def _read(self, order_ids: Sequence[str], session: AsyncClientSession) -> dict[str, dict[str, Document]]:
        """Return the records of these orders, by kind and id."""
        among = {"_id": {"$in": list(order_ids)}}
        return {
            kind: {document["_id"]: document async for document in collection.find(among, session=session)}
            for kind, collection in self._by_order.items()
        }

    async def _candidates(
        self, found: Mapping[str, dict[str, Document]], before: datetime, session: AsyncClientSession
    ) -> list[CleanupCandidate]:
        """Return those of the orders that are over, each with its records."""
        orders = {order_id: order for order_id, order in found["orders"].items() if is_over(order, before)}
        moving = await self._moving(orders, found["reservations"], session)
        assigned = await self._assigned(list(orders), session)
        of_servers = list(orders.keys() & found["jobs"].keys())
        owners = await _named_in(self._addresses, of_servers, session)
        lockers = await _named_in(self._locks, of_servers, session)
        return [
            CleanupCandidate(
                order,
                by_participant(found, order_id),
                charge=found["charges"].get(order_id),
                job=found["jobs"].get(order_id),
                intent=found["intents"].get(order_id),
                moving=order_id in moving,
                assigned=order_id in assigned,
                owns=order_id in owners,
                locks=order_id in lockers,
            )
            for order_id, order in orders.items()
        ]

    async def _moving(
        self, orders: dict[str, Document], reservations: dict[str, Document], session: AsyncClientSession
    ) -> set[str]:
        """Return the orders that have a pending move on a product or a slot.

        It may be on another slot than the order's, so all slots with pending moves are read, which are few.
        """
        records = [*orders.values(), *reservations.values()]
        product_ids = {item["productId"] for record in records for item in record.get("items", ())}
        slots = {"markedSince": {"$exists": True}, "kind": "slot"}
        among = {"$or": [{"_id": {"$in": list(product_ids)}}, slots]}
        cursor = self._products.find(among, {"moving": True}, session=session)
        return {order_id async for product in cursor for order_id in product.get("moving") or () if order_id in orders}

    async def _assigned(self, order_ids: Sequence[str], session: AsyncClientSession) -> set[str]:
        """Return the orders for which another system has booked a slot."""
        query = {"assignment.orderId": {"$in": list(order_ids)}, "status": "RESERVED"}
        cursor = self._by_order["reservations"].find(query, {"assignment.orderId": True}, session=session)
        return {document["assignment"]["orderId"] async for document in cursor}


async def _named_in(
    collection: AsyncCollection[Document], order_ids: Sequence[str], session: AsyncClientSession
) -> set[str]:
    """Return the orders that a document of the collection names as its `orderId`."""
    if not order_ids:
        return set()
    cursor = collection.find({"orderId": {"$in": order_ids}}, {"orderId": True}, session=session)
    return {document["orderId"] async for document in cursor}

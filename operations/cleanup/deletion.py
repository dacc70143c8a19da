"""Deletes, over all databases, the records of orders that were cancelled long ago.

A group of orders is read, judged and deleted in one transaction: whoever looks at the databases sees all records of an
order or none, at every moment and whenever this process dies. Whatever changes one of the records meanwhile makes the
transaction begin again. Nobody else waits for it: it writes nothing that is still in use.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from operations.cleanup.deletable import Document, Records, is_over, why_kept
from operations.reading.connection import open_mongodb

GROUP = 200
"""Orders in one transaction: it takes some tens of milliseconds."""

KINDS = ("orders", "reservations", "payments", "charges", "jobs", "intents")
"""What may be recorded under an order's id, and is deleted together."""


@dataclass(slots=True)
class Outcome:
    """How many records of each kind were found to be deletable and deleted, and how many orders were kept for what."""

    found: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(KINDS, 0)))
    deleted: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(KINDS, 0)))
    kept: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Outcome") -> None:
        """Add the figures of a group."""
        for mine, theirs in ((self.found, other.found), (self.deleted, other.deleted), (self.kept, other.kept)):
            mine.update(theirs)

    def as_json(self) -> dict[str, Any]:
        """The figures as the JSON document shows them."""
        return {"found": dict(self.found), "deleted": dict(self.deleted), "kept": dict(sorted(self.kept.items()))}


Progress = Callable[[int], None]
"""Hears how many orders have been looked at."""


async def clean_up(
    mongodb_url: str,
    database_prefix: str,
    before: datetime,
    *,
    delete: bool,
    on_progress: Progress = lambda _: None,
    group: int = GROUP,
) -> Outcome:
    """Look at every order that was cancelled and settled before that time; with `delete`, delete what may go.

    Raises UnreachableError when MongoDB does not answer. What was deleted until then stays deleted, and the next
    call goes on from there.
    """
    outcome = Outcome()
    async with open_mongodb(mongodb_url, purpose="the cleanup", name="ordersaga-cleanup") as client:
        stores = _Stores(client, database_prefix)
        async for order_ids in stores.over(before, group):
            outcome.add(await stores.clean(order_ids, before, delete=delete))
            on_progress(len(order_ids))
    return outcome


class _Stores:
    """The collections that know of orders."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str) -> None:
        self._client = client
        orders, inventory, payments, provisioning = (
            client[f"{database_prefix}_{name}"] for name in ("orders", "inventory", "payments", "provisioning")
        )
        self._by_order: dict[str, AsyncCollection[Document]] = {
            "orders": orders["orders"],
            "reservations": inventory["reservations"],
            "payments": payments["payments"],
            "charges": payments["gateway_charges"],
            "jobs": provisioning["jobs"],
            "intents": payments["stripe_intents"],
        }
        self._products = inventory["products"]
        self._addresses = provisioning["addresses"]
        self._locks = provisioning["locks"]

    async def over(self, before: datetime, group: int) -> AsyncIterator[list[str]]:
        """Ids of the orders that are over since before that time, oldest first, in groups.

        Each group is a query of its own, so that it does not matter how long the last one took.
        """
        # An order is not changed before it is placed: the time it was placed at is indexed, that of its end is not.
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

    async def clean(self, order_ids: Sequence[str], before: datetime, *, delete: bool) -> Outcome:
        """Judge these orders and, if asked to, delete those that may go: in one transaction."""

        async def transaction(session: AsyncClientSession) -> Outcome:
            outcome = Outcome()
            deletable = []
            for records in await self._read(order_ids, before, session):
                if reason := why_kept(records):
                    outcome.kept[reason] += 1
                else:
                    deletable.append(records.order["_id"])
                    outcome.found.update(_present(records))
            if delete and deletable:
                for kind, collection in self._by_order.items():
                    result = await collection.delete_many({"_id": {"$in": deletable}}, session=session)
                    outcome.deleted[kind] += result.deleted_count
            return outcome

        async with self._client.start_session() as session:
            return await session.with_transaction(
                transaction, read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority")
            )

    async def _read(self, order_ids: Sequence[str], before: datetime, session: AsyncClientSession) -> list[Records]:
        """Return what is recorded about those of the orders that are over."""
        among = {"_id": {"$in": list(order_ids)}}
        found: dict[str, dict[str, Document]] = {}
        for kind, collection in self._by_order.items():
            found[kind] = {document["_id"]: document async for document in collection.find(among, session=session)}
        orders = {order_id: order for order_id, order in found["orders"].items() if is_over(order, before)}
        marked = await self._marked(orders, found["reservations"], session)
        assigned = await self._assigned(list(orders), session)
        of_servers = list(orders.keys() & found["jobs"].keys())
        owners = await _named_in(self._addresses, of_servers, session)
        lockers = await _named_in(self._locks, of_servers, session)
        return [
            Records(
                order,
                found["reservations"].get(order_id),
                found["payments"].get(order_id),
                found["charges"].get(order_id),
                found["jobs"].get(order_id),
                found["intents"].get(order_id),
                marked=order_id in marked,
                assigned=order_id in assigned,
                owns=order_id in owners,
                locks=order_id in lockers,
            )
            for order_id, order in orders.items()
        ]

    async def _marked(
        self, orders: dict[str, Document], reservations: dict[str, Document], session: AsyncClientSession
    ) -> set[str]:
        """Those of the orders of which a product or a slot still carries a mark.

        It may be another slot than the one that the order got: all with any mark are looked at, which are few.
        """
        records = [*orders.values(), *reservations.values()]
        product_ids = {item["productId"] for record in records for item in record.get("items", ())}
        slots = {"markedSince": {"$exists": True}, "kind": "slot"}
        among = {"$or": [{"_id": {"$in": list(product_ids)}}, slots]}
        cursor = self._products.find(among, {"moving": True}, session=session)
        return {order_id async for product in cursor for order_id in product.get("moving") or () if order_id in orders}

    async def _assigned(self, order_ids: Sequence[str], session: AsyncClientSession) -> set[str]:
        """Those of the orders that another system has a slot for, by a reservation of its own."""
        query = {"assignment.orderId": {"$in": list(order_ids)}, "status": "RESERVED"}
        cursor = self._by_order["reservations"].find(query, {"assignment.orderId": True}, session=session)
        return {document["assignment"]["orderId"] async for document in cursor}


async def _named_in(
    collection: AsyncCollection[Document], order_ids: Sequence[str], session: AsyncClientSession
) -> set[str]:
    """Those of the orders whose id a document of the collection has as its `orderId`."""
    if not order_ids:
        return set()
    cursor = collection.find({"orderId": {"$in": order_ids}}, {"orderId": True}, session=session)
    return {document["orderId"] async for document in cursor}


def _present(records: Records) -> dict[str, int]:
    return {kind: int(record is not None) for kind, record in zip(KINDS, records[: len(KINDS)], strict=True)}

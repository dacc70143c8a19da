"""Reads and deletes everything recorded about orders, in all databases, a group of orders at a time.

A group is read, judged and deleted in one transaction: readers see all records of an order or none, even if this
process dies. A concurrent change of one of the records makes the transaction start again. The services do not wait for
it, since it writes nothing that is still in use.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeVar

from pymongo import ASCENDING, AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from operations.audit.stock import HOLD, order_of
from operations.dead_letters.schema import LETTERS
from operations.dead_letters.status import OPEN
from operations.reading.order_collections import KINDS, order_collections
from operations.reading.participant_records import by_participant
from operations.removal.removable import Candidate, Document
from shared.services import CONSOLE, INVENTORY, PROVISIONING

GROUP = 200
"""Orders per transaction, which takes some tens of milliseconds."""

REMOVED_KINDS = (*KINDS, "holds")
"""The kinds of records that go with an order, as reports name them."""

Found = Mapping[str, Mapping[str, Document]]
"""Records by kind and id."""

_NOT_ARCHIVED: Document = {"archivedAt": {"$exists": False}}
"""Excludes addresses of an archived order: an order that was placed under the same id later does not own them."""

T = TypeVar("T")


class OrderRemoval:
    """The collections that have records of orders. Errors of the driver pass through."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str) -> None:
        self._client = client
        inventory, provisioning, operations = (
            client[service.database_in(database_prefix)] for service in (INVENTORY, PROVISIONING, CONSOLE)
        )
        self._by_order = order_collections(client, database_prefix)
        self._products = inventory["products"]
        self._addresses = provisioning["addresses"]
        self._locks = provisioning["locks"]
        self._letters = operations[LETTERS]

    async def over(self, statuses: Sequence[str], before: datetime, group: int) -> AsyncIterator[list[str]]:
        """Yield the ids of orders that settled in these statuses before that time, the oldest first, in groups.

        Each group is a separate query, so it does not matter how long the previous group took.
        """
        # The time of an order's end is not indexed, but that of its creation is, and it comes before.
        over = {"status": {"$in": list(statuses)}, "settled": True, "updatedAt": {"$lt": before}}
        query: Document = over | {"createdAt": {"$lt": before}}
        while True:
            fields, order = {"createdAt": True}, [("createdAt", ASCENDING), ("_id", ASCENDING)]
            found = await self._by_order["orders"].find(query, fields, sort=order, limit=group).to_list()
            if not found:
                return
            yield [document["_id"] for document in found]
            at, last = found[-1]["createdAt"], found[-1]["_id"]
            # The range stands outside of the `$or`, or MongoDB reads and sorts all that is left for every group.
            rest = [{"createdAt": {"$gt": at}}, {"_id": {"$gt": last}}]
            query = over | {"createdAt": {"$gte": at, "$lt": before}, "$or": rest}

    async def in_transaction(self, work: Callable[[AsyncClientSession], Awaitable[T]]) -> T:
        """Run the work in a transaction, again if it met a concurrent change, and return its result."""
        async with self._client.start_session() as session:
            return await session.with_transaction(
                work, read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority")
            )

    async def candidates(self, order_ids: Sequence[str], session: AsyncClientSession) -> list[Candidate]:
        """Return those of these orders that exist, each with everything recorded about it."""
        found = {kind: await _by_id(records, order_ids, session) for kind, records in self._by_order.items()}
        order_ids = list(found["orders"])
        holds = await self._holds(found, session)
        moving = await self._moving(found, holds, session)
        assigned = await self._assigned(order_ids, session)
        letters = await self._with_letters(order_ids, session)
        of_servers = [order_id for order_id in order_ids if order_id in found["jobs"]]
        addresses = await _naming(self._addresses, of_servers, session, _NOT_ARCHIVED)
        locks = await _naming(self._locks, of_servers, session)
        return [
            Candidate(
                order,
                by_participant(found, order_id),
                charge=found["charges"].get(order_id),
                job=found["jobs"].get(order_id),
                intent=found["intents"].get(order_id),
                holds=holds.get(order_id, ()),
                addresses=addresses.get(order_id, ()),
                moving=order_id in moving,
                assigned=order_id in assigned,
                locks=order_id in locks,
                letters=order_id in letters,
            )
            for order_id, order in found["orders"].items()
        ]

    async def delete(self, candidates: Sequence[Candidate], session: AsyncClientSession) -> Counter[str]:
        """Delete the records of these orders; return their number by kind."""
        deleted: Counter[str] = Counter()
        if not candidates:
            return deleted
        order_ids = [candidate.order_id for candidate in candidates]
        for kind, collection in self._by_order.items():
            result = await collection.delete_many({"_id": {"$in": order_ids}}, session=session)
            deleted[kind] += result.deleted_count
        if hold_ids := [hold["_id"] for candidate in candidates for hold in candidate.holds]:
            result = await self._by_order["reservations"].delete_many({"_id": {"$in": hold_ids}}, session=session)
            deleted["holds"] += result.deleted_count
        return deleted

    async def mark_addresses(self, order_ids: Sequence[str], at: datetime, session: AsyncClientSession) -> int:
        """Note on the addresses of these orders that their order is archived; they stay theirs. Return their number."""
        query, marked = _about(order_ids) | _NOT_ARCHIVED, {"$set": {"archivedAt": at}}
        return (await self._addresses.update_many(query, marked, session=session)).modified_count

    async def _holds(self, found: Found, session: AsyncClientSession) -> dict[str, list[Document]]:
        """Return the holds that the orders have taken over, of those that the orders or their reservations name."""
        named = {order_id: order.get("holdId") for order_id, order in found["orders"].items()}
        named |= {
            order_id: used.get("holdId")
            for order_id, reservation in found["reservations"].items()
            if (used := reservation.get("usedHold"))
        }
        if not (ids := [f"{HOLD}{hold_id}" for hold_id in named.values() if hold_id]):
            return {}
        holds: dict[str, list[Document]] = {}
        for hold in (await _by_id(self._by_order["reservations"], ids, session)).values():
            holds.setdefault(str((hold.get("hold") or {}).get("orderId")), []).append(hold)
        return {order_id: of_order for order_id, of_order in holds.items() if order_id in found["orders"]}

    async def _moving(
        self, found: Found, holds: Mapping[str, Sequence[Document]], session: AsyncClientSession
    ) -> set[str]:
        """Return the orders that have a pending move on a product or a slot, or whose holds have one.

        It may be on another slot than the order's, so all slots with pending moves are read, which are few.
        """
        owners = {hold["_id"]: order_id for order_id, of_order in holds.items() for hold in of_order}
        owners |= {order_id: order_id for order_id in found["orders"]}
        records = [*found["orders"].values(), *found["reservations"].values(), *_flat(holds.values())]
        product_ids = {item["productId"] for record in records for item in record.get("items", ())}
        slots = {"markedSince": {"$exists": True}, "kind": "slot"}
        among = {"$or": [{"_id": {"$in": list(product_ids)}}, slots]}
        products = self._products.find(among, {"moving": True}, session=session)
        moves = {order_of(key) async for product in products for key in product.get("moving") or ()}
        return {owners[key] for key in moves & owners.keys()}

    async def _assigned(self, order_ids: Sequence[str], session: AsyncClientSession) -> set[str]:
        """Return the orders for which another system has booked a slot."""
        query = {"assignment.orderId": {"$in": list(order_ids)}, "status": "RESERVED"}
        cursor = self._by_order["reservations"].find(query, {"assignment.orderId": True}, session=session)
        return {document["assignment"]["orderId"] async for document in cursor}

    async def _with_letters(self, order_ids: Sequence[str], session: AsyncClientSession) -> set[str]:
        """Return the orders that an open dead letter is about."""
        query = {**_about(order_ids), "status": {"$in": list(OPEN)}}
        return {letter["orderId"] async for letter in self._letters.find(query, {"orderId": True}, session=session)}


def _about(order_ids: Sequence[str]) -> Document:
    return {"orderId": {"$in": list(order_ids)}}


def _flat(groups: Iterable[Sequence[Document]]) -> list[Document]:
    return [document for group in groups for document in group]


async def _by_id(
    collection: AsyncCollection[Document], ids: Sequence[str], session: AsyncClientSession
) -> dict[str, Document]:
    found = collection.find({"_id": {"$in": list(ids)}}, sort=[("_id", ASCENDING)], session=session)
    return {document["_id"]: document async for document in found}


async def _naming(
    collection: AsyncCollection[Document],
    order_ids: Sequence[str],
    session: AsyncClientSession,
    condition: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, list[Document]]:
    """Return the documents that name one of these orders as their `orderId` and meet the condition, by order."""
    found: dict[str, list[Document]] = {}
    if order_ids:
        query = _about(order_ids) | dict(condition)
        async for document in collection.find(query, sort=[("_id", ASCENDING)], session=session):
            found.setdefault(document["orderId"], []).append(document)
    return found

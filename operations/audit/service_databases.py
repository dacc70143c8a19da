"""Reads the services' databases, by the field names that their modules document, never more than a page at a time.

Everything that is judged together is read in one snapshot session (MongoDB 5.0 or later): at one moment over all
databases, while orders go on. A page is short, so that no snapshot is kept for long however many orders there are.
"""

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pymongo import ASCENDING, AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.command_cursor import AsyncCommandCursor

from operations.audit import servers
from operations.audit.order_records import Document, OrderRecords
from operations.audit.servers import Held
from operations.audit.slots import Assigned
from operations.audit.stock import ASSIGNMENT, Shelf
from operations.reading.snapshots import Snapshots, Source, by_ids, drivers_errors, find, side_by_side

PAGE = 2000
"""Ids on a page: enough that round trips do not count, and a few megabytes."""

ORDER_FIELDS = (
    "items.productId",
    "items.quantity",
    "items.price",
    "totalAmount",
    "currency",
    "delivery.slot",
    "slot",
    "payment.method",
    "payment.retainerId",
    "status",
    "stockStatus",
    "paymentStatus",
    "settled",
    "compensating",
    "deadline",
    "updatedAt",
    "dueAt",
    "unpublished",
    "history.status",
    "provisioning.package",
    "provisioningRun",
    "server.ip",
)
STANDING_FIELDS = ("status", "settled", "compensating", "updatedAt")
RESERVATION_FIELDS = ("status", "items.productId", "items.quantity", "slot.slotId", "slot.price", "updatedAt")
ASSIGNMENT_FIELDS = ("status", "slot.slotId", "assignment.orderId", "updatedAt")
OWN_SLOT_FIELDS = ("status", "slot.slotId", "updatedAt")
PAYMENT_FIELDS = (
    "status",
    "amount",
    "currency",
    "retainerId",
    "transactionId",
    "nextLookupAt",
    "unpublished",
    "updatedAt",
)
CHARGE_FIELDS = ("outcome", "amount", "currency", "chargeId", "refundedAt")
INTENT_FIELDS = ("amount", "currency", "intentId", "reason", "closedAt", "chargedAt", "refundedAt")
JOB_FIELDS = ("state", "lockKey", "run", "ip", "dueAt", "outboxSince", "updatedAt")
ADDRESS_FIELDS = ("orderId", "wrong")
LOCK_FIELDS = ("orderId", "expiresAt")
PRODUCT_FIELDS = ("kind", "supplied", "quantity", "moving", "start", "end", "ceiling")

HELD: Mapping[str, Any] = {
    "$concatArrays": [
        {
            "$map": {
                "input": {"$ifNull": ["$items", []]},
                "in": {"id": "$$this.productId", "units": "$$this.quantity"},
            }
        },
        {"$cond": ["$slot.slotId", [{"id": "$slot.slotId", "units": "$slot.price"}], []]},
    ]
}
"""What a reservation holds: units of products, and its price of a slot."""

AFTER_ASSIGNMENTS = "assignment;"
"""Above the ids of all assignments, and below any other that is above them."""


class Shared(NamedTuple):
    """What belongs together by an id and must not: how many there are, and the first of them."""

    id: str
    number: int
    names: list[str]


class ServiceDatabases:
    """The databases of one stack. Every method raises UnreachableError when MongoDB does not answer."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str, page: int = PAGE) -> None:
        self._moments = Snapshots(client)
        self._page = page
        orders, inventory, payments, provisioning = (
            client[f"{database_prefix}_{name}"] for name in ("orders", "inventory", "payments", "provisioning")
        )
        self._orders: Source = (orders["orders"], ORDER_FIELDS)
        self._reservations: Source = (inventory["reservations"], RESERVATION_FIELDS)
        self._payments: Source = (payments["payments"], PAYMENT_FIELDS)
        self._charges: Source = (payments["gateway_charges"], CHARGE_FIELDS)
        self._intents: Source = (payments["stripe_intents"], INTENT_FIELDS)
        self._products: Source = (inventory["products"], PRODUCT_FIELDS)
        self._jobs: Source = (provisioning["jobs"], JOB_FIELDS)
        self._addresses: Source = (provisioning["addresses"], ADDRESS_FIELDS)
        self._locks: Source = (provisioning["locks"], LOCK_FIELDS)

    async def cases(self) -> AsyncIterator[list[OrderRecords]]:
        """Every id under which anything is recorded, in pages; each page is read at one moment."""
        last: str | None = ""
        while last is not None:
            after = last
            cases, last = await self._moments.read(lambda session: self._page_of_cases(session, after))  # noqa: B023
            yield cases

    async def cases_of(self, order_ids: Iterable[str]) -> list[OrderRecords]:
        """What is recorded under these ids now."""
        query = {"_id": {"$in": list(order_ids)}}

        async def read(session: AsyncClientSession) -> list[OrderRecords]:
            found = [{d["_id"]: d for d in await find(source, query, session)} for source in self._by_order]
            return await self._with_servers(_join(found), session)

        return await self._moments.read(read)

    async def shelves(self, product_ids: Sequence[str] | None = None) -> AsyncIterator[Shelf]:
        """Every product and slot, or these, and every id that anything is reserved of: all at one moment."""
        async for shelf in self._moments.stream(lambda session: self._pass_over_shelves(session, product_ids)):
            yield shelf

    async def addresses(self) -> AsyncIterator[list[Held]]:
        """Every address that is recorded as an order's, in pages."""
        async for page in self._pages_of_held(self._addresses, {}):
            yield page

    async def locks(self) -> AsyncIterator[list[Held]]:
        """Every lock that somebody holds, in pages."""
        async for page in self._pages_of_held(self._locks, {"orderId": {"$exists": True, "$ne": None}}):
            yield page

    async def count_locks(self) -> int:
        """How many packages have a lock, held or not."""
        with drivers_errors():
            return await self._locks[0].estimated_document_count()

    async def assignments(self) -> AsyncIterator[list[Assigned]]:
        """Every slot that another system has booked or given back, in pages, with what we have of that order."""
        last: str | None = ASSIGNMENT
        while last is not None:
            among = {"_id": {"$gt": last, "$lt": AFTER_ASSIGNMENTS}}
            page = await self._moments.read(lambda session: self._page_of_assignments(among, session))  # noqa: B023
            last = str(page[-1].record["_id"]) if len(page) == self._page else None
            yield page

    async def orders_of_two_assignments(self) -> list[Shared]:
        """Orders that another system has more than one slot for."""
        among = {"status": "RESERVED", "assignment.orderId": {"$exists": True}}
        return await self._shared(self._reservations, among, "$assignment.orderId", "$_id")

    async def shared_addresses(self) -> list[Shared]:
        """Addresses that are the server of more than one COMPLETED order."""
        completed = {"status": "COMPLETED", "server.ip": {"$exists": True}}
        return await self._shared(self._orders, completed, "$server.ip", "$_id")

    async def orders_of_two_servers(self) -> list[Shared]:
        """Orders that more than one address inside their package is recorded for."""
        return await self._shared(self._addresses, {"wrong": {"$ne": True}}, "$orderId", "$_id")

    @property
    def _by_order(self) -> tuple[Source, ...]:
        return (self._orders, self._reservations, self._payments, self._charges, self._jobs, self._intents)

    async def _page_of_cases(self, session: AsyncClientSession, after: str) -> tuple[list[OrderRecords], str | None]:
        """The cases after that id, and the id to go on after, None at the end.

        A collection whose page is full says how far the page reaches; what others have beyond is for the next one.
        """
        found = []
        reach: str | None = None
        for source in self._by_order:
            among: Document = {"$gt": after} if reach is None else {"$gt": after, "$lte": reach}
            if source is self._reservations:
                among["$not"] = re.compile(f"^{ASSIGNMENT}")
            documents = await find(source, {"_id": among}, session, limit=self._page)
            if len(documents) == self._page:
                reach = documents[-1]["_id"]
            found.append({document["_id"]: document for document in documents})
        cases = [case for case in _join(found) if reach is None or case.order_id <= reach]
        return await self._with_servers(cases, session), reach

    async def _with_servers(self, cases: list[OrderRecords], session: AsyncClientSession) -> list[OrderRecords]:
        """Add what the orders of servers among them have besides: their address, and the line that they stand in."""
        ips = [ip for case in cases if case.order and (ip := servers.server_ip(case.order))]
        packages = [key for case in cases if case.job and (key := servers.line_of(case.job))]
        if not ips and not packages:
            return cases
        addresses = await by_ids(self._addresses, ips, session)
        lines = await self._lines(packages, session)
        return [
            case._replace(
                address=addresses.get(servers.server_ip(case.order or {}) or ""),
                line=lines.get(servers.line_of(case.job or {}) or ""),
            )
            for case in cases
        ]

    async def _lines(self, packages: Sequence[str], session: AsyncClientSession) -> dict[str, Document]:
        """Until when each of these packages is held, and when a job of it took its last step; see Case."""
        if not packages:
            return {}
        locks = await by_ids(self._locks, packages, session)
        last_steps: list[Mapping[str, Any]] = [
            {"$match": {"lockKey": {"$in": list(set(packages))}}},
            {"$group": {"_id": "$lockKey", "movedAt": {"$max": "$updatedAt"}}},
        ]
        moved = await self._jobs[0].aggregate(last_steps, session=session)
        return {line["_id"]: line | {"expiresAt": locks.get(line["_id"], {}).get("expiresAt")} async for line in moved}

    async def _pages_of_held(self, source: Source, query: Document) -> AsyncIterator[list[Held]]:
        last: str | None = ""
        while last is not None:
            after = {**query, "_id": {"$gt": last}}
            page = await self._moments.read(lambda session: self._page_of_held(source, after, session))  # noqa: B023
            last = str(page[-1].record["_id"]) if len(page) == self._page else None
            yield page

    async def _page_of_held(self, source: Source, query: Document, session: AsyncClientSession) -> list[Held]:
        records = await find(source, query, session, limit=self._page)
        ids = [str(record.get("orderId")) for record in records]
        orders = await by_ids((self._orders[0], ("status",)), ids, session)
        jobs = await by_ids(self._jobs, ids, session)
        return [Held(record, orders.get(key), jobs.get(key)) for record, key in zip(records, ids, strict=True)]

    async def _page_of_assignments(self, among: Document, session: AsyncClientSession) -> list[Assigned]:
        records = await find((self._reservations[0], ASSIGNMENT_FIELDS), among, session, limit=self._page)
        ids = [str((record.get("assignment") or {}).get("orderId")) for record in records]
        orders = await by_ids((self._orders[0], STANDING_FIELDS), ids, session)
        own = await by_ids((self._reservations[0], OWN_SLOT_FIELDS), ids, session)
        return [Assigned(record, orders.get(key), own.get(key)) for record, key in zip(records, ids, strict=True)]

    async def _shared(self, source: Source, among: Document, by: str, name: str) -> list[Shared]:
        """Ids by which several documents are grouped; found by the server, of each the first and the last of them."""
        pipeline: list[Mapping[str, Any]] = [
            {"$match": among},
            {"$group": {"_id": by, "number": {"$sum": 1}, "first": {"$min": name}, "last": {"$max": name}}},
            {"$match": {"number": {"$gt": 1}}},
            {"$limit": self._page},
        ]

        async def read(session: AsyncClientSession) -> list[Shared]:
            found = await source[0].aggregate(pipeline, session=session, allowDiskUse=True)
            return [Shared(str(d["_id"]), d["number"], [d["first"], d["last"]]) async for d in found]

        return await self._moments.read(read)

    async def _pass_over_shelves(
        self, session: AsyncClientSession, product_ids: Sequence[str] | None
    ) -> AsyncIterator[Shelf]:
        collection, fields = self._products
        among = {"_id": {"$in": list(product_ids)}} if product_ids is not None else {}
        products = collection.find(among, dict.fromkeys(fields, True), sort=[("_id", ASCENDING)], session=session)
        reserved = await self._reserved(session, product_ids)
        async with products, reserved:
            async for product_id, product, sums in side_by_side(products, reserved):
                marked = list((product or {}).get("moving") or {})
                reservations = await by_ids(self._reservations, marked, session)
                orders = await by_ids(self._orders, marked, session)
                yield Shelf(product_id, product, sums["units"] if sums else 0, reservations, orders)

    async def _reserved(self, session: AsyncClientSession, ids: Sequence[str] | None) -> AsyncCommandCursor[Document]:
        """What RESERVED reservations hold of each product and slot, summed by the server, in the order of the ids."""
        collection, _ = self._reservations
        named: Document = {"$in": list(ids or ())}
        among: Document = {"$or": [{"items.productId": named}, {"slot.slotId": named}]} if ids is not None else {}
        pipeline: list[Mapping[str, Any]] = [
            {"$match": {"status": "RESERVED", **among}},
            {"$project": {"held": HELD}},
            {"$unwind": "$held"},
            {"$match": {"held.id": named} if ids is not None else {}},
            {"$group": {"_id": "$held.id", "units": {"$sum": "$held.units"}}},
            {"$sort": {"_id": 1}},
        ]
        return await collection.aggregate(pipeline, session=session, allowDiskUse=True)


def _join(found: Sequence[Mapping[str, Document]]) -> list[OrderRecords]:
    return [
        OrderRecords(key, *(records.get(key) for records in found))
        for key in sorted({key for records in found for key in records})
    ]

"""Reads the services' databases, by the field names that their modules document, a page at a time.

Records that are judged together come from one snapshot over all databases (MongoDB 5.0 or later), while orders
continue. Pages are short, so that no snapshot lives for long, however many orders there are.
"""

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pymongo import ASCENDING, AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.command_cursor import AsyncCommandCursor

from operations import actions
from operations.audit import servers
from operations.audit.holds import HoldRecords
from operations.audit.order_records import Document, OrderRecords
from operations.audit.paused import PausesByService
from operations.audit.servers import OwnedRecord
from operations.audit.slots import AssignmentRecords
from operations.audit.stock import ASSIGNMENT, HOLD, StockRecords, order_of
from operations.reading import charges
from operations.reading.archived_totals import ArchivedTotals
from operations.reading.order_collections import order_collections
from operations.reading.participant_records import PARTICIPANT_RECORDS, by_participant
from operations.reading.snapshots import Snapshots, Source, by_ids, drivers_errors, find, side_by_side
from shared import audit_log
from shared.pausing.records import PauseRecords
from shared.services import CONSOLE, INVENTORY, PROVISIONING, SERVICES

PAGE = 2000
"""Ids per page: round trips do not matter, and a page takes a few megabytes."""

ORDER_FIELDS = (
    "items.productId",
    "items.quantity",
    "items.price",
    "particulars.discounts.amount",
    "particulars.shippingAmount",
    "totalAmount",
    "currency",
    "delivery.slot",
    "slot",
    "payment.method",
    "payment.retainerId",
    "status",
    "fulfilment",
    *(row.participant.stored_field for row in PARTICIPANT_RECORDS),
    "settled",
    "compensating",
    "deadline",
    "updatedAt",
    "dueAt",
    "unpublished",
    "history.status",
    "provisioning.package",
    "provisioningRun",
    "provisioningStatus",
    "server.ip",
    *(f"refunds.{name}" for name in ("refundId", "amount", "status", "items", "restock", "returned", "updatedAt")),
    "refundedAmount",
)
ASSIGNED_ORDER_FIELDS = ("status", "settled", "compensating", "updatedAt")
ASSIGNMENT_FIELDS = ("status", "slot.slotId", "assignment.orderId", "updatedAt")
HOLD_FIELDS = ("status", "hold", "updatedAt")
TAKING_FIELDS = ("status", "updatedAt")
OWN_SLOT_FIELDS = ("status", "slot.slotId", "updatedAt")
CHARGE_FIELDS = ("outcome", "reason", "amount", "currency", "chargeId", "refundedAt", "parts")
INTENT_FIELDS = ("amount", "currency", "intentId", "reason", *charges.TIMES, "parts")
JOB_FIELDS = ("state", "lockKey", "run", "ip", "dueAt", "outboxSince", "updatedAt")
FIELDS: Mapping[str, Sequence[str]] = {
    "orders": ORDER_FIELDS,
    **{row.collection: row.fields for row in PARTICIPANT_RECORDS},
    "charges": CHARGE_FIELDS,
    "jobs": JOB_FIELDS,
    "intents": INTENT_FIELDS,
}
"""The fields of the records under an order's id, by their kind."""
ADDRESS_FIELDS = ("orderId", "wrong", "archivedAt")
LOCK_FIELDS = ("orderId", "expiresAt")
ACTION_FIELDS = ("subject",)
PRODUCT_FIELDS = ("kind", "supplied", "quantity", "moving", "start", "end", "ceiling", "shipped")

HELD: Mapping[str, Any] = {
    "$concatArrays": [
        {
            "$map": {
                "input": {"$ifNull": ["$items", []]},
                "in": {"id": "$$this.productId", "units": "$$this.quantity"},
            }
        },
        {"$cond": ["$slot.slotId", [{"id": "$slot.slotId", "units": "$slot.price"}], []]},
        {
            "$reduce": {
                "input": {"$ifNull": ["$returns", []]},
                "initialValue": [],
                "in": {
                    "$concatArrays": [
                        "$$value",
                        {
                            "$map": {
                                "input": "$$this.items",
                                "as": "item",
                                "in": {"id": "$$item.productId", "units": {"$multiply": [-1, "$$item.quantity"]}},
                            }
                        },
                    ]
                },
            }
        },
    ]
}
"""The expression for what a reservation holds: units of products less those put back, and the price of its slot."""

AFTER_HOLDS = "hold;"
"""The upper bound of the holds' ids, exclusive."""

AFTER_ASSIGNMENTS = "assignment;"
"""The upper bound of the assignments' ids, exclusive."""


class Duplicate(NamedTuple):
    """An id that several documents share and must not: their number, the first and the last of them."""

    id: str
    number: int
    examples: list[str]


class ServiceDatabases:
    """The databases of one stack. Every method raises UnreachableError when MongoDB does not answer."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str, page: int = PAGE) -> None:
        self._snapshots = Snapshots(client)
        self._page = page
        inventory, provisioning, operations = (
            client[service.database_in(database_prefix)] for service in (INVENTORY, PROVISIONING, CONSOLE)
        )
        self._by_order: dict[str, Source] = {
            kind: (collection, FIELDS[kind]) for kind, collection in order_collections(client, database_prefix).items()
        }
        self._orders, self._reservations = self._by_order["orders"], self._by_order["reservations"]
        self._jobs = self._by_order["jobs"]
        self._products: Source = (inventory["products"], PRODUCT_FIELDS)
        self._addresses: Source = (provisioning["addresses"], ADDRESS_FIELDS)
        self._locks: Source = (provisioning["locks"], LOCK_FIELDS)
        self._actions: Source = (operations[audit_log.COLLECTION], ACTION_FIELDS)
        self._archived = ArchivedTotals(client, database_prefix)
        self._pauses = {
            name: PauseRecords(client[service.database_in(database_prefix)])
            for name, service in SERVICES.items()
            if service.can_be_paused
        }

    async def orders(self) -> AsyncIterator[list[OrderRecords]]:
        """Yield the records of every order id, in pages; each page comes from one snapshot."""
        last: str | None = ""
        while last is not None:
            after = last
            page, last = await self._snapshots.read(lambda session: self._page_of_orders(session, after))  # noqa: B023
            yield page

    async def orders_of(self, order_ids: Iterable[str]) -> list[OrderRecords]:
        """Return the current records of these order ids."""
        query = {"_id": {"$in": list(order_ids)}}

        async def read(session: AsyncClientSession) -> list[OrderRecords]:
            found = {
                kind: {document["_id"]: document for document in await find(source, query, session)}
                for kind, source in self._by_order.items()
            }
            return await self._completed(_join(found), session)

        return await self._snapshots.read(read)

    async def stock(self, product_ids: Sequence[str] | None = None) -> AsyncIterator[StockRecords]:
        """Yield all products and slots, or these, and all ids with reservations, from one snapshot."""
        async for stock in self._snapshots.stream(lambda session: self._stream_stock(session, product_ids)):
            yield stock

    async def pauses(self) -> PausesByService:
        """Return the pauses of every service, as it has recorded its own."""
        with drivers_errors():
            found = {name: await records.find(name) for name, records in self._pauses.items()}
        return {name: record.pauses for name, record in found.items() if record is not None}

    async def addresses(self) -> AsyncIterator[list[OwnedRecord]]:
        """Yield every address that is recorded as an order's, in pages."""
        async for page in self._pages_of_owned(self._addresses, {}):
            yield page

    async def locks(self) -> AsyncIterator[list[OwnedRecord]]:
        """Yield every lock that names a holder, in pages."""
        async for page in self._pages_of_owned(self._locks, {"orderId": {"$exists": True, "$ne": None}}):
            yield page

    async def count_locks(self) -> int:
        """Count the packages that have a lock, held or not."""
        with drivers_errors():
            return await self._locks[0].estimated_document_count()

    async def assignments(self) -> AsyncIterator[list[AssignmentRecords]]:
        """Yield every slot assignment of another system, booked or released, and our records of its order, in pages."""
        last: str | None = ASSIGNMENT
        while last is not None:
            among = {"_id": {"$gt": last, "$lt": AFTER_ASSIGNMENTS}}
            page = await self._snapshots.read(lambda session: self._page_of_assignments(among, session))  # noqa: B023
            last = str(page[-1].record["_id"]) if len(page) == self._page else None
            yield page

    async def holds(self) -> AsyncIterator[list[HoldRecords]]:
        """Yield every hold, open or ended, and the records of the order that has taken it over, in pages."""
        last: str | None = HOLD
        while last is not None:
            among = {"_id": {"$gt": last, "$lt": AFTER_HOLDS}}
            page = await self._snapshots.read(lambda session: self._page_of_holds(among, session))  # noqa: B023
            last = str(page[-1].record["_id"]) if len(page) == self._page else None
            yield page

    async def orders_of_two_assignments(self) -> list[Duplicate]:
        """Return the orders for which other systems have booked several slots."""
        among = {"status": "RESERVED", "assignment.orderId": {"$exists": True}}
        return await self._duplicates(self._reservations, among, "$assignment.orderId", "$_id")

    async def shared_addresses(self) -> list[Duplicate]:
        """Return the addresses that several COMPLETED orders have."""
        completed = {"status": "COMPLETED", "server.ip": {"$exists": True}}
        return await self._duplicates(self._orders, completed, "$server.ip", "$_id")

    async def orders_of_two_servers(self) -> list[Duplicate]:
        """Return the orders that have several addresses inside their package.

        An archived order had one, and its id may be used again: an `Idempotency-Key` makes the id.
        """
        among = {"wrong": {"$ne": True}, "archivedAt": {"$exists": False}}
        return await self._duplicates(self._addresses, among, "$orderId", "$_id")

    async def archived_addresses(self) -> tuple[int, int]:
        """Return the number of addresses that are marked as those of archived orders, and how many there must be."""

        async def read(session: AsyncClientSession) -> tuple[int, int]:
            marked = await self._addresses[0].count_documents({"archivedAt": {"$exists": True}}, session=session)
            return marked, await self._archived.addresses(session)

        return await self._snapshots.read(read)

    async def archived_orders(self) -> dict[str, int]:
        """Return the number of archived orders by status."""
        with drivers_errors():
            return await self._archived.orders()

    async def _page_of_orders(self, session: AsyncClientSession, after: str) -> tuple[list[OrderRecords], str | None]:
        """Return the records after that id, and the last id of the page, None at the end.

        A collection with a full page limits how far the page reaches; anything beyond comes on the next page.
        """
        found: dict[str, dict[str, Document]] = {}
        last_id: str | None = None
        for kind, source in self._by_order.items():
            among: Document = {"$gt": after} if last_id is None else {"$gt": after, "$lte": last_id}
            if source is self._reservations:
                among["$not"] = re.compile(f"^({ASSIGNMENT}|{HOLD})")
            documents = await find(source, {"_id": among}, session, limit=self._page)
            if len(documents) == self._page:
                last_id = documents[-1]["_id"]
            found[kind] = {document["_id"]: document for document in documents}
        page = [records for records in _join(found) if last_id is None or records.order_id <= last_id]
        return await self._completed(page, session), last_id

    async def _completed(self, page: list[OrderRecords], session: AsyncClientSession) -> list[OrderRecords]:
        return await self._with_releases(await self._with_servers(page, session), session)

    async def _with_releases(self, page: list[OrderRecords], session: AsyncClientSession) -> list[OrderRecords]:
        """Add the releases of unknown orders by an operator."""
        unknown = [records.order_id for records in page if records.order is None]
        if not unknown:
            return page
        # Other entries say that a second person was asked, or has refused.
        query = {"action": actions.ORDER_RELEASE, "subject": {"$in": unknown}, "outcome": actions.STARTED}
        releases = {action["subject"]: action for action in await find(self._actions, query, session)}
        return [records._replace(release=releases.get(records.order_id)) for records in page]

    async def _with_servers(self, page: list[OrderRecords], session: AsyncClientSession) -> list[OrderRecords]:
        """Add the address of each order's server, and the state of the package that its job is queued for."""
        ips = [ip for records in page if records.order and (ip := servers.server_ip(records.order))]
        names = [name for records in page if records.job and (name := servers.queued_package(records.job))]
        if not ips and not names:
            return page
        addresses = await by_ids(self._addresses, ips, session)
        packages = await self._packages(names, session)
        return [
            records._replace(
                address=addresses.get(servers.server_ip(records.order or {}) or ""),
                package=packages.get(servers.queued_package(records.job or {}) or ""),
            )
            for records in page
        ]

    async def _packages(self, packages: Sequence[str], session: AsyncClientSession) -> dict[str, Document]:
        """Return the state of each package: the end of its lease, and the last step of its jobs; see OrderRecords."""
        if not packages:
            return {}
        locks = await by_ids(self._locks, packages, session)
        last_steps: list[Mapping[str, Any]] = [
            {"$match": {"lockKey": {"$in": list(set(packages))}}},
            {"$group": {"_id": "$lockKey", "movedAt": {"$max": "$updatedAt"}}},
        ]
        moved = await self._jobs[0].aggregate(last_steps, session=session)
        return {
            found["_id"]: found | {"expiresAt": locks.get(found["_id"], {}).get("expiresAt")} async for found in moved
        }

    async def _pages_of_owned(self, source: Source, query: Document) -> AsyncIterator[list[OwnedRecord]]:
        last: str | None = ""
        while last is not None:
            after = {**query, "_id": {"$gt": last}}
            page = await self._snapshots.read(lambda session: self._page_of_owned(source, after, session))  # noqa: B023
            last = str(page[-1].record["_id"]) if len(page) == self._page else None
            yield page

    async def _page_of_owned(self, source: Source, query: Document, session: AsyncClientSession) -> list[OwnedRecord]:
        records = await find(source, query, session, limit=self._page)
        ids = [str(record.get("orderId")) for record in records]
        orders = await by_ids((self._orders[0], ("status",)), ids, session)
        jobs = await by_ids(self._jobs, ids, session)
        return [OwnedRecord(record, orders.get(key), jobs.get(key)) for record, key in zip(records, ids, strict=True)]

    async def _page_of_assignments(self, among: Document, session: AsyncClientSession) -> list[AssignmentRecords]:
        records = await find((self._reservations[0], ASSIGNMENT_FIELDS), among, session, limit=self._page)
        ids = [str((record.get("assignment") or {}).get("orderId")) for record in records]
        orders = await by_ids((self._orders[0], ASSIGNED_ORDER_FIELDS), ids, session)
        own = await by_ids((self._reservations[0], OWN_SLOT_FIELDS), ids, session)
        return [
            AssignmentRecords(record, orders.get(key), own.get(key)) for record, key in zip(records, ids, strict=True)
        ]

    async def _page_of_holds(self, among: Document, session: AsyncClientSession) -> list[HoldRecords]:
        records = await find((self._reservations[0], HOLD_FIELDS), among, session, limit=self._page)
        ids = [str((record.get("hold") or {}).get("orderId")) for record in records]
        orders = await by_ids((self._orders[0], ASSIGNED_ORDER_FIELDS), ids, session)
        taking = await by_ids((self._reservations[0], TAKING_FIELDS), ids, session)
        return [HoldRecords(record, orders.get(key), taking.get(key)) for record, key in zip(records, ids, strict=True)]

    async def _duplicates(self, source: Source, among: Document, by: str, name: str) -> list[Duplicate]:
        """Return the values of an expression that several documents share; MongoDB finds them."""
        pipeline: list[Mapping[str, Any]] = [
            {"$match": among},
            {"$group": {"_id": by, "number": {"$sum": 1}, "first": {"$min": name}, "last": {"$max": name}}},
            {"$match": {"number": {"$gt": 1}}},
            {"$limit": self._page},
        ]

        async def read(session: AsyncClientSession) -> list[Duplicate]:
            found = await source[0].aggregate(pipeline, session=session, allowDiskUse=True)
            return [Duplicate(str(d["_id"]), d["number"], [d["first"], d["last"]]) async for d in found]

        return await self._snapshots.read(read)

    async def _stream_stock(
        self, session: AsyncClientSession, product_ids: Sequence[str] | None
    ) -> AsyncIterator[StockRecords]:
        collection, fields = self._products
        among = {"_id": {"$in": list(product_ids)}} if product_ids is not None else {}
        products = collection.find(among, dict.fromkeys(fields, True), sort=[("_id", ASCENDING)], session=session)
        reserved = await self._reserved(session, product_ids)
        async with products, reserved:
            counted = _added_up(reserved, self._archived.stock(session, product_ids))
            async for product_id, product, sums in side_by_side(products, counted):
                moving = [order_of(key) for key in (product or {}).get("moving") or {}]
                reservations = await by_ids(self._reservations, moving, session)
                orders = await by_ids(self._orders, moving, session)
                out, shipped = (sums["units"], sums["shipped"]) if sums else (0, 0)
                yield StockRecords(product_id, product, out, shipped, reservations, orders)

    async def _reserved(self, session: AsyncClientSession, ids: Sequence[str] | None) -> AsyncCommandCursor[Document]:
        """Return the sums that are out of each product and slot, and shipped, by id; MongoDB adds them up."""
        collection, _ = self._reservations
        named: Document = {"$in": list(ids or ())}
        among: Document = {"$or": [{"items.productId": named}, {"slot.slotId": named}]} if ids is not None else {}
        pipeline: list[Mapping[str, Any]] = [
            {"$match": {"status": {"$in": ["RESERVED", "SHIPPED"]}, **among}},
            {"$project": {"held": HELD, "status": True}},
            {"$unwind": "$held"},
            {"$match": {"held.id": named} if ids is not None else {}},
            {
                "$group": {
                    "_id": "$held.id",
                    "units": {"$sum": "$held.units"},
                    "shipped": {"$sum": {"$cond": [{"$eq": ["$status", "SHIPPED"]}, "$held.units", 0]}},
                }
            },
            {"$sort": {"_id": 1}},
        ]
        return await collection.aggregate(pipeline, session=session, allowDiskUse=True)


async def _added_up(reserved: AsyncIterator[Document], archived: AsyncIterator[Document]) -> AsyncIterator[Document]:
    """Yield what the reservations that exist and those of archived orders have of each product and slot, by id."""
    async for key, present, former in side_by_side(reserved, archived):
        sums = [found for found in (present, former) if found is not None]
        yield {"_id": key} | {name: sum(found.get(name, 0) for found in sums) for name in ("units", "shipped")}


def _join(found: Mapping[str, Mapping[str, Document]]) -> list[OrderRecords]:
    """Return the records of each order id, out of documents by kind and id."""
    return [
        OrderRecords(
            order_id,
            found["orders"].get(order_id),
            by_participant(found, order_id),
            charge=found["charges"].get(order_id),
            job=found["jobs"].get(order_id),
            intent=found["intents"].get(order_id),
        )
        for order_id in sorted({order_id for by_id in found.values() for order_id in by_id})
    ]

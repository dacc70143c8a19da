"""Reads the payment service's ledger of funds, by the field names that its modules document.

Entries, payments and transfers come in pages, each from one snapshot with the records that it refers to. Accounts and
orders are streamed, each kind from one snapshot. Only a page is in memory at a time.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from pymongo import ASCENDING, AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession

from operations.audit.funds import ArchivedPayments, EntryRecords, RetainerOrder
from operations.reading.archived_totals import ArchivedTotals
from operations.reading.balances import Balance, as_text, balances
from operations.reading.chart_of_accounts import Document, is_system
from operations.reading.snapshots import BATCH, Snapshots, Source, by_ids, find, side_by_side
from shared.services import PAYMENT

ACCOUNT_FIELDS = ("currency",)
ENTRY_FIELDS = ("at", "operation", "currency", "postings", "reference", "reverses")
FUND_PAYMENT_FIELDS = ("customerId", "invoiceId", "amount", "currency", "status", "entryId")
TRANSFER_FIELDS = ("fromAccountId", "toAccountId", "amount", "fee", "currency", "status", "entryId", "cancelEntryId")
ORDER_PAYMENT_FIELDS = ("status", "retainerId", "amount", "currency", "transactionId", "parts", "createdAt")

ORDER_OPERATIONS = ("order.paid", "order.refunded", "order.part_refunded")

T = TypeVar("T")
WithEntries = tuple[Document, Mapping[str, Document]]
"""A record, and the entries that it names, by id."""


class Journal:
    """The ledger of one stack. Every method raises UnreachableError when MongoDB does not answer."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str, page: int = BATCH) -> None:
        self._snapshots = Snapshots(client)
        self._page = page
        self._archived = ArchivedTotals(client, database_prefix)
        self._database = client[PAYMENT.database_in(database_prefix)]
        self._accounts: Source = (self._database["accounts"], ACCOUNT_FIELDS)
        self._entries: Source = (self._database["entries"], ENTRY_FIELDS)
        self._payments: Source = (self._database["fund_payments"], FUND_PAYMENT_FIELDS)
        self._transfers: Source = (self._database["bank_transfers"], TRANSFER_FIELDS)

    def balances(self) -> AsyncIterator[Balance]:
        """Yield every account with a document or postings."""
        return self._snapshots.stream(lambda session: balances(self._database, session))

    def entries(self) -> AsyncIterator[list[EntryRecords]]:
        """Yield every entry, with the records that it refers to, in pages."""
        return self._pages(self._entries, self._with_references)

    def payments(self) -> AsyncIterator[list[WithEntries]]:
        """Yield every payment of funds, with its entry, in pages."""
        return self._pages(self._payments, self._with_entries)

    def transfers(self) -> AsyncIterator[list[WithEntries]]:
        """Yield every bank transfer, with its entries, in pages."""
        return self._pages(self._transfers, self._with_entries)

    def orders(self) -> AsyncIterator[RetainerOrder | ArchivedPayments]:
        """Yield every order that has a payment from a retainer, or an entry in the journal; then the archived ones."""
        return self._snapshots.stream(self._stream_orders)

    async def reversed_twice(self) -> list[tuple[str, int, list[str]]]:
        """Return the entries that several others reverse: id, number of reversals, the first and the last of them."""
        pipeline: list[Mapping[str, Any]] = [
            {"$match": {"reverses": {"$exists": True, "$ne": None}}},
            {
                "$group": {
                    "_id": "$reverses",
                    "number": {"$sum": 1},
                    "first": {"$min": "$_id"},
                    "last": {"$max": "$_id"},
                }
            },
            {"$match": {"number": {"$gt": 1}}},
            {"$limit": self._page},
        ]

        async def read(session: AsyncClientSession) -> list[tuple[str, int, list[str]]]:
            found = await self._entries[0].aggregate(pipeline, session=session, allowDiskUse=True)
            return [(str(d["_id"]), d["number"], [str(d["first"]), str(d["last"])]) async for d in found]

        return await self._snapshots.read(read)

    async def _pages(
        self, source: Source, complete: Callable[[list[Document], AsyncClientSession], Any]
    ) -> AsyncIterator[list[Any]]:
        last: str | None = ""
        while last is not None:
            after = {"_id": {"$gt": last}}

            async def read(session: AsyncClientSession, after: Document = after) -> tuple[list[Any], str | None]:
                records = await find(source, after, session, limit=self._page)
                last_id = str(records[-1]["_id"]) if len(records) == self._page else None
                return await complete(records, session), last_id

            page, last = await self._snapshots.read(read)
            yield page

    async def _with_references(self, entries: list[Document], session: AsyncClientSession) -> list[EntryRecords]:
        moved = {str(p.get("account")) for entry in entries for p in entry.get("postings") or () if isinstance(p, dict)}
        accounts = await by_ids(self._accounts, [key for key in moved if not is_system(key)], session)
        payments = await by_ids(self._payments, _references(entries, "paymentId"), session)
        transfers = await by_ids(self._transfers, _references(entries, "transferId"), session)
        reversed_ids = [str(entry["reverses"]) for entry in entries if entry.get("reverses") is not None]
        undone = await by_ids(self._entries, reversed_ids, session)
        return [EntryRecords(entry, accounts, payments, transfers, undone) for entry in entries]

    async def _with_entries(self, records: list[Document], session: AsyncClientSession) -> list[WithEntries]:
        names = ("entryId", "cancelEntryId")
        ids = [str(record[name]) for record in records for name in names if record.get(name) is not None]
        entries = await by_ids(self._entries, ids, session)
        return [(record, entries) for record in records]

    async def _stream_orders(self, session: AsyncClientSession) -> AsyncIterator[RetainerOrder | ArchivedPayments]:
        paid = {"retainerId": {"$exists": True, "$ne": None}}
        fields = dict.fromkeys(ORDER_PAYMENT_FIELDS, True)
        payments = self._database["payments"].find(paid, fields, sort=[("_id", ASCENDING)], session=session)
        pipeline: list[Mapping[str, Any]] = [
            {"$match": {"operation": {"$in": list(ORDER_OPERATIONS)}}},
            {"$sort": {"_id": 1}},
            {"$project": dict.fromkeys(ENTRY_FIELDS, True)},
            {"$group": {"_id": as_text("$reference.orderId"), "entries": {"$push": "$$ROOT"}}},
            {"$sort": {"_id": 1}},
        ]
        entries = await self._entries[0].aggregate(pipeline, session=session, allowDiskUse=True)
        async with payments, entries:
            async for order_id, payment, found in side_by_side(payments, entries):
                yield RetainerOrder(order_id, payment, found["entries"] if found else ())
        yield ArchivedPayments(await self._archived.retainers(session))


def _references(entries: Sequence[Document], name: str) -> list[str]:
    references = [entry.get("reference") or {} for entry in entries]
    return [str(reference[name]) for reference in references if reference.get(name) is not None]

"""Reads the records that messages are pending for, and counts those that their services continue with."""

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from pymongo import ASCENDING, AsyncMongoClient
from pymongo.read_concern import ReadConcern

from operations.dead_letters.lookup import DeadLetterLookup
from operations.dead_letters.status import PENDING
from operations.settings import Stack
from order_service.order import Order
from order_service.orders import KNOWN, from_document
from order_service.particulars import UNREAD
from shared.contracts import PackageLowIps
from shared.database import Collection, Document
from shared.services import INVENTORY, NOTIFICATION, ORDER, PAYMENT, PROVISIONING, Service

_OF_SAGA: Document = {"history": False, **UNREAD}


class _Continuing(NamedTuple):
    """Records that a service continues with by itself."""

    kind: str
    service: Service
    collection: str
    query: Document
    options: Mapping[str, Any] = MappingProxyType({})


_CONTINUING = (
    _Continuing(
        "holds that expire", INVENTORY, "reservations", {"status": "RESERVED", "hold.dueAt": {"$exists": True}}
    ),
    _Continuing("payments to look up", PAYMENT, "payments", {"nextLookupAt": {"$exists": True}}),
    _Continuing("answers of payments to publish", PAYMENT, "payments", {"unpublished": True}),
    _Continuing("provisioning jobs", PROVISIONING, "jobs", {"state": {"$in": ["QUEUED", "RUNNING", "WAITING"]}}),
    _Continuing("messages of jobs to publish", PROVISIONING, "jobs", {"outboxSince": {"$exists": True}}),
    _Continuing("webhook deliveries", NOTIFICATION, "deliveries", {"dueAt": {"$exists": True}}, {"hint": "due"}),
)


def _unsettled(now: datetime) -> Document:
    """Return the query of unsettled orders; with createdAt, the index `open` answers it, which has only these."""
    return {"settled": False, "createdAt": {"$lte": now}}


class PendingRecords:
    """The records of a stack. Errors of the driver pass through."""

    def __init__(self, client: AsyncMongoClient[Document], stack: Stack, on_damaged: Callable[[str], None]) -> None:
        """`on_damaged` receives the id of an order whose record cannot be read; it holds up no other order."""
        self._client = client
        self._on_damaged = on_damaged
        self._prefix = stack.database_prefix
        # No message may rest on a write that a failover could take back.
        self._orders = self._collection(ORDER, "orders").with_options(read_concern=ReadConcern("majority"))

    async def unsettled(self, now: datetime, page: int) -> AsyncIterator[list[Order]]:
        """Yield the orders that were placed until now and are not settled, the oldest first, in pages."""
        async for orders in self._pages(_unsettled(now), page, sort="createdAt"):
            yield orders

    async def changed_since(self, since: datetime, page: int) -> AsyncIterator[list[Order]]:
        """Yield the orders that have changed since a time, in pages. It reads all orders: there is no index of that."""
        async for orders in self._pages({"updatedAt": {"$gte": since}}, page):
            yield orders

    async def low_packages(self, since: datetime) -> list[PackageLowIps]:
        """Return the events of packages that have become low since a time, and still are."""
        found = self._collection(PROVISIONING, "packages").find({"low": True, "fellAt": {"$gte": since}})
        return [PackageLowIps(package=each["_id"], ipv4=each["ipv4"], at=each["fellAt"]) async for each in found]

    async def count_continuing(self) -> dict[str, int]:
        """Count the records that their services continue with by themselves, by kind."""
        return {
            each.kind: await self._collection(each.service, each.collection).count_documents(each.query, **each.options)
            for each in _CONTINUING
        }

    async def count_newer(self, now: datetime) -> int:
        """Count the unsettled orders placed until now that only a newer release can put into messages."""
        return await self._orders.count_documents({**_unsettled(now), "$nor": [KNOWN]})

    async def count_letters_without_outcome(self) -> int:
        """Count the replayed dead letters of which nobody has reported an outcome."""
        return (await DeadLetterLookup(self._client, self._prefix).count())[PENDING]

    async def _pages(self, query: Document, size: int, sort: str | None = None) -> AsyncIterator[list[Order]]:
        cursor = self._orders.find({**query, **KNOWN}, _OF_SAGA, batch_size=size)
        if sort is not None:
            cursor = cursor.sort(sort, ASCENDING)
        page: list[Order] = []
        async for document in cursor:
            try:
                page.append(from_document(document))
            except (LookupError, TypeError, ValueError):  # a field is missing, or is something else
                self._on_damaged(str(document["_id"]))
                continue
            if len(page) == size:
                yield page
                page = []
        if page:
            yield page

    def _collection(self, service: Service, name: str) -> Collection:
        return self._client[service.database_in(self._prefix)][name]

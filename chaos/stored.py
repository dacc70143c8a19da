"""What a stack has stored, as far as clients have asked for it."""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pymongo
from pymongo.errors import PyMongoError

from operations.settings import Stack
from shared.database import Document
from shared.services import INVENTORY, ORDER, PAYMENT

SETTLES_WITHIN = 400.0
"""Seconds: more than the saga's time-out, after which whatever is pending is cancelled."""
POLL_SECONDS = 0.1
_POSTINGS = ("retainer.consumed", "retainer.replenished")


@dataclass(frozen=True, slots=True)
class StoredRefund:
    """A refund of an order, its amount in minor units."""

    id: str
    amount: int
    status: str = "REFUNDED"


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """An order: who placed it, for what, and what became of it. The total is in minor units."""

    id: str
    customer: str
    product: str
    quantity: int
    total: int
    status: str
    settled: bool
    hold: str | None = None
    has_server: bool = False
    refunds: Sequence[StoredRefund] = ()


@dataclass(frozen=True, slots=True)
class StoredPosting:
    """An entry in the journal that a client asked for under a key; the amount is in minor units."""

    key: str
    retainer: str
    amount: int


@dataclass(frozen=True, slots=True)
class Stored:
    """All orders and postings, and the ids of all holds."""

    orders: Sequence[StoredOrder] = ()
    postings: Sequence[StoredPosting] = ()
    holds: frozenset[str] = field(default_factory=frozenset)


class Database:
    """The records of a stack, whose database is away itself now and then."""

    def __init__(self, client: "pymongo.AsyncMongoClient[Document]", stack: Stack) -> None:
        self._of = {
            service.name: client[service.database_in(stack.database_prefix)] for service in (ORDER, INVENTORY, PAYMENT)
        }
        self._orders = self._of[ORDER.name].orders

    async def settled_at(self, order_id: str) -> float | None:
        """Wait until an order is settled; return when it was, in Unix seconds, or None if that takes too long."""
        deadline = time.monotonic() + SETTLES_WITHIN
        while time.monotonic() < deadline:
            with contextlib.suppress(PyMongoError):
                if found := await self._orders.find_one({"_id": order_id, "settled": True}, {"updatedAt": 1}):
                    return float(found["updatedAt"].timestamp())
            await asyncio.sleep(POLL_SECONDS)
        return None

    async def wait_until_settled(self, before: float, within: float = SETTLES_WITHIN) -> bool:
        """Wait until no order from before this time is unsettled; return False if that takes too long."""
        wanted = {"settled": False, "createdAt": {"$lt": datetime.fromtimestamp(before, UTC)}}
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            with contextlib.suppress(PyMongoError):
                if not await self._orders.count_documents(wanted, limit=1):
                    return True
            await asyncio.sleep(POLL_SECONDS)
        return False

    async def read(self) -> Stored:
        """Read everything. Lets the errors of the driver out."""
        entries = self._of[PAYMENT.name].entries.find({"operation": {"$in": _POSTINGS}})
        holds = self._of[INVENTORY.name].reservations.find({"hold": {"$exists": True}}, {"_id": 1})
        return Stored(
            [_order(document) async for document in self._orders.find({})],
            [_posting(document) async for document in entries],
            frozenset([str(document["_id"]).rpartition(":")[2] async for document in holds]),
        )


def _order(document: Mapping[str, Any]) -> StoredOrder:
    (item,) = document["items"]
    refunds = [StoredRefund(each["refundId"], each["amount"], each["status"]) for each in document.get("refunds") or ()]
    return StoredOrder(
        document["_id"],
        document["userId"],
        item["productId"],
        item["quantity"],
        document["totalAmount"],
        document["status"],
        document["settled"],
        document.get("holdId"),
        "server" in document,
        refunds,
    )


def _posting(document: Mapping[str, Any]) -> StoredPosting:
    reference = document["reference"]
    key = document.get("description") or reference.get("paymentId") or str(document["_id"])
    moved = next(line["amount"] for line in document["postings"] if line["account"].startswith("retainer:"))
    return StoredPosting(key, reference["retainerId"], abs(moved))

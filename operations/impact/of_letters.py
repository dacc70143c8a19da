"""Whom and what a selection of dead letters concerns: orders, customers and amounts, as far as they can be read."""

from collections.abc import Sequence
from typing import NamedTuple

from pymongo import AsyncMongoClient

from operations.dead_letters.schema import LETTERS
from operations.order_actions.search import OrderTotals, totals_of
from shared.database import Document, aggregate
from shared.services import CONSOLE, ORDER

CHUNK = 1000
"""Orders that are read at a time."""


class Concerned(NamedTuple):
    """The number of letters, those of them that name no order, their orders, and how many of these do not exist."""

    letters: int
    nameless: int
    totals: OrderTotals
    missing: int

    @property
    def summary(self) -> str:
        """What a confirmation is about, to be compared with what is so when it comes."""
        amounts = " ".join(f"{currency}:{amount}" for currency, amount in self.totals.amounts.items())
        return f"{self.letters} {self.nameless} {self.totals.orders} {self.totals.customers} {self.missing} {amounts}"


async def concerned(client: AsyncMongoClient[Document], prefix: str, query: Document) -> Concerned:
    """Return whom the letters of a query concern. Lets the driver's errors out."""
    letters = client[CONSOLE.database_in(prefix)][LETTERS]
    by_order = [{"$match": query}, {"$group": {"_id": "$orderId", "letters": {"$sum": 1}}}]
    counts: dict[str | None, int] = {}
    async for row in aggregate(letters, by_order):
        counts[row["_id"]] = row["letters"]
    named = [order_id for order_id in counts if order_id is not None]
    found: list[Document] = []
    for start in range(0, len(named), CHUNK):
        found += await _orders(client, prefix, named[start : start + CHUNK])
    return Concerned(sum(counts.values()), counts.get(None, 0), totals_of(found), len(named) - len(found))


async def _orders(client: AsyncMongoClient[Document], prefix: str, ids: Sequence[str]) -> list[Document]:
    orders = client[ORDER.database_in(prefix)]["orders"]
    return await orders.find(
        {"_id": {"$in": list(ids)}}, {"userId": True, "totalAmount": True, "currency": True}
    ).to_list(None)

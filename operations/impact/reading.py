"""Reads the orders that a cause of dead letters or an outage affects, within bounds.

The letters of a group name its orders, which an index covers; the orders are read by their ids. How much is read does
not depend on the number of orders: `MOST_OF_ONE` letters for one group or one selection, `MOST_OF_ALL` for a list of
groups, and `MOST_WAITING` orders for an outage. A result that is not complete says so. Errors of the driver pass
through.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from pymongo import AsyncMongoClient

from inventory_service.stock import hold_reservation_id
from operations.dead_letters.schema import LETTERS, ORDERS_OF_GROUP
from operations.dead_letters.status import OPEN, STATUSES
from operations.impact.impact import Impact, impact_of, share_out
from operations.impact.waiting import services_awaited
from order_service.participants import STOCK
from order_service.particulars import UNREAD
from shared.database import Collection, Database, Document
from shared.services import CONSOLE, INVENTORY, ORDER

MOST_OF_ONE = 10_000
"""Letters of one group, or of one selection, whose orders are looked at for its page."""

MOST_OF_ALL = 20_000
"""Open letters of all groups together whose orders are looked at for a list."""

MOST_WAITING = 5_000
"""Unsettled orders, the oldest ones, that are looked at for an outage."""

CHUNK = 1_000
"""Orders per query."""

AT_ONCE = 8
"""Queries that run at the same time: groups are many, and the pages of other people wait for the same connections."""

_FIELDS = (
    *("userId", "totalAmount", "currency", "status", "settled", "compensating", "unpublished"),
    *(STOCK.stored_field, "holdId", "deadline", "dueAt"),
)


class ImpactReader:
    """The affected orders of a stack, in the databases of operations, orders and inventory."""

    def __init__(self, client: AsyncMongoClient[Document], prefix: str) -> None:
        operations: Database = client[CONSOLE.database_in(prefix)]
        self._letters: Collection = operations[LETTERS]
        self._orders: Collection = client[ORDER.database_in(prefix)]["orders"]
        self._reservations: Collection = client[INVENTORY.database_in(prefix)]["reservations"]

    async def of_group(self, fingerprint: str, number: int) -> Impact:
        """Return the impact of a group that has this number of open letters."""
        return (await self.of_groups({fingerprint: number}, {fingerprint: MOST_OF_ONE}))[fingerprint]

    async def of_groups(self, numbers: Mapping[str, int], shares: Mapping[str, int] | None = None) -> dict[str, Impact]:
        """Return the impact of each group, by the numbers of their open letters.

        `shares` says how many letters of each group are looked at, by default those of `shares_of`.
        """
        shares = shares_of(numbers) if shares is None else shares
        read = {name: shares[name] for name, number in numbers.items() if number > 0}
        at_once = asyncio.Semaphore(AT_ONCE)
        each = await asyncio.gather(*(self._named(at_once, name, share) for name, share in read.items()))
        named = dict(zip(read, each, strict=True))
        orders = await self._read(_ids(order_id for letters in named.values() for order_id in letters))
        hold_ends = await self._hold_ends(orders.values())
        return {
            name: _of_letters(named.get(name, ()), orders, hold_ends, complete=number <= shares[name])
            for name, number in numbers.items()
        }

    async def of_query(self, query: Document) -> tuple[int, Impact]:
        """Return the number of letters of a query, and their impact, or that of MOST_OF_ONE of them."""
        looked_at, impact = await self._of_some(query)
        return looked_at if impact.complete else await self._letters.count_documents(query), impact

    async def _of_some(self, query: Document) -> tuple[int, Impact]:
        """Return how many letters of a query are looked at, and their impact."""
        found = await self._letters.find(query, {"_id": False, "orderId": True}).limit(MOST_OF_ONE + 1).to_list(None)
        named = [letter.get("orderId") or None for letter in found[:MOST_OF_ONE]]
        complete = len(found) == len(named)
        orders = await self._read(_ids(named))
        hold_ends = await self._hold_ends(orders.values())
        return len(named), _of_letters(named, orders, hold_ends, complete=complete)

    async def of_replay(self, replay_id: str) -> Impact:
        """Return what the orders of a replay's letters amount to now."""
        # Every status is named because the index begins with the status.
        return (await self._of_some({"status": {"$in": list(STATUSES)}, "replays.replay": replay_id}))[1]

    async def of_outages(self, names: Sequence[str], now: datetime) -> dict[str, Impact]:
        """Return which orders wait for each of these services and servers, in one pass over the unsettled orders."""
        waiting: dict[str, list[Document]] = {name: [] for name in names}
        looked_at = 0
        # The condition on the time is that of the index `open`, which contains only unsettled orders.
        unsettled = {"settled": False, "createdAt": {"$lte": now}}
        found = self._orders.find(unsettled, {"history": False, **UNREAD}).sort([("createdAt", 1), ("_id", 1)])
        async for order in found.limit(MOST_WAITING + 1):
            looked_at += 1
            if looked_at > MOST_WAITING:
                break
            for name in services_awaited(order, now).intersection(names):
                waiting[name].append(order)
            if looked_at % 100 == 0:
                await asyncio.sleep(0)  # other pages go on meanwhile
        hold_ends = await self._hold_ends(order for orders in waiting.values() for order in orders)
        complete = looked_at <= MOST_WAITING
        return {name: impact_of(orders, hold_ends=hold_ends, complete=complete) for name, orders in waiting.items()}

    async def _named(self, at_once: asyncio.Semaphore, fingerprint: str, most: int) -> Sequence[str | None]:
        """Return the order that each of a group's open letters names; the index has all that is read."""
        asked = {"fingerprint": fingerprint, "status": {"$in": list(OPEN)}}
        async with at_once:
            found = self._letters.find(asked, {"_id": False, "orderId": True}, hint=ORDERS_OF_GROUP)
            return [letter.get("orderId") or None for letter in await found.limit(most).to_list(None)]

    async def _read(self, ids: Sequence[str]) -> dict[str, Document]:
        at_once, found = asyncio.Semaphore(AT_ONCE), dict[str, Document]()

        async def read(chunk: Sequence[str]) -> None:
            async with at_once:
                for order in await self._orders.find({"_id": {"$in": list(chunk)}}, _FIELDS).to_list(None):
                    found[order["_id"]] = order

        await asyncio.gather(*(read(ids[start : start + CHUNK]) for start in range(0, len(ids), CHUNK)))
        return found

    async def _hold_ends(self, orders: Iterable[Document]) -> dict[str, datetime]:
        """Return when the holds of unsettled orders end, by the holds' ids."""
        holds = {str(order["holdId"]) for order in orders if order.get("settled") is False and order.get("holdId")}
        if not holds:
            return {}
        asked = {"_id": {"$in": [hold_reservation_id(hold) for hold in holds]}}
        ends = {
            hold["_id"]: hold["hold"]["expiresAt"]
            async for hold in self._reservations.find(asked | {"hold.outcome": None}, {"hold.expiresAt": True})
        }
        return {hold: ends[key] for hold in holds if (key := hold_reservation_id(hold)) in ends}


def shares_of(numbers: Mapping[str, int]) -> dict[str, int]:
    """Return how many open letters of each group are looked at for a list of all of them.

    A group with few letters is looked at as a whole; those with many share what is left of the effort.
    """
    return dict.fromkeys(numbers, 0) | share_out({name: n for name, n in numbers.items() if n > 0}, MOST_OF_ALL)


def _ids(named: Iterable[str | None]) -> list[str]:
    return list({order_id for order_id in named if order_id})


def _of_letters(
    named: Sequence[str | None], orders: Mapping[str, Document], hold_ends: Mapping[str, datetime], *, complete: bool
) -> Impact:
    known = [orders[order_id] for order_id in _ids(named) if order_id in orders]
    unknown = sum(order_id not in orders for order_id in named)
    return impact_of(known, hold_ends=hold_ends, unknown=unknown, complete=complete)

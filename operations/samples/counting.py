"""Counts the orders of a window: those that were placed in it, and those that ended in it.

An order has no index by the time of its end. So the open orders are followed by their ids: what ended in a window was
placed in it, or was open at its beginning. Both are read by an index, so a minute costs as much as its own orders.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from operations.samples.sample import (
    CANCELLED,
    FAILED,
    GOODS,
    GROWTH,
    SERVERS,
    SETTLED,
    SHORTEST_SECONDS,
    Ended,
    Window,
)
from order_service.order import Status
from shared import database
from shared.database import Collection, Document

MOST_FOLLOWED = 20_000
"""Open orders that are followed, the longest open ones. Beyond, fewer orders are counted than settle."""

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Counted(NamedTuple):
    """The orders accepted by minute, those that ended, and the ids of those that are open at the end of the window."""

    accepted: Mapping[datetime, int]
    ended: Sequence[Ended]
    open: Sequence[str]


async def count_orders(orders: Collection, window: Window, followed: Sequence[str]) -> Counted:
    """Count the orders of a window, with those that were open at its beginning."""
    accepted, ended, still_open = Counter[datetime](), list[Ended](), list[str]()
    before = {"_id": {"$in": list(followed)}}
    for query in (before, placed_in(window)):
        if query is before and not followed:
            continue
        async for row in database.aggregate(orders, by_end(query, window)):
            key = row["_id"]
            if query is not before:
                accepted[key["placed"]] += row["count"]
            if key["open"] is not None:
                still_open.append(key["open"])
            else:
                ended.append(Ended(key["ended"], key["how"], key["fulfilment"], int(key["bucket"]), row["count"]))
    return Counted(accepted, ended, still_open[:MOST_FOLLOWED])


async def open_before(orders: Collection, at: datetime) -> list[str]:
    """Return the ids of the orders that were placed before a time and are open now, the oldest first."""
    query = {"settled": False, "createdAt": {"$gte": BEGINNING, "$lt": at}, "status": {"$ne": Status.FAILED}}
    found = orders.find(query, {"_id": True}).sort("createdAt", 1).limit(MOST_FOLLOWED)
    return [order["_id"] async for order in found]


def placed_in(window: Window) -> Document:
    """Return the query of the orders that were placed in a window; the index by status and time serves it."""
    statuses = [str(status) for status in Status]
    return {"status": {"$in": statuses}, "createdAt": {"$gte": window.since, "$lt": window.until}}


def by_end(query: Document, window: Window) -> list[Mapping[str, Any]]:
    """Return a pipeline that counts orders by the minute and the kind of their end; each open one is on its own.

    An order that has ended after the window is still open in it, and is counted in a later one.
    """
    is_open = {"$or": [{"$eq": ["$ended", None]}, {"$gte": ["$ended", window.until]}]}
    seconds = {"$divide": [{"$subtract": ["$ended", "$createdAt"]}, 1000]}
    logarithm = {"$ln": {"$max": [seconds, SHORTEST_SECONDS]}}
    how: Document = {
        "$switch": {
            "branches": [
                {"case": {"$eq": ["$status", Status.FAILED]}, "then": FAILED},
                {"case": {"$eq": ["$status", Status.CANCELLED]}, "then": CANCELLED},
            ],
            "default": SETTLED,
        }
    }

    def unless_open(value: Any) -> Document:
        return {"$cond": [is_open, None, value]}

    key = {
        "placed": _minute("$createdAt"),
        "open": {"$cond": [is_open, "$_id", None]},
        "ended": unless_open(_minute("$ended")),
        "how": unless_open(how),
        "fulfilment": unless_open({"$cond": [{"$eq": ["$fulfilment", SERVERS]}, SERVERS, GOODS]}),
        "bucket": unless_open({"$ceil": {"$divide": [logarithm, math.log(GROWTH)]}}),
    }
    fields = {"status": True, "createdAt": True, "fulfilment": True, "ended": _ended()}
    return [{"$match": query}, {"$project": fields}, {"$group": {"_id": key, "count": {"$sum": 1}}}]


def _ended() -> Document:
    """Return when an order settled or failed, None while it is open."""
    confirmed = {"$ifNull": ["$confirmedAt", "$completedAt", "$updatedAt"]}
    branches = [
        {"case": {"$eq": ["$status", Status.FAILED]}, "then": {"$ifNull": ["$enteredAt", "$updatedAt"]}},
        {"case": {"$ne": ["$settled", True]}, "then": None},
        {"case": {"$eq": ["$status", Status.CANCELLED]}, "then": "$updatedAt"},
        {"case": {"$eq": ["$fulfilment", SERVERS]}, "then": {"$ifNull": ["$completedAt", "$updatedAt"]}},
    ]
    return {"$switch": {"branches": branches, "default": confirmed}}


def _minute(field: str) -> Document:
    return {"$dateTrunc": {"date": field, "unit": "minute"}}

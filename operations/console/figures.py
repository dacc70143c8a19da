"""The figures of the overview: pure summaries of records, and the reads behind them.

All are over the newest orders, at most SAMPLE of the last hour, so that a look costs the same however many there are.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pymongo import DESCENDING

from shared import database
from shared.database import Collection, Document

SAMPLE = 2000
WINDOW = timedelta(hours=1)
RATE_WINDOW = timedelta(minutes=1)
STATUSES = ("PENDING", "CONFIRMED", "PROVISIONING", "COMPLETED", "CANCELLED", "FAILED")
FULFILLED = ("CONFIRMED", "COMPLETED")
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Latency(NamedTuple):
    """How long orders took from placing to fulfilment, in seconds; None where there were none."""

    orders: int
    p50: float | None
    p95: float | None


class Recent(NamedTuple):
    """What the newest orders come to; shares are of those that are decided, None where none is."""

    orders: int
    since: datetime | None
    per_second: float
    succeeded: float | None
    failed: float | None
    goods: Latency
    servers: Latency
    reasons: Sequence[tuple[str, str, int]]


class Open(NamedTuple):
    """Orders that are not settled: on their way, by status, and failed ones that wait for a decision."""

    in_flight: int
    undecided: int
    by_status: Mapping[str, int]


def summarize(orders: Sequence[Document], now: datetime) -> Recent:
    """Summarize orders, newest first."""
    counts = Counter(str(order.get("status")) for order in orders)
    fulfilled = sum(counts[status] for status in FULFILLED)
    decided = fulfilled + counts["CANCELLED"] + counts["FAILED"]
    reasons = Counter(
        (str(order["status"]), str(order["failureReason"]))
        for order in orders
        if order.get("failureReason") and order.get("status") in ("CANCELLED", "FAILED")
    )
    return Recent(
        orders=len(orders),
        since=orders[-1]["createdAt"] if orders else None,
        per_second=_rate([order["createdAt"] for order in orders], now),
        succeeded=fulfilled / decided if decided else None,
        failed=1 - fulfilled / decided if decided else None,
        goods=_latency(order for order in orders if order.get("status") == "CONFIRMED"),
        servers=_latency(order for order in orders if order.get("status") == "COMPLETED"),
        reasons=[(status, reason, count) for (status, reason), count in reasons.most_common(5)],
    )


def _rate(placed: Sequence[datetime], now: datetime) -> float:
    """Orders a second over the last minute, or over the time that a full sample spans if that is shorter."""
    if len(placed) >= SAMPLE and now - placed[-1] < RATE_WINDOW:
        return len(placed) / max((now - placed[-1]).total_seconds(), 0.001)
    return sum(now - moment < RATE_WINDOW for moment in placed) / RATE_WINDOW.total_seconds()


def _latency(orders: Iterable[Document]) -> Latency:
    times = sorted(
        (order["completedAt"] - order["createdAt"]).total_seconds() for order in orders if order.get("completedAt")
    )
    return Latency(len(times), percentile(times, 0.5), percentile(times, 0.95))


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which that share of ordered values lies (nearest rank); None of nothing."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def read_recent(orders: Collection, now: datetime) -> Recent:
    """Read and summarize the newest orders."""
    query = {"status": {"$in": list(STATUSES)}, "createdAt": {"$gte": now - WINDOW}}
    fields = {"status": True, "createdAt": True, "completedAt": True, "failureReason": True}
    cursor = orders.find(query, fields).sort([("createdAt", DESCENDING), ("_id", DESCENDING)]).limit(SAMPLE)
    return summarize(await cursor.to_list(None), now)


async def read_open(orders: Collection) -> Open:
    """Count the orders that are not settled. The time in the query is for the index, which begins with it."""
    by_status: Counter[str] = Counter()
    undecided = 0
    pipeline = [
        {"$match": {"settled": False, "createdAt": {"$gte": BEGINNING}}},
        {"$group": {"_id": {"status": "$status", "compensating": "$compensating"}, "count": {"$sum": 1}}},
    ]
    async for row in database.aggregate(orders, pipeline):
        status = str(row["_id"].get("status"))
        if status == "FAILED" and not row["_id"].get("compensating"):
            undecided += row["count"]
        else:
            by_status[status] += row["count"]
    return Open(sum(by_status.values()), undecided, dict(sorted(by_status.items())))

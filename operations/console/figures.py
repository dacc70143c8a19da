"""The figures of the overview: pure summaries of orders, and the reads behind them.

They cover the newest orders, at most SAMPLE of the last hour, so the cost does not depend on the number of orders.
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
    """The time from placing an order to fulfilment, in seconds; None without orders."""

    orders: int
    p50: float | None
    p95: float | None


class RecentOrders(NamedTuple):
    """A summary of the newest orders; shares are of the decided ones, None without any."""

    orders: int
    since: datetime | None
    per_second: float
    succeeded: float | None
    failed: float | None
    goods: Latency
    servers: Latency
    reasons: Sequence[tuple[str, str, int]]


class OpenOrders(NamedTuple):
    """The counts of unsettled orders: in flight, by status, and failed ones that await a decision."""

    in_flight: int
    undecided: int
    by_status: Mapping[str, int]


def summarize(orders: Sequence[Document], now: datetime) -> RecentOrders:
    """Summarize orders, which are sorted newest first."""
    counts = Counter(str(order.get("status")) for order in orders)
    fulfilled = sum(counts[status] for status in FULFILLED)
    decided = fulfilled + counts["CANCELLED"] + counts["FAILED"]
    reasons = Counter(
        (str(order["status"]), str(order["failureReason"]))
        for order in orders
        if order.get("failureReason") and order.get("status") in ("CANCELLED", "FAILED")
    )
    return RecentOrders(
        orders=len(orders),
        since=orders[-1]["createdAt"] if orders else None,
        per_second=_rate([order["createdAt"] for order in orders], now),
        succeeded=fulfilled / decided if decided else None,
        failed=1 - fulfilled / decided if decided else None,
        goods=_latency(orders, "goods"),
        servers=_latency(orders, "vps"),
        reasons=[(status, reason, count) for (status, reason), count in reasons.most_common(5)],
    )


def _rate(placed: Sequence[datetime], now: datetime) -> float:
    """Return orders per second over the last minute, or over the span of a full sample if that is shorter."""
    if len(placed) >= SAMPLE and now - placed[-1] < RATE_WINDOW:
        return len(placed) / max((now - placed[-1]).total_seconds(), 0.001)
    return sum(now - at < RATE_WINDOW for at in placed) / RATE_WINDOW.total_seconds()


def _latency(orders: Iterable[Document], fulfilment: str) -> Latency:
    """Return the times of fulfilled orders: of goods until they were confirmed, of servers until they were ready."""
    times = sorted(
        (end - order["createdAt"]).total_seconds()
        for order in orders
        if order.get("status") in FULFILLED
        and order.get("fulfilment", "goods") == fulfilment
        # Earlier releases stored the confirmation of goods as their completion.
        and (end := (fulfilment == "goods" and order.get("confirmedAt")) or order.get("completedAt"))
    )
    return Latency(len(times), percentile(times, 0.5), percentile(times, 0.95))


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return a percentile of sorted values (nearest rank), None without values."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def read_recent_orders(orders: Collection, now: datetime) -> RecentOrders:
    """Read and summarize the newest orders."""
    query = {"status": {"$in": list(STATUSES)}, "createdAt": {"$gte": now - WINDOW}}
    fields = {"status": True, "createdAt": True, "confirmedAt": True, "completedAt": True, "failureReason": True}
    fields |= {"fulfilment": True}
    cursor = orders.find(query, fields).sort([("createdAt", DESCENDING), ("_id", DESCENDING)]).limit(SAMPLE)
    return summarize(await cursor.to_list(None), now)


async def read_open_orders(orders: Collection) -> OpenOrders:
    """Count the orders that are not settled. The query names a time because the index begins with it."""
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
    return OpenOrders(sum(by_status.values()), undecided, dict(sorted(by_status.items())))

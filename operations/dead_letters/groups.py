"""Letters of one cause, as one line: how many, since when, how they spread over time, and what operators say of it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from operations.dead_letters.records import BY_GROUP, GROUPS, LETTERS
from operations.dead_letters.status import GROUP_STATUSES, OPEN
from shared.clock import utc_now
from shared.database import Collection, Database, Document, aggregate

MOST_BINS = 200

MOST_NOTES = 100
"""Notes of one group: its record and its page have all of them."""


class Bin(NamedTuple):
    """How many letters of a group failed last in the time that begins at `at`."""

    at: datetime
    count: int  # type: ignore[assignment]  # a tuple's own `count` is of no use here


@dataclass(frozen=True, slots=True)
class Group:
    """Letters with one fingerprint.

    `open` are those that are not over, `total` all; `message` is the error's message without what differs; the bins of
    the `histogram` are equally long.
    """

    fingerprint: str
    status: str
    notes: Sequence[Document]
    service: str
    queue: str
    routing_key: str
    error_type: str
    message: str
    open: int
    total: int
    first_failed_at: datetime
    last_failed_at: datetime
    histogram: Sequence[Bin]

    def as_json(self) -> dict[str, Any]:
        """The group as the JSON document shows it; times are still times."""
        return {
            "fingerprint": self.fingerprint,
            "status": self.status,
            "service": self.service,
            "queue": self.queue,
            "routingKey": self.routing_key,
            "errorType": self.error_type,
            "message": self.message,
            "open": self.open,
            "total": self.total,
            "firstFailedAt": self.first_failed_at,
            "lastFailedAt": self.last_failed_at,
            "notes": list(self.notes),
            "histogram": [bin_._asdict() for bin_ in self.histogram],
        }


class GroupPage(NamedTuple):
    """Some groups, and how many there are in all."""

    items: Sequence[Group]
    total: int


class GroupRecords:
    """The operations on the groups. All of them let the driver's errors out."""

    def __init__(self, database: Database) -> None:
        self._letters: Collection = database[LETTERS]
        self._groups: Collection = database[GROUPS]

    async def list(
        self,
        *,
        fingerprints: Sequence[str] | None,
        open_only: bool,
        since: datetime | None,
        until: datetime | None,
        bins: int,
        limit: int,
        skip: int = 0,
    ) -> GroupPage:
        """These groups, or all, without the first `skip`; the one whose last failure is the newest first."""
        chart = await self._chart(since, until, bins)
        found = await anext(self._counted(chart, fingerprints, open_only, limit, skip))
        counted = found["items"]
        among = {"_id": {"$in": [group["_id"] for group in counted]}}
        known = {group["_id"]: group async for group in self._groups.find(among)}
        items = [_group(group, known.get(group["_id"], {}), chart) for group in counted]
        return GroupPage(items, found["total"][0]["number"] if found["total"] else 0)

    def _counted(
        self, chart: "_Chart", fingerprints: Sequence[str] | None, open_only: bool, limit: int, skip: int
    ) -> AsyncIterator[Document]:
        """Count in one walk over an index that has all the fields, so that no letter is read."""
        pipeline: list[Document] = [
            {"$match": {"fingerprint": {"$gt": ""} if fingerprints is None else {"$in": list(fingerprints)}}},
            {"$group": {"_id": {"f": "$fingerprint", "s": "$status", "b": chart.bin_of("$lastFailedAt")}} | _SPAN},
            {
                "$group": {
                    "_id": "$_id.f",
                    "total": {"$sum": "$n"},
                    "open": {"$sum": {"$cond": [{"$in": ["$_id.s", list(OPEN)]}, "$n", 0]}},
                    "first": {"$min": "$first"},
                    "last": {"$max": "$last"},
                    "bins": {"$push": {"b": "$_id.b", "n": "$n"}},
                }
            },
            *([{"$match": {"open": {"$gt": 0}}}] if open_only else []),
            {
                "$facet": {
                    "items": [{"$sort": {"last": -1, "_id": 1}}, {"$skip": skip}, {"$limit": limit}],
                    "total": [{"$count": "number"}],
                }
            },
        ]
        return aggregate(self._letters, pipeline, hint=BY_GROUP)

    async def _chart(self, since: datetime | None, until: datetime | None, bins: int) -> "_Chart":
        if since is None:
            oldest = await self._letters.find_one({}, {"lastFailedAt": True}, sort=[("lastFailedAt", 1), ("_id", 1)])
            since = oldest["lastFailedAt"] if oldest else utc_now() - timedelta(hours=1)
        return _Chart.between(since, until or utc_now(), min(max(1, bins), MOST_BINS))

    async def fingerprints(self, status: str) -> Sequence[str]:
        """The groups of a status."""
        return [group["_id"] async for group in self._groups.find({"status": status}, {"_id": True})]

    async def set_status(self, fingerprint: str, status: str, by: str) -> bool:
        """Say how far somebody has come with a group; False if there is no such group."""
        if status not in GROUP_STATUSES:
            raise ValueError(f"unknown status {status!r}, allowed: {', '.join(GROUP_STATUSES)}")
        changed = {"$set": {"status": status, "statusAt": utc_now(), "statusBy": by}}
        return bool((await self._groups.update_one({"_id": fingerprint}, changed)).matched_count)

    async def add_note(self, fingerprint: str, note: Document) -> bool:
        """Add a note to a group; False if there is no such group, or it has MOST_NOTES."""
        has_room = {"_id": fingerprint, f"notes.{MOST_NOTES - 1}": {"$exists": False}}
        return bool((await self._groups.update_one(has_room, {"$push": {"notes": note}})).matched_count)


_SPAN: Document = {"n": {"$sum": 1}, "first": {"$min": "$firstFailedAt"}, "last": {"$max": "$lastFailedAt"}}


class _Chart(NamedTuple):
    """Equal parts of a time."""

    since: datetime
    width: timedelta
    bins: int

    @classmethod
    def between(cls, since: datetime, until: datetime, bins: int) -> "_Chart":
        """Cut the time into bins; the last one holds what fails at its very end as well."""
        milliseconds = max(1, int((until - since).total_seconds() * 1000) // bins + 1)
        return cls(since, timedelta(milliseconds=milliseconds), bins)

    def bin_of(self, field: str) -> Document:
        """The number of a time's bin, as an expression of the database."""
        width = self.width // timedelta(milliseconds=1)
        return {"$floor": {"$divide": [{"$subtract": [field, self.since]}, width]}}

    def histogram(self, counted: Sequence[Document]) -> list[Bin]:
        """All bins, also the empty ones."""
        counts = [0] * self.bins
        for found in counted:
            if 0 <= found["b"] < self.bins:
                counts[int(found["b"])] += found["n"]
        return [Bin(self.since + number * self.width, count) for number, count in enumerate(counts)]


def _group(counted: Document, known: Document, chart: _Chart) -> Group:
    return Group(
        fingerprint=counted["_id"],
        status=known.get("status", GROUP_STATUSES[0]),
        notes=known.get("notes", []),
        service=known.get("service", "unknown"),
        queue=known.get("queue", ""),
        routing_key=known.get("routingKey", ""),
        error_type=known.get("errorType", ""),
        message=known.get("pattern", ""),
        open=counted["open"],
        total=counted["total"],
        first_failed_at=counted["first"],
        last_failed_at=counted["last"],
        histogram=chart.histogram(counted["bins"]),
    )

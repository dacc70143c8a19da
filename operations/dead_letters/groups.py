"""Letters of one cause: how many, since when, their failures over time, and the operators' notes on them.

Only this module writes the collection of groups; methods let the driver's errors out.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from pymongo import UpdateMany, UpdateOne

from operations.dead_letters.filters import Filters, query
from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.letter import Failure
from operations.dead_letters.masking import mask_text
from operations.dead_letters.outcome import GroupReplay, ReplayOutcome, outcome_from_json, outcomes_by_group
from operations.dead_letters.schema import BY_GROUP, FAILED_AGAIN, GROUPS, LETTERS
from operations.dead_letters.status import (
    GROUP_STATUSES,
    NEW,
    OPEN,
    RESOLVED,
    STATUSES,
    group_status,
    stored_group_statuses,
)
from operations.dead_letters.title import title_of
from shared.clock import utc_now
from shared.database import Collection, Database, Document, aggregate

MOST_BINS = 200

MOST_NOTES = 100
"""The most notes per group: its record and its page hold all of them."""


class GroupOrder(StrEnum):
    """The order of a list of groups."""

    NEWEST = "newest"
    OLDEST = "oldest"
    LETTERS = "letters"

    @property
    def sort(self) -> Document:
        """The MongoDB sort of counted groups."""
        return {_SORTED_BY[self][0]: _SORTED_BY[self][1], "_id": 1}


_SORTED_BY = {GroupOrder.NEWEST: ("last", -1), GroupOrder.OLDEST: ("first", 1), GroupOrder.LETTERS: ("open", -1)}


class HistogramBin(NamedTuple):
    """The number of failures of a group, first ones and those of replays, in the time from `at` to the next bin."""

    at: datetime
    count: int  # type: ignore[assignment]  # hides the method of tuples


@dataclass(frozen=True, slots=True)
class Group:
    """Letters with one fingerprint.

    `open` counts those that may still need attention, `total` all; `message` is the pattern of their error messages,
    without what is hidden; all bins of the `histogram` span the same time. Failures stay when their letters are
    replayed: those that then fail in another way are counted in another group, and their old failures in this one.
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
    histogram: Sequence[HistogramBin]
    replayed: GroupReplay | None = None
    """The last replay of its letters."""

    @property
    def title(self) -> str:
        """What went wrong, in the words of the error."""
        return title_of(self.error_type, self.message)

    def as_json(self) -> dict[str, Any]:
        """Return the group as a JSON document shows it, with times as datetimes."""
        return {
            "fingerprint": self.fingerprint,
            "status": self.status,
            "service": self.service,
            "queue": self.queue,
            "routingKey": self.routing_key,
            "title": self.title,
            "errorType": self.error_type,
            "message": self.message,
            "open": self.open,
            "total": self.total,
            "firstFailedAt": self.first_failed_at,
            "lastFailedAt": self.last_failed_at,
            "notes": list(self.notes),
            "histogram": [bin_._asdict() for bin_ in self.histogram],
            "lastReplay": self.replayed.as_json() if self.replayed else None,
        }


def group_from_json(document: Document) -> Group:
    """Return the group that a JSON document shows, with its times as datetimes."""
    last = document["lastReplay"]
    return Group(
        fingerprint=document["fingerprint"],
        status=document["status"],
        notes=document["notes"],
        service=document["service"],
        queue=document["queue"],
        routing_key=document["routingKey"],
        error_type=document["errorType"],
        message=document["message"],
        open=document["open"],
        total=document["total"],
        first_failed_at=document["firstFailedAt"],
        last_failed_at=document["lastFailedAt"],
        histogram=[HistogramBin(each["at"], each["count"]) for each in document["histogram"]],
        replayed=GroupReplay(last["replay"], last["by"], last["at"], outcome_from_json(last)) if last else None,
    )


class GroupPage(NamedTuple):
    """A page of groups, and the number of groups on all pages."""

    items: Sequence[Group]
    total: int


class GroupRecords:
    """The operations on the groups."""

    def __init__(self, database: Database) -> None:
        self._letters: Collection = database[LETTERS]
        self._groups: Collection = database[GROUPS]

    async def open(self, failures: Sequence[Failure], now: datetime) -> None:
        """Create the groups of the failures that do not exist; a resolved one is new again."""
        groups = {failure.fingerprint: failure for failure in failures}
        if not groups:
            return
        writes: list[UpdateOne | UpdateMany] = [
            UpdateOne({"_id": key}, {"$setOnInsert": _new_group(failure, now)}, upsert=True)
            for key, failure in groups.items()
        ]
        writes.append(_reopening(list(groups), now))
        await self._groups.bulk_write(writes, ordered=False)

    async def reopen(self, letters: Document, now: datetime) -> None:
        """Make the groups of the letters of a query new again where they are resolved."""
        groups = await self._letters.distinct("fingerprint", letters)
        await self._groups.bulk_write([_reopening(groups, now)])

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
        order: GroupOrder = GroupOrder.NEWEST,
        in_period: bool = False,
    ) -> GroupPage:
        """Return the named groups, or all, in this order, without the first `skip`.

        With `in_period`, only those that failed between `since` and `until`.
        """
        time_bins = await self._time_bins(since, until, bins)
        if in_period and until is not None and time_bins.since >= until:
            return GroupPage([], 0)
        conditions: list[Document] = [{"$match": {"open": {"$gt": 0}}}] if open_only else []
        if in_period:
            conditions.append({"$match": {"bins": {"$elemMatch": {"b": {"$gte": 0, "$lt": time_bins.bins}}}}})
        page: list[Document] = [{"$sort": order.sort}, {"$skip": skip}, {"$limit": limit}]
        found = await anext(self._counted(time_bins, fingerprints, conditions, page))
        counted = found["items"]
        among = {"_id": {"$in": [group["_id"] for group in counted]}}
        known = {group["_id"]: group async for group in self._groups.find(among)}
        replayed = await self._last_replays(known.values())
        items = [_group(group, known.get(group["_id"], {}), time_bins, replayed.get(group["_id"])) for group in counted]
        return GroupPage(items, found["total"][0]["number"] if found["total"] else 0)

    async def _last_replays(self, known: Iterable[Document]) -> dict[str, GroupReplay]:
        """Return the last replay of each group that was replayed."""
        last = {group["_id"]: group["lastReplay"] for group in known if "lastReplay" in group}
        outcomes = await outcomes_by_group(self._letters, {replay["replay"] for replay in last.values()})
        return {
            key: GroupReplay(**replay, outcome=outcomes.get((replay["replay"], key), ReplayOutcome()))
            for key, replay in last.items()
        }

    def _counted(
        self,
        time_bins: "_TimeBins",
        fingerprints: Sequence[str] | None,
        conditions: Sequence[Document],
        page: Sequence[Document],
    ) -> AsyncIterator[Document]:
        """Count in one pass over an index that covers all fields, so only letters that failed again are read."""
        asked: Document = {"$gt": ""} if fingerprints is None else {"$in": list(fingerprints)}
        pipeline: list[Document] = [
            {"$match": {"fingerprint": asked}},
            {"$group": {"_id": {"f": "$fingerprint", "s": "$status", "b": time_bins.bin_of("$lastFailedAt")}} | _SPAN},
            {"$unionWith": {"coll": self._letters.name, "pipeline": _former_failures(asked, time_bins)}},
            {
                "$group": {
                    "_id": "$_id.f",
                    "total": {"$sum": {"$cond": [{"$eq": ["$_id.s", _FORMER]}, 0, "$n"]}},
                    "open": {"$sum": {"$cond": [{"$in": ["$_id.s", list(OPEN)]}, "$n", 0]}},
                    "first": {"$min": "$first"},
                    "last": {"$max": "$last"},
                    "bins": {"$push": {"b": "$_id.b", "n": "$n"}},
                }
            },
            *conditions,
            {"$facet": {"items": page, "total": [{"$count": "number"}]}},
        ]
        return aggregate(self._letters, pipeline, hint=BY_GROUP)

    async def _time_bins(self, since: datetime | None, until: datetime | None, bins: int) -> "_TimeBins":
        if since is None:
            since = await self._oldest_failure() or utc_now() - timedelta(hours=1)
        return _TimeBins.between(since, until or utc_now(), min(max(1, bins), MOST_BINS))

    async def _oldest_failure(self) -> datetime | None:
        last = await self._letters.find_one({}, {"lastFailedAt": True}, sort=[("lastFailedAt", 1), ("_id", 1)])
        former = await self._letters.find_one(FAILED_AGAIN, {"failures.at": True}, sort=[("failures.at", 1)])
        times = [last["lastFailedAt"]] if last else []
        return min(times + [failure["at"] for failure in former["failures"]] if former else times, default=None)

    async def fingerprints(self, filters: GroupFilters) -> Sequence[str] | None:
        """Return the groups that the filters select, apart from the time and open letters; None for all."""
        if not filters.by_record and not filters.product:
            return None
        recorded = self._groups.find(filters.query(), {"errorType": True, "pattern": True})
        selected = {group["_id"] async for group in recorded if filters.names(group)}
        if filters.product:
            selected &= await self._naming(filters.product)
        return sorted(selected)

    async def _naming(self, text: str) -> set[str]:
        """Return the groups with a letter that names something, as the search for letters finds it."""
        pipeline: list[Document] = [
            {"$match": query(Filters(status=STATUSES, text=text))},
            {"$group": {"_id": "$fingerprint"}},
        ]
        return {row["_id"] async for row in aggregate(self._letters, pipeline)}

    async def set_status(self, fingerprint: str, status: str, by: str) -> bool:
        """Set the status of a group; return False if there is no such group. Raises ValueError for another status."""
        if status not in GROUP_STATUSES:
            raise ValueError(f"unknown status {status!r}, allowed: {', '.join(GROUP_STATUSES)}")
        changed = {"$set": {"status": status, "statusAt": utc_now(), "statusBy": by}}
        return bool((await self._groups.update_one({"_id": fingerprint}, changed)).matched_count)

    async def note_replay(self, fingerprints: Iterable[str], replay: Document) -> None:
        """Note that letters of these groups are replayed, unless a later replay is noted already."""
        last = {"replay": replay["_id"], "by": replay["by"], "at": replay["at"]}
        older = {"_id": {"$in": list(fingerprints)}, "lastReplay.at": {"$not": {"$gt": replay["at"]}}}
        await self._groups.update_many(older, {"$set": {"lastReplay": last}})

    async def add_note(self, fingerprint: str, note: Document) -> bool:
        """Add a note to a group; return False if there is no such group, or it has MOST_NOTES."""
        has_room = {"_id": fingerprint, f"notes.{MOST_NOTES - 1}": {"$exists": False}}
        return bool((await self._groups.update_one(has_room, {"$push": {"notes": note}})).matched_count)


_FORMER = "former"
"""Counted in place of a status: a failure after which the letter was replayed, and failed again."""

_SPAN: Document = {"n": {"$sum": 1}, "first": {"$min": "$firstFailedAt"}, "last": {"$max": "$lastFailedAt"}}


def _former_failures(fingerprint: Document, time_bins: "_TimeBins") -> list[Document]:
    """Return the stages that count the failures of letters that have failed again since, like those of the others."""
    key = {"f": "$failures.fingerprint", "s": _FORMER, "b": time_bins.bin_of("$failures.at")}
    span = {"n": {"$sum": 1}, "first": {"$min": "$failures.first"}, "last": {"$max": "$failures.at"}}
    return [
        {"$match": FAILED_AGAIN | {"failures.fingerprint": fingerprint}},
        {"$unwind": "$failures"},
        {"$match": {"failures.fingerprint": fingerprint}},
        {"$group": {"_id": key} | span},
    ]


class _TimeBins(NamedTuple):
    """A span of time in equal parts."""

    since: datetime
    width: timedelta
    bins: int

    @classmethod
    def between(cls, since: datetime, until: datetime, bins: int) -> "_TimeBins":
        """Divide a span into bins; the last one includes the end of the span."""
        milliseconds = max(1, int((until - since).total_seconds() * 1000) // bins + 1)
        return cls(since, timedelta(milliseconds=milliseconds), bins)

    def bin_of(self, field: str) -> Document:
        """Return the MongoDB expression for the number of a time's bin."""
        width = self.width // timedelta(milliseconds=1)
        return {"$floor": {"$divide": [{"$subtract": [field, self.since]}, width]}}

    def histogram(self, counted: Sequence[Document]) -> list[HistogramBin]:
        """Return all bins, including the empty ones."""
        counts = [0] * self.bins
        for found in counted:
            if 0 <= found["b"] < self.bins:
                counts[int(found["b"])] += found["n"]
        return [HistogramBin(self.since + number * self.width, count) for number, count in enumerate(counts)]


def _reopening(groups: Sequence[str], now: datetime) -> UpdateMany:
    resolved = {"_id": {"$in": groups}, "status": {"$in": stored_group_statuses(RESOLVED)}}
    return UpdateMany(resolved, {"$set": {"status": NEW, "statusAt": now, "reopenedAt": now}})


def _new_group(failure: Failure, now: datetime) -> Document:
    return {
        "status": NEW,
        "statusAt": now,
        "since": now,
        "notes": [],
        "service": failure.service,
        "queue": failure.queue,
        "routingKey": failure.routing_key,
        "errorType": failure.error.type,
        "pattern": failure.pattern,
    }


def _group(counted: Document, known: Document, time_bins: _TimeBins, replayed: GroupReplay | None) -> Group:
    return Group(
        fingerprint=counted["_id"],
        status=group_status(known.get("status", NEW)),
        notes=known.get("notes", []),
        service=known.get("service", "unknown"),
        queue=known.get("queue", ""),
        routing_key=known.get("routingKey", ""),
        error_type=known.get("errorType", ""),
        message=mask_text(known.get("pattern", "")),
        open=counted["open"],
        total=counted["total"],
        first_failed_at=counted["first"],
        last_failed_at=counted["last"],
        histogram=time_bins.histogram(counted["bins"]),
        replayed=replayed,
    )

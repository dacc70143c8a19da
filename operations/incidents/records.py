"""Keeps incidents, and what was last observed of each subject, each incident once over all processes.

The state of a subject and the incidents of its change are one write, guarded by the state's revision: of several
processes that see the same change, one makes it. The incidents are then copied to their collection and struck from the
state; if the process ends in between, the next one copies them again under the same ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from pymongo import ASCENDING, DESCENDING, UpdateOne
from pymongo.errors import DuplicateKeyError

from operations.incidents.changes import Known, Release, Seen, decide, decide_release
from operations.incidents.incident import Incident, incident_of
from operations.incidents.schema import INCIDENTS, STATES
from operations.reading.cursors import read_cursor, write_cursor
from shared.clock import Clock
from shared.database import Database, Document
from shared.failpoints import INCIDENT_DECIDED, Failpoint, nothing_fails

_ORDER = [("at", DESCENDING), ("_id", DESCENDING)]


@dataclass(frozen=True, slots=True)
class IncidentFilter:
    """Which incidents are meant; an empty field means all."""

    kinds: Sequence[str] = ()
    severities: Sequence[str] = ()
    services: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None

    def query(self) -> Document:
        """Return the filter for MongoDB."""
        chosen = {"kind": self.kinds, "severity": self.severities, "service": self.services}
        query: Document = {name: {"$in": list(values)} for name, values in chosen.items() if values}
        period = {"$gte": self.since, "$lt": self.until}
        if period := {name: at for name, at in period.items() if at is not None}:
            query["at"] = period
        return query


class IncidentPage(NamedTuple):
    """A page of incidents, newest first, the cursor of the next page (None on the last one), and how many there are."""

    items: list[Incident]
    next_cursor: str | None
    total: int


@dataclass(slots=True)
class _State:
    """The record of a subject; `incidents` are those that are not copied yet."""

    subject: str
    revision: int = 0
    values: Document = field(default_factory=dict)
    incidents: list[Document] = field(default_factory=list)


class IncidentRecords:
    """The operations on the records; methods let the driver's errors out."""

    def __init__(self, database: Database, failpoint: Failpoint = nothing_fails, clock: Clock | None = None) -> None:
        """Incidents are stamped by a clock; without one by the server: a write that waits gets no time of the past."""
        self._database = database
        self._incidents = database[INCIDENTS]
        self._states = database[STATES]
        self._failpoint = failpoint
        self._clock = clock

    async def observe(self, seen: Sequence[Seen], at: datetime) -> None:
        """Record what changed, as it was seen at a time."""
        states = await self._read([each.subject for each in seen])
        for each in seen:

            def judge(values: Document, each: Seen = each) -> tuple[Document, Sequence[Incident]]:
                known, incidents = decide(_known(values), each, at)
                return {"state": known.state, "changes": list(known.changes), "flapping": known.flapping}, incidents

            await self._change(each.subject, states.get(each.subject), judge)

    async def observe_release(self, service: str, seen: Release) -> None:
        """Record a process that was started, or a new release."""

        def judge(values: Document) -> tuple[Document, Sequence[Incident]]:
            known = Release(values["startedAt"], values["version"]) if values else None
            new, incidents = decide_release(known, seen, service)
            return {"startedAt": new.started_at, "version": new.version}, incidents

        subject = f"release/{service}"
        await self._change(subject, (await self._read([subject])).get(subject), judge)

    async def add(self, incidents: Sequence[Incident]) -> None:
        """Add incidents that have records of their own elsewhere, each once under its id."""
        new = await self.unknown([incident.id for incident in incidents])
        await self._copy([incident.as_document() for incident in incidents if incident.id in new])

    async def unknown(self, ids: Sequence[str]) -> set[str]:
        """Return those of these ids that no incident has."""
        if not ids:
            return set()
        known = {found["_id"] async for found in self._incidents.find({"_id": {"$in": list(ids)}}, {"_id": True})}
        return set(ids) - known

    async def finish(self) -> None:
        """Copy the incidents that a process has decided and not copied."""
        async for document in self._states.find({"incidents.0": {"$exists": True}}):
            await self._copy_and_strike(_state(document))

    async def page(self, wanted: IncidentFilter, *, limit: int, cursor: str | None = None) -> IncidentPage:
        """Return a page. Raises ValueError for the cursor of another list."""
        query = wanted.query()
        total = await self._incidents.count_documents(query)
        if cursor is not None:
            at, last = read_cursor(cursor)
            query = {"$and": [query, {"$or": [{"at": {"$lt": at}}, {"at": at, "_id": {"$lt": last}}]}]}
        found = await self._incidents.find(query, sort=_ORDER, limit=limit + 1).to_list(None)
        items, more = [incident_of(document) for document in found[:limit]], len(found) > limit
        return IncidentPage(items, write_cursor(items[-1].at, items[-1].id) if more else None, total)

    async def stamping_time(self) -> datetime:
        """Return the time by the clock that stamps incidents."""
        if self._clock is not None:
            return self._clock()
        now: datetime = (await self._database.command("hello"))["localTime"]
        return now.replace(tzinfo=UTC)

    async def states(self, subjects: Sequence[str]) -> dict[str, str]:
        """Return what was last observed of these subjects; one that was never observed is missing."""
        return {name: state.values["state"] for name, state in (await self._read(subjects)).items() if state.values}

    async def recorded(self, wanted: IncidentFilter, after: datetime, until: datetime) -> list[Document]:
        """Return the records that were written after one time and until another, in that order."""
        query = wanted.query() | {"recordedAt": {"$gt": after, "$lte": until}}
        return await self._incidents.find(query, sort=[("recordedAt", ASCENDING), ("_id", ASCENDING)]).to_list(None)

    async def _read(self, subjects: Sequence[str]) -> dict[str, _State]:
        return {
            document["_id"]: _state(document) async for document in self._states.find({"_id": {"$in": list(subjects)}})
        }

    async def _change(
        self, subject: str, found: _State | None, judge: Callable[[Document], tuple[Document, Sequence[Incident]]]
    ) -> None:
        """Store the new state of a subject and its incidents, unless another process has changed it meanwhile."""
        state = found or _State(subject)
        if state.incidents:
            await self._copy_and_strike(state)
        values, incidents = judge(state.values)
        if values == state.values:
            return
        new = _State(subject, state.revision + 1, values, [incident.as_document() for incident in incidents])
        fields = {"revision": new.revision, "values": values, "incidents": new.incidents}
        if found is None:
            try:
                await self._states.insert_one({"_id": subject, **fields})
            except DuplicateKeyError:
                return
        else:
            unchanged = {"_id": subject, "revision": state.revision}
            if not (await self._states.update_one(unchanged, {"$set": fields})).matched_count:
                return
        self._failpoint(INCIDENT_DECIDED)
        if new.incidents:
            await self._copy_and_strike(new)

    async def _copy_and_strike(self, state: _State) -> None:
        await self._copy(state.incidents)
        unchanged = {"_id": state.subject, "revision": state.revision}
        await self._states.update_one(unchanged, {"$set": {"incidents": []}})

    async def _copy(self, documents: Sequence[Document]) -> None:
        stamp = {"recordedAt": self._clock() if self._clock is not None else "$$NOW"}
        is_new = {"$eq": [{"$type": "$recordedAt"}, "missing"]}
        writes = [
            UpdateOne(
                {"_id": document["_id"]},
                [{"$replaceWith": {"$cond": [is_new, {"$mergeObjects": [{"$literal": document}, stamp]}, "$$ROOT"]}}],
                upsert=True,
            )
            for document in documents
        ]
        if writes:
            await self._incidents.bulk_write(writes, ordered=False)


def _state(document: Document) -> _State:
    return _State(document["_id"], document["revision"], document["values"], document["incidents"])


def _known(values: Document) -> Known | None:
    return Known(values["state"], tuple(values["changes"]), values["flapping"]) if values else None

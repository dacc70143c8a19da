"""The collection `pauses`: one document for each inbox whose pauses a service knows, above all its own.

The document of another service is a copy, which its messages bring up to date: only the order service has those.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pymongo.errors import DuplicateKeyError

from shared.contracts import ConsumerPausesChanged, PauseTimes
from shared.database import Database, Document
from shared.errors import TransientError
from shared.pausing.pause import Pause, Pauses, begun, ended
from shared.schema import CollectionSchema

COLLECTION = "pauses"
SCHEMA = CollectionSchema()

_ATTEMPTS = 10
_TICK = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class PauseRecord:
    """What is recorded about an inbox.

    `announced_at` is when the order service was last told of this state; `heard_at` is when the service that has this
    copy last heard of it, None for a service's own record.
    """

    service: str
    changed_at: datetime
    pauses: tuple[Pause, ...]
    announced_at: datetime | None = None
    heard_at: datetime | None = None

    def message(self) -> ConsumerPausesChanged:
        """Return what the order service is told: the times, and nothing about people."""
        times = tuple(PauseTimes(since=p.since, until=p.until, ended_at=p.ended_at) for p in self.pauses)
        return ConsumerPausesChanged(service=self.service, changed_at=self.changed_at, pauses=times)


class PauseRecords:
    """Reads and updates of the collection; errors of the driver pass through unchanged."""

    def __init__(self, database: Database) -> None:
        self._collection = database[COLLECTION]

    async def find(self, service: str) -> PauseRecord | None:
        """Return the record of a service's inbox, None if it was never paused."""
        found = await self._collection.find_one({"_id": service})
        return _record(found) if found else None

    async def all(self) -> list[PauseRecord]:
        """Return the record of every inbox that is known."""
        return [_record(document) async for document in self._collection.find()]

    async def begin(
        self, service: str, now: datetime, *, by: str, reason: str, until: datetime | None
    ) -> tuple[Pause, ...]:
        """Record that an inbox is paused, or a new reason and end of the pause that is running."""
        for _ in range(_ATTEMPTS):
            record = await self.find(service)
            pauses = begun(record.pauses if record else (), now, by=by, reason=reason, until=until)
            if await self._replace(service, record, pauses, now):
                return pauses
        raise TransientError(f"others changed the pause {_ATTEMPTS} times meanwhile")

    async def end(self, service: str, now: datetime) -> tuple[Pause, ...] | None:
        """Record that the running pause has ended; None if there is none."""
        for _ in range(_ATTEMPTS):
            record = await self.find(service)
            pauses = ended(record.pauses, now) if record else None
            if pauses is None:
                return None
            if await self._replace(service, record, pauses, now):
                return pauses
        raise TransientError(f"others changed the pause {_ATTEMPTS} times meanwhile")

    async def note_announced(self, record: PauseRecord, now: datetime) -> None:
        """Note that the order service was told of this state, unless it has changed meanwhile."""
        same = {"_id": record.service, "changedAt": record.changed_at}
        await self._collection.update_one(same, {"$set": {"announcedAt": now}})

    async def copy(self, message: ConsumerPausesChanged, now: datetime) -> None:
        """Store what another service has told about its inbox, and when, unless something newer is known."""
        pauses = tuple(Pause(times.since, times.until, times.ended_at) for times in message.pauses)
        not_newer = {"_id": message.service, "changedAt": {"$lte": message.changed_at}}
        document = {**_document(message.service, message.changed_at, pauses), "heardAt": now}
        try:
            await self._collection.replace_one(not_newer, document, upsert=True)
        except DuplicateKeyError:  # a newer one is known
            return

    async def _replace(self, service: str, before: PauseRecord | None, pauses: Pauses, now: datetime) -> bool:
        """Store a state over the one that it was decided on; return False if that has changed."""
        # A clock that runs behind must not make a newer state look like an older one.
        changed_at = max(now, before.changed_at + _TICK) if before else now
        document = _document(service, changed_at, pauses)
        if before is None:
            try:
                await self._collection.insert_one(document)
            except DuplicateKeyError:
                return False
            return True
        result = await self._collection.replace_one({"_id": service, "changedAt": before.changed_at}, document)
        return result.matched_count == 1


def _document(service: str, changed_at: datetime, pauses: Pauses) -> Document:
    return {"_id": service, "changedAt": changed_at, "pauses": [_stored(pause) for pause in pauses]}


def _stored(pause: Pause) -> Document:
    fields = {
        "since": pause.since,
        "until": pause.until,
        "endedAt": pause.ended_at,
        "by": pause.by,
        "reason": pause.reason,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _record(document: Mapping[str, Any]) -> PauseRecord:
    stored: Sequence[Mapping[str, Any]] = document["pauses"]
    pauses = tuple(
        Pause(each["since"], each.get("until"), each.get("endedAt"), each.get("by"), each.get("reason"))
        for each in stored
    )
    return PauseRecord(
        document["_id"], document["changedAt"], pauses, document.get("announcedAt"), document.get("heardAt")
    )

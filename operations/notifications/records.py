"""Keeps rules and messages; each message is opened once over all processes, and sent at least once.

A message is opened in two steps: it is inserted under an id that comes from its rule and where the last one ended, and
then the rule moves on to where this one ends. A process that ends in between, or is overtaken, changes nothing: the
next one finds the message and only moves the rule on.

    pending ──▶ sent
       └──────▶ failed, after the last attempt or if no attempt can succeed
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from pymongo import ASCENDING, DESCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from operations.incidents.incident import incident_of
from operations.incidents.records import IncidentFilter, IncidentRecords
from operations.notifications.mail import Sent
from operations.notifications.message import Message, collected
from operations.notifications.rules import MARGIN, RETRIES, Rule, is_due, next_attempt
from operations.notifications.schema import NOTIFICATIONS, RULES
from shared.clock import Clock, utc_now
from shared.database import Database, Document

LEASE = timedelta(minutes=2)
"""Longer than an attempt takes; after it, the process that made one has ended."""

RECENT = timedelta(days=1)
"""How long a message that could not be sent counts as failing."""

LATE = timedelta(minutes=10)
"""How long a message may wait before it counts as failing: several attempts have failed."""

PENDING, SENT, FAILED = "pending", "sent", "failed"

MOST_RULES = 50


class NotificationRecords:
    """The operations on the records; methods let the driver's errors out."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        """With a clock, all times are by it; without, those of incidents by the server, and leases by this process."""
        self._rules = database[RULES]
        self._messages = database[NOTIFICATIONS]
        self._incidents = IncidentRecords(database, clock=clock)
        self._clock = clock or utc_now

    # --- Rules. ---

    async def add(self, rule: Rule) -> bool:
        """Store a rule; what was recorded before is not sent. False if there is one of this name, or too many."""
        if await self._rules.count_documents({}) >= MOST_RULES:
            return False
        try:
            await self._rules.insert_one(_document(rule) | {"until": await self._incidents.stamping_time()})
        except DuplicateKeyError:
            return False
        return True

    async def change(self, name: str, changes: Mapping[str, Any]) -> Rule | None:
        """Set these fields of a rule, and no others, and return it; None if there is none of this name.

        What was recorded while it was off is not sent.
        """
        if changes.get("enabled"):
            await self.enable(name, True)
        query = {"_id": name}
        after = ReturnDocument.AFTER
        found = await self._rules.find_one_and_update(query, {"$set": dict(changes)}, return_document=after)
        return _rule(found) if found else None

    async def remove(self, name: str) -> bool:
        """Delete a rule; False if there is none of this name."""
        return (await self._rules.delete_one({"_id": name})).deleted_count == 1

    async def enable(self, name: str, enabled: bool) -> bool:
        """Turn a rule on or off; what is recorded while it is off is never sent. False if there is no such rule."""
        changes: Document = {"enabled": enabled} | ({"until": await self._incidents.stamping_time()} if enabled else {})
        changed = await self._rules.update_one({"_id": name, "enabled": {"$ne": enabled}}, {"$set": changes})
        return bool(changed.matched_count) or await self.find(name) is not None

    async def find(self, name: str) -> Rule | None:
        """Return a rule."""
        document = await self._rules.find_one({"_id": name})
        return _rule(document) if document else None

    async def rules(self) -> list[Rule]:
        """Return all rules by name."""
        return [_rule(document) async for document in self._rules.find({}, sort=[("_id", ASCENDING)])]

    # --- Messages. ---

    async def open_due(self) -> None:
        """Open the messages that are due."""
        now = await self._incidents.stamping_time()
        async for document in self._rules.find({"enabled": True}):
            await self._open(document, now)

    async def open_test(self, rule: Rule) -> str:
        """Open a test message of a rule, and return its id."""
        test_id, now = f"test-{uuid4().hex[:16]}", self._clock()
        await self._messages.insert_one(_message(rule, now) | {"_id": test_id, "test": True, **collected([])})
        return test_id

    async def claim(self, full: Collection[str] = ()) -> Document | None:
        """Return a message to send now, by no channel that is full, which no other process sends; None if none."""
        now = self._clock()
        free: Document = {"status": PENDING, "dueAt": {"$lte": now}, "$or": [{"lease": None}, {"lease": {"$lte": now}}]}
        free["channel"] = {"$nin": list(full)}
        async for candidate in self._messages.find(free, {"_id": True}, sort=[("dueAt", ASCENDING)]):
            taken = await self._messages.find_one_and_update(
                {"_id": candidate["_id"]} | free,
                {"$set": {"lease": now + LEASE}, "$inc": {"attempts": 1}},
                return_document=ReturnDocument.AFTER,
            )
            if taken is None:
                continue
            if taken["attempts"] <= len(RETRIES) + 1:
                return taken
            await self.record(taken, Sent(False, "No attempt has ended: each time, the process that made it did first"))
        return None

    async def record(self, message: Document, sent: Sent) -> None:
        """Record what came of an attempt, unless another process has begun the next one.

        A failure is tried again later, except that of a test.
        """
        now = self._clock()
        again = next_attempt(message["attempts"], now) if sent.again and not message.get("test") else None
        status = SENT if sent.ok else (PENDING if again else FAILED)
        changes: Document = {"status": status, "words": sent.words, "lease": None, "triedAt": now}
        if status == PENDING:
            changes["dueAt"] = again
        if sent.left:
            changes["to"] = list(sent.left)
        mine = {"_id": message["_id"], "status": PENDING, "attempts": message["attempts"]}
        await self._messages.update_one(mine, {"$set": changes})

    async def message(self, message_id: str) -> Document | None:
        """Return the record of a message."""
        return await self._messages.find_one({"_id": message_id})

    async def latest(self, limit: int) -> list[Document]:
        """Return the newest messages, without their incidents."""
        newest = [("at", DESCENDING)]
        return await self._messages.find({}, {"incidents": False}, sort=newest, limit=limit).to_list(None)

    async def count_failing(self, now: datetime) -> int:
        """Count the messages that could not be sent within RECENT, and those that have waited for longer than LATE."""
        failed = {"status": FAILED, "triedAt": {"$gte": now - RECENT}}
        late = {"status": PENDING, "at": {"$lte": now - LATE}}
        return await self._messages.count_documents({"$or": [failed, late], "test": {"$ne": True}})

    async def _open(self, document: Document, now: datetime) -> None:
        """Open the message of a rule if it is due; `now` is by the clock that stamps incidents, and so is `until`."""
        rule, since = _rule(document), document["until"]
        wanted = IncidentFilter(rule.kinds, rule.severities, rule.services)
        found = await self._incidents.recorded(wanted, since, now - MARGIN)
        if not found or not is_due(found[0]["recordedAt"], document.get("lastMessageAt"), now):
            return
        opened = _message(rule, now) | collected(found) | {"until": now - MARGIN}
        stored = await self._messages.find_one_and_update(
            {"_id": f"{rule.name}-{int(since.timestamp() * 1000)}"},
            {"$setOnInsert": opened},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        if stored is None:
            return  # it was deleted by its age in this moment
        moved = {"until": stored["until"], "lastMessageAt": stored["at"]}
        await self._rules.update_one({"_id": rule.name, "until": since}, {"$set": moved})


def message_of(document: Mapping[str, Any], public_url: str | None) -> Message:
    """Return the message of a record."""
    return Message(
        document["_id"],
        document["rule"],
        document["at"],
        [incident_of(each) for each in document["incidents"]],
        document["counts"],
        f"{public_url}/incidents" if public_url else None,
        bool(document.get("test")),
    )


def _message(rule: Rule, now: datetime) -> Document:
    return {
        "rule": rule.name,
        "channel": rule.channel,
        "to": list(rule.to),
        "at": now,
        "dueAt": now,
        "status": PENDING,
        "attempts": 0,
    }


def _document(rule: Rule) -> Document:
    fields = rule.as_json()
    return {"_id": fields.pop("name"), **fields}


def _rule(document: Document) -> Rule:
    lists = {name: tuple(document[name]) for name in ("to", "kinds", "severities", "services")}
    return Rule(document["_id"], document["channel"], **lists, enabled=document["enabled"])

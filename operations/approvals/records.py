"""The records of acts that need a second person.

    pending ──▶ approved ──▶ executing ──▶ done, or not done
       │                         └───────▶ outcome unknown: the process ended while it acted
       ├──▶ rejected
       └──▶ expired, 24 hours after it was asked for

Each step is one guarded write, so an act is decided once and executed at most once, by whatever process. One that was
approved is executed even if the process that took the decision ends: any other continues.
"""

import contextlib
from datetime import timedelta
from uuid import uuid4

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from operations.actions import record_action
from operations.approvals.policy import ApprovalPolicy, policy_of
from operations.approvals.schema import APPROVALS, POLICY
from operations.sign_in.person import Person, person_of
from shared.clock import Clock, utc_now
from shared.database import Database, Document
from shared.errors import RefusalError

VALID_FOR = timedelta(hours=24)
LONGEST_ACT = timedelta(minutes=2)
"""An act that has been executing for longer has lost its process."""

PENDING, APPROVED, EXECUTING, REJECTED = "pending", "approved", "executing", "rejected"
DONE, NOT_DONE, UNKNOWN, EXPIRED = "done", "not done", "outcome unknown", "expired"


class NotDecidableError(RefusalError):
    """An act that needs a second person is not pending any more, or this person must not decide about it."""


class ApprovalRecords:
    """Asks for acts, decides about them, and hands each out for execution once."""

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._approvals = database[APPROVALS]
        self._clock = clock

    async def policy(self) -> ApprovalPolicy:
        """Return the policy that the console published."""
        return policy_of(await self._database[POLICY].find_one({"_id": "policy"}))

    async def publish(self, policy: ApprovalPolicy) -> None:
        """Store the policy, so that commands obey it wherever they run."""
        await self._database[POLICY].replace_one({"_id": "policy"}, policy.as_document(), upsert=True)

    async def ask(
        self,
        person: Person,
        *,
        action: str,
        subject: str,
        why: str,
        parameters: Document,
        approval_id: str | None = None,
    ) -> str:
        """Record an act that a person asks for, with all that its execution needs; return the id.

        With an id that was used before, nothing is recorded again.
        """
        now = self._clock()
        record: Document = {
            "_id": approval_id or uuid4().hex[:16],
            "at": now,
            "expiresAt": now + VALID_FOR,
            "by": person.as_document(),
            "why": why,
            "action": action,
            "subject": subject,
            "parameters": parameters,
            "status": PENDING,
        }
        try:
            await self._approvals.insert_one(record)
        except DuplicateKeyError:
            return str(record["_id"])
        await self._log(person.label, record, "asked for a second person")
        return str(record["_id"])

    async def find_asked(self, subject: str, parameters: Document) -> Document | None:
        """Return the record of an act on this subject that was asked for with these parameters."""
        return await self._approvals.find_one({"subject": subject, "parameters": parameters})

    async def count(self) -> int:
        """Count all records."""
        return await self._approvals.count_documents({})

    async def newest(self, limit: int, skip: int = 0) -> list[Document]:
        """Return the newest records, without the first `skip`, with the status `expired` where the time is over."""
        found = await self._approvals.find(sort=[("at", -1)], skip=skip, limit=limit).to_list(None)
        return [self._current(record) for record in found]

    async def find(self, approval_id: str) -> Document | None:
        """Return a record, with the status `expired` if the time is over."""
        record = await self._approvals.find_one({"_id": approval_id})
        return self._current(record) if record else None

    def _current(self, record: Document) -> Document:
        is_over = record["status"] == PENDING and record["expiresAt"] <= self._clock()
        return record | {"status": EXPIRED} if is_over else record

    async def decide(self, approval_id: str, person: Person, *, approve: bool) -> None:
        """Approve or reject an act.

        Raises NotDecidableError if it is not pending, or if the same person asked for it, in whatever session.
        """
        status, now = APPROVED if approve else REJECTED, self._clock()
        record = await self._approvals.find_one_and_update(
            {
                "_id": approval_id,
                "status": PENDING,
                "expiresAt": {"$gt": now},
                "by.subject": {"$ne": person.subject},
            },
            {"$set": {"status": status, "decidedBy": person.as_document(), "decidedAt": now}},
        )
        if record is None:
            raise NotDecidableError(await self._why_not(approval_id, person))
        await self._log(person.label, record, f"{status}, for {person_of(record['by']).label}")

    async def claim(self) -> Document | None:
        """Return an approved act to execute, which no other call returns; None if there is none."""
        return await self._take({"status": APPROVED}, {"status": EXECUTING, "startedAt": self._clock()})

    async def finish(self, record: Document, status: str, outcome: str) -> None:
        """Record what came of an act that was claimed."""
        await self._approvals.update_one(
            {"_id": record["_id"], "status": EXECUTING}, {"$set": {"status": status, "outcome": outcome}}
        )

    async def give_up_lost(self) -> None:
        """Mark acts whose process ended: they may be done, and must not be done twice."""
        before = self._clock() - LONGEST_ACT
        outcome = "the process ended while it acted: check what came of it"
        lost: Document = {"status": EXECUTING, "startedAt": {"$lte": before}}
        while record := await self._take(lost, {"status": UNKNOWN, "outcome": outcome}):
            await self._log(person_of(record["by"]).label, record, f"{UNKNOWN}: {outcome}")

    async def _take(self, query: Document, changes: Document) -> Document | None:
        """Change one record of a query that it leaves by that; return it, None if there is none.

        A sharded collection needs the `_id` for this, so the query only finds candidates.
        """
        async for candidate in self._approvals.find(query, {"_id": True}):
            taken = await self._approvals.find_one_and_update(
                {**query, "_id": candidate["_id"]}, {"$set": changes}, return_document=ReturnDocument.AFTER
            )
            if taken is not None:
                return taken
        return None

    async def _why_not(self, approval_id: str, person: Person) -> str:
        record = await self.find(approval_id)
        if record is None:
            return f"there is no request {approval_id}"
        if record["status"] != PENDING:
            with contextlib.suppress(KeyError):
                return f"it is {record['status']}: {person_of(record['decidedBy']).label} has decided"
        if record["expiresAt"] <= self._clock():
            return "it has expired: ask for it again"
        return f"{person.name} asked for it: another person must decide"

    async def _log(self, by: str, record: Document, outcome: str) -> None:
        await record_action(
            self._database,
            by=by,
            why=record["why"],
            action=record["action"],
            subject=record["subject"],
            outcome=outcome,
        )

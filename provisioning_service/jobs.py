"""The collection `jobs`: one job per order; `_id` is the order id.

    {_id, state, step, userId, ownerId, package, lockKey, packageId, ram, run, cancelRun, fence, version,
     line, dueAt, waitingSince, needsLock, missedTurns, missedAt, buys, looks,
     purchase: {asked, freeBefore, startedAt, restUntil, answered, settled, looked, trouble},
     ip, wrongIps, server: {ip, username, os, expiresAt}, credentials (encrypted), failureReason, failureCode,
     customerReason,
     retryable, attempts: [{step, at, outcome, detail}], sequence,
     outbox: [{sequence, routingKey, body}], outboxSince, traceparent, requestedAt, createdAt, updatedAt}

Empty fields are not stored. Every write is guarded by the version that it starts from, and a worker's write by the
fence of its claim. Fields that others may change concurrently are updated with operators that lose nothing:
`cancelRun` only grows, `attempts` and `outbox` are appended to.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError

from provisioning_service.addresses import package_key
from provisioning_service.job import Attempt, Job, OutboxMessage, Purchase, State, Step
from provisioning_service.lifecycle import claimed
from shared import database
from shared.access.principal import EVERYTHING, Visible
from shared.contracts.provisioning import Server
from shared.database import Collection, Document
from shared.errors import OwnershipLostError
from shared.schema import CollectionSchema

COLLECTION = "jobs"

MAX_ATTEMPTS = 200
"""A job keeps its latest attempts only, because it may wait in its queue for days."""

_log = structlog.get_logger(__name__)

SCHEMA = CollectionSchema(
    (
        IndexModel([("state", ASCENDING), ("_id", ASCENDING)], name="by_state"),
        IndexModel([("lockKey", ASCENDING), ("_id", ASCENDING)], name="by_lock_key"),
        # For the lists of operations, which name the states even if all are wanted.
        IndexModel([("state", ASCENDING), ("createdAt", DESCENDING), ("_id", DESCENDING)], name="by_state_and_age"),
        IndexModel(
            [("ownerId", ASCENDING), ("_id", ASCENDING)],
            name="by_owner",
            partialFilterExpression={"ownerId": {"$exists": True}},
        ),
        IndexModel(
            [("lockKey", ASCENDING), ("line", ASCENDING), ("dueAt", ASCENDING)],
            name="lines",
            partialFilterExpression={"needsLock": True},
        ),
        IndexModel(
            [("purchase.restUntil", ASCENDING)], name="unanswered", partialFilterExpression={"purchase.answered": False}
        ),
        IndexModel([("dueAt", ASCENDING)], name="due", partialFilterExpression={"dueAt": {"$exists": True}}),
        IndexModel(
            [("outboxSince", ASCENDING)], name="unpublished", partialFilterExpression={"outboxSince": {"$exists": True}}
        ),
    )
)

_FIELDS: Mapping[str, str] = {
    "state": "state",
    "step": "step",
    "user_id": "userId",
    "owner_id": "ownerId",
    "package": "package",
    "package_id": "packageId",
    "ram": "ram",
    "run": "run",
    "fence": "fence",
    "queue_position": "line",
    "due_at": "dueAt",
    "waiting_since": "waitingSince",
    "lock_timeouts": "missedTurns",
    "lock_timed_out_at": "missedAt",
    "buy_attempts": "buys",
    "status_attempts": "looks",
    "ip": "ip",
    "wrong_ips": "wrongIps",
    "credentials": "credentials",
    "failure_reason": "failureReason",
    "failure_code": "failureCode",
    "customer_reason": "customerReason",
    "retryable": "retryable",
    "sequence": "sequence",
    "traceparent": "traceparent",
    "requested_at": "requestedAt",
    "created_at": "createdAt",
    "updated_at": "updatedAt",
}


class JobClaimLostError(OwnershipLostError):
    """Another worker has taken the job over, so the outdated write was rejected."""


class Jobs:
    """Reads and writes of the collection; driver errors pass through."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def insert(self, jobs: Sequence[Job]) -> list[Job]:
        """Insert jobs of different orders unless they exist; return the jobs as they are recorded."""
        if not jobs:
            return []
        try:
            await self._collection.insert_many([_document(job) for job in jobs], ordered=False)
        except BulkWriteError as error:
            existing = await self.read(database.duplicates(error))
            return [existing.get(job.order_id, job) for job in jobs]
        return list(jobs)

    async def read(self, order_ids: Iterable[str]) -> dict[str, Job]:
        """Return the jobs that exist, by order, also those that a new primary does not show to other reads yet."""
        documents = await database.find_existing(self._collection, order_ids)
        return {document["_id"]: job_of(document) for document in documents}

    async def find(self, order_id: str, visible: Visible = EVERYTHING) -> Job | None:
        """Return one job, None if there is none that is visible."""
        document = await self._collection.find_one({"_id": order_id, **visible})
        return job_of(document) if document else None

    async def page(
        self,
        state: State | None,
        package: str | None,
        *,
        after: str | None,
        limit: int,
        visible: Visible = EVERYTHING,
    ) -> list[Job]:
        """Return a page of visible jobs by order id, optionally of one state or package, after the given id."""
        query: dict[str, Any] = {"state": state, **visible} if state else dict(visible)
        if package is not None:
            query["lockKey"] = package_key(package)
        if after is not None:
            query["_id"] = {"$gt": after}
        cursor = self._collection.find(query).sort("_id", ASCENDING).limit(limit)
        return [job_of(document) async for document in cursor]

    # --- Without a claim: for messages, and for waits that took too long. ---

    async def change(self, before: Job, after: Job) -> bool:
        """Store the new state of a job without a worker; return False if it has changed since it was read."""
        query = {"_id": before.order_id, "version": _version(before)}
        return (await self._collection.update_one(query, _update(before, after))).matched_count == 1

    async def request_cancel(self, order_id: str, run: int) -> bool:
        """Ask the worker of the run to stop before it buys; return False if the job has no worker any more."""
        query = {"_id": order_id, "state": State.RUNNING}
        return (await self._collection.update_one(query, {"$max": {"cancelRun": run}})).matched_count == 1

    # --- Under a claim. ---

    async def queue_heads(self, now: datetime, skipped: Sequence[str], limit: int) -> list[Job]:
        """Return the first due job of each package's queue, except for the `skipped` packages.

        If there are more than `limit`, return those that came first.
        """
        if limit <= 0:
            return []
        pipeline: list[Mapping[str, Any]] = [
            {"$match": {"needsLock": True, "lockKey": {"$nin": list(skipped)}, "dueAt": {"$lte": now}}},
            {"$sort": {"lockKey": 1, "line": 1}},
            {"$group": {"_id": "$lockKey", "first": {"$first": "$_id"}, "line": {"$first": "$line"}}},
            {"$sort": {"line": 1}},
            {"$limit": limit},
        ]
        found = [row["first"] async for row in database.aggregate(self._collection, pipeline)]
        return sorted(await self._readable({"_id": {"$in": found}}, limit=limit), key=lambda job: job.queue_position)

    async def due_without_lock(self, now: datetime, limit: int) -> list[Job]:
        """Return due jobs that need no lock, the longest overdue first."""
        query = {"dueAt": {"$lte": now}, "needsLock": {"$exists": False}}
        return await self._readable(query, sort="dueAt", limit=limit)

    async def waiting_in_queue(self, lock_key: str, waiting_before: datetime, limit: int) -> list[Job]:
        """Return the jobs that have waited in the package's queue since this time or longer, in their order."""
        query = {
            "needsLock": True,
            "lockKey": lock_key,
            "waitingSince": {"$lte": waiting_before},
            "state": {"$in": [State.QUEUED, State.WAITING]},
        }
        return await self._readable(query, sort="line", limit=limit)

    async def first_waiting(
        self, lock_keys: Sequence[str], waiting_before: datetime
    ) -> list[tuple[str, str, datetime]]:
        """Return package, order and start of each queue's first wait that has lasted since this time or longer."""
        pipeline: list[Mapping[str, Any]] = [
            {
                "$match": {
                    "needsLock": True,
                    "lockKey": {"$in": list(lock_keys)},
                    "waitingSince": {"$lte": waiting_before},
                    "state": {"$in": [State.QUEUED, State.WAITING]},
                }
            },
            {"$sort": {"lockKey": 1, "line": 1}},
            {"$group": {"_id": "$lockKey", "first": {"$first": "$_id"}, "since": {"$first": "$waitingSince"}}},
        ]
        found = database.aggregate(self._collection, pipeline)
        return [(row["_id"], row["first"], row["since"]) async for row in found]

    async def claim(self, job: Job, now: datetime, lease: timedelta) -> Job | None:
        """Claim a due job; return None if it has ended, been claimed or changed since it was read."""
        query = {"_id": job.order_id, "version": _version(job), "dueAt": {"$lte": now}}
        return await self._write(query, job, claimed(job, now, lease))

    async def renew(self, job: Job, until: datetime) -> bool:
        """Extend the claim; return False if it is lost."""
        query = {"_id": job.order_id, "fence": job.fence, "state": State.RUNNING}
        return (await self._collection.update_one(query, {"$set": {"dueAt": until}})).matched_count == 1

    async def record(self, before: Job, after: Job, *, unless_cancelled: bool = False) -> Job:
        """Store a worker's step; return the recorded job, including a cancellation that arrived meanwhile.

        With `unless_cancelled`, a cancelled job is returned unchanged. Repeating the call after an error is harmless.
        Raises JobClaimLostError if the claim is lost.
        """
        query: Document = {"_id": before.order_id, "fence": before.fence, "version": before.version}
        if unless_cancelled:
            query["$or"] = [{"cancelRun": {"$exists": False}}, {"cancelRun": {"$lt": before.run}}]
        recorded = await self._write(query, before, after) or await self.find(before.order_id)
        if recorded is None or recorded.fence != before.fence or recorded.version > before.version + 1:
            raise JobClaimLostError(f"order {before.order_id} is no longer claimed with fence {before.fence}")
        return recorded

    async def requeue(self, job: Job, now: datetime) -> None:
        """Return a claim unfinished, whatever was last written under it: the job is due again, at its old position."""
        given_up = {"state": State.QUEUED, "dueAt": now, "waitingSince": now, "updatedAt": now}
        query = {"_id": job.order_id, "fence": job.fence, "state": State.RUNNING}
        # The new fence rejects a write of ours that is still in flight.
        await self._collection.update_one(query, {"$set": given_up, "$inc": {"version": 1, "fence": 1}})

    async def asked_by_others(self, job: Job, now: datetime) -> set[str]:
        """Return the addresses that other jobs may be buying at this moment, including failed jobs.

        It covers all packages: one may lie inside another, and a lock may have been cleared under its holder.
        """
        query = {
            "purchase.answered": False,
            "_id": {"$ne": job.order_id},
            "$or": [{"needsLock": True}, {"purchase.restUntil": {"$gt": now}}],
        }
        cursor = self._collection.find(query, {"purchase.asked": True})
        return {ip async for document in cursor for ip in document["purchase"]["asked"]}

    async def _readable(self, query: Document, *, sort: str = "_id", limit: int) -> list[Job]:
        """Return the jobs of a query, skipping unreadable ones so that they block no other job."""
        jobs = []
        async for document in self._collection.find(query).sort(sort, ASCENDING).limit(limit):
            try:
                jobs.append(job_of(document))
            except (KeyError, TypeError, ValueError) as error:
                _log.error("skipping an unreadable job", order_id=document["_id"], error=repr(error))
        return jobs

    async def _write(self, query: Document, before: Job, after: Job) -> Job | None:
        document = await self._collection.find_one_and_update(
            query, _update(before, after), return_document=ReturnDocument.AFTER
        )
        return job_of(document) if document else None

    # --- Messages to publish. ---

    async def unpublished(self, before: datetime, limit: int) -> list[Job]:
        """Return the jobs with messages unpublished since this time or longer, the longest first."""
        return await self._readable({"outboxSince": {"$lte": before}}, sort="outboxSince", limit=limit)

    async def mark_published(self, published: Sequence[tuple[str, int]]) -> None:
        """Record, per order, that all messages up to this sequence number are published."""
        await self._collection.bulk_write(
            [UpdateOne({"_id": order_id}, _without_messages(sequence)) for order_id, sequence in published],
            ordered=False,
        )


def _version(job: Job) -> int | Document:
    """Return the version for a filter; jobs from before versions were counted have none."""
    return job.version or {"$in": [0, None]}


def _without_messages(up_to: int) -> list[Document]:
    left = {"$filter": {"input": {"$ifNull": ["$outbox", []]}, "cond": {"$gt": ["$$this.sequence", up_to]}}}
    nothing = {"$eq": [{"$size": "$outbox"}, 0]}
    return [
        {"$set": {"outbox": left}},
        {"$set": {"outboxSince": {"$cond": [nothing, "$$REMOVE", "$outboxSince"]}}},
        {"$set": {"outbox": {"$cond": [nothing, "$$REMOVE", "$outbox"]}}},
    ]


def _update(before: Job, after: Job) -> Document:
    old, new = _fields(before), _fields(after)
    change: Document = {"$set": {"updatedAt": after.updated_at}, "$inc": {"version": 1}}
    change["$set"] |= {name: value for name, value in new.items() if old.get(name) != value}
    if after.due_at is not None and after.state is not State.RUNNING:
        change["$set"]["dueAt"] = after.due_at  # renewals have moved it since the job was read
    if gone := old.keys() - new.keys():
        change["$unset"] = dict.fromkeys(gone, "")
    pushed = {
        "attempts": [_attempt(attempt) for attempt in after.attempts[len(before.attempts) :]],
        "outbox": [_outbox_message(notice) for notice in after.outbox if notice.sequence > before.sequence],
    }
    pushes: Document = {name: {"$each": values} for name, values in pushed.items() if values}
    if "attempts" in pushes:
        pushes["attempts"]["$slice"] = -MAX_ATTEMPTS
    if pushes:
        change["$push"] = pushes
    if pushed["outbox"]:
        change["$set"]["outboxSince"] = after.updated_at
    if after.cancel_run > before.cancel_run:
        change["$max"] = {"cancelRun": after.cancel_run}
    return change


def _document(job: Job) -> Document:
    """Build the document of a new job."""
    document = {
        "_id": job.order_id,
        **_fields(job),
        "version": 0,
        "attempts": [_attempt(attempt) for attempt in job.attempts],
    }
    if job.cancel_run:
        document["cancelRun"] = job.cancel_run
    if job.outbox:
        document |= {"outbox": [_outbox_message(notice) for notice in job.outbox], "outboxSince": job.updated_at}
    return document


def _fields(job: Job) -> Document:
    """Build the fields that are replaced as a whole; empty ones are left out."""
    document = {stored: getattr(job, name) for name, stored in _FIELDS.items()}
    document["wrongIps"] = list(job.wrong_ips) or None
    document["lockKey"] = job.lock_key
    document["needsLock"] = job.needs_lock or None
    if job.purchase is not None:
        document["purchase"] = _purchase(job.purchase)
    if job.server is not None:
        document["server"] = job.server.model_dump(by_alias=True)
    return {name: value for name, value in document.items() if value is not None}


def _purchase(purchase: Purchase) -> Document:
    return {
        "asked": list(purchase.asked),
        "freeBefore": list(purchase.free_before),
        "startedAt": purchase.started_at,
        "restUntil": purchase.no_retry_before,
        "answered": purchase.answered,
        "settled": purchase.failed,
        "looked": purchase.searched,
        "trouble": purchase.error,
    }


def _attempt(attempt: Attempt) -> Document:
    return asdict(attempt)


def _outbox_message(notice: OutboxMessage) -> Document:
    return {"sequence": notice.sequence, "routingKey": notice.routing_key, "body": notice.body}


def job_of(document: Document) -> Job:
    """Build the job from its document, which is trusted and not validated."""
    fields = {name: document[stored] for name, stored in _FIELDS.items() if stored in document}
    job = Job(order_id=document["_id"], version=document.get("version", 0), **fields)
    purchase, server = document.get("purchase"), document.get("server")
    return replace(
        job,
        state=State(job.state),
        step=Step(job.step),
        cancel_run=document.get("cancelRun", 0),
        wrong_ips=tuple(job.wrong_ips),
        purchase=_stored_purchase(purchase) if purchase else None,
        server=Server.model_construct(**_server_fields(server)) if server else None,
        attempts=tuple(
            Attempt(Step(a["step"]), a["at"], a["outcome"], a["detail"]) for a in document.get("attempts", ())
        ),
        outbox=tuple(OutboxMessage(n["sequence"], n["routingKey"], n["body"]) for n in document.get("outbox", ())),
        outbox_since=document.get("outboxSince"),
    )


def _stored_purchase(document: Document) -> Purchase:
    return Purchase(
        asked=tuple(document["asked"]),
        free_before=tuple(document["freeBefore"]),
        started_at=document["startedAt"],
        no_retry_before=document["restUntil"],
        answered=document["answered"],
        failed=document["settled"],
        searched=document["looked"],
        error=document["trouble"],
    )


def _server_fields(document: Document) -> Document:
    return {
        "ip": document["ip"],
        "username": document.get("username"),
        "os": document.get("os"),
        "expires_at": document.get("expiresAt"),
    }

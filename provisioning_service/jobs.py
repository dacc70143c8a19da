"""The records of jobs: the collection `jobs`, one document per order, `_id` the order id.

{_id, state, userId, package, packageId, ram, failureReason, retryable, createdAt, updatedAt}
"""

from collections.abc import Sequence
from typing import Any

from pymongo import ASCENDING, IndexModel
from pymongo.errors import BulkWriteError

from provisioning_service.lifecycle import Job, State
from shared import database
from shared.database import Collection, Document

COLLECTION = "jobs"

INDEXES = (
    IndexModel([("state", ASCENDING), ("_id", ASCENDING)], name="by_state"),
    IndexModel([("package", ASCENDING), ("_id", ASCENDING)], name="by_package"),
)


class Jobs:
    """What can be done with the collection; a driver's error passes through as it is."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def open(self, jobs: Sequence[Job]) -> list[Job]:
        """Insert the jobs, of different orders, and return them as they are recorded: one that exists stays."""
        try:
            await self._collection.insert_many([_document(job) for job in jobs], ordered=False)
        except BulkWriteError as error:
            ids = database.duplicates(error)
            existing = {d["_id"]: _job(d) async for d in self._collection.find({"_id": {"$in": list(ids)}})}
            return [existing.get(job.order_id, job) for job in jobs]
        return list(jobs)

    async def find(self, order_id: str) -> Job | None:
        """Return one job, None if there is none."""
        document = await self._collection.find_one({"_id": order_id})
        return _job(document) if document else None

    async def page(self, state: State | None, package: str | None, *, after: str | None, limit: int) -> list[Job]:
        """Return jobs, of one state or package or all, in the order of their ids, from after the given one on."""
        query: dict[str, Any] = {"state": state} if state else {}
        if package is not None:
            query["package"] = package
        if after is not None:
            query["_id"] = {"$gt": after}
        cursor = self._collection.find(query).sort("_id", ASCENDING).limit(limit)
        return [_job(document) async for document in cursor]


def _document(job: Job) -> Document:
    return {
        "_id": job.order_id,
        "state": job.state,
        "userId": job.user_id,
        "package": job.package,
        "packageId": job.package_id,
        "ram": job.ram,
        "failureReason": job.failure_reason,
        "retryable": job.retryable,
        "createdAt": job.created_at,
        "updatedAt": job.updated_at,
    }


def _job(document: Document) -> Job:
    return Job(
        order_id=document["_id"],
        state=State(document["state"]),
        user_id=document["userId"],
        package=document["package"],
        package_id=document["packageId"],
        ram=document["ram"],
        failure_reason=document["failureReason"],
        retryable=document["retryable"],
        created_at=document["createdAt"],
        updated_at=document["updatedAt"],
    )

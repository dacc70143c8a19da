"""Deletes what is old and not needed any more: cancelled orders with their records, ended holds, stored answers."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession

from operations.audit.stock import HOLD
from operations.reading.connection import open_mongodb
from operations.removal.orders import GROUP, REMOVED_KINDS, OrderRemoval
from operations.removal.removable import CANCELLED, Document, is_over, why_kept
from shared.clock import utc_now
from shared.services import INVENTORY, ORDER, PAYMENT

ANSWERS = "answers"
"""The stored answers to requests with an `Idempotency-Key`, as reports name them."""

CLEANED_KINDS = (*REMOVED_KINDS, ANSWERS)

AFTER_HOLDS = "hold;"
"""The upper bound of the holds' ids, exclusive."""

ENDED = ("RELEASED", "FAILED")
"""The statuses of a hold that holds nothing: it has ended, or was refused."""

MOST_REASONS = 20
"""The most reasons of FAILED orders that are listed separately."""


@dataclass(slots=True)
class CleanupResult:
    """The number of records found deletable and deleted, by kind, of orders kept, and of FAILED orders, by reason."""

    found: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(CLEANED_KINDS, 0)))
    deleted: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(CLEANED_KINDS, 0)))
    kept: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, other: "CleanupResult") -> None:
        """Add the result of a group."""
        pairs = ((self.found, other.found), (self.deleted, other.deleted), (self.kept, other.kept))
        for mine, theirs in (*pairs, (self.failed, other.failed)):
            mine.update(theirs)

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON document shows it."""
        return {
            "found": dict(self.found),
            "deleted": dict(self.deleted),
            "kept": dict(sorted(self.kept.items())),
            "failedPreserved": dict(self.failed.most_common()),
        }


Progress = Callable[[int], None]
"""Receives the number of orders checked since the last call."""


async def clean_up(
    mongodb_url: str,
    database_prefix: str,
    before: datetime,
    *,
    delete: bool,
    on_progress: Progress = lambda _: None,
    group: int = GROUP,
) -> CleanupResult:
    """Check every order that was cancelled and settled before that time, and other old records.

    With `delete`, delete what may be deleted. Raises UnreachableError when MongoDB does not answer. What was deleted by
    then stays deleted, and the next call continues from there.
    """
    result = CleanupResult()
    async with open_mongodb(mongodb_url, purpose="the cleanup", name="ordersaga-cleanup") as client:
        removal = OrderRemoval(client, database_prefix)
        async for order_ids in removal.over([CANCELLED], before, group):
            result.add(await _clean(removal, order_ids, before, delete=delete))
            on_progress(len(order_ids))
        await _clean_holds(client, database_prefix, before, result, delete=delete)
        await _clean_answers(client, database_prefix, before, result, delete=delete)
        result.failed.update(await _failed(client, database_prefix, before))
    return result


async def _clean(removal: OrderRemoval, order_ids: Sequence[str], before: datetime, *, delete: bool) -> CleanupResult:
    """Judge these orders and, with `delete`, delete those that may be deleted, in one transaction."""

    async def transaction(session: AsyncClientSession) -> CleanupResult:
        result, deletable = CleanupResult(), []
        for candidate in await removal.candidates(order_ids, session):
            if not is_over(candidate.order, [CANCELLED], before):
                continue
            if reason := why_kept(candidate, utc_now()):
                result.kept[reason] += 1
            else:
                # All ended holds come later, those of orders among them.
                deletable.append(candidate._replace(holds=()))
                result.found.update({kind: len(records) for kind, records in deletable[-1].by_kind().items()})
        if delete:
            result.deleted.update(await removal.delete(deletable, session))
        return result

    return await removal.in_transaction(transaction)


async def _clean_holds(
    client: AsyncMongoClient[Document], prefix: str, before: datetime, result: CleanupResult, *, delete: bool
) -> None:
    """Delete holds that ended long ago, except those with a pending move: it counts what the hold does not."""
    inventory = client[INVENTORY.database_in(prefix)]
    ended: Document = {"status": {"$in": list(ENDED)}, "updatedAt": {"$lt": before}}
    moves = inventory["products"].find({"moving": {"$exists": True, "$ne": {}}}, {"moving": True})
    moving = [key async for product in moves for key in product.get("moving") or () if key.startswith(HOLD)]
    query = {"_id": {"$gt": HOLD, "$lt": AFTER_HOLDS, "$nin": moving}, **ended}
    result.found["holds"] += await inventory["reservations"].count_documents(query)
    if delete:
        result.deleted["holds"] += (await inventory["reservations"].delete_many(query)).deleted_count


async def _clean_answers(
    client: AsyncMongoClient[Document], prefix: str, before: datetime, result: CleanupResult, *, delete: bool
) -> None:
    """Delete the answers that were stored long ago for requests that come again."""
    answers = client[PAYMENT.database_in(prefix)]["idempotency"]
    query = {"at": {"$lt": before}}
    result.found[ANSWERS] += await answers.count_documents(query)
    if delete:
        result.deleted[ANSWERS] += (await answers.delete_many(query)).deleted_count


async def _failed(client: AsyncMongoClient[Document], prefix: str, before: datetime) -> dict[str, int]:
    """Count the FAILED orders of that age, which are never deleted, by reason."""
    pipeline: list[Document] = [
        {"$match": {"status": "FAILED", "updatedAt": {"$lt": before}}},
        {"$group": {"_id": {"$ifNull": ["$failureReason", "no reason recorded"]}, "count": {"$sum": 1}}},
        {"$sort": {"count": -1, "_id": 1}},
    ]
    counted = await client[ORDER.database_in(prefix)]["orders"].aggregate(pipeline)
    by_reason = [(str(row["_id"]), int(row["count"])) async for row in counted]
    listed = dict(by_reason[:MOST_REASONS])
    if others := sum(count for _, count in by_reason[MOST_REASONS:]):
        listed["other reasons"] = others
    return listed

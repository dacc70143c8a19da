"""The records of an action on many orders: which orders, and the result of each.

The orders are chosen once, at the start. A process claims one at a time, notes how often the order's history has the
action, acts, and records the result. If the process ends in between, the next one claims the order again after a while,
and sees from the order's history whether the action was taken.

    open ──▶ claimed ──▶ done, waiting for a second person, or failed
              │   ▲
              └───┘ after CLAIM_VALID_FOR: the process that claimed it has ended

An action that is stopped leaves its other orders open.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from uuid import uuid4

from pymongo import ASCENDING, DESCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from operations.actions import record_action
from operations.order_actions.schema import BULK_ACTION_ORDERS, BULK_ACTIONS
from operations.sign_in.person import Person
from shared import database
from shared.clock import Clock, utc_now
from shared.database import Database, Document

CLAIM_VALID_FOR = timedelta(seconds=30)
"""Longer than one attempt on an order takes: after it, the process that claimed the order has ended."""

START_VALID_FOR = timedelta(minutes=2)
"""Longer than it takes to record the orders of an action: after it, the process that began has ended."""

STARTING, RUNNING, ENDED, STOPPED = "starting", "running", "ended", "stopped"
DONE, WAITING, FAILED = "done", "waiting", "failed"

BY_COMMAND, BY_CONSOLE = "command", "console"
"""What continues the action if its process ends: the same command, or any console."""


class BulkActions:
    """The operations on the records; methods let the driver's errors out."""

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._bulk = database[BULK_ACTIONS]
        self._orders = database[BULK_ACTION_ORDERS]
        self._clock = clock

    async def start(
        self,
        orders: Sequence[Document],
        *,
        person: Person,
        why: str,
        action: str,
        selection: Document,
        rate: float,
        via: str,
        bulk_id: str | None = None,
    ) -> Document:
        """Record the action on these orders, and return its record; `selection` is how they were chosen.

        With an id that an action has already, return that one. The action is running once all of it is recorded: an
        interrupted start has no effect, and is done anew by the next one with its id after START_VALID_FOR.
        """
        bulk_id = bulk_id or new_id()
        record: Document = {
            "_id": bulk_id,
            "at": self._clock(),
            "by": person.as_document(),
            "why": why,
            "action": action,
            "selection": selection,
            "rate": rate,
            "via": via,
            "total": len(orders),
            "status": STARTING,
        }
        try:
            await self._bulk.insert_one(record)
        except DuplicateKeyError:
            if not await self._take_over(record):
                return await self.find(bulk_id) or record
        await self._orders.insert_many([_item(bulk_id, position, order) for position, order in enumerate(orders)])
        started = {"_id": bulk_id, "status": STARTING, "at": record["at"]}
        await self._bulk.update_one(started, {"$set": {"status": RUNNING}})
        return await self.find(bulk_id) or record

    async def _take_over(self, record: Document) -> bool:
        """Replace a start that was interrupted, without the orders that it recorded; return whether there was one."""
        interrupted = {"_id": record["_id"], "status": STARTING, "at": {"$lte": record["at"] - START_VALID_FOR}}
        taken = await self._bulk.replace_one(interrupted, record)
        if taken.matched_count:
            await self._orders.delete_many({"bulk": record["_id"]})
        return bool(taken.matched_count)

    def is_abandoned(self, bulk: Document) -> bool:
        """Return whether the process that began to record an action has ended before it had all orders."""
        return bool(bulk["status"] == STARTING and bulk["at"] <= self._clock() - START_VALID_FOR)

    async def find(self, bulk_id: str) -> Document | None:
        """Return a record."""
        return await self._bulk.find_one({"_id": bulk_id})

    async def newest(self, limit: int, skip: int = 0) -> list[Document]:
        """Return the records, the newest first, without the first `skip`."""
        return await self._bulk.find({}, sort=[("at", DESCENDING)], skip=skip, limit=limit).to_list(None)

    async def count(self) -> int:
        """Count all records."""
        return await self._bulk.count_documents({})

    async def unfinished(self, via: str) -> list[Document]:
        """Return the records of the actions that have not ended, the oldest first."""
        return await self._bulk.find({"status": RUNNING, "via": via}, sort=[("at", ASCENDING)]).to_list(None)

    async def claim(self, bulk_id: str) -> Document | None:
        """Return an order to act on, which no other process has claimed; None if there is none at the moment.

        Those that a process claimed and left come last, so that one order cannot hold up the others.
        """
        now = self._clock()
        free: Document = {"bulk": bulk_id, "outcome": None}
        for claimed in ({"claimedAt": None}, {"claimedAt": {"$lte": now - CLAIM_VALID_FOR}}):
            async for candidate in self._orders.find(free | claimed, {"_id": True}, sort=[("claimedAt", ASCENDING)]):
                # A sharded collection needs the `_id` for this.
                query = {"_id": candidate["_id"]} | free | claimed
                taken = await self._orders.find_one_and_update(
                    query, {"$set": {"claimedAt": now}}, return_document=ReturnDocument.AFTER
                )
                if taken is not None:
                    return taken
        return None

    async def note(self, item: Document, before: int) -> None:
        """Note how often the order's history had the action before it is taken."""
        await self._orders.update_one({"_id": item["_id"]}, {"$set": {"before": before}})

    async def record(self, item: Document, outcome: str, detail: str) -> None:
        """Record the result of an order, once."""
        result = {"outcome": outcome, "detail": detail, "doneAt": self._clock()}
        await self._orders.update_one({"_id": item["_id"], "outcome": None}, {"$set": result})

    async def leave(self, bulk_id: str, item: Document | None) -> None:
        """Note that a process ends its work on an action; give back the order that it claimed and has no result."""
        if item is not None:
            await self._orders.update_one({"_id": item["_id"], "outcome": None}, {"$unset": {"claimedAt": ""}})
        await self._bulk.update_one({"_id": bulk_id}, {"$set": {"leftAt": self._clock()}})

    async def is_live(self, bulk: Document) -> bool:
        """Return whether a process seems to work on an action: it claimed an order lately, and has not left."""
        since = max(filter(None, (self._clock() - CLAIM_VALID_FOR, bulk.get("leftAt"))))
        claimed = {"bulk": bulk["_id"], "claimedAt": {"$gt": since}}
        return await self._orders.find_one(claimed, {"_id": True}) is not None

    async def end_if_done(self, bulk_id: str) -> bool:
        """Record that the action has ended if every order has a result; return whether it has, or was stopped."""
        if await self._bulk.find_one({"_id": bulk_id, "status": STOPPED}, {"_id": True}) is not None:
            return True
        if await self._orders.find_one({"bulk": bulk_id, "outcome": None}, {"_id": True}) is not None:
            return False
        await self._bulk.update_one(
            {"_id": bulk_id, "status": RUNNING}, {"$set": {"status": ENDED, "endedAt": self._clock()}}
        )
        return True

    async def stop(self, bulk: Document, *, by: str, why: str) -> bool:
        """Stop an action before its next order, and log who did it and why; return False if it was over already."""
        unfinished = {"_id": bulk["_id"], "status": {"$in": [STARTING, RUNNING]}}
        stopped = await self._bulk.update_one(unfinished, {"$set": {"status": STOPPED, "endedAt": self._clock()}})
        if stopped.modified_count:
            logged = {"by": by, "why": why, "action": f"orders.{bulk['action']}", "subject": bulk["_id"]}
            await record_action(self._database, **logged, outcome=STOPPED)
        return bool(stopped.modified_count)

    async def outcomes(self, bulk_id: str) -> Counter[str]:
        """Count the orders by outcome; those without one are not among them."""
        return (await self.outcomes_of([bulk_id]))[bulk_id]

    async def outcomes_of(self, bulk_ids: Sequence[str]) -> dict[str, Counter[str]]:
        """Count the orders of several actions by outcome."""
        found: dict[str, Counter[str]] = {bulk_id: Counter() for bulk_id in bulk_ids}
        pipeline: list[Document] = [
            {"$match": {"bulk": {"$in": list(bulk_ids)}, "outcome": {"$in": [DONE, WAITING, FAILED]}}},
            {"$group": {"_id": {"bulk": "$bulk", "outcome": "$outcome"}, "orders": {"$sum": 1}}},
        ]
        async for row in database.aggregate(self._orders, pipeline):
            found[row["_id"]["bulk"]][row["_id"]["outcome"]] = row["orders"]
        return found

    async def results(
        self, bulk_id: str, *, outcomes: Sequence[str] = (), after: int = -1, limit: int = 0
    ) -> list[Document]:
        """Return the orders of an action in the order in which they were chosen; no limit is 0."""
        query: Document = {"bulk": bulk_id, "position": {"$gt": after}}
        if outcomes:
            query["outcome"] = {"$in": list(outcomes)}
        return await self._orders.find(query, sort=[("position", ASCENDING)], limit=limit).to_list(None)


def new_id() -> str:
    """Return an id for an action."""
    return uuid4().hex[:16]


def _item(bulk_id: str, position: int, order: Document) -> Document:
    copied = {name: order.get(name) for name in ("userId", "totalAmount", "currency")}
    return {"_id": f"{bulk_id}:{order['_id']}", "bulk": bulk_id, "position": position, "orderId": order["_id"]} | copied

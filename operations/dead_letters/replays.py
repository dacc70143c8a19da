"""The records of replays: the letters selected, the progress, and the lease of the process that runs it.

Only this module writes the collection; methods let the driver's errors out.
"""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from operations.dead_letters.filters import Filters, decidable, query, replayable
from operations.dead_letters.letter import why_not_replayable
from operations.dead_letters.schema import LETTERS, REPLAYS
from operations.dead_letters.status import PENDING, REPLAYING
from shared.clock import utc_now
from shared.database import Collection, Database, Document
from shared.errors import OwnershipLostError, RefusalError

DEFAULT_RATE = 100.0
"""Letters per second: a service that has just recovered must not be flooded."""

LEASE = timedelta(seconds=15)

RUNNING, DONE, CANCELLED = "running", "done", "cancelled"
CANCELLING = "cancelling"
"""Claimed letters are still sent, then the replay ends."""
CAREFUL = "careful"
"""Runs in steps; see `careful`. Release 0.1.0 does not know this status, so it leaves such a replay to this one."""
STOPPED = "stopped"
"""A careful replay has stopped by itself."""

GOING_ON = (RUNNING, CAREFUL)
UNFINISHED = (*GOING_ON, CANCELLING)
CUT_SHORT = (CANCELLED, STOPPED)
"""The statuses of replays that ended before they had sent every letter."""

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

_UNFINISHED: Document = {"status": {"$in": list(UNFINISHED)}}
# By the database's clock: replays may run on different machines.
_EXPIRED: Document = {"$expr": {"$lt": ["$lease.until", "$$NOW"]}}


class NotPossibleError(RefusalError):
    """The letters' present state does not allow the request; the message is for the user."""


class ReplayLeaseLostError(OwnershipLostError):
    """Another process runs the replay now, because this one was away for too long."""


class ReplayRecords:
    """The operations on the records of replays."""

    def __init__(self, database: Database) -> None:
        self._replays: Collection = database[REPLAYS]
        self._letters: Collection = database[LETTERS]

    async def start(
        self, filters: Filters, *, by: str, why: str, rate: float, careful: bool = False, edited: bytes | None = None
    ) -> Document:
        """Record a replay of the selected letters that exist now; return its record. One of a single letter just runs.

        Raises NotPossibleError with the reason if none of them can be replayed.
        """
        asked = replayable(filters)
        newest = await self._letters.find_one(asked, {"lastFailedAt": True}, sort=[("lastFailedAt", -1), ("_id", -1)])
        if newest is None:
            raise NotPossibleError(await self._why_none(filters))
        asked["lastFailedAt"] = asked.get("lastFailedAt", {}) | {"$lte": newest["lastFailedAt"]}
        total = await self._letters.count_documents(asked)
        replay: Document = {
            "_id": uuid4().hex[:16],
            "at": utc_now(),
            "by": by,
            "why": why,
            "rate": rate,
            "filters": filters.as_document(),
            "edited": edited,
            "through": newest["lastFailedAt"],
            "pending": await self._pending(asked) if filters.ids else [],
            "behind": None,
            "total": total,
            "published": 0,
            "careful": careful and total > 1,
            "status": CAREFUL if careful and total > 1 else RUNNING,
            "doneAt": None,
            "lease": {"token": None, "until": _LONG_AGO},
        }
        await self._replays.insert_one(replay)
        return replay

    async def find(self, replay_id: str) -> Document | None:
        """Return a record."""
        return await self._replays.find_one({"_id": replay_id})

    async def newest(self, limit: int, skip: int = 0) -> list[Document]:
        """Return the newest records, without edited bodies, and without the first `skip`."""
        found = self._replays.find({}, {"edited": False}, sort=[("at", -1)], skip=skip, limit=limit)
        return await found.to_list(None)

    async def count(self) -> int:
        """Count all records."""
        return await self._replays.count_documents({})

    async def cancel(self, replay_id: str) -> bool:
        """Stop a replay once its claimed letters are sent; return False if it has ended already."""
        going_on = {"_id": replay_id, "status": {"$in": list(GOING_ON)}}
        result = await self._replays.update_one(going_on, {"$set": {"status": CANCELLING}})
        return bool(result.modified_count)

    async def acquire(self, token: str, replay_id: str | None = None) -> Document | None:
        """Take the lease of this replay, or of any unfinished one, unless another process holds it."""
        # A sharded collection needs the `_id` for this.
        for candidate in [replay_id] if replay_id is not None else await self.abandoned():
            free = _UNFINISHED | _EXPIRED | {"_id": candidate}
            acquired = await self._replays.find_one_and_update(
                free, [{"$set": {"lease": _lease(token)}}], return_document=True
            )
            if acquired is not None:
                return acquired
        return None

    async def advance(self, replay_id: str, token: str, changes: Document) -> Document:
        """Record progress and renew the lease; return the record. Raises ReplayLeaseLostError."""
        held = {"_id": replay_id, "lease.token": token} | _UNFINISHED
        fields = {name: {"$literal": value} for name, value in changes.items()}
        found = await self._replays.find_one_and_update(
            held, [{"$set": fields | {"lease": _lease(token)}}], return_document=True
        )
        if found is None:
            raise ReplayLeaseLostError(f"another process runs replay {replay_id} now")
        return found

    async def reopen(self) -> None:
        """Reopen ended replays that have letters claimed: only the replay that claimed a letter sends it."""
        claimed = await self._letters.distinct("claimedBy", {"status": REPLAYING, "claimedBy": {"$exists": True}})
        if not claimed:
            return
        for ended, reopened in ((DONE, RUNNING), (CANCELLED, CANCELLING), (STOPPED, CANCELLING)):
            over: Document = {"_id": {"$in": claimed}, "status": ended} | _EXPIRED
            await self._replays.update_many(over, {"$set": {"status": reopened, "doneAt": None}})

    async def abandoned(self) -> list[str]:
        """Return the unfinished replays that no process runs, the oldest first."""
        left = _UNFINISHED | _EXPIRED
        return [replay["_id"] async for replay in self._replays.find(left, {"_id": True}, sort=[("at", 1)])]

    async def _pending(self, asked: Document) -> list[str]:
        """Return the last message ids of the pending letters: only these sends may be repeated."""
        found = self._letters.find(asked | {"status": PENDING}, {"lastReplay": True})
        return [letter["lastReplay"] async for letter in found]

    async def _why_none(self, filters: Filters) -> str:
        if len(filters.ids) == 1:
            letter = await self._letters.find_one({"_id": filters.ids[0]}, {"status": True, "queue": True})
            if letter is None:
                return f"there is no dead letter {filters.ids[0]}"
            reason = why_not_replayable(letter) or f"it is {letter['status']}, and only dead letters can be replayed"
            return f"{letter['_id']} cannot be replayed: {reason}"
        if not filters.ids and await self._letters.find_one(query(filters, decidable(filters)) | {"foreign": True}):
            return "all matching dead letters are foreign: look at each of them, and replay it by its id"
        return "there is no matching dead letter that could be replayed"


def _lease(token: str) -> Document:
    until = {"$add": ["$$NOW", LEASE // timedelta(milliseconds=1)]}
    return {"token": {"$literal": token}, "until": until}

"""The records of replays: the letters selected, the progress, and the lease of the process that runs it.

Only this module writes the collection; methods let the driver's errors out.
"""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from pymongo.errors import DuplicateKeyError

from operations.dead_letters.filters import Filters, decidable, query, replayable
from operations.dead_letters.letter import why_not_replayable
from operations.dead_letters.patching import Edit, Patch
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
EDITING = "editing"
"""Each letter is edited by a patch; see `patching`. Release 0.1.0 would send the letters as they are."""
STOPPED = "stopped"
"""A careful replay has stopped by itself."""

GOING_ON = (RUNNING, CAREFUL, EDITING)
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
        self,
        filters: Filters,
        *,
        by: str,
        why: str,
        rate: float,
        careful: bool = False,
        edit: Edit | None = None,
        patch: Patch | None = None,
        replay_id: str | None = None,
    ) -> Document:
        """Record a replay of the selected letters that exist now; return its record. One of a single letter just runs.

        `edit` replaces the body of a single letter, `patch` edits each. With an id that a replay has already, return
        that one. Raises NotPossibleError with the reason if no letter can be replayed.
        """
        if replay_id is not None and (known := await self.find(replay_id)) is not None:
            return known
        asked = replayable(filters)
        newest = await self._letters.find_one(asked, {"lastFailedAt": True}, sort=[("lastFailedAt", -1), ("_id", -1)])
        if newest is None:
            raise NotPossibleError(await self._why_none(filters))
        asked["lastFailedAt"] = asked.get("lastFailedAt", {}) | {"$lte": newest["lastFailedAt"]}
        total = await self._letters.count_documents(asked)
        careful = careful and total > 1
        replay: Document = {
            "_id": replay_id or new_id(),
            "at": utc_now(),
            "by": by,
            "why": why,
            "rate": rate,
            "filters": filters.as_document(),
            "edited": None if edit is None else edit.body,
            "through": newest["lastFailedAt"],
            "pending": await self._pending(asked) if filters.ids else [],
            "behind": None,
            "total": total,
            "published": 0,
            "careful": careful,
            "status": CAREFUL if careful else RUNNING,
            "doneAt": None,
            "lease": {"token": None, "until": _LONG_AGO},
        }
        if edit is not None and edit.identities:
            replay["identities"] = edit.identities
        if patch is not None:
            replay |= {"status": EDITING, "patch": patch._asdict(), "left": [], "leftLetters": []}
        try:
            await self._replays.insert_one(replay)
        except DuplicateKeyError:
            return await self.find(replay["_id"]) or replay
        return replay

    async def find(self, replay_id: str) -> Document | None:
        """Return a record."""
        return await self._replays.find_one({"_id": replay_id})

    async def newest(self, limit: int, skip: int = 0) -> list[Document]:
        """Return the newest records, without what was edited, and without the first `skip`."""
        unshown = {"edited": False, "patch": False, "leftLetters": False}
        return await self._replays.find({}, unshown, sort=[("at", -1)], skip=skip, limit=limit).to_list(None)

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
        again = ((DONE, False, RUNNING), (DONE, True, EDITING), *((cut, None, CANCELLING) for cut in CUT_SHORT))
        for ended, patched, reopened in again:
            over: Document = {"_id": {"$in": claimed}, "status": ended} | _EXPIRED
            if patched is not None:
                over["patch"] = {"$exists": patched}
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


def new_id() -> str:
    """Return an id for a replay."""
    return uuid4().hex[:16]


def goes_in_steps(replay: Document) -> bool:
    """Return whether a replay goes on, and does so carefully."""
    return replay["status"] in GOING_ON and bool(replay.get("careful"))


def patch_of(replay: Document) -> Patch | None:
    """Return the patch with which a replay edits its letters, None if it sends them as they are."""
    stored = replay.get("patch")
    return None if stored is None else Patch(stored["text"], tuple(stored["unlocked"]))


def number_left_out(replay: Document) -> int:
    """Return how many letters a replay has left as they are, because its patch makes nothing of them."""
    return sum(left["letters"] for left in replay.get("left") or ())


def _lease(token: str) -> Document:
    until = {"$add": ["$$NOW", LEASE // timedelta(milliseconds=1)]}
    return {"token": {"$literal": token}, "until": until}

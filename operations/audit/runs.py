"""The records of audits that the console and its schedule ran: one at a time over all processes, each with its result.

    running ──▶ ok, violations, or not done (a server was away), and soon done again
       └──────▶ interrupted: its process ended, and another one began an audit after LEASE

Whoever runs an audit holds the one turn, and renews it meanwhile.
"""

from dataclasses import asdict
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

from pymongo import DESCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from operations.audit.report import INVARIANTS, Report, Violation
from operations.audit.schema import RUNS, TURN
from operations.reading.cursors import read_cursor, write_cursor
from shared.clock import Clock, to_rfc3339, utc_now
from shared.database import Database, Document

LEASE = timedelta(seconds=60)
"""The time without a renewal after which the process that ran an audit has ended."""

SCHEDULE = "the schedule"
"""Who runs the audits that nobody asks for."""

REST_FACTOR = 9
"""The pause after an audit, as a multiple of its duration: the schedule spends at most a tenth of the time auditing."""

AGAIN = timedelta(minutes=1)
"""The shortest pause after an audit that was not done; the pause is at least as long as that audit took."""

MOST_KEPT = 200
"""The violations that a record lists; it counts all of them."""
LONGEST_TEXT = 1000

RUNNING, OK, VIOLATIONS, NOT_DONE, INTERRUPTED = "running", "ok", "violations", "not done", "interrupted"
ANSWERED = (OK, VIOLATIONS)
"""The statuses of audits that say whether the books balance."""

_TURN_ID = "audit"


class RunPage(NamedTuple):
    """A page of audits, newest first, the cursor of the next page (None on the last one), and how many there are."""

    items: list[Document]
    next_cursor: str | None
    total: int


class AuditRuns:
    """The operations on the records; methods let the driver's errors out."""

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._runs = database[RUNS]
        self._turn = database[TURN]
        self._clock = clock

    async def begin(self, by: str, *, every: timedelta | None = None) -> str | None:
        """Take the turn and return the id of the new record; None if an audit is under way.

        With `every`, also None if the last audit began less than that ago, or has not rested for long enough. One whose
        process died is due again at once.
        """
        now, run_id = self._clock(), uuid4().hex[:16]
        free: Document = {"run": None}
        if every is not None:
            began = {"$or": [{"startedAt": None}, {"startedAt": {"$lte": now - every}}]}
            rested = {"$or": [{"restsUntil": None}, {"restsUntil": {"$lte": now}}]}
            free["$and"] = [began, rested]
        left_behind = {"run": {"$ne": None}, "renewedAt": {"$lte": now - LEASE}}
        taken = {"run": run_id, "startedAt": now, "renewedAt": now}
        try:
            before = await self._turn.find_one_and_update(
                {"_id": _TURN_ID, "$or": [free, left_behind]},
                {"$set": taken},
                upsert=True,
                return_document=ReturnDocument.BEFORE,
            )
        except DuplicateKeyError:
            return None
        if before is not None and before.get("run"):
            await self._conclude(before["run"], {"status": INTERRUPTED, "why": "its process ended"})
        await self._runs.insert_one({"_id": run_id, "by": by, "startedAt": now, "status": RUNNING, "judged": 0})
        return run_id

    async def renew(self, run_id: str, judged: int) -> bool:
        """Keep the turn, and record the progress; False if another process has taken the turn."""
        mine = {"_id": _TURN_ID, "run": run_id}
        renewed = await self._turn.update_one(mine, {"$set": {"renewedAt": self._clock()}})
        if not renewed.matched_count:
            return False
        await self._runs.update_one({"_id": run_id, "status": RUNNING}, {"$set": {"judged": judged}})
        return True

    async def end(self, run_id: str, report: Report, seconds: float, judged: int) -> None:
        """Record the result, and give the turn back; nothing if another process took it and called this interrupted."""
        await self._conclude(run_id, _result(report) | {"seconds": seconds, "judged": judged})
        rests = self._clock() + timedelta(seconds=seconds * REST_FACTOR)
        await self._give_back(run_id, {"$set": {"run": None, "restsUntil": rests}})

    async def give_up(self, run_id: str, status: str, why: str) -> None:
        """Record that there is no result, and why; one that was interrupted is due again at once, another one soon."""
        await self._conclude(run_id, {"status": status, "why": why[:LONGEST_TEXT]})
        update: Document = {"$set": {"run": None}, "$unset": {"startedAt": ""}}
        if status != INTERRUPTED:
            now, run = self._clock(), await self.find(run_id)
            update["$set"]["restsUntil"] = now + max(AGAIN, now - run["startedAt"] if run else AGAIN)
        await self._give_back(run_id, update)

    async def current(self) -> Document | None:
        """Return the record of the audit that is under way, None if there is none."""
        turn = await self._turn.find_one({"_id": _TURN_ID, "renewedAt": {"$gt": self._clock() - LEASE}})
        return await self._runs.find_one({"_id": turn["run"], "status": RUNNING}) if turn and turn.get("run") else None

    async def find(self, run_id: str) -> Document | None:
        """Return a record."""
        return await self._runs.find_one({"_id": run_id})

    async def last(self, *, answered: bool = False) -> Document | None:
        """Return the newest record of an audit that has ended; with `answered`, of one that judged the books."""
        query: Document = {"status": {"$in": list(ANSWERED)} if answered else {"$ne": RUNNING}}
        return await self._runs.find_one(query, sort=[("startedAt", DESCENDING), ("_id", DESCENDING)])

    async def page(self, *, limit: int, cursor: str | None = None) -> RunPage:
        """Return a page of the records without their violations. Raises ValueError for the cursor of another list."""
        query: Document = {}
        if cursor is not None:
            at, last = read_cursor(cursor)
            query["$or"] = [{"startedAt": {"$lt": at}}, {"startedAt": at, "_id": {"$lt": last}}]
        order = [("startedAt", DESCENDING), ("_id", DESCENDING)]
        found = await self._runs.find(query, {"violations": False}, sort=order, limit=limit + 1).to_list(None)
        items, more = found[:limit], len(found) > limit
        next_cursor = write_cursor(items[-1]["startedAt"], items[-1]["_id"]) if more else None
        return RunPage(items, next_cursor, await self._runs.count_documents({}))

    async def _conclude(self, run_id: str, result: Document) -> None:
        ended = {"_id": run_id, "status": RUNNING}
        await self._runs.update_one(ended, {"$set": {"endedAt": self._clock(), **result}})

    async def _give_back(self, run_id: str, update: Document) -> None:
        await self._turn.update_one({"_id": _TURN_ID, "run": run_id}, update)


def run_as_json(run: Document) -> dict[str, Any]:
    """Return the record of an audit, without its violations, as a JSON document."""
    return {
        "id": run["_id"],
        "startedAt": to_rfc3339(run["startedAt"]),
        "endedAt": to_rfc3339(run["endedAt"]) if run.get("endedAt") else None,
        "by": run["by"],
        "status": run["status"],
        "why": run.get("why"),
        "found": run.get("found"),
        "checked": run.get("checked"),
    }


def violations_of(run: Document) -> list[Violation]:
    """Return the violations that a record lists."""
    return [Violation(**each) for each in run.get("violations") or ()]


def _result(report: Report) -> dict[str, Any]:
    found = len(report.violations) + report.unlisted
    return {
        "status": OK if report.ok else VIOLATIONS,
        "checked": report.checked,
        "found": found,
        "byInvariant": {str(number): len(report.of_invariant(number)) for number in INVARIANTS},
        "violations": [_kept(violation) for violation in report.violations[:MOST_KEPT]],
        "information": report.information,
    }


def _kept(violation: Violation) -> dict[str, Any]:
    fields = asdict(violation)
    return fields | {name: fields[name][:LONGEST_TEXT] for name in ("found", "expected")}

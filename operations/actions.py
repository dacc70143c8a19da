"""The log of what operators did: who, when, why, to what, and what came of it. Entries are never changed or deleted."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

from pymongo import DESCENDING, IndexModel

from operations.reading.cursors import read_cursor, write_cursor
from shared.clock import utc_now
from shared.database import Collection, Database, Document

COLLECTION = "actions"
INDEXES: Sequence[IndexModel] = (
    IndexModel([("at", DESCENDING), ("_id", DESCENDING)], name="newest"),
    IndexModel([("subject", DESCENDING), ("at", DESCENDING)], name="of-subject"),
)


class ActionPage(NamedTuple):
    """Some entries of the log, newest first, and where the next page begins (None: there is none)."""

    items: list[Document]
    next_cursor: str | None


async def record_action(database: Database, *, by: str, why: str, action: str, subject: str, outcome: str) -> str:
    """Write down what an operator did; returns the entry's id. `database` is that of operations.

    `action` is what was done ("order.cancel", "dead-letters.replay"), `subject` the id of what it was done to,
    `outcome` what came of it in a few words.
    """
    entry: Document = {
        "_id": uuid4().hex,
        "at": utc_now(),
        "by": by,
        "why": why,
        "action": action,
        "subject": subject,
        "outcome": outcome,
    }
    await _log(database).insert_one(entry)
    return str(entry["_id"])


async def list_actions(
    database: Database, *, subject: str | None = None, limit: int = 50, cursor: str | None = None
) -> ActionPage:
    """Return a page of the log, newest first: of one subject, or all. Raises ValueError for another list's cursor."""
    query: Document = {} if subject is None else {"subject": subject}
    if cursor is not None:
        at, last = read_cursor(cursor)
        query["$or"] = [{"at": {"$lt": at}}, {"at": at, "_id": {"$lt": last}}]
    found = await _log(database).find(query, sort=[("at", -1), ("_id", -1)], limit=limit + 1).to_list(None)
    items = found[:limit]
    more = len(found) > limit
    return ActionPage(items, write_cursor(items[-1]["at"], items[-1]["_id"]) if more else None)


def _log(database: Database) -> Collection:
    return database[COLLECTION]

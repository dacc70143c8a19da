"""The log of actions: who did what, when, why, and with which outcome. Entries are never changed or deleted."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

from pymongo import DESCENDING, IndexModel

from operations.reading.cursors import read_cursor, write_cursor
from shared.clock import utc_now
from shared.database import Collection, Database, Document

COLLECTION = "actions"

ORDER_RELEASE = "order.release"
"""The action of `ordersaga order release`."""

INDEXES: Sequence[IndexModel] = (
    IndexModel([("at", DESCENDING), ("_id", DESCENDING)], name="newest"),
    IndexModel([("subject", DESCENDING), ("at", DESCENDING)], name="of-subject"),
)


class ActionPage(NamedTuple):
    """A page of the log, newest first, and the cursor of the next page (None on the last one)."""

    items: list[Document]
    next_cursor: str | None


async def record_action(database: Database, *, by: str, why: str, action: str, subject: str, outcome: str) -> str:
    """Log what an operator did in the database of operations; return the id of the entry.

    `action` is a name such as "order.cancel" or "dead-letters.replay", `subject` the id of the order, letter, group or
    package that it concerns, `outcome` the result in a few words.
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
    """Return a page of the log, of one subject or of all. Raises ValueError for the cursor of another list."""
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

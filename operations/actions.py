"""The log of actions: who did what, when, why, and with which outcome.

It is the audit log in the database of operations (`shared.audit_log`): entries form a chain, and are never changed or
deleted.
"""

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from itertools import takewhile
from typing import NamedTuple

from operations.errors import UnreachableError
from operations.reading.cursors import read_cursor, write_cursor
from shared import audit_log
from shared.audit_log import COLLECTION
from shared.database import Collection, Database, Document

ORDER_RELEASE = "order.release"
"""The action of `ordersaga order release`."""
STARTED = "started"
"""The outcome of the first entry of an action that has two: it is about to be executed."""

_ATTEMPTS = 100
"""The most attempts at one act that are looked at."""


class ActionPage(NamedTuple):
    """A page of the log, newest first, and the cursor of the next page (None on the last one)."""

    items: list[Document]
    next_cursor: str | None


async def record_action(database: Database, *, by: str, why: str, action: str, subject: str, outcome: str) -> str:
    """Log what an operator did in the database of operations; return the id of the entry.

    `action` is a name such as "order.cancel" or "dead-letters.replay", `subject` the id of the order, letter, group or
    package that it concerns, `outcome` the result in a few words.
    """
    entry = audit_log.new_entry(by=by, why=why, action=action, subject=subject, outcome=outcome)
    await audit_log.append(database, entry)
    return str(entry["_id"])


@contextlib.asynccontextmanager
async def recorded_attempt(
    database: Database, *, by: str, why: str, action: str, subject: str, done: str
) -> AsyncIterator[None]:
    """Log the act in this context before it and after it, with the outcome `done` or that it is unknown.

    So an act of a process that dies in between is logged, too. UnreachableError passes through.
    """
    logged = {"by": by, "why": why, "action": action, "subject": subject}
    await record_action(database, **logged, outcome=STARTED)
    try:
        yield
    except UnreachableError as error:
        await record_action(database, **logged, outcome=f"outcome unknown: {error}")
        raise
    await record_action(database, **logged, outcome=done)


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


async def interrupted_since(database: Database, by: str, why: str, action: str, subject: str) -> datetime | None:
    """Return when an act began that has no outcome, with all attempts at it; None if there is none like it."""
    same = {"subject": subject, "action": action, "by": by, "why": why}
    found = await _log(database).find(same, sort=[("at", -1), ("_id", -1)], limit=_ATTEMPTS).to_list(None)
    attempts = list(takewhile(lambda entry: entry["outcome"] == STARTED, found))
    return attempts[-1]["at"] if attempts else None


async def last_action(database: Database, action: str) -> Document | None:
    """Return the newest entry about this action."""
    found: Document | None = await _log(database).find_one({"action": action}, sort=[("at", -1), ("_id", -1)])
    return found


def _log(database: Database) -> Collection:
    return database[COLLECTION]

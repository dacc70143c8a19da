"""Finds provisioning jobs by order, state, package and time, the newest first, a page at a time."""

from datetime import datetime
from typing import Any, NamedTuple

from pymongo import DESCENDING

from provisioning_service.addresses import package_key
from provisioning_service.job import ENDED_STATES, State
from shared.cursors import time_key, write_cursor
from shared.database import Collection, Document
from shared.paging import after_time

PAGE = 50

MOST_COUNTED = 10_000
"""Jobs up to which a list is counted; beyond, it has that many or more."""

OPEN = "open"
"""In place of a state: all in which something is still to happen."""

OPEN_STATES = tuple(state for state in State if state not in ENDED_STATES)

_HIDDEN = {"credentials": False, "outbox": False}
_IN_LISTS = _HIDDEN | {"purchase.freeBefore": False, "server": False}


class JobSearch(NamedTuple):
    """The criteria of a search; an empty one matches everything. The order's id matches by prefix."""

    states: tuple[str, ...] = ()
    package: str = ""
    order_id: str = ""
    since: datetime | None = None
    until: datetime | None = None


class JobPage(NamedTuple):
    """A page of jobs, and the cursor of the next page (None on the last one)."""

    items: list[Document]
    next_cursor: str | None


def states_of(name: str) -> tuple[str, ...]:
    """Return the states that a filter names: one of them, `open`, or none for all. Raises ValueError for others."""
    if name == OPEN:
        return OPEN_STATES
    return (State(name),) if name else ()


async def find_jobs(jobs: Collection, search: JobSearch, cursor: str | None = None, *, limit: int = PAGE) -> JobPage:
    """Return a page of jobs. Raises the 422 problem for a wrong cursor; lets the driver's errors out."""
    query = query_of(search)
    if (last_shown := after_time(cursor or None)) is not None:
        at, order_id = last_shown
        query["$or"] = [{"createdAt": {"$lt": at}}, {"createdAt": at, "_id": {"$lt": order_id}}]
    by_time = [("createdAt", DESCENDING), ("_id", DESCENDING)]
    found = await jobs.find(query, _IN_LISTS).sort(by_time).limit(limit + 1).to_list(None)
    page = found[:limit]
    if len(found) <= limit:
        return JobPage(page, None)
    return JobPage(page, write_cursor(time_key(page[-1]["createdAt"], page[-1]["_id"])))


async def count_jobs(jobs: Collection, search: JobSearch) -> int:
    """Count the jobs of a search, up to MOST_COUNTED."""
    return await jobs.count_documents(query_of(search), limit=MOST_COUNTED)


async def find_job(jobs: Collection, order_id: str) -> Document | None:
    """Return the job of an order, without credentials; None if there is none."""
    return await jobs.find_one({"_id": order_id}, _HIDDEN)


def query_of(search: JobSearch) -> dict[str, Any]:
    """Return a query that the index serves, which begins with the state."""
    query: dict[str, Any] = {"state": {"$in": [str(state) for state in search.states or State]}}
    if search.package:
        query["lockKey"] = package_key(search.package)
    if search.order_id:
        query["_id"] = {"$gte": search.order_id, "$lt": f"{search.order_id}\U0010ffff"}
    if between := {operator: at for operator, at in (("$gte", search.since), ("$lt", search.until)) if at}:
        query["createdAt"] = between
    return query

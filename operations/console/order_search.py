"""Finds orders by id, number, person, user, status and failure reason, newest first, a page at a time."""

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pymongo import DESCENDING

from operations.console.figures import STATUSES
from order_service.order_number import ids_of
from order_service.particulars import PARTICULARS, PERSONAL, words_of
from shared.database import Collection, Document
from shared.http import invalid
from shared.paging import read_cursor, write_cursor

PAGE = 50


class OrderSearch(NamedTuple):
    """The criteria of a search; an empty one matches everything.

    Ids, reasons and the words of a customer's name or e-mail address match by prefix.
    """

    order_id: str = ""
    number: str = ""
    customer: str = ""
    user: str = ""
    status: str = ""
    reason: str = ""
    open: bool = False

    @property
    def parameters(self) -> dict[str, str]:
        """The query parameters of the search."""
        found = {
            "id": self.order_id,
            "number": self.number,
            "customer": self.customer,
            "user": self.user,
            "status": self.status,
            "reason": self.reason,
        }
        return {name: value for name, value in found.items() if value} | ({"open": "1"} if self.open else {})


class OrderPage(NamedTuple):
    """A page of orders, and the cursor of the next page (None on the last one)."""

    items: list[Document]
    next_cursor: str | None


async def find_orders(orders: Collection, search: OrderSearch, cursor: str | None) -> OrderPage:
    """Return a page of orders. Raises the 422 problem for a wrong cursor or number; lets the driver's errors out."""
    query = query_of(search)
    if cursor:
        milliseconds, order_id = read_cursor(cursor, (int, str))
        at = _time(milliseconds)
        query["$or"] = [{"createdAt": {"$lt": at}}, {"createdAt": at, "_id": {"$lt": order_id}}]
    by_time = [("createdAt", DESCENDING), ("_id", DESCENDING)]
    found = await orders.find(query, {"history": False, PARTICULARS: False}).sort(by_time).limit(PAGE + 1).to_list(None)
    page = found[:PAGE]
    if len(found) <= PAGE:
        return OrderPage(page, None)
    last = page[-1]
    return OrderPage(page, write_cursor([round(last["createdAt"].timestamp() * 1000), last["_id"]]))


def query_of(search: OrderSearch) -> dict[str, Any]:
    """Return a query that an index serves: the indexes begin with the status, the user or a word of the person.

    Raises the 422 problem for a text that is no order number.
    """
    query: dict[str, Any] = {"status": search.status or {"$in": list(STATUSES)}}
    if search.order_id:
        query["_id"] = _begins_with(search.order_id)
    if search.number:
        query.setdefault("_id", {}).update(_with_number(search.number))
    if search.customer:
        query[f"{PERSONAL}.words"] = {"$all": [_pattern(word) for word in words_of(search.customer)]}
    if search.user:
        query["userId"] = search.user
    if search.reason:
        query["failureReason"] = _begins_with(search.reason)
    if search.open:
        query["settled"] = False
    return query


def _begins_with(text: str) -> dict[str, Any]:
    return {"$regex": f"^{re.escape(text)}"}


def _pattern(word: str) -> "re.Pattern[str]":
    return re.compile(f"^{re.escape(word)}")


def _with_number(number: str) -> dict[str, Any]:
    try:
        first, last = ids_of(number)
    except ValueError as error:
        raise invalid(("number", str(error))) from None
    return {"$gte": first, "$lte": last}


def _time(milliseconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        raise invalid(("cursor", "is not a nextCursor of this list")) from None

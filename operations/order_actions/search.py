"""Finds orders by id, number, person, user, status, failure, product and time, newest first, a page at a time."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from http import HTTPStatus
from typing import Any, NamedTuple

from pymongo import ASCENDING, DESCENDING

from operations.dead_letters.times import read_time
from operations.order_actions.actions import AWAITS_ANSWER, OrderAction
from order_service.order import Status
from order_service.order_number import ids_of
from order_service.particulars import PARTICULARS, PERSONAL, words_of
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.clock import utc_now
from shared.cursors import time_key, write_cursor
from shared.database import Collection, Document
from shared.http import ProblemError, invalid
from shared.paging import after_time

PAGE = 50

STUCK_AFTER = timedelta(minutes=5)
"""An order that waits for an answer for longer than this is stuck: the usual answer takes less than a second."""

MOST_COUNTED = 10_000
"""Orders up to which a list is counted; beyond, it has that many or more."""


class OrderSearch(NamedTuple):
    """The criteria of a search; an empty one matches everything.

    Ids, reasons and the words of a customer's name or e-mail address match by prefix. `stuck_at` asks for
    the orders that are stuck at that time.
    """

    order_id: str = ""
    number: str = ""
    customer: str = ""
    user: str = ""
    status: str = ""
    reason: str = ""
    open: bool = False
    ids: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    code: str = ""
    owner: str = ""
    product: str = ""
    since: datetime | None = None
    until: datetime | None = None
    stuck_at: datetime | None = None

    @property
    def parameters(self) -> dict[str, str]:
        """The query parameters of a search in the console."""
        found = {
            "id": self.order_id,
            "number": self.number,
            "customer": self.customer,
            "user": self.user,
            "status": self.status,
            "reason": self.reason,
            "code": self.code,
            "owner": self.owner,
            "product": self.product,
            "since": self.since.isoformat() if self.since else "",
            "until": self.until.isoformat() if self.until else "",
        }
        return {name: value for name, value in found.items() if value} | ({"open": "1"} if self.open else {})


def search_of(parameters: Mapping[str, str]) -> OrderSearch:
    """Return the search that query parameters of the console describe. Raises the 422 problem for a wrong time."""
    given = {name: value.strip() for name, value in parameters.items()}
    return OrderSearch(
        order_id=given.get("id", ""),
        number=given.get("number", ""),
        customer=given.get("customer", ""),
        user=given.get("user", ""),
        status=given.get("status", ""),
        reason=given.get("reason", ""),
        code=given.get("code", ""),
        owner=given.get("owner", ""),
        product=given.get("product", ""),
        since=_time_of("since", given.get("since", "")),
        until=_time_of("until", given.get("until", "")),
        open=bool(given.get("open")),
    )


def _time_of(field: str, text: str) -> datetime | None:
    try:
        return read_time(text, utc_now()) if text else None
    except ValueError as error:
        raise invalid((field, str(error))) from None


def visible_to(search: OrderSearch, caller: Principal) -> OrderSearch:
    """Return the search. Raises the 403 problem if it is for a customer, whom the caller may not search for."""
    needed = Permission.ORDERS_FULFIL
    if search.customer and not caller.may(needed):
        # Whose name it is could be guessed, one letter after another.
        raise ProblemError(HTTPStatus.FORBIDDEN, f"Searching for a customer needs the permission {needed}")
    return search


class OrderPage(NamedTuple):
    """A page of orders, and the cursor of the next page (None on the last one)."""

    items: list[Document]
    next_cursor: str | None


class OrderTotals(NamedTuple):
    """The number of orders, of their customers, and what they cost, in minor units by currency."""

    orders: int
    customers: int
    amounts: Mapping[str, int]


async def find_orders(
    orders: Collection,
    search: OrderSearch,
    cursor: str | None = None,
    *,
    limit: int = PAGE,
    oldest_first: bool = False,
) -> OrderPage:
    """Return a page of orders. Raises the 422 problem for a wrong cursor or number; lets the driver's errors out."""
    query = query_of(search)
    if (last_shown := after_time(cursor or None)) is not None:
        at, order_id = last_shown
        beyond = "$gt" if oldest_first else "$lt"
        after = {"$or": [{"createdAt": {beyond: at}}, {"createdAt": at, "_id": {beyond: order_id}}]}
        query["$and"] = [*query.get("$and", ()), after]
    direction = ASCENDING if oldest_first else DESCENDING
    by_time = [("createdAt", direction), ("_id", direction)]
    found = (
        await orders.find(query, {"history": False, PARTICULARS: False}).sort(by_time).limit(limit + 1).to_list(None)
    )
    page = found[:limit]
    if len(found) <= limit:
        return OrderPage(page, None)
    last = page[-1]
    return OrderPage(page, write_cursor(time_key(last["createdAt"], last["_id"])))


async def count_orders(orders: Collection, search: OrderSearch) -> int:
    """Count the orders of a search, up to MOST_COUNTED."""
    return await orders.count_documents(query_of(search), limit=MOST_COUNTED)


async def select_orders(orders: Collection, query: Document) -> list[Document]:
    """Return who placed each order of a query and what it costs, the oldest first."""
    fields = {"userId": True, "totalAmount": True, "currency": True}
    return await orders.find(query, fields).sort([("createdAt", 1), ("_id", 1)]).to_list(None)


def digest_of(selected: Sequence[Document]) -> str:
    """Return what is the same for the same orders, in whatever order they are."""
    return sha256("\n".join(sorted(str(order["_id"]) for order in selected)).encode()).hexdigest()


def totals_of(selected: Sequence[Document]) -> OrderTotals:
    """Add up selected orders; a damaged amount counts as nothing."""
    amounts = Counter[str]()
    for order in selected:
        amount = order.get("totalAmount")
        amounts[str(order.get("currency") or "")] += amount if isinstance(amount, int) else 0
    customers = {str(order.get("userId")) for order in selected}
    return OrderTotals(len(selected), len(customers), dict(sorted(amounts.items())))


def query_of(search: OrderSearch) -> dict[str, Any]:
    """Return a query that an index serves: the indexes begin with the status, the user or a word of the person.

    Raises the 422 problem for a text that is no order number.
    """
    query: dict[str, Any] = {"status": search.status or {"$in": [str(status) for status in search.statuses or Status]}}
    if search.order_id:
        query["_id"] = _begins_with(search.order_id)
    if search.number:
        query.setdefault("_id", {}).update(_with_number(search.number))
    if search.ids:
        query.setdefault("_id", {}).update({"$in": list(search.ids)})
    if search.customer:
        query[f"{PERSONAL}.words"] = {"$all": [_pattern(word) for word in words_of(search.customer)]}
    if search.reason:
        query["failureReason"] = _begins_with(search.reason)
    exact = {"userId": search.user, "ownerId": search.owner, "failureCode": search.code}
    query |= {name: value for name, value in exact.items() if value}
    if search.product:
        query["items.productId"] = search.product
    if search.open:
        query["settled"] = False
    if search.since or search.until:
        placed = {"$gte": search.since, "$lt": search.until}
        query["createdAt"] = {operator: at for operator, at in placed.items() if at}
    if search.stuck_at:
        query |= stuck(search.stuck_at)
    return query


def query_for(action: OrderAction, search: OrderSearch) -> Document:
    """Return the query of the orders of a search for which the action is possible."""
    return {"$and": [query_of(search), action.query]}


def stuck(now: datetime) -> Document:
    """Return the condition of the orders that wait for an answer for too long; not for a decision."""
    return {"settled": False, "updatedAt": {"$lt": now - STUCK_AFTER}, "$and": [AWAITS_ANSWER]}


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

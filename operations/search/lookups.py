"""Looks an id up everywhere it can be, each time by an index or in a collection that is small.

Errors of the driver pass through: `searching` says in which places it could not look.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple
from urllib.parse import quote, urlencode

from pymongo import AsyncMongoClient

from inventory_service.stock import hold_reservation_id
from operations.approvals.schema import APPROVALS
from operations.dead_letters.filters import Filters, query
from operations.dead_letters.schema import GROUPS, LETTERS, REPLAYS
from operations.dead_letters.status import DISCARDED, HANDLED, OPEN
from operations.dead_letters.title import title_of
from operations.order_actions.schema import BULK_ACTIONS
from operations.order_actions.search import OrderSearch, query_of
from operations.reading.participant_records import PARTICIPANT_RECORDS
from operations.search.hits import Hit
from order_service.order import Status
from order_service.order_number import ids_of, order_number
from payment_service.ledger.chart_of_accounts import AccountKind
from provisioning_service.addresses import package_key
from shared import audit_log
from shared.access.permissions import Permission
from shared.contracts.orders import SLOT_ID_PATTERN
from shared.database import Collection, Document
from shared.money import to_json_number
from shared.services import CONSOLE, INVENTORY, NOTIFICATION, ORDER, PAYMENT, PROVISIONING

MOST_SIMILAR = 5
"""Things that begin with the text, of each kind."""

SHORTEST_PREFIX = 4
"""Characters from which on things that begin with the text are looked for."""

_FUNDS = {"entries": "ledger entry", "fund_payments": "payment of an invoice", "bank_transfers": "bank transfer"}

Find = Callable[[str], Awaitable[list[Hit]]]


class Lookup(NamedTuple):
    """A place where an id may be: its name in a sentence, the permission that it needs, and how to look."""

    place: str
    needs: Permission
    find: Find


class Lookups:
    """The places of a stack."""

    def __init__(self, client: AsyncMongoClient[Document], prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._operations = client[CONSOLE.database_in(prefix)]
        self._orders: Collection = client[ORDER.database_in(prefix)]["orders"]
        self._inventory = client[INVENTORY.database_in(prefix)]
        self._payments = client[PAYMENT.database_in(prefix)]
        self._provisioning = client[PROVISIONING.database_in(prefix)]
        self._deliveries: Collection = client[NOTIFICATION.database_in(prefix)]["deliveries"]

    def places(self) -> tuple[Lookup, ...]:
        """Return all places."""
        p = Permission
        return (
            Lookup("ids and numbers of orders", p.ORDERS_READ, self._of_order),
            Lookup("reservations and payments", p.ORDERS_READ, self._of_participant),
            Lookup("users", p.ORDERS_READ, self._of_user),
            Lookup("customers' names and e-mail addresses", p.ORDERS_FULFIL, self._of_customer),
            Lookup("owners", p.ORDERS_READ, self._of_owner),
            Lookup("actions on many orders", p.ORDERS_READ, self._of_bulk_action),
            Lookup("requests for a second person", p.ORDERS_READ, self._of_approval),
            Lookup("products", p.CATALOGUE_READ, self._of_product),
            Lookup("delivery slots", p.ORDERS_READ, self._of_slot),
            Lookup("holds", p.HOLDS_READ, self._of_hold),
            Lookup("dead letters", p.LETTERS_READ, self._of_letter),
            Lookup("groups of dead letters", p.LETTERS_READ, self._of_group),
            Lookup("replays", p.LETTERS_READ, self._of_replay),
            Lookup("operators' actions", p.LETTERS_READ, self._of_action),
            Lookup("servers' addresses and jobs", p.PROVISIONING_READ, self._of_server),
            Lookup("packages", p.PROVISIONING_READ, self._of_package),
            Lookup("accounts, invoices and ledger entries", p.FUNDS_READ, self._of_account),
            Lookup("webhooks", p.WEBHOOKS_READ, self._of_webhook),
        )

    async def _of_order(self, text: str) -> list[Hit]:
        ids: list[Document] = [{"_id": text}]
        if len(text) >= SHORTEST_PREFIX:
            ids.append({"_id": _begins_with(text)})
        try:
            first, last = ids_of(text)
            ids.append({"_id": {"$gte": first, "$lte": last}})
        except ValueError:
            pass
        fields = {"status": True, "totalAmount": True, "currency": True}
        found: dict[str, Document] = {}
        for asked in ids:
            async for order in self._orders.find(asked, fields).sort("_id").limit(MOST_SIMILAR + 1):
                found.setdefault(order["_id"], order)
        hits = [_order_hit(order, text) for order in list(found.values())[:MOST_SIMILAR]]
        return hits + _more(found, "orders", _list("/orders", id=text))

    async def _of_participant(self, text: str) -> list[Hit]:
        hits = []
        for row in PARTICIPANT_RECORDS:
            records: Collection = self._client[row.service.database_in(self._prefix)][row.collection]
            if (record := await records.find_one({"_id": text}, {"status": True})) is not None:
                hits.append(Hit(f"{row.noun} of order", text, _page("orders", text), str(record.get("status"))))
        return hits

    async def _of_user(self, text: str) -> list[Hit]:
        if await self._orders.find_one({"userId": text}, {"_id": True}) is None:
            return []
        return [Hit("user", text, _list("/orders", user=text), "their orders")]

    async def _of_customer(self, text: str) -> list[Hit]:
        asked = query_of(OrderSearch(customer=text))
        if not asked["personal.words"]["$all"] or await self._orders.find_one(asked, {"_id": True}) is None:
            return []
        return [Hit("customer", text, _list("/orders", customer=text), "their orders", exact=False)]

    async def _of_owner(self, text: str) -> list[Hit]:
        # The index begins with the owner and the status.
        asked = {"ownerId": text, "status": {"$in": list(Status)}}
        if await self._orders.find_one(asked, {"_id": True}) is None:
            return []
        return [Hit("owner", text, _list("/orders", owner=text), "the orders of this shop")]

    async def _of_bulk_action(self, text: str) -> list[Hit]:
        found = await self._operations[BULK_ACTIONS].find_one({"_id": text})
        if found is None:
            return []
        detail = f"{found['action']}, {found['status']}"
        return [Hit("action on many orders", text, _page("bulk-actions", "results", text), detail)]

    async def _of_approval(self, text: str) -> list[Hit]:
        found = await self._operations[APPROVALS].find_one({"_id": text})
        return [Hit("request", text, "/approvals", f"{found['action']}, {found['status']}")] if found else []

    async def _of_product(self, text: str) -> list[Hit]:
        products: Collection = self._inventory["products"]
        ids: list[Document] = [{"_id": text}]
        if len(text) >= SHORTEST_PREFIX:
            ids.append({"_id": _begins_with(text)})
        found: dict[str, Document] = {}
        for asked in ids:
            # Delivery slots are in the same collection.
            async for product in products.find(asked | {"end": {"$exists": False}}).sort("_id").limit(MOST_SIMILAR + 1):
                found.setdefault(product["_id"], product)
        hits = [
            Hit("product", name, _list("/inventory", product=name), _stock(product), exact=name == text)
            for name, product in list(found.items())[:MOST_SIMILAR]
        ]
        return hits + _more(found, "products", "/inventory")

    async def _of_slot(self, text: str) -> list[Hit]:
        if not re.fullmatch(SLOT_ID_PATTERN, text):
            return []
        if await self._inventory["products"].find_one({"_id": text}, {"_id": True}) is None:
            # It may be one of those that are offered: they are stored when they are booked.
            return [Hit("delivery slot", text, _page("slots", text), "never booked", exact=False)]
        return [Hit("delivery slot", text, _page("slots", text))]

    async def _of_hold(self, text: str) -> list[Hit]:
        found = await self._inventory["reservations"].find_one({"_id": hold_reservation_id(text)})
        if found is None:
            return []
        order_id = (found.get("hold") or {}).get("orderId")
        return [Hit("hold", text, _page("orders", order_id) if order_id else None, str(found.get("status")))]

    async def _of_letter(self, text: str) -> list[Hit]:
        letters: Collection = self._operations[LETTERS]
        asked = _begins_with(text) if len(text) >= SHORTEST_PREFIX else text
        fields = {"status": True, "routingKey": True, "queue": True}
        found = await letters.find({"_id": asked}, fields).limit(MOST_SIMILAR + 1).to_list(None)
        hits = [
            Hit(
                "dead letter",
                letter["_id"],
                _page("dead-letters", "letters", letter["_id"]),
                f"{letter['status']}, {letter.get('routingKey') or 'no routing key'} in {letter.get('queue')}",
                exact=letter["_id"] == text,
            )
            for letter in found[:MOST_SIMILAR]
        ]
        # The words of a letter are those of its ids, its error and its body, without what is hidden.
        for what, statuses in (("open", OPEN), (HANDLED, (HANDLED,)), (DISCARDED, (DISCARDED,))):
            naming = query(Filters(status=statuses, text=text))
            if await letters.find_one(naming, {"_id": True}) is not None:
                chosen = {} if len(statuses) > 1 else {"status": what}
                address = _list("/dead-letters/list", text=text, **chosen)
                hits.append(Hit(f"{what} letters that name it", text, address, exact=False))
        return hits

    async def _of_group(self, text: str) -> list[Hit]:
        found = await self._operations[GROUPS].find_one({"_id": text}, {"errorType": True, "pattern": True})
        if found is None:
            return []
        title = title_of(found.get("errorType", ""), found.get("pattern", ""))
        return [Hit("group of dead letters", text, _page("dead-letters", "groups", text), title)]

    async def _of_replay(self, text: str) -> list[Hit]:
        found = await self._operations[REPLAYS].find_one({"_id": text}, {"status": True, "total": True})
        if found is None:
            return []
        detail = f"{found['status']}, {found['total']:,} letters"
        return [Hit("replay", text, _page("dead-letters", "replays", text), detail)]

    async def _of_action(self, text: str) -> list[Hit]:
        found = await self._operations[audit_log.COLLECTION].find_one({"subject": text}, {"action": True})
        return [Hit("operators' actions on", text, _list("/actions", subject=text), exact=False)] if found else []

    async def _of_server(self, text: str) -> list[Hit]:
        hits = []
        if (address := await self._provisioning["addresses"].find_one({"_id": text})) is not None:
            detail = "wrong: outside of the ordered package" if address.get("wrong") else "sold to this order"
            hits.append(Hit("server", text, _page("orders", address["orderId"]), detail))
        if (job := await self._provisioning["jobs"].find_one({"_id": text}, {"state": True, "ip": True})) is not None:
            # Not the thing itself: whoever looks for this id means the order, whose page leads to the job.
            detail = " ".join(filter(None, (job.get("state"), job.get("ip"))))
            hits.append(Hit("job of order", text, _page("jobs", text), detail, exact=False))
        return hits

    async def _of_package(self, text: str) -> list[Hit]:
        # As many documents as the provider has packages.
        found = await self._provisioning["packages"].find_one({"$or": [{"_id": text}, {"name": text}]})
        lock = await self._provisioning["locks"].find_one({"_id": text})
        if found is None and lock is None:
            return []
        left = f"{found['ipv4']:,} addresses left" if found and isinstance(found.get("ipv4"), int) else ""
        held = f"locked by order {lock['orderId']}" if lock and lock.get("orderId") else ""
        hits = [Hit("package", text, "/packages", ", ".join(part for part in (left, held) if part))]
        if await self._provisioning["jobs"].find_one({"lockKey": package_key(text)}, {"_id": True}) is not None:
            hits.append(Hit("jobs of package", text, _list("/jobs", package=text), exact=False))
        return hits

    async def _of_account(self, text: str) -> list[Hit]:
        hits = []
        ids = [text, *(f"{kind}:{text}" for kind in AccountKind)]
        async for account in self._payments["accounts"].find({"_id": {"$in": ids}}):
            balance = f"{to_json_number(account['balance']):,.2f} {account.get('currency') or ''}"
            hits.append(
                Hit("account", account["_id"], None, f"{balance}; see `ordersaga accounts show {account['_id']}`")
            )
        for collection, what in _FUNDS.items():
            if (found := await self._payments[collection].find_one({"_id": text})) is not None:
                hits.append(Hit(what, text, None, str(found.get("operation") or found.get("status") or "")))
        return hits

    async def _of_webhook(self, text: str) -> list[Hit]:
        endpoint, _, event = text.partition(":")
        if event and await self._deliveries.find_one({"_id": text}, {"_id": True}) is not None:
            return [Hit("delivery to a webhook", text, _page("webhooks", endpoint, "deliveries", event))]
        if await self._deliveries.find_one({"endpointId": text, "status": {"$exists": True}}, {"_id": True}) is None:
            return []
        return [Hit("webhook", text, _page("webhooks", text))]


def _order_hit(order: Mapping[str, object], text: str) -> Hit:
    order_id = str(order["_id"])
    amount = order.get("totalAmount")
    cost = f", {to_json_number(amount):,.2f} {order.get('currency') or ''}" if isinstance(amount, int) else ""
    number = order_number(order_id)
    is_number = number is not None and number.replace("-", "") == re.sub(r"[\s-]", "", text).upper()
    name = f"{number} ({order_id})" if number else order_id
    return Hit("order", name, _page("orders", order_id), f"{order.get('status')}{cost}", order_id == text or is_number)


def _more(found: Mapping[str, Document], what: str, address: str) -> list[Hit]:
    return [Hit(f"more {what} that begin so", "all of them", address, exact=False)] if len(found) > MOST_SIMILAR else []


def _stock(product: Document) -> str:
    free = product.get("quantity")
    return f"{free:,} free" if isinstance(free, int) else str(product.get("kind") or "")


def _begins_with(text: str) -> dict[str, str]:
    return {"$gte": text, "$lt": f"{text}\U0010ffff"}


def _page(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="", errors="replace") for part in parts)


def _list(address: str, **asked: str) -> str:
    return f"{address}?{urlencode(asked, errors='replace')}"

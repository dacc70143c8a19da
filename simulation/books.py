"""The invariants, checked once everything has settled: those of the audit, and what only the simulation knows.

The audit's judges are pure; their records are put together here from all documents of the databases. In addition, the
clients know what they were told, the provider knows what it has sold, and nothing is left to happen.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from operations.audit import funds, holds, orders, servers, slots, stock
from operations.audit.funds import EntryRecords, RetainerOrder, UnpaidOrders
from operations.audit.holds import HoldRecords
from operations.audit.order_records import OrderRecords
from operations.audit.report import Violation
from operations.audit.servers import OwnedRecord
from operations.audit.stock import StockRecords
from operations.reading.balances import Balance
from operations.reading.participant_records import PARTICIPANT_RECORDS, by_participant
from shared.database import Document
from shared.memory_database import MemoryDatabase
from simulation.people import PREPAID, ROOM, STOCK, Shop
from simulation.provider import ProviderSite

GONE_THROUGH = ("CONFIRMED", "COMPLETED")

ById = Mapping[str, Document]


@dataclass(frozen=True)
class Books:
    """All documents of a world, by collection and id."""

    orders: ById
    reservations: ById
    products: ById
    payments: ById
    charges: ById
    accounts: ById
    entries: ById
    jobs: ById
    addresses: ById
    locks: ById

    def unsettled(self, shop: Shop) -> Iterator[str]:
        """Yield what still has to happen before the books can be judged."""
        for number, order_id in sorted(shop.accepted.items()):
            if not self.orders.get(order_id, {}).get("settled"):
                order = self.orders.get(order_id, {"status": "lost"})
                yield f"order {number} ({order_id[:6]}) is {order['status']} and not settled"
        for kind, name in (("orders", "unpublished"), ("payments", "unpublished"), ("jobs", "outboxSince")):
            for key, record in getattr(self, kind).items():
                if record.get(name):
                    yield f"a message of {key[:6]} among the {kind} is not published"
        for key, product in self.products.items():
            if product.get("moving"):
                yield f"{key} has pending moves"
        for key, reservation in self.reservations.items():
            if reservation.get("hold") and reservation["status"] == "RESERVED":
                yield f"{key} is not returned"


def read_books(databases: Mapping[str, MemoryDatabase]) -> Books:
    """Read all documents."""
    found = {
        (service, name): {document["_id"]: document for document in databases[service].documents(name)}
        for service, name in _COLLECTIONS.values()
    }
    return Books(**{field: found[place] for field, place in _COLLECTIONS.items()})


_COLLECTIONS = {
    "orders": ("order", "orders"),
    "reservations": ("inventory", "reservations"),
    "products": ("inventory", "products"),
    "payments": ("payment", "payments"),
    "charges": ("payment", "gateway_charges"),
    "accounts": ("payment", "accounts"),
    "entries": ("payment", "entries"),
    "jobs": ("provisioning", "jobs"),
    "addresses": ("provisioning", "addresses"),
    "locks": ("provisioning", "locks"),
}


@dataclass(frozen=True)
class News:
    """The types of the messages that have reached a queue, each with its order."""

    published: Collection[tuple[str, str]]
    is_complete: bool = True
    """False if the broker has lost some, which `ordersaga recover` sends again."""


def judge(books: Books, shop: Shop, site: ProviderSite, now: datetime, news: News) -> list[str]:
    """Return every violated invariant in words; `now` is a time at which nothing may be under way any more."""
    found = [_in_words(violation) for violation in _audited(books, now)]
    return [
        *found,
        *_told(books, shop),
        *_conserved(books),
        *_charged(books),
        *_retained(books, shop),
        *_sold(books, site),
        *_done_once(books),
        *site.defects,
        *_announced(books, news),
    ]


def _in_words(violation: Violation) -> str:
    subject = f"{violation.subject} {violation.id}"
    about = f"invariant {violation.invariant}, {violation.kind}"
    return f"{about}: {subject}: {violation.found}; expected {violation.expected}"


# --- The audit's judges. ---


def _audited(books: Books, now: datetime) -> Iterator[Violation]:
    for records in _orders(books):
        yield from orders.judge(records, now)
    for item in _stock(books):
        yield from (slots.judge if item.is_slot else stock.judge)(item, now)
    for key, record in books.reservations.items():
        if key.startswith(stock.HOLD):
            order_id = str((record.get("hold") or {}).get("orderId"))
            taken = HoldRecords(record, books.orders.get(order_id), books.reservations.get(order_id))
            yield from holds.judge(taken, now)
    for address in _owned(books, books.addresses.values()):
        yield from servers.judge_address(address)
    for lock in _owned(books, books.locks.values()):
        if lock.record.get("orderId"):
            yield from servers.judge_lock(lock, now)
    yield from _shared(books)
    yield from _ledger(books)


def _shared(books: Books) -> Iterator[Violation]:
    """Yield the servers of several orders, and the orders with several servers."""
    completed = [order for order in books.orders.values() if order["status"] == "COMPLETED"]
    for found in _duplicates((servers.server_ip(order), order["_id"]) for order in completed):
        yield servers.shared_address(*found)
    of_orders = [address for address in books.addresses.values() if not address.get("wrong")]
    for found in _duplicates((address.get("orderId"), address["_id"]) for address in of_orders):
        yield servers.two_servers(*found)


def _duplicates(pairs: Iterable[tuple[str | None, str]]) -> Iterator[tuple[str, int, list[str]]]:
    """Yield what several records name, with their number and the first and the last of them."""
    named: dict[str, list[str]] = defaultdict(list)
    for name, record in pairs:
        if name is not None:
            named[name].append(record)
    for name, records in sorted(named.items()):
        if len(records) > 1:
            yield name, len(records), [min(records), max(records)]


def _orders(books: Books) -> Iterator[OrderRecords]:
    kinds = {row.collection: getattr(books, row.collection) for row in PARTICIPANT_RECORDS}
    kept = {key for key in books.reservations if ":" not in key}
    for order_id in sorted({*books.orders, *kept, *books.payments, *books.charges, *books.jobs}):
        order, job = books.orders.get(order_id), books.jobs.get(order_id)
        yield OrderRecords(
            order_id,
            order,
            by_participant(kinds, order_id),
            charge=books.charges.get(order_id),
            job=job,
            address=books.addresses.get(servers.server_ip(order or {}) or ""),
            package=_package(books, servers.queued_package(job) if job else None),
        )


def _package(books: Books, name: str | None) -> Document | None:
    moved = [job["updatedAt"] for job in books.jobs.values() if name is not None and job.get("lockKey") == name]
    if not moved:
        return None
    return {"_id": name, "movedAt": max(moved), "expiresAt": books.locks.get(name or "", {}).get("expiresAt")}


def _stock(books: Books) -> Iterator[StockRecords]:
    out: dict[str, int] = defaultdict(int)
    shipped: dict[str, int] = defaultdict(int)
    counted = {*books.products}
    for reservation in books.reservations.values():
        if not stock.keeps_units(reservation):
            continue
        named = {item["productId"] for item in reservation.get("items", ())}
        slot = (reservation.get("slot") or {}).get("slotId")
        for key in named | ({slot} if slot else set()):
            units = stock.held_by(reservation, key)
            out[key] += units
            shipped[key] += units if reservation["status"] == "SHIPPED" else 0
            counted.add(key)
    for key in sorted(counted):
        product = books.products.get(key)
        moving = [stock.order_of(name) for name in (product or {}).get("moving") or {}]
        reservations = {name: books.reservations[name] for name in moving if name in books.reservations}
        of_orders = {name: books.orders[name] for name in moving if name in books.orders}
        yield StockRecords(key, product, out[key], shipped[key], reservations, of_orders)


def _owned(books: Books, records: Iterable[Document]) -> Iterator[OwnedRecord]:
    for record in records:
        order_id = str(record.get("orderId"))
        yield OwnedRecord(record, books.orders.get(order_id), books.jobs.get(order_id))


def _ledger(books: Books) -> Iterator[Violation]:
    for balance in _balances(books):
        yield from funds.judge_account(balance)
    about: dict[str, list[Document]] = defaultdict(list)
    for entry in sorted(books.entries.values(), key=lambda entry: str(entry["_id"])):
        yield from funds.judge_entry(EntryRecords(entry, books.accounts, {}, {}, books.entries))
        if entry.get("operation") in ("order.paid", "order.refunded", "order.part_refunded"):
            about[str(entry["reference"]["orderId"])].append(entry)
    for found in _duplicates((entry.get("reverses"), entry["_id"]) for entry in books.entries.values()):
        yield funds.reversed_twice(*found)
    unpaid = UnpaidOrders()
    by_retainer = {key for key, payment in books.payments.items() if payment.get("retainerId")}
    for order_id in sorted(by_retainer | about.keys()):
        payment = books.payments[order_id] if order_id in by_retainer else None
        for each in funds.of_each_order(RetainerOrder(order_id, payment, about[order_id])):
            unpaid.add(each)
            yield from funds.judge_order(each)
    yield from unpaid.violations({})


def _balances(books: Books) -> Iterator[Balance]:
    posted: dict[str, list[int]] = defaultdict(list)
    currency: dict[str, str] = {}
    for entry in books.entries.values():
        for posting in entry["postings"]:
            posted[posting["account"]].append(posting["amount"])
            currency.setdefault(posting["account"], entry["currency"])
    for key in sorted({*posted, *books.accounts}):
        account = books.accounts.get(key)
        of_account = (account or {}).get("currency") or currency.get(key)
        yield Balance(key, account, sum(posted[key]), len(posted[key]), of_account)


# --- What only the simulation knows. ---


def _told(books: Books, shop: Shop) -> Iterator[str]:
    """Yield what differs from what clients were told: orders that do not exist, others that do, and what they hold."""
    accepted = set(shop.accepted.values())
    for number, order_id in sorted(shop.accepted.items()):
        if order_id not in books.orders:
            yield f"lost: order {number} ({order_id}) was accepted, and does not exist"
    for order_id in sorted(books.orders.keys() - accepted):
        yield f"doubled: no client was told of order {order_id}"
    if len(accepted) < len(shop.accepted):
        yield f"mixed up: {len(shop.accepted)} orders were accepted under {len(accepted)} ids"
    for order_id, asked in shop.asked.items():
        if (order := books.orders.get(order_id)) is not None:
            yield from _as_asked(order, asked)
            yield from _as_answered(order, shop)
            yield from _refunds_as_answered(order, shop)


def _as_asked(order: Document, asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is stored of an order and was not asked for."""
    stored = {
        "user": order["userId"],
        "items": [(item["productId"], item["quantity"], item["price"]) for item in order["items"]],
        "total": order["totalAmount"],
        "slot": (order.get("delivery") or {}).get("slot"),
        "hold": order.get("holdId"),
        "token": order["payment"].get("token"),
        "retainer": order["payment"].get("retainerId"),
    }
    wanted = {
        "user": asked["userId"],
        "items": [(item["productId"], item["quantity"], 100 * item["price"]) for item in asked["items"]],
        "total": 100 * asked["totalAmount"],
        "slot": asked.get("delivery", {}).get("slot"),
        "hold": asked.get("holdId"),
        "token": asked["payment"].get("token"),
        "retainer": asked["payment"].get("retainerId"),
    }
    for name, value in wanted.items():
        if stored[name] != value:
            yield f"changed: order {order['_id']} was placed with the {name} {value}, and has {stored[name]}"


_ENDS = {"cancel": ("CANCELLED",), "refund": ("CANCELLED", "FAILED"), "deliver": ("COMPLETED",)}
"""How an order may end after a request that was accepted; a cancellation of what had failed counts as a refund."""


def _as_answered(order: Document, shop: Shop) -> Iterator[str]:
    """Yield the requests that were accepted and have not changed the order."""
    accepted = shop.ended.get(order["_id"], ())
    for kind in sorted(accepted):
        if kind == "cancel" and order.get("server"):
            continue  # provisioning was asked to stop, and had bought already
        if kind == "cancel" and order["status"] == "FAILED" and order.get("provisioningRun"):
            continue  # provisioning had bought a wrong server
        if order["status"] not in _ENDS.get(kind, (order["status"],)):
            yield f"forgotten: {kind} of order {order['_id']} was accepted, and it is {order['status']}"


def _refunds_as_answered(order: Document, shop: Shop) -> Iterator[str]:
    """Yield the refunds in part that clients were promised and that are not recorded, and the other way round."""
    order_id = order["_id"]
    promised = {each.refund_id: each.amount for each in shop.refunds.get(order_id, {}).values()}
    recorded = {each["refundId"]: each["amount"] for each in order.get("refunds") or ()}
    if len(promised) < len(shop.refunds.get(order_id, {})):
        yield f"refunds: two requests for refunds of order {order_id} were answered with one id"
    for refund_id, amount in promised.items():
        if recorded.get(refund_id) != amount:
            yield f"refunds: {amount} of order {order_id} was promised as {refund_id}, found {recorded.get(refund_id)}"
    more = recorded.keys() - promised.keys()
    if len(more) > len(shop.doubtful_refunds.get(order_id, ())):
        yield f"refunds: order {order_id} has refunds that nobody was told of: {', '.join(sorted(more))}"


def _conserved(books: Books) -> Iterator[str]:
    """Yield products of which not exactly what went through has left, and slots that are not booked by just that."""
    through = [order for order in books.orders.values() if order["status"] in GONE_THROUGH]
    for product in ("p1", "p2"):
        sold = sum(item["quantity"] for order in through for item in order["items"] if item["productId"] == product)
        back = sum(
            item["quantity"]
            for reservation in books.reservations.values()
            for each in reservation.get("returns") or ()
            for item in each["items"]
            if item["productId"] == product
        )
        free = books.products.get(product, {}).get("quantity")
        if free != STOCK - sold + back:
            yield f"stock: {free} of {product} are free; of {STOCK}, {sold} were sold and {back} came back"
    for key, slot in books.products.items():
        if slot.get("kind") == "slot":
            booked = sum(order["totalAmount"] for order in through if order.get("slot") == key)
            load = slot["supplied"] - slot["quantity"]
            if load != booked or load > 100 * ROOM:
                yield f"slots: {key} has a load of {load}, its orders add up to {booked}, its room is {100 * ROOM}"


def _charged(books: Books) -> Iterator[str]:
    """Yield the orders whose customer is charged for nothing, or not charged."""
    for order_id, order in books.orders.items():
        charge = books.charges.get(order_id) or {}
        taken = charge.get("outcome") if charge.get("refundedAt") is None else None
        by_card = not books.payments.get(order_id, {}).get("retainerId")
        due = by_card and order["status"] in GONE_THROUGH
        if taken == "AUTHORIZED" or (taken == "CHARGED") != due:
            yield f"charge: order {order_id} is {order['status']}, and its card is {taken or 'not charged'}"


def _retained(books: Books, shop: Shop) -> Iterator[str]:
    """Yield the retainer unless it was charged exactly for what went through and was paid from it."""
    paid = {key for key, payment in books.payments.items() if payment.get("retainerId") == shop.retainer_id}
    spent = sum(
        order["totalAmount"] - order.get("refundedAmount", 0)
        for key, order in books.orders.items()
        if key in paid and order["status"] in GONE_THROUGH
    )
    balance = books.accounts.get(f"retainer:{shop.retainer_id}", {}).get("balance", 0)
    if balance != 100 * PREPAID - spent or balance < 0:
        yield f"retainer: {balance} of {100 * PREPAID} are left, and orders have spent {spent}"


_ENDS_OF_NEWS = {"order.cancelled": ("CANCELLED",), "order.confirmed": GONE_THROUGH, "order.completed": ("COMPLETED",)}
"""How an order may end that was announced as this: nothing of it is ever taken back."""


def _announced(books: Books, news: News) -> Iterator[str]:
    """Yield the orders whose final status nobody was told, and those that were announced as what they are not."""
    for order_id, order in books.orders.items():
        if news.is_complete and (f"order.{order['status'].lower()}", order_id) not in news.published:
            yield f"news: order {order_id} is {order['status']}, and this was never published"
        for name, statuses in _ENDS_OF_NEWS.items():
            if order["status"] not in statuses and (name, order_id) in news.published:
                yield f"news: order {order_id} is {order['status']}, and {name} was published"


def _server_of(order: Document, job: Document) -> str | None:
    if order.get("server"):
        return str(order["server"]["ip"])
    return job.get("ip") if job.get("state") == "FAILED" else None


def _in_doubt(job: Document) -> Sequence[str]:
    """Return the addresses of a job's last purchase, if it has failed before that was found out."""
    purchase: Document = job.get("purchase") or {}
    return purchase["asked"] if job["state"] == "FAILED" and purchase.get("looked") is False else ()


def _sold(books: Books, site: ProviderSite) -> Iterator[str]:
    """Yield the servers that were sold and belong to no order, and the orders whose server was not sold.

    Only what the provider itself has sold by mistake belongs to nobody; what a service calls wrong does not count. If
    the provider did not say how to get into a server, its order failed and the job has the server. If nobody could find
    out whether the provider sold what it was asked for, the job names that, and an operator may retry.
    """
    found = (_server_of(order, books.jobs.get(order_id, {})) for order_id, order in books.orders.items())
    owned = sorted(ip for ip in found if ip is not None and ip not in site.sold_wrongly)
    in_doubt = {ip for job in books.jobs.values() for ip in _in_doubt(job)} - {*owned}
    sold = sorted(sale.ip for sale in site.state.purchases if sale.ip not in {*site.sold_wrongly, *in_doubt})
    if sold != owned:
        yield f"servers: the provider has sold {', '.join(sold)}; orders have {', '.join(owned)}"


_ONCE = (("verify", "ok"), ("status", "ok"))
"""The steps of a job that succeed once, with that outcome."""


def _done_once(books: Books) -> Iterator[str]:
    """Yield the jobs of which two workers have done the same, and the holds that two orders have."""
    for order_id, job in books.jobs.items():
        logged = Counter((attempt["step"], attempt["outcome"]) for attempt in job.get("attempts", ()))
        for step in _ONCE:
            if logged[step] > 1:
                yield f"twice: the job of order {order_id} has succeeded in {step[0]} {logged[step]} times"
    used = ((key, reservation.get("usedHold") or {}) for key, reservation in books.reservations.items())
    taken = ((hold["holdId"], key) for key, hold in used if hold.get("outcome") == "TAKEN")
    for hold_id, _, named in _duplicates(taken):
        yield f"twice: the orders {' and '.join(named)} have taken the hold {hold_id}"

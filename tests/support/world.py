"""A small world of correct records: an order for every possible course, with the records of all services."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
from pymongo.asynchronous.collection import AsyncCollection

from operations.audit import Report, audit

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(hours=2)
JUST_NOW = NOW + timedelta(hours=2)
"""The time of recent events: in the future, so that it stays recent however long the tests take."""
TOTAL = 2000
SERVER = (("server", 1),)
DATABASES = {
    "orders": "orders",
    "products": "inventory",
    "reservations": "inventory",
    "payments": "payments",
    "gateway_charges": "payments",
    "stripe_intents": "payments",
    "accounts": "payments",
    "entries": "payments",
    "fund_payments": "payments",
    "bank_transfers": "payments",
    "jobs": "provisioning",
    "addresses": "provisioning",
    "locks": "provisioning",
}
Document = dict[str, Any]


@dataclass
class World:
    """Records of all services, and their databases."""

    client: pymongo.AsyncMongoClient[Document]
    prefix: str
    mongodb_url: str
    amqp_url: str
    records: dict[str, list[Document]] = field(default_factory=dict)

    def collection(self, name: str) -> AsyncCollection[Document]:
        return self.client[f"{self.prefix}_{DATABASES[name]}"][name]

    def add(self, name: str, /, **record: Any) -> None:
        self.records.setdefault(name, []).append(record)

    async def store(self) -> None:
        for name, documents in self.records.items():
            await self.collection(name).insert_many(documents)
        self.records.clear()

    async def audit(self, **options: Any) -> Report:
        return await audit(self.mongodb_url, self.amqp_url, self.prefix, **({"confirm_after": 0.05} | options))


def populate(world: World) -> None:
    """Add an order for every possible course. Of 20 units supplied of p1, 6 are out, and of 5 of p2, 1."""
    moving = {"taken": -1, "returning": 1, "recorded": -1, "refused": -1, "leaving": 0, "return:r1:putting-back": 1}
    world.add("products", _id="p1", kind="goods", quantity=14, supplied=20, shipped=2, version=9, moving=moving)
    world.add("products", _id="p2", kind="goods", quantity=4, supplied=5, version=3, moving={})
    world.add("products", _id="server", kind="vps", quantity=None, supplied=None, version=1, moving={})

    order(world, "confirmed", "CONFIRMED", items=(("p1", 1), ("p2", 1)))
    order(world, "recorded", "CONFIRMED")  # its reservation is stored, its pending move not yet removed
    order(world, "free", "CONFIRMED", items=(), total=0)
    # Delivered; one of them is counted as shipped, which is not recorded yet.
    gone: Document = {"fulfilment": "goods", "history": [{"status": s} for s in ("PENDING", "CONFIRMED", "COMPLETED")]}
    order(world, "gone", "COMPLETED", stock="SHIPPED", **gone)
    order(world, "leaving", "COMPLETED", **gone, settled=False, updatedAt=JUST_NOW)
    order(world, "no-stock", "CANCELLED", stock="FAILED", payment="REFUNDED")
    order(world, "declined", "CANCELLED", stock="RELEASED", payment="FAILED")
    order(world, "tombstones", "CANCELLED", stock="RELEASED", payment="VOIDED")

    on_its_way: Document = {"settled": False, "updatedAt": JUST_NOW}
    # Units are taken, and charged at the gateway; neither is recorded yet.
    order(world, "taken", "PENDING", stock="PENDING", payment="PENDING", **on_its_way)
    # Just refused; the unit of its pending move is about to be returned.
    order(world, "refused", "CANCELLED", stock="FAILED", payment="REFUNDED", updatedAt=JUST_NOW)
    # Cancelled: a pending move has returned the unit, while the reservation is still RESERVED.
    order(world, "returning", "CANCELLED", stock="RESERVED", payment="REFUNDED", **on_its_way)
    order(world, "new", None, stock=None, payment=None)
    populate_refunds(world)
    populate_servers(world)


def populate_refunds(world: World) -> None:
    """Add an order that was refunded in part, once in vain, and one whose unit is on its way back."""
    order(world, "refunded", "CONFIRMED", items=(("p2", 1),), refundedAmount=500)
    refund(world, "r1", 500, "REFUNDED", restock=True, returned=True)
    refund(world, "r2", 700, "FAILED")
    world.records["reservations"][-1]["returns"] = [{"refundId": "r1", "items": [{"productId": "p2", "quantity": 1}]}]
    order(world, "putting-back", "CONFIRMED", settled=False, updatedAt=JUST_NOW, refundedAmount=500)
    refund(world, "r1", 500, "REFUNDED", product="p1", restock=True)


def refund(
    world: World, refund_id: str, amount: int, status: str, product: str = "p2", *, by_card: bool = True, **more: Any
) -> None:
    """A refund in part of the order that was added last, for one unit, with its records."""
    known = {"refundId": refund_id, "amount": amount, "status": status}
    items = [{"productId": product, "quantity": 1}]
    asked = known | {"items": items, "updatedAt": world.records["orders"][-1]["updatedAt"], **more}
    world.records["orders"][-1].setdefault("refunds", []).append(asked)
    world.records["payments"][-1].setdefault("parts", []).append(dict(known))
    if by_card and status == "REFUNDED":
        world.records["gateway_charges"][-1].setdefault("parts", []).append({"refundId": refund_id, "amount": amount})


def populate_servers(world: World) -> None:
    """Add an order of a server for every possible course, over two packages: one is held, the other free."""
    completed: Document = {
        "server": {"ip": "103.181.9.5"},
        "provisioning": {"package": "103.181.9"},
        "provisioningRun": 1,
    }
    order(world, "completed", "COMPLETED", items=SERVER, **completed)
    job(world, "completed", "COMPLETED", ip="103.181.9.5")
    world.add("addresses", _id="103.181.9.5", orderId="completed", wrong=False, at=LONG_AGO)

    # Its first run was given this one; the second got it right.
    world.add("addresses", _id="103.181.90.9", orderId="completed", wrong=True, at=LONG_AGO)

    order(world, "held", "FAILED", items=SERVER, settled=False, dueAt=JUST_NOW)
    job(world, "held", "FAILED", wrongIps=["103.181.91.5"])
    world.add("addresses", _id="103.181.91.5", orderId="held", wrong=True, at=LONG_AGO)
    order(world, "given-up", "FAILED", stock="RELEASED", payment="REFUNDED", items=SERVER, compensating=True)
    job(world, "given-up", "FAILED")
    order(world, "server-cancelled", "CANCELLED", stock="RELEASED", payment="REFUNDED", items=SERVER)
    job(world, "server-cancelled", "FAILED")

    # These may wait for any time: a job works for them, or will when it is due.
    on_its_way: Document = {"items": SERVER, "settled": False, "provisioningRun": 1}
    order(world, "provisioning", "PROVISIONING", **on_its_way)
    job(world, "provisioning", "RUNNING", dueAt=JUST_NOW)
    world.add("locks", _id="103.181.9", orderId="provisioning", token=2, acquiredAt=LONG_AGO, expiresAt=JUST_NOW)
    order(world, "queued", "PROVISIONING", **on_its_way)
    job(world, "queued", "QUEUED", dueAt=LONG_AGO)
    order(world, "waiting", "PROVISIONING", **on_its_way | {"provisioningRun": 2})
    job(world, "waiting", "WAITING", "103.83.x", run=2, dueAt=JUST_NOW)
    world.add("locks", _id="103.83", token=7)
    # A process died between the end of its job and the release: the package is free.
    world.add("locks", _id="10.9", orderId="held", token=1, acquiredAt=LONG_AGO, expiresAt=LONG_AGO)
    # The job has ended, and its order is about to be informed.
    order(world, "ready", "PROVISIONING", **on_its_way)
    job(world, "ready", "COMPLETED", "103.83.x", ip="103.83.4.5", updatedAt=JUST_NOW)
    world.add("addresses", _id="103.83.4.5", orderId="ready", wrong=False, at=JUST_NOW)


# --- Delivery slots. ---

SLOT_START = LONG_AGO.replace(minute=0, second=0, microsecond=0)
FULL, LOWERED, FREE = (f"slot:{int((SLOT_START + timedelta(minutes=minutes)).timestamp())}" for minutes in (0, 15, 30))


def populate_slots(world: World) -> None:
    """Orders with slots: FULL is full, LOWERED has less capacity than is booked, FREE has room.

    Every step between a slot and a reservation is there, of our orders and of other systems' assignments.
    """
    slot(world, FULL, capacity=6000, load=6000, moving={"slot-recorded": -2000})
    moving = {"slot-taken": -2000, "slot-returning": 2000, "assignment:1:begun": -1500, "assignment:2:was": 700}
    slot(world, LOWERED, capacity=3000, load=5500, moving=moving, ceiling=5500, adjusted=True)
    # Two workers processed the order; the slot of the other one counts.
    slot(world, FREE, capacity=9000, load=2900, moving={"slot-recorded": -2000}, disabled=True)
    p3_moving = {"slot-taken": -1, "slot-returning": 1}
    world.add("products", _id="p3", kind="goods", quantity=6, supplied=10, version=9, moving=p3_moving)

    of_p3: dict[str, Any] = {"items": (("p3", 1),), "delivery": {"slot": "auto"}}
    with_slot(world, "slot-auto", FULL, "CONFIRMED", **of_p3)
    with_slot(world, "slot-named", FULL, "CONFIRMED", **of_p3 | {"delivery": {"slot": FULL}})
    with_slot(world, "slot-recorded", FULL, "CONFIRMED", **of_p3, updatedAt=JUST_NOW)
    gone = {"stock": "RELEASED", "payment": "FAILED"}
    with_slot(world, "slot-declined", LOWERED, "CANCELLED", **of_p3, **gone)
    order(world, "slots-full", "CANCELLED", stock="FAILED", payment="REFUNDED", **of_p3)
    on_its_way: dict[str, Any] = {"settled": False, "updatedAt": JUST_NOW}
    order(world, "slot-taken", "PENDING", stock="PENDING", payment="PENDING", **of_p3, **on_its_way)
    with_slot(world, "slot-returning", LOWERED, "CANCELLED", payment="FAILED", **of_p3, **on_its_way)

    assignment(world, "a-1", 1, LOWERED, "RELEASED", price=1000)
    assignment(world, "a-1", 2, LOWERED, price=2000)
    assignment(world, "a-2", 1, FREE, price=900)
    assignment(world, "was", 2, LOWERED, price=700, updatedAt=JUST_NOW)  # being returned
    assignment(world, "slot-declined", 1, FREE, "RELEASED", price=900)
    assignment(world, "slot-named", 1, FREE, "RELEASED", price=900)  # the order came, and has its own slot


def populate_holds(world: World) -> None:
    """Holds of p4, one at each step: open, being made, taken over, being returned, and ended."""
    moving = {"hold:begun": -1, "hold:made": -1, "hold:leaving": 2}
    world.add("products", _id="p4", kind="goods", quantity=5, supplied=10, version=9, moving=moving)
    soon = datetime.now(UTC) + timedelta(hours=1)
    hold(world, "open", 2, expiresAt=soon)
    hold(world, "made", 1, expiresAt=soon, updatedAt=JUST_NOW)
    hold(world, "leaving", 2, outcome="EXPIRED", updatedAt=JUST_NOW)
    hold(world, "expired", 2, "RELEASED", outcome="EXPIRED")
    hold(world, "deleted", 2, "RELEASED", outcome="DELETED")
    hold(world, "taken", 1, "RELEASED", outcome="TAKEN", orderId="with-hold")
    order(world, "with-hold", "CONFIRMED", items=(("p4", 1),))


def populate_captures(world: World) -> None:
    """Orders whose cards are captured when they are fulfilled: of p5, and servers, before and after and in vain."""
    world.add("products", _id="p5", kind="goods", quantity=7, supplied=10, version=9, moving={})
    of_p5: Document = {"items": (("p5", 1),)}
    before = len(world.records.get("payments", ()))
    order(world, "captured", "CONFIRMED", **of_p5)
    order(world, "to-capture", "CONFIRMED", payment="AUTHORIZED", **of_p5, settled=False, updatedAt=JUST_NOW)
    order(world, "not-captured", "FAILED", payment="AUTHORIZED", **of_p5, settled=False, dueAt=JUST_NOW)
    world.records["gateway_charges"][-1] |= {"outcome": "VOIDED", "reason": "The authorisation has expired"}
    order(world, "voided", "CANCELLED", stock="RELEASED", payment="VOIDED", **of_p5)
    # Authorised, and void before it was captured: the gateway still knows the amount.
    world.records["gateway_charges"][-1] |= {"chargeId": "ch_voided", "amount": TOTAL, "currency": "USD"}
    server: Document = {"items": SERVER, "provisioningRun": 1, "provisioningStatus": "COMPLETED"}
    given_up: Document = {"stock": "RELEASED", "payment": "VOIDED", "compensating": True}
    for order_id, ip, status, how in (
        ("server-to-pay", "103.181.9.20", "COMPLETED", {"payment": "AUTHORIZED", "settled": False}),
        ("server-not-paid", "103.181.9.21", "FAILED", {"payment": "AUTHORIZED", "settled": False, "dueAt": JUST_NOW}),
        ("server-given-up", "103.181.9.22", "FAILED", given_up),
    ):
        known: Document = {"server": {"ip": ip}, "provisioning": {"package": "103.181.9"}, "updatedAt": JUST_NOW}
        order(world, order_id, status, **server, **known, **how)
        job(world, order_id, "COMPLETED", ip=ip)
        world.add("addresses", _id=ip, orderId=order_id, wrong=False, at=LONG_AGO)
    for payment in world.records["payments"][before:]:
        payment["captureOnConfirm"] = True


def hold(world: World, hold_id: str, units: int, status: str = "RESERVED", **fields: Any) -> None:
    """Units of p4 that are held for a user, or were."""
    updated = fields.pop("updatedAt", LONG_AGO)
    terms = {"userId": "u", "expiresAt": LONG_AGO, "dueAt": LONG_AGO} | fields
    items = [{"productId": "p4", "quantity": units, "price": 0}]
    world.add("reservations", _id=f"hold:{hold_id}", status=status, items=items, hold=terms, updatedAt=updated)


def slot(world: World, slot_id: str, capacity: int, load: int, **fields: Any) -> None:
    start = datetime.fromtimestamp(int(slot_id.removeprefix("slot:")), UTC)
    known = {"kind": "slot", "version": 5, "disabled": False, "adjusted": False, "moving": {}, "markedSince": NOW}
    times = {"start": start, "end": start + timedelta(minutes=15), "createdAt": LONG_AGO, "updatedAt": LONG_AGO}
    world.add("products", _id=slot_id, supplied=capacity, quantity=capacity - load, **known | times | fields)


def with_slot(world: World, order_id: str, slot_id: str, status: str, **how: Any) -> None:
    """An order that has, or had, a booking in that slot for its price."""
    order(world, order_id, status, **how, slot=slot_id)
    placed = world.records["orders"][-1]
    world.records["reservations"][-1]["slot"] = booking(slot_id, placed["totalAmount"])


def assignment(
    world: World, order_id: str, number: int, slot_id: str, status: str = "RESERVED", price: int = TOTAL, **fields: Any
) -> None:
    """A booking by another system for one of its orders."""
    known = {"status": status, "items": [], "updatedAt": LONG_AGO, "slot": booking(slot_id, price)}
    of = {"orderId": order_id, "number": number, "itemsCount": 1}
    world.add("reservations", _id=f"assignment:{number}:{order_id}", assignment=of, **known | fields)


def booking(slot_id: str, price: int) -> Document:
    start = datetime.fromtimestamp(int(slot_id.removeprefix("slot:")), UTC)
    return {"slotId": slot_id, "start": start, "visibleAt": start, "price": price}


def job(world: World, order_id: str, state: str, package: str = "103.181.9", **changes: Any) -> None:
    """The job of one order."""
    document = {
        "_id": order_id,
        "state": state,
        "package": package,
        "lockKey": package.removesuffix(".x"),
        "run": 1,
        "createdAt": LONG_AGO,
        "updatedAt": LONG_AGO,
    }
    world.add("jobs", **(document | changes))


def order(
    world: World,
    order_id: str,
    status: str | None,
    stock: str | None = "RESERVED",
    payment: str | None = "PROCESSED",
    items: Iterable[tuple[str, int]] = (("p1", 1),),
    total: int = TOTAL,
    **changes: Any,
) -> None:
    """One order, with its records in inventory, payment and the gateway."""
    lines = [{"productId": product, "quantity": units, "price": 0} for product, units in items]
    if lines:
        lines[0]["price"] = total
    placed = JUST_NOW if status in (None, "PENDING") else LONG_AGO
    document = {
        "_id": order_id,
        "items": lines,
        "totalAmount": total,
        "currency": "USD",
        "status": status or "PENDING",
        "fulfilment": "vps" if items is SERVER else "goods",
        "stockStatus": stock or "PENDING",
        "paymentStatus": payment or "PENDING",
        "settled": status in ("CONFIRMED", "COMPLETED", "CANCELLED", "FAILED"),
        "createdAt": placed,
        "updatedAt": placed,
        "deadline": placed + timedelta(minutes=5),
        "history": [{"status": "PENDING"}, {"status": status or "PENDING"}],
    }
    world.add("orders", **(document | changes))
    if stock not in (None, "PENDING"):
        recorded = [] if order_id == "tombstones" else lines
        world.add("reservations", _id=order_id, status=stock, items=recorded, updatedAt=placed)
    if payment is not None:
        record_payment(world, order_id, payment, total, placed)


def record_payment(world: World, order_id: str, status: str, total: int, at: datetime) -> None:
    if status == "VOIDED":
        world.add("payments", _id=order_id, status=status, updatedAt=at)
        world.add("gateway_charges", _id=order_id, outcome="VOIDED")
        return
    money = {"amount": total, "currency": "USD"}
    took_money = status in ("AUTHORIZED", "PROCESSED", "REFUNDED")
    transaction = {"transactionId": f"ch_{order_id}" if total else "no-charge"} if took_money else {}
    world.add("payments", _id=order_id, status=status, updatedAt=at, **money, **transaction)
    if not total:
        return
    refunded = {"refundedAt": at} if status == "REFUNDED" else {}
    outcome = {"FAILED": "DECLINED", "AUTHORIZED": "AUTHORIZED"}.get(status, "CHARGED")
    world.add("gateway_charges", _id=order_id, outcome=outcome, chargeId=f"ch_{order_id}", **money, **refunded)


# --- The ledger of funds. ---

DEBIT_NORMAL = ("invoice:", "bank:")


def populate_funds(world: World) -> None:
    """An entry for every operation except those of orders, with its payment or transfer."""
    account(world, "retainer:r1", clientId="c1", retainerType="monthly")
    account(world, "retainer:idle", status="inactive", clientId="c1", retainerType="monthly")
    account(world, "invoice:i1", clientId="c1", totalAmount=5000)
    account(world, "bank:b1", name="Operating", accountNumber="1", bankName="First")
    account(world, "bank:b2", name="Savings", accountNumber="2", bankName="First")
    account(world, "customer:c1:USD", customerId="c1")
    account(world, "bank:b3", currency="EUR", name="Euro", accountNumber="3", bankName="Second")

    entry(world, "e01", "retainer.opened", ("system:clearing:USD", 20000), ("retainer:r1", -20000))
    entry(world, "e02", "invoice.issued", ("invoice:i1", 5000), ("system:revenue:USD", -5000))
    entry(world, "e03", "retainer.consumed", ("retainer:r1", 1000), ("system:revenue:USD", -1000))
    entry(world, "e04", "retainer.consumed", ("retainer:r1", 500), ("invoice:i1", -500))
    entry(world, "e05", "invoice.paid", ("system:clearing:USD", 1500), ("invoice:i1", -1500))
    fund_payment(world, "paid", "e06", amount=700)
    entry(world, "e06", "payment.completed", ("system:clearing:USD", 700), ("customer:c1:USD", -700), paymentId="paid")
    fund_payment(world, "applied", "e07", amount=3000, invoiceId="i1")
    entry(world, "e07", "payment.completed", ("system:clearing:USD", 3000), ("invoice:i1", -3000), paymentId="applied")
    fund_payment(world, "pending", None, amount=900)
    entry(world, "e08", "retainer.replenished", ("customer:c1:USD", 300), ("retainer:r1", -300), paymentId="paid")
    entry(world, "e09", "bank.opened", ("bank:b1", 10000), ("system:opening:USD", -10000))
    populate_transfers(world)


def populate_transfers(world: World) -> None:
    """A transfer with a fee, and a cancelled one."""
    fees, to_b2 = ("system:bank-fees:USD", 50), {"fromAccountId": "b1", "toAccountId": "b2", "currency": "USD"}
    world.add("bank_transfers", _id="t1", amount=4000, fee=50, status="completed", entryId="e10", **to_b2)
    entry(world, "e10", "transfer.made", ("bank:b2", 4000), fees, ("bank:b1", -4050), transferId="t1")
    world.add(
        "bank_transfers", _id="t2", amount=800, fee=0, status="cancelled", entryId="e11", cancelEntryId="e12", **to_b2
    )
    entry(world, "e11", "transfer.made", ("bank:b2", 800), ("bank:b1", -800), transferId="t2")
    reverse = {"reverses": "e11", "transferId": "t2"}
    entry(world, "e12", "transfer.cancelled", ("bank:b2", -800), ("bank:b1", 800), **reverse)


def populate_orders_paid_from_a_retainer(world: World) -> None:
    """A successful order, a refunded one, a refused one, and one whose records were deleted; see above."""
    order_from_retainer(world, "from-retainer", "e13", status="CONFIRMED", items=SERVER)
    gone = {"status": "CANCELLED", "stock": "RELEASED"}
    order_from_retainer(world, "back-to-retainer", "e14", payment="REFUNDED", **gone)
    order_from_retainer(world, "short-of-money", None, payment="FAILED", **gone)
    order_from_retainer(world, "part-to-retainer", "e18", status="CONFIRMED", items=SERVER, refundedAmount=500)
    refund(world, "r1", 500, "REFUNDED", "server", by_card=False)
    world.records["payments"][-1]["parts"][0]["entryId"] = "e19"

    taken, returned = (("retainer:r1", 2000), ("system:revenue:USD", -2000)), (("system:revenue:USD", 2000),)
    entry(world, "e13", "order.paid", *taken, orderId="from-retainer")
    entry(world, "e14", "order.paid", *taken, orderId="back-to-retainer")
    entry(world, "e15", "order.refunded", *returned, ("retainer:r1", -2000), orderId="back-to-retainer", reverses="e14")
    entry(world, "e18", "order.paid", *taken, orderId="part-to-retainer")
    part = ("system:revenue:USD", 500), ("retainer:r1", -500)
    entry(world, "e19", "order.part_refunded", *part, orderId="part-to-retainer", refundId="r1")
    entry(world, "e16", "order.paid", *taken, orderId="deleted")
    entry(world, "e17", "order.refunded", *returned, ("retainer:r1", -2000), orderId="deleted", reverses="e16")


def order_from_retainer(world: World, order_id: str, entry_id: str | None, **how: Any) -> None:
    """An order with a payment from retainer r1: made by that entry, or refused."""
    order(world, order_id, **how)
    world.records["orders"][-1]["payment"] = {"method": "retainer", "retainerId": "r1"}
    world.records["payments"][-1] |= {"retainerId": "r1"} | ({"transactionId": entry_id} if entry_id else {})
    world.records["gateway_charges"].pop()


def account(world: World, account_id: str, status: str = "active", currency: str = "USD", **fields: Any) -> None:
    """An account with a balance of zero."""
    known = {"kind": account_id.partition(":")[0], "currency": currency, "status": status, "balance": 0, "version": 0}
    world.add("accounts", _id=account_id, **known, **fields, createdAt=LONG_AGO, updatedAt=LONG_AGO)


def entry(
    world: World,
    entry_id: str,
    operation: str,
    *postings: tuple[str, int],
    reverses: str | None = None,
    **reference: str,
) -> None:
    """An entry of the journal, a minute after the previous one, and its effect on the balances."""
    accounts = {document["_id"]: document for document in world.records.get("accounts", [])}
    lines: list[Document] = []
    for account_id, amount in postings:
        line: Document = {"account": account_id, "amount": amount}
        if document := accounts.get(account_id):
            document["balance"] += amount if account_id.startswith(DEBIT_NORMAL) else -amount
            document["version"] += 1
            line |= {"balanceAfter": document["balance"], "version": document["version"]}
        lines.append(line)
    at = LONG_AGO + timedelta(minutes=len(world.records.get("entries", [])))
    undone = {"reverses": reverses} if reverses else {}
    known = {"at": at.replace(microsecond=0), "operation": operation, "currency": "USD", "reference": reference}
    world.add("entries", _id=entry_id, postings=lines, **known, **undone)


def fund_payment(world: World, payment_id: str, entry_id: str | None, **fields: Any) -> None:
    """A payment of customer c1: completed by that entry, else pending."""
    done = {"status": "completed", "entryId": entry_id, "completedAt": LONG_AGO} if entry_id else {"status": "pending"}
    known = {"customerId": "c1", "currency": "USD", "paymentMethod": "wire", "createdAt": LONG_AGO}
    world.add("fund_payments", _id=payment_id, **known, **done, **fields)

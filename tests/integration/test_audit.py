"""The audit over a small world of correct records, and over the same world with one thing corrupted at a time.

The world has an order for every possible course, with the fields that the services' modules document. Only
the audit's own eyes are tested here; that the services write such records is seen where they run.
"""

import asyncio
import contextlib
import gc
import secrets
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import aio_pika
import pymongo
import pytest
from bson.codec_options import CodecOptions
from pymongo.asynchronous.client_session import AsyncClientSession

from operations.actions import ORDER_RELEASE, record_action
from operations.audit import Report, audit
from operations.cleanup.deletion import clean_up
from operations.errors import UnreachableError
from payment_service.funds.funds import Funds, open_funds
from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.ledger import Ledger
from payment_service.ledger.transactions import Transactions
from payment_service.ledger.unit_of_work import UnitOfWork
from payment_service.payments import Payments
from payment_service.retainer_charger import RetainerCharger
from shared.bus.rabbitmq import RabbitBus
from shared.clock import utc_now
from shared.contracts.orders import DeliveryInstruction, Item, OrderCreated, PaymentInstruction, RefundPart
from shared.pausing.records import PauseRecords
from shared.topology import DEAD_LETTERS, FORMER_RETRY_QUEUES, INVENTORY_INBOX
from tests.support.eventually import eventually
from tests.support.servers import Servers, delete_topology
from tests.support.tasks import end_tasks
from tests.support.world import (
    FREE,
    FULL,
    JUST_NOW,
    LONG_AGO,
    LOWERED,
    NOW,
    Document,
    World,
    entry,
    order,
    populate,
    populate_captures,
    populate_funds,
    populate_holds,
    populate_orders_paid_from_a_retainer,
    populate_slots,
)


@pytest.fixture
async def world(mongodb_url: str, bare_broker: str, emptied_prefix: str) -> AsyncIterator[World]:
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url) as client:
        created = World(client, emptied_prefix, mongodb_url, bare_broker)
        populate(created)
        populate_funds(created)
        populate_orders_paid_from_a_retainer(created)
        populate_slots(created)
        populate_holds(created)
        populate_captures(created)
        await created.store()
        yield created


@pytest.fixture(scope="module")
async def common_world(servers: Servers) -> AsyncIterator[World]:
    """One world for many tests, each of which restores it.

    A message that an earlier test left on the broker would explain every stalled order.
    """
    await delete_topology(servers.amqp_url)
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        created = World(client, f"t{secrets.token_hex(8)}", servers.mongodb_url, servers.amqp_url)
        populate(created)
        populate_funds(created)
        populate_orders_paid_from_a_retainer(created)
        populate_slots(created)
        populate_holds(created)
        populate_captures(created)
        await created.store()
        assert (await created.audit()).ok
        yield created
        assert (await created.audit()).ok, "a test has not restored what it corrupted"
        for name in ("orders", "products", "payments", "jobs"):
            await client.drop_database(created.collection(name).database.name)


async def test_correct_records_pass(world: World) -> None:
    report = await world.audit()
    assert report.violations == []
    assert report.ok
    assert report.checked == {
        "orders": 41,
        "reservations": 38,
        "payments": 40,
        "charges": 35,
        "jobs": 11,
        "intents": 0,
        "products": 6,
        "slots": 3,
        "assignments": 6,
        "holds": 6,
        "addresses": 7,
        "locks": 3,
        "accounts": 7,
        "entries": 19,
        "fundPayments": 3,
        "transfers": 2,
        "actions": 0,
    }
    assert report.information["inFlight"] == 13
    assert report.information["bookedInSlots"] == 144
    assert report.information["jobs"] == {"COMPLETED": 5, "FAILED": 3, "QUEUED": 1, "RUNNING": 1, "WAITING": 1}
    assert report.information["locksHeld"] == 2
    assert report.information["paidThrough"] == {"retainer": 3, "simulated": 27}
    assert report.information["systemBalances"] == {
        "system:bank-fees:USD": 0.5,
        "system:clearing:USD": 252,
        "system:opening:USD": 100,
        "system:revenue:USD": 95,
    }


async def test_small_pages_say_the_same(world: World) -> None:
    """Pages end at different ids in each collection; every record is still seen once."""
    for page in (1, 2, 3, 5):
        assert (await world.audit(page=page)).checked == (await world.audit()).checked
        assert (await world.audit(page=page)).ok


async def test_an_empty_stack_passes(mongodb_url: str, clean_broker: str, database_prefix: str) -> None:
    report = await audit(mongodb_url, clean_broker, database_prefix)
    assert report.ok
    assert report.checked["orders"] == 0


Change = dict[str, Any] | list[Any]


@dataclass(frozen=True)
class Corruption:
    """One corruption: a changed record, or a missing one (None)."""

    name: str
    collection: str
    id: str
    change: Change | None
    invariant: int
    kind: str
    subject: str | None = None


def put(**values: Any) -> Change:
    return {"$set": values}


def drop(*fields: str) -> Change:
    return {"$unset": dict.fromkeys(fields, "")}


def refunds(number: int, **values: Any) -> Change:
    """Other values in a refund of an order."""
    return put(**{f"refunds.{number}.{name}": value for name, value in values.items()})


def parts(number: int, **values: Any) -> Change:
    """Other values in a part of a payment or of a charge."""
    return put(**{f"parts.{number}.{name}": value for name, value in values.items()})


def more(**part: Any) -> Change:
    """One part more in a charge."""
    return {"$push": {"parts": part}}


def units(product: str, number: int) -> list[Document]:
    return [{"productId": product, "quantity": number}]


def back(items: list[Document]) -> Change:
    """Other units that the first refund has put back."""
    return put(**{"returns.0.items": items})


def posting(entry: str, first: int, amount: int, second: int, opposite: int) -> tuple[str, str, Change]:
    """Other amounts in an entry, which still add up to zero."""
    return "entries", entry, put(**{f"postings.{first}.amount": amount, f"postings.{second}.amount": opposite})


FROM = "from-retainer"

CORRUPTIONS = [
    # 1: stock is conserved.
    Corruption("a unit vanished", "products", "p1", put(quantity=13), 1, "conservation"),
    Corruption("a unit appeared", "products", "p1", put(quantity=15), 1, "conservation"),
    Corruption("supplied changed", "products", "p2", put(supplied=6), 1, "conservation"),
    Corruption("negative", "products", "p2", put(quantity=-1, supplied=0), 1, "negative"),
    Corruption("no count", "products", "p2", put(quantity="4"), 1, "counts"),
    Corruption("product is gone", "products", "p2", None, 1, "unknown product"),
    Corruption("mark is gone", "products", "p1", drop("moving.taken"), 1, "conservation"),
    Corruption("mark changed", "products", "p1", put(**{"moving.recorded": -2}), 1, "conservation"),
    Corruption("sold twice", "reservations", "confirmed", put(**{"items.0.quantity": 2}), 1, "conservation", "p1"),
    Corruption("shipped and not counted", "products", "p1", put(shipped=1), 1, "shipped"),
    Corruption("counted and not shipped", "reservations", "gone", put(status="RESERVED"), 1, "shipped", "p1"),
    Corruption("counted twice", "products", "p1", drop("moving.leaving"), 1, "shipped"),
    # 1 for slots: the load is the sum of the orders' prices, and within the capacity.
    Corruption("room vanished", "products", FULL, put(quantity=-1), 1, "conservation"),
    Corruption("room appeared", "products", FULL, put(quantity=1), 1, "conservation"),
    Corruption("capacity changed alone", "products", FREE, put(supplied=9100), 1, "conservation"),
    Corruption("a price changed", "reservations", "slot-auto", put(**{"slot.price": 2001}), 1, "conservation", FULL),
    Corruption("in another slot", "reservations", "slot-auto", put(**{"slot.slotId": FREE}), 1, "conservation", FULL),
    Corruption("an assignment is gone", "reservations", "assignment:2:a-1", None, 1, "conservation", LOWERED),
    Corruption("booked with its mark", "products", LOWERED, drop("moving.assignment:2:was"), 1, "conservation"),
    Corruption("room not taken", "products", LOWERED, drop("moving.assignment:1:begun"), 1, "conservation"),
    Corruption("a mark of more", "products", FULL, put(**{"moving.slot-recorded": -2001}), 1, "conservation"),
    Corruption("overbooked", "products", FULL, put(supplied=5999, quantity=-1), 1, "overbooked"),
    Corruption("booked though lowered", "products", LOWERED, put(ceiling=5499), 1, "overbooked"),
    Corruption("lowered, nobody knows from what", "products", LOWERED, drop("ceiling"), 1, "overbooked"),
    Corruption("no room count", "products", FULL, put(quantity="0"), 1, "counts"),
    Corruption("a ceiling of words", "products", LOWERED, put(ceiling="5500"), 1, "counts"),
    Corruption("slot is gone", "products", FULL, None, 1, "unknown slot"),
    Corruption("another time", "products", FULL, put(start=NOW), 1, "times"),
    Corruption("no end", "products", FREE, drop("end"), 1, "times"),
    # 2: one charge, and nothing held for settled orders.
    Corruption("stock held", "reservations", "declined", put(status="RESERVED"), 2, "stock held"),
    Corruption("no tombstone for stock", "reservations", "tombstones", None, 2, "stock held"),
    Corruption("no tombstone for money", "payments", "tombstones", None, 2, "payment held"),
    Corruption("payment held", "payments", "no-stock", put(status="PROCESSED"), 2, "payment held"),
    Corruption("payment left open", "payments", "no-stock", put(status="PENDING"), 2, "payment held"),
    Corruption("not refunded", "gateway_charges", "no-stock", drop("refundedAt"), 2, "money held"),
    Corruption("a refund only on paper", "gateway_charges", "no-stock", drop("refundedAt"), 2, "refund"),
    Corruption("charged, though declined", "gateway_charges", "declined", put(outcome="CHARGED"), 2, "money held"),
    Corruption("charged after the refund", "gateway_charges", "tombstones", put(outcome="CHARGED"), 2, "money held"),
    Corruption("given up, not refunded", "gateway_charges", "given-up", drop("refundedAt"), 2, "money held"),
    Corruption(
        "pending move of a settled order",
        "products",
        "p1",
        put(**{"moving.declined": -1}, quantity=13),
        2,
        "pending move",
    ),
    Corruption(
        "pending move of no order", "products", "p1", put(**{"moving.nobody": -1}, quantity=13), 2, "pending move"
    ),
    Corruption("total", "orders", "confirmed", put(totalAmount=1), 2, "total"),
    Corruption("a discount", "orders", "gone", put(particulars={"discounts": [{"amount": 1}]}), 2, "total"),
    Corruption("shipping costs", "orders", "gone", put(particulars={"shippingAmount": 1}), 2, "total"),
    Corruption("items", "orders", "confirmed", put(**{"items.0.price": 1}), 2, "total"),
    Corruption("another amount paid", "payments", "confirmed", put(amount=1), 2, "payment amount"),
    Corruption("another amount charged", "gateway_charges", "confirmed", put(amount=1), 2, "charge amount"),
    Corruption("another currency", "gateway_charges", "confirmed", put(currency="EUR"), 2, "charge amount"),
    Corruption("another charge", "gateway_charges", "confirmed", put(chargeId="ch_other"), 2, "charge"),
    Corruption("no charge", "gateway_charges", "confirmed", None, 2, "charge"),
    Corruption("paid for free", "payments", "free", put(amount=5), 2, "charge"),
    Corruption("reservation of nobody", "orders", "confirmed", None, 2, "reservation without order"),
    Corruption("payment of nobody", "orders", "confirmed", None, 2, "payment without order"),
    Corruption("charge of nobody", "orders", "confirmed", None, 2, "charge without order"),
    Corruption("held without end", "orders", "held", drop("dueAt"), 2, "hold"),
    Corruption("held too long", "orders", "held", put(dueAt=NOW - timedelta(minutes=1)), 2, "hold"),
    Corruption("held money is refunded", "gateway_charges", "held", put(refundedAt=NOW), 2, "money"),
    Corruption("held payment is gone", "payments", "held", put(status="FAILED"), 2, "payment"),
    # 2 for slots: no room for orders that are settled, have another slot or do not exist.
    Corruption("room for who is over", "products", FREE, put(**{"moving.slots-full": -100}), 2, "pending move"),
    Corruption("room for nobody", "products", FREE, put(**{"moving.nobody": -100}), 2, "pending move"),
    Corruption("room in two slots", "orders", "slot-recorded", put(updatedAt=LONG_AGO), 2, "pending move", FREE),
    Corruption(
        "room for an assignment given back",
        "products",
        FREE,
        put(**{"moving.assignment:1:a-1": -100}),
        2,
        "pending move",
    ),
    Corruption(
        "a slot of a cancelled order",
        "reservations",
        "assignment:1:slot-declined",
        put(status="RESERVED"),
        2,
        "assignment held",
    ),
    Corruption(
        "an assignment of nothing", "reservations", "assignment:2:a-1", drop("slot"), 2, "assignment without slot"
    ),
    Corruption(
        "two slots at once", "reservations", "assignment:1:a-1", put(status="RESERVED"), 2, "two assignments", "a-1"
    ),
    Corruption(
        "a slot of its own and an assigned one",
        "reservations",
        "assignment:1:slot-named",
        put(status="RESERVED"),
        2,
        "two slots",
        "slot-named",
    ),
    # 1 and 2 for refunds in part: no more than was paid and bought, and the same in all records.
    Corruption("refunds above the price", "orders", "refunded", refunds(0, amount=2001), 2, "refunded too much"),
    Corruption("a refund of nothing", "orders", "refunded", refunds(1, amount=0), 2, "refund amounts"),
    Corruption("another sum of refunds", "orders", "refunded", put(refundedAmount=499), 2, "refunded amount"),
    Corruption("a refund twice", "orders", "refunded", refunds(1, refundId="r1"), 2, "refund twice"),
    Corruption(
        "a refund of a cancelled order", "orders", "refunded", put(status="CANCELLED"), 2, "refund of the wrong order"
    ),
    Corruption("units never bought", "orders", "refunded", refunds(0, items=units("p2", 2)), 2, "refunded units"),
    Corruption("a part of nobody", "orders", "refunded", refunds(0, refundId="r9"), 2, "refund without request"),
    Corruption("another part", "payments", "refunded", parts(0, amount=499), 2, "refund amount"),
    Corruption("a part forgotten", "payments", "refunded", drop("parts"), 2, "refund status"),
    Corruption("a refused refund", "payments", "refunded", parts(1, status="REFUNDED"), 2, "refund status"),
    Corruption("parts above the charge", "payments", "refunded", parts(0, amount=2001), 2, "payment overdrawn"),
    Corruption("too much at the gateway", "gateway_charges", "refunded", parts(0, amount=2001), 2, "charge overdrawn"),
    Corruption("nothing at the gateway", "gateway_charges", "refunded", drop("parts"), 2, "part not returned"),
    Corruption("less at the gateway", "gateway_charges", "refunded", parts(0, amount=1), 2, "part not returned"),
    Corruption(
        "returned all the same", "gateway_charges", "refunded", more(refundId="r2", amount=700), 2, "part returned"
    ),
    Corruption(
        "returned for nobody", "gateway_charges", "refunded", more(refundId="r3", amount=1), 2, "part without payment"
    ),
    Corruption("a settled refund waits", "orders", "putting-back", put(settled=True), 4, "refund settled"),
    Corruption("a refund hangs", "orders", "putting-back", refunds(0, updatedAt=LONG_AGO), 4, "refund late"),
    Corruption("too many came back", "reservations", "refunded", back(units("p2", 2)), 1, "returned units"),
    Corruption("others came back", "reservations", "refunded", back(units("p1", 1)), 1, "return"),
    Corruption("nothing came back", "reservations", "refunded", drop("returns"), 1, "return"),
    Corruption("back without request", "orders", "refunded", refunds(0, restock=False), 1, "return"),
    Corruption("back for nobody", "orders", "refunded", refunds(0, refundId="r9"), 1, "return without refund"),
    Corruption("a unit not back", "products", "p2", put(quantity=3), 1, "conservation"),
    Corruption("a return of nobody", "products", "p2", put(**{"moving.return:r1:nobody": 1}), 2, "pending move"),
    Corruption("a return move is gone", "products", "p1", drop("moving.return:r1:putting-back"), 1, "conservation"),
    # Holds: counted like reservations, ended once and in time.
    Corruption("a hold is gone", "reservations", "hold:open", None, 1, "conservation", "p4"),
    Corruption("a hold of more", "reservations", "hold:open", put(**{"items.0.quantity": 3}), 1, "conservation", "p4"),
    Corruption("held twice", "reservations", "hold:taken", put(status="RESERVED"), 1, "conservation", "p4"),
    Corruption("returned twice", "products", "p4", put(quantity=7), 1, "conservation"),
    Corruption("returned with its mark", "products", "p4", drop("moving.hold:leaving"), 1, "conservation"),
    Corruption("room of an ended hold", "products", "p4", put(**{"moving.hold:expired": -2}), 2, "pending move"),
    Corruption(
        "held too long", "reservations", "hold:open", put(**{"hold.expiresAt": LONG_AGO}), 2, "hold overdue", "open"
    ),
    Corruption("never ends", "reservations", "hold:open", drop("hold.dueAt"), 2, "hold without expiry", "open"),
    Corruption(
        "not returned", "reservations", "hold:leaving", put(updatedAt=LONG_AGO), 2, "hold not returned", "leaving"
    ),
    Corruption(
        "ended by nothing", "reservations", "hold:expired", drop("hold.outcome"), 2, "hold without end", "expired"
    ),
    Corruption(
        "ended somehow",
        "reservations",
        "hold:expired",
        put(**{"hold.outcome": "X"}),
        2,
        "outcome of the hold",
        "expired",
    ),
    Corruption("taken by nobody", "reservations", "hold:taken", drop("hold.orderId"), 2, "order of the hold", "taken"),
    Corruption(
        "deleted and taken",
        "reservations",
        "hold:deleted",
        put(**{"hold.orderId": "o"}),
        2,
        "order of the hold",
        "deleted",
    ),
    Corruption("taken for nothing", "reservations", "with-hold", None, 2, "hold taken for nothing", "taken"),
    # 3: successful orders have stock and payment.
    Corruption("no stock", "reservations", "confirmed", None, 3, "stock"),
    Corruption("stock released", "reservations", "completed", put(status="RELEASED"), 3, "stock"),
    Corruption("stock refused", "reservations", "provisioning", put(status="FAILED"), 3, "stock"),
    Corruption("too few units", "reservations", "completed", put(items=[]), 3, "reserved units"),
    Corruption("no slot", "reservations", "slot-auto", drop("slot"), 3, "slot"),
    Corruption("a slot not ordered", "orders", "slot-auto", drop("delivery"), 3, "slot"),
    Corruption("not the slot ordered", "orders", "slot-named", put(**{"delivery.slot": FREE}), 3, "slot"),
    Corruption("told another slot", "orders", "slot-auto", put(slot=FREE), 3, "slot of the order"),
    Corruption("told no slot", "orders", "slot-named", drop("slot"), 3, "slot of the order"),
    Corruption("a slot for less", "reservations", "slot-auto", put(**{"slot.price": 1}), 3, "slot price"),
    Corruption("no payment", "payments", "confirmed", None, 3, "payment"),
    Corruption("payment open", "payments", "completed", put(status="PENDING"), 3, "payment"),
    Corruption("payment voided", "payments", "free", put(status="VOIDED"), 3, "payment"),
    Corruption("money returned", "gateway_charges", "confirmed", put(refundedAt=NOW), 3, "money"),
    Corruption("join without stock", "orders", "confirmed", put(stockStatus="PENDING"), 3, "join"),
    Corruption("join without payment", "orders", "completed", put(paymentStatus="FAILED"), 3, "join"),
    Corruption("delivered, still reserved", "reservations", "gone", put(status="RELEASED"), 3, "stock", "gone"),
    Corruption("shipped, not delivered", "reservations", "confirmed", put(status="SHIPPED"), 3, "stock", "confirmed"),
    Corruption("delivered, not told", "orders", "gone", put(stockStatus="RESERVED"), 3, "join"),
    # 4: every order ends, once and in time.
    Corruption("past its deadline", "orders", "new", put(deadline=NOW - timedelta(minutes=1)), 4, "deadline"),
    Corruption("no deadline", "orders", "new", drop("deadline"), 4, "times"),
    Corruption("compensation hangs", "orders", "returning", put(updatedAt=LONG_AGO), 4, "compensation"),
    Corruption("shipping hangs", "orders", "leaving", put(updatedAt=LONG_AGO), 4, "shipping"),
    Corruption("provisioning hangs", "jobs", "provisioning", None, 4, "provisioning"),
    Corruption("join missed", "orders", "new", put(stockStatus="RESERVED", paymentStatus="PROCESSED"), 4, "join"),
    Corruption("settled too early", "orders", "declined", put(stockStatus="RESERVED"), 4, "settled"),
    Corruption("settled on its way", "orders", "taken", put(settled=True), 4, "settled"),
    Corruption("never settled", "orders", "confirmed", put(settled=False), 4, "not settled"),
    Corruption("both ends", "orders", "confirmed", {"$push": {"history": {"status": "CANCELLED"}}}, 4, "two ends"),
    Corruption("unknown status", "orders", "confirmed", put(status="LOST"), 4, "status"),
    # 5: balances are the sum of their postings, and nothing happened twice.
    Corruption("a balance was raised", "accounts", "retainer:r1", {"$inc": {"balance": 1}}, 5, "balance"),
    Corruption("no number", "accounts", "bank:b1", put(balance="10"), 5, "balance"),
    Corruption("a debt", "accounts", "bank:b3", put(balance=-1), 5, "negative balance"),
    Corruption("overpaid", "accounts", "invoice:i1", put(balance=-1), 5, "overpaid invoice"),
    Corruption("overpaid by postings", *posting("e05", 0, 9900, 1, -9900), 5, "overpaid invoice", "invoice:i1"),
    Corruption("more due than billed", "accounts", "invoice:i1", put(totalAmount=-1), 5, "invoice"),
    Corruption("no total", "accounts", "invoice:i1", drop("totalAmount"), 5, "invoice"),
    Corruption("no account", "accounts", "bank:b2", None, 5, "unknown account"),
    Corruption("an entry is gone", "entries", "e03", None, 5, "balance", "retainer:r1"),
    Corruption("unbalanced", "entries", "e03", put(**{"postings.1.amount": -999}), 5, "unbalanced"),
    Corruption("one posting", "entries", "e03", {"$pop": {"postings": 1}}, 5, "postings"),
    Corruption("half a cent", "entries", "e03", put(**{"postings.1.amount": -0.5}), 5, "postings"),
    Corruption("overdrawn", "entries", "e03", put(**{"postings.0.balanceAfter": -1}), 5, "overdrawn"),
    Corruption("another currency's account", "accounts", "bank:b2", put(currency="EUR"), 5, "currency", "e10"),
    Corruption("another currency", "entries", "e02", put(currency="EUR"), 5, "currency"),
    Corruption("off the chart", "entries", "e02", put(**{"postings.1.account": "revenue"}), 5, "account"),
    Corruption("a part's entry is gone", "entries", "e19", None, 5, "part entry", "part-to-retainer"),
    Corruption("another part's entry", "payments", "part-to-retainer", parts(0, entryId="e18"), 5, "part entry"),
    Corruption("a part of less", *posting("e19", 0, 499, 1, -499), 5, "part entry", "part-to-retainer"),
    Corruption("a part of no payment", "payments", "part-to-retainer", drop("parts"), 5, "part without payment"),
    Corruption("a payment is gone", "fund_payments", "paid", None, 5, "unknown payment", "e06"),
    Corruption("not completed", "fund_payments", "paid", put(status="pending"), 5, "payment not completed", "e06"),
    Corruption("pending with an entry", "fund_payments", "pending", put(entryId="e06"), 5, "payment"),
    Corruption("completed by nothing", "fund_payments", "pending", put(status="completed"), 5, "payment"),
    Corruption("completed by another's", "fund_payments", "paid", put(entryId="e07"), 5, "payment"),
    Corruption("another payment's amount", "fund_payments", "paid", put(amount=701), 5, "payment"),
    Corruption("another invoice", "fund_payments", "applied", put(invoiceId="i2"), 5, "payment"),
    Corruption("no such status", "fund_payments", "paid", put(status="failed"), 5, "payment"),
    Corruption("completed twice", "entries", "e07", put(**{"reference.paymentId": "paid"}), 5, "completed twice"),
    Corruption("a transfer is gone", "bank_transfers", "t1", None, 5, "unknown transfer", "e10"),
    Corruption("made by nothing", "bank_transfers", "t1", put(entryId="e99"), 5, "transfer"),
    Corruption("another fee", "bank_transfers", "t1", put(fee=49), 5, "transfer"),
    Corruption("made twice", "entries", "e11", put(**{"reference.transferId": "t1"}), 5, "transfer made twice"),
    Corruption("not cancelled", "bank_transfers", "t2", put(status="completed"), 5, "cancelled transfer"),
    Corruption("cancelled by nothing", "bank_transfers", "t1", put(status="cancelled"), 5, "cancelled transfer"),
    Corruption(
        "cancelled twice", "bank_transfers", "t2", put(cancelEntryId="e99"), 5, "transfer cancelled twice", "e12"
    ),
    Corruption("reverses nothing", "entries", "e12", drop("reverses"), 5, "reversal"),
    Corruption("what it reverses is gone", "entries", "e11", None, 5, "reversal", "e12"),
    Corruption("reverses something else", "entries", "e12", put(reverses="e10"), 5, "reversal"),
    Corruption("reversed twice", "entries", "e15", put(reverses="e11"), 5, "reversed twice", "e11"),
    Corruption("paid by no entry", "entries", "e13", None, 5, "retainer payment", "from-retainer"),
    Corruption("paid by another entry", "payments", "from-retainer", put(transactionId="e14"), 5, "retainer payment"),
    Corruption("paid from another", "payments", "from-retainer", put(retainerId="r2"), 5, "retainer payment"),
    Corruption("paid something else", "payments", "from-retainer", put(amount=1), 5, "retainer payment"),
    Corruption("not back on the retainer", "entries", "e15", None, 5, "retainer payment", "back-to-retainer"),
    Corruption("failed, and paid", "payments", "from-retainer", put(status="FAILED"), 5, "retainer payment"),
    Corruption("paid twice", "entries", "e14", put(**{"reference.orderId": "from-retainer"}), 5, "paid twice", FROM),
    Corruption("refunded and never paid", "entries", "e14", None, 5, "refund entry", "back-to-retainer"),
    Corruption("paid without a payment", "payments", "from-retainer", None, 5, "entry without payment"),
    Corruption("deleted and not refunded", "entries", "e17", None, 5, "entry without payment", "deleted"),
    # 2 again: an order paid from a retainer has no other charge, and the ordered retainer.
    Corruption("paid from another retainer", "payments", FROM, put(retainerId="r2"), 2, "payment method"),
    Corruption("paid by card instead", "payments", FROM, drop("retainerId"), 2, "payment method"),
    # 3 and 4 for captures: what is settled is captured, and what is not is never forgotten.
    Corruption("settled, not captured", "orders", "to-capture", put(settled=True), 3, "join"),
    Corruption("captured, the order says", "orders", "to-capture", put(paymentStatus="PROCESSED"), 4, "not settled"),
    Corruption("captured, not recorded", "payments", "captured", put(status="AUTHORIZED"), 3, "payment"),
    Corruption("recorded, not captured", "gateway_charges", "captured", put(outcome="AUTHORIZED"), 2, "capture"),
    Corruption("a capture that never comes", "orders", "to-capture", put(updatedAt=LONG_AGO), 4, "capture"),
    Corruption("never authorised", "gateway_charges", "not-captured", put(chargeId="ch_other"), 2, "charge"),
    Corruption("void before the capture", "gateway_charges", "to-capture", put(outcome="VOIDED"), 3, "money"),
    Corruption("cancelled, still authorised", "gateway_charges", "voided", put(outcome="AUTHORIZED"), 2, "money held"),
    Corruption("void without a reason", "gateway_charges", "not-captured", drop("reason"), 2, "money"),
    Corruption(
        "charged before its server is ready", "payments", "held", put(captureOnConfirm=True), 2, "captured early"
    ),
    Corruption("not captured, stock gone", "reservations", "not-captured", put(status="RELEASED"), 2, "stock"),
    Corruption(
        "handed over, never fulfilled",
        "orders",
        "server-given-up",
        drop("provisioningStatus"),
        6,
        "server without order",
    ),
    # 6: every server is the one ordered, and belongs to one order.
    Corruption("no server", "orders", "completed", drop("server"), 6, "no server"),
    Corruption("a server of nobody knows what", "orders", "completed", drop("provisioning"), 6, "no package"),
    Corruption(
        "a server of the neighbours", "orders", "completed", put(server={"ip": "103.181.91.5"}), 6, "wrong package"
    ),
    Corruption(
        "a server of another package",
        "orders",
        "completed",
        put(**{"provisioning.package": "10.1"}),
        6,
        "wrong package",
    ),
    Corruption(
        "a server that is no address", "orders", "completed", put(server={"ip": "103.181.9"}), 6, "wrong package"
    ),
    Corruption("an address of nobody", "addresses", "103.181.9.5", None, 6, "address", "completed"),
    Corruption("an address of another", "addresses", "103.181.9.5", put(orderId="held"), 6, "address", "completed"),
    Corruption("an address marked wrong", "addresses", "103.181.9.5", put(wrong=True), 6, "address", "completed"),
    Corruption(
        "an address of no order", "addresses", "103.181.91.5", put(orderId="nobody"), 6, "address without order"
    ),
    Corruption(
        "two orders on one server",
        "orders",
        "confirmed",
        put(status="COMPLETED", server={"ip": "103.181.9.5"}),
        6,
        "shared address",
        "103.181.9.5",
    ),
    Corruption("two servers", "addresses", "103.83.4.5", put(orderId="completed"), 6, "two servers", "completed"),
    Corruption("COMPLETED without a job", "jobs", "completed", None, 6, "job"),
    Corruption("COMPLETED by a job that failed", "jobs", "completed", put(state="FAILED"), 6, "job"),
    Corruption("the job has another address", "jobs", "completed", put(ip="103.181.9.6"), 6, "job"),
    Corruption("held, and its job at work", "jobs", "held", put(state="WAITING", dueAt=JUST_NOW), 6, "job"),
    Corruption("held without a job", "jobs", "held", None, 6, "job"),
    Corruption("refunded, with a server", "jobs", "given-up", put(state="COMPLETED"), 6, "server without order"),
    Corruption(
        "cancelled, with a server", "jobs", "server-cancelled", put(state="COMPLETED"), 6, "server without order"
    ),
    Corruption("a server before its time", "orders", "ready", put(status="PENDING"), 6, "job too early"),
    Corruption("a server of no order", "orders", "completed", None, 6, "job without order"),
    Corruption("a lock of nobody", "locks", "103.83", put(orderId="confirmed"), 6, "lock without job"),
    Corruption("a lock without end", "locks", "103.181.9", drop("expiresAt"), 6, "lock without lease"),
    Corruption(
        "a lock left behind", "locks", "103.181.9", put(orderId="queued", expiresAt=LONG_AGO), 6, "abandoned lock"
    ),
    Corruption("a lock of a job that is over", "locks", "103.181.9", put(orderId="held"), 6, "lock of a finished job"),
    # 7: nothing is lost.
    Corruption("job of no order", "orders", "server-cancelled", None, 7, "job without order"),
    Corruption("job unpublished", "jobs", "held", put(outbox=[{}], outboxSince=LONG_AGO), 7, "job unpublished"),
    Corruption("job never due", "jobs", "waiting", drop("dueAt"), 7, "job never due"),
    Corruption("job overdue", "jobs", "waiting", put(dueAt=LONG_AGO), 7, "job overdue"),
    Corruption("claim left behind", "jobs", "provisioning", put(dueAt=LONG_AGO), 7, "job overdue"),
    Corruption("the line stands", "locks", "103.181.9", drop("orderId", "expiresAt"), 7, "job overdue", "queued"),
    Corruption("the line has died", "locks", "103.181.9", put(expiresAt=LONG_AGO), 7, "job overdue", "queued"),
    Corruption(
        "the request is lost", "orders", "held", put(status="PROVISIONING", provisioningRun=2), 7, "message lost"
    ),
    Corruption("the answer is lost", "jobs", "ready", put(updatedAt=LONG_AGO), 7, "message lost"),
    Corruption("the failure is lost", "jobs", "provisioning", put(state="FAILED"), 7, "message lost"),
    Corruption("the late answer is lost", "jobs", "held", put(state="COMPLETED"), 7, "message lost"),
    Corruption("order unpublished", "orders", "new", put(unpublished=True, dueAt=LONG_AGO), 7, "order unpublished"),
    Corruption(
        "payment unpublished",
        "payments",
        "no-stock",
        put(unpublished=True, updatedAt=LONG_AGO),
        7,
        "payment unpublished",
    ),
    Corruption("order is gone", "orders", "no-stock", None, 7, "reservation without order"),
]


def together() -> list[list[Corruption]]:
    """Put corruptions of different records into one audit, none of which explains what is found of another.

    A product does not add up because of a reservation as well, and no lock is wrong whose job is gone: so those of
    products and of locks are apart, and so are those that are found of another record than the one they change.
    """
    found: list[list[Corruption]] = []
    for corruption in CORRUPTIONS:
        for others in found:
            if all(are_apart(corruption, other) for other in others):
                others.append(corruption)
                break
        else:
            found.append([corruption])
    return found


def are_apart(one: Corruption, other: Corruption) -> bool:
    sorts = [({"products", "locks"} & {each.collection}, each.subject is None) for each in (one, other)]
    named = [{each.id, each.subject or each.id} for each in (one, other)]
    alike = sorts[0] == sorts[1] and (one.subject is None or one.collection != other.collection)
    return alike and named[0].isdisjoint(named[1]) and one.kind != other.kind


@pytest.mark.parametrize("corruptions", together(), ids=lambda corruptions: corruptions[0].name)
async def test_every_corruption_is_reported(corruptions: list[Corruption], common_world: World) -> None:
    async with contextlib.AsyncExitStack() as restored:
        for corruption in corruptions:
            await corrupt(common_world, corruption, restored)
        report = await common_world.audit()
    named = {(violation.invariant, violation.kind, violation.id) for violation in report.violations}
    expected = [(each, (each.invariant, each.kind, each.subject or each.id)) for each in corruptions]
    assert [corruption for corruption, violation in expected if violation not in named] == []


async def corrupt(world: World, corruption: Corruption, restored: contextlib.AsyncExitStack) -> None:
    records = world.collection(corruption.collection)
    correct = await records.find_one({"_id": corruption.id})
    assert correct is not None
    restored.push_async_callback(records.replace_one, {"_id": corruption.id}, correct, upsert=True)
    if corruption.change is None:
        await records.delete_one({"_id": corruption.id})
    else:
        assert (await records.update_one({"_id": corruption.id}, corruption.change)).modified_count == 1


def charged(order_id: str) -> Document:
    money = {"amount": 2000, "currency": "USD"}
    return {"collection": "gateway_charges", "_id": order_id, "outcome": "CHARGED", "chargeId": "ch_1", **money}


ADDED: list[tuple[str, Document]] = [
    ("a charge besides the retainer", charged(FROM)),
    ("a second charge", {"collection": "gateway_charges", "_id": "confirmed-2", "outcome": "CHARGED"}),
    ("a payment", {"collection": "payments", "_id": "unknown", "status": "VOIDED"}),
    ("a reservation", {"collection": "reservations", "_id": "unknown", "status": "RELEASED", "items": []}),
]


@pytest.mark.parametrize(("name", "record"), ADDED, ids=[name for name, _ in ADDED])
async def test_records_without_an_order_are_reported(name: str, record: Document, common_world: World) -> None:
    document = dict(record)
    records = common_world.collection(document.pop("collection"))
    await records.insert_one(document)
    try:
        assert [violation.id for violation in (await common_world.audit()).violations] == [document["_id"]]
    finally:
        await records.delete_one({"_id": document["_id"]})


async def test_what_waits_for_a_paused_service_is_counted_and_not_reported(world: World) -> None:
    await world.collection("orders").update_one({"_id": "returning"}, put(updatedAt=LONG_AGO))
    kinds = [violation.kind for violation in (await world.audit()).violations]
    assert kinds == ["compensation", "message lost"]
    await PauseRecords(world.client[f"{world.prefix}_inventory"]).begin(
        "inventory", LONG_AGO, by="ann", reason="a test", until=None
    )
    report = await world.audit()
    assert report.ok
    assert report.information["waitingForPaused"] == 1


async def test_an_unknown_order_is_over_once_its_stock_and_its_money_are_back(world: World) -> None:
    """A forged `order.created` reserved and charged; only releasing and refunding both makes it right."""
    reservations, payments = world.collection("reservations"), world.collection("payments")
    charge = {"_id": "made-up", "outcome": "CHARGED", "chargeId": "ch_x", "amount": 2000, "currency": "USD"}
    await world.collection("gateway_charges").insert_one(charge)
    await reservations.insert_one({"_id": "made-up", "status": "RESERVED", "items": []})
    await payments.insert_one({"_id": "made-up", "status": "PROCESSED", "amount": 2000, "currency": "USD"})
    kinds = {"reservation without order", "payment without order", "charge without order"}
    assert {violation.kind for violation in (await world.audit()).violations} == kinds
    await reservations.update_one({"_id": "made-up"}, put(status="RELEASED"))
    assert not (await world.audit()).ok
    await payments.update_one({"_id": "made-up"}, put(status="REFUNDED"))
    assert not (await world.audit()).ok
    await world.collection("gateway_charges").update_one({"_id": "made-up"}, put(refundedAt=NOW))
    report = await world.audit()
    assert report.violations == []
    assert report.information["unknownOrdersReturned"] == 1


async def test_a_payment_over_stripe_is_compared_with_our_records(world: World) -> None:
    await world.collection("payments").update_one({"_id": "confirmed"}, put(transactionId="pi_1"))
    charge = await world.collection("gateway_charges").find_one_and_delete({"_id": "confirmed"})
    assert [violation.kind for violation in (await world.audit()).violations] == ["charge", "money"]
    assert charge is not None
    money = {"amount": charge["amount"], "currency": charge["currency"]}
    await world.collection("stripe_intents").insert_one({"_id": "confirmed", "intentId": "pi_1", **money})
    report = await world.audit()
    assert report.violations == []
    assert report.checked["intents"] == 1
    assert report.information["paidThrough"] == {"retainer": 3, "simulated": 26, "stripe": 1}
    # One that is only authorised is not a charge, and one that is void is nothing at all.
    intents = world.collection("stripe_intents")
    await intents.update_one({"_id": "confirmed"}, put(authorizedAt=LONG_AGO))
    assert [violation.kind for violation in (await world.audit()).violations] == ["capture"]
    await intents.update_one({"_id": "confirmed"}, put(voidedAt=LONG_AGO))
    assert [violation.kind for violation in (await world.audit()).violations] == ["charge", "money"]
    await intents.update_one({"_id": "confirmed"}, put(chargedAt=LONG_AGO))
    assert (await world.audit()).ok


async def test_the_journal_outlives_the_orders_that_it_names(world: World) -> None:
    """The records of an order that was refunded to its retainer may be deleted; its entries stay."""
    outcome = await clean_up(world.mongodb_url, world.prefix, NOW - timedelta(hours=1), delete=True)
    assert await world.collection("payments").find_one({"_id": "back-to-retainer"}) is None
    assert outcome.kept == {}
    report = await world.audit()
    assert report.violations == []
    assert report.checked["entries"] == 19


async def test_the_entries_of_the_ledger_are_right(world: World) -> None:
    """Every operation of the service on funds, and orders that it pays from a retainer and refunds."""
    database = world.collection("entries").database.client.get_database(
        f"{world.prefix}_payments", codec_options=CodecOptions(tz_aware=True)
    )
    ledger, transactions = Ledger(database, utc_now), Transactions(database)
    await transactions.run("everything", operate_on(open_funds(database, ledger, transactions, utc_now)))
    retainers = await ledger.page(AccountKind.RETAINER, after=None, limit=10)
    paid_from = next(found["_id"].partition(":")[2] for found in retainers if found.get("retainerType") == "new")
    charging = RetainerCharger(Payments(database["payments"]), ledger, transactions, utc_now)
    orders = [order_paid_from(paid_from, order_id, 300) for order_id in ("o1", "o2", "o3", "too-much")]
    paid = await charging.charge(orders)
    assert [payment.status for payment in paid] == ["PROCESSED"] * 3 + ["FAILED"]
    await charging.refund_part(paid[1], RefundPart(order_id="o2", refund_id="r1", amount=100))
    await charging.refund_part(paid[2], RefundPart(order_id="o3", refund_id="r1", amount=100))
    await charging.refund([paid[0], paid[2]])
    report = await world.audit()
    assert [violation.as_json() for violation in report.violations if violation.invariant == 5] == []
    assert report.checked["entries"] == 19 + 16 + 3
    assert report.information["paidThrough"]["retainer"] == 3 + 3


def operate_on(funds: Funds) -> Callable[[UnitOfWork], Awaitable[None]]:
    async def operate(unit: UnitOfWork) -> None:
        usd = {"currency": "USD"}
        retainer = await funds.retainers.open(unit, client_id="c9", retainer_type="new", amount=1000, **usd)
        retainer_id = retainer["_id"].partition(":")[2]
        invoice = await funds.invoices.issue(unit, client_id="c9", amount=500, **usd)
        invoice_id = invoice["_id"].partition(":")[2]
        await funds.retainers.consume(unit, retainer_id, amount=200)
        await funds.retainers.consume(unit, retainer_id, amount=100, invoice_id=invoice_id)
        await funds.invoices.pay(unit, invoice_id, amount=100, payment_method="wire")
        new = {"customer_id": "c9", "payment_method": "wire", "default_currency": "USD"}
        applied = await funds.payments.create(unit, amount=300, invoice_id=invoice_id, **new)
        credited = await funds.payments.create(unit, amount=400, **new)
        await funds.payments.create(unit, amount=50, **new)
        for payment in (applied, credited):
            await funds.payments.complete(unit, payment["_id"])
        await funds.retainers.replenish(unit, retainer_id, amount=250, payment_id=credited["_id"])
        names = {"name": "n", "account_number": "1", "bank_name": "b", **usd}
        sender = await funds.bank.open(unit, balance=1000, **names)
        receiver = await funds.bank.open(unit, balance=0, **names)
        ends = {"from_id": sender["_id"].partition(":")[2], "to_id": receiver["_id"].partition(":")[2]}
        await funds.bank.transfer(unit, amount=100, fee=5, **ends)
        cancelled = await funds.bank.transfer(unit, amount=200, fee=5, **ends)
        await funds.bank.cancel(unit, cancelled["_id"], "not needed")

    return operate


def order_paid_from(retainer_id: str, order_id: str, amount: int) -> OrderCreated:
    return OrderCreated(
        order_id=order_id,
        user_id="u1",
        items=(Item(product_id="p1", quantity=1, price=amount),),
        total_amount=amount,
        currency="USD",
        payment=PaymentInstruction(method="retainer", retainer_id=retainer_id),
        delivery=DeliveryInstruction(),
    )


async def test_funds_that_move_meanwhile_are_not_reported(world: World) -> None:
    """Each operation is one transaction: the audit sees all of it or nothing."""

    seen = 0

    async def moves() -> int:
        return await world.collection("entries").count_documents({"operation": "retainer.consumed"})

    async def moved_on() -> bool:
        return await moves() > seen

    moving = asyncio.create_task(keep_moving(world))
    try:
        for _ in range(3):
            seen = await moves()
            assert (await world.audit(page=2)).violations == []
            await eventually(moved_on, 60, "the funds to move")
    finally:
        await end_tasks(moving)


async def keep_moving(world: World) -> None:
    """Consume the retainer, a cent at a time, as the ledger does."""

    async def consume(session: AsyncClientSession) -> None:
        lines = [{"account": "retainer:r1", "amount": 1}, {"account": "system:revenue:USD", "amount": -1}]
        entry = {"_id": secrets.token_hex(16), "operation": "retainer.consumed", "currency": "USD", "postings": lines}
        await world.collection("entries").insert_one(entry | {"at": NOW}, session=session)
        change = {"$inc": {"balance": -1, "version": 1}}
        await world.collection("accounts").update_one({"_id": "retainer:r1"}, change, session=session)

    while True:
        async with world.client.start_session() as session:
            await session.with_transaction(consume)


async def test_a_suspicion_that_resolves_itself_is_not_reported(world: World) -> None:
    """The second check decides: in between, the payment service has recorded the charge."""
    payments = world.collection("payments")
    await payments.update_one({"_id": "confirmed"}, put(status="PENDING"))
    resolved: list[int] = []

    def resolve(_judged: int) -> None:
        with pymongo.MongoClient[Document](world.mongodb_url) as client:  # done before the audit continues
            found = client[payments.database.name]["payments"]
            resolved.append(found.update_one({"_id": "confirmed"}, put(status="PROCESSED")).modified_count)

    report = await world.audit(on_progress=resolve)
    assert resolved == [1]
    assert report.violations == []


async def test_a_violation_has_the_found_and_the_expected_state(world: World) -> None:
    await world.collection("products").update_one({"_id": "p1"}, put(quantity=13))
    (violation,) = (await world.audit()).violations
    shown = violation.as_json()
    assert shown.pop("fix")["page"] == "docs/runbooks/audit-failed.md"
    assert shown == {
        "invariant": 1,
        "kind": "conservation",
        "product": "p1",
        "found": "13 free and 6 out for orders, 19 together",
        "expected": "20, the number supplied",
    }


async def test_a_slot_is_named_with_its_load_in_money(world: World) -> None:
    await world.collection("products").update_one({"_id": LOWERED}, put(quantity=-2600))
    shown = [violation.as_json() for violation in (await world.audit()).violations]
    assert all(violation.pop("fix") for violation in shown)
    assert shown == [
        {
            "invariant": 1,
            "kind": "conservation",
            "slot": LOWERED,
            "found": "a load of 56, while its orders add up to 55",
            "expected": "a load equal to the sum of its orders' prices",
        },
        {
            "invariant": 1,
            "kind": "overbooked",
            "slot": LOWERED,
            "found": "a load of 56",
            "expected": "at most 30, its capacity, or 55, the load when the capacity was reduced",
        },
    ]


async def test_a_made_up_order_that_inventory_refused_is_over_once_it_is_released(world: World) -> None:
    """Its reservation stays FAILED, and so would that of an order which the order service has lost."""
    await world.collection("reservations").insert_one({"_id": "made-up", "status": "FAILED", "items": []})
    await world.collection("payments").insert_one({"_id": "made-up", "status": "REFUNDED", "amount": 2000})
    kinds = {"reservation without order", "payment without order"}
    assert {violation.kind for violation in (await world.audit()).violations} == kinds
    operations = world.client[f"{world.prefix}_operations"]
    await record_action(operations, by="ann", why="forged", action=ORDER_RELEASE, subject="made-up", outcome="started")
    report = await world.audit()
    await world.client.drop_database(operations)
    assert (report.violations, report.information["unknownOrdersReturned"]) == ([], 1)


@pytest.mark.usefixtures("clean_broker")
async def test_messages_in_retry_queues_of_an_older_release_count(world: World) -> None:
    await declare_topology(world.amqp_url)
    former = FORMER_RETRY_QUEUES[0]
    assert former not in (await world.audit()).information["waitingForRetry"]
    await world.collection("orders").update_one({"_id": "new"}, put(updatedAt=LONG_AGO))

    async def counted() -> Report | None:
        report = await world.audit()
        return report if report.information["waitingForRetry"][former] == 1 else None

    async with queue(world.amqp_url, former):
        assert [violation.kind for violation in (await world.audit()).violations] == ["message lost"]
        await publish(world.amqp_url, former, 1)
        report = await eventually(counted, within=60)
    assert report is not None
    assert report.ok


@pytest.mark.usefixtures("clean_broker")
async def test_messages_on_the_broker_are_counted_and_explain_stalled_orders(world: World) -> None:
    """An answer that is a dead letter is not lost: an operator can see and replay it."""
    await declare_topology(world.amqp_url)
    await world.collection("orders").update_one({"_id": "new"}, put(updatedAt=LONG_AGO))
    assert [violation.kind for violation in (await world.audit()).violations] == ["message lost"]
    await publish(world.amqp_url, DEAD_LETTERS, 2)
    await publish(world.amqp_url, INVENTORY_INBOX, 3)

    async def counted() -> Report | None:
        report = await world.audit()
        return report if report.information["deadLetters"] == 2 else None

    report = await eventually(counted, within=60)
    assert report is not None
    assert report.ok
    assert report.information["inboxes"][INVENTORY_INBOX] == 3
    assert report.information["stalled"] == 1


async def declare_topology(amqp_url: str) -> None:
    bus = RabbitBus(amqp_url)
    await bus.start(None)
    await bus.close()


@contextlib.asynccontextmanager
async def queue(amqp_url: str, name: str) -> AsyncIterator[None]:
    """A queue that processes no longer declare."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.declare_queue(name, durable=True)
        try:
            yield
        finally:
            await channel.queue_delete(name)


async def publish(amqp_url: str, queue: str, number: int) -> None:
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        for _ in range(number):
            await channel.default_exchange.publish(aio_pika.Message(b"{}"), routing_key=queue)


async def test_servers_that_do_not_answer(clean_broker: str, mongodb_url: str, database_prefix: str) -> None:
    with pytest.raises(UnreachableError, match="RabbitMQ does not answer"):
        await audit(mongodb_url, "amqp://guest:guest@127.0.0.1:1/", database_prefix)
    with pytest.raises(UnreachableError, match="MongoDB does not answer"):
        await audit("mongodb://127.0.0.1:1/", clean_broker, database_prefix)


async def peak_memory(world: World) -> int:
    """The peak of bytes that an audit holds, without uncollected garbage."""
    gc.collect()
    gc.freeze()  # garbage of earlier tests is not scanned again and again
    tracemalloc.start()
    try:
        assert (await world.audit(page=100, on_progress=lambda _: gc.collect())).ok
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.unfreeze()


async def test_memory_does_not_grow_with_the_orders(world: World) -> None:
    async def peak(number: int) -> int:
        for index in range(number):
            order(world, f"many-{number}-{index}", "CONFIRMED", items=(("plenty", 1),))
            entry(world, f"many-{number}-{index}", "many", ("system:clearing:USD", 1), ("system:revenue:USD", -1))
        await world.store()
        supplied = await world.collection("orders").count_documents({"items.productId": "plenty"})
        stock = put(kind="goods", quantity=0, supplied=supplied, moving={})
        await world.collection("products").update_one({"_id": "plenty"}, stock, upsert=True)
        return await peak_memory(world)

    await peak(499)  # one-time caches do not count
    few = await peak(500)
    many = await peak(2500)
    assert many < 1.2 * few

"""The audit over a small world of correct records, and over the same world with one thing corrupted at a time.

The world has an order for every way that an order can go, with the fields that the services' modules document. Only
the audit's own eyes are tested here; that the services write such records is seen where they run.
"""

import asyncio
import gc
import secrets
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import aio_pika
import pymongo
import pytest

from operations.audit import Report, audit
from operations.settings import UnreachableError
from shared.bus.rabbitmq import RabbitBus
from shared.topology import DEAD_LETTERS, INVENTORY_INBOX
from tests.eventually import eventually
from tests.servers import Servers
from tests.world import JUST_NOW, LONG_AGO, NOW, Document, World, order, populate


@pytest.fixture
async def world(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[World]:
    async with pymongo.AsyncMongoClient(mongodb_url) as client:
        created = World(client, database_prefix, mongodb_url, clean_broker)
        populate(created)
        await created.store()
        yield created


@pytest.fixture(scope="module")
async def common_world(servers: Servers) -> AsyncIterator[World]:
    """One world for many tests, each of which leaves it as it was."""
    async with pymongo.AsyncMongoClient(servers.mongodb_url) as client:
        created = World(client, f"t{secrets.token_hex(8)}", servers.mongodb_url, servers.amqp_url)
        populate(created)
        await created.store()
        yield created
        for name in ("orders", "products", "payments", "jobs"):
            await client.drop_database(created.collection(name).database.name)


async def test_correct_records_pass(world: World) -> None:
    report = await world.audit()
    assert report.violations == []
    assert report.ok
    assert report.checked == {
        "orders": 18,
        "reservations": 16,
        "payments": 17,
        "charges": 16,
        "jobs": 8,
        "products": 3,
        "addresses": 4,
        "locks": 3,
    }
    assert report.information["inFlight"] == 7
    assert report.information["jobs"] == {"COMPLETED": 2, "FAILED": 3, "QUEUED": 1, "RUNNING": 1, "WAITING": 1}
    assert report.information["locksHeld"] == 2


async def test_small_pages_say_the_same(world: World) -> None:
    """Pages end at other ids in each collection; what falls between two of them is seen once."""
    for page in (1, 2, 3, 5):
        assert (await world.audit(page=page)).checked == (await world.audit()).checked
        assert (await world.audit(page=page)).ok


async def test_nothing_at_all_is_in_order(mongodb_url: str, clean_broker: str, database_prefix: str) -> None:
    report = await audit(mongodb_url, clean_broker, database_prefix)
    assert report.ok
    assert report.checked["orders"] == 0


Change = dict[str, Any] | list[Any]


@dataclass(frozen=True)
class Corruption:
    """One thing that is wrong: a changed record, one that is missing (None), or one too many (an insert)."""

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


CORRUPTIONS = [
    # 1: stock is conserved.
    Corruption("a unit vanished", "products", "p1", put(quantity=15), 1, "conservation"),
    Corruption("a unit appeared", "products", "p1", put(quantity=17), 1, "conservation"),
    Corruption("supplied changed", "products", "p2", put(supplied=6), 1, "conservation"),
    Corruption("negative", "products", "p2", put(quantity=-1, supplied=0), 1, "negative"),
    Corruption("no count", "products", "p2", put(quantity="4"), 1, "counts"),
    Corruption("product is gone", "products", "p2", None, 1, "unknown product"),
    Corruption("mark is gone", "products", "p1", drop("moving.taken"), 1, "conservation"),
    Corruption("mark changed", "products", "p1", put(**{"moving.recorded": -2}), 1, "conservation"),
    Corruption("sold twice", "reservations", "confirmed", put(**{"items.0.quantity": 2}), 1, "conservation", "p1"),
    # 2: one charge, and nothing held for who is over.
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
    Corruption("mark of who is over", "products", "p1", put(**{"moving.declined": -1}, quantity=15), 2, "mark"),
    Corruption("mark of nobody", "products", "p1", put(**{"moving.nobody": -1}, quantity=15), 2, "mark"),
    Corruption("total", "orders", "confirmed", put(totalAmount=1), 2, "total"),
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
    # 3: who goes through has stock and payment.
    Corruption("no stock", "reservations", "confirmed", None, 3, "stock"),
    Corruption("stock released", "reservations", "completed", put(status="RELEASED"), 3, "stock"),
    Corruption("stock refused", "reservations", "provisioning", put(status="FAILED"), 3, "stock"),
    Corruption("too few units", "reservations", "completed", put(items=[]), 3, "reserved units"),
    Corruption("no payment", "payments", "confirmed", None, 3, "payment"),
    Corruption("payment open", "payments", "completed", put(status="PENDING"), 3, "payment"),
    Corruption("payment voided", "payments", "free", put(status="VOIDED"), 3, "payment"),
    Corruption("money returned", "gateway_charges", "confirmed", put(refundedAt=NOW), 3, "money"),
    Corruption("join without stock", "orders", "confirmed", put(stockStatus="PENDING"), 3, "join"),
    Corruption("join without payment", "orders", "completed", put(paymentStatus="FAILED"), 3, "join"),
    # 4: every order ends, once and in time.
    Corruption("past its deadline", "orders", "new", put(deadline=NOW - timedelta(minutes=1)), 4, "deadline"),
    Corruption("no deadline", "orders", "new", drop("deadline"), 4, "times"),
    Corruption("compensation hangs", "orders", "returning", put(updatedAt=LONG_AGO), 4, "compensation"),
    Corruption("provisioning hangs", "jobs", "provisioning", None, 4, "provisioning"),
    Corruption("join missed", "orders", "new", put(stockStatus="RESERVED", paymentStatus="PROCESSED"), 4, "join"),
    Corruption("settled too early", "orders", "declined", put(stockStatus="RESERVED"), 4, "settled"),
    Corruption("settled on its way", "orders", "taken", put(settled=True), 4, "settled"),
    Corruption("never settled", "orders", "confirmed", put(settled=False), 4, "not settled"),
    Corruption("both ends", "orders", "confirmed", {"$push": {"history": {"status": "CANCELLED"}}}, 4, "two ends"),
    Corruption("unknown status", "orders", "confirmed", put(status="LOST"), 4, "status"),
    # 6: every server is the one ordered, and one order's alone.
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
    Corruption("an address of no order", "addresses", "103.181.91.5", put(orderId="nobody"), 6, "address of nobody"),
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
    Corruption("a lock of nobody", "locks", "103.83", put(orderId="confirmed"), 6, "lock of nobody"),
    Corruption("a lock without end", "locks", "103.181.9", drop("expiresAt"), 6, "lock without end"),
    Corruption(
        "a lock left behind", "locks", "103.181.9", put(orderId="queued", expiresAt=LONG_AGO), 6, "lock left behind"
    ),
    Corruption(
        "a lock of a job that is over", "locks", "103.181.9", put(orderId="held"), 6, "lock of a job that is over"
    ),
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


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
async def test_what_is_corrupted_is_named(corruption: Corruption, common_world: World) -> None:
    records = common_world.collection(corruption.collection)
    correct = await records.find_one({"_id": corruption.id})
    assert correct is not None
    if corruption.change is None:
        await records.delete_one({"_id": corruption.id})
    else:
        assert (await records.update_one({"_id": corruption.id}, corruption.change)).modified_count == 1
    try:
        report = await common_world.audit()
    finally:
        await records.replace_one({"_id": corruption.id}, correct, upsert=True)
    assert not report.ok
    subject = corruption.subject or corruption.id
    named = {(violation.invariant, violation.kind, violation.id) for violation in report.violations}
    assert (corruption.invariant, corruption.kind, subject) in named
    assert (await common_world.audit()).ok


ADDED: list[tuple[str, Document]] = [
    ("a second charge", {"collection": "gateway_charges", "_id": "confirmed-2", "outcome": "CHARGED"}),
    ("a payment", {"collection": "payments", "_id": "unknown", "status": "VOIDED"}),
    ("a reservation", {"collection": "reservations", "_id": "unknown", "status": "RELEASED", "items": []}),
]


@pytest.mark.parametrize(("name", "record"), ADDED, ids=[name for name, _ in ADDED])
async def test_what_belongs_to_no_order_is_named(name: str, record: Document, common_world: World) -> None:
    document = dict(record)
    records = common_world.collection(document.pop("collection"))
    await records.insert_one(document)
    try:
        assert [violation.id for violation in (await common_world.audit()).violations] == [document["_id"]]
    finally:
        await records.delete_one({"_id": document["_id"]})


async def test_what_mends_itself_meanwhile_is_not_reported(world: World) -> None:
    """The second look decides: between the two, the payment service has recorded what it was about to record."""
    payments = world.collection("payments")
    await payments.update_one({"_id": "confirmed"}, put(status="PENDING"))
    mending: list[asyncio.Task[Any]] = []

    def mend(_judged: int) -> None:
        mending.append(asyncio.create_task(payments.update_one({"_id": "confirmed"}, put(status="PROCESSED"))))

    report = await world.audit(on_progress=mend, second_look_after=0.5)
    assert [(await task).modified_count for task in mending] == [1]
    assert report.violations == []


async def test_one_thing_is_named_with_what_was_found_and_what_should_be(world: World) -> None:
    await world.collection("products").update_one({"_id": "p1"}, put(quantity=15))
    (violation,) = (await world.audit()).violations
    assert violation.as_json() == {
        "invariant": 1,
        "kind": "conservation",
        "product": "p1",
        "found": "15 free and 4 out for orders, together 19",
        "expected": "20, all that was ever supplied",
    }


async def test_messages_on_the_broker_are_counted_and_explain_orders_that_stand_still(world: World) -> None:
    """Who waits for an answer that is a dead letter has not lost it: an operator can see and replay it."""
    await declare_topology(world.amqp_url)
    await world.collection("orders").update_one({"_id": "new"}, put(updatedAt=LONG_AGO))
    assert [violation.kind for violation in (await world.audit()).violations] == ["message lost"]
    await publish(world.amqp_url, DEAD_LETTERS, 2)
    await publish(world.amqp_url, INVENTORY_INBOX, 3)

    async def counted() -> Report | None:
        report = await world.audit()
        return report if report.information["deadLetters"] == 2 else None

    report = await eventually(counted, within=10)
    assert report is not None
    assert report.ok
    assert report.information["inboxes"][INVENTORY_INBOX] == 3
    assert report.information["stalled"] == 1


async def declare_topology(amqp_url: str) -> None:
    bus = RabbitBus(amqp_url)
    await bus.start(None)
    await bus.close()


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
    """The most bytes that an audit holds at once, garbage that is not collected yet aside."""
    gc.collect()
    gc.freeze()  # what the tests before have left is not looked at again and again
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
        await world.store()
        supplied = await world.collection("orders").count_documents({"items.productId": "plenty"})
        stock = put(kind="goods", quantity=0, supplied=supplied, moving={})
        await world.collection("products").update_one({"_id": "plenty"}, stock, upsert=True)
        return await peak_memory(world)

    await peak(499)  # what is loaded and cached once does not count
    few = await peak(500)
    many = await peak(5000)
    assert many < 1.2 * few

"""The cleanup over real records: what it deletes and keeps, and that the books balance at all times meanwhile."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import aio_pika
import pymongo
import pytest
from cryptography.fernet import Fernet

from operations.cleanup.deletion import CLEANED_KINDS, CleanupResult, clean_up
from operations.errors import UnreachableError
from shared.bus.rabbitmq import RabbitBus
from shared.topology import DEAD_LETTERS
from tests.support import commands, stripe_api
from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.simulators import package, run_simulator
from tests.support.world import (
    DATABASES,
    FREE,
    JUST_NOW,
    NOW,
    Document,
    World,
    hold,
    job,
    order,
    populate,
    populate_holds,
    populate_slots,
)

BEFORE = NOW - timedelta(hours=1)
NOTHING = dict.fromkeys(CLEANED_KINDS, 0)
DELETABLE = {"no-stock", "declined", "tombstones", "server-cancelled"}


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def world(mongodb_url: str, bare_broker: str, database_prefix: str) -> AsyncIterator[World]:
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url, tz_aware=True) as client:
        created = World(client, database_prefix, mongodb_url, bare_broker)
        populate(created)
        await created.store()
        yield created


async def clean(world: World, *, delete: bool = True, group: int = 3) -> CleanupResult:
    return await clean_up(world.mongodb_url, world.prefix, BEFORE, delete=delete, group=group)


async def everything(world: World) -> dict[str, dict[str, Document]]:
    """All records of all services, by collection and id."""
    return {name: {d["_id"]: d async for d in world.collection(name).find()} for name in DATABASES}


async def test_orders_cancelled_long_ago_are_deleted_with_all_their_records_and_nothing_else(world: World) -> None:
    before = await everything(world)
    outcome = await clean(world)
    after = await everything(world)
    for name, records in before.items():
        gone = DELETABLE if name not in ("products", "addresses", "locks") else set()
        assert after[name] == {key: record for key, record in records.items() if key not in gone}, name
    assert outcome.deleted == NOTHING | {"orders": 4, "reservations": 4, "payments": 4, "charges": 4, "jobs": 1}
    assert outcome.failed == {"no reason recorded": 2}
    assert outcome.found == outcome.deleted
    assert outcome.kept == {}
    assert (await world.audit()).violations == []


async def test_holds_that_ended_long_ago_go_unless_a_product_has_a_pending_move_of_them(world: World) -> None:
    populate_holds(world)
    hold(world, "just-now", 1, "RELEASED", outcome="DELETED", updatedAt=JUST_NOW)
    await world.store()
    products, reservations = world.collection("products"), world.collection("reservations")

    async def holds() -> set[str]:
        return {document["_id"] async for document in reservations.find({"_id": {"$regex": "^hold:"}})}

    before = await holds()
    await products.update_one({"_id": "p4"}, {"$set": {"moving.hold:deleted": 1}})
    assert (await clean(world, delete=False)).found["holds"] == 2
    assert await holds() == before
    assert (await clean(world)).deleted["holds"] == 2
    assert before - await holds() == {"hold:expired", "hold:taken"}
    await products.update_one({"_id": "p4"}, {"$unset": {"moving.hold:deleted": True}})
    assert (await clean(world)).deleted["holds"] == 1
    assert before - await holds() == {"hold:expired", "hold:taken", "hold:deleted"}
    assert (await world.audit()).violations == []


async def test_old_answers_to_repeated_requests_go(world: World) -> None:
    answers = world.client[f"{world.prefix}_payments"]["idempotency"]
    await answers.insert_many([{"_id": "old", "at": BEFORE - timedelta(seconds=1)}, {"_id": "recent", "at": BEFORE}])
    assert (await clean(world, delete=False)).found["answers"] == 1
    assert (await clean(world)).deleted["answers"] == 1
    assert [document["_id"] async for document in answers.find()] == ["recent"]


async def test_a_second_cleanup_finds_nothing(world: World) -> None:
    await clean(world)
    again = await clean(world)
    assert not any((*again.found.values(), *again.deleted.values(), *again.kept.values()))


async def test_a_dry_run_counts_and_changes_nothing(world: World) -> None:
    before = await everything(world)
    outcome = await clean(world, delete=False)
    assert outcome.found["orders"] == 4
    assert not any(outcome.deleted.values())
    assert await everything(world) == before


async def test_a_failed_order_is_never_deleted(world: World) -> None:
    """In every state of its participants, and wherever its money is."""
    kinds = product(
        ("RESERVED", "FAILED", "RELEASED"), ("PROCESSED", "FAILED", "VOIDED", "REFUNDED"), (True, False), (True, False)
    )
    failed = {f"failed-{number}": kind for number, kind in enumerate(kinds)}
    for order_id, (stock, payment, settled, compensating) in failed.items():
        ancient = NOW - timedelta(days=9999)
        changes: Document = {
            "settled": settled,
            "compensating": compensating,
            "updatedAt": ancient,
            "createdAt": ancient,
        }
        order(world, order_id, "FAILED", stock=stock, payment=payment, **changes)
        job(world, order_id, "FAILED", updatedAt=ancient)
    await world.store()
    before = await everything(world)
    await clean(world)
    after = await everything(world)
    for name in ("orders", "reservations", "payments", "gateway_charges", "jobs"):
        kept = {key: record for key, record in before[name].items() if key.startswith("failed-")}
        assert len(kept) == len(failed)
        assert {key: record for key, record in after[name].items() if key.startswith("failed-")} == kept
    for name in ("held", "given-up"):
        assert after["orders"][name] == before["orders"][name]


HOLDS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("stock held", "reservations", "declined", {"status": "RESERVED"}),
    ("money held", "gateway_charges", "no-stock", {"refundedAt": None}),
    ("payment open", "payments", "declined", {"status": "PENDING"}),
    ("unpublished", "orders", "declined", {"unpublished": True}),
    ("unpublished answer", "payments", "declined", {"unpublished": True}),
    ("a pending move", "products", "p1", {"moving.declined": 1}),
    ("a server", "jobs", "server-cancelled", {"ip": "103.181.9.7"}),
    ("a job at work", "jobs", "server-cancelled", {"state": "RUNNING"}),
    ("an address", "addresses", "103.181.91.5", {"orderId": "server-cancelled"}),
    ("a lock", "locks", "103.83", {"orderId": "server-cancelled"}),
]


@pytest.mark.parametrize(("name", "collection", "key", "changes"), HOLDS, ids=[hold[0] for hold in HOLDS])
async def test_an_order_that_may_hold_something_keeps_all_records(
    name: str, collection: str, key: str, changes: dict[str, Any], world: World
) -> None:
    await world.collection(collection).update_one({"_id": key}, {"$set": changes})
    before = await everything(world)
    outcome = await clean(world)
    assert sum(outcome.kept.values()) == 1
    assert outcome.deleted["orders"] == 3
    after = await everything(world)
    (kept,) = DELETABLE & after["orders"].keys()
    for records, left in zip(before.values(), after.values(), strict=True):
        assert left.get(kept) == records.get(kept)


SLOT_HOLDS: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("nothing", "products", FREE, {"disabled": True}, ""),
    (
        "room in a slot",
        "reservations",
        "slot-declined",
        {"status": "RESERVED"},
        "the release of the stock is not confirmed",
    ),
    (
        "a pending move on a slot",
        "products",
        FREE,
        {"moving.slot-declined": 1},
        "a product or a slot has a pending move",
    ),
    ("an assignment", "reservations", "assignment:1:slot-declined", {"status": "RESERVED"}, "a slot is assigned"),
]


@pytest.mark.parametrize(("name", "collection", "key", "changes", "why"), SLOT_HOLDS, ids=[h[0] for h in SLOT_HOLDS])
async def test_orders_without_a_slot_are_deleted_and_slots_and_assignments_stay(
    name: str, collection: str, key: str, changes: dict[str, Any], why: str, world: World
) -> None:
    populate_slots(world)
    await world.store()
    await world.collection(collection).update_one({"_id": key}, {"$set": changes})
    before = await everything(world)
    outcome = await clean(world)
    after = await everything(world)
    gone = {"slots-full"} if why else {"slots-full", "slot-declined"}
    assert before["orders"].keys() - after["orders"].keys() == DELETABLE | gone
    assert before["reservations"].keys() - after["reservations"].keys() == DELETABLE | gone
    assert after["products"] == before["products"]
    assert [reason.startswith(why) for reason in outcome.kept] == ([True] if why else [])
    if not why:
        assert (await world.audit()).violations == []


async def add_cancelled(world: World, number: int) -> None:
    for index in range(number):
        order(world, f"old-{index:04}", "CANCELLED", stock="RELEASED", payment="REFUNDED")
    await world.store()


async def test_groups_may_end_anywhere(world: World) -> None:
    """Orders placed at the same time, some of them kept, are on both sides of a group's end."""
    await add_cancelled(world, 20)
    await world.collection("payments").update_many(
        {"_id": {"$in": ["old-0004", "old-0009"]}}, {"$set": {"status": "PENDING"}}
    )
    outcome = await clean(world, group=5)
    assert (outcome.deleted["orders"], sum(outcome.kept.values())) == (22, 2)


async def test_the_books_balance_at_all_times_during_a_cleanup(world: World) -> None:
    await add_cancelled(world, 150)
    cleaning = asyncio.create_task(clean(world, group=5))
    audits = 0
    while not cleaning.done() or audits == 0:
        report = await world.audit(page=10)
        assert report.violations == []
        audits += 1
    assert (await cleaning).deleted["orders"] == 154
    assert (await world.audit()).checked["orders"] == 18


async def test_a_concurrent_change_of_a_record_is_not_lost(world: World) -> None:
    """Between the check and the deletion a payment is reopened: the group is judged again, and the order is kept."""
    payments = world.collection("payments")
    interfering = _Interfering(payments.database.name, world.mongodb_url)
    pymongo.monitoring.register(interfering)
    try:
        outcome = await clean(world, group=100)
    finally:
        pymongo.monitoring._LISTENERS.command_listeners.remove(interfering)
    assert interfering.done
    assert outcome.kept == {"the release of the payment is not confirmed": 1}
    assert outcome.deleted["orders"] == 3
    assert "declined" in (await everything(world))["orders"]


class _Interfering(pymongo.monitoring.CommandListener):
    """Reopens a payment when the first deletion is sent."""

    def __init__(self, database: str, mongodb_url: str) -> None:
        self.database = database
        self.mongodb_url = mongodb_url
        self.done = False

    def started(self, event: pymongo.monitoring.CommandStartedEvent) -> None:
        if event.command_name == "delete" and not self.done:
            self.done = True
            with pymongo.MongoClient[Document](self.mongodb_url) as client:
                client[self.database]["payments"].update_one({"_id": "declined"}, {"$set": {"status": "PENDING"}})

    def succeeded(self, event: object) -> None:
        pass

    def failed(self, event: object) -> None:
        pass


KILLED = """
import asyncio, os, signal, sys
from datetime import datetime
import pymongo.monitoring
from operations.cleanup.deletion import clean_up

class KillsItself(pymongo.monitoring.CommandListener):
    commits = 0

    def started(self, event):
        if event.command_name == "commitTransaction" and self.commits == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def succeeded(self, event):
        # A command that the server rejects because its transaction took too long does not count.
        self.commits += event.command_name == "commitTransaction"

    def failed(self, event): pass

pymongo.monitoring.register(KillsItself())
url, prefix, before = sys.argv[1:]
asyncio.run(clean_up(url, prefix, datetime.fromisoformat(before), delete=True, group=10))
"""


@contextlib.asynccontextmanager
async def short_transactions(world: World) -> AsyncIterator[None]:
    """Let the server abort the transaction of a dead process after 2 s, not after a minute."""
    name = "transactionLifetimeLimitSeconds"
    before = (await world.client.admin.command({"getParameter": 1, name: 1}))[name]
    await world.client.admin.command({"setParameter": 1, name: 2})
    try:
        yield
    finally:
        await world.client.admin.command({"setParameter": 1, name: before})


async def test_killed_in_the_middle_of_a_group_it_leaves_whole_orders_and_the_next_one_continues(world: World) -> None:
    await add_cancelled(world, 46)
    async with short_transactions(world):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED, world.mongodb_url, world.prefix, BEFORE.isoformat()
        )
        assert await process.wait() == -signal.SIGKILL
        report = await world.audit()
        assert report.violations == []
        assert report.checked["orders"] == 18 + 4 + 46 - 20
        assert (await clean(world)).deleted["orders"] == 30
    assert (await world.audit()).violations == []
    assert not DELETABLE & (await everything(world))["orders"].keys()


async def test_a_server_that_does_not_answer() -> None:
    with pytest.raises(UnreachableError, match="MongoDB does not answer"):
        await clean_up("mongodb://127.0.0.1:1/", "nothing", BEFORE, delete=True)


# --- The command, over what real services have recorded. ---


async def run_command(stack: Stack, *words: str, answer: str = "") -> tuple[int, str, str]:
    """Run `ordersaga cleanup` with these arguments; return its exit status and output."""
    environment = {
        "ORDERSAGA_MONGODB_URL": stack.mongodb_url,
        "ORDERSAGA_AMQP_URL": stack.amqp_url,
        "ORDERSAGA_DATABASE_PREFIX": stack.database_prefix,
        "COLUMNS": "120",
    }
    return await commands.run_command("cleanup", *words, environment=environment, answer=answer)


async def grow_old(
    client: pymongo.AsyncMongoClient[Document], prefix: str, days: int, still_open: str | None = None
) -> None:
    """Move all records of the services that many days into the past, except for an open order."""
    for name in ("orders", "reservations", "payments", "gateway_charges", "stripe_intents", "jobs"):
        collection = client[f"{prefix}_{DATABASES[name]}"][name]
        async for document in collection.find({"_id": {"$ne": still_open}}):
            times = {key: at - timedelta(days=days) for key, at in document.items() if isinstance(at, datetime)}
            await collection.update_one({"_id": document["_id"]}, {"$set": times})


async def all_published(client: pymongo.AsyncMongoClient[Document], prefix: str) -> None:
    """Wait until nothing is left to publish, which is recorded after the last message."""

    async def none_left() -> bool:
        unpublished: Document = {"$or": [{name: {"$nin": [None, False]}} for name in ("unpublished", "outboxSince")]}
        names = ("orders", "payments", "jobs")
        left = [await client[f"{prefix}_{DATABASES[name]}"][name].find_one(unpublished) for name in names]
        return not any(left)

    await eventually(none_left, 60, "all to be published")


async def test_the_command_over_the_records_of_real_services(
    mongodb_url: str, clean_broker: str, database_prefix: str
) -> None:
    async with (
        run_stack(mongodb_url, clean_broker, database_prefix) as stack,
        pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url, tz_aware=True) as client,
    ):
        await stack.start()
        await stack.stock("p1", 5)
        declined = {"payment": {"method": "card", "token": "tok_declined"}}
        old = [await stack.place(**changes) for changes in ({}, declined, {}, declined)]
        old += [await stack.place(items=[{"productId": "unknown", "quantity": 1, "price": 10}])]
        kept = {o["orderId"] for o in await stack.all_settled(old) if o["status"] == "CONFIRMED"}
        assert len(kept) == 2
        await all_published(client, database_prefix)
        await grow_old(client, database_prefix, 40)
        recent = [await stack.place(**declined), await stack.place()]
        await stack.all_settled(recent)

        await refuses_and_asks(stack)
        assert (await run_command(stack, "--older-than", "41d", "--yes"))[1].startswith("Nothing to delete")
        status, output, _ = await run_command(stack, "--older-than", "30d", "--dry-run", "--json")
        found = json.loads(output)
        assert (status, found["found"]["orders"], found["deleted"]["orders"]) == (0, 3, 0)
        status, output, _ = await run_command(stack, "--older-than", "30d", "--json", "--yes")
        done = json.loads(output)
        assert (status, done["dryRun"], done["deleted"]) == (0, False, found["found"])
        assert datetime.now(UTC) - datetime.fromisoformat(done["before"]) > timedelta(days=29)

        for order_id in (*kept, *recent):
            assert (await stack.order(order_id))["orderId"] == order_id
        for order_id in set(old) - kept:
            assert (await stack.client.get(f"{stack.url('order')}/orders/{order_id}")).status_code == 404
        assert await stack.inventory("p1") == {"productId": "p1", "quantity": 2, "reserved": 3, "shipped": 0}
        await stack.assert_books_balance()


async def test_servers_failed_orders_and_their_records_stay(
    mongodb_url: str, clean_broker: str, database_prefix: str
) -> None:
    """Of real orders of servers, only the cancelled one is deleted, with its job."""
    async with (
        run_simulator() as provider,
        run_stack(
            mongodb_url,
            clean_broker,
            database_prefix,
            **provider.settings,
            credentials_key=Fernet.generate_key().decode(),
        ) as stack,
        pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url, tz_aware=True) as client,
    ):
        await stack.start("order", "inventory", "payment", "provisioning")
        await provider.packages([package("203.0.113", 1), package("198.51.100", 5)])
        for name in ("203.0.113", "198.51.100"):
            product = {"kind": "vps", "package": name, "ram": 1024}
            assert (await stack.client.put(f"{stack.url('inventory')}/products/{name}", json=product)).status_code < 300
        completed = await place_server(stack, "203.0.113", "COMPLETED")
        held = await place_server(stack, "203.0.113", "FAILED")
        refunded = await place_server(stack, "203.0.113", "FAILED")
        await ask(stack, refunded, "refund")
        await provider.faults(buy={"failNext": 1})
        cancelled = await place_server(stack, "198.51.100", "PROVISIONING")
        await job_waits(client, database_prefix, cancelled)
        await ask(stack, cancelled, "cancel")
        assert [o["status"] for o in await stack.all_settled([refunded, cancelled])] == ["FAILED", "CANCELLED"]
        await stack.assert_books_balance()

        await all_published(client, database_prefix)
        await grow_old(client, database_prefix, 40, still_open=held)
        status, output, _ = await run_command(stack, "--older-than", "30d", "--json", "--yes")
        assert status == 0
        one_each = dict.fromkeys(("orders", "reservations", "payments", "charges", "jobs"), 1)
        assert json.loads(output)["deleted"] == NOTHING | one_each
        assert sum(json.loads(output)["failedPreserved"].values()) == 1
        jobs = client[f"{database_prefix}_provisioning"]["jobs"]
        assert {job["_id"] async for job in jobs.find()} == {completed, held, refunded}
        for order_id in (completed, held, refunded):
            assert (await stack.order(order_id))["orderId"] == order_id
        await stack.assert_books_balance()


async def place_server(stack: Stack, product_id: str, status: str) -> str:
    """Order a server; return the order's id once it has that status."""
    order_id = await stack.place(items=[{"productId": product_id, "quantity": 1, "price": 10}])

    async def arrived() -> bool:
        return bool((await stack.order(order_id))["status"] == status)

    await eventually(arrived, within=60)
    return order_id


async def ask(stack: Stack, order_id: str, action: str) -> None:
    response = await stack.client.post(f"{stack.url('order')}/orders/{order_id}/{action}", json={})
    assert response.status_code == 202, response.text


async def job_waits(client: pymongo.AsyncMongoClient[Document], prefix: str, order_id: str) -> None:
    async def waits() -> bool:
        found = await client[f"{prefix}_provisioning"]["jobs"].find_one({"_id": order_id})
        return found is not None and found["state"] == "WAITING"

    await eventually(waits, within=60)


async def refuses_and_asks(stack: Stack) -> None:
    """Nothing is deleted for wrong usage, without confirmation, or while there are dead letters."""
    for words in (["--older-than", "12h"], ["--older-than", "soon"], [], ["--older-than", "30d", "--json"]):
        assert (await run_command(stack, *words, answer="y\n"))[0] == 2, words
    for answer in ("n\n", ""):
        status, output, _ = await run_command(stack, "--older-than", "30d", answer=answer)
        assert status == 1
        assert "3 orders" in " ".join(output.split())
    await leave_a_dead_letter(stack.amqp_url)
    status, output, errors = await run_command(stack, "--older-than", "30d", "--yes")
    assert (status, output) == (1, "")
    assert "there is 1 dead letter" in errors
    status, output, _ = await run_command(stack, "--older-than", "30d", "--yes", "--json")
    assert (status, list(json.loads(output))) == (1, ["refused"])
    words = ["--older-than", "41d", "--yes", "--ignore-dead-letters"]
    assert (await run_command(stack, *words))[0] == 0
    await purge(stack.amqp_url)


async def leave_a_dead_letter(amqp_url: str) -> None:
    bus = RabbitBus(amqp_url)
    await bus.start(None)
    await bus.close()
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.default_exchange.publish(aio_pika.Message(b"{}"), routing_key=DEAD_LETTERS)

        async def counted() -> bool:
            declared = await (await connection.channel()).declare_queue(DEAD_LETTERS, passive=True)
            return declared.declaration_result.message_count == 1

        await eventually(counted, within=60)


async def purge(amqp_url: str) -> None:
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await (await channel.get_queue(DEAD_LETTERS)).purge()


async def test_the_command_reports_unreachable_servers(mongodb_url: str, amqp_url: str) -> None:
    for stack in (
        Stack("mongodb://127.0.0.1:1/", amqp_url, "nothing"),
        Stack(mongodb_url, "amqp://guest:guest@127.0.0.1:1/", "nothing"),
    ):
        status, output, errors = await run_command(stack, "--older-than", "30d", "--yes")
        assert (status, output) == (3, "")
        assert "does not answer" in errors
        await stack.close()


async def test_an_order_refunded_over_stripe_and_deleted_is_charged_again_when_it_is_placed_again(
    mongodb_url: str, clean_broker: str, database_prefix: str
) -> None:
    """With a new PaymentIntent: reusing the refunded one would give the goods away."""
    async with (
        stripe_api.run_stripe_api() as api,
        run_stack(
            mongodb_url,
            clean_broker,
            database_prefix,
            card_gateway="stripe",
            stripe_api_key=stripe_api.API_KEY,
            stripe_api_url=api.url,
            gateway_timeout_seconds=60,
        ) as stack,
        pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url, tz_aware=True) as client,
    ):
        await stack.start()

        async def post(amount: int, card: str) -> Document:
            changes = {"items": [{"productId": "p1", "quantity": 1, "price": amount}], "totalAmount": amount}
            body = order_body(**changes, payment={"token": card})
            answer = await stack.client.post(
                f"{stack.url('order')}/orders", json=body, headers={"Idempotency-Key": database_prefix}
            )
            assert answer.status_code == 202, answer.text
            return await stack.settled(answer.json()["orderId"])

        async def clean_up_with_command() -> None:
            await all_published(client, database_prefix)
            await grow_old(client, database_prefix, 31)
            status, output, errors = await run_command(stack, "--older-than", "30d", "--json", "--yes")
            assert status == 0, output + errors
            assert json.loads(output)["deleted"]["intents"] == 1

        await stack.stock("p1", 0)
        refused = await post(10, stripe_api.VISA)
        assert (refused["status"], refused["paymentStatus"]) == ("CANCELLED", "REFUNDED")
        await clean_up_with_command()
        declined = await post(10, stripe_api.REFUSED)
        assert declined["status"] == "CANCELLED"
        await clean_up_with_command()

        await stack.stock("p1", 5)
        confirmed = await post(12, stripe_api.VISA)
        assert confirmed["orderId"] == refused["orderId"]
        assert (confirmed["status"], confirmed["paymentStatus"]) == ("CONFIRMED", "PROCESSED")
        assert api.held() == {confirmed["orderId"]}
        assert len(api.of(confirmed["orderId"])) == 3
        await stack.assert_books_balance()

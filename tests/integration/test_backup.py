"""Backup and restore over real servers: one moment, everything comes back, and what does not fit is refused."""

import asyncio
import contextlib
import gzip
import json
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aio_pika
import bson
import pymongo
import pytest
from bson.json_util import loads
from pydantic import SecretStr
from pymongo.errors import OperationFailure

from operations.audit import audit
from operations.backup.errors import BackupError
from operations.backup.restoring import read_backup, restore
from operations.backup.taking import take_backup
from operations.doctor.database import check_schema
from operations.errors import UnreachableError
from operations.reading.broker import count_messages
from operations.settings import Stack
from operations.stack.database_rights import NOT_BACKED_UP
from operations.stack.database_schemas import all_schemas
from payment_service.gateways.factory import open_gateway
from payment_service.gateways.port import Charged, ChargeRequest
from payment_service.settings import PaymentSettings
from shared import audit_log, schema, topology
from shared.clock import utc_now
from shared.services import CONSOLE, ORDER, SERVICES
from shared.unfinished_restore import COLLECTION as MARK
from tests.support.backups import Commands, Records, commands_for, files_in, records_of_stack
from tests.support.eventually import eventually
from tests.support.processes import run_stack
from tests.support.servers import NativeServers, drop_databases
from tests.support.simulators import package, run_simulator
from tests.support.stripe_api import API_KEY, VISA, run_stripe_api
from tests.support.world import (
    Document,
    World,
    populate,
    populate_captures,
    populate_funds,
    populate_holds,
    populate_orders_paid_from_a_retainer,
    populate_slots,
)

NO_BROKER = "amqp://127.0.0.1:1/"
"""Where none answers. A backup is then made without an audit."""

COMPLETED = [
    {
        "$replaceWith": {
            "$mergeObjects": [
                {"userId": "u1", "payment": {"method": "card"}, "delivery": {}, "version": 1},
                "$$ROOT",
                {
                    "refunds": {
                        "$map": {
                            "input": {"$ifNull": ["$refunds", []]},
                            "in": {"$mergeObjects": [{"createdAt": "$createdAt", "status": "PENDING"}, "$$this"]},
                        }
                    }
                },
            ]
        }
    }
]
"""Gives each order the fields that the audit does not need, and a recovery does."""


@pytest.fixture
async def world(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[World]:
    """A stack with records of every kind, in collections as the services declare them.

    Some would be refused by the validators, like those of an earlier release.
    """
    async with pymongo.AsyncMongoClient[Document](mongodb_url, tz_aware=True) as client:
        for name, declared in all_schemas().items():
            indexed = {key: schema.CollectionSchema(wanted.indexes) for key, wanted in declared.items()}
            await schema.prepare(client[SERVICES[name].database_in(database_prefix)], indexed)
        created = World(client, database_prefix, mongodb_url, clean_broker)
        populate(created)
        populate_captures(created)
        populate_funds(created)
        populate_orders_paid_from_a_retainer(created)
        populate_slots(created)
        populate_holds(created)
        await created.store()
        await created.collection("orders").update_many({}, COMPLETED)
        operations = client[CONSOLE.database_in(database_prefix)]
        for number in range(3):
            entry = audit_log.new_entry(by="ada", why="test", action="test", subject=str(number), outcome="done")
            await audit_log.append(operations, entry)
        await operations["sessions"].insert_one({"_id": "hash", "expiresAt": None})
        await operations["copy_of_an_operator"].insert_one({"_id": 1})
        yield created


@pytest.fixture
def commands(mongodb_url: str, clean_broker: str, database_prefix: str) -> Commands:
    return commands_for(mongodb_url, clean_broker, database_prefix)


def stack_of(world: World) -> Stack:
    return Stack(world.mongodb_url, world.amqp_url, {}, None, world.prefix)


async def backed_up(world: World, commands: Commands, directory: Path) -> Records:
    """Make a backup, destroy the stack, and return what it had."""
    before = await records_of_stack(world.mongodb_url, world.prefix)
    await commands.must("backup", str(directory))
    await drop_databases(world.mongodb_url, world.prefix)
    return before


def without_restore(records: Records, prefix: str) -> Records:
    """Return the records without the entries about the restore, which must be there."""
    log = records[f"{prefix}_operations.actions"]
    entries = [key for key, entry in log.items() if entry["action"] in ("stack.restore", "broker.recover")]
    removed = sorted((log.pop(key) for key in entries), key=lambda entry: entry["at"])
    assert [(entry["action"], entry["by"]) for entry in removed] == [
        ("stack.restore", "ada"),
        ("broker.recover", "ada"),
        ("broker.recover", "ada"),
    ]
    return records


async def test_everything_comes_back(world: World, commands: Commands, tmp_path: Path) -> None:
    before = await backed_up(world, commands, tmp_path / "backup")
    result = await commands.must("restore", str(tmp_path / "backup"), "--yes")
    assert result["ok"], result["violations"]
    assert result["recovery"]["commands"]
    assert result["next"] == [
        "start the services: `ordersaga up`",
        "check the books once all has settled: `ordersaga audit`",
    ]
    assert sum(result["documents"].values()) == sum(map(len, before.values()))
    after = await records_of_stack(world.mongodb_url, world.prefix)
    assert without_restore(after, world.prefix) == before
    report = await audit(world.mongodb_url, world.amqp_url, world.prefix, confirm_after=0.05)
    assert not [violation for violation in report.violations if violation.invariant == 8]
    assert report.checked["actions"] == 3 + 3
    for name, declared in all_schemas().items():
        examined = await schema.examine(world.client[SERVICES[name].database_in(world.prefix)], declared)
        assert not any(examined.values())
    for service, names in NOT_BACKED_UP.items():
        for name in names:
            database = world.client[SERVICES[service].database_in(world.prefix)]
            assert await database[name].count_documents({}) == 0
    for each in SERVICES.values():
        assert MARK not in await world.client[each.database_in(world.prefix)].list_collection_names()


async def test_the_files_are_those_of_mongodump(world: World, commands: Commands, tmp_path: Path) -> None:
    shown = await commands.must("backup", str(tmp_path / "new" / "backup"))
    directory = tmp_path / "new" / "backup"
    orders = gzip.decompress((directory / f"{world.prefix}_orders" / "orders.bson.gz").read_bytes())
    assert bson.decode_all(orders, bson.CodecOptions(tz_aware=True)) == [
        record async for record in world.collection("orders").find(sort=[("_id", 1)])
    ]
    metadata = loads(gzip.decompress((directory / f"{world.prefix}_orders" / "orders.metadata.json.gz").read_bytes()))
    assert (metadata["collectionName"], metadata["type"]) == ("orders", "collection")
    indexes = await world.collection("orders").index_information()
    assert {index["name"] for index in metadata["indexes"]} == indexes.keys()
    assert metadata["options"] == {}
    for path in directory.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert directory.stat().st_mode & 0o077 == 0
    assert [path.name for path in directory.parent.iterdir()] == ["backup"]
    assert shown["leftOut"] == [f"{world.prefix}_operations.copy_of_an_operator"]
    assert shown["audit"]["ok"], shown["audit"]
    assert "CREDENTIALS_KEY" in shown["notInBackup"]
    assert (await commands.must("backup", str(directory), "--verify"))["documents"] == shown["documents"]


async def test_everything_is_of_one_moment(world: World, tmp_path: Path) -> None:
    """Records in two databases, one after the other: no backup has the second without the first."""
    first, second = world.client[f"{world.prefix}_orders"]["orders"], world.client[f"{world.prefix}_payments"]
    template = await first.find_one({"_id": "confirmed"}) or {}
    without_audit, written = replace(stack_of(world), amqp_url=NO_BROKER), 0

    async def write() -> None:
        nonlocal written
        while True:
            await first.insert_one({**template, "_id": f"pair-{written:06}"})
            await second["gateway_charges"].insert_one({"_id": f"pair-{written:06}", "text": "x" * 1000})
            written += 1

    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        pairs = []
        for number in range(3):
            await eventually(lambda: written > 20 * (number + 1), 60)  # noqa: B023
            manifest = await take_backup(without_audit, tmp_path / str(number))
            pairs.append({c.name: c.documents for c in manifest.collections})
        writing.cancel()
    lone = await first.count_documents({"_id": {"$not": {"$regex": "^pair"}}})
    others = await second["gateway_charges"].count_documents({"_id": {"$not": {"$regex": "^pair"}}})
    for found in pairs:
        assert found["orders"] - lone - (found["gateway_charges"] - others) in (0, 1)


async def test_a_backup_needs_an_empty_directory(world: World, commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, printed = await commands.run("backup", str(tmp_path))
    assert status == 2
    assert f"{tmp_path} is not empty: a backup needs a directory of its own" in printed
    (tmp_path / "backup.partial").mkdir()
    status, printed = await commands.run("backup", str(tmp_path / "backup"))
    assert status == 2
    assert "backup.partial exists: another backup writes to it, or was interrupted" in printed


async def test_a_backup_that_fails_leaves_nothing(world: World, tmp_path: Path) -> None:
    def fail(_documents: int) -> None:
        raise BackupError("the disk is full")

    with pytest.raises(BackupError, match="the disk is full"):
        await take_backup(stack_of(world), tmp_path / "backup", on_progress=fail)
    assert list(tmp_path.iterdir()) == []


async def test_a_backup_without_a_broker_is_made_without_an_audit(world: World, tmp_path: Path) -> None:
    commands = commands_for(world.mongodb_url, NO_BROKER, world.prefix)
    shown = await commands.must("backup", str(tmp_path / "backup"))
    assert shown["audit"]["ok"] is None
    assert "RabbitMQ does not answer" in shown["audit"]["reason"]


async def test_a_record_that_no_audit_can_read_costs_no_backup(
    world: World, commands: Commands, tmp_path: Path
) -> None:
    await world.collection("orders").update_one({"_id": "confirmed"}, {"$unset": {"items.0.quantity": ""}})
    before = await backed_up(world, commands, tmp_path / "backup")
    kept = await commands.must("backup", str(tmp_path / "backup"), "--verify")
    assert kept["audit"]["ok"] is None
    assert kept["audit"]["reason"] == "KeyError: 'quantity'"
    status, printed = await commands.run("restore", str(tmp_path / "backup"), "--yes")
    assert status == 1
    said = " ".join(printed.split())
    assert "the records are restored; the audit failed: KeyError: " in said
    assert "Next: start the services: `ordersaga up`; send again what orders wait for: `ordersaga recover`" in said
    after = await records_of_stack(world.mongodb_url, world.prefix)
    assert after[f"{world.prefix}_orders.orders"] == before[f"{world.prefix}_orders.orders"]


async def test_an_order_that_cannot_be_read_holds_up_no_recovery(world: World, commands: Commands) -> None:
    times = {"createdAt": utc_now(), "updatedAt": utc_now()}
    await world.collection("orders").insert_one({"_id": "damaged", "settled": False, **times})
    for words in (("recover", "--dry-run", "--json"), ("recover", "--json")):
        status, printed = await commands.run(*words)
        assert status == 1
        report = json.loads(printed[printed.index("{") :])
        assert "damaged" in report["unsendableOrders"]
        assert report["commands"]


async def test_violations_are_in_the_manifest_and_found_again(world: World, commands: Commands, tmp_path: Path) -> None:
    await world.collection("products").update_one({"_id": "p1"}, {"$inc": {"quantity": 1}})
    await backed_up(world, commands, tmp_path / "backup")
    manifest = json.loads((tmp_path / "backup" / "manifest.json").read_bytes())
    assert manifest["audit"]["ok"] is False
    assert ["product p1" in line for line in manifest["audit"]["violations"]] == [True]
    status, printed = await commands.run("restore", str(tmp_path / "backup"), "--yes")
    assert status == 1
    assert "product p1" in printed
    assert "send again what orders wait for: `ordersaga recover`" in printed
    assert {name: count for name, count in (await count_messages(world.amqp_url)).items() if count is not None} == {}


async def test_a_backup_that_takes_longer_than_the_history_says_so(
    own_servers: NativeServers, unique_id: str, tmp_path: Path
) -> None:
    """MongoDB forgets the snapshot between two batches of a collection."""
    stack = Stack(own_servers.mongodb_url, own_servers.amqp_url, {}, None, f"t{unique_id}")
    window = {"setParameter": 1, "minSnapshotHistoryWindowInSeconds": 0}
    with pymongo.MongoClient[Document](own_servers.mongodb_url) as client:
        entries = client[f"t{unique_id}_orders"]["actions"]
        entries.insert_many([{"_id": number, "text": "x" * 1000} for number in range(300)])
        kept = client.admin.command(window)["was"]

        def forget(_documents: int) -> None:
            """Write until what is read now can no longer be read."""
            deadline = time.monotonic() + 60
            with client.start_session(snapshot=True) as session, contextlib.suppress(OperationFailure):
                while time.monotonic() < deadline:
                    entries.find_one({}, session=session)
                    entries.update_many({}, {"$inc": {"changes": 1}})

        try:
            with pytest.raises(BackupError, match="Extend the history that it keeps, 300 s by default"):
                await take_backup(stack, tmp_path / "backup", on_progress=forget)
        finally:
            client.admin.command(window | {"minSnapshotHistoryWindowInSeconds": kept})
    assert list(tmp_path.iterdir()) == []


# --- A restore that ends early. ---


async def test_no_service_runs_on_what_a_killed_restore_has_left(
    world: World, commands: Commands, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    before = await backed_up(world, commands, backup)
    assert (await commands.interrupted_restore(backup, signal.SIGKILL))[0] == -signal.SIGKILL
    assert await records_of_stack(world.mongodb_url, world.prefix) not in ({}, before)

    left = f"_{ORDER.database} is not finished, so it holds a part of a backup; if that restore was interrupted, "
    async with run_stack(world.mongodb_url, world.amqp_url, world.prefix) as stack:
        for service in ("order", "inventory", "payment", "console"):
            process = await stack.launch(service)
            assert await asyncio.wait_for(process.process.wait(), 120) == 1

            def refused(output: list[str] = process.output, database: str = SERVICES[service].database) -> bool:
                return left.replace(ORDER.database, database) in "".join(output)

            await eventually(refused, 60, f"{service} to say why it refuses: {process.output}")
    (finding, *_) = await check_schema(world.client[f"{world.prefix}_orders"], "order")
    assert (finding.subject, finding.outcome) == (f"records of {world.prefix}_orders", "wrong")
    for words in (("restore", str(backup), "--yes"), ("audit",), ("recover",)):
        status, printed = await commands.run(*words)
        assert status == 1
        assert left.replace(ORDER.database, CONSOLE.database) in " ".join(printed.split())

    await drop_databases(world.mongodb_url, world.prefix)
    await commands.must("restore", str(backup), "--yes")


async def test_a_restore_that_is_interrupted_says_what_it_leaves(
    world: World, commands: Commands, tmp_path: Path
) -> None:
    await backed_up(world, commands, tmp_path / "backup")
    status, printed = await commands.interrupted_restore(tmp_path / "backup", signal.SIGINT)
    assert (status, "Traceback" in printed) == (1, False), printed
    said = " ".join(printed.split())
    assert "it was interrupted. The databases hold a part of the backup now, and services refuse to start" in said


async def test_a_file_that_goes_away_during_a_restore_leaves_a_part(
    world: World, commands: Commands, tmp_path: Path
) -> None:
    await backed_up(world, commands, tmp_path / "backup")
    manifest = read_backup(tmp_path / "backup", world.prefix)

    def remove(_documents: int) -> None:
        (tmp_path / "backup" / f"{world.prefix}_payments" / "payments.bson.gz").unlink(missing_ok=True)

    with pytest.raises(BackupError, match=r"No such file or directory\. The databases hold a part of the backup"):
        await restore(stack_of(world), tmp_path / "backup", manifest, by="ada", on_progress=remove)


async def test_records_are_restored_although_the_broker_goes_away(
    world: World, commands: Commands, tmp_path: Path
) -> None:
    before = await backed_up(world, commands, tmp_path / "backup")
    manifest = read_backup(tmp_path / "backup", world.prefix)
    without_broker = replace(stack_of(world), amqp_url=NO_BROKER)
    with pytest.raises(UnreachableError, match="the records are restored; the audit failed: RabbitMQ"):
        await restore(without_broker, tmp_path / "backup", manifest, by="ada")
    after = await records_of_stack(world.mongodb_url, world.prefix)
    assert after.keys() == before.keys()
    assert MARK not in await world.client[f"{world.prefix}_operations"].list_collection_names()


# --- What is refused, and why. ---


def remove_a_file(directory: Path, name: str) -> str:
    (directory / name).unlink()
    return f"{name} is missing"


def add_a_file(directory: Path, _name: str) -> str:
    (directory / "more.bson.gz").touch()
    return "more.bson.gz is not part of the backup"


def truncate(directory: Path, name: str) -> str:
    (directory / name).write_bytes((directory / name).read_bytes()[:-20])
    return f"{name} is damaged: Compressed file ended"


def change_documents(directory: Path, name: str) -> str:
    (directory / name).write_bytes(gzip.compress(bson.encode({"_id": "other"})))
    return f"{name} is damaged: its hash is not that in manifest.json"


def change_manifest(change: Callable[[Document], Any], reason: str) -> Callable[[Path, str], str]:
    def changed(directory: Path, _name: str) -> str:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        change(manifest)
        (directory / "manifest.json").write_text(json.dumps(manifest))
        return reason

    return changed


def interrupt(directory: Path, _name: str) -> str:
    (directory / "manifest.json").unlink()
    return f"there is no manifest.json in {directory}: it is no complete backup"


DAMAGES = {
    "a file is missing": remove_a_file,
    "a file too many": add_a_file,
    "a truncated file": truncate,
    "other documents": change_documents,
    "interrupted": interrupt,
    "another prefix": change_manifest(
        lambda manifest: manifest.update(databasePrefix="other"), "set ORDERSAGA_DATABASE_PREFIX=other"
    ),
    "a newer release": change_manifest(
        lambda manifest: manifest["versions"].update(ordersaga="99.1.0"), "was made by ordersaga 99.1.0"
    ),
    "a newer format": change_manifest(lambda manifest: manifest.update(format=2), "the backup has format 2"),
    "another count": change_manifest(
        lambda manifest: next(c for c in manifest["collections"] if c["name"] == "orders").update(documents=7),
        "documents, not 7",
    ),
}


async def test_a_backup_that_is_damaged_or_does_not_fit_is_refused(
    world: World, commands: Commands, tmp_path: Path
) -> None:
    await backed_up(world, commands, tmp_path / "backup")
    whole = files_in(tmp_path / "backup")
    name = f"{world.prefix}_orders/orders.bson.gz"
    for number, (what, damage) in enumerate(DAMAGES.items()):
        directory = tmp_path / str(number)
        shutil.copytree(tmp_path / "backup", directory)
        reason = damage(directory, name)
        with pytest.raises(BackupError) as refused:
            read_backup(directory, world.prefix)
        assert reason in str(refused.value), what
    for words in (("restore", str(directory), "--yes"), ("backup", str(directory), "--verify")):
        status, printed = await commands.run(*words)
        assert (status, reason in printed) == (1, True), printed
    assert await records_of_stack(world.mongodb_url, world.prefix) == {}
    assert files_in(tmp_path / "backup") == whole


async def test_a_stack_that_holds_records_is_refused(world: World, commands: Commands, tmp_path: Path) -> None:
    await commands.must("backup", str(tmp_path / "backup"))
    before = await records_of_stack(world.mongodb_url, world.prefix)
    status, printed = await commands.run("restore", str(tmp_path / "backup"), "--yes")
    assert status == 1
    assert f"the stack holds records: {len(before[f'{world.prefix}_orders.orders'])} {world.prefix}_orders" in printed
    assert await records_of_stack(world.mongodb_url, world.prefix) == before


async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
    """Take a message, as a service does."""
    await message.ack()


async def test_a_broker_with_messages_or_services_is_refused(world: World, commands: Commands, tmp_path: Path) -> None:
    await backed_up(world, commands, tmp_path / "backup")
    words = ("restore", str(tmp_path / "backup"), "--yes")
    async with await aio_pika.connect(world.amqp_url) as connection:
        channel = await connection.channel()
        declared = next(queue for queue in topology.queues() if queue.name == topology.PAYMENT_INBOX)
        queue = await channel.declare_queue(declared.name, durable=True, arguments=dict(declared.arguments))
        await channel.default_exchange.publish(aio_pika.Message(b"{}"), queue.name)
        status, printed = await commands.run(*words)
        assert (status, "messages about records that are not those of the backup: 1 in payment.inbox" in printed) == (
            1,
            True,
        ), printed
        await queue.consume(take)
        status, printed = await commands.run(*words)
        assert (status, "services run and would change what is restored: payment; stop them" in printed) == (1, True)
    assert await records_of_stack(world.mongodb_url, world.prefix) == {}


async def test_a_restore_asks_first(world: World, commands: Commands, tmp_path: Path) -> None:
    await backed_up(world, commands, tmp_path / "backup")
    status, printed = await commands.run("restore", str(tmp_path / "backup"), answer="n\n")
    assert status == 1
    assert "Restore " in printed
    assert await records_of_stack(world.mongodb_url, world.prefix) == {}
    status, _ = await commands.run("restore", str(tmp_path / "none"), "--yes")
    assert status == 2


async def test_servers_that_were_bought_since_are_listed(world: World, tmp_path: Path) -> None:
    async with run_simulator() as simulator:
        await simulator.packages([package("103.181.91", 3)])
        commands = commands_for(world.mongodb_url, world.amqp_url, world.prefix, **simulator.settings)
        await backed_up(world, commands, tmp_path / "backup")
        buy = {"ip": "103.181.91.2", "ram": 1024}
        login = (simulator.username, simulator.password)
        (await simulator.client.post("/api/oceansmart/buyvps", json=buy, auth=login)).raise_for_status()
        result = await commands.must("restore", str(tmp_path / "backup"), "--yes")
    assert result["unknownServers"] == ["103.181.91.2 (103.181.91)"]
    assert result["notes"] == []


async def test_charges_of_orders_that_came_after_the_backup_are_listed(
    world: World, tmp_path: Path, unique_id: str
) -> None:
    async with run_stripe_api() as api:
        settings = PaymentSettings(card_gateway="stripe", stripe_api_key=SecretStr(API_KEY), stripe_api_url=api.url)
        elsewhere = world.client[f"{world.prefix}_payments"]
        gateway = open_gateway(settings, elsewhere, utc_now)
        request = ChargeRequest(f"early-{unique_id}", 1000, "USD", VISA, utc_now())
        charged = await gateway.charge(request)
        await elsewhere["payments"].insert_one({"_id": request.key, "status": "PENDING", "updatedAt": utc_now()})
        commands = commands_for(
            world.mongodb_url, world.amqp_url, world.prefix, stripe_api_key=API_KEY, stripe_api_url=api.url
        )
        await commands.run("backup", str(tmp_path / "backup"))
        late = await gateway.charge(replace(request, key=f"late-{unique_id}"))
        returned = replace(request, key=f"returned-{unique_id}")
        await gateway.charge(returned)
        await gateway.refund(returned)
        await gateway.drain()
        await drop_databases(world.mongodb_url, world.prefix)
        _, printed = await commands.run("restore", str(tmp_path / "backup"), "--yes", "--json")
        assert isinstance(charged, Charged)
        assert isinstance(late, Charged)
        result = json.loads(printed[printed.index("{") :])
        assert result["unknownCharges"] == [{"orderId": f"late-{unique_id}", "chargeId": late.charge_id}], printed
        without_key = commands_for(world.mongodb_url, world.amqp_url, world.prefix)
        await drop_databases(world.mongodb_url, world.prefix)
        _, printed = await without_key.run("restore", str(tmp_path / "backup"), "--yes")
        assert "charges since the backup are not known: ORDERSAGA_STRIPE_API_KEY is not set here" in printed

"""A user for each service with the least rights, on a MongoDB that somebody else runs."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from notification_service.reencryption import reencrypt
from notification_service.signing_secrets import SecretVault, new_secret
from operations import actions
from operations.archive.archiving import ArchivePlan, archive_orders
from operations.audit.service_databases import ServiceDatabases
from operations.backup.errors import BackupError
from operations.backup.restoring import check_target, restore
from operations.backup.taking import take_backup
from operations.doctor.database_users import check_users
from operations.settings import Stack
from operations.stack.database_rights import BACKUP, MAINTENANCE, MONITORING, OPLOG, USERS, users_of
from operations.stack.database_schemas import schema_of
from operations.stack.database_users import read_users
from operations.stack.files import write_private
from shared import schema
from shared.clock import utc_now
from shared.database import Document
from shared.errors import StartError
from shared.reencryption import Reencryption
from shared.services import CONSOLE, NOTIFICATION, ORDER, SERVICES, Service
from shared.unfinished_restore import COLLECTION as MARK
from tests.support import warm_processes
from tests.support.database_attempts import assert_least_rights, refused
from tests.support.guarded_mongodb import guarded_mongodb

ROOT = Path(__file__).parents[2]
PREFIX = "shop"


@dataclass
class Prepared:
    """A MongoDB that asks for passwords, and the directory with those of our users."""

    root_url: str
    directory: Path

    def password(self, user: str) -> str:
        return (self.directory / f"mongodb-{user}").read_text().strip()

    def url(self, name: str) -> str:
        user = next(user for user in users_of(PREFIX) if user.name == name)
        mine = self.root_url.replace("//root:secret@", f"//{name}:{self.password(name)}@")
        return f"{mine}&authSource={user.database}&authMechanism=SCRAM-SHA-256"

    def url_of(self, service: Service) -> str:
        return self.url(service.user)

    async def prepare(self, url: str | None = None, *words: str) -> "subprocess.CompletedProcess[str]":
        known = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
        file = self.directory.parent / "administrator"
        write_private(file, (url or self.root_url).encode())
        given = {"ORDERSAGA_MONGODB_URL_FILE": str(file), "ORDERSAGA_DATABASE_PREFIX": PREFIX, "PYTHONPATH": str(ROOT)}
        command = ("operations.cli", "database", "prepare", "--secrets", str(self.directory), *words)
        return await asyncio.to_thread(
            lambda: warm_processes.run_in_thread(*command, environment=known | given, within=120)
        )


@pytest.fixture(scope="module")
async def prepared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Prepared]:
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "data").mkdir()
    server: Callable[[str], str]
    async with guarded_mongodb(directory / "data") as server:
        found = Prepared(server("root"), directory / "secrets")
        done = await found.prepare()
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2 * len(USERS)
        await create_collections(found)
        yield found


async def create_collections(prepared: Prepared) -> None:
    """Let every service create its collections with its own user."""
    for service in SERVICES.values():
        async with AsyncMongoClient[Document](prepared.url_of(service), w="majority") as client:
            await schema.prepare(client[service.database_in(PREFIX)], schema_of(service.name))


async def test_each_service_may_do_what_it_needs_and_nothing_else(prepared: Prepared) -> None:
    await assert_least_rights(prepared.url_of, PREFIX)


async def test_operations_audits_all_databases_and_logs_actions(prepared: Prepared) -> None:
    async with AsyncMongoClient[Document](prepared.url_of(ORDER)) as client:
        await client["shop_orders"]["orders"].insert_one({"_id": "o1", "status": "COMPLETED"})
    async with AsyncMongoClient[Document](prepared.url_of(CONSOLE)) as client:
        databases = ServiceDatabases(client, PREFIX)
        assert [records.order_id async for page in databases.orders() for records in page] == ["o1"]
        assert [stock async for stock in databases.stock()] == []
        assert await databases.shared_addresses() == []
        assert await databases.pauses() == {}
        own = client[CONSOLE.database_in(PREFIX)]
        await actions.record_action(own, by="ann", why="test", action="order.cancel", subject="o1", outcome="done")
        assert [entry["by"] for entry in (await actions.list_actions(own, subject="o1")).items] == ["ann"]


async def test_monitoring_reads_what_an_exporter_asks_for_and_no_record(prepared: Prepared) -> None:
    async with AsyncMongoClient[Document](prepared.url(MONITORING)) as client:
        figures = (await client.admin.command("getDiagnosticData"))["data"]
        assert {"serverStatus", "replSetGetStatus"} <= figures.keys()
        for command in ("replSetGetStatus", "replSetGetConfig", "getCmdLineOpts"):
            await client.admin.command(command)
        names = await client.list_database_names()
        assert sorted(names) == sorted({OPLOG[0], *(service.database_in(PREFIX) for service in SERVICES.values())})
        for name in names:
            assert (await client[name].command("dbStats"))["fsTotalSize"] > 0
        database, collection = OPLOG
        assert await refused(client, lambda c: c[database][collection].find_one())
        for service in SERVICES.values():
            log = client[service.database_in(PREFIX)]["actions"]
            assert await refused(client, lambda _, log=log: log.find_one())  # type: ignore[misc]
        assert await refused(client, lambda c: c.admin.command("currentOp"))
        assert await refused(client, lambda c: c["shop_orders"]["orders"].insert_one({}))


async def test_maintenance_changes_the_databases_of_services_but_not_the_audit_log(prepared: Prepared) -> None:
    async with AsyncMongoClient[Document](prepared.url("maintenance")) as client:
        async with client.start_session() as session, await session.start_transaction():
            await client["shop_payments"]["accounts"].delete_many({}, session=session)
            await client["shop_orders"]["orders"].delete_many({"_id": "none"}, session=session)
        log = client["shop_operations"]["actions"]
        assert await refused(client, lambda _: log.delete_many({}))
        assert await refused(client, lambda _: log.update_many({}, {"$set": {"by": "me"}}))
        assert await refused(client, lambda c: c["shop_orders"].command("createUser", "x", pwd="x", roles=[]))


async def test_maintenance_encrypts_the_secrets_of_webhooks_again_and_operations_does_not_see_them(
    prepared: Prepared,
) -> None:
    old_key, new_key = (Fernet.generate_key().decode() for _ in range(2))
    sealed = SecretVault(old_key).seal("wh_1", new_secret())
    times = {"createdAt": utc_now(), "updatedAt": utc_now()}
    async with AsyncMongoClient[Document](prepared.url_of(NOTIFICATION)) as client:
        endpoints = client["shop_notifications"]["endpoints"]
        secret = {"sealed": sealed, "createdAt": utc_now()}
        endpoint = {"_id": "wh_1", "url": "https://shop.example/", "events": ["*"], "enabled": True, **times}
        await endpoints.insert_one({**endpoint, "secrets": [secret]})
    vault = SecretVault(f"{new_key},{old_key}")
    async with AsyncMongoClient[Document](prepared.url("maintenance"), tz_aware=True) as client:
        done = await reencrypt(client["shop_notifications"]["endpoints"], vault, utc_now())
    assert done == Reencryption(checked=1, changed=1)
    async with AsyncMongoClient[Document](prepared.url_of(CONSOLE)) as client:
        assert await refused(client, lambda c: c["shop_notifications"]["endpoints"].find_one())


async def test_maintenance_archives_and_never_takes_a_total_away(prepared: Prepared, tmp_path: Path) -> None:
    old = utc_now() - timedelta(days=100)
    times = {"createdAt": old, "updatedAt": old}
    async with AsyncMongoClient[Document](prepared.root_url) as root:
        order = {"items": [], "totalAmount": 0, "stockStatus": "FAILED", "paymentStatus": "FAILED", "settled": True}
        await root["shop_orders"]["orders"].insert_one({"_id": "old", "status": "CANCELLED", **order, **times})
        await root["shop_inventory"]["reservations"].insert_one(
            {"_id": "old", "status": "FAILED", "items": [], **times}
        )
        await root["shop_payments"]["payments"].insert_one({"_id": "old", "status": "FAILED", **times})
    plan = ArchivePlan(old + timedelta(days=1))
    done = await archive_orders(prepared.url("maintenance"), PREFIX, tmp_path / "archive", plan)
    assert done.deleted["orders"] == 1, done.kept
    async with AsyncMongoClient[Document](prepared.url("maintenance")) as client:
        totals = client["shop_operations"]["archived"]
        assert await totals.find_one({"_id": "orders"}) == {"_id": "orders", "CANCELLED": 1}
        assert await refused(client, lambda _: totals.delete_many({}))
        assert await refused(client, lambda _: totals.drop())


async def test_a_repetition_restores_rights_and_takes_a_changed_password(prepared: Prepared) -> None:
    async with AsyncMongoClient[Any](prepared.root_url) as root:
        await root["shop_orders"].command("grantRolesToUser", "order", roles=[{"role": "root", "db": "admin"}])
        await root["shop_inventory"].command("dropUser", "inventory")
    former = prepared.url_of(ORDER)
    write_private(prepared.directory / "mongodb-order", b"another-password-of-order\n")
    done = await prepared.prepare(None, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["done"]
    assert "updated user order in shop_orders" in said
    assert "created user inventory in shop_inventory" in said
    await assert_least_rights(prepared.url_of, PREFIX)
    with pytest.raises(OperationFailure, match="Authentication failed"):
        async with AsyncMongoClient[Document](former) as client:
            await client["shop_orders"]["orders"].find_one({})


async def test_passwords_are_for_their_owner_alone_and_are_not_printed(prepared: Prepared) -> None:
    done = await prepared.prepare()
    for user in USERS:
        assert prepared.password(user) not in done.stdout + done.stderr
        assert (prepared.directory / f"mongodb-{user}").stat().st_mode & 0o777 == 0o600
    log = (prepared.directory.parent / "data" / "log").read_text()
    assert not [user for user in USERS if prepared.password(user) in log]


async def test_a_user_that_an_earlier_release_did_not_have_is_missed_where_it_is_needed(
    prepared: Prepared, tmp_path: Path
) -> None:
    secrets = tmp_path / "secrets"
    shutil.copytree(prepared.directory, secrets)
    (secrets / f"mongodb-{BACKUP}").unlink()
    users = read_users(secrets, PREFIX)
    stack = Stack(prepared.url_of(CONSOLE), "amqp://127.0.0.1:1", {}, None, PREFIX, database_users=users)

    with pytest.raises(BackupError, match="no user `backup` yet"):
        await take_backup(stack, tmp_path / "backup")
    found = [each async for each in check_users(prepared.url(MAINTENANCE), PREFIX, users)]
    assert [each.subject for each in found if each.outcome == "wrong"] == [f"user {BACKUP} of MongoDB"]


async def test_only_an_administrator_may_create_users(prepared: Prepared) -> None:
    done = await prepared.prepare(prepared.url_of(ORDER))
    assert done.returncode == 1
    assert "must be an administrator" in done.stderr
    assert prepared.password("order") not in done.stderr


async def test_backup_reads_all_and_maintenance_restores_it(
    prepared: Prepared, clean_broker: str, tmp_path: Path
) -> None:
    stack = Stack(
        prepared.url_of(CONSOLE),
        clean_broker,
        {},
        None,
        PREFIX,
        maintenance_url=prepared.url("maintenance"),
        backup_url=prepared.url("backup"),
    )
    async with AsyncMongoClient[Document](prepared.root_url) as root:
        order = {"_id": "backed-up", "status": "CANCELLED", "settled": True, "createdAt": utc_now()}
        await root["shop_orders"]["orders"].insert_one(order)
    manifest = await take_backup(stack, tmp_path / "backup")
    async with AsyncMongoClient[Document](prepared.url("backup")) as client:
        assert await refused(client, lambda c: c["shop_orders"]["orders"].delete_many({}))
        assert await refused(client, lambda c: c["shop_operations"]["actions"].insert_one({}))
        assert await refused(client, lambda c: c["shop_operations"]["sessions"].find_one())
    async with AsyncMongoClient[Document](prepared.root_url) as root:
        for service in SERVICES.values():
            await root.drop_database(service.database_in(PREFIX))
    done = await prepared.prepare()  # an administrator makes the audit logs with their indexes
    assert done.returncode == 0, done.stderr
    await check_target(stack)
    await restore(stack, tmp_path / "backup", manifest, by="ada")
    async with AsyncMongoClient[Document](prepared.root_url) as root:
        assert await root["shop_orders"]["orders"].find_one({"_id": "backed-up"})
        assert await root["shop_operations"]["actions"].find_one({"action": "stack.restore", "by": "ada"})


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
async def test_a_service_sees_an_unfinished_restore_which_only_maintenance_ends(
    prepared: Prepared, service: Service
) -> None:
    name = service.database_in(PREFIX)
    async with AsyncMongoClient[Document](prepared.url("maintenance"), w="majority") as maintenance:
        await schema.prepare(maintenance[name], {MARK: schema.CollectionSchema()})
        async with AsyncMongoClient[Document](prepared.url_of(service), w="majority") as client:
            with pytest.raises(StartError, match=f"a restore into {name} is not finished"):
                await schema.prepare(client[name], schema_of(service.name), refuse_partial=True)
            assert await refused(client, lambda c: c[name][MARK].drop())
        assert await refused(maintenance, lambda c: c[name]["actions"].drop())
        await maintenance[name].drop_collection(MARK)


async def test_users_are_prepared_during_a_restore(prepared: Prepared) -> None:
    async with AsyncMongoClient[Document](prepared.url("maintenance"), w="majority") as maintenance:
        mark = maintenance["shop_orders"][MARK]
        await schema.prepare(mark.database, {MARK: schema.CollectionSchema()})
        done = await prepared.prepare()
        await mark.drop()
    assert done.returncode == 0, done.stderr

"""The MongoDB that `ordersaga up` runs: its users, the upgrade of data without users, and interrupted starts."""

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pymongo
import pymongo.errors
import pytest

from operations.doctor.database_users import check_users
from operations.doctor.finding import Finding
from operations.stack.database_rights import MAINTENANCE, USERS
from operations.stack.database_schemas import schema_of
from operations.stack.database_users import (
    ADMINISTRATOR,
    DatabaseUsers,
    ensure_administrator,
    load_key_file,
    load_users,
)
from operations.stack.files import write_private
from operations.stack.layout import Layout
from operations.stack.mongod import Mongod, Security, find_mongod
from operations.stack.ports import PortClaims
from operations.stack.start import StackStartError, start
from operations.stack.status import as_json, check_stack
from shared import schema
from shared.services import ORDER, SERVICES
from tests.support import warm_processes
from tests.support.database_attempts import Attempt, assert_least_rights, refused
from tests.support.stack_users import mongodb_url_of

ROOT = Path(__file__).parents[2]
PREFIX = "shop"
Client = pymongo.AsyncMongoClient[dict[str, Any]]


@dataclass
class Database:
    """The data directory of a stack of which only MongoDB runs."""

    directory: Path
    amqp_url: str

    def ordersaga(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        known = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
        own = {"ORDERSAGA_DATA_DIR": str(self.directory), "XDG_STATE_HOME": str(self.directory.parent / "xdg")}
        own |= {"ORDERSAGA_DATABASE_PREFIX": PREFIX, "ORDERSAGA_AMQP_URL": self.amqp_url, "PYTHONPATH": str(ROOT)}
        given = known | own | variables
        return warm_processes.run_in_thread("operations.cli", *words, environment=given, within=240)

    async def must(self, *words: str, **variables: str) -> str:
        done = await asyncio.to_thread(lambda: self.ordersaga(*words, **variables))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    async def restart(self) -> None:
        await self.must("down")
        await self.must("up", "--detach", "--only", "")

    def url(self, user: str = ADMINISTRATOR) -> str:
        return mongodb_url_of(self.directory, user)

    async def findings(self) -> dict[str, Finding]:
        """Return what is found about the users of the running stack, by the subject."""
        return await findings(self.url(MAINTENANCE), users=load_users(Layout(self.directory).secrets, PREFIX))


async def findings(url: str, prefix: str = PREFIX, users: DatabaseUsers | None = None) -> dict[str, Finding]:
    return {finding.subject: finding async for finding in check_users(url, prefix, users)}


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory, servers: Any) -> AsyncIterator[Database]:
    database = Database(tmp_path_factory.mktemp("stack") / 'with #1 "users"', servers.amqp_url)
    try:
        await database.must("up", "--detach", "--only", "")
        await create_collections(database)
        yield database
    finally:
        await asyncio.to_thread(database.ordersaga, "down")


async def create_collections(database: Database) -> None:
    """Let every service create its collections with its own user."""
    for service in SERVICES.values():
        async with Client(database.url(service.user)) as client:
            await schema.prepare(client[service.database_in(PREFIX)], schema_of(service.name))


async def test_each_service_may_do_what_it_needs_and_nothing_else(running: Database) -> None:
    await assert_least_rights(lambda service: running.url(service.user), PREFIX)


async def test_without_a_password_nothing_can_be_read(running: Database) -> None:
    address = f"mongodb://{running.url().rpartition('@')[2].partition('/')[0]}/?directConnection=true"
    async with Client(address) as client:
        assert await refused(client, lambda c: c["shop_orders"]["orders"].find_one({}))
        assert await refused(client, lambda c: c.admin.command("createUser", "mine", pwd="x", roles=["root"]))
    async with Client(address.replace("//", f"//{ADMINISTRATOR}:guessed-password@")) as client:
        assert await refused(client, lambda c: c.list_database_names())


async def test_passwords_are_in_files_for_their_owner_alone_and_are_not_shown(running: Database) -> None:
    passwords = load_users(Layout(running.directory).secrets, PREFIX).passwords
    assert len(set(passwords.values())) == len(USERS) + 1
    layout = Layout(running.directory)
    shown = json.dumps(as_json(layout, *await check_stack(layout)))
    commands = "\n".join(" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    kept = {f"mongodb-{user}" for user in passwords}
    for user, password in passwords.items():
        assert password not in shown + commands, user
        for file in running.directory.rglob("*"):
            if file.is_file() and password.encode() in file.read_bytes():
                assert file.name in kept, file
    for name in (*kept, "mongodb-key"):
        assert (running.directory / "secrets" / name).stat().st_mode & 0o777 == 0o600


async def test_commands_have_the_rights_that_they_need(running: Database) -> None:
    await asyncio.gather(
        running.must("cleanup", "--older-than", "30d", "--yes", "--ignore-dead-letters"),
        running.must("credentials", "rotate", ORDERSAGA_CREDENTIALS_KEY="M" * 43 + "="),
        running.must("credentials", "rotate", "webhooks", ORDERSAGA_WEBHOOK_KEY="M" * 43 + "="),
        running.must("accounts", "repair", "--all", "--write", "--reason", "test"),
        running.must("audit"),
    )


async def test_maintenance_changes_records_but_no_audit_log(running: Database) -> None:
    async with Client(running.url(MAINTENANCE)) as client:
        await client["shop_orders"]["orders"].delete_many({"_id": "none"})
        for database in (service.database_in(PREFIX) for service in SERVICES.values()):
            assert await refused(client, _delete_log(database))


def _delete_log(database: str) -> Attempt:
    return lambda client: client[database]["actions"].delete_many({})


async def test_doctor_names_missing_users_and_wrong_rights_and_the_next_start_mends_them(running: Database) -> None:
    async with Client(running.url()) as root:
        await root["shop_orders"].command(
            "grantRolesToUser", "order", roles=[{"role": "readWrite", "db": "shop_orders"}]
        )
        await root.admin.command("revokePrivilegesFromRole", "shop_payment", privileges=[may("find", "payments")])
        await root["shop_inventory"].command("dropUser", "inventory")
    found = await running.findings()
    assert found["user inventory of MongoDB"].detail == "does not exist, or has another password"
    assert "may, and should not," in found["user order of MongoDB"].detail
    assert found["user payment of MongoDB"].detail == "may not find in shop_payments.payments"
    assert "start the stack again" in found["user payment of MongoDB"].fix
    assert found["user provisioning of MongoDB"].outcome == "ok"
    write_private(running.directory / "secrets" / "mongodb-provisioning", b"another-password-of-provisioning\n")
    await running.restart()
    report = json.loads((await asyncio.to_thread(running.ordersaga, "doctor", "--json")).stdout)
    assert [one["outcome"] for one in report["findings"] if "user" in one["what"]].count("ok") >= len(USERS)
    await assert_least_rights(lambda service: running.url(service.user), PREFIX)


async def test_a_service_that_lacks_a_right_is_not_told_to_ask_for_a_broader_role(running: Database) -> None:
    async with Client(running.url("order")) as client:
        assert "run `ordersaga database prepare`" in await schema.how_to_permit(client["shop_orders"])


def may(action: str, collection: str) -> dict[str, Any]:
    return {"resource": {"db": "shop_payments", "collection": collection}, "actions": [action]}


async def test_doctor_checks_the_users_of_a_given_mongodb(running: Database, mongodb_url: str) -> None:
    open_to_all = (await findings(mongodb_url))["users of MongoDB"]
    assert (open_to_all.outcome, "asks for no password" in open_to_all.detail) == ("note", True)
    assert "`ordersaga database prepare`" in open_to_all.fix

    of_administrator = await findings(running.url())
    assert [finding.outcome for finding in of_administrator.values()] == ["ok"] * len(USERS)
    missing = (await findings(running.url(), "other"))["user order of MongoDB"]
    assert (missing.outcome, missing.detail) == ("wrong", "does not exist in other_orders")
    assert "`ordersaga database prepare`" in missing.fix

    own = await findings(running.url("operations"))
    assert {what: finding.outcome for what, finding in own.items()} == {"user operations of MongoDB": "ok"}
    foreign = (await findings(running.url("operations"), "other"))["users of MongoDB"]
    assert (foreign.outcome, "is not one of" in foreign.detail) == ("note", True)
    without_a_user = f"mongodb://{running.url().rpartition('@')[2].partition('&authSource')[0]}"
    assert "names no user" in (await findings(without_a_user))["users of MongoDB"].detail


@dataclass
class Data:
    """Data of MongoDB, on which a server is started again and again."""

    directory: Path
    claims: PortClaims

    def mongod(self, port: int | None = None, *, secured: bool = True) -> Mongod:
        """Return a server, on a port that none had before unless one is given."""
        secrets = self.directory / "secrets"
        security = Security(load_users(secrets, PREFIX), load_key_file(secrets)) if secured else None
        return Mongod(find_mongod(), self.directory / "mongodb", port or self.claims.claim_free(), security=security)

    @contextlib.asynccontextmanager
    async def running(self, mongod: Mongod) -> AsyncIterator[Mongod]:
        """Run a server until it is ready, and kill it afterwards."""
        child = await start(mongod, self.directory / "logs", self.directory)
        try:
            yield mongod
        finally:
            child.kill()
            await child.end(10)

    def url(self, mongod: Mongod, user: str = ADMINISTRATOR) -> str:
        return load_users(self.directory / "secrets", PREFIX).url(user, mongod.url)


class Interrupted(Mongod):
    """A server whose start ends, as if its supervisor were killed, after the replica set or the administrator."""

    steps: Sequence[str] = ()

    async def probe(self) -> str | None:
        reason = await asyncio.to_thread(self._probe)
        if reason is None and self._security is not None and "administrator" in self.steps:
            await asyncio.to_thread(ensure_administrator, self._security.users, self._direct_url, self._client)
        return reason


@pytest.fixture
def data(tmp_path: Path) -> Any:
    with PortClaims() as claims:
        yield Data(tmp_path, claims)


async def test_data_of_a_release_without_users_is_kept(data: Data) -> None:
    async with data.running(data.mongod(secured=False)) as former, Client(former.url, w="majority") as client:
        await client["shop_orders"]["orders"].insert_one({"_id": "o1"})
        await client["shop_orders"]["actions"].insert_one({"_id": "a1", "at": 1})
    async with data.running(data.mongod()) as mongod:
        async with Client(data.url(mongod, ORDER.user)) as client:
            assert await client["shop_orders"]["orders"].count_documents({}) == 1
            assert "chain" in await client["shop_orders"]["actions"].index_information()
        async with Client(mongod.url) as client:
            assert await refused(client, lambda c: c["shop_orders"]["orders"].find_one({}))


@pytest.mark.parametrize("steps", [(), ("administrator",)])
async def test_a_start_that_was_interrupted_continues_on_another_port(data: Data, steps: Sequence[str]) -> None:
    first = data.mongod()
    first.__class__ = Interrupted
    first.steps = steps  # type: ignore[attr-defined]
    async with data.running(first) as interrupted:
        if steps:  # and in the middle of the users
            async with Client(data.url(interrupted)) as client:
                await client["shop_orders"].command("createUser", "order", pwd="another", roles=[])
    for mongod in (data.mongod(), data.mongod()):
        async with data.running(mongod), Client(data.url(mongod, ORDER.user)) as client:
            await client["shop_orders"]["orders"].insert_one({})


async def test_a_lost_password_of_the_administrator_is_reported_at_once(data: Data) -> None:
    file = data.directory / "secrets" / f"mongodb-{ADMINISTRATOR}"
    refusal = "refuses the password in secrets/mongodb-administrator"
    async with data.running(data.mongod()) as mongod:
        password = file.read_bytes()
        file.unlink()
        with pytest.raises(StackStartError, match=refusal):
            await data.mongod(mongod.port).probe()
    elsewhere = data.mongod()
    with pytest.raises(StackStartError, match=refusal):
        async with asyncio.timeout(30), data.running(elsewhere):
            pass
    write_private(file, password)
    async with data.running(data.mongod()) as mongod, Client(data.url(mongod)) as client:
        await client.admin.command("usersInfo")

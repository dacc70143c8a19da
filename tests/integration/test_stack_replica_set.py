"""Replica sets of three: another member than the first wins the first election; one with a single member grows."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymongo
import pytest

from deploy.container import create_database_users
from deploy.container.initiate_replica_set import initiate
from operations.stack.database_users import ADMINISTRATOR, DatabaseUsers, load_key_file, load_users
from operations.stack.layout import CLUSTER_PORTS
from operations.stack.mongod import REPLICA_SET, Security, find_mongod
from operations.stack.ports import PortClaims
from operations.stack.processes import spawn
from operations.stack.replica_set import ELECTION_SETTINGS, ReplicaSetMember
from shared.services import ORDER
from tests.support.eventually import eventually

WITHIN_SECONDS = 120
FAST = {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 200}
Client = pymongo.AsyncMongoClient[dict[str, Any]]


@dataclass
class Members:
    """Three members that run and are no replica set yet."""

    secrets: Path
    users: DatabaseUsers
    all: list[ReplicaSetMember]

    @property
    def addresses(self) -> str:
        return self.all[0].replica_set_url.split("/")[2]

    async def initiate_on_the_second(self) -> None:
        """Let the second member lead first: until the others have copied its data, only this one can be elected."""
        second = self.all[1].url
        configuration = self.all[0].configuration() | {"settings": FAST}

        async def initiated() -> bool:
            async with Client(second, serverSelectionTimeoutMS=1000) as client:
                await client.admin.command("replSetInitiate", configuration)
            return True

        await eventually(initiated, WITHIN_SECONDS, "the replica set to be initiated")
        await asyncio.to_thread(initiate, second, REPLICA_SET, self.addresses, within=WITHIN_SECONDS)

    async def priorities(self) -> list[float]:
        async with Client(self.users.url(ADMINISTRATOR, self.all[0].replica_set_url)) as client:
            config = (await client.admin.command("replSetGetConfig"))["config"]
        return [member["priority"] for member in config["members"]]


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[Members]:
    secrets = tmp_path / "secrets"
    users = load_users(secrets, "ordersaga")
    security = Security(users, load_key_file(secrets))
    with PortClaims() as claims:
        ports = {name: claims.claim_free() for name in CLUSTER_PORTS if name.startswith("mongodb")}
        started = [
            ReplicaSetMember(number, find_mongod(), tmp_path / "mongodb", ports, security=security)
            for number in range(1, len(ports) + 1)
        ]
        children = [await spawn(each.prepare(), tmp_path / f"{each.name}.log", tmp_path) for each in started]
        try:
            yield Members(secrets, users, started)
        finally:
            for child in children:
                child.kill()
            await asyncio.gather(*(child.end(10) for child in children))


async def test_up_gets_its_users_if_another_member_wins_the_first_election(members: Members) -> None:
    await members.initiate_on_the_second()

    async def all_ready() -> bool:
        return not any([await member.probe() for member in members.all])

    await eventually(all_ready, WITHIN_SECONDS, "all members to be ready")
    await assert_ready_for_services(members)


async def test_compose_gets_its_users_if_another_member_wins_the_first_election(members: Members) -> None:
    await members.initiate_on_the_second()
    url = f"mongodb://{members.addresses}/?replicaSet={REPLICA_SET}"
    await create_database_users.main(members.all[0].url, members.secrets, url, within=WITHIN_SECONDS)
    await assert_ready_for_services(members)


async def test_a_set_with_one_member_and_data_grows_in_compose(members: Members) -> None:
    first = members.all[0]
    alone = first.replica_set_url.split("/")[2].split(",")[0]
    await asyncio.to_thread(initiate, first.url, REPLICA_SET, alone, within=WITHIN_SECONDS)
    await create_database_users.main(first.url, members.secrets, first.url, within=WITHIN_SECONDS)
    async with Client(members.users.url(ORDER.user, first.url)) as client:
        await client[ORDER.database_in(members.users.prefix)]["orders"].insert_one({"_id": "before"})
    for _ in range(2):  # it can be repeated
        await asyncio.to_thread(initiate, first.url, REPLICA_SET, members.addresses, within=WITHIN_SECONDS)
        url = f"mongodb://{members.addresses}/?replicaSet={REPLICA_SET}"
        await create_database_users.main(first.url, members.secrets, url, within=WITHIN_SECONDS)
    await assert_ready_for_services(members)
    for member in members.all:
        async with Client(members.users.url(ORDER.user, f"{member.url}&readPreference=secondaryPreferred")) as client:
            copied = await client[ORDER.database_in(members.users.prefix)]["orders"].find_one({"_id": "before"})
        assert copied, f"{member.name} has the data"
    async with Client(members.users.url(ADMINISTRATOR, first.url)) as client:
        settings = (await client.admin.command("replSetGetConfig"))["config"]["settings"]
    assert settings.items() >= ELECTION_SETTINGS.items()


async def assert_ready_for_services(members: Members) -> None:
    """Assert that a service can write, and that any member may lead from now on."""
    async with Client(members.users.url(ORDER.user, members.all[0].replica_set_url)) as client:
        await client[ORDER.database_in(members.users.prefix)]["orders"].insert_one({})
    assert await members.priorities() == [1, 1, 1]

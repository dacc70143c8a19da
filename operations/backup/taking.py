"""Makes a backup: copies every collection from one snapshot of all databases, while orders continue.

MongoDB keeps the history that a snapshot needs for `minSnapshotHistoryWindowInSeconds`, 300 by default. A copy that
takes longer fails with a message that says how to extend it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bson.json_util import CANONICAL_JSON_OPTIONS, dumps
from pymongo import ASCENDING, AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure

from operations.archive.files import file_errors
from operations.audit import audit
from operations.backup.directory import empty, new_backup
from operations.backup.errors import BackupError
from operations.backup.files import CompressedFile, Content
from operations.backup.manifest import (
    NAME,
    ClusterTime,
    CopiedCollection,
    CopiedFile,
    Manifest,
    Outside,
    Verdict,
    Versions,
    present_version,
    schema_digest,
)
from operations.reading.connection import open_mongodb
from operations.reading.driver_errors import reason_of
from operations.reading.snapshots import SNAPSHOT_TOO_OLD, Snapshots, cluster_time
from operations.settings import Stack
from operations.stack.database_rights import BACKUP, NOT_BACKED_UP
from operations.stack.database_schemas import all_schemas
from operations.stack.files import write_private
from shared.clock import utc_now
from shared.database import Collection, Database, Document
from shared.services import SERVICES

MOST_VIOLATIONS = 100
"""The violations that a manifest lists."""

Progress = Callable[[int], None]
"""Receives the number of documents copied since the last call."""


def declared_collections(prefix: str) -> dict[str, list[str]]:
    """Return the names of all declared collections, by their database."""
    return {SERVICES[name].database_in(prefix): sorted(declared) for name, declared in all_schemas().items()}


def copied_collections(prefix: str) -> dict[str, list[str]]:
    """Return the names of the collections that a backup has, by their database."""
    return {
        SERVICES[name].database_in(prefix): sorted(set(declared) - set(NOT_BACKED_UP.get(name, ())))
        for name, declared in all_schemas().items()
    }


async def take_backup(
    stack: Stack, directory: Path, *, outside: Outside | None = None, on_progress: Progress = lambda _: None
) -> Manifest:
    """Copy all records of a stack, as they are at one moment, into a directory that is missing or empty.

    `outside` is what the provider has for sale. Raises DataDirectoryError if the directory is not empty, BackupError if
    the copy fails, UnreachableError when MongoDB does not answer. The directory is then as it was.
    """
    if stack.database_users is not None and BACKUP not in stack.database_users.passwords:
        raise BackupError(
            "MongoDB has no user `backup` yet: `ordersaga down` and `ordersaga up` of this release make it"
        )
    began = utc_now()
    with new_backup(directory) as partial:
        async with open_mongodb(stack.url_for_backups, purpose="the backup", name="ordersaga-backup") as client:
            copying = _Copying(client, stack.database_prefix, partial, on_progress)
            await Snapshots(client).read(copying.copy)
            mongodb = str((await client.server_info())["version"])
        copied_at = utc_now()
        manifest = Manifest(
            database_prefix=stack.database_prefix,
            cluster_time=copying.at,
            began_at=began,
            copied_at=copied_at,
            audit=await _verdict(stack),
            versions=Versions(ordersaga=present_version(), mongodb=mongodb, schemas=present_schemas()),
            collections=copying.collections,
            files=copying.files,
            left_out=copying.left_out,
            outside=outside or Outside(reason="the provider of servers was not asked"),
        )
        with file_errors(partial):
            write_private(partial / NAME, manifest.to_bytes())
    return manifest


def present_schemas() -> dict[str, str]:
    """Return the digest of the declared collections of each service."""
    return {name: schema_digest(declared) for name, declared in all_schemas().items()}


async def _verdict(stack: Stack) -> Verdict:
    """Audit the stack. A backup is made all the same if the audit cannot run, or finds something."""
    try:
        report = await audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix)
    except Exception as error:  # noqa: BLE001 - such as a damaged record; the copy is complete without a verdict
        return Verdict(ok=None, at=utc_now(), reason=reason_of(error))
    found = [violation.describe() for violation in report.violations]
    return Verdict(ok=report.ok, at=utc_now(), violations=found[:MOST_VIOLATIONS])


@dataclass(slots=True)
class _Copying:
    """One copy of all collections, and what it has copied so far."""

    client: AsyncMongoClient[Document]
    prefix: str
    directory: Path
    on_progress: Progress
    collections: list[CopiedCollection] = field(default_factory=list)
    files: list[CopiedFile] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    began: float = 0.0
    _at: ClusterTime | None = None

    @property
    def at(self) -> ClusterTime:
        """The point in time that everything was read as of."""
        if self._at is None:
            raise BackupError(f"there is nothing to back up: no database {self.prefix}_*")
        return self._at

    async def copy(self, session: AsyncClientSession) -> None:
        """Copy everything with a snapshot session; when called again, after the snapshot was gone, from the start."""
        self.collections, self.files, self.left_out, self._at = [], [], [], None
        self.began = time.monotonic()
        empty(self.directory)
        declared = declared_collections(self.prefix)
        for database, names in copied_collections(self.prefix).items():
            listed: dict[str, Any] = {
                found["name"]: found async for found in await self.client[database].list_collections()
            }
            ours = [name for name in names if name in listed]
            self.left_out += [f"{database}.{name}" for name in sorted(listed) if name not in declared[database]]
            with file_errors(self.directory):
                (self.directory / database).mkdir(mode=0o700)
            for name in ours:
                await self._copy_metadata(self.client[database], listed[name])
                await self._copy_documents(self.client[database][name], session)

    async def _copy_metadata(self, database: Database, listed: Mapping[str, Any]) -> None:
        name = listed["name"]
        metadata = metadata_of(listed, [index async for index in await database[name].list_indexes()])
        path = self.directory / database.name / f"{name}.metadata.json.gz"
        with file_errors(path), CompressedFile(path) as file:
            file.write(dumps(metadata, json_options=CANONICAL_JSON_OPTIONS).encode())
        self._add_file(path, file)

    async def _copy_documents(self, collection: Collection, session: AsyncClientSession) -> None:
        content = Content()
        path = self.directory / collection.database.name / f"{collection.name}.bson.gz"
        with file_errors(path), CompressedFile(path) as file:
            async for batch in self._in_history(raw_documents(collection, session)):
                before = content.documents
                # Compressing and hashing let other threads run.
                await asyncio.to_thread(_write, batch, content, file)
                self.on_progress(content.documents - before)
        self._add_file(path, file)
        self.collections.append(
            CopiedCollection(
                database=collection.database.name,
                name=collection.name,
                documents=content.documents,
                size=content.size,
                sha256=content.sha256,
            )
        )
        if self._at is None:
            read_as_of = cluster_time(session)
            moment = datetime.fromtimestamp(read_as_of.time, UTC)
            self._at = ClusterTime(seconds=read_as_of.time, increment=read_as_of.inc, at=moment)

    async def _in_history(self, batches: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the batches. Raises BackupError if MongoDB no longer has the history that they need."""
        try:
            async for batch in batches:
                yield batch
        except OperationFailure as error:
            if error.code != SNAPSHOT_TOO_OLD:
                raise
            seconds = time.monotonic() - self.began
            raise BackupError(
                f"after {seconds:.0f} s, MongoDB no longer has the state of the moment at which the backup began. "
                "Extend the history that it keeps, 300 s by default, to more than a backup takes. As an administrator "
                'run in mongosh: db.adminCommand({setParameter: 1, "minSnapshotHistoryWindowInSeconds": 3600})'
            ) from error

    def _add_file(self, path: Path, file: CompressedFile) -> None:
        relative = path.relative_to(self.directory).as_posix()
        self.files.append(CopiedFile(path=relative, size=file.hashed.size, sha256=file.hashed.sha256))


def _write(batch: bytes, content: Content, file: CompressedFile) -> None:
    content.add(batch)
    file.write(batch)


async def raw_documents(collection: Collection, session: AsyncClientSession | None = None) -> AsyncIterator[bytes]:
    """Yield the documents of a collection as MongoDB stores them, in the order of their `_id`, in batches."""
    by_id: list[tuple[str, int]] = [("_id", ASCENDING)]
    # The driver's annotations are those of `find`.
    cursor: Any = collection.find_raw_batches({}, sort=by_id, hint=by_id, session=session)
    async with cursor:
        async for batch in cursor:
            if batch:
                yield batch


def metadata_of(listed: Mapping[str, Any], indexes: Iterable[Any]) -> Document:
    """Return a collection's options and indexes as mongodump writes them."""
    return {
        "options": listed["options"],
        "indexes": [dict(index) for index in indexes],
        "uuid": listed["info"]["uuid"].hex() if isinstance(listed["info"]["uuid"], bytes) else None,
        "collectionName": listed["name"],
        "type": listed["type"],
    }

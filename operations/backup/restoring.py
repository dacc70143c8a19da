"""Restores a backup into an empty stack whose services do not run, and judges the result.

The files are verified before anything is written. Indexes are those of this release's schema. Every collection is then
read back and compared with the backup, the restore is an entry of the audit log, and the audit judges the records as
of the moment of the backup. Until everything is compared each database has a mark, which keeps its service from
starting, also after this process was killed.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.errors import ConnectionFailure

from operations.actions import record_action
from operations.archive.files import file_errors
from operations.audit import Report, audit
from operations.backup.checking import Progress, difference_of, open_backup, verify_backup
from operations.backup.errors import BackupError
from operations.backup.files import Content, HashedFile, read_compressed, spans, whole_documents
from operations.backup.manifest import CopiedCollection, Manifest, differences, incompatibility
from operations.backup.taking import copied_collections, present_schemas, raw_documents
from operations.errors import UnreachableError
from operations.reading.broker import queue_levels
from operations.reading.connection import open_mongodb
from operations.reading.driver_errors import reason_of
from operations.settings import Stack
from operations.stack.database_schemas import all_schemas
from shared import schema
from shared.database import Collection, Database, Document
from shared.errors import StartError
from shared.services import CONSOLE, SERVICES
from shared.topology import INBOXES
from shared.unfinished_restore import COLLECTION as MARK
from shared.unfinished_restore import unfinished_restore

RESTORE_ACTION = "stack.restore"
"""The action of `ordersaga restore` in the audit log."""

MESSAGE_LOST = "message lost"
"""The kind of violation that a restored stack has until what its orders wait for was sent again."""

GROUP = 1000
"""The most documents of one insert."""

EMPTY_STACK = "`ordersaga up --only '' --data-dir NEW` starts an empty stack"
PART = "The databases hold a part of the backup now, and services refuse to start: restore into an empty stack again"

START = "start the services: `ordersaga up`"
RECOVER = "send again what orders wait for: `ordersaga recover`"
AUDIT = "check the books once all has settled: `ordersaga audit`"


@dataclass(slots=True)
class RestoreResult:
    """What was restored, and how the books are: `expired` counts documents that MongoDB has deleted by their age."""

    manifest: Manifest
    notes: list[str] = field(default_factory=list)
    expired: dict[str, int] = field(default_factory=dict)
    report: Report = field(default_factory=Report)

    @property
    def owed(self) -> int:
        """The number of orders that wait for a message, which the broker does not have."""
        return sum(violation.kind == MESSAGE_LOST for violation in self.report.violations)

    @property
    def violations(self) -> list[str]:
        """The violations that were in the backup."""
        found = [violation for violation in self.report.violations if violation.kind != MESSAGE_LOST]
        return [violation.describe() for violation in found]

    @property
    def ok(self) -> bool:
        """True if the books of the backup balance."""
        return not self.violations and not self.report.unlisted

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON document shows it."""
        return {
            "ok": self.ok,
            "clusterTime": self.manifest.cluster_time.model_dump(mode="json", by_alias=True),
            "documents": {copied.namespace: copied.documents for copied in self.manifest.collections},
            "expired": self.expired,
            "notes": self.notes,
            "ordersWithoutMessage": self.owed,
            "violations": self.violations,
        }


def read_backup(directory: Path, prefix: str, on_progress: Progress = lambda _: None) -> Manifest:
    """Verify a backup for the stack with this prefix; return its manifest.

    Raises BackupError if it is not complete or for another stack or release, DamagedError for its files.
    """
    manifest = open_backup(directory)
    if reason := incompatibility(manifest, prefix, copied_collections(prefix)):
        raise BackupError(reason)
    verify_backup(directory, manifest, on_progress)
    return manifest


async def check_target(stack: Stack) -> None:
    """Raise BackupError unless the stack is empty and none of its services runs.

    Raises UnreachableError when a server does not answer.
    """
    await _require_idle(stack)
    async with open_mongodb(stack.url_for_changes, purpose="the restore", name="ordersaga-restore") as client:
        held = [found async for found in _held(client, stack.database_prefix)]
        unfinished = await unfinished_restore(client[CONSOLE.database_in(stack.database_prefix)])
    if held:
        if unfinished:
            raise BackupError(unfinished)
        more = f" and {len(held) - 4} more collections" if len(held) > 4 else ""
        raise BackupError(f"the stack holds records: {', '.join(held[:4])}{more}; {EMPTY_STACK}")


async def _require_idle(stack: Stack) -> None:
    levels = await queue_levels(stack.amqp_url)
    running = [name for name in INBOXES if (level := levels.get(name)) and level.consumers]
    if running:
        services = ", ".join(service.name for service in SERVICES.values() if service.inbox in running)
        raise BackupError(f"services run and would change what is restored: {services}; stop them first")
    waiting = [f"{level.messages:,} in {name}" for name, level in levels.items() if level and level.messages]
    if waiting:
        raise BackupError(
            f"the broker has messages about records that are not those of the backup: {', '.join(waiting)}; "
            f"delete these queues, or take an empty broker: {EMPTY_STACK}"
        )


async def _held(client: AsyncMongoClient[Document], prefix: str) -> AsyncIterator[str]:
    """Yield the number of records in each collection that is not empty."""
    for database, names in copied_collections(prefix).items():
        for name in names:
            if await client[database][name].find_one({}, {"_id": True}) is not None:
                yield f"{await client[database][name].estimated_document_count():,} {database}.{name}"


async def restore(
    stack: Stack,
    directory: Path,
    manifest: Manifest,
    *,
    by: str,
    why: str = "",
    on_progress: Callable[[int], None] = lambda _: None,
) -> RestoreResult:
    """Write the records of a verified backup into a stack that `check_target` accepts, verify and audit them.

    `on_progress` receives the number of documents written or compared since its last call. Raises BackupError if the
    records cannot be written or are not those of the backup, UnreachableError when a server does not answer; the error
    says whether the records are restored.
    """
    result = RestoreResult(manifest)
    async with open_mongodb(stack.url_for_changes, purpose="the restore", name="ordersaga-restore") as client:
        mongodb = str((await client.server_info())["version"])
        result.notes = differences(manifest, present_schemas(), mongodb)
        writing = _Writing(client, stack.database_prefix, directory, on_progress)
        await _write(writing, stack, result)
        with records_are_restored("the entry in the audit log"):
            await record_action(
                client[CONSOLE.database_in(stack.database_prefix)],
                by=by,
                why=why,
                action=RESTORE_ACTION,
                subject=str(directory),
                outcome=f"restored {manifest.documents:,} records as of {manifest.cluster_time.at.isoformat()}",
            )
    moment = manifest.cluster_time.at
    with records_are_restored("the audit"):
        result.report = await audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix, clock=lambda: moment)
    return result


async def _write(writing: "_Writing", stack: Stack, result: RestoreResult) -> None:
    """Write and compare everything; until that is done, each database is marked."""
    collections = result.manifest.collections
    await writing.mark()
    await writing.prepare()
    with _part_is_written():
        await writing.suspend_validators()
        for copied in collections:
            await writing.write(copied)
        for copied in collections:
            if expired := await writing.compare(copied):
                result.expired[copied.namespace] = expired
        await writing.prepare()
        try:
            await _require_idle(stack)
        except UnreachableError as error:
            result.notes.append(f"it is not known whether a service ran meanwhile: {error}")
        await writing.unmark()


@contextlib.contextmanager
def _part_is_written() -> Iterator[None]:
    """Say in any error, an interruption too, that the databases hold a part of the backup."""
    try:
        yield
    except BaseException as error:
        raise _kind_of(error)(f"{reason_of(error)}. {PART}") from error


@contextlib.contextmanager
def records_are_restored(step: str) -> Iterator[None]:
    """Say in any error of this step that the records are restored, and what is left to do."""
    try:
        yield
    except BaseException as error:
        left = f"Next: {START}; {RECOVER}; {AUDIT}"
        raise _kind_of(error)(f"the records are restored; {step} failed: {reason_of(error)}. {left}") from error


def _kind_of(error: BaseException) -> type[UnreachableError | BackupError]:
    return UnreachableError if isinstance(error, UnreachableError | ConnectionFailure) else BackupError


@dataclass(frozen=True, slots=True)
class _Writing:
    """The writing of one backup."""

    client: AsyncMongoClient[Document]
    prefix: str
    directory: Path
    on_progress: Callable[[int], None]

    async def mark(self) -> None:
        """Mark every database as one that holds a part of a backup, until `unmark`. Raises BackupError."""
        await self._create({name: {MARK: schema.CollectionSchema()} for name in SERVICES})

    async def unmark(self) -> None:
        """Let the services start; the database of operations, where commands look, comes last."""
        for name in sorted(SERVICES, key=CONSOLE.name.__eq__):
            await self._database(name).drop_collection(MARK)

    async def prepare(self) -> None:
        """Create all collections, indexes and validators as this release declares them. Raises BackupError."""
        await self._create(all_schemas())

    async def _create(self, schemas: Mapping[str, schema.Collections]) -> None:
        for name, declared in schemas.items():
            try:
                await schema.prepare(self._database(name), declared)
            except StartError as error:
                raise BackupError(str(error)) from error

    def _database(self, service: str) -> Database:
        return self.client[SERVICES[service].database_in(self.prefix)]

    async def suspend_validators(self) -> None:
        """Let every document in, also one that an earlier release wrote; `prepare` ends that."""
        for name, declared in all_schemas().items():
            database = self._database(name)
            for collection in (key for key, wanted in declared.items() if wanted.validator is not None):
                off = {"collMod": collection, "validationLevel": "off", "writeConcern": {"w": "majority"}}
                await database.command(off)

    async def write(self, copied: CopiedCollection) -> None:
        """Insert the documents of a collection, without decoding them."""
        collection = self.client[copied.database][copied.name]
        groups = groups_of_documents(self.directory / copied.documents_path)
        while group := await asyncio.to_thread(next, groups, None):
            await collection.insert_many([RawBSONDocument(document) for document in group])
            self.on_progress(len(group))

    async def compare(self, copied: CopiedCollection) -> int:
        """Compare a collection with its copy; return how many documents MongoDB has deleted by their age since then.

        Raises BackupError if it is not the same, document by document and byte by byte.
        """
        content = Content()
        collection: Collection = self.client[copied.database][copied.name]
        async for batch in raw_documents(collection):
            before = content.documents
            await asyncio.to_thread(content.add, batch)
            self.on_progress(content.documents - before)
        gone = copied.documents - content.documents
        if gone > 0 and await _deletes_by_age(collection):
            return gone
        if difference := difference_of(copied, content):
            raise BackupError(f"{copied.namespace} is not as it was copied: {difference}")
        return 0


async def _deletes_by_age(collection: Collection) -> bool:
    indexes = await collection.index_information()
    return any("expireAfterSeconds" in index for index in indexes.values())


def groups_of_documents(path: Path) -> Iterator[list[bytes]]:
    """Yield the documents of a file, a group at a time. Raises UnreadableError if it is damaged."""
    with file_errors(path), path.open("rb") as file:
        for batch in whole_documents(read_compressed(HashedFile(file))):
            documents = [batch[start:end] for start, end in spans(batch)]
            for first in range(0, len(documents), GROUP):
                yield documents[first : first + GROUP]

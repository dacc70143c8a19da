"""Takes orders into an archive: writes them to a file, verifies it, then deletes them. A kill anywhere loses nothing.

Until an order's file is verified, the order is untouched. It is deleted in the transaction that adds to the totals, and
only if its records are still exactly those in the file. An order that a killed run has written and not deleted is
written again by the next run: it is then in two files, the later of which counts. Copies have the same `createdAt`:
with another one, it is another order, which was placed under the same id after the first had been archived.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession

from operations.archive.errors import ArchiveError
from operations.archive.files import ArchiveDirectory, ArchiveWriter, verify_file
from operations.archive.filesystems import check_lasting
from operations.archive.lines import PERSONAL, digest, record_of
from operations.archive.totals import totals_of
from operations.reading import archived, archived_totals
from operations.reading.archived_totals import ArchivedTotals
from operations.reading.connection import open_mongodb
from operations.removal.orders import GROUP, REMOVED_KINDS, OrderRemoval
from operations.removal.removable import CANCELLED, Candidate, Document, is_over, why_kept
from shared import schema
from shared.clock import Clock, utc_now
from shared.errors import StartError
from shared.failpoints import (
    ARCHIVE_DELETED,
    ARCHIVE_DELETING,
    ARCHIVE_VERIFIED,
    ARCHIVE_WRITTEN,
    Failpoint,
    nothing_fails,
)
from shared.services import CONSOLE

STATUSES = ("CONFIRMED", "COMPLETED", CANCELLED)
"""The statuses of orders that may be archived; FAILED is not among them."""

PER_FILE = 10_000
"""The most orders of a file: some megabytes, and what is written again at most if a run is killed."""

_NO_FILE: ArchiveWriter | None = None

CHANGED = "it has changed since it was written to the archive"
GONE = "another run has archived or deleted it meanwhile"


@dataclass(slots=True)
class ArchiveResult:
    """Records found and deleted by kind, orders by status, kept by reason, the files written, and notes.

    `statuses` counts the orders that were deleted or, if nothing is to be deleted, those that were found.
    """

    statuses: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(STATUSES, 0)))
    found: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REMOVED_KINDS, 0)))
    deleted: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REMOVED_KINDS, 0)))
    kept: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_group(self, group: "ArchiveResult") -> None:
        """Add what was deleted and kept of a group of orders."""
        self.statuses.update(group.statuses)
        self.deleted.update(group.deleted)
        self.kept.update(group.kept)

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON document shows it."""
        figures = {"found": dict(self.found), "deleted": dict(self.deleted), "kept": dict(sorted(self.kept.items()))}
        return {"statuses": dict(self.statuses), **figures, "files": self.files, "notes": self.notes}


@dataclass(frozen=True, slots=True)
class ArchivePlan:
    """What is archived, and how."""

    before: datetime
    personal_data: bool = True
    group: int = GROUP
    per_file: int = PER_FILE


class VerifiedFile(NamedTuple):
    """A file that was read back and compared, the number of its orders, and its checksum."""

    path: Path
    orders: int
    sha256: str


Progress = Callable[[int], None]
"""Receives the number of orders checked since the last call."""

OnVerified = Callable[[VerifiedFile], Awaitable[object]]
"""Receives a verified file, before its orders are deleted."""


async def _nothing(_file: VerifiedFile) -> None:
    """Do nothing about a verified file."""


async def find_archivable(
    mongodb_url: str, database_prefix: str, plan: ArchivePlan, *, on_progress: Progress = lambda _: None
) -> ArchiveResult:
    """Count what would be archived, without a change. Raises UnreachableError when MongoDB does not answer."""
    async with open_mongodb(mongodb_url, purpose="the archive", name="ordersaga-archive") as client:
        archiving = _Archiving(client, database_prefix, plan)
        async for order_ids in archiving.removal.over(STATUSES, plan.before, plan.group):
            found = await archiving.archivable(order_ids)
            archiving.result.statuses.update(_by_status(found))
            on_progress(len(order_ids))
        return archiving.result


async def archive_orders(
    mongodb_url: str,
    database_prefix: str,
    directory: Path,
    plan: ArchivePlan,
    *,
    result: ArchiveResult | None = None,
    check: Callable[[Path], None] = check_lasting,
    on_progress: Progress = lambda _: None,
    on_verified: OnVerified = _nothing,
    failpoint: Failpoint = nothing_fails,
    clock: Clock = utc_now,
) -> ArchiveResult:
    """Archive every order that settled before the plan's time and has nothing open; finish what a killed run began.

    Raises ArchiveError if a file cannot be written or is damaged, or `check` refuses the directory, UnreachableError
    when MongoDB does not answer. What was archived by then is complete, `result` has it, and the next call continues.
    """
    target = ArchiveDirectory(directory, check)
    async with open_mongodb(mongodb_url, purpose="the archive", name="ordersaga-archive") as client:
        with target.locked() as notes:
            archiving = _Archiving(client, database_prefix, plan, result, on_verified, failpoint, clock)
            archiving.result.notes += notes
            await archiving.prepare()
            await archiving.run(target, on_progress)
            return archiving.result


class _Archiving:
    """One run, and its result so far."""

    def __init__(
        self,
        client: AsyncMongoClient[Document],
        prefix: str,
        plan: ArchivePlan,
        result: ArchiveResult | None = None,
        on_verified: OnVerified = _nothing,
        failpoint: Failpoint = nothing_fails,
        clock: Clock = utc_now,
    ) -> None:
        self.removal = OrderRemoval(client, prefix)
        self.result = ArchiveResult() if result is None else result
        self._operations = client[CONSOLE.database_in(prefix)]
        self._totals = ArchivedTotals(client, prefix)
        self._plan = plan
        self._on_verified = on_verified
        self._failpoint = failpoint
        self._clock = clock

    async def prepare(self) -> None:
        """Create the collection of the totals if it is missing: the console, which creates it, may never have run."""
        try:
            await schema.prepare(self._operations, {archived.COLLECTION: archived_totals.SCHEMA})
        except StartError as error:
            raise ArchiveError(str(error)) from error

    async def run(self, target: ArchiveDirectory, on_progress: Progress) -> None:
        """Archive all orders, a file at a time."""
        began, writer = self._clock(), _NO_FILE
        try:
            async for order_ids in self.removal.over(STATUSES, self._plan.before, self._plan.group):
                for candidate in await self.archivable(order_ids):
                    writer = writer or target.new_file(began, len(self.result.files) + 1)
                    await self._write(candidate, writer)
                    if len(writer.digests) >= self._plan.per_file:
                        await self._finish(writer)
                        writer = None
                on_progress(len(order_ids))
            if writer is not None:
                await self._finish(writer)
        except Exception:
            if writer is not None:
                writer.discard()
            raise

    async def _write(self, candidate: Candidate, writer: ArchiveWriter) -> None:
        if self._plan.personal_data and PERSONAL in candidate.order and not writer.has_personal_data:
            # First, so that the erasure of a person knows of the file even if this process is killed.
            await self._totals.note_personal_file()
            writer.has_personal_data = True
        writer.add(record_of(candidate, personal_data=self._plan.personal_data))

    async def archivable(self, order_ids: Sequence[str]) -> list[Candidate]:
        """Return those of these orders that may be archived, and count them and the others."""
        candidates = await self.removal.in_transaction(lambda session: self.removal.candidates(order_ids, session))
        found = []
        for candidate in candidates:
            if reason := self._why_kept(candidate):
                self.result.kept[reason] += 1
            else:
                found.append(candidate)
                self.result.found.update({kind: len(records) for kind, records in candidate.by_kind().items()})
        return found

    def _why_kept(self, candidate: Candidate) -> str | None:
        if not is_over(candidate.order, STATUSES, self._plan.before):
            return CHANGED
        return why_kept(candidate, self._clock())

    async def _finish(self, writer: ArchiveWriter) -> None:
        """Complete a file and verify it, then delete its orders."""
        path = writer.complete()
        self._failpoint(ARCHIVE_WRITTEN)
        checksum = verify_file(path, writer.digests)
        self.result.files.append(path.name)
        await self._on_verified(VerifiedFile(path, len(writer.digests), checksum))
        self._failpoint(ARCHIVE_VERIFIED)
        order_ids = list(writer.digests)
        for start in range(0, len(order_ids), self._plan.group):
            self.result.add_group(await self._delete(order_ids[start : start + self._plan.group], writer.digests))
            self._failpoint(ARCHIVE_DELETED)

    async def _delete(self, order_ids: Sequence[str], written: dict[str, bytes]) -> ArchiveResult:
        """Delete those of these orders that are still as they were written; return what was deleted and kept."""

        async def transaction(session: AsyncClientSession) -> ArchiveResult:
            deletable, result = [], ArchiveResult()
            candidates = await self.removal.candidates(order_ids, session)
            for candidate in candidates:
                record = record_of(candidate, personal_data=self._plan.personal_data)
                if reason := self._why_kept(candidate):
                    result.kept[reason] += 1
                elif digest(record) != written[candidate.order_id]:
                    result.kept[CHANGED] += 1
                else:
                    deletable.append(candidate)
            if len(candidates) < len(order_ids):
                result.kept[GONE] += len(order_ids) - len(candidates)
            result.statuses.update(_by_status(deletable))
            result.deleted.update(await self.removal.delete(deletable, session))
            with_servers = [candidate.order_id for candidate in deletable if candidate.addresses]
            if with_servers:
                await self.removal.mark_addresses(with_servers, self._clock(), session)
            await self._totals.add(totals_of(deletable), session)
            self._failpoint(ARCHIVE_DELETING)
            return result

        return await self.removal.in_transaction(transaction)


def _by_status(candidates: Sequence[Candidate]) -> Counter[str]:
    return Counter(candidate.order["status"] for candidate in candidates)

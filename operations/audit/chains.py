"""Reads the audit logs of all services, and verifies that their chains hold (`shared.audit_chain`)."""

from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime

from pymongo import ASCENDING, AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection

from operations.audit.report import Violation
from operations.reading.snapshots import BATCH, Document, Snapshots
from shared.audit_chain import SEQ, Break, Verification, unchained
from shared.audit_log import COLLECTION
from shared.services import SERVICES


class Chains:
    """The audit logs of one stack. Every method raises UnreachableError when MongoDB does not answer."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str) -> None:
        self._snapshots = Snapshots(client)
        self._logs = {
            service.database: client[service.database_in(database_prefix)][COLLECTION] for service in SERVICES.values()
        }

    async def violations(self, counted: Counter[str]) -> AsyncIterator[Violation]:
        """Yield every place where a chain does not hold, each log from one snapshot; count all entries."""
        for name, log in self._logs.items():
            async for broken in self._snapshots.stream(
                lambda session: _breaks(log, session, counted)  # noqa: B023
            ):
                found = f"{broken.found} ({broken.kind})"
                yield Violation(8, broken.kind, "action", f"{name}/{broken.id}", found, broken.expected)


async def _breaks(
    log: AsyncCollection[Document], session: AsyncClientSession, counted: Counter[str]
) -> AsyncIterator[Break]:
    chain, began = Verification(), None
    in_order = log.find({SEQ: {"$exists": True}}, sort=[(SEQ, ASCENDING)], session=session, batch_size=BATCH)
    async for entry in in_order:
        counted["actions"] += 1
        began = began or _time(entry)
        chain.add(entry)
        while chain.breaks:
            yield chain.breaks.pop(0)
    async for entry in log.find({SEQ: {"$exists": False}}, session=session, batch_size=BATCH):
        counted["actions"] += 1
        if began is not None and (broken := unchained(entry, began)):
            yield broken


def _time(entry: Document) -> datetime | None:
    at = entry.get("at")
    return at if isinstance(at, datetime) else None

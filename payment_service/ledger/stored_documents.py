"""Reads the documents of a unit of work from MongoDB, and writes its changes, all within one transaction."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pymongo import UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import BulkWriteError, DuplicateKeyError

from payment_service.ledger.unit_of_work import Changes, Update
from shared.database import DUPLICATE_KEY, Database, Document
from shared.database import Collection as DatabaseCollection

Session = AsyncClientSession


async def read(of: Database, session: Session, collection: str, ids: Collection[str]) -> list[Document]:
    """Return those documents that exist."""
    # MongoDB finds a document by its id with less work than by a list of one.
    wanted = {"$in": list(ids)} if len(ids) > 1 else next(iter(ids))
    return await of[collection].find({"_id": wanted}, session=session).to_list(None)


async def write(of: Database, session: Session, changes: Mapping[str, Changes]) -> None:
    """Write the changes, with one write for each collection, or one for updates and one for inserts.

    Raises DuplicateKeyError if a new document exists, and LookupError if another one differs from what was read. Of a
    document that another transaction has changed since the snapshot, MongoDB reports a conflict before it compares.
    """
    for name, changed in changes.items():
        if changed.updated and await _update(of[name], session, changed.updated) != len(changed.updated):
            raise LookupError(f"{name} differs from what this transaction has read")
        if changed.inserted:
            await _insert(of[name], session, changed.inserted)


async def _update(collection: DatabaseCollection, session: Session, updates: Sequence[Update]) -> int:
    """Return the number of documents that were as they had been read."""
    # The driver writes a single document with less work than a bulk of one.
    if len(updates) == 1:
        return int((await collection.update_one(*_guarded(updates[0]), session=session)).matched_count)
    writes = [UpdateOne(*_guarded(update)) for update in updates]
    return int((await collection.bulk_write(writes, session=session)).matched_count)


async def _insert(collection: DatabaseCollection, session: Session, documents: Sequence[Document]) -> None:
    if len(documents) == 1:
        await collection.insert_one(documents[0], session=session)
        return
    try:
        await collection.insert_many(documents, session=session)
    except BulkWriteError as error:
        raise _duplicate_key(error) or error from None


def _guarded(update: Update) -> tuple[Document, Document]:
    """Return the query and the change that write the fields that differ, if they still are as they were read."""
    before, after = update.before, update.after
    changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
    removed = before.keys() - after.keys()
    guard: Document = {"_id": before["_id"]}
    for name in (*changed, *sorted(removed)):
        guard[name] = before.get(name, {"$exists": False})
    change: dict[str, Any] = {"$set": changed} if changed else {}
    if removed:
        change["$unset"] = dict.fromkeys(removed, "")
    return guard, change


def _duplicate_key(error: BulkWriteError) -> DuplicateKeyError | None:
    failures = (error.details or {}).get("writeErrors", [])
    if not any(failure.get("code") == DUPLICATE_KEY for failure in failures):
        return None
    return DuplicateKeyError(str(failures[0].get("errmsg", "")), DUPLICATE_KEY)

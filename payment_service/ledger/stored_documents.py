"""Reads the documents of a unit of work from MongoDB, and writes its changes, all within one transaction."""

from collections.abc import Collection, Mapping
from typing import Any

from pymongo import InsertOne, UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import BulkWriteError, DuplicateKeyError

from payment_service.ledger.unit_of_work import Changes, Update
from shared.database import DUPLICATE_KEY, Database, Document

Session = AsyncClientSession


async def read(of: Database, session: Session, collection: str, ids: Collection[str]) -> list[Document]:
    """Return those documents that exist."""
    return await of[collection].find({"_id": {"$in": list(ids)}}, session=session).to_list(None)


async def write(of: Database, session: Session, changes: Mapping[str, Changes]) -> None:
    """Write the changes, with one bulk write for each collection.

    Raises DuplicateKeyError if a new document exists, and LookupError if another one differs from what was read. Of a
    document that another transaction has changed since the snapshot, MongoDB reports a conflict before it compares.
    """
    for collection, changed in changes.items():
        writes: list[UpdateOne | InsertOne[Document]] = [_guarded(update) for update in changed.updated]
        writes += [InsertOne(document) for document in changed.inserted]
        try:
            result = await of[collection].bulk_write(writes, session=session)
        except BulkWriteError as error:
            raise _duplicate_key(error) or error from None
        if result.matched_count != len(changed.updated):
            raise LookupError(f"{collection} differs from what this transaction has read")


def _guarded(update: Update) -> UpdateOne:
    """Write the fields that differ, if they still are as they were read."""
    before, after = update.before, update.after
    changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
    removed = before.keys() - after.keys()
    guard: Document = {"_id": before["_id"]}
    for name in (*changed, *sorted(removed)):
        guard[name] = before.get(name, {"$exists": False})
    change: dict[str, Any] = {"$set": changed} if changed else {}
    if removed:
        change["$unset"] = dict.fromkeys(removed, "")
    return UpdateOne(guard, change)


def _duplicate_key(error: BulkWriteError) -> DuplicateKeyError | None:
    failures = (error.details or {}).get("writeErrors", [])
    if not any(failure.get("code") == DUPLICATE_KEY for failure in failures):
        return None
    return DuplicateKeyError(str(failures[0].get("errmsg", "")), DUPLICATE_KEY)

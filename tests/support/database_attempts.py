"""Everything that a user of MongoDB may and may not do, tried on a real server that asks for passwords."""

from collections.abc import Awaitable, Callable
from typing import Any

from pymongo import AsyncMongoClient, IndexModel
from pymongo.errors import OperationFailure

from operations.stack.database_rights import READ_BY_OPERATIONS
from shared.database import Document, is_refusal
from shared.services import CONSOLE, PAYMENT, SERVICES, Service

Attempt = Callable[[AsyncMongoClient[Document]], Awaitable[object]]

COLLECTIONS = {
    service: "replays" if service is CONSOLE else READ_BY_OPERATIONS[name][0] for name, service in SERVICES.items()
}
"""A collection of each service that operations may read."""
ENTRY = {"_id": "of-the-test", "action": "test"}


def attempts_of(service: Service, prefix: str) -> tuple[dict[str, Attempt], dict[str, Attempt]]:
    """Return what the user of a service may do, and what it may not, by a description."""
    others = [other for other in SERVICES.values() if other is not service]
    name, own = service.database_in(prefix), COLLECTIONS[service]
    may: dict[str, Attempt] = {
        "write its own": lambda c: c[name][own].update_one({"_id": "t"}, {"$set": {"a": 1}}),
        "read its own": lambda c: c[name][own].find_one({}),
        "count its own": lambda c: c[name][own].estimated_document_count(),
        "delete its own": lambda c: c[name][own].delete_one({"_id": "t"}),
        "create an index": lambda c: c[name][own].create_indexes([IndexModel("a")]),
        "list its collections": lambda c: c[name].list_collection_names(),
        "set a validator": lambda c: c[name].command("collMod", own, validationLevel="strict"),
    }
    may_not: dict[str, Attempt] = {
        "create a user": lambda c: c[name].command("createUser", "mine", pwd="x", roles=[]),
        "change its roles": lambda c: c[name].command("grantRolesToUser", service.user, roles=["dbOwner"]),
        "list the users": lambda c: c.admin.command("usersInfo"),
        "change a parameter": lambda c: c.admin.command({"setParameter": 1, "logLevel": 0}),
        "read the oplog": lambda c: c["local"]["oplog.rs"].find_one({}),
        "use another stack": lambda c: c[f"{prefix}2_{service.database}"][own].find_one({}),
    }
    for other in others:
        among = may if service is CONSOLE else may_not
        among[f"read {other.name}"] = _reading(other, prefix)
        may_not[f"write {other.name}"] = _writing(other, prefix)
        may_not[f"delete in {other.name}"] = _deleting(other, prefix)
        may_not[f"index {other.name}"] = _indexing(other, prefix)
        may_not[f"drop {other.name}"] = _dropping(other, prefix)
    may |= _of_audit_log(name)
    may_not |= _against_audit_log(name, own)
    if service is CONSOLE:
        return may | _of_repairs(prefix), may_not | _withheld(prefix) | _against_totals(name)
    return may, may_not


async def assert_least_rights(url_of: Callable[[Service], str], prefix: str) -> None:
    """Try everything with the user of each service; `url_of` returns its URL."""
    wrong = []
    for service in SERVICES.values():
        may, may_not = attempts_of(service, prefix)
        async with AsyncMongoClient[Document](url_of(service)) as client:
            wrong += [
                f"{service.user} may not {what}" for what, attempt in may.items() if await refused(client, attempt)
            ]
            wrong += [
                f"{service.user} may {what}" for what, attempt in may_not.items() if not await refused(client, attempt)
            ]
    assert not wrong, wrong


async def refused(client: AsyncMongoClient[Document], attempt: Attempt) -> bool:
    """Return whether MongoDB refuses an attempt because of missing rights; other errors pass through."""
    try:
        await attempt(client)
    except OperationFailure as error:
        if not is_refusal(error):
            raise
        return True
    return False


def _of_audit_log(name: str) -> dict[str, Attempt]:
    async def insert(client: AsyncMongoClient[Document]) -> None:
        await client[name]["actions"].insert_one({"action": "test"})

    return {"add to the audit log": insert, "read the audit log": lambda c: c[name]["actions"].find_one({})}


def _against_audit_log(name: str, own: str) -> dict[str, Attempt]:
    def log(client: AsyncMongoClient[Document]) -> Any:
        return client[name]["actions"]

    return {
        "change the audit log": lambda c: log(c).update_one({}, {"$set": {"by": "another"}}),
        "replace an entry of the audit log": lambda c: log(c).replace_one({}, ENTRY),
        "delete from the audit log": lambda c: log(c).delete_one({}),
        "let entries of the audit log expire": lambda c: log(c).create_index("at", expireAfterSeconds=1),
        "change the options of the audit log": lambda c: c[name].command("collMod", "actions", validator={"no": 1}),
        "drop the audit log": lambda c: log(c).drop(),
        "rename the audit log": lambda c: log(c).rename("old"),
        "write over the audit log": lambda c: _out(c, name, own),
        "cap the audit log": lambda c: c[name].command("convertToCapped", "actions", size=4096),
        "drop its database": lambda c: c.drop_database(name),
    }


async def _out(client: AsyncMongoClient[Document], name: str, own: str) -> None:
    await client[name][own].aggregate([{"$out": "actions"}])


def _withheld(prefix: str) -> dict[str, Attempt]:
    payments = PAYMENT.database_in(prefix)
    return {
        "read answers to clients": lambda c: c[payments]["idempotency"].find_one({}),
        "add an account": lambda c: c[payments]["accounts"].insert_one({"_id": "mine"}),
        "delete an account": lambda c: c[payments]["accounts"].delete_one({"_id": "t"}),
        "change an entry of the journal": lambda c: c[payments]["entries"].update_one({}, {"$set": {"a": 1}}),
        "change a payment": lambda c: c[payments]["payments"].update_one({}, {"$set": {"a": 1}}),
    }


def _against_totals(name: str) -> dict[str, Attempt]:
    return {
        "change the totals of archived orders": lambda c: c[name]["archived"].update_one({}, {"$inc": {"units": 1}}),
        "add totals of archived orders": lambda c: c[name]["archived"].insert_one({"_id": "t"}),
        "delete totals of archived orders": lambda c: c[name]["archived"].delete_one({"_id": "t"}),
    }


def _of_repairs(prefix: str) -> dict[str, Attempt]:
    payments = PAYMENT.database_in(prefix)

    async def insert(client: AsyncMongoClient[Document]) -> None:
        async with client.start_session() as session:
            await session.start_transaction()
            await client[payments]["entries"].insert_one({"_id": "t"}, session=session)
            await session.abort_transaction()

    return {
        "correct an account": lambda c: c[payments]["accounts"].update_one({"_id": "t"}, {"$set": {"balance": 1}}),
        "add an entry to the journal": insert,
    }


def _reading(other: Service, prefix: str) -> Attempt:
    return lambda client: client[other.database_in(prefix)][COLLECTIONS[other]].find_one({})


def _writing(other: Service, prefix: str) -> Attempt:
    return lambda client: client[other.database_in(prefix)][COLLECTIONS[other]].insert_one({"a": 1})


def _deleting(other: Service, prefix: str) -> Attempt:
    return lambda client: client[other.database_in(prefix)][COLLECTIONS[other]].delete_many({})


def _indexing(other: Service, prefix: str) -> Attempt:
    return lambda client: client[other.database_in(prefix)][COLLECTIONS[other]].create_index("a")


def _dropping(other: Service, prefix: str) -> Attempt:
    return lambda client: client.drop_database(other.database_in(prefix))

"""Who may do what in the MongoDB of a running stack: whether it asks for passwords, its users, and their rights."""

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import pymongo
import pymongo.errors

from operations.doctor.connection import Client, connect
from operations.doctor.finding import Finding, note, ok, wrong
from operations.stack.database_rights import THE_SERVER, USERS, Right, rights_of, users_of
from operations.stack.database_schemas import all_schemas
from operations.stack.database_users import DatabaseUsers
from shared import schema
from shared.database import is_refusal
from shared.outage_words import with_detail

SUBJECT = "users of MongoDB"
PREPARE = "run `ordersaga database prepare` as an administrator (docs/database.md)"
START_AGAIN = "start the stack again, which creates the users and sets their rights"
_SHOWN = 3
"""The most differences of a user that are named."""


async def check_users(url: str, prefix: str, users: DatabaseUsers | None) -> AsyncIterator[Finding]:
    """Check that MongoDB asks for passwords, and that the users have the rights of `database_rights` and no others.

    With `users`, of a MongoDB that `ordersaga up` runs, all are checked. Else it is the one in the URL, or all if that
    is an administrator.
    """
    try:
        async with connect(url) as client:
            status = await _authenticated(client)
            if not status["authenticatedUsers"]:
                yield await _without_a_user(client)
            elif users is not None:
                for name in USERS:
                    yield await _check_by_login(name, users, url)
            else:
                for finding in await _check_given(client, status, prefix):
                    yield finding
    except pymongo.errors.PyMongoError as error:
        yield wrong(SUBJECT, f"cannot be checked: {with_detail(error)}", "correct ORDERSAGA_MONGODB_URL")


def compare_rights(wanted: Iterable[Right], found: Iterable[Right]) -> str | None:
    """Return in which rights a user differs, None if it has the wanted ones and no others."""
    wanted, found = frozenset(wanted), frozenset(found)
    parts = [
        f"{words} {', '.join(map(_described, sorted(different)[:_SHOWN]))}{_more(different)}"
        for words, different in (("may not", wanted - found), ("may, and should not,", found - wanted))
        if different
    ]
    return "; ".join(parts) or None


def flattened(privileges: Iterable[Mapping[str, Any]]) -> frozenset[Right]:
    """Return privileges in the form of MongoDB as single actions."""
    return frozenset(
        (*_place(privilege["resource"]), action) for privilege in privileges for action in privilege["actions"]
    )


def _place(resource: Mapping[str, Any]) -> tuple[str, str]:
    if "db" in resource:
        return resource["db"] or "every database", resource.get("collection", "")
    return (THE_SERVER if "cluster" in resource else "everything"), ""


def _described(right: Right) -> str:
    database, collection, action = right
    return f"{action} in {database}{f'.{collection}' if collection else ''}"


def _more(different: frozenset[Right]) -> str:
    return f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""


async def _authenticated(client: Client) -> Mapping[str, Any]:
    answer = await client.admin.command("connectionStatus", showPrivileges=True)
    found: Mapping[str, Any] = answer["authInfo"]
    return found


async def _without_a_user(client: Client) -> Finding:
    try:
        await client.admin.command("usersInfo")
    except pymongo.errors.OperationFailure as error:
        if error.code != schema.UNAUTHORIZED:
            raise
        fix = "name a user in ORDERSAGA_MONGODB_URL: mongodb://user:password@host/"
        return wrong(SUBJECT, "the URL names no user, and MongoDB asks for one", fix)
    fix = f"start mongod with --auth and --keyFile, then {PREPARE}"
    return note(SUBJECT, "MongoDB asks for no password: every process that reaches it has all rights", fix)


async def _check_by_login(name: str, users: DatabaseUsers, url: str) -> Finding:
    """Check a user of a MongoDB that `ordersaga up` runs, with its own password."""
    if name not in users.passwords:
        return wrong(_subject(name), "does not exist: an earlier release has started this stack", START_AGAIN)
    address = f"{url.partition('://')[0]}://{url.rpartition('@')[2].partition('&authSource=')[0]}"
    try:
        async with connect(users.url(name, address)) as client:
            found = (await _authenticated(client))["authenticatedUserPrivileges"]
    except pymongo.errors.OperationFailure as error:
        if not is_refusal(error):
            raise
        return wrong(_subject(name), "does not exist, or has another password", START_AGAIN)
    return _compared(name, users.prefix, found, START_AGAIN)


async def _check_given(client: Client, status: Mapping[str, Any], prefix: str) -> list[Finding]:
    """Check the user in the URL if it is one of ours, else all of ours if it may list users."""
    given = status["authenticatedUsers"][0]
    ours = {(user.name, user.database) for user in users_of(prefix)}
    if (given["user"], given["db"]) in ours:
        return [_compared(given["user"], prefix, status["authenticatedUserPrivileges"], PREPARE)]
    try:
        return [await _listed(client, name, database, prefix) for name, database in sorted(ours)]
    except pymongo.errors.OperationFailure as error:
        if error.code != schema.UNAUTHORIZED:
            raise
    detail = f"{given['user']} is not one of {', '.join(USERS)}, and cannot list users: rights were not checked"
    return [note(SUBJECT, detail, PREPARE)]


async def _listed(client: Client, name: str, database: str, prefix: str) -> Finding:
    wanted = {"usersInfo": {"user": name, "db": database}, "showPrivileges": True}
    found = (await client[database].command(wanted))["users"]
    if not found:
        return wrong(_subject(name), f"does not exist in {database}", PREPARE)
    return _compared(name, prefix, found[0]["inheritedPrivileges"], PREPARE)


def _compared(name: str, prefix: str, privileges: Iterable[Mapping[str, Any]], fix: str) -> Finding:
    collections = {service: declared.keys() for service, declared in all_schemas().items()}
    if difference := compare_rights(rights_of(name, prefix, collections), flattened(privileges)):
        return wrong(_subject(name), difference, fix)
    return ok(_subject(name), "has its rights and no others")


def _subject(name: str) -> str:
    return f"user {name} of MongoDB"

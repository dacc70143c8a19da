"""Creates the users and roles of MongoDB that `database_rights` lists, or brings them to its state.

Passwords are in files of their own (see `secret_files`).
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymongo
import pymongo.errors
from pymongo import AsyncMongoClient

from operations.stack.database_rights import (
    APPEND_ONLY,
    BACKUP,
    MONITORING,
    USERS,
    DatabaseRole,
    DatabaseUser,
    role_documents,
    roles_of,
    users_of,
)
from operations.stack.database_schemas import all_schemas
from operations.stack.secret_files import load_or_create_secret
from shared import schema
from shared.database import Document
from shared.services import SERVICES

ADMINISTRATOR = "administrator"
"""The user of a MongoDB that `ordersaga up` runs who may do everything. No process of the stack knows its password."""
MECHANISMS = ["SCRAM-SHA-256"]
AUTHENTICATION_FAILED = 18
Connect = Callable[[str], "pymongo.MongoClient[dict[str, Any]]"]
_KEY_BYTES = 48


@dataclass(frozen=True)
class DatabaseUsers:
    """The users of the MongoDB of a stack: the prefix of its databases, and each user's password by its name."""

    prefix: str
    passwords: Mapping[str, str] = field(repr=False)

    def url(self, user: str, url: str) -> str:
        """Return the URL with which a user connects; `url` has options and names no user."""
        homes = {known.name: known.database for known in users_of(self.prefix)}
        login = f"{user}:{self.passwords[user]}"
        return f"{url.replace('://', f'://{login}@', 1)}&authSource={homes.get(user, 'admin')}"


def load_users(directory: Path, prefix: str) -> DatabaseUsers:
    """Return the users of a stack, with the administrator; create the passwords that do not exist yet.

    Raises the errors of `load_or_create_secret`.
    """
    return DatabaseUsers(prefix, load_passwords(directory, (*USERS, ADMINISTRATOR)))


def load_passwords(directory: Path, users: Iterable[str] = USERS) -> dict[str, str]:
    """Return the password of each user, from files such as `mongodb-order`; create the missing ones.

    Raises the errors of `load_or_create_secret`.
    """
    return {user: load_or_create_secret(directory, f"mongodb-{user}") for user in users}


def read_users(directory: Path, prefix: str) -> DatabaseUsers:
    """Return the users of a stack that runs, without the administrator; newer ones only if its release made them.

    Raises OSError.
    """
    files = {user: directory / f"mongodb-{user}" for user in USERS}
    known = {user: file for user, file in files.items() if user not in (BACKUP, MONITORING) or file.exists()}
    return DatabaseUsers(prefix, {user: file.read_text().strip() for user, file in known.items()})


def load_key_file(directory: Path) -> Path:
    """Return the key file, with which mongod asks for passwords; create it if there is none yet.

    Raises the errors of `load_or_create_secret`.
    """
    name = "mongodb-key"
    # mongod takes the characters of base64 only, and a file that its owner alone can read.
    load_or_create_secret(directory, name, lambda: secrets.token_hex(_KEY_BYTES))
    (directory / name).chmod(0o600)
    return directory / name


def ensure_administrator(users: DatabaseUsers, url: str, connect: Connect = pymongo.MongoClient) -> bool:
    """Create the administrator unless there is one; return False if there is, and its password is another.

    `url` leads to a primary on this machine: as long as it has no user, mongod lets its machine create the first one.
    `connect` opens a client. Errors of the driver pass through.
    """
    try:
        with connect(users.url(ADMINISTRATOR, url)) as client:
            client.admin.command("ping")
    except pymongo.errors.OperationFailure as error:
        if error.code != AUTHENTICATION_FAILED:
            raise
    else:
        return True
    password = users.passwords[ADMINISTRATOR]
    try:
        with connect(url) as client:
            client.admin.command("createUser", ADMINISTRATOR, pwd=password, roles=["root"], mechanisms=MECHANISMS)
    except pymongo.errors.OperationFailure as error:
        if error.code != schema.UNAUTHORIZED:
            raise
        return False
    return True


async def prepare_users(client: AsyncMongoClient[Document], prefix: str, passwords: Mapping[str, str]) -> list[str]:
    """Create or update the audit logs, the roles and the users; return what was done, one line each.

    It may be repeated, also after a run that was interrupted: existing users get the passwords and exactly the rights
    of the table. Errors of the driver pass through; `schema.prepare` raises StartError.
    """
    schemas = all_schemas()
    done = [await _prepare_role(client, role) for role in roles_of(prefix, schemas)]
    # Before there is a user who may write to them: the services may not create their indexes.
    for name, service in SERVICES.items():
        await schema.prepare(client[service.database_in(prefix)], {APPEND_ONLY: schemas[name][APPEND_ONLY]})
    users = users_of(prefix)
    # At once: each waits for the journal, and for thousands of rounds of hashing on the server.
    return done + await asyncio.gather(*(_prepare_user(client, user, passwords[user.name]) for user in users))


async def _prepare_role(client: AsyncMongoClient[Document], role: DatabaseRole) -> str:
    found = await client.admin.command("rolesInfo", role.name)
    verb = "updateRole" if found["roles"] else "createRole"
    await client.admin.command({verb: role.name, **role.as_documents()})
    return f"{verb.removesuffix('Role')}d role {role.name} in admin"


async def _prepare_user(client: AsyncMongoClient[Document], user: DatabaseUser, password: str) -> str:
    database = client[user.database]
    found = await database.command("usersInfo", user.name)
    verb = "updateUser" if found["users"] else "createUser"
    settings: dict[str, Any] = {"roles": role_documents(user.roles), "mechanisms": MECHANISMS}
    await database.command(verb, user.name, pwd=password, **settings)
    return f"{verb.removesuffix('User')}d user {user.name} in {user.database}"

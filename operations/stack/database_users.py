"""Creates the users and roles of MongoDB that `database_rights` lists, or brings them to its state."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient

from operations.stack.database_rights import (
    APPEND_ONLY,
    USERS,
    DatabaseRole,
    DatabaseUser,
    role_documents,
    roles_of,
    users_of,
)
from operations.stack.secret_files import load_or_create_secret
from shared import schema
from shared.database import Document
from shared.services import CONSOLE


def load_passwords(directory: Path) -> dict[str, str]:
    """Return the password of each user, from files such as `mongodb-order`; create the missing ones.

    Raises the errors of `load_or_create_secret`.
    """
    return {user: load_or_create_secret(directory, f"mongodb-{user}") for user in USERS}


async def prepare_users(
    client: AsyncMongoClient[Document], prefix: str, passwords: Mapping[str, str], own: schema.Collections
) -> list[str]:
    """Create or update the audit log, the roles and the users; return what was done, one line each.

    `own` are the collections of operations. It may be repeated, also after a run that was interrupted: existing users
    get the passwords and exactly the rights of the table. Errors of the driver pass through; `schema.prepare` raises
    StartError.
    """
    done = [await _prepare_role(client, role) for role in roles_of(prefix, own)]
    # Before there is a user who may write to it: operations may not create its indexes.
    await schema.prepare(client[CONSOLE.database_in(prefix)], {APPEND_ONLY: own[APPEND_ONLY]})
    done += [await _prepare_user(client, user, passwords[user.name]) for user in users_of(prefix)]
    return done


async def _prepare_role(client: AsyncMongoClient[Document], role: DatabaseRole) -> str:
    found = await client.admin.command("rolesInfo", role.name)
    verb = "updateRole" if found["roles"] else "createRole"
    await client.admin.command({verb: role.name, **role.as_documents()})
    return f"{verb.removesuffix('Role')}d role {role.name} in admin"


async def _prepare_user(client: AsyncMongoClient[Document], user: DatabaseUser, password: str) -> str:
    database = client[user.database]
    found = await database.command("usersInfo", user.name)
    verb = "updateUser" if found["users"] else "createUser"
    settings: dict[str, Any] = {"roles": role_documents(user.roles), "mechanisms": ["SCRAM-SHA-256"]}
    await database.command(verb, user.name, pwd=password, **settings)
    return f"{verb.removesuffix('User')}d user {user.name} in {user.database}"

"""A MongoDB that asks for a password and holds its users to their roles, unlike the one that most tests share."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient

from operations.stack.mongod import find_mongod
from operations.stack.ports import PortClaims
from operations.stack.processes import spawn
from operations.stack.program import Command
from shared.database import Database
from tests.support.eventually import eventually


@contextlib.asynccontextmanager
async def guarded_mongodb(directory: Path) -> AsyncIterator[Callable[[str], str]]:
    """Start it; yields the URL for a user. Each user has the password "secret", "root" may do everything."""
    with PortClaims() as claims:
        port = claims.claim_free()
        key = directory / "key"
        key.touch(0o600)
        key.write_text("secret")
        words = ["--dbpath", str(directory), "--bind_ip", "127.0.0.1", "--port", str(port), "--nounixsocket"]
        words += ("--replSet", "rs0", "--keyFile", str(key))  # with a key file it asks for a password
        process = await spawn(Command((str(find_mongod()), *words), {}), directory / "log", directory)
        try:
            url = f"mongodb://127.0.0.1:{port}/?directConnection=true"
            async with AsyncMongoClient[Any](url) as client:
                await eventually(lambda: _initiated(client, port), within=120)
                await eventually(lambda: _root_created(client), within=120)
            yield lambda user: url.replace("//", f"//{user}:secret@") if user else url
        finally:
            await process.end(10)


async def user_with(role: str, database: Database) -> str:
    """Create a user with this role in this database; returns the user's name."""
    user = f"u{database.name}"
    await database.client.admin.command("createUser", user, pwd="secret", roles=[{"role": role, "db": database.name}])
    return user


async def _initiated(client: AsyncMongoClient[Any], port: int) -> bool:
    member = {"_id": 0, "host": f"127.0.0.1:{port}"}
    await client.admin.command("replSetInitiate", {"_id": "rs0", "members": [member]})
    return True


async def _root_created(client: AsyncMongoClient[Any]) -> bool:
    await client.admin.command("createUser", "root", pwd="secret", roles=["root"])
    return True

"""Create the users of the stack on a mongod that is a primary, with exactly their rights; it can be repeated.

    python create_database_users.py "mongodb://127.0.0.1:27017/?directConnection=true" SECRETS [URL]

SECRETS is the directory with the passwords. The last argument is the URL of the replica set, where the mongod may no
longer be the primary when this is repeated. As long as there is no user, mongod lets its own machine create the first
one, the administrator, which is also how data without users is upgraded: the first URL must lead to 127.0.0.1. If
another member of a new set was elected, that mongod takes over within seconds; in the end any member may lead. Members
that the last URL names and the set lacks are added, each when the one before it has the data. Exits 0 when all is done,
else 1 with one line.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

from pymongo import AsyncMongoClient
from pymongo.errors import AutoReconnect, PyMongoError
from pymongo.uri_parser import parse_uri

from operations.stack.database_users import ADMINISTRATOR, ensure_administrator, load_users, prepare_users
from operations.stack.layout import database_prefix
from operations.stack.replica_set import add_members, make_members_equal
from shared.database import Document
from shared.errors import OrdersagaError

PAUSE_SECONDS = 0.5
COPY_SECONDS = 3600.0
"""How long a new member may take to copy the data."""


async def main(url: str, secrets: Path, replica_set_url: str, *, within: float = 60.0) -> None:
    """Create or update the users, again while another member leads or the primary changes, `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        try:
            return await prepare(url, secrets, replica_set_url)
        except AutoReconnect:  # also what a driver raises where a server is not the primary
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(PAUSE_SECONDS)


async def prepare(url: str, secrets: Path, replica_set_url: str) -> None:
    """Create the administrator if there is none, create or update the users, and let any member lead."""
    users = load_users(secrets, database_prefix(os.environ))
    if not await asyncio.to_thread(ensure_administrator, users, url):
        sys.exit(
            f"MongoDB has users and refuses the password in {secrets}/mongodb-{ADMINISTRATOR}: restore the volume of "
            "the secrets that belongs to its data"
        )
    async with AsyncMongoClient[Document](users.url(ADMINISTRATOR, replica_set_url), w="majority") as client:
        for line in await prepare_users(client, users.prefix, users.passwords):
            print(line)  # noqa: T201
        await make_members_equal(client)
        addresses = [f"{host}:{port}" for host, port in parse_uri(replica_set_url)["nodelist"]]
        if not parse_uri(replica_set_url)["options"].get("directConnection"):
            for address in await add_members(client, addresses, within=COPY_SECONDS):
                print(f"added member {address}")  # noqa: T201


if __name__ == "__main__":
    own_url, directory, *others = sys.argv[1:]
    try:
        asyncio.run(main(own_url, Path(directory), *(others or [own_url])))
    except (PyMongoError, OrdersagaError) as error:
        sys.exit(f"the users of MongoDB cannot be created: {str(error).partition(chr(10))[0]}")

"""Make a mongod that was started with --replSet a one-member replica set, unless it is one already.

    python initiate_replica_set.py mongodb://mongo:27017/ rs0 mongo:27017

The last argument is the address under which clients will reach the member. Waits for the server and then for
its election, so that processes started later find a primary. Exits 0 once there is one, else 1 with one line.
"""

import sys
import time
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

PAUSE_SECONDS = 0.2


class WrongReplicaSetError(Exception):
    """The server is no replica set member, or one of another set or under another address."""


def initiate(url: str, name: str, member: str, *, within: float = 60.0) -> None:
    """Initiate the set `name` with the one member `member` on the server at `url`, and wait for the primary.

    `within` is in seconds. Raises TimeoutError if there is no primary by then, and WrongReplicaSetError at once
    if the server cannot become what was asked for.
    """
    deadline = time.monotonic() + within
    with MongoClient[dict[str, Any]](url, directConnection=True, serverSelectionTimeoutMS=1000) as mongo:
        while True:
            try:
                if _advance(mongo, name, member):
                    return
                problem = "no primary has been elected"
            except PyMongoError as error:
                problem = str(error).partition("\n")[0]
            if time.monotonic() > deadline:
                raise TimeoutError(f"no replica set {name} at {url} within {within:g} s: {problem}")
            time.sleep(PAUSE_SECONDS)


def _advance(mongo: MongoClient[dict[str, Any]], name: str, member: str) -> bool:
    """Do what the server's state asks for next; true once it is a primary."""
    hello = mongo.admin.command("hello")
    if "setName" in hello:
        _check(hello, name, member)
        return bool(hello["isWritablePrimary"])
    if not hello.get("isreplicaset"):
        raise WrongReplicaSetError(f"mongod is not a replica set member: start it with --replSet {name}")
    # A server that has just started says this too before it has read its configuration; then this fails, and
    # the next round finds it configured.
    mongo.admin.command("replSetInitiate", {"_id": name, "members": [{"_id": 0, "host": member}]})
    return False


def _check(hello: dict[str, Any], name: str, member: str) -> None:
    hosts = hello.get("hosts", [])
    if hello["setName"] != name or member not in hosts:
        found = f"{', '.join(hosts)} of the replica set {hello['setName']}"
        raise WrongReplicaSetError(f"mongod is already {found}, not {member} of {name}")


if __name__ == "__main__":
    try:
        initiate(*sys.argv[1:4])
        sys.stdout.write(f"the replica set {sys.argv[2]} has a primary\n")
    except (TimeoutError, WrongReplicaSetError) as wrong:
        sys.exit(str(wrong))

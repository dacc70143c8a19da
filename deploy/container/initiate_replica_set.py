"""Make a mongod that was started with --replSet a replica set, unless it is one already.

    python initiate_replica_set.py mongodb://mongo:27017/ rs0 mongo:27017[,mongo-2:27017,...]

The last argument has the addresses under which clients will reach the members, the first of which is that mongod. Waits
for all of them and then for their election, so that processes started later find a primary. The first one leads until
create_database_users.py has created the users, which also adds the members that a set with data lacks. Exits 0 once
there is a primary that takes writes, else 1 with one line.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from operations.stack.replica_set import ELECTION_SETTINGS, initial_members

PAUSE_SECONDS = 0.2


class WrongReplicaSetError(Exception):
    """The server is no replica set member, or one of another set or under another address."""


def initiate(url: str, name: str, members: str, *, within: float = 60.0) -> None:
    """Initiate the set `name` on the server at `url`, and wait for the primary.

    `members` are addresses, separated by commas; `within` is in seconds. Raises TimeoutError if there is no primary by
    then, and WrongReplicaSetError at once if the server cannot become what was asked for.
    """
    deadline = time.monotonic() + within
    with MongoClient[dict[str, Any]](url, directConnection=True, serverSelectionTimeoutMS=1000) as mongo:
        while True:
            try:
                if _advance(mongo, name, members.split(",")):
                    return
                problem = "no primary has been elected"
            except PyMongoError as error:
                problem = str(error).partition("\n")[0]
            if time.monotonic() > deadline:
                raise TimeoutError(f"no replica set {name} at {url} within {within:g} s: {problem}")
            time.sleep(PAUSE_SECONDS)


def _advance(mongo: MongoClient[dict[str, Any]], name: str, members: list[str]) -> bool:
    """Do what the server's state asks for next; true once there is a primary."""
    hello = mongo.admin.command("hello")
    if "setName" in hello:
        _check(hello, name, members)
        return has_primary(hello)
    if not hello.get("isreplicaset"):
        raise WrongReplicaSetError(f"mongod is not a replica set member: start it with --replSet {name}")
    # A server that has just started says this too before it has read its configuration; then this fails, and
    # the next round finds it configured.
    config: dict[str, Any] = {"_id": name, "members": initial_members(members)}
    if len(members) > 1:
        config["settings"] = ELECTION_SETTINGS
    mongo.admin.command("replSetInitiate", config)
    return False


def has_primary(hello: Mapping[str, Any]) -> bool:
    """Return whether there is a primary; a server that has just been elected does not take writes at once."""
    return bool(hello.get("isWritablePrimary") or hello.get("primary") not in (None, hello.get("me")))


def _check(hello: dict[str, Any], name: str, members: list[str]) -> None:
    hosts = hello.get("hosts", [])
    # One with fewer members grows, and one with more was extended by hand.
    if hello["setName"] == name and (set(members) <= set(hosts) or set(hosts) <= set(members)):
        return
    found = f"{', '.join(hosts)} of the replica set {hello['setName']}"
    raise WrongReplicaSetError(f"mongod is already {found}, not {', '.join(members)} of {name}")


if __name__ == "__main__":
    try:
        initiate(*sys.argv[1:4])
        sys.stdout.write(f"the replica set {sys.argv[2]} has a primary\n")
    except (TimeoutError, WrongReplicaSetError) as wrong:
        sys.exit(str(wrong))

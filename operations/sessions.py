"""Sessions of people who have signed in to the console, and links with which they sign in. Only hashes are stored.

    sessions        {_id: <SHA-256 of the token>, person, roles, createdAt, seenAt, endsAt}
    sign_in_links   {_id: <SHA-256 of the token>, person, roles, createdAt, endsAt}

They are in the database, so that all processes of the console know them. MongoDB deletes what has ended.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pymongo import ASCENDING, IndexModel

from shared.access.permissions import Role, grants_of
from shared.access.principal import Principal
from shared.clock import Clock
from shared.database import Database, Document
from shared.schema import CollectionSchema

SESSIONS = "sessions"
LINKS = "sign_in_links"
SCHEMA = CollectionSchema((IndexModel([("endsAt", ASCENDING)], name="ended", expireAfterSeconds=0),))

TOKEN_BYTES = 32
LINK_LIFETIME = timedelta(seconds=60)
IDLE = timedelta(minutes=30)
"""A session ends when it is not used for this time."""
LIFETIME = timedelta(hours=8)
"""A session ends after this time, however often it is used."""
NOTED_EVERY = timedelta(minutes=1)
"""How often the use of a session is noted, so that not every request is a write."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who may sign in, and with which roles."""

    name: str
    roles: frozenset[Role]

    def principal(self) -> Principal:
        """Return the caller that the person is."""
        return Principal(self.name, self.name, None, self.name, self.roles, "session", grants_of(self.roles))


class Sessions:
    """The sessions and links of one database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._sessions = database[SESSIONS]
        self._links = database[LINKS]
        self._clock = clock

    async def create_link(self, person: Person) -> str:
        """Return a token with which this person can sign in once, within LINK_LIFETIME."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        now = self._clock()
        await self._links.insert_one(_stored(token, person) | {"createdAt": now, "endsAt": now + LINK_LIFETIME})
        return token

    async def use_link(self, token: str) -> Person | None:
        """Return the person of a link, which then is used up; None if it is unknown, used or too old."""
        found = await self._links.find_one_and_delete({"_id": _digest(token), "endsAt": {"$gt": self._clock()}})
        return _person(found) if found else None

    async def start(self, person: Person) -> str:
        """Begin a session and return its token."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        now = self._clock()
        times = {"createdAt": now, "seenAt": now, "endsAt": now + LIFETIME}
        await self._sessions.insert_one(_stored(token, person) | times)
        return token

    async def find(self, token: str) -> Person | None:
        """Return the person of a session; None if it is unknown or has ended."""
        now = self._clock()
        alive = {"_id": _digest(token), "seenAt": {"$gt": now - IDLE}, "endsAt": {"$gt": now}}
        found = await self._sessions.find_one(alive)
        if found is None:
            return None
        if _utc(found["seenAt"], now) < now - NOTED_EVERY:
            await self._sessions.update_one(alive, {"$max": {"seenAt": now}})
        return _person(found)

    async def end(self, token: str) -> None:
        """End a session."""
        await self._sessions.delete_one({"_id": _digest(token)})


def _digest(token: str) -> str:
    # 256 random bits need no slow hash: there is nothing to guess.
    return hashlib.sha256(token.encode()).hexdigest()


def _stored(token: str, person: Person) -> Document:
    return {"_id": _digest(token), "person": person.name, "roles": sorted(person.roles)}


def _person(document: Document) -> Person:
    return Person(document["person"], roles_of(document["roles"]))


def roles_of(names: Iterable[Any]) -> frozenset[Role]:
    """Return the roles of these names; one that this release does not know grants nothing."""
    known = {str(role): role for role in Role}
    return frozenset(known[name] for name in names if name in known)


def _utc(moment: datetime, like: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=like.tzinfo)

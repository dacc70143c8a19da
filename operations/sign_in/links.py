"""Links that sign a person in once, within a minute."""

import secrets
from datetime import datetime, timedelta

from operations.sign_in.person import Person, person_of
from operations.sign_in.schema import LINKS
from shared.access.keys import digest
from shared.clock import Clock, utc_now
from shared.database import Database

VALID_FOR = timedelta(seconds=60)


class SignInLinks:
    """The links that have not been used. Any process of the console accepts them, and only one of them once."""

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._links = database[LINKS]
        self._clock = clock

    async def create(self, person: Person) -> tuple[str, datetime]:
        """Return the secret of a new link, and when it expires."""
        secret, expires = secrets.token_urlsafe(32), self._clock() + VALID_FOR
        await self._links.insert_one({"_id": digest(secret), "person": person.as_document(), "expiresAt": expires})
        return secret, expires

    async def look(self, secret: str) -> Person | None:
        """Return whom a link signs in, without using it; None if it is used, expired or wrong."""
        found = await self._links.find_one({"_id": digest(secret), "expiresAt": {"$gt": self._clock()}})
        return person_of(found["person"]) if found else None

    async def use(self, secret: str) -> Person | None:
        """Use a link up, and return whom it signs in; None if it is used, expired or wrong."""
        found = await self._links.find_one_and_delete({"_id": digest(secret), "expiresAt": {"$gt": self._clock()}})
        return person_of(found["person"]) if found else None

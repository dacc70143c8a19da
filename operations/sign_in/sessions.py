"""The sessions of people, shared by all processes of the console."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from operations.sign_in.person import Person, person_of
from operations.sign_in.schema import SESSIONS
from shared.access.keys import digest
from shared.clock import Clock, utc_now
from shared.database import Database

KEEP_SECONDS = 2.0
"""How long a process uses a session without reading it again: as long as a sign-out in another process may take."""
MOST_KEPT = 1000
TOUCHES_PER_IDLE_TIME = 30
"""The time of the last use is stored this often at most, so that most requests only read."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """A session ends when it has not been used for `idle`, and in any case after `longest`."""

    idle: timedelta = timedelta(minutes=30)
    longest: timedelta = timedelta(hours=8)


@dataclass(frozen=True, slots=True)
class _Session:
    person: Person
    created_at: datetime
    used_at: datetime

    def expires(self, limits: SessionLimits) -> datetime:
        return min(self.used_at + limits.idle, self.created_at + limits.longest)


class Sessions:
    """Begins, finds and ends sessions. A session is known by a secret of 256 random bits, of which a hash is stored."""

    def __init__(
        self,
        database: Database,
        limits: SessionLimits,
        clock: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = database[SESSIONS]
        self._limits = limits
        self._clock = clock
        self._monotonic = monotonic
        self._kept: dict[str, tuple[float, _Session]] = {}

    async def begin(self, person: Person) -> str:
        """Return the secret of a new session."""
        secret, now = secrets.token_urlsafe(32), self._clock()
        session = _Session(person, now, now)
        await self._sessions.insert_one(
            {
                "_id": digest(secret),
                "person": person.as_document(),
                "createdAt": now,
                "usedAt": now,
                "expiresAt": session.expires(self._limits),
            }
        )
        return secret

    async def find(self, secret: str, *, active: bool = True) -> Person | None:
        """Return the person of a session, None if it has ended.

        Requests that a page sends by itself are not `active`: they do not keep a session alive that nobody uses.
        """
        session_id, now = digest(secret), self._clock()
        session = await self._read(session_id)
        if session is None or now >= session.expires(self._limits):
            return None
        if active and now - session.used_at >= self._limits.idle / TOUCHES_PER_IDLE_TIME:
            await self._touch(session_id, replace(session, used_at=now))
        return session.person

    async def end(self, secret: str) -> None:
        """End a session: at once in this process, within KEEP_SECONDS in others."""
        session_id = digest(secret)
        await self._sessions.delete_one({"_id": session_id})
        self._kept.pop(session_id, None)

    async def _read(self, session_id: str) -> _Session | None:
        until, session = self._kept.get(session_id, (0.0, None))
        if session is not None and self._monotonic() < until:
            return session
        self._kept.pop(session_id, None)
        found = await self._sessions.find_one({"_id": session_id})
        if found is None:
            return None
        read = _Session(person_of(found["person"]), found["createdAt"], found["usedAt"])
        self._keep(session_id, read)
        return read

    async def _touch(self, session_id: str, session: _Session) -> None:
        """Store the time of the last use; a session that has been ended meanwhile stays ended."""
        times = {"usedAt": session.used_at, "expiresAt": session.expires(self._limits)}
        changed = await self._sessions.update_one({"_id": session_id}, {"$set": times})
        if changed.matched_count:
            self._keep(session_id, session)
        else:
            self._kept.pop(session_id, None)

    def _keep(self, session_id: str, session: _Session) -> None:
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[session_id] = (self._monotonic() + KEEP_SECONDS, session)

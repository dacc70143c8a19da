"""Ends the transactions that a killed process has left open; MongoDB itself waits a minute for that.

    transaction_sessions   {_id: <process>, sessions: [<lsid>], aliveAt}

A process writes down the id of every session before its first transaction, and every second that it is alive. Who
finds a process that has said nothing for `SILENCE_SECONDS` ends its sessions (`killSessions`, which every user may do
to their own) and strikes it off. That is safe also if it was merely slow: its open transactions fail, it begins them
again, and it enters itself anew.

A process also ends sessions of its own: those whose last statement got no answer, as the abort could not be sent
either.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import structlog
from pymongo.errors import PyMongoError

from payment_service.ledger.transactions import Session
from shared import database
from shared.database import Database, Document
from shared.errors import TransientError

COLLECTION = "transaction_sessions"

PAUSE_SECONDS = 1.0
"""Between two signs of life."""
SILENCE_SECONDS = 4.0
"""After so long without a sign of life a process counts as killed, by the database's clock."""

MOST_SESSIONS = 1000
"""What a process lists, the newest: far more than it can have in use, as each takes a connection."""

_log = structlog.get_logger(__name__)


class OrphanedSessions:
    """One process's list of sessions, and its look at those of the others."""

    def __init__(self, of: Database, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._database = of
        self._processes = of[COLLECTION]
        self._silence_seconds = silence_seconds
        self._process = uuid4().hex
        self._listed: dict[bytes, Any] = {}
        self._unlisted: dict[bytes, Any] = {}
        self._doubtful: dict[bytes, Any] = {}
        self._writing = asyncio.Lock()

    async def register(self, session: Session) -> None:
        """Write the session down unless it is there: the driver uses sessions again, so that is seldom."""
        lsid = session.session_id["id"]
        key = bytes(lsid)
        if key in self._listed:
            return
        self._unlisted[key] = lsid
        async with self._writing:
            if key not in self._listed:  # nobody who waited in front has written it down as well
                await self._write(list((self._listed | self._unlisted).values())[-MOST_SESSIONS:])

    def mark_doubtful(self, lsid: Any) -> None:
        """Have a session ended whose transaction may be open although nobody can abort it any more."""
        self._doubtful[bytes(lsid)] = lsid

    async def heartbeat(self) -> None:
        """Give a sign of life, with all sessions."""
        async with self._writing:
            await self._write(list(self._listed.values()))

    async def _write(self, sessions: Sequence[Any]) -> None:
        await self._processes.update_one(
            {"_id": self._process},
            {"$set": {"sessions": sessions}, "$currentDate": {"aliveAt": True}},
            upsert=True,
        )
        self._listed = {bytes(lsid): lsid for lsid in sessions}
        for key in self._listed:
            self._unlisted.pop(key, None)

    async def end_orphaned(self) -> int:
        """End the sessions of the processes that have gone silent; returns how many processes there were."""
        silent = {"$expr": {"$lt": ["$aliveAt", {"$subtract": ["$$NOW", int(self._silence_seconds * 1000)]}]}}
        abandoned = [process async for process in self._processes.find({"_id": {"$ne": self._process}, **silent})]
        for process in abandoned:
            await self._end(process)
        return len(abandoned)

    async def end_doubtful(self) -> None:
        """End this process's own sessions that are in doubt; those that cannot be ended now stay so."""
        if not self._doubtful:
            return
        doubtful = dict(self._doubtful)
        await self._database.command("killSessions", [{"id": lsid} for lsid in doubtful.values()])
        for key in doubtful:
            self._doubtful.pop(key, None)

    async def run(self) -> None:
        """Do all of it until cancelled; errors are logged, and what failed is done the next time.

        Who was silent itself does not judge others by their silence, which the same outage may have caused.
        """
        signed = judges_from = time.monotonic()
        while True:
            try:
                if time.monotonic() - signed > self._silence_seconds / 2:
                    judges_from = time.monotonic() + self._silence_seconds
                await self.end_doubtful()
                await self.heartbeat()
                signed = time.monotonic()
                if signed >= judges_from:
                    await self.end_orphaned()
            except PyMongoError as error:
                if isinstance(database.as_ours(error), TransientError):
                    _log.warning("the list of sessions waits for the database", error=str(error)[:300])
                else:
                    _log.exception("the list of sessions failed")
            await asyncio.sleep(PAUSE_SECONDS)

    async def deregister(self) -> None:
        """Strike this process off: it has ended its sessions itself."""
        await self._processes.delete_one({"_id": self._process})

    async def _end(self, process: Mapping[str, Any]) -> None:
        sessions = [{"id": lsid} for lsid in process["sessions"]]
        if sessions:
            await self._database.command("killSessions", sessions)
        # Only if it is still silent: who has given a sign of life since stays on the list.
        unchanged: Document = {"_id": process["_id"], "aliveAt": process["aliveAt"]}
        await self._processes.delete_one(unchanged)
        _log.warning("ended the sessions of a process that is gone", process=process["_id"], sessions=len(sessions))

"""Ends transactions that a killed process left open; MongoDB itself would wait a minute.

    transaction_sessions   {_id: <process>, sessions: [<lsid>], aliveAt}

A process registers the id of every session before its first transaction, and sends a heartbeat every second. When a
process has been silent for `SILENCE_SECONDS`, any other one ends its sessions (`killSessions`, which every user may
call for their own) and removes it. This is safe even if the process was only slow: its open transactions fail and are
retried, and it registers again.

A process also ends its own doubtful sessions: the last statement got no answer, so the abort may not have arrived
either.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import structlog

from payment_service.ledger.stored_documents import Session
from shared.background import run_periodically
from shared.database import Database, Document

COLLECTION = "transaction_sessions"

PAUSE_SECONDS = 1.0
"""The pause between two heartbeats."""
SILENCE_SECONDS = 4.0
"""A process without a heartbeat for this time, by the database's clock, counts as killed."""

MOST_SESSIONS = 1000
"""The newest sessions that a process lists; it cannot use more, as each needs a connection."""

_log = structlog.get_logger(__name__)


class OrphanedSessions:
    """The list of one process's sessions, and the clean-up of those of killed processes."""

    def __init__(self, of: Database, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._database = of
        self._processes = of[COLLECTION]
        self._silence_seconds = silence_seconds
        self._process = uuid4().hex
        self._listed: dict[bytes, Any] = {}
        self._unlisted: dict[bytes, Any] = {}
        self._doubtful: dict[bytes, Any] = {}
        self._writing = asyncio.Lock()
        self._last_heartbeat = self._judges_from = 0.0

    async def register(self, session: Session) -> None:
        """Add the session to the list; as the driver reuses sessions, most are listed already."""
        lsid = session.session_id["id"]
        key = bytes(lsid)
        if key in self._listed:
            return
        self._unlisted[key] = lsid
        async with self._writing:
            if key not in self._listed:  # a task ahead of this one may have written it too
                await self._write(list((self._listed | self._unlisted).values())[-MOST_SESSIONS:])

    def mark_doubtful(self, lsid: Any) -> None:
        """Note a session whose transaction may still be open, to be ended by `end_doubtful`."""
        self._doubtful[bytes(lsid)] = lsid

    async def heartbeat(self) -> None:
        """Write a heartbeat, with the list of sessions."""
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
        """End the sessions of silent processes and return the number of these processes."""
        silent = {"$expr": {"$lt": ["$aliveAt", {"$subtract": ["$$NOW", int(self._silence_seconds * 1000)]}]}}
        orphaned = [process async for process in self._processes.find({"_id": {"$ne": self._process}, **silent})]
        for process in orphaned:
            await self._end(process)
        return len(orphaned)

    async def end_doubtful(self) -> None:
        """End this process's doubtful sessions; if that fails, they stay doubtful."""
        if not self._doubtful:
            return
        doubtful = dict(self._doubtful)
        await self._database.command("killSessions", [{"id": lsid} for lsid in doubtful.values()])
        for key in doubtful:
            self._doubtful.pop(key, None)

    async def run(self) -> None:
        """Send heartbeats and end sessions until cancelled."""
        self._last_heartbeat = self._judges_from = time.monotonic()
        await run_periodically(self._maintain, every=PAUSE_SECONDS, name="ending orphaned sessions")

    async def deregister(self) -> None:
        """Remove this process from the list: it has ended its sessions itself."""
        await self._processes.delete_one({"_id": self._process})

    async def _maintain(self) -> None:
        # A process that was silent itself does not judge others: the same outage may have silenced them.
        if time.monotonic() - self._last_heartbeat > self._silence_seconds / 2:
            self._judges_from = time.monotonic() + self._silence_seconds
        await self.end_doubtful()
        await self.heartbeat()
        self._last_heartbeat = time.monotonic()
        if self._last_heartbeat >= self._judges_from:
            await self.end_orphaned()

    async def _end(self, process: Mapping[str, Any]) -> None:
        sessions = [{"id": lsid} for lsid in process["sessions"]]
        if sessions:
            await self._database.command("killSessions", sessions)
        # A process that has sent a heartbeat in the meantime stays on the list.
        unchanged: Document = {"_id": process["_id"], "aliveAt": process["aliveAt"]}
        await self._processes.delete_one(unchanged)
        _log.warning("ended the sessions of a process that is gone", process=process["_id"], sessions=len(sessions))

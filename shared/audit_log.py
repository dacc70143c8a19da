"""The audit log: who did what, allowed or not. One call, two sinks: a line of the log, and an entry of a chain.

    decision                                                line  entry
    ──────────────────────────────────────────────────────  ────  ─────────────────────────────────────────────
    a write by staff (a permission for every owner)         yes   yes; the console writes its own, with the act
    403, the caller lacks the permission                    yes   yes, at most REFUSALS_PER_MINUTE, then a sum
    401, the caller is not known                            yes   no: a stranger must not fill the database
    a read of credentials                                   yes   yes, before the answer
    placing orders, assigning slots, writes by clients      no    no: their records speak for themselves

Neither has a key, a token, a body or a personal field. The entries are the collection `actions` of the process's own
database, see `audit_chain`; nothing changes or deletes them.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import structlog
from prometheus_client import Counter
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.access.limits import Network, client_address
from shared.access.middleware import caller_of, permission_of
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.audit_chain import HASH, SEQ, Entry, linked
from shared.background import run_periodically
from shared.clock import utc_now
from shared.database import Database, Document, duplicates, first_line
from shared.errors import TransientError
from shared.group_commit import GroupCommit
from shared.guard import SAFE_METHODS
from shared.request_id import current_request_id
from shared.schema import UNAUTHORIZED, CollectionSchema

COLLECTION = "actions"
# Entries of earlier releases have no number.
CHAIN = IndexModel([(SEQ, ASCENDING)], name="chain", unique=True, partialFilterExpression={SEQ: {"$exists": True}})
INDEXES: Sequence[IndexModel] = (
    IndexModel([("at", DESCENDING), ("_id", DESCENDING)], name="newest"),
    IndexModel([("subject", DESCENDING), ("at", DESCENDING)], name="of-subject"),
    CHAIN,
)
SCHEMA = CollectionSchema(INDEXES)

REASON_HEADER = "Ordersaga-Reason"
"""The header in which staff say why; required for reading the credentials of other owners."""
MAX_REASON = 500
ANNOUNCE_SECONDS = 3600.0
"""How often the newest hash is logged."""
REFUSALS_PER_MINUTE = 30
"""The most refusals of a process that become entries of their own in one minute."""
UNRECORDED = frozenset({Permission.ORDERS_PLACE, Permission.SLOTS_ASSIGN})
"""Writes that leave records of their own, with their owner."""
GROUP_LIMIT = 200
"""The most entries of one write; those of concurrent requests share one."""
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_ATTEMPTS = 100
_SCOPE_LOG = "ordersaga.audit"

_log = structlog.get_logger(__name__)
_refusals = Counter("audit_refusals_total", "Requests refused because of their caller", ["status"])
_entries = Counter("audit_entries_total", "Entries of the audit log", ["outcome"])


class AuditUnavailableError(TransientError):
    """An entry could not be written, so what it would have recorded is not done."""

    for_clients = "This cannot be recorded in the audit log at the moment, so it is not done; try again"


async def append(database: Database, entry: Mapping[str, Any]) -> Entry:
    """Add an entry to the chain of a database and return it; see `append_all`."""
    return (await append_all(database, [entry]))[0]


async def append_all(database: Database, entries: Sequence[Mapping[str, Any]]) -> Sequence[Entry]:
    """Add entries to the chain of a database, in one write, and return them; any number of processes may do so at once.

    Each reads the newest entry and inserts those after it; of two with the same number the index refuses one, whose
    process tries again. Raises AuditUnavailableError after many attempts, and the driver's errors.
    """
    log = database[COLLECTION]
    # Only entries that survive a failover have a successor.
    lasting = log.with_options(read_concern=ReadConcern("majority"))
    written: list[Entry] = []
    for attempt in range(_ATTEMPTS):
        previous: Entry | Document | None = await lasting.find_one({SEQ: {"$exists": True}}, sort=[(SEQ, DESCENDING)])
        if previous is None:
            await _require_index(database)
        chained: list[Entry] = []
        for entry in entries[len(written) :]:
            previous = linked(entry, previous)
            chained.append(previous)
        try:
            await log.insert_many([dict(entry) for entry in chained])
        except BulkWriteError as error:
            duplicates(error)  # raises the error if anything else failed
            # In order: what comes before the first refused entry is in the chain.
            written += chained[: (error.details or {}).get("nInserted", 0)]
            # The wait spreads the processes that compete.
            await asyncio.sleep(random.uniform(0, 0.002 * min(attempt + 1, 20)))  # noqa: S311 - no secret
        else:
            return [*written, *chained]
    raise AuditUnavailableError(f"other processes wrote the next entry {_ATTEMPTS} times")


async def _require_index(database: Database) -> None:
    """Let the chain begin under its index, also when a command writes before any process has prepared the database."""
    try:
        await database.command({"createIndexes": COLLECTION, "indexes": [CHAIN.document]})
    except OperationFailure as error:
        # A process with a user of its own may not, and need not: the index is there before the user.
        if error.code != UNAUTHORIZED:
            raise


def new_entry(*, by: str, why: str | None, action: str, subject: str, outcome: str, **more: object) -> Document:
    """Return an entry for `append`: who (`by`) did what (`action`) to what (`subject`), why, and the result."""
    told = {name: value for name, value in more.items() if value is not None}
    return {
        "_id": uuid4().hex,
        "at": utc_now(),
        "by": by,
        "why": why or "",
        "action": action,
        "subject": subject,
        "outcome": outcome,
        **told,
    }


@dataclass(slots=True)
class Flood:
    """Lets some events of each minute through, and counts the others. Pure: the caller knows the time."""

    limit: int
    _minute: int = -1
    _passed: int = 0
    suppressed: int = 0

    def passes(self, seconds: float) -> bool:
        """Return whether an event at this time is one of those that are let through."""
        if (minute := int(seconds // 60)) != self._minute:
            self._minute, self._passed = minute, 0
        if self._passed < self.limit:
            self._passed += 1
            return True
        self.suppressed += 1
        return False

    def take_suppressed(self) -> int:
        """Return the number of events that were not let through since the last call."""
        taken, self.suppressed = self.suppressed, 0
        return taken


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about one request."""

    caller: Principal | None
    permission: Permission | None
    method: str
    resource: str
    outcome: str
    reason: str | None
    address: str
    request_id: str
    subject: str

    def line(self) -> dict[str, object]:
        """Return the fields of the line in the log."""
        caller = self.caller
        named = {"subject": caller.id, "via": caller.via, "auth": caller.method} if caller else {"subject": "unknown"}
        fields: dict[str, object] = {
            **named,
            "permission": self.permission and str(self.permission),
            "resource": f"{self.method} {self.resource}",
            "outcome": self.outcome,
            "reason": self.reason,
            "address": self.address,
            "request_id": self.request_id,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def entry(self) -> Document:
        """Return the entry for `append`."""
        line = self.line()
        return new_entry(
            by=str(line["subject"]),
            why=self.reason,
            action=str(line.get("permission", "none")),
            subject=self.subject,
            outcome=self.outcome,
            **{name: line.get(name) for name in ("via", "auth", "resource", "address")},
            requestId=self.request_id,
        )


class AuditLog:
    """The audit log of one process."""

    def __init__(
        self, database: Database | None, trusted_proxies: Sequence[Network] = (), *, records_writes: bool = True
    ) -> None:
        """Without a database, decisions are only logged; `records_writes` is False if the routes record their own."""
        self._database = database
        self._trusted_proxies = trusted_proxies
        self._records_writes = records_writes
        self._flood = Flood(REFUSALS_PER_MINUTE)
        self._groups: GroupCommit[Document, Entry] = GroupCommit(self._append_group, limit=GROUP_LIMIT)

    async def decided(self, scope: Scope, caller: Principal | None, permission: Permission | None, status: int) -> None:
        """Record the answer to a request if it is one of those that are recorded; it must not fail because of this."""
        refused = status in _REFUSED
        if not refused and not _is_staff_write(scope["method"], caller, permission):
            return
        decision = self._decision(scope, caller, permission, str(status))
        if refused:
            _refusals.labels(str(status)).inc()
            _log.warning("audit: refused", **decision.line())
            if caller is not None and self._flood.passes(time.monotonic()):
                await self._try_to_append(decision.entry())
            return
        _log.info("audit: write", **decision.line())
        if self._records_writes:
            await self._try_to_append(decision.entry())

    async def credentials_read(self, scope: Scope, caller: Principal, permission: Permission, subject: str) -> None:
        """Record a read of credentials, before they are shown. Raises AuditUnavailableError if that is not possible."""
        decision = self._decision(scope, caller, permission, "shown", subject)
        if self._database is not None:
            try:
                await self._groups.submit(decision.entry())
            except (PyMongoError, AuditUnavailableError) as error:
                _entries.labels("failed").inc()
                raise AuditUnavailableError(first_line(error)) from error
            _entries.labels("written").inc()
        _log.info("audit: credentials read", about=subject, **decision.line())

    async def announce(self) -> None:
        """Log the newest hash every hour, and write the sum of the refusals that have no entry."""
        await run_periodically(self._announce, every=ANNOUNCE_SECONDS, name="audit log")

    async def _announce(self) -> None:
        if self._database is None:
            return
        if suppressed := self._flood.take_suppressed():
            outcome = f"{suppressed} more refusals, which have no entries of their own"
            await append(
                self._database, new_entry(by="system", why=None, action="refusals", subject="process", outcome=outcome)
            )
        newest = await self._database[COLLECTION].find_one({SEQ: {"$exists": True}}, sort=[(SEQ, DESCENDING)])
        if newest is not None:
            _log.info("audit: newest entry", database=self._database.name, seq=newest[SEQ], hash=newest[HASH])

    async def _append_group(self, entries: Sequence[Document]) -> Sequence[Entry]:
        if self._database is None:
            raise AuditUnavailableError("this process has no database")
        return await append_all(self._database, entries)

    async def _try_to_append(self, entry: Document) -> None:
        if self._database is None:
            return
        try:
            await self._groups.submit(entry)
        except (PyMongoError, AuditUnavailableError) as error:
            # The line above has what the entry would have had.
            _entries.labels("failed").inc()
            _log.error("audit: entry not written", request_id=entry.get("requestId"), error=first_line(error))
        else:
            _entries.labels("written").inc()

    def _decision(
        self,
        scope: Scope,
        caller: Principal | None,
        permission: Permission | None,
        outcome: str,
        subject: str | None = None,
    ) -> Decision:
        route = getattr(scope.get("route"), "path", "unknown")
        parameters = scope.get("path_params") or {}
        named = subject or next((str(value)[:200] for value in parameters.values()), route)
        return Decision(
            caller=caller,
            permission=permission,
            method=scope["method"][:10],
            resource=route,
            outcome=outcome,
            reason=reason_of(scope) if caller else None,
            address=client_address(scope, self._trusted_proxies)[:64],
            request_id=current_request_id(),
            subject=named,
        )


def _is_staff_write(method: str, caller: Principal | None, permission: Permission | None) -> bool:
    if method in SAFE_METHODS or permission is None or permission in UNRECORDED:
        return False
    return caller is not None and caller.reaches_all(permission)


def reason_of(scope: Scope) -> str | None:
    """Return the reason that a request gives in its header, None if it has none of 1 to 500 printable characters."""
    given = Headers(scope=scope).get(REASON_HEADER)
    if given is None:
        return None
    try:
        text = given.encode("latin-1").decode()
    except UnicodeError:
        text = given
    text = text.strip()
    return text if 0 < len(text) <= MAX_REASON and text.isprintable() else None


def audit_log_of(scope: Scope) -> AuditLog:
    """Return the audit log of the process that serves a request."""
    log: AuditLog | None = scope.get(_SCOPE_LOG)
    return log or _LINES_ONLY


_LINES_ONLY = AuditLog(None)


class Audited:
    """Records what was decided about each request."""

    def __init__(self, app: ASGIApp, audit: AuditLog) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[_SCOPE_LOG] = self._audit
        started = False

        async def record_and_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                await self._record(scope, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, record_and_send)
        except Exception:
            # The answer to a defect comes from further outside.
            if not started:
                await self._record(scope, HTTPStatus.INTERNAL_SERVER_ERROR.value)
            raise

    async def _record(self, scope: Scope, status: int) -> None:
        if scope["method"] in SAFE_METHODS and status not in _REFUSED:
            return
        endpoint = scope.get("endpoint")
        permission = permission_of(endpoint) if endpoint is not None else None
        await self._audit.decided(scope, caller_of(scope), permission, status)

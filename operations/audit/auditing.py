"""Runs an audit: over orders, products, slots, addresses, locks, funds and audit logs, then again over suspicions."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from operations.audit import holds, orders, paused, servers, slots, stock
from operations.audit.chains import Chains
from operations.audit.journal import Journal
from operations.audit.ledger import LedgerPass
from operations.audit.order_records import OrderRecords
from operations.audit.paused import PausesByService
from operations.audit.report import Report, Subject, Violation
from operations.audit.service_databases import PAGE, ServiceDatabases
from operations.audit.stock import StockRecords
from operations.dead_letters.lookup import DeadLetterLookup
from operations.dead_letters.status import DEAD, REPLAYING
from operations.errors import UnfinishedRestoreError, UnreachableError
from operations.reading.broker import RETRY_QUEUES, count_messages
from operations.reading.connection import open_mongodb
from operations.reading.order_collections import KINDS
from operations.reading.reachability import amqp_missing
from shared.clock import Clock, utc_now
from shared.money import to_json_number
from shared.services import CONSOLE
from shared.topology import DEAD_LETTERS, INBOXES, OPERATIONS_INBOX
from shared.unfinished_restore import unfinished_restore

MOST_LISTED = 10_000
"""The most suspicions that are checked again and listed: enough to start with."""

CONFIRM_AFTER_SECONDS = 1.0

OTHER_RECORDS = (
    "products",
    "slots",
    "assignments",
    "holds",
    "addresses",
    "locks",
    "accounts",
    "entries",
    "fundPayments",
    "transfers",
    "actions",
)

Progress = Callable[[int], None]
"""Receives the number of order ids judged since the last call."""

OnOrder = Callable[[OrderRecords], None]
"""Receives everything that is recorded about each order that is judged."""

Pace = Callable[[], Awaitable[None]]
"""Called after each page of orders; it may wait, so that the audit takes less of the database's time."""


async def full_speed() -> None:
    """Let the next page follow at once."""


async def audit(
    mongodb_url: str,
    amqp_url: str,
    database_prefix: str = "ordersaga",
    *,
    on_progress: Progress = lambda _: None,
    on_order: OnOrder = lambda _: None,
    pace: Pace = full_speed,
    page: int = PAGE,
    confirm_after: float = CONFIRM_AFTER_SECONDS,
    clock: Clock = utc_now,
) -> Report:
    """Audit a stack, which may process orders meanwhile.

    `clock` tells the time at which to judge what is late, such as that of a backup which was restored.
    Only violations that are found twice are reported: suspicions are checked again after `confirm_after` seconds.
    Raises UnreachableError when a server does not answer, UnfinishedRestoreError if there is only a part of a backup.
    """
    async with open_mongodb(mongodb_url, purpose="the audit", name="ordersaga-audit") as client:
        if reason := await unfinished_restore(client[CONSOLE.database_in(database_prefix)]):
            raise UnfinishedRestoreError(reason)
        await _require_broker(amqp_url)
        databases = ServiceDatabases(client, database_prefix, page)
        ledger = LedgerPass(Journal(client, database_prefix, page))
        letters = DeadLetterLookup(client, database_prefix)
        chains = Chains(client, database_prefix)
        told = (on_progress, on_order, pace)
        return await _Audit(databases, ledger, chains, letters, amqp_url, *told, confirm_after, clock).run()


async def _require_broker(amqp_url: str) -> None:
    """Fail at once, not after reading a million orders."""
    if missing := await amqp_missing(amqp_url):
        raise UnreachableError(f"RabbitMQ {missing}")


@dataclass(slots=True)
class _Audit:
    """One audit, and its findings so far."""

    databases: ServiceDatabases
    ledger: LedgerPass
    chains: Chains
    letters: DeadLetterLookup
    amqp_url: str
    on_progress: Progress
    on_order: OnOrder
    pace: Pace
    confirm_after: float
    clock: Clock
    report: Report = field(default_factory=Report)
    checked: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys((*KINDS, *OTHER_RECORDS), 0)))
    statuses: Counter[str] = field(default_factory=Counter)
    activity: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    paid_through: Counter[str] = field(default_factory=Counter)
    unknown_returned: int = 0
    archived: dict[str, int] = field(default_factory=dict)
    locks_held: int = 0
    lingering_moves: int = 0
    booked: int = 0
    pauses: PausesByService = field(default_factory=dict)
    waiting_for_paused: int = 0
    suspicions: dict[tuple[str, str, str], Violation] = field(default_factory=dict)
    stalled: dict[str, OrderRecords] = field(default_factory=dict)
    assignments_suspected: bool = False
    holds_suspected: bool = False
    servers_suspected: bool = False
    funds_suspected: bool = False
    chains_suspected: bool = False

    async def run(self) -> Report:
        started = time.monotonic()
        self.pauses = await self.databases.pauses()
        async for page in self.databases.orders():
            self._judge_orders(page)
            self.on_progress(len(page))
            await self.pace()
        async for item in self.databases.stock():
            self._judge_stock(item)
        await self._judge_assignments()
        await self._judge_holds()
        await self._judge_servers()
        await self._judge_funds()
        await self._judge_chains()
        self.archived = await self.databases.archived_orders()
        messages = await count_messages(self.amqp_url)
        recorded = await self.letters.count()  # after the broker: letters move from there to here
        lost = await self._without_message(self.stalled, messages)
        self._suspect(orders.lost(self.stalled[order_id]) for order_id in lost)
        if self.suspicions:
            await asyncio.sleep(self.confirm_after)
            self.report.violations = await self._confirmed()
        self._conclude(messages, recorded, time.monotonic() - started)
        return self.report

    async def _without_message(self, order_ids: Iterable[str], messages: Mapping[str, int | None]) -> list[str]:
        """Return the orders without any message: none on the broker, and no dead letter."""
        # Notices for operations do not move any order.
        quiet = not any(count for name, count in messages.items() if name != OPERATIONS_INBOX)
        asked = list(order_ids)
        if not asked or not quiet or await self.letters.has_open_without_order():
            return []
        explained = await self.letters.orders(asked)
        return [order_id for order_id in asked if order_id not in explained]

    def _judge_orders(self, page: Iterable[OrderRecords]) -> None:
        now = self.clock()
        for records in page:
            self._count(records, now)
            self.on_order(records)
            found, excused = paused.judge(records, now, self.pauses)
            self.waiting_for_paused += bool(excused)
            self._suspect(found)

    def _count(self, records: OrderRecords, now: datetime) -> None:
        self.checked.update(records.kinds)
        if (kind := orders.paid_through(records)) is not None:
            self.paid_through[kind] += 1
        self.unknown_returned += orders.is_returned(records)
        if records.job is not None:
            self.jobs[str(records.job.get("state"))] += 1
        if records.order is not None:
            self.statuses[str(records.order.get("status"))] += 1
            in_flight, stalled = orders.activity(records, now)
            self.activity["inFlight"] += in_flight
            self.activity["stalled"] += stalled
            if stalled and paused.is_stalled(records, now, self.pauses) and len(self.stalled) < MOST_LISTED:
                self.stalled[records.order_id] = records

    def _judge_stock(self, item: StockRecords) -> None:
        now = self.clock()
        self.checked["slots" if item.is_slot else "products"] += item.product is not None
        if item.is_slot:
            self.booked += slots.load(item.product or {}) or 0
        self.lingering_moves += stock.lingering(item, now)
        self._suspect(_violations(item, now))

    async def _judge_assignments(self) -> None:
        counted: Counter[str] = Counter()
        async for violation in self._assignment_violations(counted):
            self.assignments_suspected = True
            self._suspect([violation])
        self.checked.update(counted)

    async def _assignment_violations(self, counted: Counter[str]) -> AsyncIterator[Violation]:
        """Yield the violations of all slots that other systems have booked, and count these."""
        async for page in self.databases.assignments():
            counted["assignments"] += len(page)
            now = self.clock()
            for assignment in page:
                for violation in slots.judge_assignment(assignment, now):
                    yield violation
        for duplicate in await self.databases.orders_of_two_assignments():
            yield slots.two_assignments(*duplicate)

    async def _judge_holds(self) -> None:
        counted: Counter[str] = Counter()
        async for violation in self._hold_violations(counted):
            self.holds_suspected = True
            self._suspect([violation])
        self.checked["holds"] = counted["holds"]

    async def _hold_violations(self, counted: Counter[str]) -> AsyncIterator[Violation]:
        async for page in self.databases.holds():
            counted["holds"] += len(page)
            now = self.clock()
            for hold in page:
                for violation in holds.judge(hold, now):
                    yield violation

    async def _judge_servers(self) -> None:
        counted: Counter[str] = Counter()
        async for violation in self._server_violations(counted):
            self.servers_suspected = True
            self._suspect([violation])
        self.checked["addresses"], self.locks_held = counted["addresses"], counted["held"]
        self.checked["locks"] = await self.databases.count_locks()

    async def _server_violations(self, counted: Counter[str]) -> AsyncIterator[Violation]:
        """Yield the violations of all addresses and locks, and count those that belong to an order."""
        async for addresses in self.databases.addresses():
            counted["addresses"] += len(addresses)
            for address in addresses:
                for violation in servers.judge_address(address):
                    yield violation
        async for locks in self.databases.locks():
            counted["held"] += len(locks)
            now = self.clock()
            for lock in locks:
                for violation in servers.judge_lock(lock, now):
                    yield violation
        for violation in servers.archived_addresses(*await self.databases.archived_addresses()):
            yield violation
        for duplicate in await self.databases.shared_addresses():
            yield servers.shared_address(*duplicate)
        for duplicate in await self.databases.orders_of_two_servers():
            yield servers.two_servers(*duplicate)

    async def _judge_funds(self) -> None:
        async for violation in self.ledger.violations():
            self.funds_suspected = True
            self._suspect([violation])
        self.checked.update(self.ledger.counted)

    async def _judge_chains(self) -> None:
        counted: Counter[str] = Counter()
        async for violation in self.chains.violations(counted):
            self.chains_suspected = True
            self._suspect([violation])
        self.checked.update(counted)

    def _suspect(self, violations: Iterable[Violation]) -> None:
        for violation in violations:
            if len(self.suspicions) < MOST_LISTED:
                self.suspicions[violation.key] = violation
            else:
                self.report.unlisted += 1

    async def _confirmed(self) -> list[Violation]:
        """Return the suspicions that are found again, as they are now."""
        found = await self._orders_again(self._suspected("order"))
        found += await self._stock_again([*self._suspected("product"), *self._suspected("slot")])
        if self.assignments_suspected:
            found += [v async for v in self._assignment_violations(Counter()) if v.key in self.suspicions]
        if self.holds_suspected:
            found += [v async for v in self._hold_violations(Counter()) if v.key in self.suspicions]
        if self.servers_suspected:
            found += [v async for v in self._server_violations(Counter()) if v.key in self.suspicions]
        if self.funds_suspected:
            found += [v async for v in LedgerPass(self.ledger.journal).violations() if v.key in self.suspicions]
        if self.chains_suspected:
            found += [v async for v in self.chains.violations(Counter()) if v.key in self.suspicions]
        return sorted((v for v in found if v.key in self.suspicions), key=lambda v: (v.invariant, v.subject, v.id))

    def _suspected(self, subject: Subject) -> list[str]:
        return list(dict.fromkeys(v.id for v in self.suspicions.values() if v.subject == subject))

    async def _orders_again(self, order_ids: list[str]) -> list[Violation]:
        if not order_ids:
            return []
        found: list[Violation] = []
        self.pauses = await self.databases.pauses()  # one may have begun meanwhile
        unexplained = set(await self._without_message(order_ids, await count_messages(self.amqp_url)))
        for start in range(0, len(order_ids), PAGE):
            page = await self.databases.orders_of(order_ids[start : start + PAGE])
            now = self.clock()
            for records in page:
                found += paused.judge(records, now, self.pauses)[0]
                if records.order_id in unexplained and paused.is_stalled(records, now, self.pauses):
                    found.append(orders.lost(records))
        return found

    async def _stock_again(self, ids: list[str]) -> list[Violation]:
        if not ids:
            return []
        now = self.clock()
        return [violation async for item in self.databases.stock(ids) for violation in _violations(item, now)]

    def _conclude(self, messages: dict[str, int | None], recorded: dict[str, int], seconds: float) -> None:
        self.report.checked = dict(self.checked)
        self.report.information = {
            "orders": dict(sorted(self.statuses.items())),
            "inFlight": self.activity["inFlight"],
            "stalled": self.activity["stalled"],
            "waitingForPaused": self.waiting_for_paused,
            "archivedOrders": self.archived,
            "unknownOrdersReturned": self.unknown_returned,
            "lingeringMarks": self.lingering_moves,
            "bookedInSlots": to_json_number(self.booked),
            "jobs": dict(sorted(self.jobs.items())),
            "locksHeld": self.locks_held,
            "paidThrough": dict(sorted(self.paid_through.items())),
            "systemBalances": self.ledger.system_balances_as_json(),
            "deadLetters": (messages[DEAD_LETTERS] or 0) + recorded[DEAD] + recorded[REPLAYING],
            "deadLettersRecorded": recorded,
            "waitingForRetry": {name: messages[name] for name in RETRY_QUEUES if name in messages},
            "inboxes": {name: messages[name] for name in INBOXES},
            "seconds": round(seconds, 3),
        }


def _violations(item: StockRecords, now: datetime) -> list[Violation]:
    return slots.judge(item, now) if item.is_slot else stock.judge(item, now)

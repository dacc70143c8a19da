"""One audit: over orders, products, slots, addresses, locks and the books of funds, then again what seemed wrong."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from operations.audit import orders, servers, slots, stock
from operations.audit.journal import Journal
from operations.audit.ledger import LedgerPass
from operations.audit.order_records import OrderRecords
from operations.audit.report import Report, Subject, Violation
from operations.audit.service_databases import PAGE, ServiceDatabases
from operations.audit.stock import Shelf
from operations.dead_letters.recorded import RecordedLetters
from operations.dead_letters.status import DEAD, REPLAYING
from operations.errors import UnreachableError
from operations.reading.broker import count_messages
from operations.reading.connection import open_mongodb
from operations.reading.reachability import amqp_missing
from shared.money import to_json_number
from shared.topology import DEAD_LETTERS, INBOXES, OPERATIONS_INBOX, RETRY_LADDER

MOST_LISTED = 10_000
"""Suspicions that are looked at twice and listed. Whoever has more has enough to begin with."""

SECOND_LOOK_AFTER_SECONDS = 1.0

RECORDS = ("orders", "reservations", "payments", "charges", "jobs", "intents")
"""What may be recorded under an order's id, in the order in which a case has them."""

OTHER_RECORDS = (
    "products",
    "slots",
    "assignments",
    "addresses",
    "locks",
    "accounts",
    "entries",
    "fundPayments",
    "transfers",
)

Progress = Callable[[int], None]
"""Hears how many ids have been judged."""


async def audit(
    mongodb_url: str,
    amqp_url: str,
    database_prefix: str = "ordersaga",
    *,
    on_progress: Progress = lambda _: None,
    page: int = PAGE,
    second_look_after: float = SECOND_LOOK_AFTER_SECONDS,
) -> Report:
    """Check the books of a stack, which may be at work meanwhile.

    Only what is found twice is reported; the second look comes `second_look_after` seconds after the first is over.
    Raises UnreachableError when a server does not answer.
    """
    async with open_mongodb(mongodb_url, purpose="the audit", name="ordersaga-audit") as client:
        await _require_broker(amqp_url)
        books, ledger = (
            ServiceDatabases(client, database_prefix, page),
            LedgerPass(Journal(client, database_prefix, page)),
        )
        letters = RecordedLetters(client, database_prefix)
        return await _Audit(books, ledger, letters, amqp_url, on_progress, second_look_after).run()


async def _require_broker(amqp_url: str) -> None:
    """Fail at once, and not after a look at a million orders."""
    if missing := await amqp_missing(amqp_url):
        raise UnreachableError(f"RabbitMQ {missing}")


@dataclass(slots=True)
class _Audit:
    """What one audit has found out so far."""

    books: ServiceDatabases
    ledger: LedgerPass
    letters: RecordedLetters
    amqp_url: str
    on_progress: Progress
    second_look_after: float
    report: Report = field(default_factory=Report)
    checked: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys((*RECORDS, *OTHER_RECORDS), 0)))
    statuses: Counter[str] = field(default_factory=Counter)
    standings: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    paid_through: Counter[str] = field(default_factory=Counter)
    unknown_returned: int = 0
    locks_held: int = 0
    booked: int = 0
    suspicions: dict[tuple[str, str, str], Violation] = field(default_factory=dict)
    stalled: dict[str, OrderRecords] = field(default_factory=dict)
    assignments_suspected: bool = False
    servers_suspected: bool = False
    funds_suspected: bool = False

    async def run(self) -> Report:
        started = time.monotonic()
        async for page in self.books.cases():
            self._look_at(page)
            self.on_progress(len(page))
        async for shelf in self.books.shelves():
            self._look_at_shelf(shelf)
        await self._look_at_assignments()
        await self._look_at_servers()
        await self._look_at_funds()
        messages = await count_messages(self.amqp_url)
        recorded = await self.letters.count()  # after the broker's: letters go from there to here
        lost = await self._without_message(self.stalled, messages)
        self._suspect(orders.lost(self.stalled[order_id]) for order_id in lost)
        if self.suspicions:
            await asyncio.sleep(self.second_look_after)
            self.report.violations = await self._look_again()
        self._conclude(messages, recorded, time.monotonic() - started)
        return self.report

    async def _without_message(self, order_ids: Iterable[str], messages: Mapping[str, int | None]) -> list[str]:
        """Those of the orders that no message anywhere can be about: none on the broker, and no dead letter."""
        # What operations has not read yet carries no order on.
        quiet = not any(count for name, count in messages.items() if name != OPERATIONS_INBOX)
        asked = list(order_ids)
        if not asked or not quiet or await self.letters.may_be_anybodys():
            return []
        explained = await self.letters.orders(asked)
        return [order_id for order_id in asked if order_id not in explained]

    def _look_at(self, cases: Iterable[OrderRecords]) -> None:
        now = datetime.now(UTC)
        for case in cases:
            self._count(case, now)
            if found := orders.judge(case, now):
                self._suspect(found)

    def _count(self, case: OrderRecords, now: datetime) -> None:
        for name, record in zip(RECORDS, case[1 : 1 + len(RECORDS)], strict=True):
            self.checked[name] += record is not None
        if (kind := orders.paid_through(case)) is not None:
            self.paid_through[kind] += 1
        self.unknown_returned += orders.is_returned(case)
        if case.job is not None:
            self.jobs[str(case.job.get("state"))] += 1
        if case.order is not None:
            self.statuses[str(case.order.get("status"))] += 1
            in_flight, stalled = orders.standing(case, now)
            self.standings["inFlight"] += in_flight
            self.standings["stalled"] += stalled
            if stalled and len(self.stalled) < MOST_LISTED:
                self.stalled[case.order_id] = case

    def _look_at_shelf(self, shelf: Shelf) -> None:
        now = datetime.now(UTC)
        self.checked["slots" if shelf.is_slot else "products"] += shelf.product is not None
        if shelf.is_slot:
            self.booked += slots.load(shelf.product or {}) or 0
        self.marks["lingering"] += stock.lingering(shelf, now)
        self._suspect(_judge(shelf, now))

    async def _look_at_assignments(self) -> None:
        counted: Counter[str] = Counter()
        async for violation in self._wrong_assignments(counted):
            self.assignments_suspected = True
            self._suspect([violation])
        self.checked.update(counted)

    async def _wrong_assignments(self, counted: Counter[str]) -> AsyncIterator[Violation]:
        """What is wrong with slots that other systems have booked, over all of them, counting them."""
        async for page in self.books.assignments():
            counted["assignments"] += len(page)
            now = datetime.now(UTC)
            for assigned in page:
                for violation in slots.judge_assignment(assigned, now):
                    yield violation
        for shared in await self.books.orders_of_two_assignments():
            yield slots.two_assignments(*shared)

    async def _look_at_servers(self) -> None:
        counted: Counter[str] = Counter()
        async for violation in self._wrong_servers(counted):
            self.servers_suspected = True
            self._suspect([violation])
        self.checked["addresses"], self.locks_held = counted["addresses"], counted["held"]
        self.checked["locks"] = await self.books.count_locks()

    async def _wrong_servers(self, counted: Counter[str]) -> AsyncIterator[Violation]:
        """What is wrong with addresses and locks, over all of them, counting those that belong to an order."""
        async for addresses in self.books.addresses():
            counted["addresses"] += len(addresses)
            for address in addresses:
                for violation in servers.judge_address(address):
                    yield violation
        async for locks in self.books.locks():
            counted["held"] += len(locks)
            now = datetime.now(UTC)
            for lock in locks:
                for violation in servers.judge_lock(lock, now):
                    yield violation
        for shared in await self.books.shared_addresses():
            yield servers.shared_address(*shared)
        for shared in await self.books.orders_of_two_servers():
            yield servers.two_servers(*shared)

    async def _look_at_funds(self) -> None:
        async for violation in self.ledger.wrong():
            self.funds_suspected = True
            self._suspect([violation])
        self.checked.update(self.ledger.counted)

    def _suspect(self, violations: Iterable[Violation]) -> None:
        for violation in violations:
            if len(self.suspicions) < MOST_LISTED:
                self.suspicions[violation.key] = violation
            else:
                self.report.unlisted += 1

    async def _look_again(self) -> list[Violation]:
        """Those suspicions that are found again, as they are found now."""
        found = await self._orders_again(self._suspected("order"))
        found += await self._shelves_again([*self._suspected("product"), *self._suspected("slot")])
        if self.assignments_suspected:
            found += [v async for v in self._wrong_assignments(Counter()) if v.key in self.suspicions]
        if self.servers_suspected:
            found += [v async for v in self._wrong_servers(Counter()) if v.key in self.suspicions]
        if self.funds_suspected:
            found += [v async for v in LedgerPass(self.ledger.journal).wrong() if v.key in self.suspicions]
        return sorted((v for v in found if v.key in self.suspicions), key=lambda v: (v.invariant, v.subject, v.id))

    def _suspected(self, subject: Subject) -> list[str]:
        return list(dict.fromkeys(v.id for v in self.suspicions.values() if v.subject == subject))

    async def _orders_again(self, order_ids: list[str]) -> list[Violation]:
        if not order_ids:
            return []
        found: list[Violation] = []
        unexplained = set(await self._without_message(order_ids, await count_messages(self.amqp_url)))
        for start in range(0, len(order_ids), PAGE):
            cases = await self.books.cases_of(order_ids[start : start + PAGE])
            now = datetime.now(UTC)
            for case in cases:
                found += orders.judge(case, now)
                if case.order_id in unexplained and orders.standing(case, now).stalled:
                    found.append(orders.lost(case))
        return found

    async def _shelves_again(self, ids: list[str]) -> list[Violation]:
        if not ids:
            return []
        now = datetime.now(UTC)
        return [v async for shelf in self.books.shelves(ids) for v in _judge(shelf, now)]

    def _conclude(self, messages: dict[str, int | None], recorded: dict[str, int], seconds: float) -> None:
        self.report.checked = dict(self.checked)
        self.report.information = {
            "orders": dict(sorted(self.statuses.items())),
            "inFlight": self.standings["inFlight"],
            "stalled": self.standings["stalled"],
            "unknownOrdersReturned": self.unknown_returned,
            "lingeringMarks": self.marks["lingering"],
            "bookedInSlots": to_json_number(self.booked),
            "jobs": dict(sorted(self.jobs.items())),
            "locksHeld": self.locks_held,
            "paidThrough": dict(sorted(self.paid_through.items())),
            "systemBalances": self.ledger.system_balances_as_json(),
            "deadLetters": (messages[DEAD_LETTERS] or 0) + recorded[DEAD] + recorded[REPLAYING],
            "deadLettersRecorded": recorded,
            "waitingForRetry": {delay.name: messages[delay.name] for delay in RETRY_LADDER},
            "inboxes": {name: messages[name] for name in INBOXES},
            "seconds": round(seconds, 3),
        }


def _judge(shelf: Shelf, now: datetime) -> list[Violation]:
    return slots.judge(shelf, now) if shelf.is_slot else stock.judge(shelf, now)

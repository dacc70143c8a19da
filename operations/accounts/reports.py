"""Reports over the whole journal, each from one snapshot: the trial balance, and the income of a period.

MongoDB adds up, on disk if necessary: the reports have a line per group of accounts or per operation, however many
accounts there are.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession

from operations.reading.chart_of_accounts import Document
from operations.reading.snapshots import Snapshots
from shared.services import PAYMENT

REVENUE, FEES = "revenue", "bank-fees"

Stages = list[Mapping[str, Any]]


class TrialLine(NamedTuple):
    """The accounts of one kind, or one of the system's, in one currency.

    `debit` and `credit` are the sums of the balances on either side, in minor units.
    """

    currency: str
    group: str
    accounts: int
    debit: int
    credit: int


class TrialBalance(NamedTuple):
    """The lines by currency and group."""

    lines: Sequence[TrialLine]

    def totals(self) -> dict[str, tuple[int, int]]:
        """Return the sums of debits and of credits by currency."""
        found: dict[str, tuple[int, int]] = {}
        for line in self.lines:
            debit, credit = found.get(line.currency, (0, 0))
            found[line.currency] = debit + line.debit, credit + line.credit
        return found

    @property
    def balances(self) -> bool:
        """True if in each currency the debits equal the credits."""
        return all(debit == credit for debit, credit in self.totals().values())


class IncomeLine(NamedTuple):
    """What the entries of one operation earned and cost in one currency, in minor units."""

    currency: str
    operation: str
    entries: int
    revenue: int
    fees: int

    @property
    def net(self) -> int:
        """Revenue less fees."""
        return self.revenue - self.fees


class Income(NamedTuple):
    """The lines of a period by currency and operation."""

    lines: Sequence[IncomeLine]

    def totals(self) -> list[IncomeLine]:
        """Return the sum of each currency, as a line of all operations."""
        return [_sum(currency, self.of(currency)) for currency in dict.fromkeys(line.currency for line in self.lines)]

    def of(self, currency: str) -> list[IncomeLine]:
        """Return the lines of one currency."""
        return [line for line in self.lines if line.currency == currency]


class Reports:
    """The reports of one stack. Every method raises UnreachableError when MongoDB does not answer."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str) -> None:
        self._snapshots = Snapshots(client)
        self._entries = client[PAYMENT.database_in(database_prefix)]["entries"]

    async def trial_balance(self, until: datetime | None = None) -> TrialBalance:
        """Return the trial balance as of now, or of the time before which entries count."""
        rows = await self._sums([*_in_period(None, until), *_PER_GROUP])
        return TrialBalance([TrialLine(**row) for row in rows])

    async def income(self, since: datetime | None, until: datetime | None) -> Income:
        """Return the income from `since` until before `until`."""
        rows = await self._sums([*_in_period(since, until), *_PER_OPERATION])
        return Income([IncomeLine(**row) for row in rows])

    async def _sums(self, pipeline: Stages) -> list[Document]:
        async def read(session: AsyncClientSession) -> list[Document]:
            rows: AsyncIterator[Document] = await self._entries.aggregate(pipeline, session=session, allowDiskUse=True)
            return [row.pop("_id") | row async for row in rows]

        return await self._snapshots.read(read)


def _in_period(since: datetime | None, until: datetime | None) -> Stages:
    at = {name: value for name, value in (("$gte", since), ("$lt", until)) if value is not None}
    return [{"$match": {"at": at}}] if at else []


_PARTS: Document = {"$split": ["$account", ":"]}
_GROUP = {
    "$cond": [
        {"$eq": [{"$arrayElemAt": [_PARTS, 0]}, "system"]},
        {"$concat": ["system:", {"$arrayElemAt": [_PARTS, 1]}]},
        {"$arrayElemAt": [_PARTS, 0]},
    ]
}
_BY_ID: Document = {"$sort": {"_id": 1}}

_PER_GROUP: Stages = [
    {"$unwind": "$postings"},
    {
        "$group": {
            "_id": {"currency": "$currency", "account": "$postings.account"},
            "posted": {"$sum": "$postings.amount"},
        }
    },
    {"$project": {"currency": "$_id.currency", "account": "$_id.account", "posted": True}},
    {
        "$group": {
            "_id": {"currency": "$currency", "group": _GROUP},
            "accounts": {"$sum": 1},
            "debit": {"$sum": {"$max": ["$posted", 0]}},
            "credit": {"$sum": {"$max": [{"$multiply": ["$posted", -1]}, 0]}},
        }
    },
    _BY_ID,
]


def _posted_to(name: str, sign: int) -> Document:
    """Return an expression for what an entry adds to an account of the system, on the side that increases it."""
    is_it = {"$eq": ["$$posting.account", {"$concat": [f"system:{name}:", "$currency"]}]}
    amounts = {
        "$map": {
            "input": {"$filter": {"input": "$postings", "as": "posting", "cond": is_it}},
            "as": "posting",
            "in": {"$multiply": ["$$posting.amount", sign]},
        }
    }
    return {"$sum": amounts}


_PER_OPERATION: Stages = [
    {"$match": {"postings.account": {"$regex": f"^system:({REVENUE}|{FEES}):"}}},
    {
        "$project": {
            "currency": True,
            "operation": True,
            "revenue": _posted_to(REVENUE, -1),
            "fees": _posted_to(FEES, 1),
        }
    },
    {
        "$group": {
            "_id": {"currency": "$currency", "operation": "$operation"},
            "entries": {"$sum": 1},
            "revenue": {"$sum": "$revenue"},
            "fees": {"$sum": "$fees"},
        }
    },
    _BY_ID,
]


def _sum(currency: str, lines: Iterable[IncomeLine]) -> IncomeLine:
    found = list(lines)
    return IncomeLine(
        currency,
        "",
        sum(line.entries for line in found),
        sum(line.revenue for line in found),
        sum(line.fees for line in found),
    )

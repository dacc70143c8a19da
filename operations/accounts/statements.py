"""Reads accounts and their movements, each time from one snapshot."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession

from operations.reading.balances import Balance, balance_of, balances
from operations.reading.chart_of_accounts import Document, is_amount, side
from operations.reading.snapshots import Snapshots
from shared.services import PAYMENT


class Movement(NamedTuple):
    """A posting of an account: its effect on the balance, and the balance after it."""

    at: datetime
    entry_id: str
    operation: str
    effect: int
    balance: int
    description: str | None
    reference: Mapping[str, Any]
    reverses: str | None


class Statement(NamedTuple):
    """The newest movements of a period, oldest first, with the balance before the first and after the last one.

    `earlier` says whether the period has more movements before the first.
    """

    account_id: str
    currency: str | None
    opening: int
    closing: int
    movements: Sequence[Movement]
    earlier: bool


class AccountOverview(NamedTuple):
    """An account, the sum of its postings, and its last movements."""

    balance: Balance
    statement: Statement


class AccountStatements:
    """The accounts of one stack. Every method raises UnreachableError when MongoDB does not answer."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str) -> None:
        self._snapshots = Snapshots(client)
        self._database = client[PAYMENT.database_in(database_prefix)]

    async def overview(self, account_id: str, last: int) -> AccountOverview | None:
        """Return the account with its last movements, None if it has neither a document nor postings."""

        async def read(session: AsyncClientSession) -> AccountOverview | None:
            balance = await balance_of(self._database, session, account_id)
            if balance is None:
                return None
            return AccountOverview(balance, await self._statement(balance, None, None, last, session))

        return await self._snapshots.read(read)

    async def statement(
        self, account_id: str, since: datetime | None, until: datetime | None, limit: int
    ) -> Statement | None:
        """Return the movements from `since` until before `until`, None if there is no such account."""

        async def read(session: AsyncClientSession) -> Statement | None:
            balance = await balance_of(self._database, session, account_id)
            return await self._statement(balance, since, until, limit, session) if balance else None

        return await self._snapshots.read(read)

    def differing(self, account_id: str | None = None) -> AsyncIterator[Balance]:
        """Yield the accounts, or this one, whose balance differs from the sum of the postings."""

        async def read(session: AsyncClientSession) -> AsyncIterator[Balance]:
            among = None if account_id is None else [account_id]
            async for balance in balances(self._database, session, among):
                if not balance.agrees:
                    yield balance

        return self._snapshots.stream(read)

    async def exists(self, account_id: str) -> bool:
        """Return whether the account has a document or postings."""
        return await self._snapshots.read(lambda session: balance_of(self._database, session, account_id)) is not None

    async def _statement(
        self,
        balance: Balance,
        since: datetime | None,
        until: datetime | None,
        limit: int,
        session: AsyncClientSession,
    ) -> Statement:
        postings = await self._postings(balance.account_id, since, until, limit + 1, session)
        earlier = len(postings) > limit
        del postings[limit:]
        sign = side(balance.account_id) or 1
        closing = balance.recomputed
        if until is not None:
            closing -= sign * await self._posted_from(balance.account_id, until, session)
        opening = closing - sign * sum(posting["amount"] for posting in postings)
        movements = _with_running_balance(sorted(postings, key=_position), opening, sign)
        return Statement(balance.account_id, balance.currency, opening, closing, movements, earlier)

    async def _postings(
        self,
        account_id: str,
        since: datetime | None,
        until: datetime | None,
        limit: int,
        session: AsyncClientSession,
    ) -> list[Document]:
        """Return the newest postings of the account in the period, each with the fields of its entry."""
        at = {name: value for name, value in (("$gte", since), ("$lt", until)) if value is not None}
        pipeline: list[Mapping[str, Any]] = [
            {"$match": {"postings.account": account_id, **({"at": at} if at else {})}},
            {"$sort": {"at": -1, "_id": -1}},
            {"$limit": limit},
            {"$unwind": "$postings"},
            {"$match": {"postings.account": account_id}},
            {"$limit": limit},
        ]
        found = await self._database["entries"].aggregate(pipeline, session=session, allowDiskUse=True)
        return [_posting(entry) async for entry in found]

    async def _posted_from(self, account_id: str, until: datetime, session: AsyncClientSession) -> int:
        """Return the sum of the account's postings since that time, debits less credits."""
        pipeline: list[Mapping[str, Any]] = [
            {"$match": {"postings.account": account_id, "at": {"$gte": until}}},
            {"$unwind": "$postings"},
            {"$match": {"postings.account": account_id}},
            {"$group": {"_id": None, "posted": {"$sum": "$postings.amount"}}},
        ]
        found = await self._database["entries"].aggregate(pipeline, session=session)
        return sum([int(group["posted"]) async for group in found])


def _posting(entry: Document) -> Document:
    """Return a posting with its entry's fields; an invalid amount counts as 0, as in the sums of MongoDB."""
    posting: Document = entry | entry["postings"]
    return posting if is_amount(posting.get("amount")) else posting | {"amount": 0}


def _position(posting: Document) -> tuple[int, datetime, str]:
    """Return the sort key of a posting: the account's version is reliable; accounts of the system only have times."""
    version = posting.get("version")
    return (version if isinstance(version, int) else 0, posting["at"], str(posting["_id"]))


def _with_running_balance(postings: Sequence[Document], opening: int, sign: int) -> list[Movement]:
    movements = []
    balance = opening
    for posting in postings:
        effect = sign * posting["amount"]
        balance += effect
        movements.append(
            Movement(
                posting["at"],
                str(posting["_id"]),
                str(posting.get("operation")),
                effect,
                balance,
                posting.get("description"),
                posting.get("reference") or {},
                posting.get("reverses"),
            )
        )
    return movements

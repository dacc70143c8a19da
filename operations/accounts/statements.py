"""Reads accounts and their movements; whatever is shown together is read at one moment."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession

from operations.reading.balances import Balance, balance_of, balances
from operations.reading.chart_of_accounts import Document, is_amount, side
from operations.reading.snapshots import Snapshots


class Movement(NamedTuple):
    """One posting of an account: the effect on its balance, and the balance after it."""

    at: datetime
    entry_id: str
    operation: str
    effect: int
    balance: int
    description: str | None
    reference: Mapping[str, Any]
    reverses: str | None


class Statement(NamedTuple):
    """The newest movements of a time, oldest first, and the balance before the first and after the last of them.

    `earlier` says that there are more in that time, before the first.
    """

    account_id: str
    currency: str | None
    opening: int
    closing: int
    movements: Sequence[Movement]
    earlier: bool


class Sheet(NamedTuple):
    """An account, what its postings come to, and its last movements."""

    balance: Balance
    statement: Statement


class AccountBooks:
    """The accounts of one stack. Every method raises UnreachableError when MongoDB does not answer."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str) -> None:
        self._moments = Snapshots(client)
        self._database = client[f"{database_prefix}_payments"]

    async def sheet(self, account_id: str, last: int) -> Sheet | None:
        """Return the account with its last movements; None if it has neither a document nor postings."""

        async def read(session: AsyncClientSession) -> Sheet | None:
            balance = await balance_of(self._database, session, account_id)
            if balance is None:
                return None
            return Sheet(balance, await self._statement(balance, None, None, last, session))

        return await self._moments.read(read)

    async def statement(
        self, account_id: str, since: datetime | None, until: datetime | None, limit: int
    ) -> Statement | None:
        """Return the movements from `since` on and before `until`; None if there is no such account."""

        async def read(session: AsyncClientSession) -> Statement | None:
            balance = await balance_of(self._database, session, account_id)
            return await self._statement(balance, since, until, limit, session) if balance else None

        return await self._moments.read(read)

    def differing(self, account_id: str | None = None) -> AsyncIterator[Balance]:
        """Yield the accounts, of all or of this one, whose balance is not what their postings come to."""

        async def read(session: AsyncClientSession) -> AsyncIterator[Balance]:
            among = None if account_id is None else [account_id]
            async for balance in balances(self._database, session, among):
                if not balance.agrees:
                    yield balance

        return self._moments.stream(read)

    async def exists(self, account_id: str) -> bool:
        """Whether the account has a document or postings."""
        return await self._moments.read(lambda session: balance_of(self._database, session, account_id)) is not None

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
        movements = _with_running_balance(sorted(postings, key=_place), opening, sign)
        return Statement(balance.account_id, balance.currency, opening, closing, movements, earlier)

    async def _postings(
        self,
        account_id: str,
        since: datetime | None,
        until: datetime | None,
        limit: int,
        session: AsyncClientSession,
    ) -> list[Document]:
        """The newest postings of the account in that time, each with the fields of its entry."""
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
        """What the account's postings from that time on come to, debits less credits."""
        pipeline: list[Mapping[str, Any]] = [
            {"$match": {"postings.account": account_id, "at": {"$gte": until}}},
            {"$unwind": "$postings"},
            {"$match": {"postings.account": account_id}},
            {"$group": {"_id": None, "posted": {"$sum": "$postings.amount"}}},
        ]
        found = await self._database["entries"].aggregate(pipeline, session=session)
        return sum([int(group["posted"]) async for group in found])


def _posting(entry: Document) -> Document:
    """Return a posting with its entry's fields; what is no amount counts for nothing, as when it is added up."""
    posting: Document = entry | entry["postings"]
    return posting if is_amount(posting.get("amount")) else posting | {"amount": 0}


def _place(posting: Document) -> tuple[int, datetime, str]:
    """Where a posting stands: the account counts its postings, whatever the clocks said; the system's do not."""
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

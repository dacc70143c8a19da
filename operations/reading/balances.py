"""Recomputes balances from the postings, in one pass over the journal, ordered by account id."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from pymongo import ASCENDING
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from operations.reading.chart_of_accounts import Document, is_amount, is_system, side
from operations.reading.snapshots import side_by_side


class Balance(NamedTuple):
    """An account, with the sum (debits less credits) and the number of its postings.

    `account` is None if there is no document: for the system's accounts, or because it is missing.
    """

    account_id: str
    account: Document | None
    posted: int
    postings: int
    currency: str | None

    @property
    def recomputed(self) -> int:
        """The balance that follows from the postings, on the account's normal side."""
        return self.posted * (side(self.account_id) or 1)

    @property
    def agrees(self) -> bool:
        """True if the document's balance follows from the postings; the system's accounts need no document."""
        if self.account is None:
            return is_system(self.account_id)
        found = self.account.get("balance")
        return is_amount(found) and found == self.recomputed


async def balances(
    database: AsyncDatabase[Document], session: AsyncClientSession, account_ids: Sequence[str] | None = None
) -> AsyncIterator[Balance]:
    """Yield all accounts, or these, that have a document or postings. MongoDB adds up, on disk if necessary."""
    named = list(account_ids) if account_ids is not None else None
    among: Document = {} if named is None else {"_id": {"$in": named}}
    accounts = database["accounts"].find(among, sort=[("_id", ASCENDING)], session=session)
    sums = await database["entries"].aggregate(_sums(named), session=session, allowDiskUse=True)
    async with accounts, sums:
        async for account_id, account, posted in side_by_side(accounts, sums):
            posted = posted or {"posted": 0, "postings": 0, "currency": None}
            currency = (account or posted).get("currency")
            yield Balance(str(account_id), account, posted["posted"], posted["postings"], currency)


async def balance_of(database: AsyncDatabase[Document], session: AsyncClientSession, account_id: str) -> Balance | None:
    """Return one account; None if it has neither a document nor postings."""
    found = [balance async for balance in balances(database, session, [account_id])]
    return found[0] if found else None


def _sums(account_ids: list[str] | None) -> list[Mapping[str, Any]]:
    among: list[Mapping[str, Any]] = []
    if account_ids is not None:
        among = [{"$match": {"postings.account": {"$in": account_ids}}}]
    return [
        *among,
        {"$unwind": "$postings"},
        *among,
        {
            "$group": {
                "_id": as_text("$postings.account"),
                "posted": {"$sum": "$postings.amount"},
                "postings": {"$sum": 1},
                "currency": {"$first": "$currency"},
            }
        },
        {"$sort": {"_id": 1}},
    ]


def as_text(field: str) -> Mapping[str, Any]:
    """Return an expression for a field as text, empty if it is missing, so that ids can be compared."""
    return {"$convert": {"input": field, "to": "string", "onError": "", "onNull": ""}}

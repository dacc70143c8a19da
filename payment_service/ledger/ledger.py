"""The books: accounts with their balances, and the journal of entries; both change only together, in a transaction.

    accounts   {_id: "<kind>:<id>", kind, currency, balance, status: "active"|"inactive"|"closed", version,
                createdAt, updatedAt, …fields of the kind}
    entries    {_id, at, operation, currency, postings: [{account, amount, balanceAfter, version}], reference,
                description, reverses}

Amounts are minor units. A balance is the sum of the account's postings times its normal sign and never negative; it
changes only by a guarded update that names what the account has to hold. An account's `version` counts its postings,
and each posting has the one that it made: the postings of an account are in order whatever the clocks say. Postings
of system accounts have neither `balanceAfter` nor `version`. Entries are never changed or deleted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument

from payment_service.ledger import chart_of_accounts
from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.journal_entries import JournalEntry, LedgerOperation, Posting
from payment_service.ledger.refusals import (
    InsufficientBalanceError,
    RefusedError,
    StateError,
    UnfitError,
    UnknownError,
    require_amount_of,
)
from payment_service.ledger.transactions import Session
from shared.clock import Clock
from shared.database import Database, Document
from shared.money import MAX_MINOR_UNITS, to_json_number
from shared.schema import CollectionSchema

ACCOUNTS = "accounts"
ENTRIES = "entries"

ACCOUNTS_SCHEMA = CollectionSchema(
    (IndexModel([("kind", ASCENDING), ("_id", ASCENDING)], name="by_kind"),),
    # Every change is guarded already; this holds for whatever else writes to the database.
    {"$jsonSchema": {"required": ["balance"], "properties": {"balance": {"bsonType": ["int", "long"], "minimum": 0}}}},
)
ENTRIES_SCHEMA = CollectionSchema(
    (
        IndexModel([("postings.account", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING)], name="by_account"),
        IndexModel([("at", DESCENDING), ("_id", DESCENDING)], name="by_time"),
    )
)

ACTIVE = "active"

_ALSO_INACTIVE = frozenset({LedgerOperation.ORDER_REFUNDED, LedgerOperation.CORRECTION})
"""Operations that an inactive account takes too: what was paid from a retainer must be able to come back to it."""

_ENTERED = frozenset(
    {
        LedgerOperation.RETAINER_OPENED,
        LedgerOperation.RETAINER_CONSUMED,
        LedgerOperation.RETAINER_REPLENISHED,
        LedgerOperation.INVOICE_ISSUED,
        LedgerOperation.INVOICE_PAID,
        LedgerOperation.BANK_OPENED,
        LedgerOperation.TRANSFER_MADE,
    }
)
"""Operations whose amounts a client has just entered. The others carry on what was accepted before, or undo it."""

_NAMES = {
    AccountKind.RETAINER: "Retainer",
    AccountKind.INVOICE: "Invoice",
    AccountKind.BANK: "Bank account",
    AccountKind.CUSTOMER: "The credit of customer",
}


@dataclass(frozen=True, slots=True)
class PostedEntry:
    """An entry of the journal; `accounts` are the documents after it, by id, of the accounts that have one."""

    entry_id: str
    at: datetime
    entry: JournalEntry
    accounts: Mapping[str, Document]


class Ledger:
    """The books of one database.

    Whatever writes needs the session of a transaction (see Transactions), and lets out what the driver raises: in a
    transaction no error may be swallowed.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._accounts = database[ACCOUNTS]
        self._entries = database[ENTRIES]
        self._clock = clock

    async def open(self, account: str, kind: AccountKind, currency: str, fields: Document, session: Session) -> None:
        """Open an account with nothing in it; `fields` are those of its kind.

        Raises the driver's DuplicateKeyError if there is one of that id.
        """
        now = self._clock()
        opened = {"kind": kind, "currency": currency, "balance": 0, "status": ACTIVE, "version": 0}
        await self._accounts.insert_one(
            {"_id": account, **opened, **fields, "createdAt": now, "updatedAt": now}, session=session
        )

    async def open_if_missing(
        self, account: str, kind: AccountKind, currency: str, fields: Document, session: Session
    ) -> None:
        """Open an account unless it is there; lets a DuplicateKeyError out where another process was first."""
        if await self.find(account, session) is None:
            await self.open(account, kind, currency, fields, session)

    async def post(self, entry: JournalEntry, session: Session) -> PostedEntry:
        """Change the balances and write the entry.

        Raises UnknownError, StateError (inactive or closed), UnfitError (another currency, or decimals that it does
        not have) or InsufficientBalanceError; whatever the transaction has done until then has to be aborted.
        """
        if entry.operation in _ENTERED:
            for posting in entry.postings:
                require_amount_of(entry.currency, abs(posting.amount))
        now = self._clock()
        # In one order for everybody: two transactions never hold what the other one wants.
        ordered = sorted(entry.postings, key=lambda posting: posting.account)
        changed = {
            posting.account: await self._change(posting, entry, now, session)
            for posting in ordered
            if chart_of_accounts.has_document(posting.account)
        }
        entry_id = uuid4().hex
        await self._entries.insert_one(_entry_document(entry_id, now, entry, changed), session=session)
        return PostedEntry(entry_id, now, entry, changed)

    async def _change(self, posting: Posting, entry: JournalEntry, now: datetime, session: Session) -> Document:
        effect = posting.effect()
        guard: Document = {"_id": posting.account, "currency": entry.currency}
        guard["balance"] = {"$gte": -effect} if effect < 0 else {"$lte": MAX_MINOR_UNITS - effect}
        if entry.operation not in _ALSO_INACTIVE:
            guard["status"] = ACTIVE
        after = await self._accounts.find_one_and_update(
            guard,
            {"$inc": {"balance": effect, "version": 1}, "$set": {"updatedAt": now}},
            return_document=ReturnDocument.AFTER,
            session=session,
        )
        if after is None:
            raise _refusal(posting, entry, await self.find(posting.account, session))
        return after

    async def find(self, account: str, session: Session | None = None) -> Document | None:
        """Return an account's document, None if there is none."""
        return await self._accounts.find_one({"_id": account}, session=session)

    async def get(self, account: str, session: Session | None = None) -> Document:
        """Return an account's document; raises UnknownError if there is none.

        Its currency never changes; its balance is for showing: what a decision rests on is the guard of `post`.
        """
        found = await self.find(account, session)
        if found is None:
            raise UnknownError(f"{account_name(account)} does not exist")
        return found

    async def page(self, kind: AccountKind, *, after: str | None, limit: int) -> list[Document]:
        """Return accounts of one kind in the order of their ids, from after the given one on."""
        query: Document = {"kind": kind}
        if after is not None:
            query["_id"] = {"$gt": after}
        return await self._accounts.find(query).sort("_id", ASCENDING).to_list(limit)

    async def set_status(self, account: str, status: str, session: Session, *, only_empty: bool = False) -> Document:
        """Change an account's status and return its document.

        Raises UnknownError, and StateError if `only_empty` and there is something left in it.
        """
        guard: Document = {"_id": account}
        if only_empty:
            guard["balance"] = 0
        after = await self._accounts.find_one_and_update(
            guard,
            {"$set": {"status": status, "updatedAt": self._clock()}},
            return_document=ReturnDocument.AFTER,
            session=session,
        )
        if after is None:
            found = await self.get(account, session)
            left = format_amount(found["balance"], found["currency"])
            raise StateError(f"{account_name(account)} still holds {left}; move it before it becomes {status}")
        return after

    async def entry(self, entry_id: str, session: Session | None = None) -> Document:
        """Return one entry; raises LookupError if there is none."""
        found = await self._entries.find_one({"_id": entry_id}, session=session)
        if found is None:
            raise LookupError(f"entry {entry_id} is not in the journal")
        return found

    async def statement(
        self, account: str | None, *, before: tuple[datetime, str] | None = None, limit: int
    ) -> list[Document]:
        """Return entries, newest first, of one account or of all, from before the given (time, id) on."""
        query: Document = {} if account is None else {"postings.account": account}
        if before is not None:
            moment, entry_id = before
            query["$or"] = [{"at": {"$lt": moment}}, {"at": moment, "_id": {"$lt": entry_id}}]
        newest_first = [("at", DESCENDING), ("_id", DESCENDING)]
        return await self._entries.find(query).sort(newest_first).to_list(limit)

    async def movements(self, account: str, *, increasing: bool, limit: int) -> list[Document]:
        """Return the newest entries that made the account's balance larger, or those that made it smaller."""
        debit = increasing == (chart_of_accounts.normal_sign(account) > 0)
        line = {"account": account, "amount": {"$gt" if debit else "$lt": 0}}
        query = {"postings.account": account, "postings": {"$elemMatch": line}}
        newest_first = [("at", DESCENDING), ("_id", DESCENDING)]
        return await self._entries.find(query).sort(newest_first).to_list(limit)


def to_journal_entry(entry: Mapping[str, Any]) -> JournalEntry:
    """Return what an entry of the journal records."""
    return JournalEntry(
        operation=LedgerOperation(entry["operation"]),
        currency=entry["currency"],
        postings=tuple(Posting(posting["account"], posting["amount"]) for posting in entry["postings"]),
        reference=entry["reference"],
        description=entry.get("description"),
        reverses=entry.get("reverses"),
    )


def account_name(account: str) -> str:
    """Name an account as a person does: `Retainer 5f0c…`."""
    kind, _, rest = account.partition(":")
    if kind == AccountKind.CUSTOMER:
        rest = rest.rpartition(":")[0]
    return f"{_NAMES[AccountKind(kind)]} {rest}"


def format_amount(amount: int, currency: str) -> str:
    """Write an amount for a person: `19.99 USD`."""
    return f"{to_json_number(amount)} {currency}"


def _entry_document(entry_id: str, now: datetime, entry: JournalEntry, changed: Mapping[str, Document]) -> Document:
    document: Document = {
        "_id": entry_id,
        "at": now,
        "operation": entry.operation,
        "currency": entry.currency,
        "postings": _lines(entry.postings, changed),
        "reference": dict(entry.reference),
    }
    if entry.description is not None:
        document["description"] = entry.description
    if entry.reverses is not None:
        document["reverses"] = entry.reverses
    return document


def _lines(postings: Sequence[Posting], changed: Mapping[str, Document]) -> list[Document]:
    lines: list[Document] = []
    for posting in postings:
        line: Document = {"account": posting.account, "amount": posting.amount}
        if after := changed.get(posting.account):
            line |= {"balanceAfter": after["balance"], "version": after["version"]}
        lines.append(line)
    return lines


def _refusal(posting: Posting, entry: JournalEntry, account: Document | None) -> RefusedError:
    """Say why the account did not take the posting."""
    name = account_name(posting.account)
    if account is None:
        return UnknownError(f"{name} does not exist")
    if account["currency"] != entry.currency:
        return UnfitError(f"{name} is kept in {account['currency']}, not in {entry.currency}", field="currency")
    if account["status"] != ACTIVE and entry.operation not in _ALSO_INACTIVE:
        return StateError(f"{name} is {account['status']}")
    if posting.effect() > 0:
        limit = format_amount(MAX_MINOR_UNITS, entry.currency)
        return UnfitError(f"{name} would hold more than {limit}", field="amount")
    return _insufficient(name, account, -posting.effect())


def _insufficient(name: str, account: Document, amount: int) -> InsufficientBalanceError:
    balance, asked = (format_amount(figure, account["currency"]) for figure in (account["balance"], amount))
    if account["kind"] == AccountKind.INVOICE:
        detail = f"Overpayment: {balance} is due on {name}, and {asked} is more"
    else:
        detail = f"Insufficient balance: {name} holds {balance}, and {asked} is asked for"
    return InsufficientBalanceError(detail, balance=account["balance"], amount=amount)

"""The ledger: accounts with their balances, and the journal; both change only together, in a transaction.

    accounts   {_id: "<kind>:<id>", kind, currency, balance, status: "active"|"inactive"|"closed", version,
                ownerId (of retainers and invoices), createdAt, updatedAt, …fields of the kind}
    entries    {_id, at, operation, currency, postings: [{account, amount, balanceAfter, version}], reference,
                description, reverses}

Amounts are minor units. A balance is the sum of the account's postings times its normal sign, and is never negative: it
changes only in an update that requires the balance on which it was decided. An account's `version` counts its postings,
and each posting stores the version that it produced, so the order of an account's postings does not depend on clocks.
Postings of system accounts have neither `balanceAfter` nor `version`. Entries are never changed or deleted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from pymongo import ASCENDING, DESCENDING, IndexModel

from payment_service.ledger import chart_of_accounts
from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.journal_entries import JournalEntry, LedgerOperation, Posting
from payment_service.ledger.refusals import (
    InsufficientBalanceError,
    MismatchError,
    MissingRecordError,
    OverpaymentError,
    WrongStateError,
    require_amount_of,
)
from payment_service.ledger.unit_of_work import Reference, UnitOfWork
from shared.access.principal import EVERYTHING, Visible
from shared.clock import Clock
from shared.database import Database, Document
from shared.money import MAX_MINOR_UNITS, to_json_number
from shared.schema import CollectionSchema

ACCOUNTS = "accounts"
ENTRIES = "entries"

ACCOUNTS_SCHEMA = CollectionSchema(
    (
        IndexModel([("kind", ASCENDING), ("_id", ASCENDING)], name="by_kind"),
        IndexModel(
            [("ownerId", ASCENDING), ("kind", ASCENDING), ("_id", ASCENDING)],
            name="by_owner",
            partialFilterExpression={"ownerId": {"$exists": True}},
        ),
    ),
    # Our own updates are guarded; the validator also covers writes by hand.
    {"$jsonSchema": {"required": ["balance"], "properties": {"balance": {"bsonType": ["int", "long"], "minimum": 0}}}},
)
ENTRIES_SCHEMA = CollectionSchema(
    (
        IndexModel([("postings.account", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING)], name="by_account"),
        IndexModel([("at", DESCENDING), ("_id", DESCENDING)], name="by_time"),
    )
)

ACTIVE = "active"

_ALLOWED_WHEN_INACTIVE = frozenset(
    {LedgerOperation.ORDER_REFUNDED, LedgerOperation.ORDER_PART_REFUNDED, LedgerOperation.CORRECTION}
)
"""Operations that an inactive account accepts: an order must remain refundable to its retainer."""

_ENTERED_BY_CLIENTS = frozenset(
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
"""Operations whose amounts a client has just entered. The others complete or undo something accepted before."""

_NAMES = {
    AccountKind.RETAINER: "Retainer",
    AccountKind.INVOICE: "Invoice",
    AccountKind.BANK: "Bank account",
    AccountKind.CUSTOMER: "The credit of customer",
}


@dataclass(frozen=True, slots=True)
class PostedEntry:
    """A journal entry that is posted; `accounts` has the resulting account documents, by account id."""

    entry_id: str
    at: datetime
    entry: JournalEntry
    accounts: Mapping[str, Document]


class Ledger:
    """The ledger of one database.

    Methods that write change the unit of work of a transaction (see Transactions), and nothing else.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._accounts = database[ACCOUNTS]
        self._entries = database[ENTRIES]
        self._clock = clock

    def open(self, account: str, kind: AccountKind, currency: str, fields: Document, unit: UnitOfWork) -> Document:
        """Open an empty account, which must not exist, and return its document; `fields` are those of its kind."""
        now = self._clock()
        opened = {"kind": kind, "currency": currency, "balance": 0, "status": ACTIVE, "version": 0}
        document = {"_id": account, **opened, **fields, "createdAt": now, "updatedAt": now}
        unit.insert(ACCOUNTS, document)
        return document

    async def open_if_missing(
        self, account: str, kind: AccountKind, currency: str, fields: Document, unit: UnitOfWork
    ) -> None:
        """Open an account unless it exists."""
        if await self.find(account, unit) is None:
            self.open(account, kind, currency, fields, unit)

    async def post(self, entry: JournalEntry, unit: UnitOfWork) -> PostedEntry:
        """Change the balances and write the entry.

        Raises MissingRecordError, WrongStateError (inactive or closed), MismatchError (another currency, or decimals
        that the currency does not have) or InsufficientBalanceError; the unit must then be rolled back.
        """
        if entry.operation in _ENTERED_BY_CLIENTS:
            for posting in entry.postings:
                require_amount_of(entry.currency, abs(posting.amount))
        now = self._clock()
        changed = {
            posting.account: changed_account(posting, entry, await self.find(posting.account, unit), now)
            for posting in sorted(entry.postings, key=lambda posting: posting.account)
            if chart_of_accounts.has_document(posting.account)
        }
        for account in changed.values():
            unit.update(ACCOUNTS, account)
        entry_id = uuid4().hex
        unit.insert(ENTRIES, _entry_document(entry_id, now, entry, changed))
        return PostedEntry(entry_id, now, entry, changed)

    async def find(self, account: str, unit: UnitOfWork | None = None) -> Document | None:
        """Return an account's document, with the changes of the unit, None if it does not exist."""
        if unit is not None:
            return await unit.get(ACCOUNTS, account)
        return await self._accounts.find_one({"_id": account})

    async def get(self, account: str, unit: UnitOfWork) -> Document:
        """Return an account's document. Raises MissingRecordError if it does not exist."""
        return _existing(account, await self.find(account, unit))

    async def get_visible(self, account: str, visible: Visible = EVERYTHING) -> Document:
        """Return an account's document outside of any transaction; its balance may change at once.

        Raises MissingRecordError if it does not exist, or is not visible.
        """
        return _existing(account, await self._accounts.find_one({"_id": account, **visible}))

    async def page(
        self, kind: AccountKind, *, after: str | None, limit: int, visible: Visible = EVERYTHING
    ) -> list[Document]:
        """Return visible accounts of one kind, ordered by id, starting after the given id."""
        query: Document = {"kind": kind, **visible}
        if after is not None:
            query["_id"] = {"$gt": after}
        return await self._accounts.find(query).sort("_id", ASCENDING).to_list(limit)

    async def set_status(self, account: str, status: str, unit: UnitOfWork, *, only_empty: bool = False) -> Document:
        """Set an account's status and return its document.

        Raises MissingRecordError, or WrongStateError if `only_empty` is set and the account is not empty.
        """
        found = await self.get(account, unit)
        if only_empty and found["balance"]:
            left = format_amount(found["balance"], found["currency"])
            raise WrongStateError(f"{account_name(account)} still holds {left}; empty it before it becomes {status}")
        after = found | {"status": status, "updatedAt": self._clock()}
        unit.update(ACCOUNTS, after)
        return after

    async def entry(self, entry_id: str, unit: UnitOfWork) -> Document:
        """Return one entry. Raises LookupError if it does not exist."""
        found = await unit.get(ENTRIES, entry_id)
        if found is None:
            raise LookupError(f"entry {entry_id} is not in the journal")
        return found

    async def statement(
        self, account: str | None, *, before: tuple[datetime, str] | None = None, limit: int
    ) -> list[Document]:
        """Return entries of one account or of all, newest first, starting before the given (time, id)."""
        query: Document = {} if account is None else {"postings.account": account}
        if before is not None:
            moment, entry_id = before
            query["$or"] = [{"at": {"$lt": moment}}, {"at": moment, "_id": {"$lt": entry_id}}]
        newest_first = [("at", DESCENDING), ("_id", DESCENDING)]
        return await self._entries.find(query).sort(newest_first).to_list(limit)

    async def movements(self, account: str, *, increasing: bool, limit: int) -> list[Document]:
        """Return the newest entries that increased the account's balance, or those that decreased it."""
        debit = increasing == (chart_of_accounts.normal_sign(account) > 0)
        line = {"account": account, "amount": {"$gt" if debit else "$lt": 0}}
        query = {"postings.account": account, "postings": {"$elemMatch": line}}
        newest_first = [("at", DESCENDING), ("_id", DESCENDING)]
        return await self._entries.find(query).sort(newest_first).to_list(limit)


def references(accounts: Iterable[str]) -> list[Reference]:
    """Return the places of the documents of accounts."""
    return [Reference(ACCOUNTS, account) for account in accounts]


def owned(owner_id: str | None) -> Document:
    """Return the field that names the owner of a record; none for a record without an owner."""
    return {} if owner_id is None else {"ownerId": owner_id}


def to_journal_entry(entry: Mapping[str, Any]) -> JournalEntry:
    """Convert a stored entry to a journal entry."""
    return JournalEntry(
        operation=LedgerOperation(entry["operation"]),
        currency=entry["currency"],
        postings=tuple(Posting(posting["account"], posting["amount"]) for posting in entry["postings"]),
        reference=entry["reference"],
        description=entry.get("description"),
        reverses=entry.get("reverses"),
    )


def account_name(account: str) -> str:
    """Return an account's name for people: `Retainer 5f0c…`."""
    kind, _, rest = account.partition(":")
    if kind == AccountKind.CUSTOMER:
        rest = rest.rpartition(":")[0]
    return f"{_NAMES[AccountKind(kind)]} {rest}"


def format_amount(amount: int, currency: str) -> str:
    """Format an amount for people: `19.99 USD`."""
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


def changed_account(posting: Posting, entry: JournalEntry, account: Document | None, now: datetime) -> Document:
    """Return the account's document after the posting. Raises a LedgerRefusalError if the books do not allow it."""
    name = account_name(posting.account)
    effect = posting.effect()
    if account is None:
        raise MissingRecordError(f"{name} does not exist")
    if account["currency"] != entry.currency:
        raise MismatchError(f"{name} is kept in {account['currency']}, not in {entry.currency}", field="currency")
    if account["status"] != ACTIVE and entry.operation not in _ALLOWED_WHEN_INACTIVE:
        raise WrongStateError(f"{name} is {account['status']}")
    balance = account["balance"] + effect
    if effect > 0 and balance > MAX_MINOR_UNITS:
        limit = format_amount(MAX_MINOR_UNITS, entry.currency)
        raise MismatchError(f"{name} would hold more than {limit}", field="amount")
    if balance < 0:
        raise _insufficient(name, account, -effect)
    return account | {"balance": balance, "version": account["version"] + 1, "updatedAt": now}


def _existing(account: str, found: Document | None) -> Document:
    if found is None:
        raise MissingRecordError(f"{account_name(account)} does not exist")
    return found


def _insufficient(name: str, account: Document, amount: int) -> InsufficientBalanceError:
    balance, requested = (format_amount(figure, account["currency"]) for figure in (account["balance"], amount))
    if account["kind"] == AccountKind.INVOICE:
        detail = f"Overpayment: {balance} is due on {name}, less than {requested}"
        return OverpaymentError(detail, balance=account["balance"], amount=amount)
    detail = f"Insufficient balance: {name} holds {balance}, but {requested} was requested"
    return InsufficientBalanceError(detail, balance=account["balance"], amount=amount)

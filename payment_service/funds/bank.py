"""Our own bank accounts, and transfers between them, each of which can be cancelled once.

accounts         {_id: "bank:<id>", …, name, accountNumber, bankName}
bank_transfers   {_id, fromAccountId, toAccountId, amount, fee (minor units), currency, description?,
                  status: "completed"|"cancelled", entryId, cancelEntryId?, reason?, createdAt, cancelledAt?}
"""

from uuid import uuid4

from pymongo import ASCENDING, IndexModel

from payment_service.ledger import chart_of_accounts, journal_entries
from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.ledger import Ledger, to_journal_entry
from payment_service.ledger.refusals import AlreadyCancelledError, MismatchError, MissingRecordError
from payment_service.ledger.unit_of_work import UnitOfWork
from shared.access.principal import EVERYTHING, Visible
from shared.database import Database, Document
from shared.schema import CollectionSchema

TRANSFERS = "bank_transfers"
TRANSFERS_SCHEMA = CollectionSchema(
    (
        IndexModel([("fromAccountId", ASCENDING), ("_id", ASCENDING)], name="by_sender"),
        IndexModel([("toAccountId", ASCENDING), ("_id", ASCENDING)], name="by_receiver"),
    )
)

COMPLETED = "completed"
CANCELLED = "cancelled"
CLOSED = "closed"


class Bank:
    """The bank accounts and transfers of one database; methods with a unit of work change only that."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._transfers = database[TRANSFERS]
        self._ledger = ledger

    async def open(
        self, unit: UnitOfWork, *, name: str, account_number: str, bank_name: str, currency: str, balance: int
    ) -> Document:
        """Open a bank account with its current balance, and return its ledger account."""
        account_id = uuid4().hex
        account = chart_of_accounts.bank(account_id)
        fields = {"name": name, "accountNumber": account_number, "bankName": bank_name}
        opened = self._ledger.open(account, AccountKind.BANK, currency, fields, unit)
        # An entry of zero does not exist.
        if balance == 0:
            return opened
        posted = await self._ledger.post(journal_entries.bank_opened(account_id, balance, currency), unit)
        return posted.accounts[account]

    async def set_status(self, unit: UnitOfWork, account_id: str, status: str) -> Document:
        """Close a bank account, which must be empty, or open it again; return its ledger account."""
        return await self._ledger.set_status(
            chart_of_accounts.bank(account_id), status, unit, only_empty=status == CLOSED
        )

    async def transfer(
        self, unit: UnitOfWork, *, from_id: str, to_id: str, amount: int, fee: int = 0, description: str | None = None
    ) -> Document:
        """Move money from one account to another and return the transfer.

        Raises MismatchError if the accounts' currencies differ, and the errors of Ledger.post.
        """
        currency = await self._common_currency(unit, from_id, to_id)
        transfer_id = uuid4().hex
        entry = journal_entries.transfer_made(
            transfer_id,
            from_id=from_id,
            to_id=to_id,
            amount=amount,
            fee=fee,
            currency=currency,
            description=description,
        )
        posted = await self._ledger.post(entry, unit)
        transfer: Document = {
            "_id": transfer_id,
            "fromAccountId": from_id,
            "toAccountId": to_id,
            "amount": amount,
            "fee": fee,
            "currency": currency,
            "status": COMPLETED,
            "entryId": posted.entry_id,
            "createdAt": posted.at,
        }
        if description is not None:
            transfer["description"] = description
        unit.insert(TRANSFERS, transfer)
        return transfer

    async def cancel(self, unit: UnitOfWork, transfer_id: str, reason: str | None = None) -> Document:
        """Reverse a transfer, fee included, and return it.

        Raises MissingRecordError, AlreadyCancelledError, and the errors of Ledger.post: the
        receiver may have spent the money.
        """
        transfer = _existing(transfer_id, await unit.get(TRANSFERS, transfer_id))
        if transfer["status"] != COMPLETED:
            raise AlreadyCancelledError(f"Transfer {transfer_id} is already cancelled")
        made = to_journal_entry(await self._ledger.entry(transfer["entryId"], unit))
        reversal = journal_entries.transfer_cancelled(made, transfer["entryId"], reason)
        posted = await self._ledger.post(reversal, unit)
        change: Document = {"status": CANCELLED, "cancelEntryId": posted.entry_id, "cancelledAt": posted.at}
        if reason is not None:
            change["reason"] = reason
        cancelled = transfer | change
        unit.update(TRANSFERS, cancelled)
        return cancelled

    async def find(self, transfer_id: str) -> Document | None:
        """Return a transfer, None if it does not exist."""
        return await self._transfers.find_one({"_id": transfer_id})

    async def get(self, transfer_id: str, visible: Visible = EVERYTHING) -> Document:
        """Return a transfer. Raises MissingRecordError if it does not exist, or is not visible."""
        return _existing(transfer_id, await self._transfers.find_one({"_id": transfer_id, **visible}))

    async def page(self, *, after: str | None, limit: int, visible: Visible = EVERYTHING) -> list[Document]:
        """Return visible transfers, ordered by id, starting after the given id."""
        query: Document = dict(visible)
        if after is not None:
            query["_id"] = {"$gt": after}
        return await self._transfers.find(query).sort("_id", ASCENDING).to_list(limit)

    async def _common_currency(self, unit: UnitOfWork, from_id: str, to_id: str) -> str:
        sender = await self._ledger.get(chart_of_accounts.bank(from_id), unit)
        receiver = await self._ledger.get(chart_of_accounts.bank(to_id), unit)
        currency: str = sender["currency"]
        if receiver["currency"] != currency:
            detail = f"Bank account {to_id} is kept in {receiver['currency']}, the sender's in {currency}"
            raise MismatchError(detail, field="toAccountId")
        return currency


def _existing(transfer_id: str, transfer: Document | None) -> Document:
    if transfer is None:
        raise MissingRecordError(f"Transfer {transfer_id} does not exist")
    return transfer

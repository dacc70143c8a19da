"""Our own bank accounts, and transfers between them, each of which can be cancelled once.

accounts         {_id: "bank:<id>", …, name, accountNumber, bankName}
bank_transfers   {_id, fromAccountId, toAccountId, amount, fee (minor units), currency, description?,
                  status: "completed"|"cancelled", entryId, cancelEntryId?, reason?, createdAt, cancelledAt?}
"""

from uuid import uuid4

from pymongo import ASCENDING, IndexModel, ReturnDocument

from payment_service.ledger import chart_of_accounts, journal_entries
from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.ledger import Ledger, to_journal_entry
from payment_service.ledger.refusals import AlreadyCancelledError, MismatchError, MissingRecordError
from payment_service.ledger.transactions import Session
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
    """The bank accounts and transfers of one database; methods with a session run in its transaction."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._transfers = database[TRANSFERS]
        self._ledger = ledger

    async def open(
        self, session: Session, *, name: str, account_number: str, bank_name: str, currency: str, balance: int
    ) -> Document:
        """Open a bank account with its current balance, and return its ledger account."""
        account_id = uuid4().hex
        account = chart_of_accounts.bank(account_id)
        fields = {"name": name, "accountNumber": account_number, "bankName": bank_name}
        await self._ledger.open(account, AccountKind.BANK, currency, fields, session)
        # An entry of zero does not exist.
        if balance == 0:
            return await self._ledger.get(account, session)
        posted = await self._ledger.post(journal_entries.bank_opened(account_id, balance, currency), session)
        return posted.accounts[account]

    async def set_status(self, session: Session, account_id: str, status: str) -> Document:
        """Close a bank account, which must be empty, or open it again; return its ledger account."""
        return await self._ledger.set_status(
            chart_of_accounts.bank(account_id), status, session, only_empty=status == CLOSED
        )

    async def transfer(
        self, session: Session, *, from_id: str, to_id: str, amount: int, fee: int = 0, description: str | None = None
    ) -> Document:
        """Move money from one account to another and return the transfer.

        Raises MismatchError if the accounts' currencies differ, and the errors of Ledger.post.
        """
        currency = await self._common_currency(session, from_id, to_id)
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
        posted = await self._ledger.post(entry, session)
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
        await self._transfers.insert_one(transfer, session=session)
        return transfer

    async def cancel(self, session: Session, transfer_id: str, reason: str | None = None) -> Document:
        """Reverse a transfer, fee included, and return it.

        Raises MissingRecordError, AlreadyCancelledError, and the errors of Ledger.post: the
        receiver may have spent the money.
        """
        transfer = await self.get(transfer_id, session)
        if transfer["status"] != COMPLETED:
            raise AlreadyCancelledError(f"Transfer {transfer_id} is already cancelled")
        made = to_journal_entry(await self._ledger.entry(transfer["entryId"], session))
        reversal = journal_entries.transfer_cancelled(made, transfer["entryId"], reason)
        posted = await self._ledger.post(reversal, session)
        change: Document = {"status": CANCELLED, "cancelEntryId": posted.entry_id, "cancelledAt": posted.at}
        if reason is not None:
            change["reason"] = reason
        # The snapshot showed it as completed; if another transaction has cancelled it since, this write conflicts.
        cancelled: Document | None = await self._transfers.find_one_and_update(
            {"_id": transfer_id, "status": COMPLETED},
            {"$set": change},
            return_document=ReturnDocument.AFTER,
            session=session,
        )
        if cancelled is None:
            raise LookupError(f"transfer {transfer_id} changed within the transaction")
        return cancelled

    async def find(self, transfer_id: str) -> Document | None:
        """Return a transfer, None if it does not exist."""
        return await self._transfers.find_one({"_id": transfer_id})

    async def get(self, transfer_id: str, session: Session | None = None, visible: Visible = EVERYTHING) -> Document:
        """Return a transfer. Raises MissingRecordError if it does not exist, or is not visible."""
        transfer = await self._transfers.find_one({"_id": transfer_id, **visible}, session=session)
        if transfer is None:
            raise MissingRecordError(f"Transfer {transfer_id} does not exist")
        return transfer

    async def page(self, *, after: str | None, limit: int, visible: Visible = EVERYTHING) -> list[Document]:
        """Return visible transfers, ordered by id, starting after the given id."""
        query: Document = dict(visible)
        if after is not None:
            query["_id"] = {"$gt": after}
        return await self._transfers.find(query).sort("_id", ASCENDING).to_list(limit)

    async def _common_currency(self, session: Session, from_id: str, to_id: str) -> str:
        sender = await self._ledger.get(chart_of_accounts.bank(from_id), session)
        receiver = await self._ledger.get(chart_of_accounts.bank(to_id), session)
        currency: str = sender["currency"]
        if receiver["currency"] != currency:
            detail = f"Bank account {to_id} is kept in {receiver['currency']}, the sender's in {currency}"
            raise MismatchError(detail, field="toAccountId")
        return currency

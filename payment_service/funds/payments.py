"""Customers' payments outside of any order: pending at first, then completed, once.

    fund_payments   {_id, ownerId, customerId, amount (minor units), currency, paymentMethod, invoiceId?,
                     status: "pending"|"completed", entryId?, createdAt, completedAt?}

A completed payment has exactly one journal entry, `entryId`: it pays its invoice, or becomes the customer's credit.
"""

from uuid import uuid4

from pymongo import ASCENDING, IndexModel

from payment_service.ledger import chart_of_accounts, journal_entries
from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.ledger import Ledger, owned
from payment_service.ledger.refusals import AlreadyCompletedError, MismatchError, MissingRecordError, require_amount_of
from payment_service.ledger.unit_of_work import UnitOfWork
from shared.access.principal import EVERYTHING, Visible
from shared.clock import Clock
from shared.database import Database, Document
from shared.schema import CollectionSchema

COLLECTION = "fund_payments"
SCHEMA = CollectionSchema(
    (
        IndexModel([("customerId", ASCENDING), ("_id", ASCENDING)], name="by_customer"),
        IndexModel(
            [("ownerId", ASCENDING), ("_id", ASCENDING)],
            name="by_owner",
            partialFilterExpression={"ownerId": {"$exists": True}},
        ),
    )
)

PENDING = "pending"
COMPLETED = "completed"


class FundPayments:
    """The customers' payments of one database; methods with a unit of work change only that."""

    def __init__(self, database: Database, ledger: Ledger, clock: Clock) -> None:
        self._payments = database[COLLECTION]
        self._ledger = ledger
        self._clock = clock

    async def create(
        self,
        unit: UnitOfWork,
        *,
        owner_id: str | None = None,
        customer_id: str,
        amount: int,
        payment_method: str,
        currency: str | None = None,
        invoice_id: str | None = None,
        default_currency: str,
    ) -> Document:
        """Record a pending payment; its currency defaults to that of its invoice.

        Raises MissingRecordError if the invoice does not exist, and MismatchError if it is in another currency or if
        the amount has decimals that the currency does not have. The amount due is checked only when the payment is
        completed.
        """
        if invoice_id is not None:
            due_in = (await self._ledger.get(chart_of_accounts.invoice(invoice_id), unit))["currency"]
            if currency not in (None, due_in):
                raise MismatchError(f"Invoice {invoice_id} is kept in {due_in}, not in {currency}", field="currency")
            currency = due_in
        require_amount_of(currency or default_currency, amount)
        payment: Document = {
            "_id": uuid4().hex,
            **owned(owner_id),
            "customerId": customer_id,
            "amount": amount,
            "currency": currency or default_currency,
            "paymentMethod": payment_method,
            "status": PENDING,
            "createdAt": self._clock(),
        }
        if invoice_id is not None:
            payment["invoiceId"] = invoice_id
        unit.insert(COLLECTION, payment)
        return payment

    async def complete(self, unit: UnitOfWork, payment_id: str) -> Document:
        """Complete a payment: credit its invoice, or else its customer.

        Raises MissingRecordError, AlreadyCompletedError, and the errors of Ledger.post.
        """
        payment = _existing(payment_id, await self.find(payment_id, unit))
        if payment["status"] != PENDING:
            raise AlreadyCompletedError(f"Payment {payment_id} is already completed")
        if "invoiceId" not in payment:
            await self._open_credit(unit, payment)
        posted = await self._ledger.post(_journal_entry(payment), unit)
        completed = payment | {"status": COMPLETED, "entryId": posted.entry_id, "completedAt": posted.at}
        unit.update(COLLECTION, completed)
        return completed

    async def find(self, payment_id: str, unit: UnitOfWork | None = None) -> Document | None:
        """Return a payment, with the changes of the unit, None if it does not exist."""
        if unit is not None:
            return await unit.get(COLLECTION, payment_id)
        return await self._payments.find_one({"_id": payment_id})

    async def get(self, payment_id: str, visible: Visible = EVERYTHING) -> Document:
        """Return a payment. Raises MissingRecordError if it does not exist, or is not visible."""
        return _existing(payment_id, await self._payments.find_one({"_id": payment_id, **visible}))

    async def page(self, *, after: str | None, limit: int, visible: Visible = EVERYTHING) -> list[Document]:
        """Return visible payments, ordered by id, starting after the given id."""
        query: Document = dict(visible)
        if after is not None:
            query["_id"] = {"$gt": after}
        return await self._payments.find(query).sort("_id", ASCENDING).to_list(limit)

    async def _open_credit(self, unit: UnitOfWork, payment: Document) -> None:
        customer_id, currency = payment["customerId"], payment["currency"]
        account = chart_of_accounts.customer(customer_id, currency)
        fields = {"customerId": customer_id}
        await self._ledger.open_if_missing(account, AccountKind.CUSTOMER, currency, fields, unit)


def credited_account(payment: Document) -> str:
    """Return the account that a payment credits when it is completed."""
    if "invoiceId" in payment:
        return chart_of_accounts.invoice(payment["invoiceId"])
    return chart_of_accounts.customer(payment["customerId"], payment["currency"])


def _existing(payment_id: str, payment: Document | None) -> Document:
    if payment is None:
        raise MissingRecordError(f"Payment {payment_id} does not exist")
    return payment


def _journal_entry(payment: Document) -> journal_entries.JournalEntry:
    return journal_entries.payment_completed(
        payment["_id"],
        payment["customerId"],
        payment["amount"],
        payment["currency"],
        invoice_id=payment.get("invoiceId"),
    )

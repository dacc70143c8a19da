"""Retainers: money that clients pay in advance, to be consumed later. A retainer is its ledger account, nothing else.

accounts   {_id: "retainer:<id>", …, ownerId, clientId, retainerType}
"""

from uuid import uuid4

from payment_service.funds.payments import FundPayments
from payment_service.ledger import chart_of_accounts, journal_entries
from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.ledger import Ledger, format_amount, owned
from payment_service.ledger.refusals import MismatchError, WrongStateError
from payment_service.ledger.unit_of_work import UnitOfWork
from shared.database import Document


class Retainers:
    """The retainers in the ledger; every method changes its unit of work.

    Each returns the retainer's account after the change, and may raise the errors of Ledger.post.
    """

    def __init__(self, ledger: Ledger, payments: FundPayments) -> None:
        self._ledger = ledger
        self._payments = payments

    async def open(
        self,
        unit: UnitOfWork,
        *,
        owner_id: str | None = None,
        client_id: str,
        retainer_type: str,
        amount: int,
        currency: str,
    ) -> Document:
        """Open a retainer with an initial amount; it pays orders of its owner only."""
        retainer_id = uuid4().hex
        account = chart_of_accounts.retainer(retainer_id)
        fields = owned(owner_id) | {"clientId": client_id, "retainerType": retainer_type}
        opened = self._ledger.open(account, AccountKind.RETAINER, currency, fields, unit)
        # An entry of zero does not exist.
        if amount == 0:
            return opened
        posted = await self._ledger.post(journal_entries.retainer_opened(retainer_id, amount, currency), unit)
        return posted.accounts[account]

    async def consume(
        self,
        unit: UnitOfWork,
        retainer_id: str,
        *,
        amount: int,
        currency: str | None = None,
        invoice_id: str | None = None,
        description: str | None = None,
    ) -> Document:
        """Consume part of a retainer, as revenue or to pay an invoice."""
        account = chart_of_accounts.retainer(retainer_id)
        currency = currency or (await self._ledger.get(account, unit))["currency"]
        entry = journal_entries.retainer_consumed(
            retainer_id, amount, currency, invoice_id=invoice_id, description=description
        )
        return (await self._ledger.post(entry, unit)).accounts[account]

    async def replenish(
        self,
        unit: UnitOfWork,
        retainer_id: str,
        *,
        amount: int,
        currency: str | None = None,
        payment_id: str | None = None,
    ) -> Document:
        """Add to a retainer, from outside or from the credit that one of our payments gave the client.

        An unknown `payment_id` is stored as an external reference. Raises WrongStateError or MismatchError if the
        payment is ours but gave the client no credit.
        """
        account = chart_of_accounts.retainer(retainer_id)
        retainer = await self._ledger.get(account, unit)
        payment = await self._payments.find(payment_id, unit) if payment_id else None
        if payment is not None:
            _require_credit_of(payment, retainer)
        entry = journal_entries.retainer_replenished(
            retainer_id,
            amount,
            currency or retainer["currency"],
            payment_id=payment_id,
            customer_id=payment["customerId"] if payment else None,
        )
        return (await self._ledger.post(entry, unit)).accounts[account]

    async def set_status(self, unit: UnitOfWork, retainer_id: str, status: str) -> Document:
        """Make a retainer active or inactive."""
        return await self._ledger.set_status(chart_of_accounts.retainer(retainer_id), status, unit)


def _require_credit_of(payment: Document, retainer: Document) -> None:
    name = f"Payment {payment['_id']}"
    if payment.get("ownerId") != retainer.get("ownerId"):
        raise MismatchError(f"{name} belongs to another owner", field="paymentId")
    if payment["customerId"] != retainer["clientId"]:
        raise MismatchError(f"{name} was not made by client {retainer['clientId']}", field="paymentId")
    if payment["currency"] != retainer["currency"]:
        paid = format_amount(payment["amount"], payment["currency"])
        raise MismatchError(
            f"{name} is for {paid}, but the retainer is kept in {retainer['currency']}", field="paymentId"
        )
    if payment.get("invoiceId"):
        raise WrongStateError(f"{name} has paid invoice {payment['invoiceId']} and left no credit")
    if payment["status"] != "completed":
        raise WrongStateError(f"{name} is {payment['status']}, not completed")

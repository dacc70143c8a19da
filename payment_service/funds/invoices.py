"""Invoices to clients. An invoice is its ledger account, whose balance is the part of the total that is still due.

accounts   {_id: "invoice:<id>", …, ownerId, clientId, totalAmount (minor units)}
"""

from uuid import uuid4

from payment_service.ledger import chart_of_accounts, journal_entries
from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.ledger import Ledger, owned
from payment_service.ledger.unit_of_work import UnitOfWork
from shared.database import Document


class Invoices:
    """The invoices in the ledger; every method changes its unit of work.

    Each returns the invoice's account after the change, and may raise the errors of Ledger.post.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def issue(
        self, unit: UnitOfWork, *, owner_id: str | None = None, client_id: str, amount: int, currency: str
    ) -> Document:
        """Issue an invoice; all of it is due."""
        invoice_id = uuid4().hex
        account = chart_of_accounts.invoice(invoice_id)
        fields = owned(owner_id) | {"clientId": client_id, "totalAmount": amount}
        self._ledger.open(account, AccountKind.INVOICE, currency, fields, unit)
        posted = await self._ledger.post(journal_entries.invoice_issued(invoice_id, amount, currency), unit)
        return posted.accounts[account]

    async def pay(
        self, unit: UnitOfWork, invoice_id: str, *, amount: int, payment_method: str, currency: str | None = None
    ) -> Document:
        """Accept a payment of an invoice from outside, of at most what is due."""
        account = chart_of_accounts.invoice(invoice_id)
        currency = currency or (await self._ledger.get(account, unit))["currency"]
        entry = journal_entries.invoice_paid(invoice_id, amount, currency, payment_method=payment_method)
        return (await self._ledger.post(entry, unit)).accounts[account]

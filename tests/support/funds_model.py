"""A model of the books, as plain numbers in memory: no transactions, no postings, no races.

Each operation returns every HTTP status with which the service may refuse it, since several things can be wrong with
one request; without any, the operation takes effect. Amounts are minor units.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.support.funds_client import number

Refusals = set[int]


@dataclass
class Retainer:
    """Money paid in advance."""

    client: str
    currency: str
    balance: int
    status: str = "active"
    consumptions: list[int] = field(default_factory=list)
    deposits: list[int] = field(default_factory=list)

    @classmethod
    def opened(cls, client: str, currency: str, amount: int) -> "Retainer":
        return cls(client, currency, amount, deposits=[amount] if amount else [])


@dataclass
class Invoice:
    """An invoice to a client."""

    client: str
    currency: str
    total: int
    due: int


@dataclass
class Payment:
    """A customer's payment, for an invoice or for later."""

    customer: str
    currency: str
    amount: int
    invoice: str | None
    status: str = "pending"


@dataclass
class Bank:
    """A bank account."""

    currency: str
    balance: int
    status: str = "active"


@dataclass
class Transfer:
    """Money moved between two accounts."""

    source: str
    target: str
    amount: int
    fee: int
    status: str = "completed"


class Model:
    """The state of the funds API, by the ids that it has assigned."""

    def __init__(self) -> None:
        self.retainers: dict[str, Retainer] = {}
        self.invoices: dict[str, Invoice] = {}
        self.payments: dict[str, Payment] = {}
        self.banks: dict[str, Bank] = {}
        self.transfers: dict[str, Transfer] = {}
        self.credit: Counter[tuple[str, str]] = Counter()
        """The unused credit of customers, by customer and currency."""

    def consume(self, retainer_id: str, amount: int, invoice_id: str | None) -> Refusals:
        retainer = self.retainers[retainer_id]
        refusals = _refusals((409, retainer.status != "active"), (400, amount > retainer.balance))
        if invoice_id is not None:
            invoice = self.invoices[invoice_id]
            refusals |= _refusals((422, invoice.currency != retainer.currency), (400, amount > invoice.due))
        if not refusals:
            retainer.balance -= amount
            retainer.consumptions.append(amount)
            if invoice_id is not None:
                self.invoices[invoice_id].due -= amount
        return refusals

    def replenish(self, retainer_id: str, amount: int, payment_id: str | None) -> Refusals:
        """Add to a retainer; an unknown payment counts as money from outside, like no payment."""
        retainer = self.retainers[retainer_id]
        refusals = _refusals((409, retainer.status != "active"))
        payment = self.payments.get(payment_id or "")
        if payment is not None:
            refusals |= _refusals(
                (409, payment.status != "completed"),
                (409, payment.invoice is not None),
                (422, payment.customer != retainer.client),
                (422, payment.currency != retainer.currency),
                (400, amount > self.credit[payment.customer, payment.currency]),
            )
        if not refusals:
            retainer.balance += amount
            retainer.deposits.append(amount)
            if payment is not None:
                self.credit[payment.customer, payment.currency] -= amount
        return refusals

    def pay_invoice(self, invoice_id: str, amount: int) -> Refusals:
        invoice = self.invoices[invoice_id]
        refusals = _refusals((400, amount > invoice.due))
        if not refusals:
            invoice.due -= amount
        return refusals

    def complete(self, payment_id: str) -> Refusals:
        payment = self.payments[payment_id]
        refusals = _refusals((400, payment.status != "pending")) | self.refusals_of_settling(payment)
        if not refusals:
            self.settle(payment)
        return refusals

    def refusals_of_settling(self, payment: Payment) -> Refusals:
        if payment.invoice is None:
            return set()
        return _refusals((400, payment.amount > self.invoices[payment.invoice].due))

    def settle(self, payment: Payment) -> None:
        payment.status = "completed"
        if payment.invoice is None:
            self.credit[payment.customer, payment.currency] += payment.amount
        else:
            self.invoices[payment.invoice].due -= payment.amount

    def transfer(self, transfer: Transfer) -> Refusals:
        """Move the money; the caller adds the transfer, because the service assigns its id."""
        source, target = self.banks[transfer.source], self.banks[transfer.target]
        refusals = _refusals(
            (422, source.currency != target.currency),
            (409, "closed" in {source.status, target.status}),
            (400, transfer.amount + transfer.fee > source.balance),
        )
        if not refusals:
            source.balance -= transfer.amount + transfer.fee
            target.balance += transfer.amount
        return refusals

    def cancel(self, transfer_id: str) -> Refusals:
        transfer = self.transfers[transfer_id]
        source, target = self.banks[transfer.source], self.banks[transfer.target]
        refusals = _refusals(
            (400, transfer.status != "completed"),
            (409, "closed" in {source.status, target.status}),
            (400, transfer.amount > target.balance),
        )
        if not refusals:
            transfer.status = "cancelled"
            source.balance += transfer.amount + transfer.fee
            target.balance -= transfer.amount
        return refusals

    def set_retainer_status(self, retainer_id: str, status: str) -> Refusals:
        self.retainers[retainer_id].status = status
        return set()

    def set_bank_status(self, bank_id: str, status: str) -> Refusals:
        bank = self.banks[bank_id]
        refusals = _refusals((409, status == "closed" and bank.balance > 0))
        if not refusals:
            bank.status = status
        return refusals

    # --- The fields that a GET shows. ---

    def shown_retainer(self, retainer_id: str) -> dict[str, Any]:
        retainer = self.retainers[retainer_id]
        return {
            "_id": retainer_id,
            "clientId": retainer.client,
            "currency": retainer.currency,
            "currentBalance": number(retainer.balance),
            "status": retainer.status,
        }

    def shown_invoice(self, invoice_id: str) -> dict[str, Any]:
        invoice = self.invoices[invoice_id]
        return {
            "_id": invoice_id,
            "clientId": invoice.client,
            "currency": invoice.currency,
            "totalAmount": number(invoice.total),
            "balanceDue": number(invoice.due),
            "amountPaid": number(invoice.total - invoice.due),
        }

    def shown_payment(self, payment_id: str) -> dict[str, Any]:
        payment = self.payments[payment_id]
        return {
            "_id": payment_id,
            "customerId": payment.customer,
            "currency": payment.currency,
            "amount": number(payment.amount),
            "status": payment.status,
        }

    def shown_transfer(self, transfer_id: str) -> dict[str, Any]:
        transfer = self.transfers[transfer_id]
        return {
            "_id": transfer_id,
            "fromAccountId": transfer.source,
            "toAccountId": transfer.target,
            "amount": number(transfer.amount),
            "fee": number(transfer.fee),
            "currency": self.banks[transfer.source].currency,
            "status": transfer.status,
        }

    def shown_bank(self, bank_id: str) -> dict[str, Any]:
        bank = self.banks[bank_id]
        return {
            "_id": bank_id,
            "currency": bank.currency,
            "availableBalance": number(bank.balance),
            "status": bank.status,
        }


def _refusals(*reasons: tuple[int, bool]) -> Refusals:
    return {status for status, applies in reasons if applies}

"""Which postings each business operation makes: pure, and balanced by construction.

An amount is signed and in minor units: positive is a debit, negative a credit. docs/accounts.md has an example of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from payment_service.ledger import chart_of_accounts


class LedgerOperation(StrEnum):
    """What an entry of the journal records."""

    RETAINER_OPENED = "retainer.opened"
    RETAINER_CONSUMED = "retainer.consumed"
    RETAINER_REPLENISHED = "retainer.replenished"
    INVOICE_ISSUED = "invoice.issued"
    INVOICE_PAID = "invoice.paid"
    PAYMENT_COMPLETED = "payment.completed"
    BANK_OPENED = "bank.opened"
    TRANSFER_MADE = "transfer.made"
    TRANSFER_CANCELLED = "transfer.cancelled"
    ORDER_PAID = "order.paid"
    ORDER_REFUNDED = "order.refunded"
    CORRECTION = "correction"


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of an entry: a debit of an account if `amount` is positive, a credit if it is negative."""

    account: str
    amount: int

    def effect(self) -> int:
        """By how much the account's balance changes."""
        return self.amount * chart_of_accounts.normal_sign(self.account)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """An entry that is still to be made. Raises ValueError unless its postings sum to zero, each to its own account."""

    operation: LedgerOperation
    currency: str
    postings: tuple[Posting, ...]
    reference: Mapping[str, str] = field(default_factory=dict)
    description: str | None = None
    reverses: str | None = None

    def __post_init__(self) -> None:
        if sum(posting.amount for posting in self.postings) != 0:
            raise ValueError(f"{self.operation}: the postings do not sum to zero")
        if len(self.postings) < 2 or not all(posting.amount for posting in self.postings):
            raise ValueError(f"{self.operation}: an entry has two postings or more, none of them of nothing")
        if len({posting.account for posting in self.postings}) < len(self.postings):
            raise ValueError(f"{self.operation}: an account has two postings")


def retainer_opened(retainer_id: str, amount: int, currency: str) -> JournalEntry:
    """A client pays in advance."""
    return JournalEntry(
        operation=LedgerOperation.RETAINER_OPENED,
        currency=currency,
        postings=_moved(
            amount, debit=chart_of_accounts.clearing(currency), credit=chart_of_accounts.retainer(retainer_id)
        ),
        reference={"retainerId": retainer_id},
    )


def retainer_replenished(
    retainer_id: str, amount: int, currency: str, *, payment_id: str | None = None, customer_id: str | None = None
) -> JournalEntry:
    """A client pays more in advance; from their credit where `customer_id` says whose that is, else from outside."""
    source = (
        chart_of_accounts.clearing(currency)
        if customer_id is None
        else chart_of_accounts.customer(customer_id, currency)
    )
    return JournalEntry(
        operation=LedgerOperation.RETAINER_REPLENISHED,
        currency=currency,
        postings=_moved(amount, debit=source, credit=chart_of_accounts.retainer(retainer_id)),
        reference=_ids(retainerId=retainer_id, paymentId=payment_id),
    )


def retainer_consumed(
    retainer_id: str, amount: int, currency: str, *, invoice_id: str | None = None, description: str | None = None
) -> JournalEntry:
    """What was paid in advance is earned, or pays an invoice."""
    earned = chart_of_accounts.revenue(currency) if invoice_id is None else chart_of_accounts.invoice(invoice_id)
    return JournalEntry(
        operation=LedgerOperation.RETAINER_CONSUMED,
        currency=currency,
        postings=_moved(amount, debit=chart_of_accounts.retainer(retainer_id), credit=earned),
        reference=_ids(retainerId=retainer_id, invoiceId=invoice_id),
        description=description,
    )


def order_paid(retainer_id: str, order_id: str, amount: int, currency: str) -> JournalEntry:
    """An order is paid from a retainer."""
    return JournalEntry(
        operation=LedgerOperation.ORDER_PAID,
        currency=currency,
        postings=_moved(
            amount, debit=chart_of_accounts.retainer(retainer_id), credit=chart_of_accounts.revenue(currency)
        ),
        reference={"orderId": order_id, "retainerId": retainer_id},
    )


def order_refunded(
    retainer_id: str, order_id: str, amount: int, currency: str, *, reverses: str | None = None
) -> JournalEntry:
    """An order's money goes back to its retainer; `reverses` is the entry by which it was paid."""
    return JournalEntry(
        operation=LedgerOperation.ORDER_REFUNDED,
        currency=currency,
        postings=_moved(
            amount, debit=chart_of_accounts.revenue(currency), credit=chart_of_accounts.retainer(retainer_id)
        ),
        reference={"orderId": order_id, "retainerId": retainer_id},
        reverses=reverses,
    )


def invoice_issued(invoice_id: str, amount: int, currency: str) -> JournalEntry:
    """A client owes us for something."""
    return JournalEntry(
        operation=LedgerOperation.INVOICE_ISSUED,
        currency=currency,
        postings=_moved(
            amount, debit=chart_of_accounts.invoice(invoice_id), credit=chart_of_accounts.revenue(currency)
        ),
        reference={"invoiceId": invoice_id},
    )


def invoice_paid(invoice_id: str, amount: int, currency: str, *, payment_method: str) -> JournalEntry:
    """A part of an invoice, or all of it, is paid from outside."""
    return JournalEntry(
        operation=LedgerOperation.INVOICE_PAID,
        currency=currency,
        postings=_moved(
            amount, debit=chart_of_accounts.clearing(currency), credit=chart_of_accounts.invoice(invoice_id)
        ),
        reference={"invoiceId": invoice_id},
        description=f"Paid by {payment_method}",
    )


def payment_completed(
    payment_id: str, customer_id: str, amount: int, currency: str, *, invoice_id: str | None = None
) -> JournalEntry:
    """A payment has arrived: it is the customer's credit, or pays the invoice that it was made for."""
    credited = (
        chart_of_accounts.customer(customer_id, currency)
        if invoice_id is None
        else chart_of_accounts.invoice(invoice_id)
    )
    return JournalEntry(
        operation=LedgerOperation.PAYMENT_COMPLETED,
        currency=currency,
        postings=_moved(amount, debit=chart_of_accounts.clearing(currency), credit=credited),
        reference=_ids(paymentId=payment_id, customerId=customer_id, invoiceId=invoice_id),
    )


def bank_opened(account_id: str, amount: int, currency: str) -> JournalEntry:
    """A bank account is entered with what it holds."""
    return JournalEntry(
        operation=LedgerOperation.BANK_OPENED,
        currency=currency,
        postings=_moved(amount, debit=chart_of_accounts.bank(account_id), credit=chart_of_accounts.opening(currency)),
        reference={"bankAccountId": account_id},
    )


def transfer_made(
    transfer_id: str, *, from_id: str, to_id: str, amount: int, fee: int, currency: str, description: str | None = None
) -> JournalEntry:
    """Money goes from one bank account to another; the sender also pays the fee."""
    fees = (Posting(chart_of_accounts.bank_fees(currency), fee),) if fee else ()
    return JournalEntry(
        operation=LedgerOperation.TRANSFER_MADE,
        currency=currency,
        postings=(
            Posting(chart_of_accounts.bank(to_id), amount),
            *fees,
            Posting(chart_of_accounts.bank(from_id), -(amount + fee)),
        ),
        reference={"transferId": transfer_id, "fromAccountId": from_id, "toAccountId": to_id},
        description=description,
    )


def transfer_cancelled(made: JournalEntry, entry_id: str, reason: str | None = None) -> JournalEntry:
    """The reverse of the transfer, fee included, that refers to the entry by which it was made."""
    return JournalEntry(
        operation=LedgerOperation.TRANSFER_CANCELLED,
        currency=made.currency,
        postings=tuple(Posting(posting.account, -posting.amount) for posting in made.postings),
        reference=made.reference,
        description=reason,
        reverses=entry_id,
    )


def _moved(amount: int, *, debit: str, credit: str) -> tuple[Posting, ...]:
    return (Posting(debit, amount), Posting(credit, -amount))


def _ids(**given: str | None) -> dict[str, str]:
    return {name: value for name, value in given.items() if value is not None}

"""The journal entry of each business operation: pure, and balanced by construction.

Amounts are signed minor units: a positive one is a debit, a negative one a credit. docs/accounts.md has an example of
each operation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from payment_service.ledger import chart_of_accounts


class LedgerOperation(StrEnum):
    """The business operation that a journal entry records."""

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
    ORDER_PART_REFUNDED = "order.part_refunded"
    CORRECTION = "correction"


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of a journal entry: a debit of the account if `amount` is positive, a credit if it is negative."""

    account: str
    amount: int

    def effect(self) -> int:
        """Return the change of the account's balance."""
        return self.amount * chart_of_accounts.normal_sign(self.account)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """A journal entry. Raises ValueError unless its postings sum to zero, with at most one for each account."""

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
            raise ValueError(f"{self.operation}: an entry has at least two postings, none of them zero")
        if len({posting.account for posting in self.postings}) < len(self.postings):
            raise ValueError(f"{self.operation}: an account has two postings")


def retainer_opened(retainer_id: str, amount: int, currency: str) -> JournalEntry:
    """Record what a client pays in advance."""
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
    """Record a further advance payment: from the credit of `customer_id` if given, else from outside."""
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
    """Record that a retainer is consumed: as revenue, or to pay an invoice."""
    credited = chart_of_accounts.revenue(currency) if invoice_id is None else chart_of_accounts.invoice(invoice_id)
    return JournalEntry(
        operation=LedgerOperation.RETAINER_CONSUMED,
        currency=currency,
        postings=_moved(amount, debit=chart_of_accounts.retainer(retainer_id), credit=credited),
        reference=_ids(retainerId=retainer_id, invoiceId=invoice_id),
        description=description,
    )


def order_paid(retainer_id: str, order_id: str, amount: int, currency: str) -> JournalEntry:
    """Record the payment of an order from a retainer."""
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
    """Record the refund of an order to its retainer; `reverses` is the entry of the payment, if all of it returns."""
    return JournalEntry(
        operation=LedgerOperation.ORDER_REFUNDED,
        currency=currency,
        postings=_moved(
            amount, debit=chart_of_accounts.revenue(currency), credit=chart_of_accounts.retainer(retainer_id)
        ),
        reference={"orderId": order_id, "retainerId": retainer_id},
        reverses=reverses,
    )


def order_part_refunded(retainer_id: str, order_id: str, refund_id: str, amount: int, currency: str) -> JournalEntry:
    """Record the refund of a part of an order to its retainer."""
    return JournalEntry(
        operation=LedgerOperation.ORDER_PART_REFUNDED,
        currency=currency,
        postings=_moved(
            amount, debit=chart_of_accounts.revenue(currency), credit=chart_of_accounts.retainer(retainer_id)
        ),
        reference={"orderId": order_id, "retainerId": retainer_id, "refundId": refund_id},
    )


def invoice_issued(invoice_id: str, amount: int, currency: str) -> JournalEntry:
    """Record an invoice to a client."""
    return JournalEntry(
        operation=LedgerOperation.INVOICE_ISSUED,
        currency=currency,
        postings=_moved(
            amount, debit=chart_of_accounts.invoice(invoice_id), credit=chart_of_accounts.revenue(currency)
        ),
        reference={"invoiceId": invoice_id},
    )


def invoice_paid(invoice_id: str, amount: int, currency: str, *, payment_method: str) -> JournalEntry:
    """Record a full or partial payment of an invoice from outside."""
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
    """Record the arrival of a customer's payment: it pays its invoice, or becomes the customer's credit."""
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
    """Record a bank account's opening balance."""
    return JournalEntry(
        operation=LedgerOperation.BANK_OPENED,
        currency=currency,
        postings=_moved(amount, debit=chart_of_accounts.bank(account_id), credit=chart_of_accounts.opening(currency)),
        reference={"bankAccountId": account_id},
    )


def transfer_made(
    transfer_id: str, *, from_id: str, to_id: str, amount: int, fee: int, currency: str, description: str | None = None
) -> JournalEntry:
    """Record a transfer between bank accounts; the sender also pays the fee."""
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
    """Record the reversal of a transfer, fee included; `entry_id` is the transfer's entry."""
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

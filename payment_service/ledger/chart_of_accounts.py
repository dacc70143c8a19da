"""The chart of accounts: the ids of all accounts, and the side that increases each of them.

The account of a retainer, an invoice, a bank account or a customer's credit has a document with its balance. A system
account has none, because every operation would contend for it; its balance is the sum of its postings.
`system:suspense:<currency>` is used only by `ordersaga accounts repair`.
"""

from enum import StrEnum

SYSTEM = "system"


class AccountKind(StrEnum):
    """The kinds of accounts that have a document."""

    RETAINER = "retainer"
    INVOICE = "invoice"
    BANK = "bank"
    CUSTOMER = "customer"


_DEBIT_NORMAL = (f"{AccountKind.INVOICE}:", f"{AccountKind.BANK}:", f"{SYSTEM}:clearing:", f"{SYSTEM}:bank-fees:")


def retainer(retainer_id: str) -> str:
    """Return the account of what a client has paid in advance: a liability."""
    return f"{AccountKind.RETAINER}:{retainer_id}"


def invoice(invoice_id: str) -> str:
    """Return the account of what is still due on an invoice: a receivable."""
    return f"{AccountKind.INVOICE}:{invoice_id}"


def bank(account_id: str) -> str:
    """Return the account of a bank account's balance."""
    return f"{AccountKind.BANK}:{account_id}"


def customer(customer_id: str, currency: str) -> str:
    """Return the account of a customer's credit: payments that are not applied to anything yet."""
    return f"{AccountKind.CUSTOMER}:{customer_id}:{currency}"


def clearing(currency: str) -> str:
    """Return the clearing account: money in transit to or from outside."""
    return f"{SYSTEM}:clearing:{currency}"


def revenue(currency: str) -> str:
    """Return the revenue account."""
    return f"{SYSTEM}:revenue:{currency}"


def opening(currency: str) -> str:
    """Return the counterpart of the opening balances of bank accounts."""
    return f"{SYSTEM}:opening:{currency}"


def bank_fees(currency: str) -> str:
    """Return the account of the fees for transfers."""
    return f"{SYSTEM}:bank-fees:{currency}"


def has_document(account: str) -> bool:
    """Return whether the account's balance is stored in a document."""
    return not account.startswith(f"{SYSTEM}:")


def id_without_kind(account: str) -> str:
    """Return the id by which the API knows the retainer, invoice or bank account."""
    return account.partition(":")[2]


def normal_sign(account: str) -> int:
    """Return +1 if debits (positive amounts) increase the account's balance, -1 if credits do."""
    return 1 if account.startswith(_DEBIT_NORMAL) else -1

"""The chart of accounts: what accounts there are, what they are called, and which side is their normal one.

An account that belongs to somebody (a retainer, an invoice, a bank account, a customer's credit) has a document and a
balance in it. A system account has neither, as every operation would wait for it; its balance is the sum of its
postings. `system:suspense:<currency>` is used by `ordersaga accounts repair` alone.
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
    """What a client has paid in advance and we owe them."""
    return f"{AccountKind.RETAINER}:{retainer_id}"


def invoice(invoice_id: str) -> str:
    """What is still due of an invoice."""
    return f"{AccountKind.INVOICE}:{invoice_id}"


def bank(account_id: str) -> str:
    """What we have in a bank account."""
    return f"{AccountKind.BANK}:{account_id}"


def customer(customer_id: str, currency: str) -> str:
    """What a customer has paid and is not applied to anything yet."""
    return f"{AccountKind.CUSTOMER}:{customer_id}:{currency}"


def clearing(currency: str) -> str:
    """Money on its way from and to the outside."""
    return f"{SYSTEM}:clearing:{currency}"


def revenue(currency: str) -> str:
    """What we have earned."""
    return f"{SYSTEM}:revenue:{currency}"


def opening(currency: str) -> str:
    """The other side of what bank accounts held when they were entered."""
    return f"{SYSTEM}:opening:{currency}"


def bank_fees(currency: str) -> str:
    """What transfers have cost us."""
    return f"{SYSTEM}:bank-fees:{currency}"


def has_document(account: str) -> bool:
    """Whether the account's balance is kept in a document."""
    return not account.startswith(f"{SYSTEM}:")


def id_without_kind(account: str) -> str:
    """The id without the kind: the id by which the API knows the retainer, invoice or bank account."""
    return account.partition(":")[2]


def normal_sign(account: str) -> int:
    """+1 if debits (positive amounts) increase the balance, -1 if credits do."""
    return 1 if account.startswith(_DEBIT_NORMAL) else -1

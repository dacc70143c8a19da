"""The chart of accounts: which kinds there are, and on which side each increases. Pure.

An account's id is `<kind>:<id>`. Accounts of the system, `system:<name>:<currency>`, have no document: their balance is
what their postings come to. The amount of a posting is positive for a debit and negative for a credit, in minor units.
"""

from typing import Any

from shared.money import to_json_number

Document = dict[str, Any]

DEBIT, CREDIT = 1, -1

SIDES = {
    "invoice": DEBIT,
    "bank": DEBIT,
    "retainer": CREDIT,
    "customer": CREDIT,
}
"""Accounts with a document, by their kind."""

SYSTEM_SIDES = {
    "clearing": DEBIT,
    "bank-fees": DEBIT,
    "revenue": CREDIT,
    "opening": CREDIT,
    "suspense": CREDIT,
}
"""Accounts of the system, by their name. In suspense stands what a repair could not explain."""


def side(account_id: str) -> int | None:
    """Return what a debit of 1 does to the account's balance, 1 or -1; None where there is no such account."""
    kind, _, rest = account_id.partition(":")
    if kind == "system":
        name, _, currency = rest.partition(":")
        return SYSTEM_SIDES.get(name) if currency else None
    return SIDES.get(kind) if rest else None


def is_system(account_id: str) -> bool:
    """Whether the account is one of the system's, without a document."""
    return account_id.startswith("system:")


def currency_of(account_id: str) -> str | None:
    """Return the currency that a system account's id names, None for other accounts."""
    return account_id.rpartition(":")[2] if is_system(account_id) else None


def suspense(currency: str) -> str:
    """Return the id of the account for what is not explained yet."""
    return f"system:suspense:{currency}"


def is_amount(value: object) -> bool:
    """Whether the value is a number of minor units: a whole one."""
    return isinstance(value, int) and not isinstance(value, bool)


def in_money(amount: object, currency: object) -> str:
    """Write an amount for people, in major units; what is no amount as it is."""
    if not isinstance(amount, int) or isinstance(amount, bool):
        return repr(amount)
    sign, (units, cents) = "-" if amount < 0 else "", divmod(abs(amount), 100)
    return f"{sign}{units:,}.{cents:02} {currency}"


def as_number(amount: object) -> int | float | None:
    """Return an amount as a JSON number in major units; None for what is no amount."""
    return to_json_number(amount) if isinstance(amount, int) and not isinstance(amount, bool) else None

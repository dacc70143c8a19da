"""The chart of accounts: the kinds of accounts, and the side on which each increases. Pure.

An account's id is `<kind>:<id>`. Accounts of the system, `system:<name>:<currency>`, have no document: their balance is
the sum of their postings. The amount of a posting is positive for a debit and negative for a credit, in minor units.
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
"""Accounts with a document, by kind."""

SYSTEM_SIDES = {
    "clearing": DEBIT,
    "bank-fees": DEBIT,
    "revenue": CREDIT,
    "opening": CREDIT,
    "suspense": CREDIT,
}
"""Accounts of the system, by name. Suspense takes the differences that a repair could not explain."""


def side(account_id: str) -> int | None:
    """Return the change that a debit of 1 makes to the account's balance, 1 or -1; None for an unknown account."""
    kind, _, rest = account_id.partition(":")
    if kind == "system":
        name, _, currency = rest.partition(":")
        return SYSTEM_SIDES.get(name) if currency else None
    return SIDES.get(kind) if rest else None


def is_system(account_id: str) -> bool:
    """Return whether the account is one of the system's, without a document."""
    return account_id.startswith("system:")


def currency_of(account_id: str) -> str | None:
    """Return the currency that a system account's id names, None for other accounts."""
    return account_id.rpartition(":")[2] if is_system(account_id) else None


def suspense(currency: str) -> str:
    """Return the id of the account for unexplained differences."""
    return f"system:suspense:{currency}"


def is_amount(value: object) -> bool:
    """Return whether the value is a whole number of minor units."""
    return isinstance(value, int) and not isinstance(value, bool)


def in_money(amount: object, currency: object) -> str:
    """Write an amount for people, in major units; any other value is shown as repr."""
    if not isinstance(amount, int) or isinstance(amount, bool):
        return repr(amount)
    sign, (units, cents) = "-" if amount < 0 else "", divmod(abs(amount), 100)
    return f"{sign}{units:,}.{cents:02} {currency}"


def as_number(amount: object) -> int | float | None:
    """Return an amount as a JSON number in major units; None for any other value."""
    return to_json_number(amount) if isinstance(amount, int) and not isinstance(amount, bool) else None

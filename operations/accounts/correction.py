"""Decides the corrections for a balance that differs from its postings. Pure: no I/O, no clock, no generated ids.

A balance only changes with a posting. So the difference is posted first, against `system:suspense:<currency>`: now the
journal has the movement that was never posted. If the postings are right, that entry is then reversed, which corrects
the balance; if the balance is right, the entry stays.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from operations.reading.balances import Balance
from operations.reading.chart_of_accounts import Document, in_money, is_amount, side, suspense
from shared.errors import RefusalError


class Keep(StrEnum):
    """The side that is right."""

    POSTINGS = "postings"
    BALANCE = "balance"


class Correction(NamedTuple):
    """The entries that correct the difference, and the account's balance and version after them."""

    entries: list[Document]
    balance: int
    version: int


class UncorrectableError(RefusalError):
    """The difference cannot be corrected this way; the message says why."""


def correct(balance: Balance, keep: Keep, reason: str, now: datetime, entry_ids: Iterator[str]) -> Correction:
    """Return the correction. Raises UncorrectableError if the difference cannot be corrected."""
    found, currency, account_side = _correctable(balance, keep)
    version = (balance.account or {}).get("version", 0)
    debit = account_side * (found - balance.recomputed)
    posted = _entry(balance, next(entry_ids), debit, found, version + 1, reason, now, currency)
    if keep is Keep.BALANCE:
        return Correction([posted], found, version + 1)
    # A later time keeps the two entries in order.
    later = now + timedelta(milliseconds=1)
    reversal = _entry(balance, next(entry_ids), -debit, balance.recomputed, version + 2, reason, later, currency)
    return Correction([posted, reversal | {"reverses": posted["_id"]}], balance.recomputed, version + 2)


def refusal(balance: Balance, keep: Keep) -> str | None:
    """Return why the difference cannot be corrected this way, None if it can."""
    try:
        _correctable(balance, keep)
    except UncorrectableError as error:
        return str(error)
    return None


def _correctable(balance: Balance, keep: Keep) -> tuple[int, str, int]:
    """Return the stored balance, the currency, and the account's normal side. Raises UncorrectableError."""
    account, currency, account_side = balance.account, balance.currency, side(balance.account_id)
    if account is None:
        raise UncorrectableError("there are postings, but the account's document is missing")
    found = account.get("balance")
    if not isinstance(found, int) or not is_amount(found) or not is_amount(account.get("version", 0)):
        raise UncorrectableError(f"its balance {found!r} or its version {account.get('version')!r} is not a number")
    if account_side is None or not isinstance(currency, str):
        raise UncorrectableError("it is not in the chart of accounts, or has no currency")
    kept = found if keep is Keep.BALANCE else balance.recomputed
    if kept < 0:
        what = "the balance is" if keep is Keep.BALANCE else "the postings add up to"
        raise UncorrectableError(f"{what} {in_money(kept, currency)}, and a balance must not be negative")
    return found, currency, account_side


def _entry(
    balance: Balance, entry_id: str, debit: int, after: int, version: int, reason: str, now: datetime, currency: str
) -> Document:
    return {
        "_id": entry_id,
        "at": now,
        "operation": "correction",
        "currency": currency,
        "postings": [
            {"account": balance.account_id, "amount": debit, "balanceAfter": after, "version": version},
            {"account": suspense(currency), "amount": -debit},
        ],
        "reference": {"accountId": balance.account_id},
        "description": reason,
    }

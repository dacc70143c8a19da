"""Decides what is written where a balance and its postings differ. Pure: no I/O, no clock, no ids of its own.

A balance changes only with a posting. So the difference is posted first, against the account of what is not explained
(`system:suspense:<currency>`): from then on the journal tells of the movement that nobody posted. If the postings are
right, that entry is reversed, and the balance goes with it; if the balance is right, the entry stays.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from operations.reading.balances import Balance
from operations.reading.chart_of_accounts import Document, in_money, is_amount, side, suspense


class Keep(StrEnum):
    """Which of the two is right."""

    POSTINGS = "postings"
    BALANCE = "balance"


class Correction(NamedTuple):
    """The entries that make a balance and its postings agree, and the account's balance and version after them."""

    entries: list[Document]
    balance: int
    version: int


class RefusedError(Exception):
    """The difference cannot be corrected so; the text says why."""


def correct(balance: Balance, keep: Keep, reason: str, now: datetime, entry_ids: Iterator[str]) -> Correction:
    """Return what is to be written. Raises RefusedError if nothing can be."""
    found, currency, account_side = _correctable(balance, keep)
    version = (balance.account or {}).get("version", 0)
    debit = account_side * (found - balance.recomputed)
    told = _entry(balance, next(entry_ids), debit, found, version + 1, reason, now, currency)
    if keep is Keep.BALANCE:
        return Correction([told], found, version + 1)
    # Whoever reads in the order of the times reads the second one second.
    later = now + timedelta(milliseconds=1)
    undone = _entry(balance, next(entry_ids), -debit, balance.recomputed, version + 2, reason, later, currency)
    return Correction([told, undone | {"reverses": told["_id"]}], balance.recomputed, version + 2)


def refusal(balance: Balance, keep: Keep) -> str | None:
    """Say why the difference cannot be corrected so; None if it can."""
    try:
        _correctable(balance, keep)
    except RefusedError as error:
        return str(error)
    return None


def _correctable(balance: Balance, keep: Keep) -> tuple[int, str, int]:
    """Return the balance as it was found, the currency, and the account's side."""
    account, currency, account_side = balance.account, balance.currency, side(balance.account_id)
    if account is None:
        raise RefusedError("there are postings, but no account: its document is gone")
    found = account.get("balance")
    if not isinstance(found, int) or not is_amount(found) or not is_amount(account.get("version", 0)):
        raise RefusedError(f"its balance is {found!r}, its version {account.get('version')!r}: no numbers to go by")
    if account_side is None or not isinstance(currency, str):
        raise RefusedError("it is no account of the chart of accounts, or has no currency")
    kept = found if keep is Keep.BALANCE else balance.recomputed
    if kept < 0:
        what = "the balance is" if keep is Keep.BALANCE else "the postings come to"
        raise RefusedError(f"{what} {in_money(kept, currency)}, and no balance is ever negative")
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

"""The corrections of a repair: entries that sum to zero, after which balance and postings agree, whichever is kept."""

from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.accounts.correction import Correction, Keep, UncorrectableError, correct, refusal
from operations.commands.accounts_display import missing_postings
from operations.reading.balances import Balance
from operations.reading.chart_of_accounts import side

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
ACCOUNTS = ["retainer:r1", "bank:b1", "invoice:i1", "customer:c1:USD"]
AMOUNTS = st.integers(-(10**14), 10**14)


def a_balance(account_id: str, found: Any, posted: int, version: Any = 3) -> Balance:
    account = {"_id": account_id, "currency": "USD", "balance": found, "version": version}
    return Balance(account_id, account, posted, 3, "USD")


def corrected(balance: Balance, keep: Keep) -> Correction:
    return correct(balance, keep, "counted again", NOW, (f"e{number}" for number in count()))


@given(st.sampled_from(ACCOUNTS), AMOUNTS, AMOUNTS, st.sampled_from(Keep))
def test_after_a_correction_balance_and_postings_agree(account_id: str, found: int, posted: int, keep: Keep) -> None:
    balance = a_balance(account_id, found, posted)
    kept = found if keep is Keep.BALANCE else balance.recomputed
    if kept < 0:
        assert refusal(balance, keep) is not None
        with pytest.raises(UncorrectableError):
            corrected(balance, keep)
        return
    assert refusal(balance, keep) is None
    correction = corrected(balance, keep)
    for entry in correction.entries:
        assert sum(posting["amount"] for posting in entry["postings"]) == 0
    moved = sum(entry["postings"][0]["amount"] for entry in correction.entries)
    assert correction.balance == kept == (posted + moved) * (side(account_id) or 0)
    last = correction.entries[-1]["postings"][0]
    assert (last["balanceAfter"], last["version"]) == (correction.balance, correction.version)


@given(st.sampled_from(ACCOUNTS), AMOUNTS, AMOUNTS)
def test_where_the_postings_are_right_the_second_entry_reverses_the_first(
    account_id: str, found: int, posted: int
) -> None:
    balance = a_balance(account_id, found, posted)
    if balance.recomputed < 0:
        return
    recorded, undone = corrected(balance, Keep.POSTINGS).entries
    assert undone["reverses"] == recorded["_id"]
    assert recorded["at"] < undone["at"]
    for first, second in zip(recorded["postings"], undone["postings"], strict=True):
        assert (first["account"], first["amount"]) == (second["account"], -second["amount"])
    assert recorded["postings"][0]["balanceAfter"] == found


@pytest.mark.parametrize(
    "balance",
    [
        Balance("bank:b1", None, 5, 1, "USD"),
        a_balance("bank:b1", "5", 6),
        a_balance("bank:b1", True, 6),
        a_balance("bank:b1", None, 6),
        a_balance("bank:b1", 5, 6, version="3"),
        a_balance("shelf:s1", 5, 6),
        a_balance("bank:b1", 5, 6)._replace(currency=None),
    ],
)
def test_an_impossible_correction_is_refused_with_a_reason(balance: Balance) -> None:
    for keep in Keep:
        assert refusal(balance, keep)


def test_missing_postings_are_counted() -> None:
    assert missing_postings(a_balance("bank:b1", 5, 6, version=5)) == 2
    assert missing_postings(a_balance("bank:b1", 5, 6, version=2)) == 0
    assert missing_postings(Balance("bank:b1", None, 5, 1, "USD")) == 0

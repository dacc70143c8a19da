"""The page on the chart of accounts has an example of every operation and every account, and its figures add up."""

import re
from decimal import Decimal
from pathlib import Path

import pytest

from operations.reading.chart_of_accounts import SIDES, SYSTEM_SIDES, side
from payment_service.ledger.journal_entries import LedgerOperation

PAGE = (Path(__file__).parents[2] / "docs/accounts.md").read_text()
ROW = re.compile(r"^\| `([^`]+)` \| ([\d.]*) ?\| ([\d.]*) ?\| ([\d.]*) ?\|$", re.MULTILINE)
Row = tuple[str, Decimal, str]
"""An account, its debits less its credits, and the balance after them, if it has one."""


def entries() -> list[list[Row]]:
    """The rows of each example."""
    tables = re.findall(r"\| account \| debit \| credit \| balance after \|\n\|---.*\n((?:\|.*\n)+)", PAGE)
    return [
        [(account, Decimal(debit or 0) - Decimal(credit or 0), after) for account, debit, credit, after in rows]
        for rows in (ROW.findall(table) for table in tables)
    ]


@pytest.mark.parametrize("operation", LedgerOperation)
def test_every_operation_has_an_example(operation: LedgerOperation) -> None:
    section = PAGE.partition(f"### `{operation}`\n")[2].partition("\n#")[0]
    assert ROW.search(section), f"docs/accounts.md has no example of {operation}"


@pytest.mark.parametrize("account", [*SIDES, *(f"system:{name}" for name in SYSTEM_SIDES)])
def test_every_account_is_in_the_chart(account: str) -> None:
    assert f"| `{account}:<" in PAGE


def test_the_examples_add_up() -> None:
    balances: dict[str, Decimal] = {}
    for rows in entries():
        assert len(rows) >= 2
        assert sum(amount for _, amount, _ in rows) == 0
        for account, amount, after in rows:
            balances[account] = balances.get(account, Decimal(0)) + amount * (side(account) or 0)
            assert after == ("" if account.startswith("system:") else f"{balances[account]:.2f}"), account

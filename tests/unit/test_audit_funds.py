"""The audit's judgement of funds: it knows the accounts and the entries that the service writes, and no others."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.audit import funds
from operations.audit.funds import EntryRecords, RetainerOrder
from operations.reading.balances import Balance
from operations.reading.chart_of_accounts import currency_of, in_money, is_system, side
from payment_service.ledger import chart_of_accounts, journal_entries
from payment_service.ledger.journal_entries import JournalEntry

Document = dict[str, Any]

ACCOUNTS = [
    chart_of_accounts.retainer("r1"),
    chart_of_accounts.invoice("i1"),
    chart_of_accounts.bank("b1"),
    chart_of_accounts.customer("c:1", "USD"),
    chart_of_accounts.clearing("USD"),
    chart_of_accounts.revenue("USD"),
    chart_of_accounts.opening("USD"),
    chart_of_accounts.bank_fees("USD"),
]

MADE = journal_entries.transfer_made("t1", from_id="b1", to_id="b2", amount=500, fee=20, currency="USD")
ENTRIES = [
    journal_entries.retainer_opened("r1", 500, "USD"),
    journal_entries.retainer_replenished("r1", 500, "USD"),
    journal_entries.retainer_replenished("r1", 500, "USD", payment_id="p1", customer_id="c1"),
    journal_entries.retainer_consumed("r1", 500, "USD"),
    journal_entries.retainer_consumed("r1", 500, "USD", invoice_id="i1"),
    journal_entries.invoice_issued("i1", 500, "USD"),
    journal_entries.invoice_paid("i1", 500, "USD", payment_method="wire"),
    journal_entries.payment_completed("p1", "c1", 500, "USD"),
    journal_entries.payment_completed("p1", "c1", 500, "USD", invoice_id="i1"),
    journal_entries.bank_opened("b1", 500, "USD"),
    MADE,
    journal_entries.transfer_cancelled(MADE, "made"),
    journal_entries.order_paid("r1", "o1", 500, "USD"),
    journal_entries.order_refunded("r1", "o1", 500, "USD", reverses="paid"),
]


def an_entry(made: JournalEntry, entry_id: str = "e1") -> Document:
    postings = [{"account": posting.account, "amount": posting.amount} for posting in made.postings]
    known = {"operation": str(made.operation), "currency": made.currency, "reference": dict(made.reference)}
    return {"_id": entry_id, "postings": postings, "reverses": made.reverses, **known}


PAYMENT = {"_id": "p1", "customerId": "c1", "amount": 500, "currency": "USD", "status": "completed", "entryId": "e1"}
TRANSFER = {
    "_id": "t1",
    "fromAccountId": "b1",
    "toAccountId": "b2",
    "amount": 500,
    "fee": 20,
    "currency": "USD",
    "status": "cancelled",
    "entryId": "made",
    "cancelEntryId": "e1",
}
REVERSED = {
    "made": an_entry(MADE, "made"),
    "paid": an_entry(journal_entries.order_paid("r1", "o1", 500, "USD"), "paid"),
}


def records(entry: Document, **about: Document) -> EntryRecords:
    transfer = TRANSFER if entry["operation"] == "transfer.cancelled" else TRANSFER | {"entryId": "e1"}
    accounts = {account: {"currency": "USD"} for account in ACCOUNTS if not is_system(account)}
    return EntryRecords(entry, accounts, {"p1": PAYMENT}, {"t1": transfer}, REVERSED)._replace(**about)


def kinds(violations: Iterator[Any]) -> list[str]:
    return [violation.kind for violation in violations]


@pytest.mark.parametrize("account", ACCOUNTS)
def test_the_accounts_of_the_service_are_on_the_audits_chart(account: str) -> None:
    assert side(account) == chart_of_accounts.normal_sign(account)
    assert is_system(account) != chart_of_accounts.has_document(account)
    assert currency_of(account) == ("USD" if is_system(account) else None)


@pytest.mark.parametrize("account", ["", "retainer", "retainer:", "revenue:USD", "system:revenue", "system:x:USD"])
def test_an_account_outside_the_chart_has_no_side(account: str) -> None:
    assert side(account) is None


@pytest.mark.parametrize("made", ENTRIES, ids=lambda made: made.operation)
def test_an_entry_of_the_service_is_not_wrong(made: JournalEntry) -> None:
    assert kinds(funds.judge_entry(records(an_entry(made)))) == []


@given(st.sampled_from(ENTRIES), st.data())
def test_an_entry_with_any_other_amount_is_wrong(made: JournalEntry, data: st.DataObject) -> None:
    entry = an_entry(made)
    changed = data.draw(st.sampled_from(entry["postings"]))
    changed["amount"] += data.draw(st.integers(-1000, 1000).filter(bool))
    assert "unbalanced" in kinds(funds.judge_entry(records(entry)))


@pytest.mark.parametrize("amount", [1.5, "500", None, True])
def test_an_invalid_amount_is_wrong(amount: Any) -> None:
    entry = an_entry(ENTRIES[0])
    entry["postings"][0]["amount"] = amount
    assert kinds(funds.judge_entry(records(entry))) == ["postings"]


def test_a_correction_may_record_a_negative_balance() -> None:
    entry = an_entry(ENTRIES[3])
    entry["postings"][0]["balanceAfter"] = -1
    assert kinds(funds.judge_entry(records(entry))) == ["overdrawn"]
    assert kinds(funds.judge_entry(records(entry | {"operation": "correction"}))) == []


def test_a_record_agrees_with_its_entries() -> None:
    completed = an_entry(journal_entries.payment_completed("p1", "c1", 500, "USD"))
    assert kinds(funds.judge_payment(PAYMENT, {"e1": completed})) == []
    for changes in ({"amount": 501}, {"currency": "EUR"}, {"customerId": "c2"}, {"invoiceId": "i1"}, {"entryId": "e2"}):
        assert kinds(funds.judge_payment(PAYMENT | changes, {"e1": completed})) == ["payment"], changes

    entries = {"made": an_entry(MADE, "made"), "e1": an_entry(journal_entries.transfer_cancelled(MADE, "made"))}
    assert kinds(funds.judge_transfer(TRANSFER, entries)) == []
    for changes in ({"amount": 501}, {"fee": 0}, {"toAccountId": "b3"}, {"currency": "EUR"}):
        assert "transfer" in kinds(funds.judge_transfer(TRANSFER | changes, entries)), changes
    assert kinds(funds.judge_transfer(TRANSFER | {"status": "completed"}, entries)) == ["cancelled transfer"]
    assert kinds(funds.judge_transfer(TRANSFER | {"cancelEntryId": "made"}, entries)) == ["cancelled transfer"]


PAID = an_entry(journal_entries.order_paid("r1", "o1", 500, "USD"), "paid")
REFUNDED = an_entry(journal_entries.order_refunded("r1", "o1", 500, "USD", reverses="paid"), "back")
ORDERS_PAYMENT = {"_id": "o1", "amount": 500, "currency": "USD", "retainerId": "r1"}
FREE = {"amount": 0, "transactionId": "no-charge"}


@pytest.mark.parametrize(
    ("status", "entries"),
    [("PROCESSED", [PAID]), ("REFUNDED", [PAID, REFUNDED]), ("PENDING", []), ("FAILED", []), ("VOIDED", [])],
)
def test_an_order_paid_from_a_retainer_has_its_entries_and_no_others(status: str, entries: list[Document]) -> None:
    paid = {"transactionId": "paid"} if entries else {}
    payment = ORDERS_PAYMENT | {"status": status} | paid
    for among in ([], [PAID], [REFUNDED], [PAID, REFUNDED], [PAID, PAID], [PAID, REFUNDED, REFUNDED]):
        wrong = kinds(funds.judge_order(RetainerOrder("o1", payment, among)))
        assert (wrong == []) == (among == entries), among


@pytest.mark.parametrize("status", ["PROCESSED", "REFUNDED"])
def test_an_order_that_costs_nothing_has_no_entries(status: str) -> None:
    payment = ORDERS_PAYMENT | FREE | {"status": status}
    assert kinds(funds.judge_order(RetainerOrder("o1", payment, []))) == []
    assert kinds(funds.judge_order(RetainerOrder("o1", payment, [PAID]))) == ["retainer payment"]


def without_payment(*paid: RetainerOrder, **archived: Document) -> list[str]:
    unpaid, found = funds.UnpaidOrders(), list[str]()
    for order in chain.from_iterable(map(funds.of_each_order, paid)):
        found += kinds(funds.judge_order(order))
        unpaid.add(order)
    by_account = {f"retainer:{name}": totals for name, totals in archived.items()}
    return found + kinds(unpaid.violations(by_account))


def test_entries_whose_order_is_deleted_cancel_out() -> None:
    assert without_payment(RetainerOrder("o1", None, [PAID, REFUNDED])) == []
    assert without_payment(RetainerOrder("o1", None, [PAID])) == ["entry without payment"]
    assert without_payment(RetainerOrder("o1", None, [REFUNDED])) == ["refund entry"]
    other = an_entry(journal_entries.order_refunded("r1", "o1", 400, "USD"), "back")
    assert without_payment(RetainerOrder("o1", None, [PAID, other])) == ["refund entry"]
    part = an_entry(journal_entries.order_part_refunded("r1", "o1", "r1", 400, "USD"), "part")
    assert without_payment(RetainerOrder("o1", None, [PAID, part])) == ["entry without payment"]
    assert without_payment(RetainerOrder("o1", None, [part])) == ["refund entry"]


def test_entries_of_archived_orders_add_up_to_the_totals_of_their_retainer() -> None:
    part = an_entry(journal_entries.order_part_refunded("r1", "o2", "r1", 400, "USD"), "part")
    paid = [RetainerOrder("o1", None, [PAID]), RetainerOrder("o2", None, [PAID, part])]
    assert without_payment(*paid, r1={"amount": 600, "orders": 2}) == []
    for amount, orders in ((600, 1), (500, 2), (1000, 2)):
        assert without_payment(*paid, r1={"amount": amount, "orders": orders}) == ["archived payments"]
    assert without_payment(*paid, r2={"amount": 600, "orders": 2}) == [
        *["entry without payment"] * 2,
        "archived payments",
    ]
    for totals in ({"amount": 600, "orders": 2}, {"amount": 1, "orders": 0}):
        assert without_payment(r1=totals) == ["archived payments"]


def test_an_order_placed_again_under_the_id_of_a_deleted_one_is_not_paid_twice() -> None:
    created = datetime(2026, 5, 4, tzinfo=UTC)
    before, after = ({"at": created + timedelta(days=days)} for days in (-1, 0))
    payment = ORDERS_PAYMENT | {"status": "PROCESSED", "transactionId": "again", "createdAt": created}
    again = PAID | {"_id": "again"}
    archived, cancelled = [PAID | before], [PAID | before, REFUNDED | before]
    assert without_payment(RetainerOrder("o1", payment, [again | after, *cancelled])) == []
    assert without_payment(RetainerOrder("o1", payment, [again | before, *cancelled])) == []
    paid = RetainerOrder("o1", payment, [*archived, again | after, *cancelled])
    assert without_payment(paid, r1={"amount": 500, "orders": 1}) == []
    assert without_payment(paid) == ["entry without payment"]
    declined = payment | {"status": "FAILED", "transactionId": None}
    assert without_payment(RetainerOrder("o1", declined, cancelled)) == []
    assert "paid twice" in without_payment(RetainerOrder("o1", payment, [again | after, PAID | after]))
    twice = RetainerOrder("o1", None, [PAID, again])
    assert without_payment(twice, r1={"amount": 1000, "orders": 2}) == []
    assert without_payment(twice) == ["entry without payment"] * 2


def test_a_refund_by_a_process_whose_clock_is_behind_is_of_this_order() -> None:
    created = datetime(2026, 5, 4, tzinfo=UTC)
    paid, early = PAID | {"at": created}, {"at": created - timedelta(seconds=1)}
    payment = ORDERS_PAYMENT | {"transactionId": "paid", "createdAt": created}
    assert without_payment(RetainerOrder("o1", payment | {"status": "REFUNDED"}, [paid, REFUNDED | early])) == []
    part = an_entry(journal_entries.order_part_refunded("r1", "o1", "r1", 400, "USD"), "part") | early
    parts = [{"refundId": "r1", "amount": 400, "status": "REFUNDED", "entryId": "part"}]
    partly = payment | {"status": "PROCESSED", "parts": parts}
    assert without_payment(RetainerOrder("o1", partly, [paid, part])) == []
    # The id of a deleted order, placed again.
    former = [entry | {"at": created - timedelta(days=1)} for entry in (PAID, REFUNDED)]
    again = [paid | {"_id": "again"}, REFUNDED | early | {"_id": "undone", "reverses": "again"}]
    refunded = payment | {"status": "REFUNDED", "transactionId": "again"}
    assert without_payment(RetainerOrder("o1", refunded, [*former, *again])) == []


def a_balance(account_id: str, balance: Any, posted_sum: int, **fields: Any) -> Balance:
    kind = account_id.partition(":")[0]
    return Balance(account_id, {"kind": kind, "currency": "USD", "balance": balance, **fields}, posted_sum, 1, "USD")


@pytest.mark.parametrize(
    ("balance", "wrong"),
    [
        (a_balance("bank:b1", 5, 5), []),
        (a_balance("retainer:r1", 5, -5), []),
        (a_balance("retainer:r1", 5, 5), ["balance", "negative balance"]),
        (a_balance("retainer:r1", "5", -5), ["balance"]),
        (a_balance("retainer:r1", True, -1), ["balance"]),
        (a_balance("bank:b1", -5, -5), ["negative balance"]),
        (a_balance("invoice:i1", 5, 5, totalAmount=5), []),
        (a_balance("invoice:i1", 6, 6, totalAmount=5), ["invoice"]),
        (a_balance("invoice:i1", -1, -1, totalAmount=5), ["overpaid invoice"]),
        (Balance("bank:b1", None, 5, 1, "USD"), ["unknown account"]),
        (Balance("system:revenue:USD", None, 5, 1, "USD"), []),
    ],
)
def test_an_account_is_judged_by_its_postings(balance: Balance, wrong: list[str]) -> None:
    assert kinds(funds.judge_account(balance)) == wrong


def test_amounts() -> None:
    assert in_money(123456789, "USD") == "1,234,567.89 USD"
    assert in_money(-5, "USD") == "-0.05 USD"
    assert in_money("5", "USD") == "'5'"

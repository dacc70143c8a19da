"""Journal entries: the postings of every operation balance, and move each account in the expected direction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payment_service.ledger import chart_of_accounts, journal_entries
from payment_service.ledger.journal_entries import JournalEntry, LedgerOperation, Posting
from shared.money import MAX_MINOR_UNITS

amounts = st.integers(min_value=1, max_value=MAX_MINOR_UNITS)
fees = st.integers(min_value=0, max_value=MAX_MINOR_UNITS)
maybe_id = st.none() | st.just("i1")


def effects(entry: JournalEntry) -> dict[str, int]:
    return {posting.account: posting.effect() for posting in entry.postings}


def assert_balanced(entry: JournalEntry) -> None:
    assert sum(posting.amount for posting in entry.postings) == 0
    assert all(posting.amount for posting in entry.postings)


@given(amounts)
def test_a_retainer_opened_or_replenished_holds_what_came_in(amount: int) -> None:
    for entry in (
        journal_entries.retainer_opened("r1", amount, "USD"),
        journal_entries.retainer_replenished("r1", amount, "USD", payment_id="outside"),
    ):
        assert_balanced(entry)
        assert effects(entry) == {"retainer:r1": amount, "system:clearing:USD": amount}


@given(amounts)
def test_a_retainer_replenished_from_a_payment_takes_it_from_the_customers_credit(amount: int) -> None:
    entry = journal_entries.retainer_replenished("r1", amount, "EUR", payment_id="p1", customer_id="c1")
    assert_balanced(entry)
    assert effects(entry) == {"retainer:r1": amount, "customer:c1:EUR": -amount}
    assert entry.reference == {"retainerId": "r1", "paymentId": "p1"}


@given(amounts, maybe_id)
def test_consumption_is_earned_or_pays_the_invoice(amount: int, invoice_id: str | None) -> None:
    entry = journal_entries.retainer_consumed("r1", amount, "USD", invoice_id=invoice_id)
    assert_balanced(entry)
    other = {"system:revenue:USD": amount} if invoice_id is None else {"invoice:i1": -amount}
    assert effects(entry) == {"retainer:r1": -amount, **other}


@given(amounts)
def test_an_orders_refund_undoes_its_payment(amount: int) -> None:
    paid = journal_entries.order_paid("r1", "o1", amount, "USD")
    refunded = journal_entries.order_refunded("r1", "o1", amount, "USD", reverses="e1")
    assert_balanced(paid)
    assert effects(paid) == {"retainer:r1": -amount, "system:revenue:USD": amount}
    assert effects(refunded) == {account: -effect for account, effect in effects(paid).items()}
    assert refunded.reverses == "e1"


@given(amounts, amounts)
def test_an_invoice_is_due_until_it_is_paid(total: int, part: int) -> None:
    issued, paid = (
        journal_entries.invoice_issued("i1", total, "USD"),
        journal_entries.invoice_paid("i1", part, "USD", payment_method="cash"),
    )
    assert_balanced(issued)
    assert_balanced(paid)
    assert effects(issued) == {"invoice:i1": total, "system:revenue:USD": total}
    assert effects(paid) == {"invoice:i1": -part, "system:clearing:USD": part}


@given(amounts, maybe_id)
def test_a_completed_payment_pays_its_invoice_or_is_the_customers_credit(amount: int, invoice_id: str | None) -> None:
    entry = journal_entries.payment_completed("p1", "c1", amount, "USD", invoice_id=invoice_id)
    assert_balanced(entry)
    credited = {"customer:c1:USD": amount} if invoice_id is None else {"invoice:i1": -amount}
    assert effects(entry) == {"system:clearing:USD": amount, **credited}


@given(amounts)
def test_a_bank_account_opens_with_what_it_holds(amount: int) -> None:
    entry = journal_entries.bank_opened("b1", amount, "USD")
    assert_balanced(entry)
    assert effects(entry) == {"bank:b1": amount, "system:opening:USD": amount}


@given(amounts, fees)
def test_a_transfer_costs_the_sender_the_fee_and_its_cancellation_returns_everything(amount: int, fee: int) -> None:
    made = journal_entries.transfer_made("t1", from_id="a", to_id="b", amount=amount, fee=fee, currency="USD")
    cancelled = journal_entries.transfer_cancelled(made, "e1", "by mistake")
    assert_balanced(made)
    assert_balanced(cancelled)
    fees_posted = {"system:bank-fees:USD": fee} if fee else {}
    assert effects(made) == {"bank:a": -(amount + fee), "bank:b": amount, **fees_posted}
    assert effects(cancelled) == {account: -effect for account, effect in effects(made).items()}
    assert (cancelled.reverses, cancelled.reference) == ("e1", made.reference)


@pytest.mark.parametrize(
    "postings",
    [
        (Posting("retainer:r1", -5), Posting("system:clearing:USD", 4)),
        (Posting("retainer:r1", 0), Posting("system:clearing:USD", 0)),
        (Posting("retainer:r1", -5), Posting("retainer:r1", 5)),
        (),
    ],
    ids=["unbalanced", "zero", "one account twice", "empty"],
)
def test_an_invalid_entry_cannot_be_created(postings: tuple[Posting, ...]) -> None:
    with pytest.raises(ValueError, match=r"correction"):
        JournalEntry(operation=LedgerOperation.CORRECTION, currency="USD", postings=postings)


@pytest.mark.parametrize(
    ("account", "sign"),
    [
        (chart_of_accounts.invoice("1"), 1),
        (chart_of_accounts.bank("1"), 1),
        (chart_of_accounts.clearing("USD"), 1),
        (chart_of_accounts.bank_fees("USD"), 1),
        (chart_of_accounts.retainer("1"), -1),
        (chart_of_accounts.customer("bank:1", "USD"), -1),
        (chart_of_accounts.revenue("USD"), -1),
        (chart_of_accounts.opening("USD"), -1),
    ],
)
def test_each_account_has_its_normal_side(account: str, sign: int) -> None:
    assert chart_of_accounts.normal_sign(account) == sign
    assert chart_of_accounts.has_document(account) == (not account.startswith("system:"))

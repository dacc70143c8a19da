"""Judges the books of funds: accounts, entries, payments, transfers, orders paid from a retainer. Pure: no I/O.

Every operation on funds is one transaction, and what belongs together is read at one moment: so nothing is half done,
and whatever disagrees is wrong.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from operations.audit.report import Subject, Violation
from operations.reading.balances import Balance
from operations.reading.chart_of_accounts import Document, currency_of, in_money, is_amount, is_system, side

COMPLETED, CANCELLED, PENDING = "completed", "cancelled", "pending"

NO_CHARGE = "no-charge"
"""The transaction id that stands for nothing to pay."""


class Posted(NamedTuple):
    """An entry, and what it is about, by id: the accounts that it moves, the payment or transfer, what it reverses."""

    entry: Document
    accounts: Mapping[str, Document]
    payments: Mapping[str, Document]
    transfers: Mapping[str, Document]
    reversed: Mapping[str, Document]

    @property
    def id(self) -> str:
        """The entry's id."""
        return str(self.entry["_id"])


class PaidFromRetainer(NamedTuple):
    """An order's payment from a retainer, None if there is none, and the entries of the journal about that order."""

    order_id: str
    payment: Document | None
    entries: Sequence[Document]


# --- Accounts. ---


def judge_account(balance: Balance) -> Iterator[Violation]:
    """Judge an account by its document and by what its postings come to."""
    account_id, account = balance.account_id, balance.account
    if account is None:
        if not is_system(account_id):
            found = f"{balance.postings} postings to an account that does not exist"
            yield _violation("unknown account", "account", account_id, found, "an account of this id")
        return
    currency, kept = balance.currency, account.get("balance")
    posted = in_money(balance.recomputed, currency)
    if not balance.agrees:
        found = f"a balance of {in_money(kept, currency)}"
        expected = f"{posted}, what its {balance.postings} postings come to"
        yield _violation("balance", "account", account_id, found, expected)
    lowest = min(amount for amount in (kept, balance.recomputed) if is_amount(amount) and isinstance(amount, int))
    if lowest < 0:
        kind = "overpaid invoice" if account.get("kind") == "invoice" else "negative balance"
        found = f"a balance of {in_money(kept, currency)}, and postings that come to {posted}"
        yield _violation(kind, "account", account_id, found, "0 or more")
    if account.get("kind") == "invoice":
        yield from _invoice(balance, account)


def _invoice(balance: Balance, account: Document) -> Iterator[Violation]:
    total, due = account.get("totalAmount"), account.get("balance")
    if not isinstance(total, int) or (isinstance(due, int) and due > total):
        found = f"{in_money(due, balance.currency)} due of {in_money(total, balance.currency)}"
        yield _violation("invoice", "account", balance.account_id, found, "no more due than the invoice's total")


# --- Entries. ---


def judge_entry(posted: Posted) -> Iterator[Violation]:
    """Judge an entry of the journal by itself, and by what it is about."""
    yield from _sums_to_zero(posted)
    yield from _has_accounts(posted)
    yield from _has_its_payment(posted)
    yield from _has_its_transfer(posted)
    yield from _reverses(posted)


def _sums_to_zero(posted: Posted) -> Iterator[Violation]:
    postings, currency = _postings(posted.entry), posted.entry.get("currency")
    amounts = [posting.get("amount") for posting in postings]
    if len(amounts) < 2 or not all(is_amount(amount) for amount in amounts):
        found = f"postings of {', '.join(map(repr, amounts)) or 'nothing'}"
        yield _entry(posted, "postings", found, "two or more, of whole minor units")
    elif total := sum(amount for amount in amounts if isinstance(amount, int)):
        yield _entry(posted, "unbalanced", f"postings that come to {in_money(total, currency)}", "postings to zero")
    below = [p for p in postings if isinstance(p.get("balanceAfter"), int) and p["balanceAfter"] < 0]
    # A correction says what it found, be it negative.
    if below and posted.entry.get("operation") != "correction":
        account, after = below[0].get("account"), in_money(below[0]["balanceAfter"], currency)
        yield _entry(posted, "overdrawn", f"it left {account} with {after}", "0 or more, at every moment")


def _has_accounts(posted: Posted) -> Iterator[Violation]:
    currency = posted.entry.get("currency")
    for account_id in dict.fromkeys(str(posting.get("account")) for posting in _postings(posted.entry)):
        if side(account_id) is None:
            yield _entry(posted, "account", f"a posting to {account_id!r}", "accounts of the chart of accounts")
            continue
        account = posted.accounts.get(account_id)
        accounts_currency = currency_of(account_id) or (account or {}).get("currency", currency)
        if accounts_currency != currency:
            found = f"an entry in {currency} that moves {account_id}, which is in {accounts_currency}"
            yield _entry(posted, "currency", found, "one currency in an entry")


def _has_its_payment(posted: Posted) -> Iterator[Violation]:
    """A completed payment names its one entry: another that completes it again is found from the entry's side."""
    if posted.entry.get("operation") != "payment.completed":
        return
    payment_id = _reference(posted.entry, "paymentId")
    payment = posted.payments.get(payment_id)
    if payment is None:
        found = f"it completes payment {payment_id}, which does not exist"
        yield _entry(posted, "payment of nobody", found, "a payment of this id")
    elif payment.get("status") != COMPLETED:
        found = f"it completes payment {payment_id}, which is {payment.get('status')}"
        yield _entry(posted, "payment not completed", found, "a payment that is completed")
    elif payment.get("entryId") != posted.id:
        found = f"it completes payment {payment_id}, which entry {payment.get('entryId')} completed"
        yield _entry(posted, "completed twice", found, "one completion of a payment")


def _has_its_transfer(posted: Posted) -> Iterator[Violation]:
    names = {"transfer.made": ("entryId", "made"), "transfer.cancelled": ("cancelEntryId", "cancelled")}
    if (operation := str(posted.entry.get("operation"))) not in names:
        return
    name, done = names[operation]
    transfer_id = _reference(posted.entry, "transferId")
    transfer = posted.transfers.get(transfer_id)
    if transfer is None:
        found = f"transfer {transfer_id} {done} by it does not exist"
        yield _entry(posted, "transfer of nobody", found, "a transfer of this id")
    elif transfer.get(name) != posted.id:
        found = f"transfer {transfer_id}, {done} by entry {transfer.get(name)} already, {done} by it"
        yield _entry(posted, f"transfer {done} twice", found, f"a transfer {done} once")


def _reverses(posted: Posted) -> Iterator[Violation]:
    if (reverses := posted.entry.get("reverses")) is None:
        if posted.entry.get("operation") == "transfer.cancelled":
            yield _entry(posted, "reversal", "it cancels a transfer and reverses nothing", "the entry that it reverses")
        return
    first = posted.reversed.get(str(reverses))
    if first is None:
        yield _entry(posted, "reversal", f"it reverses entry {reverses}, which does not exist", "an entry of this id")
    elif _moved(first) != _negated(_moved(posted.entry)) or first.get("currency") != posted.entry.get("currency"):
        found = f"other postings than those of entry {reverses}, turned round"
        yield _entry(posted, "reversal", found, "the opposite of what it reverses")


def reversed_twice(entry_id: str, number: int, by: Sequence[str]) -> Violation:
    """An entry that so many others reverse, these among them."""
    found = f"reversed by {number} entries, by {' and '.join(by)} among them"
    return _violation("reversed twice", "entry", entry_id, found, "reversed at most once")


# --- Payments and transfers. ---


def judge_payment(payment: Document, entries: Mapping[str, Document]) -> Iterator[Violation]:
    """Judge a payment by the entry that it says it was completed by."""
    payment_id, status, entry_id = str(payment["_id"]), payment.get("status"), payment.get("entryId")
    if status == PENDING and entry_id is None:
        return
    if status == PENDING:
        found = f"pending, and completed by entry {entry_id}"
        yield _violation("payment", "payment", payment_id, found, "no entry before it is completed")
    elif status != COMPLETED:
        yield _violation("payment", "payment", payment_id, f"status {status!r}", "pending or completed")
    else:
        yield from _is_in_the_books(payment, entries.get(str(entry_id)))


def _is_in_the_books(payment: Document, entry: Document | None) -> Iterator[Violation]:
    payment_id, amount, currency = str(payment["_id"]), payment.get("amount"), payment.get("currency")
    expected = f"one entry that completes it, of {in_money(amount, currency)}"
    if entry is None or not _is_about(entry, "payment.completed", "paymentId", payment_id):
        found = f"completed by entry {payment.get('entryId')}, which is {_entry_text(entry)}"
        yield _violation("payment", "payment", payment_id, found, expected)
        return
    target = f"invoice:{payment['invoiceId']}" if payment.get("invoiceId") else _customer(payment)
    if not _moves(entry, target, amount, currency, sign=-1):
        found = f"completed by entry {entry['_id']}, which posts {_postings_text(entry)}"
        yield _violation("payment", "payment", payment_id, found, f"{expected}, to {target}")


def _customer(payment: Document) -> str:
    return f"customer:{payment.get('customerId')}:{payment.get('currency')}"


def judge_transfer(transfer: Document, entries: Mapping[str, Document]) -> Iterator[Violation]:
    """Judge a transfer by the entries that it says it was made and cancelled by."""
    transfer_id, status = str(transfer["_id"]), transfer.get("status")
    made, undone = entries.get(str(transfer.get("entryId"))), entries.get(str(transfer.get("cancelEntryId")))
    if made is None or not _is_about(made, "transfer.made", "transferId", transfer_id) or not _carries(made, transfer):
        found = f"made by entry {transfer.get('entryId')}, which is {_entry_text(made)}"
        expected = f"an entry of {in_money(transfer.get('amount'), transfer.get('currency'))} between its accounts"
        yield _violation("transfer", "transfer", transfer_id, found, expected)
    if status == CANCELLED:
        if (
            undone is None
            or not _is_about(undone, "transfer.cancelled", "transferId", transfer_id)
            or undone.get("reverses") != transfer.get("entryId")
        ):
            found = f"cancelled by entry {transfer.get('cancelEntryId')}, which is {_entry_text(undone)}"
            expected = f"an entry that reverses {transfer.get('entryId')}"
            yield _violation("cancelled transfer", "transfer", transfer_id, found, expected)
    elif status != COMPLETED or transfer.get("cancelEntryId") is not None:
        found = f"status {status!r}, cancelled by entry {transfer.get('cancelEntryId')}"
        yield _violation("cancelled transfer", "transfer", transfer_id, found, "completed, or cancelled by an entry")


def _carries(entry: Document, transfer: Document) -> bool:
    amount, fee = transfer.get("amount"), transfer.get("fee") or 0
    if not isinstance(amount, int) or not isinstance(fee, int):
        return False
    sender, receiver = f"bank:{transfer.get('fromAccountId')}", f"bank:{transfer.get('toAccountId')}"
    expected = {sender: -(amount + fee), receiver: amount, f"system:bank-fees:{transfer.get('currency')}": fee}
    return _moved(entry) == {account: moved for account, moved in expected.items() if moved}


# --- Orders paid from a retainer. ---


def judge_order(paid: PaidFromRetainer) -> Iterator[Violation]:
    """Judge an order's payment from a retainer by the journal's entries about the order.

    Where there is no such payment, the entries come to nothing: the records of orders that were cancelled long ago are
    deleted, the journal never is.
    """
    charges = [entry for entry in paid.entries if entry.get("operation") == "order.paid"]
    refunds = [entry for entry in paid.entries if entry.get("operation") == "order.refunded"]
    if len(charges) > 1:
        found = f"paid by {len(charges)} entries, {charges[0]['_id']} and {charges[1]['_id']} among them"
        yield _violation("paid twice", "order", paid.order_id, found, "one entry that pays an order")
    if len(refunds) > len(charges) or (refunds and charges and _moved(refunds[0]) != _negated(_moved(charges[0]))):
        found = f"{len(charges)} entries that pay, {len(refunds)} that refund, or refund something else"
        yield _violation("refund entry", "order", paid.order_id, found, "refunded at most once, what was paid")
    if paid.payment is None:
        if len(refunds) < len(charges):
            found = f"paid from a retainer by entry {charges[0]['_id']}, and no payment says so"
            yield _violation("entry without payment", "order", paid.order_id, found, "a payment, or a refund")
    else:
        yield from _order_payment(paid.order_id, paid.payment, charges, refunds)


def _order_payment(
    order_id: str, payment: Document, charges: Sequence[Document], refunds: Sequence[Document]
) -> Iterator[Violation]:
    status, amount, currency = payment.get("status"), payment.get("amount"), payment.get("currency")
    took = status in ("PROCESSED", "REFUNDED") and not (payment.get("transactionId") == NO_CHARGE and not amount)
    expected = (int(took), int(took and status == "REFUNDED"))
    if (len(charges), len(refunds)) != expected:
        found = f"{status}, with {len(charges)} entries that pay and {len(refunds)} that refund"
        wanted = f"{expected[0]} that pay and {expected[1]} that refund"
        yield _violation("retainer payment", "order", order_id, found, wanted)
    elif took:
        entry, retainer = charges[0], f"retainer:{payment.get('retainerId')}"
        if payment.get("transactionId") != entry["_id"] or not _moves(entry, retainer, amount, currency, sign=1):
            found = f"{status} as {payment.get('transactionId')}, in the journal {entry['_id']}: "
            expected_text = f"the payment's entry, of {in_money(amount, currency)} from {retainer}"
            yield _violation("retainer payment", "order", order_id, f"{found}{_postings_text(entry)}", expected_text)


# --- What the rules are made of. ---


def _violation(kind: str, subject: Subject, key: str, found: str, expected: str) -> Violation:
    return Violation(5, kind, subject, key, found, expected)


def _entry(posted: Posted, kind: str, found: str, expected: str) -> Violation:
    operation = posted.entry.get("operation")
    return _violation(kind, "entry", posted.id, f"{operation}: {found}", expected)


def _postings(entry: Document) -> list[Document]:
    return [posting for posting in entry.get("postings") or () if isinstance(posting, dict)]


def _reference(entry: Document, name: str) -> str:
    return str((entry.get("reference") or {}).get(name))


def _moved(entry: Document) -> dict[str, int]:
    """What the entry moves, by account: debits less credits; what it does not move in the end is left out."""
    moved: dict[str, int] = {}
    for posting in _postings(entry):
        amount = posting.get("amount")
        moved[str(posting.get("account"))] = moved.get(str(posting.get("account")), 0) + (
            amount if isinstance(amount, int) else 0
        )
    return {account: amount for account, amount in moved.items() if amount}


def _negated(moved: Mapping[str, int]) -> dict[str, int]:
    return {account: -amount for account, amount in moved.items()}


def _moves(entry: Document, account: str, amount: object, currency: object, *, sign: int) -> bool:
    """Whether the entry moves that amount, in that currency, on that account."""
    if not isinstance(amount, int) or entry.get("currency") != currency:
        return False
    return _moved(entry).get(account, 0) == sign * amount


def _is_about(entry: Document, operation: str, name: str, key: str) -> bool:
    return entry.get("operation") == operation and _reference(entry, name) == key


def _entry_text(entry: Document | None) -> str:
    return "not there" if entry is None else f"{entry.get('operation')} of {_postings_text(entry)}"


def _postings_text(entry: Document) -> str:
    currency = entry.get("currency")
    return ", ".join(f"{account} {in_money(amount, currency)}" for account, amount in _moved(entry).items())

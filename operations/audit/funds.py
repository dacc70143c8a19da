"""Judges the ledger of funds: accounts, entries, payments, transfers, orders paid from a retainer. Pure: no I/O.

Every operation on funds is one transaction, and related records come from one snapshot. So nothing is half done, and
every disagreement is a violation.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from operations.audit.report import Subject, Violation
from operations.reading.balances import Balance
from operations.reading.chart_of_accounts import Document, currency_of, in_money, is_amount, is_system, side

COMPLETED, CANCELLED, PENDING = "completed", "cancelled", "pending"

NO_CHARGE = "no-charge"
"""The transaction id of an order with nothing to pay."""


class EntryRecords(NamedTuple):
    """An entry of the journal, and the records that it refers to, by id."""

    entry: Document
    accounts: Mapping[str, Document]
    payments: Mapping[str, Document]
    transfers: Mapping[str, Document]
    reversed: Mapping[str, Document]

    @property
    def id(self) -> str:
        """The entry's id."""
        return str(self.entry["_id"])


class RetainerOrder(NamedTuple):
    """An order's payment from a retainer, if any, and the journal's entries about the order."""

    order_id: str
    payment: Document | None
    entries: Sequence[Document]


class ArchivedPayments(NamedTuple):
    """What archived orders took from each retainer: {amount, orders}, by the id of its account."""

    by_retainer: Mapping[str, Document]


# --- Accounts. ---


def judge_account(balance: Balance) -> Iterator[Violation]:
    """Yield the violations of an account, by its document and the sum of its postings."""
    account_id, account = balance.account_id, balance.account
    if account is None:
        if not is_system(account_id):
            found = f"{balance.postings} postings to an account that does not exist"
            yield _violation("unknown account", "account", account_id, found, "an account with this id")
        return
    currency, kept = balance.currency, account.get("balance")
    posted = in_money(balance.recomputed, currency)
    if not balance.agrees:
        found = f"a balance of {in_money(kept, currency)}"
        expected = f"{posted}, the sum of its {balance.postings} postings"
        yield _violation("balance", "account", account_id, found, expected)
    lowest = min(amount for amount in (kept, balance.recomputed) if is_amount(amount) and isinstance(amount, int))
    if lowest < 0:
        kind = "overpaid invoice" if account.get("kind") == "invoice" else "negative balance"
        found = f"a balance of {in_money(kept, currency)}, and postings that add up to {posted}"
        yield _violation(kind, "account", account_id, found, "0 or more")
    if account.get("kind") == "invoice":
        yield from _invoice(balance, account)


def _invoice(balance: Balance, account: Document) -> Iterator[Violation]:
    total, due = account.get("totalAmount"), account.get("balance")
    if not isinstance(total, int) or (isinstance(due, int) and due > total):
        found = f"{in_money(due, balance.currency)} due of {in_money(total, balance.currency)}"
        yield _violation("invoice", "account", balance.account_id, found, "at most the invoice's total due")


# --- Entries. ---


def judge_entry(records: EntryRecords) -> Iterator[Violation]:
    """Yield the violations of an entry, by itself and by the records that it refers to."""
    yield from _sums_to_zero(records)
    yield from _has_accounts(records)
    yield from _has_its_payment(records)
    yield from _has_its_transfer(records)
    yield from _reverses(records)


def _sums_to_zero(records: EntryRecords) -> Iterator[Violation]:
    postings, currency = _postings(records.entry), records.entry.get("currency")
    amounts = [posting.get("amount") for posting in postings]
    if len(amounts) < 2 or not all(is_amount(amount) for amount in amounts):
        found = f"postings of {', '.join(map(repr, amounts)) or 'nothing'}"
        yield _entry(records, "postings", found, "two or more, in whole minor units")
    elif total := sum(amount for amount in amounts if isinstance(amount, int)):
        yield _entry(
            records,
            "unbalanced",
            f"postings that add up to {in_money(total, currency)}",
            "postings that add up to zero",
        )
    below = [p for p in postings if isinstance(p.get("balanceAfter"), int) and p["balanceAfter"] < 0]
    # A correction records the balance that it found, which may be negative.
    if below and records.entry.get("operation") != "correction":
        account, after = below[0].get("account"), in_money(below[0]["balanceAfter"], currency)
        yield _entry(records, "overdrawn", f"it left {account} with {after}", "0 or more at all times")


def _has_accounts(records: EntryRecords) -> Iterator[Violation]:
    currency = records.entry.get("currency")
    for account_id in dict.fromkeys(str(posting.get("account")) for posting in _postings(records.entry)):
        if side(account_id) is None:
            yield _entry(records, "account", f"a posting to {account_id!r}", "accounts in the chart of accounts")
            continue
        account = records.accounts.get(account_id)
        accounts_currency = currency_of(account_id) or (account or {}).get("currency", currency)
        if accounts_currency != currency:
            found = f"an entry in {currency} that moves {account_id}, which is in {accounts_currency}"
            yield _entry(records, "currency", found, "one currency per entry")


def _has_its_payment(records: EntryRecords) -> Iterator[Violation]:
    """Check that a payment was completed by this entry alone: the payment names its one entry."""
    if records.entry.get("operation") != "payment.completed":
        return
    payment_id = _reference(records.entry, "paymentId")
    payment = records.payments.get(payment_id)
    if payment is None:
        found = f"it completes payment {payment_id}, which does not exist"
        yield _entry(records, "unknown payment", found, "a payment with this id")
    elif payment.get("status") != COMPLETED:
        found = f"it completes payment {payment_id}, which is {payment.get('status')}"
        yield _entry(records, "payment not completed", found, "a completed payment")
    elif payment.get("entryId") != records.id:
        found = f"it completes payment {payment_id}, which entry {payment.get('entryId')} completed"
        yield _entry(records, "completed twice", found, "one completion per payment")


def _has_its_transfer(records: EntryRecords) -> Iterator[Violation]:
    names = {"transfer.made": ("entryId", "made"), "transfer.cancelled": ("cancelEntryId", "cancelled")}
    if (operation := str(records.entry.get("operation"))) not in names:
        return
    name, done = names[operation]
    transfer_id = _reference(records.entry, "transferId")
    transfer = records.transfers.get(transfer_id)
    if transfer is None:
        found = f"transfer {transfer_id}, {done} by it, does not exist"
        yield _entry(records, "unknown transfer", found, "a transfer with this id")
    elif transfer.get(name) != records.id:
        found = f"transfer {transfer_id} {done} by it, after entry {transfer.get(name)} had {done} it"
        yield _entry(records, f"transfer {done} twice", found, f"a transfer {done} once")


def _reverses(records: EntryRecords) -> Iterator[Violation]:
    if (reverses := records.entry.get("reverses")) is None:
        if records.entry.get("operation") == "transfer.cancelled":
            yield _entry(
                records, "reversal", "it cancels a transfer and reverses nothing", "the entry that it reverses"
            )
        return
    first = records.reversed.get(str(reverses))
    if first is None:
        yield _entry(
            records, "reversal", f"it reverses entry {reverses}, which does not exist", "an entry with this id"
        )
    elif _moved(first) != _negated(_moved(records.entry)) or first.get("currency") != records.entry.get("currency"):
        found = f"its postings are not the opposite of those of entry {reverses}"
        yield _entry(records, "reversal", found, "the opposite of the entry that it reverses")


def reversed_twice(entry_id: str, number: int, by: Sequence[str]) -> Violation:
    """Return the violation of an entry that several others reverse, these among them."""
    found = f"reversed by {number} entries, including {' and '.join(by)}"
    return _violation("reversed twice", "entry", entry_id, found, "reversed at most once")


# --- Payments and transfers. ---


def judge_payment(payment: Document, entries: Mapping[str, Document]) -> Iterator[Violation]:
    """Yield the violations of a payment, by the entry that completed it."""
    payment_id, status, entry_id = str(payment["_id"]), payment.get("status"), payment.get("entryId")
    if status == PENDING and entry_id is None:
        return
    if status == PENDING:
        found = f"pending, and completed by entry {entry_id}"
        yield _violation("payment", "payment", payment_id, found, "no entry before its completion")
    elif status != COMPLETED:
        yield _violation("payment", "payment", payment_id, f"status {status!r}", "pending or completed")
    else:
        yield from _is_posted(payment, entries.get(str(entry_id)))


def _is_posted(payment: Document, entry: Document | None) -> Iterator[Violation]:
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
    """Yield the violations of a transfer, by the entries that made and cancelled it."""
    transfer_id, status = str(transfer["_id"]), transfer.get("status")
    made, undone = entries.get(str(transfer.get("entryId"))), entries.get(str(transfer.get("cancelEntryId")))
    if (
        made is None
        or not _is_about(made, "transfer.made", "transferId", transfer_id)
        or not _moves_transfer(made, transfer)
    ):
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


def _moves_transfer(entry: Document, transfer: Document) -> bool:
    amount, fee = transfer.get("amount"), transfer.get("fee") or 0
    if not isinstance(amount, int) or not isinstance(fee, int):
        return False
    sender, receiver = f"bank:{transfer.get('fromAccountId')}", f"bank:{transfer.get('toAccountId')}"
    expected = {sender: -(amount + fee), receiver: amount, f"system:bank-fees:{transfer.get('currency')}": fee}
    return _moved(entry) == {account: moved for account, moved in expected.items() if moved}


# --- Orders paid from a retainer. ---


def of_each_order(paid: RetainerOrder) -> Iterator[RetainerOrder]:
    """Yield the orders that have had this id, the present one last.

    An `Idempotency-Key` makes the id, so an order whose payment was deleted may be placed again. Entries from before
    the payment was created, and all if there is none, are about such orders; each of them begins with its payment.
    """
    former = sorted(filter(lambda entry: _is_former(entry, paid.payment), paid.entries), key=_by_time)
    if paid.payment is not None and all(entry.get("operation") != "order.paid" for entry in former):
        former = []  # refunds of this order, by a process whose clock is behind
    began: list[Document] = []
    for entry in former:
        if began and entry.get("operation") == "order.paid":
            yield RetainerOrder(paid.order_id, None, began)
            began = []
        began = [*began, entry]
    if began:
        yield RetainerOrder(paid.order_id, None, began)
    if paid.payment is not None:
        yield paid._replace(entries=[entry for entry in paid.entries if entry not in former])


def _is_former(entry: Document, payment: Document | None) -> bool:
    if payment is None:
        return True
    at, created = entry.get("at"), payment.get("createdAt")
    if not (isinstance(at, datetime) and isinstance(created, datetime)):
        return False
    own = {payment.get("transactionId"), *(part.get("entryId") for part in payment.get("parts") or ())} - {None}
    return at < created and own.isdisjoint((entry["_id"], entry.get("reverses")))


def _by_time(entry: Document) -> tuple[str, bool]:
    at = entry.get("at")
    return at.isoformat() if isinstance(at, datetime) else "", entry.get("operation") != "order.paid"


def judge_order(paid: RetainerOrder) -> Iterator[Violation]:
    """Yield the violations of an order's payment from a retainer, by the journal's entries about the order.

    Entries without such a payment are judged together, by UnpaidOrders.
    """
    charges = [entry for entry in paid.entries if entry.get("operation") == "order.paid"]
    refunds = [entry for entry in paid.entries if entry.get("operation") == "order.refunded"]
    parts = [entry for entry in paid.entries if entry.get("operation") == "order.part_refunded"]
    if len(charges) > 1:
        found = f"paid by {len(charges)} entries, including {charges[0]['_id']} and {charges[1]['_id']}"
        yield _violation("paid twice", "order", paid.order_id, found, "one entry that pays the order")
    returned = _added([*refunds, *parts])
    if len(refunds) > len(charges) or (refunds and charges and returned != _negated(_moved(charges[0]))):
        found = f"{len(charges)} entries that pay, {len(refunds)} that refund, or a refund of another amount"
        yield _violation("refund entry", "order", paid.order_id, found, "at most one refund, of what was paid")
    yield from _parts_of_order(paid, charges, parts)
    if paid.payment is not None:
        yield from _order_payment(paid.order_id, paid.payment, charges, refunds)


MOST_UNPAID = 1000
"""The most orders of one retainer without a payment that are listed."""


@dataclass(slots=True)
class UnpaidOrders:
    """The orders that entries pay from a retainer although there is no payment.

    The journal is never deleted, payments of cancelled and of archived orders are. The entries of a cancelled order
    cancel out. What archived orders have kept is added up for each retainer.
    """

    amounts: Counter[str] = field(default_factory=Counter)
    orders: Counter[str] = field(default_factory=Counter)
    listed: dict[str, list[Violation]] = field(default_factory=dict)

    def add(self, paid: RetainerOrder) -> None:
        """Take an order into account."""
        charges = [entry for entry in paid.entries if entry.get("operation") == "order.paid"]
        is_refunded = any(entry.get("operation") == "order.refunded" for entry in paid.entries)
        if paid.payment is not None or not charges or is_refunded or not (kept := _added(paid.entries)):
            return
        account = next((key for key in kept if key.startswith("retainer:")), "")
        self.amounts[account] += kept.get(account, 0)
        self.orders[account] += 1
        found = f"paid from a retainer by entry {charges[0]['_id']}, and there is no payment"
        if len(listed := self.listed.setdefault(account, [])) < MOST_UNPAID:
            listed.append(_violation("entry without payment", "order", paid.order_id, found, "a payment, or a refund"))

    def violations(self, archived: Mapping[str, Document]) -> Iterator[Violation]:
        """Yield the violations, given {amount, orders} of the archived orders of each retainer."""
        for account in sorted({*self.orders, *archived}):
            expected = archived.get(account, {})
            amount, orders = expected.get("amount", 0), expected.get("orders", 0)
            if (self.amounts[account], self.orders[account]) == (amount, orders):
                continue
            if not (amount or orders):
                yield from self.listed[account]
                continue
            found = f"{self.orders[account]} orders without payment that took {self.amounts[account]} minor units"
            yield _violation(
                "archived payments", "account", account, found, f"{orders} archived ones that took {amount}"
            )


def _parts_of_order(paid: RetainerOrder, charges: Sequence[Document], parts: Sequence[Document]) -> Iterator[Violation]:
    """Check that the payment's refunds in part are in the journal, and that the journal has no others."""
    by_refund = {_reference(entry, "refundId"): entry for entry in parts}
    if len(by_refund) < len(parts):
        found = f"{len(parts)} entries for {len(by_refund)} refunds in part"
        yield _violation("part refunded twice", "order", paid.order_id, found, "one entry for each refund")
    if paid.payment is None:
        if parts and not charges:
            yield _violation("refund entry", "order", paid.order_id, "refunds of an order that was not paid", "none")
        return
    retainer, currency = f"retainer:{paid.payment.get('retainerId')}", paid.payment.get("currency")
    made = {
        str(part.get("refundId")): part for part in paid.payment.get("parts") or () if part.get("status") == "REFUNDED"
    }
    for refund_id, part in made.items():
        entry = by_refund.pop(refund_id, None)
        amount = part.get("amount")
        if (
            entry is None
            or entry["_id"] != part.get("entryId")
            or not _moves(entry, retainer, amount, currency, sign=-1)
        ):
            found = f"refund {refund_id} by entry {part.get('entryId')}, in the journal {_entry_text(entry)}"
            expected = f"the refund's entry, of {in_money(amount, currency)} to {retainer}"
            yield _violation("part entry", "order", paid.order_id, found, expected)
    for refund_id, entry in by_refund.items():
        found = f"entry {entry['_id']} for refund {refund_id}, which the payment does not have"
        yield _violation("part without payment", "order", paid.order_id, found, "the parts of the payment")


def _order_payment(
    order_id: str, payment: Document, charges: Sequence[Document], refunds: Sequence[Document]
) -> Iterator[Violation]:
    status, amount, currency = payment.get("status"), payment.get("amount"), payment.get("currency")
    took = status in ("PROCESSED", "REFUNDED") and not (payment.get("transactionId") == NO_CHARGE and not amount)
    returned = sum(part.get("amount", 0) for part in payment.get("parts") or () if part.get("status") == "REFUNDED")
    # Where the parts have returned everything, a refund of the whole payment has nothing to return.
    expected = (int(took), int(took and status == "REFUNDED" and returned != amount))
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


# --- Helpers of the rules. ---


def _violation(kind: str, subject: Subject, key: str, found: str, expected: str) -> Violation:
    return Violation(5, kind, subject, key, found, expected)


def _entry(records: EntryRecords, kind: str, found: str, expected: str) -> Violation:
    operation = records.entry.get("operation")
    return _violation(kind, "entry", records.id, f"{operation}: {found}", expected)


def _postings(entry: Document) -> list[Document]:
    return [posting for posting in entry.get("postings") or () if isinstance(posting, dict)]


def _reference(entry: Document, name: str) -> str:
    return str((entry.get("reference") or {}).get(name))


def _moved(entry: Document) -> dict[str, int]:
    """Return debits less credits by account, without accounts that do not change."""
    moved: dict[str, int] = {}
    for posting in _postings(entry):
        amount = posting.get("amount")
        moved[str(posting.get("account"))] = moved.get(str(posting.get("account")), 0) + (
            amount if isinstance(amount, int) else 0
        )
    return {account: amount for account, amount in moved.items() if amount}


def _added(entries: Sequence[Document]) -> dict[str, int]:
    """Return debits less credits of several entries by account, without accounts that do not change."""
    total: dict[str, int] = {}
    for entry in entries:
        for account, amount in _moved(entry).items():
            total[account] = total.get(account, 0) + amount
    return {account: amount for account, amount in total.items() if amount}


def _negated(moved: Mapping[str, int]) -> dict[str, int]:
    return {account: -amount for account, amount in moved.items()}


def _moves(entry: Document, account: str, amount: object, currency: object, *, sign: int) -> bool:
    """Return whether the entry moves that amount, in that currency, on that account."""
    if not isinstance(amount, int) or entry.get("currency") != currency:
        return False
    return _moved(entry).get(account, 0) == sign * amount


def _is_about(entry: Document, operation: str, name: str, key: str) -> bool:
    return entry.get("operation") == operation and _reference(entry, name) == key


def _entry_text(entry: Document | None) -> str:
    return "missing" if entry is None else f"{entry.get('operation')} of {_postings_text(entry)}"


def _postings_text(entry: Document) -> str:
    currency = entry.get("currency")
    return ", ".join(f"{account} {in_money(amount, currency)}" for account, amount in _moved(entry).items())

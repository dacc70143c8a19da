"""Charges orders to retainers and refunds them; the payment and its journal entry share one transaction.

A payment is PROCESSED or FAILED in its first record: a repeated message finds the record, and a crash in between
leaves nothing behind. Only if its retainer is too busy does a payment start as PENDING, so that orders on other
retainers need not wait; the reconciler decides it later (`decide_postponed`), as it does for cards.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import structlog

from payment_service import parts
from payment_service.ledger import chart_of_accounts, journal_entries
from payment_service.ledger.ledger import ACTIVE, Ledger, account_name, format_amount, references
from payment_service.ledger.transaction_errors import ContentionError
from payment_service.ledger.transactions import Transactions
from payment_service.ledger.unit_of_work import Reference, UnitOfWork
from payment_service.lifecycle import (
    FREE,
    Part,
    PartStatus,
    Payment,
    PaymentStatus,
    charge_answer,
    mark_unpublished,
    with_next_lookup,
)
from payment_service.payments import COLLECTION as PAYMENTS
from payment_service.payments import Payments, add_part_in, insert_in, read_in, update_in
from payment_service.refusals import INSUFFICIENT_BALANCE, KEPT_IN, NO_RETAINER
from shared import tracing
from shared.clock import Clock
from shared.contracts import OrderCreated, RefundPart
from shared.database import Document
from shared.repeats import note_repeats

ORDERS_PER_OPERATION = 50
"""Orders that one operation charges. Several share a transaction, so that a large batch is one of a few."""

BUSY_RETAINER_SECONDS = 1.0
"""The time that the orders of a batch wait for a busy retainer; the rest of the batch waits with them."""

_log = structlog.get_logger(__name__)


class RetainerCharger:
    """Charges orders to retainers, and refunds them."""

    def __init__(self, payments: Payments, ledger: Ledger, transactions: Transactions, clock: Clock) -> None:
        self._payments = payments
        self._ledger = ledger
        self._transactions = transactions
        self._clock = clock

    async def charge(self, orders: Sequence[OrderCreated]) -> list[Payment]:
        """Charge the orders, first come, first served within a retainer, and return their payments as recorded.

        The payments of a busy retainer stay PENDING. Raises TransientError if the database is unavailable.
        """
        by_retainer: dict[str, list[OrderCreated]] = {}
        for order in orders:
            by_retainer.setdefault(order.payment.retainer_id or "", []).append(order)
        groups = [
            (retainer_id, ordered[start : start + ORDERS_PER_OPERATION])
            for retainer_id, ordered in by_retainer.items()
            for start in range(0, len(ordered), ORDERS_PER_OPERATION)
        ]
        charged = await asyncio.gather(*(self._charge_or_postpone(retainer_id, group) for retainer_id, group in groups))
        return [payment for group in charged for payment in group]

    async def decide_postponed(self, payments: Sequence[Payment]) -> list[Payment]:
        """Decide payments whose retainer was busy and return them as recorded; some may still be PENDING."""
        return list(await asyncio.gather(*(self._decide_again(payment) for payment in payments)))

    async def refund(self, payments: Sequence[Payment]) -> list[Payment]:
        """Refund the payments to their retainers, once each, and return them as recorded."""
        return list(await asyncio.gather(*(self._refund_one(payment) for payment in payments)))

    async def refund_part(self, payment: Payment, request: RefundPart, *, refused: str | None = None) -> Part:
        """Refund a part of the payment to its retainer, once, and return it as recorded; with `refused`, record that.

        Raises LedgerRefusalError if the retainer does not take the money, for example because it does not exist.
        """

        async def work(unit: UnitOfWork) -> Part:
            recorded = await _recorded(unit, payment)
            if known := parts.find(recorded, request.refund_id):
                return known
            part = parts.decide(recorded, request, self._clock())
            if refused is not None:
                part = replace(part, status=PartStatus.FAILED, failure_reason=refused)
            if part.status is PartStatus.PENDING:
                entry = journal_entries.order_part_refunded(
                    recorded.retainer_id or "", recorded.order_id, part.refund_id, part.amount, recorded.currency or ""
                )
                posted = await self._ledger.post(entry, unit)
                part = replace(part, status=PartStatus.REFUNDED, entry_id=posted.entry_id)
            await add_part_in(unit, recorded, part)
            return part

        touches = _touched(payment.retainer_id, [payment.order_id])
        return await self._transactions.run("order.part_refunded", work, touches)

    async def _charge_or_postpone(self, retainer_id: str, orders: Sequence[OrderCreated]) -> list[Payment]:
        try:
            return await self._charge_group(retainer_id, orders)
        except ContentionError:
            _log.warning("retainer is busy, its orders are charged later", retainer_id=retainer_id, orders=len(orders))
            now = self._clock()
            postponed = [with_next_lookup(_traced_payment(order, now), now) for order in orders]
            return await self._payments.insert_missing(postponed)

    async def _charge_group(self, retainer_id: str, orders: Sequence[OrderCreated]) -> list[Payment]:
        account = chart_of_accounts.retainer(retainer_id)
        known: set[str] = set()
        traces = {order.order_id: tracing.of_order(order.order_id) for order in orders}

        async def work(unit: UnitOfWork) -> list[Payment]:
            now = self._clock()
            found = [await read_in(unit, order.order_id) for order in orders]
            recorded = {payment.order_id: payment for payment in found if payment}
            known.update(order_id for order_id, payment in recorded.items() if charge_answer(payment))
            retainer = await self._ledger.find(account, unit)
            new = [
                replace(retainer_payment(order, now), traceparent=traces[order.order_id])
                for order in orders
                if order.order_id not in recorded
            ]
            for decision in decide(new, retainer, now):
                recorded[decision.order_id] = decided = await self._post(decision, unit)
                insert_in(unit, decided)
            return [recorded[order.order_id] for order in orders]

        touches = _touched(retainer_id, [order.order_id for order in orders])
        paid = await self._transactions.run("order.paid", work, touches, within=BUSY_RETAINER_SECONDS)
        note_repeats("payment.charge", known)
        return paid

    async def _decide_again(self, payment: Payment) -> Payment:
        account = chart_of_accounts.retainer(payment.retainer_id or "")

        async def work(unit: UnitOfWork) -> Payment:
            now = self._clock()
            recorded = await _recorded(unit, payment)
            if recorded.status is not PaymentStatus.PENDING:
                return recorded
            if recorded.refund_requested:
                decided = replace(recorded, status=PaymentStatus.VOIDED, next_lookup_at=None, updated_at=now)
            else:
                (decision,) = decide([recorded], await self._ledger.find(account, unit), now)
                decided = await self._post(decision, unit)
            return await update_in(unit, recorded, mark_unpublished(recorded, decided))

        try:
            touches = _touched(payment.retainer_id, [payment.order_id])
            return await self._transactions.run("order.paid", work, touches, within=BUSY_RETAINER_SECONDS)
        except ContentionError:
            return payment  # its next look-up is scheduled already

    async def _post(self, payment: Payment, unit: UnitOfWork) -> Payment:
        """Post the journal entry of a payment that goes through, and return the payment with the entry's id."""
        if payment.status is not PaymentStatus.PROCESSED or payment.transaction_id is not None:
            return payment
        entry = journal_entries.order_paid(
            payment.retainer_id or "", payment.order_id, payment.amount or 0, payment.currency or ""
        )
        posted = await self._ledger.post(entry, unit)
        return replace(payment, transaction_id=posted.entry_id)

    async def _refund_one(self, payment: Payment) -> Payment:
        refunded = replace(payment, status=PaymentStatus.REFUNDED, updated_at=self._clock())
        retainer_id, entry_id = payment.retainer_id or "", payment.transaction_id

        async def work(unit: UnitOfWork) -> Payment:
            # Parts may have been refunded since the payment was read; what they have left is returned.
            before = await _recorded(unit, payment)
            amount = parts.left(before)
            recorded = await update_in(unit, payment, refunded)
            # Only the worker whose update took effect posts the entry: a repeated refund moves no money.
            if recorded is refunded and entry_id != FREE and amount:
                whole = amount == payment.amount
                entry = journal_entries.order_refunded(
                    retainer_id,
                    payment.order_id,
                    amount,
                    payment.currency or "",
                    reverses=entry_id if whole else None,
                )
                await self._ledger.post(entry, unit)
            return recorded

        touches = _touched(retainer_id, [payment.order_id])
        return await self._transactions.run("order.refunded", work, touches)


def retainer_payment(order: OrderCreated, now: datetime) -> Payment:
    """Create the payment of an order from a retainer, undecided."""
    return Payment(
        order_id=order.order_id,
        status=PaymentStatus.PENDING,
        created_at=now,
        updated_at=now,
        user_id=order.user_id,
        owner_id=order.owner_id,
        amount=order.total_amount,
        currency=order.currency,
        retainer_id=order.payment.retainer_id or "",
    )


def decide(payments: Sequence[Payment], retainer: Document | None, now: datetime) -> list[Payment]:
    """Decide which payments the retainer can make, first come, first served; pure.

    A payment that exceeds the balance is skipped, so a smaller one after it may still go through. A payment that goes
    through gets its transaction id when its journal entry is posted.
    """
    left = retainer["balance"] if retainer else 0
    decided = []
    for payment in payments:
        amount = payment.amount or 0
        if reason := _refusal(payment, retainer, left):
            outcome = replace(payment, status=PaymentStatus.FAILED, failure_reason=reason)
        else:
            outcome = replace(payment, status=PaymentStatus.PROCESSED, transaction_id=None if amount else FREE)
            left -= amount
        decided.append(replace(outcome, next_lookup_at=None, updated_at=now))
    return decided


def _refusal(payment: Payment, retainer: Mapping[str, object] | None, left: int) -> str | None:
    """Return why the retainer does not pay. The text never gives its balance: the buyer may not be its client."""
    if not payment.retainer_id:
        return NO_RETAINER
    name = account_name(chart_of_accounts.retainer(payment.retainer_id))
    # Only the owner's orders are paid from it. For those of others it does not exist.
    if retainer is None or retainer.get("ownerId") != payment.owner_id:
        return f"{name} does not exist"
    if retainer["status"] != ACTIVE:
        return f"{name} is {retainer['status']}"
    if retainer["currency"] != payment.currency:
        return f"{name} {KEPT_IN} {retainer['currency']}, not in {payment.currency}"
    if left < (payment.amount or 0):
        amount = format_amount(payment.amount or 0, payment.currency or "")
        return f"{INSUFFICIENT_BALANCE}: {name} holds less than {amount}"
    return None


def _traced_payment(order: OrderCreated, now: datetime) -> Payment:
    return replace(retainer_payment(order, now), traceparent=tracing.of_order(order.order_id))


async def _recorded(unit: UnitOfWork, payment: Payment) -> Payment:
    """Return a payment that exists as the transaction sees it."""
    recorded = await read_in(unit, payment.order_id)
    if recorded is None:
        raise LookupError(f"payment {payment.order_id} is gone")
    return recorded


def _touched(retainer_id: str | None, order_ids: Sequence[str]) -> list[Reference]:
    """Return the places of the retainer's account and of the orders' payments."""
    account = chart_of_accounts.retainer(retainer_id or "")
    return [*references([account]), *(Reference(PAYMENTS, order_id) for order_id in order_ids)]

"""Orders paid from a retainer: the payment's record and the entry in the books come in one transaction.

A payment is PROCESSED or FAILED from its first record on; a message that comes again finds the record, and a crash in
between has left nothing. Only where the retainer is too busy is the payment PENDING for a while: nobody else's order
waits for that retainer, and the look-ups carry the payment on (`decide_postponed`) as they do with cards.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import structlog
from pymongo.errors import DuplicateKeyError

from payment_service.ledger import chart_of_accounts, journal_entries
from payment_service.ledger.ledger import ACTIVE, Ledger, account_name, format_amount
from payment_service.ledger.transactions import ContentionError, Session, Transactions
from payment_service.lifecycle import FREE, Payment, PaymentStatus, mark_unpublished, with_next_lookup
from payment_service.payments import Payments
from shared import tracing
from shared.clock import Clock
from shared.contracts import OrderCreated
from shared.database import Document

ORDERS_PER_TRANSACTION = 50
"""A transaction keeps its retainer from everybody else: it is to be short."""

BUSY_RETAINER_SECONDS = 1.0
"""How long the orders of a batch wait for a busy retainer; the others in the batch wait with them."""

_log = structlog.get_logger(__name__)


class RetainerCharger:
    """Takes the money of orders from retainers, and puts it back."""

    def __init__(self, payments: Payments, ledger: Ledger, transactions: Transactions, clock: Clock) -> None:
        self._payments = payments
        self._ledger = ledger
        self._transactions = transactions
        self._clock = clock

    async def charge(self, orders: Sequence[OrderCreated]) -> list[Payment]:
        """Pay the orders, first come first served within a retainer, and return their payments as recorded.

        Those of a retainer that is busy are PENDING. Raises TransientError when the database is away.
        """
        by_retainer: dict[str, list[OrderCreated]] = {}
        for order in orders:
            by_retainer.setdefault(order.payment.retainer_id or "", []).append(order)
        groups = [
            (retainer_id, ordered[start : start + ORDERS_PER_TRANSACTION])
            for retainer_id, ordered in by_retainer.items()
            for start in range(0, len(ordered), ORDERS_PER_TRANSACTION)
        ]
        paid = await asyncio.gather(*(self._charge_or_postpone(retainer_id, group) for retainer_id, group in groups))
        return [payment for group in paid for payment in group]

    async def decide_postponed(self, payments: Sequence[Payment]) -> list[Payment]:
        """Decide payments that are PENDING as their retainer was busy; returns all as recorded, some PENDING still."""
        return list(await asyncio.gather(*(self._decide_again(payment) for payment in payments)))

    async def refund(self, payments: Sequence[Payment]) -> list[Payment]:
        """Put the orders' money back into their retainers, once, and return the payments as they are recorded then."""
        return list(await asyncio.gather(*(self._refund(payment) for payment in payments)))

    async def _charge_or_postpone(self, retainer_id: str, orders: Sequence[OrderCreated]) -> list[Payment]:
        try:
            return await self._charge_group(retainer_id, orders)
        except ContentionError:
            _log.warning("retainer is busy, its orders are paid later", retainer_id=retainer_id, orders=len(orders))
            now = self._clock()
            return await self._payments.insert_missing(
                [with_next_lookup(_traced_payment(order, now), now) for order in orders]
            )

    async def _charge_group(self, retainer_id: str, orders: Sequence[OrderCreated]) -> list[Payment]:
        account = chart_of_accounts.retainer(retainer_id)

        async def work(session: Session) -> list[Payment]:
            now = self._clock()
            recorded = await self._payments.read((order.order_id for order in orders), session)
            retainer = await self._ledger.find(account, session)
            new = [_traced_payment(order, now) for order in orders if order.order_id not in recorded]
            decided = [await self._posted(payment, session) for payment in decide(new, retainer, now)]
            await self._payments.insert(decided, session)
            recorded |= {payment.order_id: payment for payment in decided}
            return [recorded[order.order_id] for order in orders]

        while True:
            # Somebody else has taken the same order, or left its tombstone, in between: now that is there to be seen.
            with contextlib.suppress(DuplicateKeyError):
                return await self._transactions.run("order.paid", work, keys=[account], within=BUSY_RETAINER_SECONDS)

    async def _decide_again(self, payment: Payment) -> Payment:
        account = chart_of_accounts.retainer(payment.retainer_id or "")

        async def work(session: Session) -> Payment:
            now = self._clock()
            recorded = (await self._payments.read([payment.order_id], session))[payment.order_id]
            if recorded.status is not PaymentStatus.PENDING:
                return recorded
            if recorded.refund_requested:
                decided = replace(recorded, status=PaymentStatus.VOIDED, next_lookup_at=None, updated_at=now)
            else:
                (decision,) = decide([recorded], await self._ledger.find(account, session), now)
                decided = await self._posted(decision, session)
            return await self._payments.update(recorded, mark_unpublished(recorded, decided), session)

        try:
            return await self._transactions.run("order.paid", work, keys=[account], within=BUSY_RETAINER_SECONDS)
        except ContentionError:
            return payment  # its next look-up is set already

    async def _posted(self, payment: Payment, session: Session) -> Payment:
        """Enter a payment that goes through into the books; it carries the entry's id."""
        if payment.status is not PaymentStatus.PROCESSED or payment.transaction_id is not None:
            return payment
        entry = journal_entries.order_paid(
            payment.retainer_id or "", payment.order_id, payment.amount or 0, payment.currency or ""
        )
        posted = await self._ledger.post(entry, session)
        return replace(payment, transaction_id=posted.entry_id)

    async def _refund(self, payment: Payment) -> Payment:
        refunded = replace(payment, status=PaymentStatus.REFUNDED, updated_at=self._clock())
        retainer_id, entry_id = payment.retainer_id or "", payment.transaction_id

        async def work(session: Session) -> Payment:
            recorded = await self._payments.update(payment, refunded, session)
            if recorded is refunded and entry_id != FREE:
                amount, currency = payment.amount or 0, payment.currency or ""
                entry = journal_entries.order_refunded(
                    retainer_id, payment.order_id, amount, currency, reverses=entry_id
                )
                await self._ledger.post(entry, session)
            return recorded

        return await self._transactions.run("order.refunded", work, keys=[chart_of_accounts.retainer(retainer_id)])


def retainer_payment(order: OrderCreated, now: datetime) -> Payment:
    """Return the payment that an order asks for, undecided."""
    return Payment(
        order_id=order.order_id,
        status=PaymentStatus.PENDING,
        created_at=now,
        updated_at=now,
        user_id=order.user_id,
        amount=order.total_amount,
        currency=order.currency,
        retainer_id=order.payment.retainer_id or "",
    )


def decide(payments: Sequence[Payment], retainer: Document | None, now: datetime) -> list[Payment]:
    """Decide which of the payments the retainer makes, first come first served; pure.

    One that the retainer cannot make is passed over: a smaller one after it may still be made. What is made has no
    transaction id until it is in the books.
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
    """Say why the retainer does not pay. Not how much it holds: its client need not be who has ordered."""
    if not payment.retainer_id:
        return "No retainer is named to pay from"
    name = account_name(chart_of_accounts.retainer(payment.retainer_id))
    if retainer is None:
        return f"{name} does not exist"
    if retainer["status"] != ACTIVE:
        return f"{name} is {retainer['status']}"
    if retainer["currency"] != payment.currency:
        return f"{name} is kept in {retainer['currency']}, not in {payment.currency}"
    if left < (payment.amount or 0):
        return (
            f"Insufficient balance: {name} holds less than {format_amount(payment.amount or 0, payment.currency or '')}"
        )
    return None


def _traced_payment(order: OrderCreated, now: datetime) -> Payment:
    return replace(retainer_payment(order, now), traceparent=tracing.of_order(order.order_id))

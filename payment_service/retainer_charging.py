"""Orders paid from a retainer: the payment's record and the entry in the books come in one transaction.

There is nothing to look up and nothing to find out: a payment is PROCESSED or FAILED from its first record on. A
message that comes again finds the record, and a crash in between has left nothing.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pymongo.errors import DuplicateKeyError

from payment_service import bookings, chart
from payment_service.ledger import ACTIVE, Ledger, money, name_of
from payment_service.lifecycle import FREE, Payment, Status
from payment_service.payments import Payments
from payment_service.transactions import Session, Transactions
from shared.clock import Clock
from shared.contracts import OrderCreated
from shared.database import Document

ORDERS_PER_TRANSACTION = 50
"""A transaction keeps its retainer from everybody else: it is to be short."""


class RetainerCharging:
    """Takes the money of orders from retainers, and puts it back."""

    def __init__(self, payments: Payments, ledger: Ledger, transactions: Transactions, clock: Clock) -> None:
        self._payments = payments
        self._ledger = ledger
        self._transactions = transactions
        self._clock = clock

    async def charge(self, orders: Sequence[OrderCreated]) -> list[Payment]:
        """Pay the orders, first come first served within a retainer, and return their payments as recorded.

        Raises TransientError when the books are busy or the database is away: nothing has then changed for the
        retainers concerned.
        """
        by_retainer: dict[str, list[OrderCreated]] = {}
        for order in orders:
            by_retainer.setdefault(order.payment.retainer_id or "", []).append(order)
        groups = [
            (retainer_id, ordered[start : start + ORDERS_PER_TRANSACTION])
            for retainer_id, ordered in by_retainer.items()
            for start in range(0, len(ordered), ORDERS_PER_TRANSACTION)
        ]
        paid = await asyncio.gather(*(self._charge_group(retainer_id, group) for retainer_id, group in groups))
        return [payment for group in paid for payment in group]

    async def give_back(self, payments: Sequence[Payment]) -> list[Payment]:
        """Put the orders' money back into their retainers, once, and return the payments as they are recorded then."""
        return list(await asyncio.gather(*(self._give_back(payment) for payment in payments)))

    async def _charge_group(self, retainer_id: str, orders: Sequence[OrderCreated]) -> list[Payment]:
        account = chart.retainer(retainer_id)

        async def work(session: Session) -> list[Payment]:
            recorded = await self._payments.read((order.order_id for order in orders), session)
            retainer = await self._ledger.find(account, session)
            new = [order for order in orders if order.order_id not in recorded]
            decided = [await self._settled(payment, session) for payment in decide(new, retainer, self._clock())]
            await self._payments.insert(decided, session)
            recorded |= {payment.order_id: payment for payment in decided}
            return [recorded[order.order_id] for order in orders]

        while True:
            # Somebody else has taken the same order, or left its tombstone, in between: now that is there to be seen.
            with contextlib.suppress(DuplicateKeyError):
                return await self._transactions.run("order.paid", work, keys=[account])

    async def _settled(self, payment: Payment, session: Session) -> Payment:
        """Enter a payment that goes through into the books; it carries the entry's id."""
        if payment.status is not Status.PROCESSED or payment.transaction_id is not None:
            return payment
        booking = bookings.order_paid(
            payment.retainer_id or "", payment.order_id, payment.amount or 0, payment.currency or ""
        )
        entry = await self._ledger.post(booking, session)
        return replace(payment, transaction_id=entry.entry_id)

    async def _give_back(self, payment: Payment) -> Payment:
        refunded = replace(payment, status=Status.REFUNDED, updated_at=self._clock())
        retainer_id, entry_id = payment.retainer_id or "", payment.transaction_id

        async def work(session: Session) -> Payment:
            recorded = await self._payments.change(payment, refunded, session)
            if recorded is refunded and entry_id != FREE:
                amount, currency = payment.amount or 0, payment.currency or ""
                booking = bookings.order_refunded(retainer_id, payment.order_id, amount, currency, reverses=entry_id)
                await self._ledger.post(booking, session)
            return recorded

        return await self._transactions.run("order.refunded", work, keys=[chart.retainer(retainer_id)])


def decide(orders: Sequence[OrderCreated], retainer: Document | None, now: datetime) -> list[Payment]:
    """Decide which of the orders the retainer pays, first come first served; pure.

    An order that the retainer cannot pay is passed over: a smaller one after it may still be paid.
    """
    left = retainer["balance"] if retainer else 0
    payments = []
    for order in orders:
        reason = _refusal(order, retainer, left)
        payments.append(_payment(order, reason, now))
        if reason is None:
            left -= order.total_amount
    return payments


def _refusal(order: OrderCreated, retainer: Mapping[str, object] | None, left: int) -> str | None:
    if order.payment.retainer_id is None:
        return "No retainer is named to pay from"
    name = name_of(chart.retainer(order.payment.retainer_id))
    if retainer is None:
        return f"{name} does not exist"
    if retainer["status"] != ACTIVE:
        return f"{name} is {retainer['status']}"
    if retainer["currency"] != order.currency:
        return f"{name} is kept in {retainer['currency']}, not in {order.currency}"
    if left < order.total_amount:
        holds, asked = money(left, order.currency), money(order.total_amount, order.currency)
        return f"Insufficient balance: {name} holds {holds}, and {asked} is asked for"
    return None


def _payment(order: OrderCreated, reason: str | None, now: datetime) -> Payment:
    """The payment as it will be recorded; one that is paid has no transaction id until it is in the books."""
    free = reason is None and order.total_amount == 0
    return Payment(
        order_id=order.order_id,
        status=Status.PROCESSED if reason is None else Status.FAILED,
        created_at=now,
        updated_at=now,
        user_id=order.user_id,
        amount=order.total_amount,
        currency=order.currency,
        retainer_id=order.payment.retainer_id or "",
        transaction_id=FREE if free else None,
        failure_reason=reason,
    )

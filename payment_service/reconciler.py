"""The background work on payments: learn unknown outcomes, and publish the answers that a crash left unpublished."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog

from payment_service.card_charger import CardCharger
from payment_service.lifecycle import NextAction, Payment, capture_answer, charge_answer, next_action
from payment_service.part_refunder import PartRefunder
from payment_service.payments import Payments
from payment_service.retainer_charger import RetainerCharger
from shared.background import run_periodically
from shared.bus.publisher import Publisher
from shared.clock import Clock

PAUSE_SECONDS = 0.5
"""The pause between two rounds."""

UNPUBLISHED_DELAY = timedelta(seconds=5)
"""An answer that is still marked as unpublished after this time is taken to be lost in a crash."""

EXPECTED_LOOKUPS = 10
"""Every look-up beyond these (after about three minutes) is logged as an error."""

_PAGE = 200
_log = structlog.get_logger(__name__)


class Reconciler:
    """Reconciles payments in the background; any number of processes may do so concurrently."""

    def __init__(
        self,
        payments: Payments,
        cards: CardCharger,
        retainers: RetainerCharger,
        parts: PartRefunder,
        publisher: Publisher,
        *,
        clock: Clock,
    ) -> None:
        self._payments = payments
        self._cards = cards
        self._retainers = retainers
        self._parts = parts
        self._publisher = publisher
        self._clock = clock

    async def run(self) -> None:
        """Reconcile until cancelled."""
        await run_periodically(self.reconcile, every=PAUSE_SECONDS, name="reconciling payments")

    async def reconcile(self) -> bool:
        """Look up and publish what is due; returns True if more may be due.

        A process that cannot publish leaves it to the others.
        """
        if not self._publisher.can_publish:
            return False
        return await self.look_up_due() + await self.publish_unpublished() >= _PAGE

    async def look_up_due(self) -> int:
        """Look up, refund or decide every payment that is due, publish the answers, and return how many were due."""
        due = await self._payments.due(self._clock(), _PAGE)
        # Of several processes that read the same payment, only the one whose claim succeeds continues.
        claims = await asyncio.gather(*(self._payments.claim(payment, self._clock()) for payment in due))
        claimed = [payment for payment in claims if payment is not None]
        for payment in claimed:
            if payment.lookups > EXPECTED_LOOKUPS:
                _log.error("payment still without an outcome", order_id=payment.order_id, lookups=payment.lookups)
        by_card = [p for p in claimed if p.retainer_id is None]
        prepaid = [p for p in claimed if p.retainer_id is not None and next_action(p) is not NextAction.NONE]
        looked_up = await self._cards.look_up([p for p in by_card if next_action(p) is NextAction.LOOK_UP])
        requested = [p for p in by_card if next_action(p) is NextAction.REFUND]
        refunded = await self._cards.refund(requested, unpublished=True)
        decided = await self._retainers.decide_postponed(prepaid)
        await self._publish([*looked_up, *refunded, *decided])
        await self._capture([p for p in by_card if next_action(p) is NextAction.CAPTURE])
        await self._refund_parts([p for p in by_card if next_action(p) is NextAction.REFUND_PARTS])
        # These were decided; an earlier release left their look-ups behind.
        await self._payments.clear_lookups([p for p in claimed if next_action(p) is NextAction.NONE])
        return len(due)

    async def publish_unpublished(self) -> int:
        """Publish answers recorded a while ago but not known to be published, and return how many there were."""
        left = await self._payments.unpublished(self._clock() - UNPUBLISHED_DELAY, _PAGE)
        await self._publish(left)
        return len(left)

    async def _capture(self, payments: Sequence[Payment]) -> None:
        """Ask for captures again whose outcome is unknown, and publish the answers of those decided.

        An answer that a crash leaves unpublished is asked for by the order, which is not settled without it.
        """
        captured = await self._cards.capture(payments)
        answers = [answer for payment in captured if (answer := capture_answer(payment))]
        if answers:
            await self._publisher.send(answers, {payment.order_id: payment.traceparent for payment in captured})

    async def _refund_parts(self, payments: Sequence[Payment]) -> None:
        """Ask for refunds in part again whose outcome is unknown, and publish the answers of those decided.

        An answer that a crash leaves unpublished is asked for by the order, which keeps the refund PENDING.
        """
        answers = await self._parts.ask_again(payments)
        if answers:
            await self._publisher.send(answers, {payment.order_id: payment.traceparent for payment in payments})

    async def _publish(self, payments: Sequence[Payment]) -> None:
        answers = {payment: answer for payment in payments if (answer := charge_answer(payment))}
        if answers:
            await self._publisher.send(list(answers.values()), {p.order_id: p.traceparent for p in answers})
            await self._payments.mark_published(list(answers))

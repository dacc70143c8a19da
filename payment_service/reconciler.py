"""The work that no message triggers: finds out unknown outcomes, and publishes answers that a crash left behind."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog

from payment_service.card_charger import CardCharger
from payment_service.lifecycle import NextAction, Payment, charge_answer, next_action
from payment_service.payments import Payments
from payment_service.retainer_charger import RetainerCharger
from shared import database
from shared.bus.publisher import Publisher
from shared.clock import Clock
from shared.errors import TransientError

PAUSE_SECONDS = 0.5
"""Between two looks at what is due."""

UNPUBLISHED_DELAY = timedelta(seconds=5)
"""After so long an answer that is still marked as unpublished is taken for left behind by a crash."""

EXPECTED_LOOKUPS = 10
"""After so many look-ups without an outcome (about three minutes) every further one is logged as an error."""

_PAGE = 200
_log = structlog.get_logger(__name__)


class Reconciler:
    """The background work of one payment process; any number of processes may do it at once."""

    def __init__(
        self,
        payments: Payments,
        cards: CardCharger,
        retainers: RetainerCharger,
        publisher: Publisher,
        *,
        clock: Clock,
    ) -> None:
        self._payments = payments
        self._cards = cards
        self._retainers = retainers
        self._publisher = publisher
        self._clock = clock

    async def run(self) -> None:
        """Look up and publish until cancelled; errors are logged, and what failed is still there the next time."""
        while True:
            try:
                more = await self.look_up_due() + await self.publish_unpublished() >= _PAGE
            except Exception as error:  # noqa: BLE001 - the loop must outlive every fault, and logs it
                more = False
                if isinstance(database.as_ours(error), TransientError):
                    _log.warning("look-ups wait for the servers", error=str(error)[:300])
                else:
                    _log.exception("look-ups failed")
            await asyncio.sleep(0 if more else PAUSE_SECONDS)

    async def look_up_due(self) -> int:
        """Carry on every payment whose look-up is due, publish what was found out; returns how many were due."""
        due = await self._payments.due(self._clock(), _PAGE)
        claims = await asyncio.gather(*(self._payments.claim(payment, self._clock()) for payment in due))
        claimed = [payment for payment in claims if payment is not None]
        for payment in claimed:
            if payment.lookups > EXPECTED_LOOKUPS:
                _log.error("payment still without an outcome", order_id=payment.order_id, lookups=payment.lookups)
        by_card = [p for p in claimed if p.retainer_id is None]
        prepaid = [p for p in claimed if p.retainer_id is not None and next_action(p) is not NextAction.NONE]
        await self._publish(
            [
                *await self._cards.look_up([p for p in by_card if next_action(p) is NextAction.LOOK_UP]),
                *await self._cards.refund(
                    [p for p in by_card if next_action(p) is NextAction.REFUND], unpublished=True
                ),
                *await self._retainers.decide_postponed(prepaid),
            ]
        )
        await self._payments.clear_lookups([p for p in claimed if next_action(p) is NextAction.NONE])
        return len(due)

    async def publish_unpublished(self) -> int:
        """Publish the answers that were recorded a while ago but are not known to be published; returns how many."""
        left = await self._payments.unpublished(self._clock() - UNPUBLISHED_DELAY, _PAGE)
        await self._publish(left)
        return len(left)

    async def _publish(self, payments: Sequence[Payment]) -> None:
        answers = {payment: answer for payment in payments if (answer := charge_answer(payment))}
        if answers:
            await self._publisher.send(list(answers.values()), {p.order_id: p.traceparent for p in answers})
            await self._payments.mark_published(list(answers))

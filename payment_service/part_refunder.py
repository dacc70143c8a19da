"""Refunds parts of payments, by card or to a retainer, once per refund id.

By card, a part is recorded as PENDING before the gateway is called under the refund's id. An unknown outcome is asked
for again by the reconciler, under the same id. To a retainer, the part and its journal entry share one transaction.
"""

import asyncio
from collections.abc import Sequence

import structlog

from payment_service import parts
from payment_service.card_charger import CardCharger
from payment_service.ledger.refusals import LedgerRefusalError
from payment_service.lifecycle import Part, PartStatus, Payment, with_next_lookup
from payment_service.payments import Payments
from payment_service.retainer_charger import RetainerCharger
from shared.clock import Clock
from shared.contracts import Message, RefundPart
from shared.errors import PoisonError
from shared.failpoints import PART_RECORDED, Failpoint
from shared.money import to_json_number

_log = structlog.get_logger(__name__)


class PartRefunder:
    """Refunds parts of payments, one batch at a time."""

    def __init__(
        self,
        payments: Payments,
        cards: CardCharger,
        retainers: RetainerCharger,
        *,
        clock: Clock,
        failpoint: Failpoint,
    ) -> None:
        self._payments = payments
        self._cards = cards
        self._retainers = retainers
        self._clock = clock
        self._failpoint = failpoint

    async def refund(self, requests: Sequence[RefundPart]) -> list[Message]:
        """Refund the parts and answer; the reconciler answers later for those whose outcome is still unknown.

        Raises PoisonError for an order that has no payment: only paid orders are refunded in part.
        """
        once = list({(request.order_id, request.refund_id): request for request in requests}.values())
        payments = await self._payments.read_existing({request.order_id for request in once})
        by_order: dict[str, list[RefundPart]] = {}
        for request in once:
            if request.order_id not in payments:
                raise PoisonError(f"{request.routing_key} for order {request.order_id}, which has no payment")
            by_order.setdefault(request.order_id, []).append(request)
        recorded = await asyncio.gather(*(self._record_all(payments[key], asked) for key, asked in by_order.items()))
        self._failpoint(PART_RECORDED)
        refunded = await self._refund_pending([part for of_order in recorded for part in of_order])
        return [answer for payment, part in refunded for answer in parts.answers(payment.order_id, [part])]

    async def ask_again(self, payments: Sequence[Payment]) -> list[Message]:
        """Refund the PENDING parts of payments again, under the same ids; return the answers of those decided."""
        pending = [(p, part) for p in payments for part in p.parts if part.status is PartStatus.PENDING]
        decided = await self._refund_pending(pending)
        return [answer for payment, part in decided for answer in parts.answers(payment.order_id, [part])]

    async def _record_all(self, payment: Payment, requests: Sequence[RefundPart]) -> list[tuple[Payment, Part]]:
        """Record the parts of one payment, first come, first served."""
        return [await self._record(payment, request) for request in requests]

    async def _record(self, payment: Payment, request: RefundPart) -> tuple[Payment, Part]:
        """Record the part unless it is known, and return it with its payment as recorded."""
        if payment.retainer_id is not None:
            return payment, await self._to_retainer(payment, request)
        while True:
            if known := parts.find(payment, request.refund_id):
                return payment, known
            part = parts.decide(payment, request, self._clock())
            if await self._payments.add_part(payment, part):
                return payment, part
            # Another worker has changed the payment since it was read.
            payment = (await self._payments.read_existing([payment.order_id]))[payment.order_id]

    async def _to_retainer(self, payment: Payment, request: RefundPart) -> Part:
        try:
            return await self._retainers.refund_part(payment, request)
        except LedgerRefusalError as refusal:
            _log.warning(
                "refund refused by the books",
                operation="order.part_refunded",
                order_id=request.order_id,
                refund_id=request.refund_id,
                amount=to_json_number(request.amount),
                reason=refusal.reason,
            )
            return await self._retainers.refund_part(payment, request, refused=str(refusal))

    async def _refund_pending(self, recorded: Sequence[tuple[Payment, Part]]) -> list[tuple[Payment, Part]]:
        """Call the gateway for the parts that are PENDING, and schedule look-ups of those that stay so."""
        pending = [(payment, part) for payment, part in recorded if part.status is PartStatus.PENDING]
        outcomes = await self._cards.refund_parts(pending)
        decided = {
            (payment.order_id, part.refund_id): part for (payment, _), part in zip(pending, outcomes, strict=True)
        }
        unknown = {
            p.order_id: p for p, part in recorded if decided.get(_key(p, part), part).status is PartStatus.PENDING
        }
        now = self._clock()
        await self._payments.update_many([(payment, with_next_lookup(payment, now)) for payment in unknown.values()])
        return [(payment, decided.get(_key(payment, part), part)) for payment, part in recorded]


def _key(payment: Payment, part: Part) -> tuple[str, str]:
    return payment.order_id, part.refund_id

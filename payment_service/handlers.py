"""The message handlers of the payment service: charge orders, capture and refund them, by card or from a retainer."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from payment_service.card_charger import CardCharger
from payment_service.lifecycle import (
    HOLDS_MONEY,
    NextAction,
    Payment,
    PaymentStatus,
    capture_answer,
    card_payment,
    charge_answer,
    next_action,
    refund_answer,
)
from payment_service.part_refunder import PartRefunder
from payment_service.payments import Payments
from payment_service.retainer_charger import RetainerCharger
from shared import tracing
from shared.bus import Handlers
from shared.clock import Clock
from shared.contracts import CapturePayment, Message, OrderCreated, RefundPart, RefundPayment
from shared.errors import PoisonError
from shared.failpoints import PAYMENT_PENDING, Failpoint
from shared.repeats import note_repeats


class PaymentHandlers:
    """Charges and refunds orders, one batch at a time."""

    def __init__(
        self,
        payments: Payments,
        cards: CardCharger,
        retainers: RetainerCharger,
        parts: PartRefunder,
        *,
        capture_on_confirm: bool,
        clock: Clock,
        failpoint: Failpoint,
    ) -> None:
        self._payments = payments
        self._cards = cards
        self._retainers = retainers
        self._parts = parts
        self._capture_on_confirm = capture_on_confirm
        self._clock = clock
        self._failpoint = failpoint

    async def charge(self, orders: Sequence[OrderCreated]) -> Sequence[Message]:
        """Charge the orders; the reconciler answers later for those whose outcome is still unknown."""
        by_card, from_retainer = _by_method(_without_duplicates(orders))
        return [*await self._charge_cards(by_card), *await self._charge_retainers(from_retainer)]

    async def _charge_retainers(self, orders: Sequence[OrderCreated]) -> list[Message]:
        return _known(charge_answer(payment) for payment in await self._retainers.charge(orders))

    async def _charge_cards(self, orders: Sequence[OrderCreated]) -> list[Message]:
        now = self._clock()
        # The record comes before the call: after a crash, the order id is the key that finds the charge again.
        new = [card_payment(order, now, capture_on_confirm=self._capture_on_confirm) for order in orders]
        traced = [_in_trace(payment) for payment in new]
        recorded = await self._payments.insert_missing(traced)
        self._failpoint(PAYMENT_PENDING)
        # One that a crash has left without an outcome is not answered from its record: it is charged below.
        answered = [p for p, inserted in zip(recorded, traced, strict=True) if p is not inserted and charge_answer(p)]
        note_repeats("payment.charge", (payment.order_id for payment in answered))
        charged = await self._cards.charge([p for p in recorded if next_action(p) is NextAction.CHARGE])
        refunded = await self._cards.refund([p for p in recorded if next_action(p) is NextAction.REFUND])
        changed = {payment.order_id: payment for payment in (*charged, *refunded)}
        return _known(charge_answer(changed.get(payment.order_id, payment)) for payment in recorded)

    async def capture(self, requests: Sequence[CapturePayment]) -> Sequence[Message]:
        """Capture what is authorised; the reconciler answers later for those whose outcome is still unknown.

        Raises PoisonError for an order that has no payment: only a paid order is fulfilled.
        """
        asked = dict.fromkeys(request.order_id for request in requests)
        recorded = await self._payments.read_existing(asked)
        if missing := [order_id for order_id in asked if order_id not in recorded]:
            raise PoisonError(f"{CapturePayment.routing_key} for order {missing[0]}, which has no payment")
        authorized = [p for p in recorded.values() if p.status is PaymentStatus.AUTHORIZED and not p.refund_requested]
        changed = {payment.order_id: payment for payment in await self._cards.capture(authorized)}
        return _known(capture_answer(changed.get(order_id, recorded[order_id])) for order_id in asked)

    async def refund(self, requests: Sequence[RefundPayment]) -> Sequence[Message]:
        """Refund the orders; one whose charge is in flight is answered by the worker that learns its outcome."""
        recorded = await self._payments.request_refunds((request.order_id for request in requests), self._clock())
        held = [payment for payment in recorded if payment.status in HOLDS_MONEY]
        refunded = [
            *await self._cards.refund([payment for payment in held if payment.retainer_id is None]),
            *await self._retainers.refund([payment for payment in held if payment.retainer_id is not None]),
        ]
        changed = {payment.order_id: payment for payment in refunded}
        return _known(refund_answer(changed.get(payment.order_id, payment)) for payment in recorded)

    async def refund_parts(self, requests: Sequence[RefundPart]) -> Sequence[Message]:
        """Refund parts of orders; the reconciler answers later for those whose outcome is still unknown."""
        return await self._parts.refund(requests)


def _without_duplicates(orders: Sequence[OrderCreated]) -> Iterable[OrderCreated]:
    first: dict[str, OrderCreated] = {}
    for order in orders:
        first.setdefault(order.order_id, order)
    return first.values()


def _by_method(orders: Iterable[OrderCreated]) -> tuple[list[OrderCreated], list[OrderCreated]]:
    by_card: list[OrderCreated] = []
    from_retainer: list[OrderCreated] = []
    for order in orders:
        (by_card if order.payment.method == "card" else from_retainer).append(order)
    return by_card, from_retainer


def _in_trace(payment: Payment) -> Payment:
    return replace(payment, traceparent=tracing.of_order(payment.order_id))


def _known(answers: Iterable[Message | None]) -> list[Message]:
    return [answer for answer in answers if answer is not None]


def handlers(
    payments: Payments,
    cards: CardCharger,
    retainers: RetainerCharger,
    parts: PartRefunder,
    *,
    capture_on_confirm: bool,
    clock: Clock,
    failpoint: Failpoint,
) -> Handlers:
    """Map each message type to its handler."""
    handler = PaymentHandlers(
        payments, cards, retainers, parts, capture_on_confirm=capture_on_confirm, clock=clock, failpoint=failpoint
    )
    return {
        OrderCreated: handler.charge,
        CapturePayment: handler.capture,
        RefundPayment: handler.refund,
        RefundPart: handler.refund_parts,
    }

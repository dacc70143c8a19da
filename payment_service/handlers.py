"""What the payment service does with its messages: `lifecycle` decides, `charging` acts, the records tell."""

from collections.abc import Iterable, Sequence

from payment_service.charging import Charging
from payment_service.lifecycle import Status, Step, charge_answer, next_step, opened, refund_answer
from payment_service.payments import Payments
from shared.bus import Handlers
from shared.clock import Clock
from shared.contracts import Message, OrderCreated, RefundPayment
from shared.failure_points import PAYMENT_PENDING, FailurePoint


class PaymentHandlers:
    """Takes payments and returns them, a batch at a time."""

    def __init__(self, payments: Payments, charging: Charging, *, clock: Clock, reach: FailurePoint) -> None:
        self._payments = payments
        self._charging = charging
        self._clock = clock
        self._reach = reach

    async def take(self, orders: Sequence[OrderCreated]) -> Sequence[Message]:
        """Charge the orders; one whose outcome is not known yet is answered later, by the look-up."""
        now = self._clock()
        recorded = await self._payments.open([opened(order, now) for order in _once_each(orders)])
        self._reach(PAYMENT_PENDING)
        charged = await self._charging.charge([p for p in recorded if next_step(p) is Step.CHARGE])
        returned = await self._charging.give_back([p for p in recorded if next_step(p) is Step.RETURN])
        carried_on = {payment.order_id: payment for payment in (*charged, *returned)}
        return _known(charge_answer(carried_on.get(payment.order_id, payment)) for payment in recorded)

    async def refund(self, requests: Sequence[RefundPayment]) -> Sequence[Message]:
        """Return the money; one whose charge is in flight is answered by whoever learns how that ended."""
        recorded = await self._payments.request_refunds((request.order_id for request in requests), self._clock())
        charged = [payment for payment in recorded if payment.status is Status.PROCESSED]
        returned = {payment.order_id: payment for payment in await self._charging.give_back(charged)}
        return _known(refund_answer(returned.get(payment.order_id, payment)) for payment in recorded)


def _once_each(orders: Sequence[OrderCreated]) -> Iterable[OrderCreated]:
    first: dict[str, OrderCreated] = {}
    for order in orders:
        first.setdefault(order.order_id, order)
    return first.values()


def _known(answers: Iterable[Message | None]) -> list[Message]:
    return [answer for answer in answers if answer is not None]


def handlers(payments: Payments, charging: Charging, *, clock: Clock, reach: FailurePoint) -> Handlers:
    """Which handler takes which message."""
    handler = PaymentHandlers(payments, charging, clock=clock, reach=reach)
    return {
        OrderCreated: handler.take,
        RefundPayment: handler.refund,
    }

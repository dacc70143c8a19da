"""Charges, looks up, captures and refunds card payments at the gateway, and records the outcomes.

Nothing is charged or refunded twice, and an unknown outcome is never guessed: it is looked up later.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import structlog
from prometheus_client import Counter, Histogram

from payment_service import parts as part_refunds
from payment_service.gateways.port import (
    Authorized,
    CaptureRefused,
    Charged,
    Declined,
    Gateway,
    GatewayTimeoutError,
    NothingCharged,
    OutcomeUnknown,
    Refunded,
    RefundRefused,
)
from payment_service.lifecycle import (
    FREE,
    Part,
    Payment,
    PaymentStatus,
    after_capture,
    after_charge,
    after_refund,
    mark_unpublished,
    must_refund,
)
from payment_service.payments import PaymentChange, Payments
from shared import tracing
from shared.clock import Clock
from shared.failpoints import CAPTURE_SENT, PART_SENT, PAYMENT_CHARGED, REFUND_SENT, Failpoint

_log = structlog.get_logger(__name__)
_decisions = Counter("payments_total", "Card payments decided, by resulting status", ["status"])
_refused_captures = Counter("captures_refused_total", "Authorised payments that the gateway refused to capture")
_unknown_outcomes = Counter("gateway_unknown_outcomes_total", "Gateway calls with an unknown outcome", ["operation"])
_durations = Histogram("gateway_duration_seconds", "Duration of gateway calls", ["operation"])

Outcome = TypeVar("Outcome")


class CardCharger:
    """Calls the gateway for a batch of payments concurrently and records all outcomes in one write.

    If another worker has changed a payment in the meantime, its record wins, and a charge that does not fit it is
    refunded. With `unpublished`, the records also note that their answers are not published yet.
    """

    def __init__(
        self, payments: Payments, gateway: Gateway, *, timeout_seconds: float, clock: Clock, failpoint: Failpoint
    ) -> None:
        self._payments = payments
        self._gateway = gateway
        self._timeout = timeout_seconds
        self._clock = clock
        self._failpoint = failpoint

    async def charge(self, payments: Sequence[Payment]) -> list[Payment]:
        """Charge the payments and return them as recorded, in the same order."""
        return await self._charge("charge", self._charge_one, payments, unpublished=False)

    async def look_up(self, payments: Sequence[Payment]) -> list[Payment]:
        """Look up the charges, make those that never reached the gateway, and return the payments as recorded."""
        return await self._charge("look_up", self._look_up_or_charge_one, payments, unpublished=True)

    async def capture(self, payments: Sequence[Payment]) -> list[Payment]:
        """Capture AUTHORIZED payments and return them as recorded, in the same order."""
        if not payments:
            return []
        outcomes = await self._call_all("capture", [(p, partial(self._capture_one, p)) for p in payments])
        self._failpoint(CAPTURE_SENT)
        now = self._clock()
        changes = [(p, after_capture(p, outcome, now)) for p, outcome in zip(payments, outcomes, strict=True)]
        recorded = await self._record(changes, unpublished=False)
        for payment, outcome in zip(recorded, outcomes, strict=True):
            # One that a refund has overtaken was to be refused.
            if isinstance(outcome, CaptureRefused) and payment.status is PaymentStatus.AUTHORIZED:
                _refused_captures.inc()
                _log.warning("capture refused", order_id=payment.order_id, why=outcome.reason)
        return recorded

    async def refund(self, payments: Sequence[Payment], *, unpublished: bool = False) -> list[Payment]:
        """Refund the payments and return them as recorded, in the same order."""
        if not payments:
            return []
        outcomes = await self._call_all("refund", [(p, partial(self._refund_one, p)) for p in payments])
        self._failpoint(REFUND_SENT)
        now = self._clock()
        return await self._record(
            [
                (payment, after_refund(payment, outcome, now))
                for payment, outcome in zip(payments, outcomes, strict=True)
            ],
            unpublished=unpublished,
        )

    async def refund_parts(self, pending: Sequence[tuple[Payment, Part]]) -> list[Part]:
        """Refund PENDING parts and return them as recorded, in the same order; without an outcome they stay PENDING."""
        if not pending:
            return []
        calls = [(payment, partial(self._refund_part, payment, part)) for payment, part in pending]
        outcomes = await self._call_all("refund_part", calls)
        self._failpoint(PART_SENT)
        now = self._clock()
        return [
            part
            if (decided := part_refunds.after_refund(part, outcome, now)) is part
            else await self._payments.decide_part(payment.order_id, decided)
            for (payment, part), outcome in zip(pending, outcomes, strict=True)
        ]

    async def _charge(
        self,
        operation: str,
        call: Callable[[Payment], Awaitable[Charged | Authorized | Declined]],
        payments: Sequence[Payment],
        *,
        unpublished: bool,
    ) -> list[Payment]:
        if not payments:
            return []
        outcomes = await self._call_all(operation, [(payment, partial(call, payment)) for payment in payments])
        self._failpoint(PAYMENT_CHARGED)
        now = self._clock()
        recorded = await self._record(
            [
                (payment, after_charge(payment, outcome, now))
                for payment, outcome in zip(payments, outcomes, strict=True)
            ],
            unpublished=unpublished,
        )
        # Refunded or voided while the charge was in flight: the money goes back at once.
        overtaken = [p for p, outcome in zip(recorded, outcomes, strict=True) if must_refund(p, outcome)]
        refunded = {p.order_id: p for p in await self.refund(overtaken, unpublished=unpublished)}
        return [refunded.get(payment.order_id, payment) for payment in recorded]

    async def _charge_one(self, payment: Payment) -> Charged | Authorized | Declined:
        return await self._gateway.charge(payment.charge_request())

    async def _look_up_or_charge_one(self, payment: Payment) -> Charged | Authorized | Declined:
        request = payment.charge_request()
        # Nothing is charged twice: a charge that arrives between the two calls has the same key.
        return await self._gateway.look_up(request) or await self._gateway.charge(request)

    async def _capture_one(self, payment: Payment) -> Charged | CaptureRefused:
        return await self._gateway.capture(payment.charge_request())

    async def _refund_one(self, payment: Payment) -> Refunded | NothingCharged:
        if payment.transaction_id == FREE:
            return Refunded(FREE)
        return await self._gateway.refund(payment.charge_request())

    async def _refund_part(self, payment: Payment, part: Part) -> Refunded | RefundRefused:
        return await self._gateway.refund_part(payment.charge_request(), part.refund_id, part.amount)

    async def _record(self, changes: Sequence[PaymentChange], *, unpublished: bool) -> list[Payment]:
        if unpublished:
            changes = [(before, mark_unpublished(before, after)) for before, after in changes]
        recorded = await self._payments.update_many(changes)
        # Only the worker whose update took effect counts the decision.
        for (before, after), now in zip(changes, recorded, strict=True):
            if before.status is not after.status and after.status is now.status:
                _decisions.labels(now.status).inc()
        return recorded

    async def _call_all(
        self, operation: str, calls: Sequence[tuple[Payment, Callable[[], Awaitable[Outcome]]]]
    ) -> list[Outcome | OutcomeUnknown]:
        """Call the gateway for all payments concurrently; a call that fails concerns its own payment only."""
        tasks = [asyncio.create_task(_call(operation, call, payment)) for payment, call in calls]
        late = f"no answer within {self._timeout} s"
        try:
            await asyncio.wait(tasks, timeout=self._timeout)
            return [
                task.result() if task.done() else _unknown_outcome(operation, payment, late)
                for task, (payment, _) in zip(tasks, calls, strict=True)
            ]
        finally:
            # The batch was cancelled or is late: an open call would continue with its outcome unrecorded.
            for task in tasks:
                task.cancel()


async def _call(operation: str, call: Callable[[], Awaitable[Outcome]], payment: Payment) -> Outcome | OutcomeUnknown:
    started = time.perf_counter()
    try:
        with tracing.calling(f"{operation} at the gateway", payment.order_id, payment.traceparent):
            return await call()
    except GatewayTimeoutError as error:
        return _unknown_outcome(operation, payment, str(error))
    except Exception as error:  # noqa: BLE001 - the charge may have been made, as after a timeout; it is looked up
        _log.exception("gateway call failed", operation=operation, order_id=payment.order_id)
        return _unknown_outcome(operation, payment, repr(error))
    finally:
        _durations.labels(operation).observe(time.perf_counter() - started)


def _unknown_outcome(operation: str, payment: Payment, why: str) -> OutcomeUnknown:
    _unknown_outcomes.labels(operation).inc()
    _log.warning("gateway outcome unknown", operation=operation, order_id=payment.order_id, why=why)
    return OutcomeUnknown(why)

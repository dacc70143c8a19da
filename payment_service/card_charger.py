"""Carries payments on, between the gateway and the records: charge, find out, return; never twice, never on a guess."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog
from prometheus_client import Counter, Histogram

from payment_service.gateways.port import (
    Charged,
    Declined,
    Gateway,
    GatewayTimeoutError,
    NothingCharged,
    OutcomeUnknown,
    Refunded,
)
from payment_service.lifecycle import FREE, Payment, after_charge, after_refund, mark_unpublished, must_refund
from payment_service.payments import PaymentChange, Payments
from shared import tracing
from shared.clock import Clock
from shared.failure_points import PAYMENT_CHARGED, REFUND_SENT, FailurePoint

_log = structlog.get_logger(__name__)
_decisions = Counter("payments_total", "Payments by the state that followed from the gateway's answer", ["status"])
_unknown = Counter("gateway_unknown_outcomes_total", "Calls to the gateway without a known outcome", ["operation"])
_durations = Histogram("gateway_duration_seconds", "Time until the gateway answered", ["operation"])

Outcome = TypeVar("Outcome")


class CardCharger:
    """Asks the gateway about many payments at once and records what it says, each in one write.

    Where another worker has overtaken a payment in between, its record wins, and a charge that it has no use for is
    returned. With `unpublished`, the records also say that their answers are still to be published.
    """

    def __init__(
        self, payments: Payments, gateway: Gateway, *, timeout_seconds: float, clock: Clock, reach: FailurePoint
    ) -> None:
        self._payments = payments
        self._gateway = gateway
        self._timeout = timeout_seconds
        self._clock = clock
        self._reach = reach

    async def charge(self, payments: Sequence[Payment]) -> list[Payment]:
        """Charge the payments and return them, in order, as they are recorded then."""
        return await self._charge("charge", self._charge_once, payments, unpublished=False)

    async def look_up(self, payments: Sequence[Payment]) -> list[Payment]:
        """Find out what became of the charges, make those that never arrived, and return the payments as recorded."""
        return await self._charge("look_up", self._look_up_or_charge, payments, unpublished=True)

    async def refund(self, payments: Sequence[Payment], *, unpublished: bool = False) -> list[Payment]:
        """Return what was charged for the payments, and return them, in order, as they are recorded then."""
        if not payments:
            return []
        outcomes = await self._ask("refund", self._refund, payments)
        self._reach(REFUND_SENT)
        now = self._clock()
        return await self._record(
            [
                (payment, after_refund(payment, outcome, now))
                for payment, outcome in zip(payments, outcomes, strict=True)
            ],
            unpublished=unpublished,
        )

    async def _charge(
        self,
        operation: str,
        call: Callable[[Payment], Awaitable[Charged | Declined]],
        payments: Sequence[Payment],
        *,
        unpublished: bool,
    ) -> list[Payment]:
        if not payments:
            return []
        outcomes = await self._ask(operation, call, payments)
        self._reach(PAYMENT_CHARGED)
        now = self._clock()
        recorded = await self._record(
            [
                (payment, after_charge(payment, outcome, now))
                for payment, outcome in zip(payments, outcomes, strict=True)
            ],
            unpublished=unpublished,
        )
        overtaken = [p for p, outcome in zip(recorded, outcomes, strict=True) if must_refund(p, outcome)]
        returned = {p.order_id: p for p in await self.refund(overtaken, unpublished=unpublished)}
        return [returned.get(payment.order_id, payment) for payment in recorded]

    async def _charge_once(self, payment: Payment) -> Charged | Declined:
        return await self._gateway.charge(payment.charge_request())

    async def _look_up_or_charge(self, payment: Payment) -> Charged | Declined:
        request = payment.charge_request()
        return await self._gateway.look_up(request) or await self._gateway.charge(request)

    async def _refund(self, payment: Payment) -> Refunded | NothingCharged:
        if payment.transaction_id == FREE:
            return Refunded(FREE)
        return await self._gateway.refund(payment.charge_request())

    async def _record(self, changes: Sequence[PaymentChange], *, unpublished: bool) -> list[Payment]:
        if unpublished:
            changes = [(before, mark_unpublished(before, after)) for before, after in changes]
        recorded = await self._payments.update_many(changes)
        for (before, after), now in zip(changes, recorded, strict=True):
            if before.status is not after.status and after.status is now.status:
                _decisions.labels(now.status).inc()
        return recorded

    async def _ask(
        self, operation: str, call: Callable[[Payment], Awaitable[Outcome]], payments: Sequence[Payment]
    ) -> list[Outcome | OutcomeUnknown]:
        """Call for all payments concurrently; whatever happens to one call is that payment's outcome alone."""
        calls = [asyncio.create_task(_outcome(operation, call, payment)) for payment in payments]
        try:
            await asyncio.wait(calls, timeout=self._timeout)
            return [
                task.result() if task.done() else _not_known(operation, payment, f"no answer within {self._timeout} s")
                for task, payment in zip(calls, payments, strict=True)
            ]
        finally:
            for task in calls:
                task.cancel()


async def _outcome(
    operation: str, call: Callable[[Payment], Awaitable[Outcome]], payment: Payment
) -> Outcome | OutcomeUnknown:
    started = time.perf_counter()
    try:
        with tracing.calling(f"{operation} at the gateway", payment.order_id, payment.traceparent):
            return await call(payment)
    except GatewayTimeoutError as error:
        return _not_known(operation, payment, str(error))
    except Exception as error:  # noqa: BLE001 - says as little about the money as a timeout, and is looked up like one
        _log.exception("gateway call failed", operation=operation, order_id=payment.order_id)
        return _not_known(operation, payment, repr(error))
    finally:
        _durations.labels(operation).observe(time.perf_counter() - started)


def _not_known(operation: str, payment: Payment, why: str) -> OutcomeUnknown:
    _unknown.labels(operation).inc()
    _log.warning("gateway outcome unknown", operation=operation, order_id=payment.order_id, why=why)
    return OutcomeUnknown(why)

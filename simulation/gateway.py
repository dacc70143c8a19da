"""The card gateway of a world: the simulated one of the service, with the faults of the plan between the two.

A request may never arrive, its answer may be lost, or it arrives long after its caller has given up: after the look-up,
the refund or the repetition that followed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from payment_service.gateways.factory import OpenGateway
from payment_service.gateways.port import (
    Authorized,
    CaptureRefused,
    Charged,
    ChargeRequest,
    Declined,
    GatewayTimeoutError,
    NothingCharged,
    Refunded,
    RefundRefused,
)
from simulation import plan
from simulation.faults import Injector

_LATE = 3.0
"""How much later a request arrives that is on its way for long, in seconds."""

T = TypeVar("T")


class FaultyGateway:
    """A gateway as one process reaches it."""

    def __init__(self, gateway: OpenGateway, injector: Injector) -> None:
        self._gateway = gateway
        self._injector = injector

    async def charge(self, request: ChargeRequest) -> Charged | Authorized | Declined:
        """Charge a card."""
        return await self._call("charge", lambda: self._gateway.charge(request))

    async def look_up(self, request: ChargeRequest) -> Charged | Authorized | Declined | None:
        """Look up a charge."""
        return await self._call("look_up", lambda: self._gateway.look_up(request))

    async def capture(self, request: ChargeRequest) -> Charged | CaptureRefused:
        """Capture what is authorised."""
        return await self._call("capture", lambda: self._gateway.capture(request))

    async def refund(self, request: ChargeRequest) -> Refunded | NothingCharged:
        """Refund a charge."""
        return await self._call("refund", lambda: self._gateway.refund(request))

    async def refund_part(self, request: ChargeRequest, refund_id: str, amount: int) -> Refunded | RefundRefused:
        """Refund a part."""
        return await self._call("refund_part", lambda: self._gateway.refund_part(request, refund_id, amount))

    async def drain(self) -> None:
        """Finish the calls in flight."""
        await self._gateway.drain()

    async def _call(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        places = [f"{name}: {fault}" for fault in (plan.LOST, plan.UNANSWERED, plan.LATE)]
        fault = self._injector.chance(plan.GATEWAY, "gateway", *places)
        if fault is None:
            return await call()
        how = fault.place.partition(": ")[2]
        if how == plan.UNANSWERED:
            await call()
        elif how == plan.LATE:
            asyncio.get_running_loop().create_task(_later(call))
        raise GatewayTimeoutError(f"{name}: the gateway has not answered")


async def _later(call: Callable[[], Awaitable[object]]) -> None:
    """Let a request arrive late; nobody waits for its answer any more."""
    await asyncio.sleep(_LATE)
    try:
        await call()
    except GatewayTimeoutError:
        return

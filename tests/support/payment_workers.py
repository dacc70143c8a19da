"""Payment workers for tests: over a real database, with a clock, a gateway and crashes that the test controls."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from pymongo.read_concern import ReadConcern

from payment_service import payments as records
from payment_service.card_charger import CardCharger
from payment_service.gateways import simulated
from payment_service.gateways.port import (
    Authorized,
    CaptureRefused,
    Charged,
    ChargeRequest,
    Declined,
    Gateway,
    NothingCharged,
    Refunded,
    RefundRefused,
)
from payment_service.gateways.simulated import SimulatedGateway
from payment_service.handlers import PaymentHandlers
from payment_service.ledger.ledger import Ledger
from payment_service.ledger.transactions import Transactions
from payment_service.lifecycle import Payment
from payment_service.part_refunder import PartRefunder
from payment_service.payments import Payments
from payment_service.reconciler import Reconciler
from payment_service.retainer_charger import RetainerCharger
from shared.bus.publisher import NO_TRACES
from shared.clock import utc_now
from shared.contracts import CapturePayment, Message, OrderCreated, RefundPart, RefundPayment
from shared.contracts.orders import Item, PaymentInstruction
from shared.database import Database, Document
from shared.errors import BusUnavailableError
from shared.failpoints import SimulatedCrashError
from shared.schema import prepare
from tests.support.builders import connected, new_id


class MovableClock:
    """A clock that a test can advance."""

    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> Any:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Outbox:
    """Collects what the reconciler publishes; raises while `away`, which is known beforehand, or `failing`."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.away = self.failing = False

    @property
    def can_publish(self) -> bool:
        return not self.away

    async def send(self, messages: Sequence[Message], traceparents: Mapping[str, str | None] = NO_TRACES) -> None:
        if self.away or self.failing:
            raise BusUnavailableError("the broker is away")
        self.sent.extend(messages)


class InterceptedGateway:
    """A gateway that runs the test's code, `before` and `after`, around each call, given its operation and key."""

    def __init__(self, inner: Gateway) -> None:
        self.inner = inner
        self.before: Callable[[str, str], Awaitable[None]] = _nothing
        self.after: Callable[[str, str], Awaitable[None]] = _nothing

    async def charge(self, request: ChargeRequest) -> Charged | Authorized | Declined:
        await self.before("charge", request.key)
        outcome = await self.inner.charge(request)
        await self.after("charge", request.key)
        return outcome

    async def look_up(self, request: ChargeRequest) -> Charged | Authorized | Declined | None:
        await self.before("look_up", request.key)
        outcome = await self.inner.look_up(request)
        await self.after("look_up", request.key)
        return outcome

    async def capture(self, request: ChargeRequest) -> Charged | CaptureRefused:
        await self.before("capture", request.key)
        outcome = await self.inner.capture(request)
        await self.after("capture", request.key)
        return outcome

    async def refund(self, request: ChargeRequest) -> Refunded | NothingCharged:
        await self.before("refund", request.key)
        outcome = await self.inner.refund(request)
        await self.after("refund", request.key)
        return outcome

    async def refund_part(self, request: ChargeRequest, refund_id: str, amount: int) -> Refunded | RefundRefused:
        await self.before("refund_part", request.key)
        outcome = await self.inner.refund_part(request, refund_id, amount)
        await self.after("refund_part", request.key)
        return outcome


class PaymentWorker:
    """One payment process without its consumer: `charge` and `refund` return the answers of its handlers."""

    def __init__(
        self,
        database: Database,
        clock: MovableClock,
        failure_rate: float,
        timeout_seconds: float,
        *,
        capture_on_confirm: bool = False,
    ) -> None:
        self.database = database
        self.clock = clock
        self.crash_at: str | None = None
        self.outbox = Outbox()
        self.payments = Payments(database[records.COLLECTION])
        inner = SimulatedGateway(database[simulated.COLLECTION], failure_rate=failure_rate, clock=clock)
        self.gateway = InterceptedGateway(inner)
        self.cards = CardCharger(
            self.payments, self.gateway, timeout_seconds=timeout_seconds, clock=clock, failpoint=self.failpoint
        )
        self.ledger = Ledger(database, clock)
        self.transactions = Transactions(database, limit_seconds=120)
        self.retainers = RetainerCharger(self.payments, self.ledger, self.transactions, clock)
        self.parts = PartRefunder(self.payments, self.cards, self.retainers, clock=clock, failpoint=self.failpoint)
        self._handlers = PaymentHandlers(
            self.payments,
            self.cards,
            self.retainers,
            self.parts,
            capture_on_confirm=capture_on_confirm,
            clock=clock,
            failpoint=self.failpoint,
        )
        self.reconciler = Reconciler(
            self.payments,
            self.cards,
            self.retainers,
            self.parts,
            self.outbox,  # type: ignore[arg-type]
            clock=clock,
        )

    def failpoint(self, point: str) -> None:
        """Crash once, at the failpoint that the test has chosen."""
        if point == self.crash_at:
            self.crash_at = None
            raise SimulatedCrashError(point)

    async def charge(self, *orders: OrderCreated) -> list[Message]:
        return list(await self._handlers.charge(orders))

    async def capture(self, *order_ids: str) -> list[Message]:
        return list(await self._handlers.capture([CapturePayment(order_id=order_id) for order_id in order_ids]))

    async def refund(self, *order_ids: str) -> list[Message]:
        return list(await self._handlers.refund([RefundPayment(order_id=order_id) for order_id in order_ids]))

    async def refund_part(self, order_id: str, refund_id: str, amount: int) -> list[Message]:
        return await self.refund_parts(RefundPart(order_id=order_id, refund_id=refund_id, amount=amount))

    async def refund_parts(self, *requests: RefundPart) -> list[Message]:
        return list(await self._handlers.refund_parts(requests))

    async def payment(self, order_id: str) -> Payment:
        found = await self.payments.find(order_id)
        assert found is not None, f"no payment of order {order_id}"
        return found

    async def gateway_record(self, key: str) -> Document | None:
        """Return the gateway's record of the key."""
        return await self.database[simulated.COLLECTION].find_one({"_id": key})

    async def held(self) -> set[str]:
        """Return the keys under which the gateway holds money, authorised or charged."""
        holding = {"outcome": {"$in": ["AUTHORIZED", "CHARGED"]}, "refundedAt": None}
        cursor = self.database[simulated.COLLECTION].find(holding)
        return {record["_id"] async for record in cursor}


def order_created(token: str | None = "tok_ok", amount: int = 1000, **changes: Any) -> OrderCreated:
    """Create an order of that many minor units, paid by card with the token."""
    fields: dict[str, Any] = {
        "order_id": new_id(),
        "user_id": "u1",
        "items": (Item(product_id="p1", quantity=1, price=amount),),
        "total_amount": amount,
        "payment": PaymentInstruction(token=token),
    }
    return OrderCreated(**(fields | changes))


@asynccontextmanager
async def payment_worker(
    mongodb_url: str,
    database_prefix: str,
    *,
    clock: MovableClock | None = None,
    driver: str = "pymongo",
    failure_rate: float = 0.0,
    timeout_seconds: float = 60.0,  # a slow machine must not make an outcome unknown
    capture_on_confirm: bool = False,
) -> AsyncIterator[PaymentWorker]:
    """Create a worker with its own connection; workers of one prefix share payments and gateway records."""
    async with connected(mongodb_url, f"{database_prefix}_payments", driver) as database:
        await prepare(database, {records.COLLECTION: records.SCHEMA})
        yield PaymentWorker(
            database.with_options(read_concern=ReadConcern("majority")),
            clock or MovableClock(),
            failure_rate,
            timeout_seconds,
            capture_on_confirm=capture_on_confirm,
        )


def kinds(messages: Collection[Message]) -> list[str]:
    """Return the routing keys of the messages."""
    return [message.routing_key for message in messages]


async def _nothing(_operation: str, _key: str) -> None:
    return None

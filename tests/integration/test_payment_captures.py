"""Cards that are authorised first and charged when the order is fulfilled: once, whatever crashes, races or is lost."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from prometheus_client import REGISTRY

from payment_service.gateways.port import GatewayTimeoutError
from payment_service.gateways.simulated import CAPTURE_REFUSED
from payment_service.lifecycle import Payment, PaymentStatus
from payment_service.refusals import EXPIRED
from shared.contracts import (
    Message,
    OrderCreated,
    PartRefundFailed,
    PaymentCaptured,
    PaymentCaptureFailed,
    PaymentProcessed,
    PaymentRefunded,
)
from shared.contracts.orders import PaymentInstruction
from shared.database import Document
from shared.errors import PoisonError
from shared.failpoints import CAPTURE_SENT, PAYMENT_CHARGED, PAYMENT_PENDING, REFUND_SENT, SimulatedCrashError
from tests.integration.test_retainer_payments import retainer
from tests.support.failure_codes import code_of
from tests.support.payment_workers import MovableClock, PaymentWorker, order_created, payment_worker
from tests.support.seeds import seed_count

pytestmark = pytest.mark.both_databases


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def workers(mongodb_url: str, database_prefix: str, clock: MovableClock) -> AsyncIterator[list[PaymentWorker]]:
    async with (
        payment_worker(mongodb_url, database_prefix, clock=clock, capture_on_confirm=True) as one,
        payment_worker(mongodb_url, database_prefix, clock=clock, capture_on_confirm=True) as other,
    ):
        yield [one, other]


@pytest.fixture
def worker(workers: list[PaymentWorker]) -> PaymentWorker:
    return workers[0]


async def authorized(worker: PaymentWorker, token: str = "tok_ok") -> str:
    """Authorise an order and return its id."""
    order = order_created(token)
    (answer,) = await worker.charge(order)
    assert isinstance(answer, PaymentProcessed)
    assert answer.status == "AUTHORIZED"
    return order.order_id


def captured(order_id: str) -> list[Message]:
    return [PaymentCaptured(order_id=order_id)]


def not_captured(order_id: str, reason: str) -> list[Message]:
    return [PaymentCaptureFailed(order_id=order_id, reason=reason, code=code_of(reason))]


def voided(order_id: str) -> list[Message]:
    return [PaymentRefunded(order_id=order_id, status="VOIDED")]


async def test_a_payment_is_captured_once_however_often_it_is_asked_for(workers: list[PaymentWorker]) -> None:
    order_id = await authorized(workers[0])
    assert (await workers[0].payment(order_id)).status is PaymentStatus.AUTHORIZED
    for worker in (*workers, workers[0]):
        assert await worker.capture(order_id) == captured(order_id)
    payment = await workers[0].payment(order_id)
    agree(payment, await workers[0].gateway_record(order_id))
    assert payment.status is PaymentStatus.PROCESSED


async def test_a_cancelled_order_is_voided_and_costs_no_refund(worker: PaymentWorker) -> None:
    order_id = await authorized(worker)
    assert await worker.refund(order_id) == voided(order_id)
    record = await worker.gateway_record(order_id)
    assert record is not None
    assert "refundedAt" not in record
    assert await worker.capture(order_id) == voided(order_id)
    assert await worker.held() == set()


async def test_a_captured_payment_is_refunded_as_any_other(worker: PaymentWorker) -> None:
    order_id = await authorized(worker)
    await worker.capture(order_id)
    assert await worker.refund(order_id) == [PaymentRefunded(order_id=order_id, status="REFUNDED")]


async def test_no_part_is_refunded_before_the_capture(worker: PaymentWorker) -> None:
    order_id = await authorized(worker)
    (refused,) = await worker.refund_part(order_id, "r1", 1)
    assert isinstance(refused, PartRefundFailed)
    assert "AUTHORIZED" in refused.reason


async def test_what_is_free_or_prepaid_needs_no_capture(worker: PaymentWorker) -> None:
    free = order_created(amount=0)
    prepaid = order_created(
        payment=PaymentInstruction(method="retainer", token=None, retainer_id=await retainer(worker, 5000))
    )
    for order in (free, prepaid):
        (answer,) = await worker.charge(order)
        assert isinstance(answer, PaymentProcessed)
        assert answer.status == "PROCESSED"
        assert await worker.capture(order.order_id) == captured(order.order_id)


async def test_a_capture_of_an_order_without_a_payment_is_poison(worker: PaymentWorker) -> None:
    with pytest.raises(PoisonError, match="has no payment"):
        await worker.capture("unknown")


async def test_a_refused_capture_says_why_and_can_be_tried_again(workers: list[PaymentWorker]) -> None:
    order_id = await authorized(workers[0], "tok_capture_refused")
    assert await workers[0].capture(order_id) == not_captured(order_id, CAPTURE_REFUSED)
    assert (await workers[0].payment(order_id)).failure_reason == CAPTURE_REFUSED
    assert await workers[1].capture(order_id) == captured(order_id)
    assert (await workers[0].payment(order_id)).failure_reason is None


async def test_an_expired_authorisation_is_never_captured(worker: PaymentWorker) -> None:
    order_id = await authorized(worker, "tok_authorization_expires")
    for _ in range(2):
        assert await worker.capture(order_id) == not_captured(order_id, EXPIRED)
    assert await worker.refund(order_id) == voided(order_id)
    assert await worker.held() == set()


@pytest.mark.parametrize("second", [0, 1], ids=["same worker", "another worker"])
async def test_a_capture_that_comes_again_after_a_crash_is_made_once(workers: list[PaymentWorker], second: int) -> None:
    order_id = await authorized(workers[0])
    workers[0].crash_at = CAPTURE_SENT
    with pytest.raises(SimulatedCrashError):
        await workers[0].capture(order_id)
    assert (await workers[0].payment(order_id)).status is PaymentStatus.AUTHORIZED
    assert await workers[second].capture(order_id) == captured(order_id)


async def test_a_capture_of_unknown_outcome_is_learned_later(workers: list[PaymentWorker], clock: MovableClock) -> None:
    order = order_created("tok_timeout")
    assert await workers[0].charge(order) == []
    clock.advance(1)
    await workers[0].reconciler.look_up_due()
    (answer,) = workers[0].outbox.sent
    assert isinstance(answer, PaymentProcessed)
    assert await workers[0].capture(order.order_id) == []
    clock.advance(3)
    await workers[1].reconciler.look_up_due()
    assert workers[1].outbox.sent == captured(order.order_id)
    assert await workers[0].payments.due(clock.now.replace(year=2100), 10) == []


async def test_a_worker_without_a_broker_leaves_what_is_due_to_the_others(
    workers: list[PaymentWorker], clock: MovableClock
) -> None:
    order = order_created("tok_timeout")
    assert await workers[0].charge(order) == []
    clock.advance(1)
    workers[0].outbox.away = True
    assert not await workers[0].reconciler.reconcile()
    await workers[1].reconciler.reconcile()
    (answer,) = workers[1].outbox.sent
    assert isinstance(answer, PaymentProcessed)


class Blocked:
    """Lets a worker's next call of the gateway wait, then go on or get no answer; the other calls pass."""

    def __init__(self, worker: PaymentWorker) -> None:
        self._worker = worker
        self._reached, self._released = asyncio.Event(), asyncio.Event()
        self._lost = False
        worker.gateway.before = self._wait

    async def _wait(self, _operation: str, _key: str) -> None:
        self._worker.gateway.before = _pass
        self._reached.set()
        await self._released.wait()
        if self._lost:
            raise GatewayTimeoutError("lost")

    async def reached(self) -> None:
        async with asyncio.timeout(60):
            await self._reached.wait()

    def release(self, *, lost: bool = False) -> None:
        self._lost = lost
        self._released.set()


async def _pass(_operation: str, _key: str) -> None:
    return None


async def test_an_order_whose_charge_one_of_two_processes_lost_is_not_captured_unasked(
    workers: list[PaymentWorker], clock: MovableClock
) -> None:
    order = order_created("tok_timeout")
    slow = Blocked(workers[1])
    redelivered = asyncio.create_task(workers[1].charge(order))
    await slow.reached()
    assert await workers[0].charge(order) == []
    slow.release()
    assert [answer.routing_key for answer in await redelivered] == ["payment.processed"]
    clock.advance(2)
    await workers[0].reconciler.look_up_due()
    assert workers[0].outbox.sent == []
    record = await workers[0].gateway_record(order.order_id)
    assert record is not None
    assert record["outcome"] == "AUTHORIZED"


@pytest.mark.parametrize("lost", [0, 1])
async def test_a_refusal_that_was_answered_is_not_followed_by_a_capture(
    workers: list[PaymentWorker], clock: MovableClock, lost: int
) -> None:
    order_id = await authorized(workers[0], "tok_capture_refused")
    slow = Blocked(workers[1])
    second = asyncio.create_task(workers[1].capture(order_id))
    await slow.reached()
    if lost == 0:  # the first capture gets no answer, the second is refused
        Blocked(workers[0]).release(lost=True)
        assert await workers[0].capture(order_id) == []
        slow.release()
    else:  # the first is refused, the second gets no answer
        assert await workers[0].capture(order_id) == not_captured(order_id, CAPTURE_REFUSED)
        slow.release(lost=True)
    assert await second == not_captured(order_id, CAPTURE_REFUSED)
    clock.advance(60)
    await workers[0].reconciler.look_up_due()
    assert workers[0].outbox.sent == []
    payment = await workers[0].payment(order_id)
    assert (payment.status, payment.failure_reason) == (PaymentStatus.AUTHORIZED, CAPTURE_REFUSED)


async def test_only_a_refusal_that_leaves_an_order_unpaid_is_counted(workers: list[PaymentWorker]) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("captures_refused_total") or 0

    order_id = await authorized(workers[0])
    before, slow = counted(), Blocked(workers[1])
    capture = asyncio.create_task(workers[1].capture(order_id))
    await slow.reached()
    assert await workers[0].refund(order_id) == voided(order_id)
    slow.release()
    assert await capture == voided(order_id)
    assert counted() == before
    await workers[0].capture(await authorized(workers[0], "tok_authorization_expires"))
    assert counted() == before + 1


async def test_payments_of_before_are_charged_as_before_when_the_setting_changes(
    workers: list[PaymentWorker], mongodb_url: str, database_prefix: str, clock: MovableClock
) -> None:
    async with payment_worker(mongodb_url, database_prefix, clock=clock) as immediate:
        at_once = order_created()
        immediate.crash_at = PAYMENT_PENDING
        with pytest.raises(SimulatedCrashError):
            await immediate.charge(at_once)
        (answer,) = await workers[0].charge(at_once)
        assert isinstance(answer, PaymentProcessed)
        assert answer.status == "PROCESSED"
        later = await authorized(workers[0])
        assert await immediate.capture(later) == captured(later)


class History:
    """Orders that are captured, refunded or both, by crashing workers over a gateway that loses answers."""

    def __init__(self, seed: int, workers: list[PaymentWorker], clock: MovableClock) -> None:
        self._dice = random.Random(seed)
        self._workers = workers
        self._clock = clock
        tokens = ["tok_ok", "tok_ok", "tok_timeout", "tok_capture_refused", "tok_authorization_expires"]
        self.orders = [order_created(self._dice.choice(tokens)) for _ in range(4)]
        self.captured = {order.order_id for order in self.orders if self._dice.random() < 0.7}
        self.refunded = {order.order_id for order in self.orders if self._dice.random() < 0.5}
        for worker in workers:
            worker.gateway.before = worker.gateway.after = self._disturb

    async def _disturb(self, _operation: str, _key: str) -> None:
        luck = self._dice.random()
        if luck < 0.15:
            raise GatewayTimeoutError("lost")
        if luck < 0.5:
            await asyncio.sleep(0)

    async def play(self) -> None:
        """Authorise the orders; then deliver every capture and refund until it is acknowledged, in random order."""
        for order in self.orders:
            while not any(await asyncio.gather(*(self._deliver("charge", order) for _ in range(self._times())))):
                await self._look_up()
        waiting = [
            (what, order)
            for what, ids in (("capture", self.captured), ("refund", self.refunded))
            for order in self.orders
            if order.order_id in ids
        ]
        self._dice.shuffle(waiting)
        while waiting:
            count = self._dice.randint(1, 4)
            now, waiting = waiting[:count], waiting[count:]
            delivered = await asyncio.gather(*(self._deliver(*message) for message in now))
            waiting.extend(message for message, done in zip(now, delivered, strict=True) if not done)
            await self._look_up()
        for worker in self._workers:
            worker.crash_at = None
        # Commands that are still unanswered come again, as the order service sends them.
        for order in self.orders:
            while order.order_id in self.captured | self.refunded and not await self._answered(order):
                await self._look_up()

    def _times(self) -> int:
        """Return to how many processes a message is delivered at once."""
        return self._dice.choice((1, 1, 2))

    async def _answered(self, order: OrderCreated) -> bool:
        worker = self._dice.choice(self._workers)
        command = worker.refund if order.order_id in self.refunded else worker.capture
        return bool(await command(order.order_id))

    async def _deliver(self, what: str, order: OrderCreated) -> bool:
        worker = self._dice.choice(self._workers)
        if self._dice.random() < 0.4:
            worker.crash_at = self._dice.choice([PAYMENT_PENDING, PAYMENT_CHARGED, CAPTURE_SENT, REFUND_SENT])
        try:
            if what == "charge":
                await worker.charge(order)
                return (await worker.payment(order.order_id)).status is not PaymentStatus.PENDING
            await (worker.capture if what == "capture" else worker.refund)(order.order_id)
        except SimulatedCrashError:
            return False
        return self._dice.random() > 0.2

    async def _look_up(self) -> None:
        self._clock.advance(31)
        with suppress(SimulatedCrashError):
            await self._dice.choice(self._workers).reconciler.look_up_due()


@pytest.mark.long_form
async def test_a_capture_that_races_a_refund_has_one_winner(workers: list[PaymentWorker], clock: MovableClock) -> None:
    for seed in range(seed_count()):
        history = History(seed, workers, clock)
        await history.play()
        for order in history.orders:
            payment = await workers[0].payment(order.order_id)
            agree(payment, await workers[0].gateway_record(order.order_id))
            if order.order_id in history.refunded:
                assert payment.status in (PaymentStatus.VOIDED, PaymentStatus.REFUNDED), seed
            elif order.order_id in history.captured and order.payment.token != "tok_authorization_expires":
                assert payment.status is PaymentStatus.PROCESSED or payment.failure_reason == CAPTURE_REFUSED, seed
            else:
                assert payment.status is PaymentStatus.AUTHORIZED, seed


def agree(payment: Payment, record: Document | None) -> None:
    """Check that the payment agrees with the gateway's record."""
    assert record is not None
    state = (record["outcome"], "refundedAt" in record)
    allowed = {
        PaymentStatus.AUTHORIZED: {("AUTHORIZED", False)},
        PaymentStatus.PROCESSED: {("CHARGED", False)},
        PaymentStatus.REFUNDED: {("CHARGED", True)},
        PaymentStatus.VOIDED: {("VOIDED", False)},
    }
    if payment.failure_reason == EXPIRED:
        allowed[PaymentStatus.AUTHORIZED] = {("VOIDED", False)}
    assert state in allowed[payment.status], (payment, record)

"""One charge per order despite crashes, redeliveries and races: over a real database, with several workers."""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from payment_service import payments as records
from payment_service.gateways import simulated
from payment_service.gateways.port import GatewayTimeoutError
from payment_service.lifecycle import Payment, PaymentStatus, charge_answer
from shared.contracts import Message, OrderCreated, PaymentFailed, PaymentProcessed, PaymentRefunded
from shared.database import Document
from shared.errors import BusUnavailableError
from shared.failpoints import PAYMENT_CHARGED, PAYMENT_PENDING, REFUND_SENT, SimulatedCrashError
from tests.support.payment_workers import MovableClock, PaymentWorker, kinds, order_created, payment_worker
from tests.support.seeds import seeded
from tests.support.servers import Servers, drop_databases


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture(scope="module")
async def prefix(servers: Servers) -> AsyncIterator[str]:
    """One database for all tests here, each of which empties it: to make one takes longer than most tests."""
    shared = f"t{secrets.token_hex(8)}"
    yield shared
    await drop_databases(servers.mongodb_url, shared)


@pytest.fixture
async def workers(servers: Servers, prefix: str, clock: MovableClock) -> AsyncIterator[list[PaymentWorker]]:
    async with (
        payment_worker(servers.mongodb_url, prefix, clock=clock) as one,
        payment_worker(servers.mongodb_url, prefix, clock=clock) as other,
    ):
        for collection in (records.COLLECTION, simulated.COLLECTION):
            await one.database[collection].delete_many({})
        yield [one, other]


class Gate:
    """Blocks one kind of gateway call, before or after it is made, until the test opens the gate."""

    def __init__(self, worker: PaymentWorker, operation: str, *, after: bool = False) -> None:
        self._operation = operation
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self.cancelled = asyncio.Event()
        setattr(worker.gateway, "after" if after else "before", self._hold)

    async def _hold(self, operation: str, _key: str) -> None:
        if operation == self._operation:
            self.reached.set()
            try:
                await self.open.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise


def processed(order: OrderCreated, record: Document | None) -> list[Message]:
    assert record is not None
    return [PaymentProcessed(order_id=order.order_id, transaction_id=record["chargeId"])]


def refunded(order: OrderCreated, status: str = "REFUNDED") -> list[Message]:
    return [PaymentRefunded(order_id=order.order_id, status=status)]  # type: ignore[arg-type]


# --- A crash, and the same message again ---


@pytest.mark.parametrize("point", [PAYMENT_PENDING, PAYMENT_CHARGED])
@pytest.mark.parametrize("second", [0, 1], ids=["same worker", "another worker"])
async def test_an_order_that_comes_again_after_a_crash_is_charged_once(
    workers: list[PaymentWorker], point: str, second: int
) -> None:
    order = order_created()
    workers[0].crash_at = point
    with pytest.raises(SimulatedCrashError):
        await workers[0].charge(order)
    assert (await workers[0].payment(order.order_id)).status is PaymentStatus.PENDING
    answers = await workers[second].charge(order)
    record = await workers[0].gateway_record(order.order_id)
    assert answers == processed(order, record)
    assert record is not None
    assert record["attempts"] == (2 if point == PAYMENT_CHARGED else 1)


async def test_a_lost_first_answer_followed_by_a_crash_is_charged_once(workers: list[PaymentWorker]) -> None:
    order = order_created("tok_timeout")
    workers[0].crash_at = PAYMENT_CHARGED
    with pytest.raises(SimulatedCrashError):
        await workers[0].charge(order)
    assert await workers[1].charge(order) == processed(order, await workers[1].gateway_record(order.order_id))


@pytest.mark.parametrize("second", [0, 1], ids=["same worker", "another worker"])
async def test_a_refund_that_comes_again_after_a_crash_is_sent_once(workers: list[PaymentWorker], second: int) -> None:
    order = order_created()
    await workers[0].charge(order)
    workers[0].crash_at = REFUND_SENT
    with pytest.raises(SimulatedCrashError):
        await workers[0].refund(order.order_id)
    record = await workers[0].gateway_record(order.order_id)
    assert (await workers[0].payment(order.order_id)).status is PaymentStatus.PROCESSED
    assert await workers[second].refund(order.order_id) == refunded(order)
    assert await workers[0].gateway_record(order.order_id) == record


@pytest.mark.parametrize("point", [PAYMENT_PENDING, PAYMENT_CHARGED])
async def test_a_refund_between_a_crash_and_the_redelivery_leaves_nothing_charged(
    workers: list[PaymentWorker], point: str
) -> None:
    order = order_created()
    workers[0].crash_at = point
    with pytest.raises(SimulatedCrashError):
        await workers[0].charge(order)
    assert await workers[1].refund(order.order_id) == []
    expected = refunded(order, "VOIDED" if point == PAYMENT_PENDING else "REFUNDED")
    assert await workers[1].charge(order) == expected
    assert await workers[1].refund(order.order_id) == expected
    assert await workers[0].held() == set()


async def test_the_redelivery_that_returns_the_charge_may_crash_too(workers: list[PaymentWorker]) -> None:
    order = order_created()
    workers[0].crash_at = PAYMENT_CHARGED
    with pytest.raises(SimulatedCrashError):
        await workers[0].charge(order)
    await workers[1].refund(order.order_id)
    workers[1].crash_at = REFUND_SENT
    with pytest.raises(SimulatedCrashError):
        await workers[1].charge(order)
    assert await workers[0].charge(order) == refunded(order)
    assert await workers[0].held() == set()


async def test_a_refund_is_carried_out_even_if_the_crashed_order_never_comes_again(
    workers: list[PaymentWorker], clock: MovableClock
) -> None:
    order = order_created()
    workers[0].crash_at = PAYMENT_CHARGED
    with pytest.raises(SimulatedCrashError):
        await workers[0].charge(order)
    assert await workers[1].refund(order.order_id) == []
    clock.advance(5)
    await workers[1].reconciler.look_up_due()
    assert workers[1].outbox.sent == refunded(order)
    assert await workers[0].held() == set()


# --- Races ---


async def test_one_order_on_two_workers_at_once_is_charged_once(workers: list[PaymentWorker]) -> None:
    orders = [order_created() for _ in range(40)]
    both = await asyncio.gather(workers[0].charge(*orders), workers[1].charge(*reversed(orders)))
    first, second = ({answer.correlation_id: answer for answer in answers} for answers in both)
    assert first == second
    for order in orders:
        assert [first[order.order_id]] == processed(order, await workers[0].gateway_record(order.order_id))


@pytest.mark.parametrize("after", [False, True], ids=["before the gateway", "after the gateway"])
@pytest.mark.parametrize("token", ["tok_ok", "tok_declined"])
async def test_a_refund_that_meets_a_charge_in_flight_is_answered_by_the_charging_worker(
    workers: list[PaymentWorker], after: bool, token: str
) -> None:
    order = order_created(token)
    gate = Gate(workers[0], "charge", after=after)
    charging = asyncio.create_task(workers[0].charge(order))
    await gate.reached.wait()
    assert await workers[1].refund(order.order_id) == []
    assert await workers[1].refund(order.order_id) == []
    gate.open.set()
    assert await charging == refunded(order, "REFUNDED" if token == "tok_ok" else "VOIDED")
    assert await workers[0].held() == set()
    expected = PaymentStatus.REFUNDED if token == "tok_ok" else PaymentStatus.FAILED
    assert (await workers[0].payment(order.order_id)).status is expected
    # A redelivery of either message gets the same answer.
    assert await workers[1].charge(order) == await workers[1].refund(order.order_id) == await charging


async def test_a_charge_that_outlives_its_look_up_is_not_held(
    workers: list[PaymentWorker], clock: MovableClock
) -> None:
    order = order_created()
    gate = Gate(workers[0], "charge")
    charging = asyncio.create_task(workers[0].charge(order))
    await gate.reached.wait()
    await workers[1].refund(order.order_id)
    clock.advance(5)
    await workers[1].reconciler.look_up_due()
    assert workers[1].outbox.sent == refunded(order, "VOIDED")
    gate.open.set()
    assert await charging == refunded(order, "VOIDED")
    assert await workers[0].held() == set()


async def test_a_worker_that_stalls_before_recording_its_charge_changes_nothing_decided_since(
    workers: list[PaymentWorker],
) -> None:
    order = order_created()
    gate = Gate(workers[0], "charge", after=True)
    charging = asyncio.create_task(workers[0].charge(order))
    await gate.reached.wait()
    assert kinds(await workers[1].charge(order)) == ["payment.processed"]
    assert await workers[1].refund(order.order_id) == refunded(order)
    gate.open.set()
    assert await charging == refunded(order)
    assert (await workers[0].payment(order.order_id)).status is PaymentStatus.REFUNDED


async def test_a_look_up_that_another_worker_has_made_unnecessary_is_cancelled(
    workers: list[PaymentWorker], clock: MovableClock
) -> None:
    order = order_created("tok_timeout")
    gate = Gate(workers[1], "charge")
    stalled = asyncio.create_task(workers[1].charge(order))
    await gate.reached.wait()
    assert await workers[0].charge(order) == []
    gate.open.set()
    assert await stalled == processed(order, await workers[0].gateway_record(order.order_id))
    clock.advance(3600)
    assert await workers[0].reconciler.look_up_due() == 0


async def test_a_look_up_that_an_earlier_release_left_behind_is_cancelled(
    workers: list[PaymentWorker], clock: MovableClock
) -> None:
    order = order_created()
    await workers[0].charge(order)
    left = {"$set": {"nextLookupAt": clock.now, "lookups": 1}}
    await workers[0].database["payments"].update_one({"_id": order.order_id}, left)
    assert await workers[0].reconciler.look_up_due() == 1
    assert workers[0].outbox.sent == []
    clock.advance(3600)
    assert await workers[0].reconciler.look_up_due() == 0


async def test_a_late_publication_does_not_count_for_a_newer_decision(
    workers: list[PaymentWorker], clock: MovableClock
) -> None:
    order = order_created("tok_timeout")
    await workers[0].charge(order)
    clock.advance(1)
    workers[0].outbox.away = True
    with pytest.raises(BusUnavailableError):
        await workers[0].reconciler.look_up_due()
    (left,) = await workers[0].payments.unpublished(clock(), 10)
    assert left.status is PaymentStatus.PROCESSED
    # Before that answer is recorded as published, another worker refunds the payment and dies.
    await workers[1].refund(order.order_id)
    await workers[0].payments.mark_published([left])
    clock.advance(5)
    await workers[1].reconciler.publish_unpublished()
    assert workers[1].outbox.sent == refunded(order)


async def test_a_charge_whose_record_was_lost_and_replaced_by_a_tombstone_is_refunded(
    workers: list[PaymentWorker],
) -> None:
    order = order_created()
    gate = Gate(workers[0], "charge", after=True)
    charging = asyncio.create_task(workers[0].charge(order))
    await gate.reached.wait()
    await workers[1].database[records.COLLECTION].delete_one({"_id": order.order_id})
    assert await workers[1].refund(order.order_id) == refunded(order, "VOIDED")
    gate.open.set()
    assert await charging == refunded(order)
    assert await workers[0].held() == set()


async def test_a_charge_whose_record_is_lost_is_recorded_when_the_order_comes_again(
    workers: list[PaymentWorker],
) -> None:
    order = order_created()
    gate = Gate(workers[0], "charge", after=True)
    charging = asyncio.create_task(workers[0].charge(order))
    await gate.reached.wait()
    await workers[1].database[records.COLLECTION].delete_one({"_id": order.order_id})
    gate.open.set()
    with pytest.raises(LookupError, match=order.order_id):
        await charging
    assert await workers[1].charge(order) == processed(order, await workers[1].gateway_record(order.order_id))


async def test_two_concurrent_refunds_return_the_money_once(workers: list[PaymentWorker]) -> None:
    orders = [order_created() for _ in range(40)]
    ids = [order.order_id for order in orders]
    await workers[0].charge(*orders)
    both = await asyncio.gather(workers[0].refund(*ids), workers[1].refund(*reversed(ids)))
    for answers in both:
        assert sorted(answer.correlation_id for answer in answers) == sorted(ids)
        assert {answer.status for answer in answers} == {"REFUNDED"}  # type: ignore[attr-defined]
    assert await workers[0].held() == set()


async def test_refunds_racing_their_orders_on_two_workers_leave_nothing_charged(
    workers: list[PaymentWorker], clock: MovableClock
) -> None:
    for round_ in range(20):
        orders = [order_created("tok_timeout" if number % 5 == 0 else "tok_ok") for number in range(20)]
        ids = [order.order_id for order in orders]
        charged, returned = await asyncio.gather(
            workers[0].charge(*orders), _after(round_ % 10, workers[1].refund(*ids))
        )
        clock.advance(5)
        await asyncio.gather(*(worker.reconciler.look_up_due() for worker in workers))
        answered = {
            answer.correlation_id
            for answer in (*charged, *returned, *workers[0].outbox.sent, *workers[1].outbox.sent)
            if isinstance(answer, PaymentRefunded)
        }
        assert answered >= set(ids)
        assert await workers[0].held() == set()


async def _after(milliseconds: int, work):  # type: ignore[no-untyped-def]
    await asyncio.sleep(milliseconds / 1000)
    return await work


async def test_an_abandoned_batch_leaves_no_call_behind(workers: list[PaymentWorker]) -> None:
    order = order_created()
    gate = Gate(workers[0], "charge")
    charging = asyncio.create_task(workers[0].charge(order))
    await gate.reached.wait()
    charging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await charging
    async with asyncio.timeout(60):
        await gate.cancelled.wait()
    assert await workers[0].gateway_record(order.order_id) is None
    assert kinds(await workers[1].charge(order)) == ["payment.processed"]


# --- Random histories from a seed ---


class History:
    """Orders and refunds of half of them, delivered to crashing workers with a gateway that loses answers."""

    def __init__(self, seed: int, workers: list[PaymentWorker], clock: MovableClock) -> None:
        self._dice = random.Random(seed)
        self._workers = workers
        self._clock = clock
        self.published: list[Message] = []
        self.orders = [
            order_created(self._dice.choice(["tok_ok", "tok_ok", "tok_declined", "tok_timeout"])) for _ in range(12)
        ]
        self.refunded = {order.order_id for order in self.orders if self._dice.random() < 0.5}
        for worker in workers:
            worker.gateway.before = worker.gateway.after = self._disturb

    async def _disturb(self, _operation: str, _key: str) -> None:
        luck = self._dice.random()
        if luck < 0.15:
            raise GatewayTimeoutError("lost")
        if luck < 0.5:
            await asyncio.sleep(self._dice.random() / 200)

    async def play(self) -> None:
        """Deliver every message until it is acknowledged, some twice, in random order and to random workers."""
        waiting: list[tuple[str, list[OrderCreated]]] = []
        orders = list(self.orders)
        while orders:
            count = self._dice.randint(1, 4)
            waiting.append(("charge", orders[:count]))
            waiting.extend(("refund", [order]) for order in orders[:count] if order.order_id in self.refunded)
            orders = orders[count:]
        waiting.extend(self._dice.sample(waiting, 3))
        self._dice.shuffle(waiting)
        while waiting:
            count = self._dice.randint(1, 4)
            now, waiting = waiting[:count], waiting[count:]
            delivered = await asyncio.gather(*(self._deliver(*message) for message in now))
            waiting.extend(message for message, done in zip(now, delivered, strict=True) if not done)
            self._clock.advance(self._dice.choice([0, 0, 1, 6]))
            await self._look_up()
        for worker in self._workers:
            worker.crash_at = None
        for _ in range(30):
            self._clock.advance(31)
            await self._look_up()

    async def _deliver(self, what: str, orders: list[OrderCreated]) -> bool:
        worker = self._dice.choice(self._workers)
        if self._dice.random() < 0.4:
            worker.crash_at = self._dice.choice([PAYMENT_PENDING, PAYMENT_CHARGED, REFUND_SENT])
        try:
            if what == "charge":
                answers = await worker.charge(*orders)
            else:
                answers = await worker.refund(*(order.order_id for order in orders))
        except SimulatedCrashError:
            return False
        if self._dice.random() < 0.2:
            return False  # a crash between the write and the publication
        self.published.extend(answers)
        return self._dice.random() > 0.1  # a crash between the publication and the acknowledgement

    async def _look_up(self) -> None:
        worker = self._dice.choice(self._workers)
        worker.outbox.away = self._dice.random() < 0.2
        # After a crash or an outage of the broker, a later round finds the rest.
        with suppress(SimulatedCrashError, BusUnavailableError):
            await worker.reconciler.look_up_due()
            await worker.reconciler.publish_unpublished()


@seeded(cost=3)
async def test_after_any_history_payments_gateway_and_answers_agree(
    workers: list[PaymentWorker], clock: MovableClock, seed: int
) -> None:
    history = History(seed, workers, clock)
    await history.play()
    published = [*history.published, *workers[0].outbox.sent, *workers[1].outbox.sent]
    for order in history.orders:
        payment, record = await workers[0].payment(order.order_id), await workers[0].gateway_record(order.order_id)
        assert_agreement(payment, record)
        assert charge_answer(payment) in published
        assert payment.status is not PaymentStatus.PENDING
        if order.order_id in history.refunded:
            assert payment.status is not PaymentStatus.PROCESSED
            assert any(isinstance(one, PaymentRefunded) and one.order_id == order.order_id for one in published)
        else:
            assert payment.status is (
                PaymentStatus.FAILED if order.payment.token == "tok_declined" else PaymentStatus.PROCESSED
            )
            kinds_sent = Counter(type(one) for one in published if one.correlation_id == order.order_id)
            assert set(kinds_sent) <= {PaymentProcessed, PaymentFailed}
            assert len(kinds_sent) == 1
    assert await workers[0].payments.unpublished(clock(), 100) == []
    assert await workers[0].payments.due(clock.now.replace(year=2100), 100) == []


def assert_agreement(payment: Payment, record: Document | None) -> None:
    """Check that the payment agrees with the gateway's record."""
    state = (record["outcome"], "refundedAt" in record) if record else ("ABSENT", False)
    allowed = {
        PaymentStatus.PROCESSED: {("CHARGED", False)},
        PaymentStatus.REFUNDED: {("CHARGED", True)},
        PaymentStatus.FAILED: {("DECLINED", False)},
        PaymentStatus.VOIDED: {("VOIDED", False), ("ABSENT", False)},
    }
    assert state in allowed[payment.status], (payment, record)
    if payment.status in (PaymentStatus.PROCESSED, PaymentStatus.REFUNDED):
        assert record is not None
        assert payment.transaction_id == record["chargeId"]
